// Package process names processes for good. A bare pid says nothing: by the time one reads it from a file it may be somebody else's.
package process

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// Identity is one process: a recycled pid has another start time, another boot another id.
type Identity struct {
	Pid   int    `json:"pid"`
	Start string `json:"start"` // clock ticks since boot
	Boot  string `json:"boot"`
}

// Identify reads the identity of a live process; a zombie is not alive.
func Identify(pid int) (Identity, bool) {
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

// parseStat gives fields 3 (state) and 22 (start time) of /proc/PID/stat. The name in field 2 may hold anything, so it counts from its end.
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

// Read gives the identity that Write recorded.
func Read(path string) (Identity, bool) {
	var id Identity
	data, err := os.ReadFile(path)
	return id, err == nil && json.Unmarshal(data, &id) == nil
}

// Write records the identity, whole or not at all.
func (i Identity) Write(path string) error {
	data, err := json.Marshal(i)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(path+".partial", data, 0o644); err != nil {
		return err
	}
	return os.Rename(path+".partial", path)
}

// Alive says whether the process is still the same one.
func (i Identity) Alive() bool {
	now, ok := Identify(i.Pid)
	return ok && now == i
}

// Signal reaches the process only while it is still the same one.
func (i Identity) Signal(signal syscall.Signal) {
	if i.Alive() {
		_ = syscall.Kill(i.Pid, signal) // it may end between the two lines, which is as well
	}
}

// SignalGroup reaches the process and those it started, if it leads a group.
func (i Identity) SignalGroup(signal syscall.Signal) {
	if i.Alive() {
		_ = syscall.Kill(-i.Pid, signal)
	}
}

// RSS is the resident memory in bytes, 0 if the process is gone.
func (i Identity) RSS() int64 {
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
