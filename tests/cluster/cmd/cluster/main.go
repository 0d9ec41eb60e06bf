// Command cluster brings a Kubernetes of its own up and down for tests and demos: the real control plane, and a node that is real, made
// of local processes, or scripted. Everything it makes is recorded or can be derived from the cluster's name, so that `down`
// leaves nothing behind, also after a crash at any point.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"
)

const usage = `usage:
  cluster up          --name NAME --node real|process|scripted|none [options]   bring it up, or finish what is there; idempotent
  cluster down        --name NAME | --all                                       leave nothing behind
  cluster status      [--name NAME]                                             exit 1 if anything is not up
  cluster env         --name NAME                                               for eval: KUBECONFIG and PATH with kubectl and helm
  cluster load-image  --name NAME FILE.tar                                      an OCI archive, see deploy/images
  cluster stop        --name NAME [--signal TERM] COMPONENT                     also start and restart; ports and data stay
options of up:
  --script SCENARIO   scripted node: what pods do that say nothing themselves (default succeed-after=200ms)
  --nodes N           scripted node: how many
  --cpu, --memory, --pods   capacity of a process or scripted node
  --stock-controllers       controller manager and scheduler with the limits that Kubernetes ships, not raised ones
`

func main() {
	if len(os.Args) < 2 {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	commands := map[string]func([]string) error{
		"up": runUp, "down": runDown, "status": runStatus, "env": runEnv, "load-image": runLoadImage,
		"stop": componentCommand("stop"), "start": componentCommand("start"), "restart": componentCommand("restart"),
		"node": runNode,
	}
	command := commands[os.Args[1]]
	if command == nil {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	err := command(os.Args[2:])
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(os.Stderr, usage)
	case errors.Is(err, errNotUp):
		os.Exit(1)
	case err != nil:
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}

// flagsWithName is a set of flags with --name, which every command has. Flags may also follow the arguments.
func flagsWithName(command string) (*flag.FlagSet, *string) {
	flags := flag.NewFlagSet(command, flag.ContinueOnError)
	flags.Usage = func() {}
	return flags, flags.String("name", "", "name of the cluster")
}

// parse takes flags wherever they stand and gives the arguments between them.
func parse(flags *flag.FlagSet, args []string) ([]string, error) {
	var rest []string
	for {
		if err := flags.Parse(args); err != nil {
			return nil, err
		}
		if flags.NArg() == 0 {
			return rest, nil
		}
		rest, args = append(rest, flags.Arg(0)), flags.Args()[1:]
	}
}

// openKnown opens a cluster that must have been brought up.
func openKnown(name string) (*Cluster, error) {
	c, err := open(name)
	if err != nil {
		return nil, err
	}
	if !c.known() {
		return nil, fmt.Errorf("there is no cluster %s; `cluster up --name %s --node …` makes it", name, name)
	}
	return c, nil
}

func runEnv(args []string) error {
	flags, name := flagsWithName("env")
	if _, err := parse(flags, args); err != nil {
		return err
	}
	c, err := openKnown(*name)
	if err != nil {
		return err
	}
	fmt.Printf("export KUBECONFIG=%s\nexport PATH=%s:\"$PATH\"\n", c.path("kubeconfig"), c.path("bin"))
	return nil
}

// patience is how long a component may take to end in its own way. An API server waits for its watchers much longer, and nobody needs that.
const patience = 3 * time.Second

var signals = map[string]syscall.Signal{"TERM": syscall.SIGTERM, "KILL": syscall.SIGKILL, "INT": syscall.SIGINT}

// componentCommand stops and starts one component on its ports and data.
func componentCommand(verb string) func([]string) error {
	return func(args []string) error {
		flags, name := flagsWithName(verb)
		signalName := flags.String("signal", "TERM", "TERM, INT or KILL")
		rest, err := parse(flags, args)
		if err != nil {
			return err
		}
		if len(rest) != 1 {
			return fmt.Errorf("%s: want one COMPONENT", verb)
		}
		first, known := signals[strings.TrimPrefix(*signalName, "SIG")]
		if !known {
			return fmt.Errorf("--signal %s: want TERM, INT or KILL", *signalName)
		}
		c, err := openKnown(*name)
		if err != nil {
			return err
		}
		unlock, err := c.lock()
		if err != nil {
			return err
		}
		defer unlock(false)
		component, err := c.component(rest[0])
		if err != nil {
			return err
		}
		if verb != "start" {
			c.stop(component.Name, first, patience)
		}
		if verb == "stop" {
			return nil
		}
		if err := c.start(component.Name, component.Argv); err != nil {
			return err
		}
		return c.awaitComponent(component.Name, time.Minute)
	}
}
