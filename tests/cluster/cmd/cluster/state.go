package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"syscall"
)

// Kinds of node a cluster can have.
const (
	nodeReal     = "real"     // kubelet, containerd, runc: needs root on Linux
	nodeProcess  = "process"  // containers are local processes
	nodeScripted = "scripted" // containers are outcomes
	nodeNone     = "none"     // control plane only
)

// Spec is what was asked for and what was chosen for it. It is written before anything else is made, so that whatever
// crashes later, `down` can derive from it everything there may be.
type Spec struct {
	Name   string         `json:"name"`
	Node   string         `json:"node"`
	Nodes  int            `json:"nodes"`
	Script string         `json:"script,omitempty"`
	CPU    string         `json:"cpu"`
	Memory string         `json:"memory"`
	Pods   int            `json:"pods"`
	Stock  bool           `json:"stock"`
	Kube   string         `json:"kube"` // path of the kube binary
	Ports  map[string]int `json:"ports"`
	Real   *RealNode      `json:"real,omitempty"`
}

// Cluster is one cluster on this machine: its folder and its spec.
type Cluster struct {
	Spec
	Dir string
}

var validName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,30}[a-z0-9])?$`)

// root is the folder of all clusters of this user.
func root() (string, error) {
	base := os.Getenv("XDG_STATE_HOME")
	if base == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", err
		}
		base = filepath.Join(home, ".local", "state")
	}
	base = filepath.Join(base, "collect-operator", "clusters")
	if err := os.MkdirAll(base, 0o755); err != nil {
		return "", err
	}
	// Mounts are listed by their real path; a link on the way would hide them.
	return filepath.EvalSymlinks(base)
}

// open reads a cluster's spec; one that was never brought up has only a name and a folder.
func open(name string) (*Cluster, error) {
	if !validName.MatchString(name) {
		return nil, fmt.Errorf("--name %q: want up to 32 of a-z, 0-9 and -", name)
	}
	base, err := root()
	if err != nil {
		return nil, err
	}
	c := &Cluster{Spec: Spec{Name: name}, Dir: filepath.Join(base, name)}
	data, err := os.ReadFile(c.path("spec.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(data, &c.Spec); err != nil {
		return nil, fmt.Errorf("%s: %w", c.path("spec.json"), err)
	}
	return c, nil
}

// names lists the clusters that left anything behind.
func names() ([]string, error) {
	base, err := root()
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(base)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, entry := range entries {
		if entry.IsDir() {
			names = append(names, entry.Name())
		}
	}
	return names, nil
}

func (c *Cluster) path(elements ...string) string {
	return filepath.Join(append([]string{c.Dir}, elements...)...)
}

func (c *Cluster) kubeconfig(user string) string { return c.path("kubeconfigs", user) }
func (c *Cluster) known() bool                   { return len(c.Ports) > 0 }
func (c *Cluster) server() string {
	return fmt.Sprintf("https://127.0.0.1:%d", c.Ports["kube-apiserver"])
}

// ID is unique on this machine, also among users and state folders: names of bridges, cgroups and shared folders end with it.
func (c *Cluster) ID() string {
	sum := sha256.Sum256([]byte(c.Dir))
	return hex.EncodeToString(sum[:4])
}

// etcdDir is in memory where the machine has a shared memory file system: etcd waits for every write.
func (c *Cluster) etcdDir() string {
	if info, err := os.Stat("/dev/shm"); err == nil && info.IsDir() {
		return filepath.Join("/dev/shm", "collect-operator-"+c.Name+"-"+c.ID())
	}
	return c.path("etcd")
}

func (c *Cluster) save() error {
	data, err := json.MarshalIndent(c.Spec, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(c.path("spec.json"), append(data, '\n'), 0o644)
}

// lock keeps two launchers off one cluster. The file goes away with the cluster; whoever waited for it meanwhile tries again.
func (c *Cluster) lock() (unlock func(remove bool), err error) {
	return lockFile(c.Dir + ".lock")
}

func lockFile(path string) (unlock func(remove bool), err error) {
	for {
		file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
		if err != nil {
			return nil, err
		}
		if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX); err != nil {
			return nil, err
		}
		held, err := file.Stat()
		if err != nil {
			return nil, err
		}
		if there, err := os.Stat(path); err == nil && os.SameFile(held, there) {
			return func(remove bool) {
				if remove {
					os.Remove(path)
				}
				file.Close()
			}, nil
		}
		file.Close()
	}
}

// writeFile replaces a file whole or not at all.
func writeFile(path string, data []byte, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	partial := path + ".partial"
	if err := os.WriteFile(partial, data, mode); err != nil {
		return err
	}
	return os.Rename(partial, path)
}
