package main

import (
	"bufio"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// crate is a package at a version.
type crate struct {
	name, version string
	licence       string // SPDX expression; empty if the package tells none
	local         bool   // of this workspace
}

func (c crate) key() string { return c.name + " " + c.version }

// linked is a package with everything below it: what a program of it is linked from.
type linked struct {
	root   crate
	crates []crate             // sorted, without the root
	needs  map[string][]string // key to keys, sorted
}

// tree is who depends on whom.
type tree struct {
	crates map[string]crate
	needs  map[string][]string
}

// readTree reads what `deploy/programs.sh crates` prints. A crate that was shown before has no lines below it again.
func readTree(path string) (*tree, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	t := &tree{map[string]crate{}, map[string][]string{}}
	var above []string
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		if lines.Text() == "" {
			continue
		}
		depth, c, err := parseLine(lines.Text())
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		if depth > len(above) {
			return nil, fmt.Errorf("%s: nothing is above %s", path, c.key())
		}
		t.crates[c.key()] = c
		if depth > 0 && !slices.Contains(t.needs[above[depth-1]], c.key()) {
			t.needs[above[depth-1]] = append(t.needs[above[depth-1]], c.key())
		}
		above = append(above[:depth], c.key())
	}
	return t, lines.Err()
}

// Depth, name and version, where a crate of the workspace lies, licence, and the mark of one that was shown before.
var line = regexp.MustCompile(`^(\d+)(\S+) v(\S+)(?: \((/[^)]*)\))?\|(.*?)(?: \(\*\))?$`)

func parseLine(text string) (int, crate, error) {
	match := line.FindStringSubmatch(text)
	if match == nil {
		return 0, crate{}, fmt.Errorf("%q is no crate", text)
	}
	depth, err := strconv.Atoi(match[1])
	// The slash is how licences were listed before there were expressions.
	licence := strings.ReplaceAll(match[5], "/", " OR ")
	return depth, crate{match[2], match[3], licence, match[4] != ""}, err
}

// below gives a package and all that it needs.
func (t *tree) below(name string) (*linked, error) {
	found := &linked{needs: map[string][]string{}}
	for _, c := range t.crates {
		if c.name == name && c.local {
			found.root = c
		}
	}
	if found.root.name == "" {
		return nil, fmt.Errorf("no package %s is compiled", name)
	}
	for open := []string{found.root.key()}; len(open) > 0; {
		key := open[len(open)-1]
		open = open[:len(open)-1]
		if _, seen := found.needs[key]; seen {
			continue
		}
		found.needs[key] = slices.Sorted(slices.Values(t.needs[key]))
		open = append(open, t.needs[key]...)
		if key != found.root.key() {
			found.crates = append(found.crates, t.crates[key])
		}
	}
	slices.SortFunc(found.crates, func(a, b crate) int { return strings.Compare(a.key(), b.key()) })
	return found, nil
}

// readLock gives the SHA-256 of every crate that comes from a registry.
func readLock(path string) (map[string]string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	checksums := map[string]string{}
	for _, entry := range strings.Split(string(text), "[[package]]\n")[1:] {
		fields := map[string]string{}
		for field := range strings.Lines(entry) {
			if name, value, is := strings.Cut(strings.TrimSpace(field), " = "); is {
				fields[name] = strings.Trim(value, `"`)
			}
		}
		if fields["checksum"] != "" {
			checksums[fields["name"]+" "+fields["version"]] = fields["checksum"]
		}
	}
	return checksums, nil
}
