package main

import (
	"fmt"
	"math/rand/v2"
	"net"
)

// Ports are taken from below the range from which the kernel takes those of outgoing connections, and outside that of node ports.
const (
	firstPort = 18000
	lastPort  = 29999
)

// choosePorts gives each use a port of its own that is free now and not in taken.
func choosePorts(uses []string, taken map[int]bool, free func(port int) bool) (map[string]int, error) {
	ports := map[string]int{}
	used := map[int]bool{}
	candidates := rand.Perm(lastPort - firstPort + 1)
	for _, use := range uses {
		for ports[use] == 0 {
			if len(candidates) == 0 {
				return nil, fmt.Errorf("no free port between %d and %d for %s", firstPort, lastPort, use)
			}
			port := firstPort + candidates[0]
			candidates = candidates[1:]
			if !taken[port] && !used[port] && free(port) {
				ports[use], used[port] = port, true
			}
		}
	}
	return ports, nil
}

// portIsFree tries it on all addresses, so that a listener on any of them counts.
func portIsFree(port int) bool {
	listener, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
	if err != nil {
		return false
	}
	listener.Close()
	return true
}

// portsOfOthers are those that other clusters chose, whether they run or not: a stopped component comes back on its port.
func portsOfOthers(except string) (map[int]bool, error) {
	all, err := names()
	if err != nil {
		return nil, err
	}
	taken := map[int]bool{}
	for _, name := range all {
		if name == except {
			continue
		}
		other, err := open(name)
		if err != nil {
			continue // not a cluster of ours, or one whose spec was cut short before it had ports
		}
		for _, port := range other.Ports {
			taken[port] = true
		}
	}
	return taken, nil
}
