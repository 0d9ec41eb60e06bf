package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
)

// cniFolder is where Debian puts the CNI plugins.
const cniFolder = "/usr/lib/cni"

// programs are what a real node needs, and the package of Debian and Ubuntu that has it.
var programs = []struct{ path, pkg string }{
	{"containerd", "containerd"}, {"ctr", "containerd"}, {"runc", "runc"}, {"nft", "nftables"}, {"iptables", "iptables"},
	{"conntrack", "conntrack"}, {"ip", "iproute2"}, {cniFolder + "/bridge", "containernetworking-plugins"},
}

// policy keeps packages from starting services while we install them.
const (
	policyFile = "/usr/sbin/policy-rc.d"
	policyText = "#!/bin/sh\n# made by collect-operator's tests/cluster for the time of one apt-get\nexit 101\n"
)

// missingPrograms lists the packages to install, each once.
func missingPrograms(there func(path string) bool) []string {
	var packages []string
	seen := map[string]bool{}
	for _, program := range programs {
		if !there(program.path) && !seen[program.pkg] {
			seen[program.pkg] = true
			packages = append(packages, program.pkg)
		}
	}
	return packages
}

func onPath(program string) bool {
	for _, dir := range []string{"", "/usr/sbin/", "/sbin/"} {
		if _, err := exec.LookPath(dir + program); err == nil {
			return true
		}
		if strings.HasPrefix(program, "/") {
			break
		}
	}
	return false
}

// installPrograms installs what is missing with apt-get; elsewhere it names it.
func installPrograms() error {
	removePolicy() // of a launcher that died while it installed
	missing := missingPrograms(onPath)
	if len(missing) == 0 {
		return nil
	}
	if _, err := exec.LookPath("apt-get"); err != nil {
		return fmt.Errorf("--node real needs %s; install them and try again", strings.Join(missing, ", "))
	}
	fmt.Println("  installing", strings.Join(missing, " "))
	if _, err := os.Stat(policyFile); errors.Is(err, fs.ErrNotExist) {
		if err := os.WriteFile(policyFile, []byte(policyText), 0o755); err != nil {
			return err
		}
		defer removePolicy()
	}
	if err := apt(append([]string{"install", "--yes", "--no-install-recommends"}, missing...)...); err == nil {
		return nil
	}
	// The lists may be older than the packages.
	if err := apt("update"); err != nil {
		return err
	}
	return apt(append([]string{"install", "--yes", "--no-install-recommends"}, missing...)...)
}

func apt(args ...string) error {
	return command("env", append([]string{"DEBIAN_FRONTEND=noninteractive", "apt-get", "-q"}, args...)...)
}

// removePolicy removes our policy, never somebody else's.
func removePolicy() {
	if text, err := os.ReadFile(policyFile); err == nil && string(text) == policyText {
		os.Remove(policyFile)
	}
}
