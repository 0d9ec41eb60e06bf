package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"k8s.io/client-go/tools/clientcmd"
)

func newCluster(t *testing.T, name string) *Cluster {
	t.Helper()
	t.Setenv("XDG_STATE_HOME", t.TempDir())
	c, err := open(name)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestTheServingCertificateHoldsForEveryWayIn(t *testing.T) {
	c := newCluster(t, "pki")
	if err := c.writePKI("10.200.88.1"); err != nil {
		t.Fatal(err)
	}
	read := func(name string) *x509.Certificate {
		data, err := os.ReadFile(c.pki(name))
		if err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode(data)
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		return cert
	}
	roots := x509.NewCertPool()
	roots.AddCert(read("ca.crt"))
	serving := read("server.crt")
	for _, name := range []string{"127.0.0.1", "10.0.0.1", "10.200.88.1", "localhost", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"} {
		if _, err := serving.Verify(x509.VerifyOptions{Roots: roots, DNSName: name}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := serving.Verify(x509.VerifyOptions{Roots: roots, DNSName: "example.org"}); err == nil {
		t.Error("the certificate holds for example.org")
	}
	for _, identity := range identities {
		if _, err := tls.LoadX509KeyPair(c.pki(identity.file+".crt"), c.pki(identity.file+".key")); err != nil {
			t.Errorf("%s: %v", identity.file, err)
		}
		subject := read(identity.file + ".crt").Subject
		groups := slices.Sorted(slices.Values(subject.Organization))
		if want := slices.Sorted(slices.Values(identity.groups)); subject.CommonName != identity.user || !slices.Equal(groups, want) {
			t.Errorf("%s is %s in %v", identity.file, subject.CommonName, groups)
		}
	}
}

func TestKeysAreMadeOnceAndKubeconfigsFitThem(t *testing.T) {
	c := newCluster(t, "once")
	c.Ports = map[string]int{"kube-apiserver": 18123}
	for range 2 {
		if err := c.writePKI(""); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.writeKubeconfigs(); err != nil {
		t.Fatal(err)
	}
	config, err := clientcmd.BuildConfigFromFlags("", c.path("kubeconfig"))
	if err != nil {
		t.Fatal(err)
	}
	if config.Host != "https://127.0.0.1:18123" || len(config.CertData) == 0 || len(config.KeyData) == 0 || len(config.CAData) == 0 {
		t.Errorf("got host %s and %d, %d, %d bytes", config.Host, len(config.CertData), len(config.KeyData), len(config.CAData))
	}
}

func TestPortsAreFreeDistinctAndNobodyElses(t *testing.T) {
	taken := map[int]bool{}
	for port := firstPort; port < firstPort+6000; port++ {
		taken[port] = true
	}
	free := func(port int) bool { return port%2 == 0 }
	ports, err := choosePorts(portUses, taken, free)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[int]bool{}
	for use, port := range ports {
		if seen[port] || taken[port] || !free(port) || port < firstPort || port > lastPort {
			t.Errorf("%s got port %d", use, port)
		}
		seen[port] = true
	}
	if len(seen) != len(portUses) {
		t.Errorf("%d ports for %d uses", len(seen), len(portUses))
	}
	if _, err := choosePorts(portUses, nil, func(int) bool { return false }); err == nil {
		t.Error("found a free port where there is none")
	}
}

func TestAPortInUseIsNotFree(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	if portIsFree(listener.Addr().(*net.TCPAddr).Port) {
		t.Error("a port with a listener on loopback counts as free")
	}
}

func TestPortsOfAnotherClusterStayItsOwn(t *testing.T) {
	c := newCluster(t, "one")
	c.Ports = map[string]int{"etcd": 20000}
	if err := c.save(); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"one": false, "two": true} {
		taken, err := portsOfOthers(name)
		if err != nil {
			t.Fatal(err)
		}
		if taken[20000] != want {
			t.Errorf("for %s: taken %v, want %v", name, taken[20000], want)
		}
	}
}

func TestAClusterKeepsWhatItWasMadeWith(t *testing.T) {
	c := newCluster(t, "kept")
	want := Spec{Node: nodeScripted, Nodes: 1, Script: "run", Kube: "/kube"}
	if err := c.plan(want); err != nil {
		t.Fatal(err)
	}
	again, err := open("kept")
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(again.Spec, c.Spec) {
		t.Errorf("saved %+v, read %+v", c.Spec, again.Spec)
	}
	if err := again.plan(want); err != nil {
		t.Errorf("the same once more: %v", err)
	}
	want.Node = nodeProcess
	if err := again.plan(want); err == nil || !strings.Contains(err.Error(), "down --name kept") {
		t.Errorf("another node: %v", err)
	}
}

func TestNamesAreSafeInPaths(t *testing.T) {
	t.Setenv("XDG_STATE_HOME", t.TempDir())
	for _, name := range []string{"", "..", "a/b", "A", "-a", "a-", strings.Repeat("a", 33)} {
		if _, err := open(name); err == nil {
			t.Errorf("%q was accepted", name)
		}
	}
	c, err := open("a-1")
	if err != nil {
		t.Fatal(err)
	}
	if len(c.bridge()) > 15 {
		t.Errorf("%s is too long for an interface", c.bridge())
	}
}

func TestDownOfWhatNeverWasIsFine(t *testing.T) {
	c := newCluster(t, "never")
	if err := c.down(); err != nil {
		t.Error(err)
	}
	left, err := os.ReadDir(filepath.Dir(c.Dir))
	if err != nil || len(left) > 0 {
		t.Errorf("left %v, %v", left, err)
	}
}

func TestDownEndsAProcessThatWasNeverRecorded(t *testing.T) {
	c := newCluster(t, "crashed")
	if err := c.start("sleeper", []string{"/bin/sleep", "300"}); err != nil {
		t.Fatal(err)
	}
	id, alive := c.recorded("sleeper")
	if !alive {
		t.Fatal("the sleeper does not run")
	}
	if err := os.RemoveAll(c.path("pids")); err != nil { // as if the launcher had died just after the fork
		t.Fatal(err)
	}
	if err := c.down(); err != nil {
		t.Fatal(err)
	}
	if id.Alive() {
		t.Error("the sleeper outlived its cluster")
	}
}

func TestOnlyMountsBelowTheFolderAreListed(t *testing.T) {
	info := `22 1 0:20 / /state/c rw - tmpfs tmpfs rw
23 1 0:20 / /state/c/kubelet/pods/x\040y rw shared:1 - tmpfs tmpfs rw
24 1 0:20 / /state/cc/run rw - tmpfs tmpfs rw
25 1 0:20 / /state/c/run/rootfs rw - overlay overlay rw
`
	want := []string{"/state/c/kubelet/pods/x y", "/state/c/run/rootfs"}
	if got := parseMounts(info, "/state/c"); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestThePodNetworkAvoidsTheMachinesOwn(t *testing.T) {
	address := func(text string) net.Addr {
		ip, network, err := net.ParseCIDR(text)
		if err != nil {
			t.Fatal(err)
		}
		network.IP = ip
		return network
	}
	subnet, gateway, err := chooseSubnet([]net.Addr{address("127.0.0.1/8"), address("10.200.88.7/24"), address("10.200.90.0/23")})
	if err != nil || subnet != "10.200.89.0/24" || gateway != "10.200.89.1" {
		t.Errorf("got %s %s %v", subnet, gateway, err)
	}
	if _, _, err := chooseSubnet([]net.Addr{address("10.0.0.1/8")}); err == nil {
		t.Error("found a network inside the machine's own")
	}
}

func TestMissingProgramsAreNamedByPackageOnce(t *testing.T) {
	there := func(path string) bool { return path == "nft" || path == "ip" || path == "runc" }
	want := []string{"containerd", "iptables", "conntrack", "containernetworking-plugins"}
	if got := missingPrograms(there); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := missingPrograms(func(string) bool { return true }); len(got) > 0 {
		t.Errorf("misses %v", got)
	}
}

func TestFlagsMayFollowArguments(t *testing.T) {
	flags, name := flagsWithName("test")
	rest, err := parse(flags, []string{"etcd", "--name", "x"})
	if err != nil || *name != "x" || !slices.Equal(rest, []string{"etcd"}) {
		t.Errorf("got %q %v %v", *name, rest, err)
	}
}
