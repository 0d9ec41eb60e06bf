package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func runDown(args []string) error {
	flags, name := flagsWithName("down")
	all := flags.Bool("all", false, "every cluster of this user")
	if _, err := parse(flags, args); err != nil {
		return err
	}
	which := []string{*name}
	if *all {
		var err error
		if which, err = names(); err != nil {
			return err
		}
	}
	var problems []error
	for _, name := range which {
		c, err := open(name)
		if err != nil && c == nil {
			problems = append(problems, err)
			continue
		}
		began := time.Now()
		if err := c.down(); err != nil {
			problems = append(problems, fmt.Errorf("cluster %s: %w", name, err))
			continue
		}
		fmt.Printf("cluster %s is down after %.1f s\n", name, time.Since(began).Seconds())
	}
	return errors.Join(problems...)
}

// down removes whatever there is of a cluster. It asks the machine rather than the records wherever it can, goes on
// after a failure, and keeps the folder (and with it the records) until everything else is gone.
func (c *Cluster) down() error {
	unlock, err := c.lock()
	if err != nil {
		return err
	}
	// Those that would start things again go first, then all others at once.
	c.stop("kubelet", syscall.SIGTERM, 3*time.Second)
	c.stop("node", syscall.SIGTERM, 3*time.Second)
	var problems []error
	problems = append(problems, c.stopContainers())
	for _, component := range []string{"kube-proxy", "coredns", "kube-scheduler", "kube-controller-manager", "kube-apiserver", "etcd", "containerd"} {
		c.stop(component, syscall.SIGKILL, 5*time.Second) // nothing of it is kept, so nothing needs to be put in order
	}
	problems = append(problems, c.killStrays(), c.unmount(), c.releaseRealNode())
	if err := errors.Join(problems...); err != nil {
		unlock(false)
		return err
	}
	err = errors.Join(os.RemoveAll(c.etcdDir()), os.RemoveAll(c.Dir))
	unlock(err == nil)
	return err
}

// unmount detaches everything mounted below the cluster's folder, the innermost first, and makes sure of it: a removal that went through a
// mount would delete other people's data.
func (c *Cluster) unmount() error {
	for range 10 {
		mounts, err := mountsBelow(c.Dir)
		if err != nil {
			return err
		}
		if len(mounts) == 0 {
			return nil
		}
		for _, mount := range slices.Backward(mounts) {
			_ = unix.Unmount(mount, unix.MNT_DETACH) // whether it worked is what the next round looks at
		}
	}
	mounts, err := mountsBelow(c.Dir)
	if err == nil && len(mounts) > 0 {
		err = fmt.Errorf("still mounted: %s", strings.Join(mounts, " "))
	}
	return err
}

func mountsBelow(dir string) ([]string, error) {
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	return parseMounts(string(info), dir), nil
}

// parseMounts lists the mount points below a folder, in the order of mounting.
func parseMounts(mountinfo, dir string) []string {
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	var mounts []string
	for line := range strings.Lines(mountinfo) {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		if mount := unescape.Replace(fields[4]); strings.HasPrefix(mount, dir+"/") {
			mounts = append(mounts, mount)
		}
	}
	return mounts
}
