package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// marker is set in the environment of everything a cluster starts, and inherited by what those start. It finds processes
// that were started but not recorded because the launcher died in between.
const marker = "COLLECT_CLUSTER_DIR"

// Identity names one process for good: a recycled pid has another start time, another boot another id.
type Identity struct {
	Pid   int    `json:"pid"`
	Start string `json:"start"` // clock ticks since boot
	Boot  string `json:"boot"`
}

// identify reads the identity of a live process; a zombie is not alive.
func identify(pid int) (Identity, bool) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return Identity{}, false
	}
	state, start, ok := parseStat(string(stat))
	if !ok || state == "Z" || state == "X" {
		return Identity{}, false
	}
	return Identity{Pid: pid, Start: start, Boot: bootID()}, true
}

// parseStat gives fields 3 (state) and 22 (start time) of /proc/PID/stat. The name in field 2 may hold anything, so count after its end.
func parseStat(stat string) (state, start string, ok bool) {
	end := strings.LastIndexByte(stat, ')')
	if end < 0 {
		return "", "", false
	}
	fields := strings.Fields(stat[end+1:])
	if len(fields) < 20 {
		return "", "", false
	}
	return fields[0], fields[19], true
}

func bootID() string {
	id, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(id))
}

func (i Identity) alive() bool {
	now, ok := identify(i.Pid)
	return ok && now == i
}

// signal reaches the process only while it is still the same one.
func (i Identity) signal(s syscall.Signal) {
	if i.alive() {
		_ = syscall.Kill(i.Pid, s)
	}
}

// rss is the resident memory in bytes.
func (i Identity) rss() int64 {
	statm, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", i.Pid))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(statm))
	if len(fields) < 2 {
		return 0
	}
	pages, _ := strconv.ParseInt(fields[1], 10, 64)
	return pages * int64(os.Getpagesize())
}

// recorded gives the process of a component, if it was started and lives.
func (c *Cluster) recorded(component string) (Identity, bool) {
	var id Identity
	data, err := os.ReadFile(c.path("pids", component))
	if err != nil || json.Unmarshal(data, &id) != nil {
		return Identity{}, false
	}
	return id, id.alive()
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
	id, alive := identify(cmd.Process.Pid)
	go func() { _ = cmd.Wait() }()
	if !alive {
		return fmt.Errorf("%s ended at once; see %s", component, c.log(component))
	}
	data, err := json.Marshal(id)
	if err != nil {
		return err
	}
	return writeFile(c.path("pids", component), data, 0o644)
}

// stop ends a component, with a signal first and SIGKILL after the patience.
func (c *Cluster) stop(component string, first syscall.Signal, patience time.Duration) {
	if id, alive := c.recorded(component); alive {
		id.signal(first)
		if !eventually(patience, func() bool { return !id.alive() }) {
			id.signal(syscall.SIGKILL)
			eventually(5*time.Second, func() bool { return !id.alive() })
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
func (c *Cluster) strays() []Identity {
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
func processes(match func(pid string) bool) []Identity {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var found []Identity
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || pid == os.Getpid() || !match(entry.Name()) {
			continue
		}
		if id, alive := identify(pid); alive {
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
			id.signal(syscall.SIGKILL)
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
