package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
)

const (
	nodeName      = "localhost" // so that the API server reaches the kubelet on loopback
	clusterDomain = "cluster.local"
	serviceCIDR   = "10.0.0.0/24"
	apiServiceIP  = "10.0.0.1"
	issuer        = "https://kubernetes.default.svc"
)

// Component is one program of a cluster.
type Component struct {
	Name string
	Argv []string
}

// portUses are the ports that a cluster takes; all kinds of node get the same, it is simpler than to save some.
var portUses = []string{
	"etcd", "etcd-peer", "kube-apiserver", "kube-controller-manager", "kube-scheduler",
	"kubelet", "kube-proxy-health", "kube-proxy-metrics", "containerd-stream",
}

// controlPlane lists what every cluster runs, in the order of starting.
func (c *Cluster) controlPlane() []Component {
	return []Component{c.etcd(), c.apiserver(), c.controllerManager(), c.scheduler()}
}

// components lists everything this cluster runs, in the order of starting.
func (c *Cluster) components() []Component {
	all := c.controlPlane()
	switch c.Node {
	case nodeReal:
		all = append(all, c.containerd(), c.kubelet(), c.kubeProxy(), c.coredns())
	case nodeProcess, nodeScripted:
		all = append(all, c.nodeAgent())
	}
	return all
}

// component finds one by name; "kubelet" and "node" are the same thing wherever a cluster has only one of them.
func (c *Cluster) component(name string) (Component, error) {
	var names []string
	for _, component := range c.components() {
		same := component.Name == "node" && name == "kubelet" || component.Name == "kubelet" && name == "node"
		if component.Name == name || same {
			return component, nil
		}
		names = append(names, component.Name)
	}
	return Component{}, fmt.Errorf("cluster %s has no component %q; it has %v", c.Name, name, names)
}

func (c *Cluster) local(use string) string { return "127.0.0.1:" + strconv.Itoa(c.Ports[use]) }
func (c *Cluster) pki(file string) string  { return c.path("pki", file) }

func (c *Cluster) etcd() Component {
	client, peer := "http://"+c.local("etcd"), "http://"+c.local("etcd-peer")
	return Component{"etcd", []string{
		c.Kube, "etcd", "--data-dir", c.etcdDir(), "--log-level=warn", "--unsafe-no-fsync",
		"--listen-client-urls", client, "--advertise-client-urls", client,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default=" + peer,
		"--quota-backend-bytes=4294967296",
	}}
}

func (c *Cluster) apiserver() Component {
	bind := "127.0.0.1"
	if c.Node == nodeReal {
		bind = "0.0.0.0" // pods come in through the bridge
	}
	argv := []string{
		c.Kube, "kube-apiserver", "--etcd-servers=http://" + c.local("etcd"),
		"--bind-address=" + bind, "--advertise-address=127.0.0.1", "--endpoint-reconciler-type=none",
		"--secure-port=" + strconv.Itoa(c.Ports["kube-apiserver"]), "--cert-dir=" + c.path("tmp"),
		"--tls-cert-file=" + c.pki("server.crt"), "--tls-private-key-file=" + c.pki("server.key"), "--client-ca-file=" + c.pki("ca.crt"),
		"--service-account-key-file=" + c.pki("sa.key"), "--service-account-signing-key-file=" + c.pki("sa.key"),
		"--service-account-issuer=" + issuer, "--service-cluster-ip-range=" + serviceCIDR,
		"--authorization-mode=Node,RBAC", "--allow-privileged=true",
		"--kubelet-client-certificate=" + c.pki("kubelet-client.crt"), "--kubelet-client-key=" + c.pki("kubelet-client.key"),
		"--kubelet-certificate-authority=" + c.pki("ca.crt"),
		"--max-requests-inflight=2000", "--max-mutating-requests-inflight=1000",
		"--audit-policy-file=" + c.path("config", "audit.yaml"), "--audit-log-path=" + c.path("audit.log"),
		"--audit-log-mode=blocking", "--audit-log-maxsize=100000", // MB: one file, never turned over under a test that counts
	}
	if c.Node == nodeScripted {
		// A lost node is a scenario here: let the cluster notice within a test's patience.
		argv = append(argv, "--default-not-ready-toleration-seconds=5", "--default-unreachable-toleration-seconds=5")
	}
	return Component{"kube-apiserver", argv}
}

// auditPolicy records who did what, once for each request, without bodies.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived, ResponseStarted]
rules:
- level: Metadata
`

// controllerFlags are what the controller manager and the scheduler share. The client limits are far above the defaults, unless stock ones
// are asked for: with those, a load test measures the limits.
func (c *Cluster) controllerFlags(name string) []string {
	config := c.kubeconfig(name)
	flags := []string{
		c.Kube, name, "--kubeconfig=" + config, "--authentication-kubeconfig=" + config, "--authorization-kubeconfig=" + config,
		"--leader-elect=false", "--bind-address=127.0.0.1", "--secure-port=" + strconv.Itoa(c.Ports[name]), "--cert-dir=" + c.path("tmp"),
	}
	if !c.Stock {
		flags = append(flags, "--kube-api-qps=2000", "--kube-api-burst=4000")
	}
	return flags
}

func (c *Cluster) controllerManager() Component {
	argv := append(c.controllerFlags("kube-controller-manager"),
		"--service-account-private-key-file="+c.pki("sa.key"), "--root-ca-file="+c.pki("ca.crt"),
		"--cluster-signing-cert-file="+c.pki("ca.crt"), "--cluster-signing-key-file="+c.pki("ca.key"),
		"--use-service-account-credentials", "--controllers=*", "--allocate-node-cidrs=false",
		"--flex-volume-plugin-dir="+c.path("tmp", "flexvolume"),
		"--pvclaimbinder-sync-period=1s", // 15 s otherwise until a claim made before its volume is bound
	)
	if !c.Stock {
		argv = append(argv, "--concurrent-job-syncs=20")
	}
	if c.Node == nodeScripted {
		argv = append(argv, "--node-monitor-period=2s", "--node-monitor-grace-period=20s")
	}
	return Component{"kube-controller-manager", argv}
}

func (c *Cluster) scheduler() Component {
	return Component{"kube-scheduler", c.controllerFlags("kube-scheduler")}
}

// nodeAgent is this very program as a node that has no containers.
func (c *Cluster) nodeAgent() Component {
	self, err := os.Executable()
	if err != nil {
		self = os.Args[0]
	}
	return Component{"node", []string{
		self, "node", "--kind", c.Node, "--dir", c.path("node"), "--images", c.path("images"), "--kubeconfig", c.kubeconfig("node"),
		"--name", nodeName, "--nodes", strconv.Itoa(c.Nodes), "--script", c.Script,
		"--cpu", c.CPU, "--memory", c.Memory, "--pods", strconv.Itoa(c.Pods),
		"--listen", c.local("kubelet"), "--ca", c.pki("ca.crt"), "--cert", c.pki("server.crt"), "--key", c.pki("server.key"),
	}}
}

// writeConfig writes the files that components read.
func (c *Cluster) writeConfig() error {
	if err := writeFile(c.path("config", "audit.yaml"), []byte(auditPolicy), 0o644); err != nil {
		return err
	}
	// The command line tools are links to the one binary, which looks at the name it was called by.
	bin := c.path("bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return err
	}
	for _, tool := range []string{"kubectl", "helm"} {
		link := filepath.Join(bin, tool)
		os.Remove(link)
		if err := os.Symlink(c.Kube, link); err != nil {
			return err
		}
	}
	return nil
}
