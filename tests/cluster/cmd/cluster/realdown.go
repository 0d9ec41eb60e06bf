package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const cgroupRoot = "/sys/fs/cgroup"

// cgroupHierarchies are the folders in which a cgroup of ours has its place: one with cgroup v2, one for each controller with v1.
func cgroupHierarchies() []string {
	if _, err := os.Stat(filepath.Join(cgroupRoot, "cgroup.controllers")); err == nil {
		return []string{cgroupRoot}
	}
	entries, err := os.ReadDir(cgroupRoot)
	if err != nil {
		return nil
	}
	var hierarchies []string
	for _, entry := range entries {
		if entry.IsDir() {
			hierarchies = append(hierarchies, filepath.Join(cgroupRoot, entry.Name()))
		}
	}
	return hierarchies
}

// makeCgroups makes the node's cgroup everywhere. A v1 cpuset starts empty, and nothing could run in it.
func makeCgroups(name string) error {
	for _, hierarchy := range cgroupHierarchies() {
		dir := filepath.Join(hierarchy, name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			value, err := os.ReadFile(filepath.Join(hierarchy, file))
			if err != nil {
				continue // no cpuset here, or v2, where it is inherited
			}
			if err := os.WriteFile(filepath.Join(dir, file), value, 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}

// cgroupFolders lists a cgroup and those below it, the innermost first.
func cgroupFolders(name string) []string {
	var folders []string
	for _, hierarchy := range cgroupHierarchies() {
		_ = filepath.WalkDir(filepath.Join(hierarchy, name), func(path string, entry fs.DirEntry, err error) error {
			if err == nil && entry.IsDir() {
				folders = append(folders, path)
			}
			return nil // one that vanishes while we look is what we want
		})
	}
	slices.Reverse(folders)
	return folders
}

// stopContainers kills every process in the node's cgroup: that is every container, and nothing else.
func (c *Cluster) stopContainers() error {
	gone := eventually(20*time.Second, func() bool {
		left := 0
		for _, folder := range cgroupFolders(c.cgroup()) {
			pids, err := os.ReadFile(filepath.Join(folder, "cgroup.procs"))
			if err != nil {
				continue
			}
			for _, text := range strings.Fields(string(pids)) {
				if pid, err := strconv.Atoi(text); err == nil && pid > 1 {
					left++
					_ = syscall.Kill(pid, syscall.SIGKILL)
				}
			}
		}
		return left == 0
	})
	if !gone {
		return fmt.Errorf("processes in the cgroup %s do not end", c.cgroup())
	}
	return nil
}

// releaseRealNode removes what a real node made outside the cluster's folder and puts the sysctls back. Everything may be repeated.
func (c *Cluster) releaseRealNode() error {
	removePolicy()
	owner, err := os.ReadFile(claim)
	ours := err == nil && string(owner) == c.Dir
	var problems []error
	if _, err := net.InterfaceByName(c.bridge()); err == nil {
		problems = append(problems, command("ip", "link", "delete", c.bridge()))
	}
	problems = append(problems, c.removeCgroups())
	if !ours {
		return errors.Join(problems...)
	}
	for _, family := range []string{"ip", "ip6"} {
		if command("nft", "list", "table", family, "kube-proxy") == nil {
			problems = append(problems, command("nft", "delete", "table", family, "kube-proxy"))
		}
	}
	if c.Real != nil {
		for name, value := range c.Real.Sysctls {
			problems = append(problems, restoreSysctl(name, value))
		}
		c.removeShimSockets()
		removeLinks("/var/log/containers", c.Dir)
		for _, dir := range c.Real.Absent {
			mounts, err := mountsBelow(dir)
			if err != nil || len(mounts) > 0 {
				problems = append(problems, fmt.Errorf("%s: still mounted: %v %w", dir, mounts, err))
				continue
			}
			problems = append(problems, os.RemoveAll(dir))
		}
	}
	if err := errors.Join(problems...); err != nil {
		return err
	}
	return os.Remove(claim)
}

func (c *Cluster) removeCgroups() error {
	gone := eventually(5*time.Second, func() bool {
		folders := cgroupFolders(c.cgroup())
		for _, folder := range folders {
			_ = os.Remove(folder) // a dying process may hold it for a moment
		}
		return len(folders) == 0
	})
	if !gone {
		return fmt.Errorf("cgroup %s can't be removed", c.cgroup())
	}
	return nil
}

func restoreSysctl(name, value string) error {
	path := filepath.Join("/proc/sys", name)
	if now, err := os.ReadFile(path); err != nil || strings.TrimSpace(string(now)) == value {
		return nil
	}
	return os.WriteFile(path, []byte(value), 0o644)
}

// removeShimSockets removes the sockets of killed shims. containerd keeps them in a folder of its own choice and notes each
// in the container's bundle.
func (c *Cluster) removeShimSockets() {
	notes, _ := filepath.Glob(c.path("run", "containerd", "io.containerd.runtime.v2.task", "k8s.io", "*", "address"))
	for _, note := range notes {
		if address, err := os.ReadFile(note); err == nil {
			if socket, found := strings.CutPrefix(strings.TrimSpace(string(address)), "unix://"); found {
				os.Remove(socket)
			}
		}
	}
}

// removeLinks removes the links of a folder that point below another.
func removeLinks(dir, below string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, entry := range entries {
		link := filepath.Join(dir, entry.Name())
		if target, err := os.Readlink(link); err == nil && strings.HasPrefix(target, below+"/") {
			os.Remove(link)
		}
	}
}
