package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

func runUp(args []string) error {
	flags, name := flagsWithName("up")
	var want Spec
	flags.StringVar(&want.Node, "node", nodeProcess, "real, process, scripted or none")
	flags.StringVar(&want.Script, "script", "succeed-after=200ms", "default scenario of a scripted node")
	flags.IntVar(&want.Nodes, "nodes", 1, "how many scripted nodes")
	flags.StringVar(&want.CPU, "cpu", "64", "capacity")
	flags.StringVar(&want.Memory, "memory", "256Gi", "capacity")
	flags.IntVar(&want.Pods, "pods", 500, "capacity")
	flags.StringVar(&want.Kube, "kube", os.Getenv("COLLECT_KUBE"), "the kube binary; build.sh prints its path")
	flags.BoolVar(&want.Stock, "stock-controllers", false, "controllers with the limits that Kubernetes ships")
	rest, err := parse(flags, args)
	if err != nil {
		return err
	}
	if len(rest) > 0 {
		return fmt.Errorf("up: what is %q?", rest)
	}
	switch want.Node {
	case nodeReal, nodeProcess, nodeScripted, nodeNone:
	default:
		return fmt.Errorf("--node %q: want real, process, scripted or none", want.Node)
	}
	if want.Nodes != 1 && want.Node != nodeScripted {
		return fmt.Errorf("--nodes is for --node scripted; a %s cluster has one node", want.Node)
	}
	if want.Kube == "" {
		return errors.New("--kube or COLLECT_KUBE must name the kube binary; tests/cluster/cluster does that")
	}
	c, err := open(*name)
	if err != nil {
		return err
	}
	unlock, err := c.lock()
	if err != nil {
		return err
	}
	defer func() {
		_, err := os.Stat(c.Dir)
		unlock(errors.Is(err, fs.ErrNotExist)) // a refusal leaves nothing, the lock's file included
	}()
	if c, err = open(*name); err != nil { // again: somebody else may have changed it while we waited
		return err
	}
	began := time.Now()
	if err := c.plan(want); err != nil {
		return err
	}
	if err := c.up(); err != nil {
		return fmt.Errorf("%w\n(`cluster up` again goes on from here; `cluster down --name %s` removes all)", err, c.Name)
	}
	fmt.Printf("cluster %s is up after %.1f s\n\nexport KUBECONFIG=%s\nexport PATH=%s:\"$PATH\"\n", c.Name, time.Since(began).Seconds(), c.path("kubeconfig"), c.path("bin"))
	return nil
}

// plan chooses what is to be chosen and writes it down before anything is made. A cluster that is there keeps its choices.
func (c *Cluster) plan(want Spec) error {
	if c.known() {
		if c.Node != want.Node || c.Nodes != want.Nodes || c.Script != want.Script {
			return fmt.Errorf("cluster %s is there with --node %s --nodes %d --script %q; `cluster down --name %s` first", c.Name, c.Node, c.Nodes, c.Script, c.Name)
		}
		if c.Kube != want.Kube { // sources have changed since: what runs keeps running, what is started anew is new
			c.Kube = want.Kube
			return c.save()
		}
		return nil
	}
	want.Name = c.Name
	c.Spec = want
	// Choosing ports is one at a time among all clusters of this user, until the choice is written.
	unlock, err := lockFile(filepath.Join(filepath.Dir(c.Dir), ".ports.lock"))
	if err != nil {
		return err
	}
	defer unlock(true)
	taken, err := portsOfOthers(c.Name)
	if err != nil {
		return err
	}
	if c.Ports, err = choosePorts(portUses, taken, portIsFree); err != nil {
		return err
	}
	if c.Node == nodeReal {
		if err := c.planRealNode(); err != nil {
			return err
		}
	}
	return c.save()
}

// stages prints how long each stage took.
type stages struct{ last time.Time }

func (s *stages) done(what string) {
	fmt.Printf("  %5.1f s  %s\n", time.Since(s.last).Seconds(), what)
	s.last = time.Now()
}

// up starts what does not run and waits until the cluster can be used. Each step may be repeated.
func (c *Cluster) up() error {
	stage := &stages{time.Now()}
	gateway := ""
	if c.Node == nodeReal {
		// Refuse before anything runs, not after.
		if err := c.takeClaim(); err != nil {
			return err
		}
		gateway = c.Real.Gateway
	}
	if err := errors.Join(c.writePKI(gateway), c.writeKubeconfigs(), c.writeConfig()); err != nil {
		return err
	}
	prepared := make(chan error, 1)
	for _, component := range c.controlPlane()[:2] {
		if err := c.start(component.Name, component.Argv); err != nil {
			return err
		}
	}
	// The network and the container runtime get ready while the API server starts.
	go func() { prepared <- c.prepareRealNode() }()
	if err := c.awaitComponent("kube-apiserver", 2*time.Minute); err != nil {
		return err
	}
	stage.done("etcd and kube-apiserver are ready")
	if err := <-prepared; err != nil {
		return err
	}
	if c.Node == nodeReal {
		stage.done("containerd and the network are ready")
	}
	for _, component := range c.components()[2:] {
		if err := c.start(component.Name, component.Argv); err != nil {
			return err
		}
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if c.Node == nodeReal {
		if err := c.publishAPIServer(ctx, client); err != nil {
			return err
		}
	}
	if err := c.await(2*time.Minute, "ServiceAccount default/default", func() bool {
		_, err := client.CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{})
		return err == nil
	}); err != nil {
		return err
	}
	stage.done("kube-controller-manager works: ServiceAccount default/default exists")
	if c.Node == nodeNone {
		return nil
	}
	if err := c.await(2*time.Minute, "a Ready node", func() bool {
		ready, _, err := readyNodes(ctx, client)
		return err == nil && ready >= c.Nodes
	}); err != nil {
		return err
	}
	stage.done("every node is Ready")
	return nil
}

// await waits for a condition, and gives up early with the log if a component died meanwhile.
func (c *Cluster) await(patience time.Duration, what string, condition func() bool) error {
	var dead string
	reached := eventually(patience, func() bool {
		if condition() {
			return true
		}
		dead = c.firstDead()
		return dead != ""
	})
	switch {
	case dead != "":
		return fmt.Errorf("%s died while waiting for %s; the end of %s:\n%s", dead, what, c.log(dead), c.logTail(dead))
	case !reached:
		return fmt.Errorf("no %s after %s; logs are in %s", what, patience, c.path("logs"))
	}
	return nil
}

// firstDead names a component that was started and is no more.
func (c *Cluster) firstDead() string {
	for _, component := range c.components() {
		if _, err := os.Stat(c.path("pids", component.Name)); err != nil {
			continue
		}
		if _, alive := c.recorded(component.Name); !alive {
			return component.Name
		}
	}
	return ""
}

// awaitComponent waits until a component answers, as far as it has something to answer.
func (c *Cluster) awaitComponent(name string, patience time.Duration) error {
	check := func() bool { _, alive := c.recorded(name); return alive }
	switch name {
	case "etcd":
		check = func() bool { return answers("http://" + c.local("etcd") + "/health") }
	case "kube-apiserver":
		check = func() bool { return answers(c.server() + "/readyz") }
	case "kube-controller-manager", "kube-scheduler":
		check = func() bool { return answers("https://" + c.local(name) + "/healthz") }
	}
	return c.await(patience, "the answer of "+name, check)
}

// answers says whether a GET gives 200. It asks nothing secret of processes on loopback, so it does not check certificates.
func answers(url string) bool {
	client := http.Client{
		Timeout: 2 * time.Second,
		Transport: &http.Transport{
			TLSClientConfig:   &tls.Config{InsecureSkipVerify: true},
			DialContext:       (&net.Dialer{Timeout: time.Second}).DialContext,
			DisableKeepAlives: true,
		},
	}
	response, err := client.Get(url)
	if err != nil {
		return false
	}
	defer response.Body.Close()
	_, _ = io.Copy(io.Discard, response.Body)
	return response.StatusCode == http.StatusOK
}

// client is the admin's.
func (c *Cluster) client() (*kubernetes.Clientset, error) {
	config, err := clientcmd.BuildConfigFromFlags("", c.path("kubeconfig"))
	if err != nil {
		return nil, err
	}
	config.QPS, config.Burst, config.Timeout = 100, 200, 10*time.Second
	return kubernetes.NewForConfig(config)
}

// readyNodes counts the nodes whose heartbeat is current, and all.
func readyNodes(ctx context.Context, client kubernetes.Interface) (ready, all int, err error) {
	nodes, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return 0, 0, err
	}
	for _, node := range nodes.Items {
		for _, condition := range node.Status.Conditions {
			if condition.Type == corev1.NodeReady && condition.Status == corev1.ConditionTrue && len(node.Spec.Taints) == 0 {
				ready++
			}
		}
	}
	return ready, len(nodes.Items), nil
}
