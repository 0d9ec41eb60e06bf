package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"collect.dev/tests/cluster/process"
)

// marker is set in the environment of everything a cluster starts, and inherited by what those start. It finds processes
// that were started but not recorded because the launcher died in between.
const marker = "COLLECT_CLUSTER_DIR"

// recorded gives the process of a component, if it was started and lives.
func (c *Cluster) recorded(component string) (process.Identity, bool) {
	id, there := process.Read(c.path("pids", component))
	return id, there && id.Alive()
}

// start runs a component detached from the launcher, with its output in logs/COMPONENT.log, unless it runs already.
func (c *Cluster) start(component string, argv []string) error {
	if _, alive := c.recorded(component); alive {
		return nil
	}
	for _, dir := range []string{"logs", "pids", "tmp"} {
		if err := os.MkdirAll(c.path(dir), 0o755); err != nil {
			return err
		}
	}
	log, err := os.OpenFile(c.log(component), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = c.Dir, log, log
	cmd.Env = []string{"PATH=" + os.Getenv("PATH") + ":/usr/sbin:/sbin", "HOME=" + c.path("tmp"), "TMPDIR=" + c.path("tmp"), marker + "=" + c.Dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("%s: %w", component, err)
	}
	id, alive := process.Identify(cmd.Process.Pid)
	go func() { _ = cmd.Wait() }()
	if !alive {
		return fmt.Errorf("%s ended at once; see %s", component, c.log(component))
	}
	return id.Write(c.path("pids", component))
}

// stop ends a component, with a signal first and SIGKILL after the patience.
func (c *Cluster) stop(component string, first syscall.Signal, patience time.Duration) {
	if id, alive := c.recorded(component); alive {
		id.Signal(first)
		if !eventually(patience, func() bool { return !id.Alive() }) {
			id.Signal(syscall.SIGKILL)
			eventually(5*time.Second, func() bool { return !id.Alive() })
		}
	}
	os.Remove(c.path("pids", component))
}

func (c *Cluster) log(component string) string { return c.path("logs", component+".log") }

// logTail is what a person wants to see when a component died.
func (c *Cluster) logTail(component string) string {
	data, err := os.ReadFile(c.log(component))
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return strings.Join(lines[max(0, len(lines)-8):], "\n")
}

// strays are live processes that carry the cluster's marker, whoever started them.
func (c *Cluster) strays() []process.Identity {
	want := []byte(marker + "=" + c.Dir)
	return processes(func(pid string) bool {
		environ, err := os.ReadFile(filepath.Join("/proc", pid, "environ"))
		if err != nil {
			return false
		}
		for _, variable := range bytes.Split(environ, []byte{0}) {
			if bytes.Equal(variable, want) {
				return true
			}
		}
		return false
	})
}

// processes lists those of this machine that match, never the launcher itself.
func processes(match func(pid string) bool) []process.Identity {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var found []process.Identity
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || pid == os.Getpid() || !match(entry.Name()) {
			continue
		}
		if id, alive := process.Identify(pid); alive {
			found = append(found, id)
		}
	}
	return found
}

// killStrays ends every process with the marker; a process may fork while it is looked for, so it looks until there is none.
func (c *Cluster) killStrays() error {
	gone := eventually(10*time.Second, func() bool {
		strays := c.strays()
		for _, id := range strays {
			id.Signal(syscall.SIGKILL)
		}
		return len(strays) == 0
	})
	if !gone {
		return errors.New("processes of the cluster do not end; see `ps e | grep " + marker + "`")
	}
	return nil
}

// eventually polls a condition until it holds or the time is up.
func eventually(patience time.Duration, condition func() bool) bool {
	deadline := time.Now().Add(patience)
	for {
		if condition() {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
		time.Sleep(30 * time.Millisecond)
	}
}
