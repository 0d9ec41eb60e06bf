package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// plugin is what `kubectl collect` takes, as its generated reference has it.
type plugin struct {
	// Flags of every command, and of each; whether they take a value.
	global   map[string]bool
	commands map[string]map[string]bool
}

const pluginPage = "docs/reference/kubectl-collect.md"

var (
	commandHeading = regexp.MustCompile(`^### ([a-z-]+)$`)
	flagRow        = regexp.MustCompile("^\\| ((?:`-[^`]+`(?:, )?)+)( [A-Z]+)? \\|")
	flagName       = regexp.MustCompile("`(-[^`]+)`")
)

func pluginOf(top string) (plugin, error) {
	text, err := os.ReadFile(filepath.Join(top, pluginPage))
	if err != nil {
		return plugin{}, err
	}
	found := plugin{global: map[string]bool{"-h": false, "--help": false}, commands: map[string]map[string]bool{}}
	flags := found.global
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if match := commandHeading.FindStringSubmatch(line); match != nil {
			flags = map[string]bool{}
			found.commands[match[1]] = flags
		}
		if match := flagRow.FindStringSubmatch(line); match != nil {
			for _, name := range flagName.FindAllStringSubmatch(match[1], -1) {
				flags[name[1]] = match[2] != ""
			}
		}
	}
	if len(found.commands) == 0 || len(found.global) < 5 {
		return found, fmt.Errorf("%s names no commands or flags: the check reads it wrongly", pluginPage)
	}
	return found, nil
}

// wrong names what `kubectl collect` does not take.
func (p plugin) wrong(args []string) []string {
	var problems []string
	var command string
	known := func(name string) (takes, is bool) {
		if takes, is = p.commands[command][name]; is {
			return takes, is
		}
		takes, is = p.global[name]
		return takes, is
	}
	for i := 0; i < len(args); i++ {
		name, _, has := strings.Cut(args[i], "=")
		switch takes, is := known(name); {
		case strings.HasPrefix(name, "-") && !is:
			problems = append(problems, fmt.Sprintf("kubectl collect %s has no flag %s", command, name))
		case strings.HasPrefix(name, "-"):
			if takes && !has {
				i++
			}
		case command == "":
			command = args[i]
			if _, is := p.commands[command]; !is {
				return append(problems, fmt.Sprintf("kubectl collect has no command %s", command))
			}
		}
	}
	if command == "" {
		problems = append(problems, "kubectl collect without a command")
	}
	return problems
}
