package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

var errNotUp = errors.New("not up")

func runStatus(args []string) error {
	flags, name := flagsWithName("status")
	if _, err := parse(flags, args); err != nil {
		return err
	}
	which := []string{*name}
	if *name == "" {
		var err error
		if which, err = names(); err != nil {
			return err
		}
		if len(which) == 0 {
			fmt.Println("no clusters")
			return errNotUp
		}
	}
	allUp := true
	for _, name := range which {
		c, err := open(name)
		if err != nil {
			return err
		}
		allUp = c.printStatus() && allUp
	}
	if !allUp {
		return errNotUp
	}
	return nil
}

// printStatus says what runs, and whether it is all there is to run.
func (c *Cluster) printStatus() bool {
	if !c.known() {
		fmt.Printf("cluster %s does not exist\n", c.Name)
		return false
	}
	up, total := true, int64(0)
	fmt.Printf("cluster %s, node %s, API server %s\n", c.Name, c.Node, c.server())
	for _, component := range c.components() {
		id, alive := c.recorded(component.Name)
		up = up && alive
		if !alive {
			fmt.Printf("  %-24s not running\n", component.Name)
			continue
		}
		total += id.RSS()
		fmt.Printf("  %-24s pid %-7d %5d MB  port %d\n", component.Name, id.Pid, id.RSS()>>20, c.Ports[portOf(component.Name)])
	}
	fmt.Printf("  %-24s %17d MB\n", "together", total>>20)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	ready, all := 0, 0
	client, err := c.client()
	if err == nil {
		ready, all, err = readyNodes(ctx, client)
	}
	if err != nil {
		fmt.Println("  API server:", err)
		return false
	}
	if c.Node != nodeNone {
		fmt.Printf("  nodes ready              %d of %d\n", ready, all)
		up = up && ready >= c.Nodes
	}
	return up
}

// portOf gives the name of the port a person would ask for.
func portOf(component string) string {
	switch component {
	case "node":
		return "kubelet"
	case "kube-proxy":
		return "kube-proxy-health"
	case "containerd":
		return "containerd-stream"
	}
	return component
}
