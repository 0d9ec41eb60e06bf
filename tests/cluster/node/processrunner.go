package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/kubernetes/third_party/forked/golang/expansion"

	"collect.dev/tests/cluster/image"
	"collect.dev/tests/cluster/process"
)

const (
	accountFolder  = "/var/run/secrets/kubernetes.io/serviceaccount"
	messageLimit   = 4096 // a kubelet's, for the termination message
	logTailLimit   = 2048 // a kubelet's, where the log stands in for it
	memoryInterval = 500 * time.Millisecond
)

// processRunner runs each container as a process of this machine, as the user who runs the agent. There is no isolation: paths of
// mounts are rewritten in arguments and variables, and that is all.
type processRunner struct{ agent *agent }

// prepare makes the pod's folder and volumes, and keeps its tokens fresh.
func (r *processRunner) prepare(ctx context.Context, w *worker) error {
	for _, dir := range []string{"logs", "pids", "messages", "home", "tmp"} {
		if err := os.MkdirAll(filepath.Join(w.dir(), dir), 0o755); err != nil {
			return err
		}
	}
	folders, tokens, err := w.makeVolumes(ctx)
	if err != nil {
		return err
	}
	w.volumes = folders
	lifetime, cancel := context.WithCancel(ctx)
	w.cancelTokens = cancel
	go w.keepTokens(lifetime, tokens)
	return nil
}

// release removes the pod's folder, never what a link or a path volume points to.
func (r *processRunner) release(w *worker) {
	if w.cancelTokens != nil {
		w.cancelTokens()
	}
	if w.isGone.Load() {
		if err := os.RemoveAll(w.dir()); err != nil {
			fmt.Println("remove", w.dir(), err)
		}
	}
}

func (r *processRunner) start(ctx context.Context, w *worker, container *containerState) (*execution, error) {
	spec := &container.spec
	loaded, err := image.Find(r.agent.Images, spec.Image)
	if errors.Is(err, image.ErrUnknown) {
		message := fmt.Sprintf("image %q is not loaded; cluster load-image makes it known", spec.Image)
		if spec.ImagePullPolicy == corev1.PullNever {
			return nil, &waiting{"ErrImageNeverPull", message}
		}
		return nil, &waiting{"ErrImagePull", message}
	}
	if err != nil {
		return nil, err
	}
	messages := filepath.Join(w.dir(), "messages", spec.Name)
	if err := os.WriteFile(messages, nil, 0o666); err != nil {
		return nil, err
	}
	cmd, err := r.command(ctx, w, spec, loaded, messages)
	if err != nil {
		return nil, err
	}
	logPath := filepath.Join(w.dir(), "logs", fmt.Sprintf("%s.%d", spec.Name, runNumber(container)))
	log, err := os.Create(logPath)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, &waiting{"RunContainerError", err.Error()}
	}
	id, _ := process.Identify(cmd.Process.Pid) // it may have ended already, then nothing is left to kill
	if err := id.Write(filepath.Join(w.dir(), "pids", spec.Name)); err != nil {
		fmt.Println("pid", err)
	}
	exited := make(chan exit, 1)
	var oom atomic.Bool
	watch, cancel := context.WithCancel(context.Background())
	if limit := spec.Resources.Limits.Memory().Value(); limit > 0 {
		go limitMemory(watch, id, limit, &oom)
	}
	go func() {
		_ = cmd.Wait() // the state says all
		cancel()
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // what it left behind ends with it, as in a container
		exited <- exitOfProcess(cmd.ProcessState, oom.Load(), terminationMessage(spec, messages, logPath, cmd.ProcessState.ExitCode() != 0))
	}()
	return &execution{
		id: "process://" + strconv.Itoa(id.Pid), image: loaded.Name + "@" + loaded.Digest, exited: exited,
		stop: func() { id.SignalGroup(syscall.SIGTERM) },
		kill: func() { id.SignalGroup(syscall.SIGKILL) },
	}, nil
}

func runNumber(container *containerState) int32 {
	if container.ended() {
		return container.restarts + 1
	}
	return container.restarts
}

// command puts a process together from image, container and volumes.
func (r *processRunner) command(ctx context.Context, w *worker, spec *corev1.Container, loaded *image.Image, messages string) (*exec.Cmd, error) {
	rules, err := w.rules(spec, messages)
	if err != nil {
		return nil, err
	}
	own, err := environment(ctx, w.pod, spec, r.agent.objects(w.pod.Namespace), rules)
	if err != nil {
		return nil, err
	}
	variables := map[string]string{}
	for _, line := range loaded.Env {
		key, value, _ := strings.Cut(line, "=")
		variables[key] = value
	}
	maps.Copy(variables, map[string]string{
		"HOME": filepath.Join(w.dir(), "home"), "TMPDIR": filepath.Join(w.dir(), "tmp"), "HOSTNAME": w.pod.Name,
		"KUBERNETES_SERVICE_HOST": r.agent.server.Hostname(), "KUBERNETES_SERVICE_PORT": r.agent.server.Port(),
		"KUBERNETES_SERVICE_PORT_HTTPS": r.agent.server.Port(), "COLLECT_TERMINATION_LOG": messages,
	})
	// Whoever stops the cluster finds its processes by this.
	if dir, set := os.LookupEnv("COLLECT_CLUSTER_DIR"); set {
		variables["COLLECT_CLUSTER_DIR"] = dir
	}
	if config := r.kubeconfig(w, rules); config != "" {
		variables["KUBECONFIG"] = config
	}
	searched := variables["PATH"]
	variables["PATH"] = searched + ":" + os.Getenv("PATH")
	maps.Copy(variables, own)

	argv, expand := []string{}, expansion.MappingFuncFor(own)
	for _, argument := range arguments(loaded, spec) {
		argv = append(argv, apply(rules, expansion.Expand(argument, expand)))
	}
	if len(argv) == 0 {
		return nil, &waiting{"CreateContainerError", "no command specified"}
	}
	program := argv[0]
	if _, err := os.Stat(program); err != nil || !strings.HasPrefix(program, r.agent.Dir) { // else: it lies in a volume
		program = loaded.Program(argv[0], searched)
	}
	cmd := exec.Command(program, argv[1:]...)
	cmd.Args[0] = argv[0]
	cmd.Dir = w.workingDir(spec, loaded, rules)
	for _, key := range slices.Sorted(maps.Keys(variables)) {
		cmd.Env = append(cmd.Env, key+"="+variables[key])
	}
	return cmd, nil
}

// arguments follows the rule of all runtimes: a command of the pod also discards the image's arguments.
func arguments(loaded *image.Image, spec *corev1.Container) []string {
	switch {
	case len(spec.Command) > 0:
		return slices.Concat(spec.Command, spec.Args)
	case len(spec.Args) > 0:
		return slices.Concat(loaded.Entrypoint, spec.Args)
	}
	return slices.Concat(loaded.Entrypoint, loaded.Cmd)
}

// rules maps the container's mounts, and the file for its last words, to real paths.
func (w *worker) rules(spec *corev1.Container, messages string) ([]rewrite, error) {
	var rules []rewrite
	for _, mount := range spec.VolumeMounts {
		folder, there := w.volumes[mount.Name]
		if !there {
			return nil, fmt.Errorf("no volume %s", mount.Name)
		}
		real := filepath.Join(folder, filepath.Clean("/"+mount.SubPath))
		if mount.SubPath != "" {
			if _, err := os.Stat(real); err != nil {
				if err := os.MkdirAll(real, 0o755); err != nil {
					return nil, err
				}
			}
		}
		rules = append(rules, rewrite{strings.TrimSuffix(mount.MountPath, "/"), real})
	}
	if path := spec.TerminationMessagePath; path != "" {
		rules = append(rules, rewrite{path, messages})
	}
	return slices.DeleteFunc(rules, func(rule rewrite) bool { return rule.from == "" }), nil
}

func (w *worker) workingDir(spec *corev1.Container, loaded *image.Image, rules []rewrite) string {
	wanted := spec.WorkingDir
	if wanted == "" {
		wanted = loaded.WorkingDir
	}
	for _, candidate := range []string{apply(rules, wanted), filepath.Join(loaded.Rootfs, wanted)} {
		if info, err := os.Stat(candidate); wanted != "" && wanted != "/" && err == nil && info.IsDir() {
			return candidate
		}
	}
	return filepath.Join(w.dir(), "home")
}

// kubeconfig stands in for the fixed paths at which clients in a cluster look for their account.
func (r *processRunner) kubeconfig(w *worker, rules []rewrite) string {
	for _, rule := range rules {
		if rule.from != accountFolder {
			continue
		}
		path := filepath.Join(w.dir(), "kubeconfig")
		text := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: local, cluster: {server: %q, certificate-authority: %q}}]
users: [{name: account, user: {tokenFile: %q}}]
contexts: [{name: pod, context: {cluster: local, user: account, namespace: %q}}]
current-context: pod
`, r.agent.server.String(), filepath.Join(rule.to, "ca.crt"), filepath.Join(rule.to, "token"), w.pod.Namespace)
		if err := replaceFile(path, []byte(text), 0o600); err != nil {
			return ""
		}
		return path
	}
	return ""
}

// exitOfProcess translates a process's end into a container's.
func exitOfProcess(state *os.ProcessState, oom bool, message string) exit {
	ended := exit{code: int32(state.ExitCode()), reason: "Error", message: message}
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		ended.code = 128 + int32(status.Signal())
	}
	switch {
	case oom:
		ended.reason = "OOMKilled"
	case ended.code == 0:
		ended.reason = "Completed"
	}
	return ended
}

// terminationMessage is what the process wrote for it, else the end of its log if that was asked for and it failed.
func terminationMessage(spec *corev1.Container, messages, log string, failed bool) string {
	message, err := os.ReadFile(messages)
	if err == nil && len(message) > 0 {
		return string(message[:min(len(message), messageLimit)])
	}
	if !failed || spec.TerminationMessagePolicy != corev1.TerminationMessageFallbackToLogsOnError {
		return ""
	}
	text, err := os.ReadFile(log)
	if err != nil {
		return ""
	}
	text = text[max(0, len(text)-logTailLimit):]
	lines := bytes.SplitAfter(text, []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-81):], nil))
}

// limitMemory kills a process that outgrows its limit, as the kernel would in a container; it looks twice a second.
func limitMemory(ctx context.Context, id process.Identity, limit int64, oom *atomic.Bool) {
	for ctx.Err() == nil {
		if id.RSS() > limit {
			oom.Store(true)
			id.SignalGroup(syscall.SIGKILL)
			return
		}
		pause(ctx, memoryInterval)
	}
}

// killOrphans ends what an agent before this one left running.
func killOrphans(dir string) {
	records, _ := filepath.Glob(filepath.Join(dir, "pods", "*", "pids", "*"))
	for _, record := range records {
		if id, there := process.Read(record); there {
			id.SignalGroup(syscall.SIGKILL)
		}
	}
}
