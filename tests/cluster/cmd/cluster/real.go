package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// RealNode is what a node with containers takes from the machine, and what the machine was like before.
type RealNode struct {
	Subnet  string            `json:"subnet"`
	Gateway string            `json:"gateway"`
	Sysctls map[string]string `json:"sysctls"` // values to put back
	Absent  []string          `json:"absent"`  // folders with fixed names that were not there before
}

// claim says which cluster owns the things with fixed names on this machine: kube-proxy's tables and the kubelet's sysctls.
const claim = "/run/collect-operator-real-node"

// touchedSysctls are those that kubelet, kube-proxy and CNI plugins write.
var touchedSysctls = []string{
	"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes",
	"net/ipv4/ip_forward", "net/ipv4/conf/all/route_localnet", "net/netfilter/nf_conntrack_tcp_be_liberal",
}

// fixedFolders are made by the runtime, the kubelet or their libraries under names that can't be set.
var fixedFolders = []string{
	"/run/containerd", "/var/lib/cni", "/var/lib/kubelet", "/var/lib/kube-proxy", "/var/log/containers", "/var/log/pods", "/usr/libexec/kubernetes", "/opt/containerd",
}

func (c *Cluster) bridge() string           { return "collect" + c.ID() } // 15 letters, the most a name of an interface can have
func (c *Cluster) cgroup() string           { return "collect-" + c.Name + "-" + c.ID() }
func (c *Cluster) containerdSocket() string { return c.path("run", "containerd.sock") }

// planRealNode makes sure that the programs are there, and records the machine as it is before the first change.
func (c *Cluster) planRealNode() error {
	if os.Geteuid() != 0 {
		return errors.New("--node real needs root on Linux; --node process needs nothing")
	}
	if length := len(c.containerdSocket()); length > 100 {
		return fmt.Errorf("%s: %d letters are too long for a socket; set XDG_STATE_HOME to a shorter folder", c.containerdSocket(), length)
	}
	if err := c.takeClaim(); err != nil {
		return err
	}
	if err := installPrograms(); err != nil {
		return err
	}
	c.Real = &RealNode{Sysctls: map[string]string{}}
	for _, name := range touchedSysctls {
		if value, err := os.ReadFile(filepath.Join("/proc/sys", name)); err == nil {
			c.Real.Sysctls[name] = strings.TrimSpace(string(value))
		}
	}
	for _, dir := range fixedFolders {
		if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
			c.Real.Absent = append(c.Real.Absent, dir)
		}
	}
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return err
	}
	c.Real.Subnet, c.Real.Gateway, err = chooseSubnet(addresses)
	return err
}

// chooseSubnet takes the first of a range of small networks that does not touch an address of this machine.
func chooseSubnet(addresses []net.Addr) (subnet, gateway string, err error) {
	for third := 88; third < 128; third++ {
		candidate := net.IPNet{IP: net.IPv4(10, 200, byte(third), 0).To4(), Mask: net.CIDRMask(24, 32)}
		overlaps := false
		for _, address := range addresses {
			if network, ok := address.(*net.IPNet); ok {
				overlaps = overlaps || network.Contains(candidate.IP) || candidate.Contains(network.IP)
			}
		}
		if !overlaps {
			return candidate.String(), fmt.Sprintf("10.200.%d.1", third), nil
		}
	}
	return "", "", errors.New("no free network for pods between 10.200.88.0 and 10.200.127.0")
}

// takeClaim refuses a second cluster with a real node: both would write the same tables.
func (c *Cluster) takeClaim() error {
	owner, err := os.ReadFile(claim)
	if err == nil && string(owner) != c.Dir {
		if _, err := os.Stat(string(owner)); err == nil {
			return fmt.Errorf("this machine has a cluster with a real node, %s; one at a time: `cluster down --name %s`, or use --node process", owner, filepath.Base(string(owner)))
		}
	}
	if err != nil {
		if output, err := exec.Command("nft", "list", "table", "ip", "kube-proxy").CombinedOutput(); err == nil && len(output) > 0 {
			return errors.New("this machine is a Kubernetes node already (nftables has a table kube-proxy); use --node process")
		}
	}
	return os.WriteFile(claim, []byte(c.Dir), 0o644)
}

// prepareRealNode makes the network and starts the container runtime.
func (c *Cluster) prepareRealNode() error {
	if c.Node != nodeReal {
		return nil
	}
	if err := c.writeRealConfig(); err != nil {
		return err
	}
	if err := c.makeBridge(); err != nil {
		return err
	}
	if err := makeCgroups(c.cgroup()); err != nil {
		return err
	}
	containerd := c.containerd()
	if err := c.start(containerd.Name, containerd.Argv); err != nil {
		return err
	}
	if err := c.await(30*time.Second, "containerd's socket", func() bool { return c.ctr("version") == nil }); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return c.ctr("images", "import", filepath.Join(filepath.Dir(self), "pause.tar"))
}

// makeBridge makes the pods' network before the first pod, because the cluster's DNS listens there. Services are routed to it as well, so that
// processes of this machine reach them from an address that pods can answer.
func (c *Cluster) makeBridge() error {
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644); err != nil {
		return err
	}
	bridge := c.bridge()
	if _, err := net.InterfaceByName(bridge); err != nil {
		if err := command("ip", "link", "add", bridge, "type", "bridge"); err != nil {
			return err
		}
	}
	return errors.Join(
		command("ip", "address", "replace", c.Real.Gateway+"/24", "dev", bridge),
		command("ip", "link", "set", bridge, "up"),
		command("ip", "route", "replace", serviceCIDR, "dev", bridge, "src", c.Real.Gateway, "metric", "64000"),
	)
}

// publishAPIServer lets pods reach the API server under its service address: the API server itself only knows of loopback.
func (c *Cluster) publishAPIServer(ctx context.Context, client kubernetes.Interface) error {
	name, protocol, port, ready := "https", corev1.ProtocolTCP, int32(c.Ports["kube-apiserver"]), true
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: "kubernetes", Labels: map[string]string{discoveryv1.LabelServiceName: "kubernetes"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{c.Real.Gateway}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}},
		Ports:       []discoveryv1.EndpointPort{{Name: &name, Protocol: &protocol, Port: &port}},
	}
	_, err := client.DiscoveryV1().EndpointSlices("default").Create(ctx, slice, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}

// ctr talks to the cluster's own containerd.
func (c *Cluster) ctr(args ...string) error {
	return c.command("ctr", append([]string{"--address", c.containerdSocket(), "--namespace", "k8s.io"}, args...)...)
}

// command runs a program that may outlive a launcher that dies; the marker lets `down` find it.
func (c *Cluster) command(name string, args ...string) error {
	return run(exec.Command(name, args...), marker+"="+c.Dir)
}

// command runs a program of the system and puts what it said into the error.
func command(name string, args ...string) error {
	return run(exec.Command(name, args...))
}

func run(cmd *exec.Cmd, variables ...string) error {
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	cmd.Env = append(cmd.Env, variables...)
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(string(output)))
	}
	return nil
}
