package main

import (
	"fmt"
	"os"
)

// The components of a real node, and the files they read.

func (c *Cluster) containerd() Component {
	return Component{"containerd", []string{"containerd", "--config", c.path("config", "containerd.toml")}}
}

func (c *Cluster) kubelet() Component {
	return Component{"kubelet", []string{
		c.Kube, "kubelet", "--config=" + c.path("config", "kubelet.yaml"), "--kubeconfig=" + c.kubeconfig("kubelet"),
		"--hostname-override=" + nodeName, "--root-dir=" + c.path("kubelet"), "--cert-dir=" + c.path("kubelet", "pki"),
	}}
}

func (c *Cluster) kubeProxy() Component {
	return Component{"kube-proxy", []string{c.Kube, "kube-proxy", "--config=" + c.path("config", "kube-proxy.yaml")}}
}

func (c *Cluster) coredns() Component {
	return Component{"coredns", []string{c.Kube, "coredns", "-conf", c.path("config", "Corefile")}}
}

func (c *Cluster) writeRealConfig() error {
	files := map[string]string{
		"config/containerd.toml":  c.containerdConfig(),
		"config/kubelet.yaml":     c.kubeletConfig(),
		"config/kube-proxy.yaml":  c.kubeProxyConfig(),
		"config/Corefile":         c.corefile(),
		"cni/10-collect.conflist": c.cniConfig(),
	}
	for name, text := range files {
		if err := writeFile(c.path(name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return os.MkdirAll(c.path("run"), 0o755)
}

// restrict_oom_score_adj: without it every sandbox dies on machines whose root lacks CAP_SYS_RESOURCE.
func (c *Cluster) containerdConfig() string {
	return fmt.Sprintf(`version = 2
root = %[1]q
state = %[2]q
oom_score = 0
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[grpc]
address = %[3]q
[plugins."io.containerd.internal.v1.opt"]
path = %[4]q
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "docker.io/local/pause:dev"
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
stream_server_address = "127.0.0.1"
stream_server_port = "%[5]d"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
default_runtime_name = "runc"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = %[6]q
conf_dir = %[7]q
`, c.path("containerd"), c.path("run", "containerd"), c.containerdSocket(), c.path("containerd-opt"), c.Ports["containerd-stream"], cniFolder, c.path("cni"))
}

func (c *Cluster) cniConfig() string {
	return fmt.Sprintf(`{"cniVersion": "0.4.0", "name": %[1]q, "plugins": [
  {"type": "bridge", "bridge": %[1]q, "isGateway": true, "ipMasq": false, "hairpinMode": true,
   "ipam": {"type": "host-local", "dataDir": %[2]q, "ranges": [[{"subnet": %[3]q}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}
]}
`, c.bridge(), c.path("cni-addresses"), c.Real.Subnet)
}

// A node for tests: nothing is evicted, nothing is collected, swap and cgroup v1 are fine. A container that is killed again and again
// comes back after a second: with the default of up to five minutes a test of crashes would mostly look at a program that does not run.
func (c *Cluster) kubeletConfig() string {
	return fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: 127.0.0.1
port: %[1]d
readOnlyPort: 0
healthzPort: 0
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: %[2]q}}
authorization: {mode: Webhook}
tlsCertFile: %[3]q
tlsPrivateKeyFile: %[4]q
containerRuntimeEndpoint: %[5]q
podLogsDir: %[6]q
volumePluginDir: %[7]q
cgroupDriver: cgroupfs
cgroupRoot: %[8]q
failCgroupV1: false
failSwapOn: false
makeIPTablesUtilChains: false
clusterDNS: [%[9]s]
clusterDomain: %[10]s
evictionHard: {memory.available: "0%%", nodefs.available: "0%%", nodefs.inodesFree: "0%%", imagefs.available: "0%%", imagefs.inodesFree: "0%%"}
imageGCHighThresholdPercent: 100
oomScoreAdj: 0
maxOpenFiles: 65536
maxPods: 200
kubeAPIQPS: 500
kubeAPIBurst: 1000
eventRecordQPS: 0
crashLoopBackOff: {maxContainerRestartPeriod: 1s}
`, c.Ports["kubelet"], c.pki("ca.crt"), c.pki("server.crt"), c.pki("server.key"), "unix://"+c.containerdSocket(),
		c.path("pod-logs"), c.path("tmp", "volume-plugins"), "/"+c.cgroup(), c.Real.Gateway, clusterDomain)
}

// masqueradeAll: two pods of one bridge answer each other past the node's translation unless they see the node as the caller.
func (c *Cluster) kubeProxyConfig() string {
	return fmt.Sprintf(`apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: %q}
hostnameOverride: %s
mode: nftables
nftables: {masqueradeAll: true}
healthzBindAddress: %s
metricsBindAddress: %s
conntrack: {maxPerCore: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
`, c.kubeconfig("kube-proxy"), nodeName, c.local("kube-proxy-health"), c.local("kube-proxy-metrics"))
}

// No cache: the plugin answers from memory, and a name that appears must not stay unknown for a while.
func (c *Cluster) corefile() string {
	return fmt.Sprintf(`.:53 {
    bind %s
    errors
    kubernetes %s in-addr.arpa {
        kubeconfig %s
        pods insecure
    }
}
`, c.Real.Gateway, clusterDomain, c.kubeconfig("coredns"))
}
