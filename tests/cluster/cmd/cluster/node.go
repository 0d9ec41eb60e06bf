package main

import (
	"context"
	"os/signal"
	"syscall"

	"collect.dev/tests/cluster/node"
)

// runNode is the node agent, a child of `up`. People have no reason to call it.
func runNode(args []string) error {
	var options node.Options
	flags, name := flagsWithName("node")
	flags.StringVar(&options.Kind, "kind", nodeProcess, "process or scripted")
	flags.StringVar(&options.Dir, "dir", "", "folder for what belongs to pods")
	flags.StringVar(&options.Images, "images", "", "folder of unpacked images")
	flags.StringVar(&options.Kubeconfig, "kubeconfig", "", "how to reach the API server")
	flags.StringVar(&options.Script, "script", "", "default scenario")
	flags.IntVar(&options.Nodes, "nodes", 1, "how many nodes to be")
	flags.StringVar(&options.CPU, "cpu", "64", "capacity")
	flags.StringVar(&options.Memory, "memory", "256Gi", "capacity")
	flags.IntVar(&options.Pods, "pods", 500, "capacity")
	flags.StringVar(&options.Listen, "listen", "127.0.0.1:0", "address for logs")
	flags.StringVar(&options.CA, "ca", "", "authority of those who may ask for logs")
	flags.StringVar(&options.Cert, "cert", "", "own certificate")
	flags.StringVar(&options.Key, "key", "", "own key")
	if _, err := parse(flags, args); err != nil {
		return err
	}
	options.Name = *name
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	return node.Run(ctx, options)
}
