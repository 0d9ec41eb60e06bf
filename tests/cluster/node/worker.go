package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// runner says what it means to run a container.
type runner interface {
	// start begins one run of a container. A *waiting error says why it can't begin yet; it is tried again.
	start(ctx context.Context, w *worker, container *containerState) (*execution, error)
	// prepare makes what the pod's containers share; release removes it.
	prepare(ctx context.Context, w *worker) error
	release(w *worker)
}

// execution is one run of a container.
type execution struct {
	id     string
	image  string
	exited <-chan exit // gives one value
	stop   func()      // asks it to end, as SIGTERM does
	kill   func()      // ends it
}

// exit is how a run ended.
type exit struct {
	code    int32
	signal  int32
	reason  string
	message string
	verdict *verdict
	silent  bool // the node is lost: nobody hears of it
}

// waiting is the reason why a container does not start, as `kubectl get pods` shows it.
type waiting struct{ reason, message string }

func (w *waiting) Error() string { return w.reason + ": " + w.message }

const (
	retryInterval = time.Second
	tick          = 250 * time.Millisecond
)

// worker carries one pod from its binding to its deletion. All fields but the inbox belong to its goroutine.
type worker struct {
	agent    *agent
	pod      *corev1.Pod // as it was when the worker began: spec and identity do not change
	inbox    chan *corev1.Pod
	gone     chan struct{}
	isGone   atomic.Bool
	finished chan struct{}
	live     atomic.Int32 // runs that have not ended; the log server reads it

	latest       *corev1.Pod
	containers   []*containerState
	executions   map[string]*execution
	exits        chan exitOf
	restartAt    map[string]time.Time
	verdict      *verdict
	deadline     time.Time // of a deletion: SIGKILL is due
	stopping     bool
	reported     corev1.PodStatus
	unwritten    bool // the last status has not reached the API server
	prepared     bool
	played       bool // process: a scenario is named for it
	volumes      map[string]string
	cancelTokens context.CancelFunc
	began        time.Time // scripted: when its start was first due
}

type exitOf struct {
	container string
	exit      exit
}

func newWorker(a *agent, pod *corev1.Pod) *worker {
	w := &worker{
		agent: a, pod: pod, latest: pod, inbox: make(chan *corev1.Pod, 1), gone: make(chan struct{}), finished: make(chan struct{}),
		executions: map[string]*execution{}, exits: make(chan exitOf, 16), restartAt: map[string]time.Time{},
	}
	for _, spec := range pod.Spec.InitContainers {
		w.containers = append(w.containers, newContainer(spec, true))
	}
	for _, spec := range pod.Spec.Containers {
		w.containers = append(w.containers, newContainer(spec, false))
	}
	return w
}

func newContainer(spec corev1.Container, init bool) *containerState {
	reason := "ContainerCreating"
	if init {
		reason = "PodInitializing"
	}
	return &containerState{spec: spec, init: init, state: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason}}}
}

// update leaves the newest version in the inbox. Only the informer's goroutine calls it.
func (w *worker) update(pod *corev1.Pod) {
	select {
	case <-w.inbox:
	default:
	}
	w.inbox <- pod
}

// forget tells the worker that the pod is no more in the API server.
func (w *worker) forget() {
	if w.isGone.CompareAndSwap(false, true) {
		close(w.gone)
	}
}

func (w *worker) dir() string { return filepath.Join(w.agent.Dir, "pods", string(w.pod.UID)) }

// run is the pod's whole life on this node.
func (w *worker) run(ctx context.Context) {
	defer w.agent.runner.release(w)
	defer w.killAll()
	switch {
	case isOver(w.pod.Status.Phase):
		w.awaitDeletion(ctx)
		return
	case w.pod.Status.Phase == corev1.PodRunning && len(w.pod.Status.ContainerStatuses) > 0:
		// An agent before this one ran it, and its processes ended with that one.
		w.declareLost()
		if w.pod.Spec.RestartPolicy == corev1.RestartPolicyNever {
			w.report(ctx)
			w.awaitDeletion(ctx)
			return
		}
	}
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	probes := newProbes(w.pod)
	for {
		w.advance(ctx)
		if w.isOver() {
			break
		}
		select {
		case <-ctx.Done():
			return
		case <-w.gone:
			return
		case pod := <-w.inbox:
			w.latest = pod
		case ended := <-w.exits:
			if ended.exit.silent {
				w.agent.lose(w.pod.Spec.NodeName)
				continue
			}
			w.record(ended)
		case <-ticker.C:
		}
		probes.run(w.containers)
	}
	w.report(ctx)
	w.awaitDeletion(ctx)
}

// advance does what is due now and reports what changed.
func (w *worker) advance(ctx context.Context) {
	w.checkEnd()
	if !w.stopping {
		w.startDue(ctx)
	}
	w.report(ctx)
}

// checkEnd begins to stop the pod when it is deleted, past its deadline, or has its verdict.
func (w *worker) checkEnd() {
	now := time.Now()
	if limit := w.pod.Spec.ActiveDeadlineSeconds; limit != nil && w.verdict == nil && w.reported.StartTime != nil &&
		now.Sub(w.reported.StartTime.Time) > time.Duration(*limit)*time.Second {
		w.verdict = &verdict{reason: "DeadlineExceeded", message: "Pod was active on the node longer than the specified deadline"}
	}
	deleted := w.latest.DeletionTimestamp != nil
	if !deleted && w.verdict == nil {
		return
	}
	grace := int64(30)
	if seconds := w.pod.Spec.TerminationGracePeriodSeconds; seconds != nil {
		grace = *seconds
	}
	if seconds := w.latest.DeletionGracePeriodSeconds; deleted && seconds != nil {
		grace = *seconds
	}
	if !w.stopping {
		w.stopping = true
		w.deadline = now.Add(time.Duration(grace) * time.Second)
		for _, run := range w.executions {
			run.stop()
		}
	}
	if now.After(w.deadline) {
		for _, run := range w.executions {
			run.kill()
		}
	}
}

// startDue starts the init containers one after the other, then all others, and those that are due again.
func (w *worker) startDue(ctx context.Context) {
	if !w.prepared {
		if w.isWaiting("volumes") {
			return
		}
		if err := w.agent.runner.prepare(ctx, w); err != nil {
			w.wait(nil, "volumes", err)
			return
		}
		w.prepared = true
	}
	for _, container := range w.containers {
		name := container.spec.Name
		if container.ended() && (!mustRestart(w.pod, container)) {
			if container.init && !container.succeeded() {
				return
			}
			continue
		}
		if _, runs := w.executions[name]; runs {
			if container.init {
				return
			}
			continue
		}
		if w.isWaiting(name) {
			if container.init {
				return
			}
			continue
		}
		w.begin(ctx, container)
		if container.init {
			return
		}
	}
}

func (w *worker) isWaiting(what string) bool { return time.Now().Before(w.restartAt[what]) }

// begin starts one run of a container.
func (w *worker) begin(ctx context.Context, container *containerState) {
	run, err := w.agent.runner.start(ctx, w, container)
	if err != nil {
		w.wait(container, container.spec.Name, err)
		return
	}
	if container.ended() {
		container.restarts++
	}
	container.id, container.image = run.id, run.image
	container.ready = container.spec.ReadinessProbe == nil
	container.state = corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.Now()}}
	w.executions[container.spec.Name] = run
	w.live.Add(1)
	go func() {
		ended := <-run.exited
		w.live.Add(-1)
		w.exits <- exitOf{container.spec.Name, ended}
	}()
}

// wait notes why nothing starts; it is tried again in a moment.
func (w *worker) wait(container *containerState, what string, err error) {
	w.restartAt[what] = time.Now().Add(retryInterval)
	var reason *waiting
	if !errors.As(err, &reason) {
		reason = &waiting{"ContainerCreating", err.Error()}
	}
	for _, each := range w.containers {
		if (container == nil || each == container) && each.state.Waiting != nil {
			each.state.Waiting = &corev1.ContainerStateWaiting{Reason: reason.reason, Message: reason.message}
		}
	}
}

// record takes down how a run ended, and when the next begins.
func (w *worker) record(ended exitOf) {
	delete(w.executions, ended.container)
	for _, container := range w.containers {
		if container.spec.Name != ended.container || container.state.Running == nil {
			continue
		}
		container.ready = false
		terminated := &corev1.ContainerStateTerminated{
			ExitCode: ended.exit.code, Signal: ended.exit.signal, Reason: ended.exit.reason, Message: ended.exit.message,
			StartedAt: container.state.Running.StartedAt, FinishedAt: metav1.Now(), ContainerID: container.id,
		}
		container.state = corev1.ContainerState{Terminated: terminated}
		if ended.exit.verdict != nil {
			w.verdict = ended.exit.verdict
		}
		if !w.stopping && w.verdict == nil && mustRestart(w.pod, container) {
			w.restartAt[container.spec.Name] = time.Now().Add(restartDelay(container.restarts))
			container.last = container.state
		}
	}
}

// final says that no container will start again.
func (w *worker) final() bool {
	if w.stopping {
		return true
	}
	for _, container := range w.containers {
		if !container.ended() {
			// What an init container that failed for good holds back never starts.
			if w.initFailed() {
				continue
			}
			return false
		}
		if mustRestart(w.pod, container) {
			return false
		}
	}
	return true
}

func (w *worker) initFailed() bool {
	for _, container := range w.containers {
		if container.init && container.ended() && !container.succeeded() && !mustRestart(w.pod, container) {
			return true
		}
	}
	return false
}

func (w *worker) isOver() bool { return len(w.executions) == 0 && w.final() }

// report writes the status if it changed. It retries until it is written or nobody wants it.
func (w *worker) report(ctx context.Context) {
	if w.agent.isLost(w.pod.Spec.NodeName) {
		return
	}
	previous := w.reported.Conditions
	if previous == nil {
		previous = w.pod.Status.Conditions
	}
	status := derive(w.pod, w.containers, w.verdict, w.final() && len(w.executions) == 0, previous, time.Now())
	if w.reported.StartTime != nil {
		status.StartTime = w.reported.StartTime
	}
	if apiequality.Semantic.DeepEqual(status, w.reported) {
		return
	}
	if w.unwritten = !w.patch(ctx, status); !w.unwritten {
		w.reported = status
	}
}

// patch writes to this very pod: the uid makes the API server refuse if another one has taken the name.
func (w *worker) patch(ctx context.Context, status corev1.PodStatus) bool {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": w.pod.UID}, "status": status})
	if err != nil {
		fmt.Println("status", w.pod.Name, err)
		return false
	}
	attempt, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	_, err = w.agent.client.CoreV1().Pods(w.pod.Namespace).Patch(attempt, w.pod.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	switch {
	case err == nil:
		return true
	case apierrors.IsNotFound(err) || apierrors.IsConflict(err):
		return true // there is nobody to tell; the informer will say that it is gone
	case ctx.Err() == nil:
		fmt.Println("status", w.pod.Namespace, w.pod.Name, err)
	}
	return false
}

// declareLost takes down that the containers ended unseen, in a kubelet's words. The pod's policy says whether they start again.
func (w *worker) declareLost() {
	restarts := map[string]int32{}
	for _, status := range w.pod.Status.ContainerStatuses {
		restarts[status.Name] = status.RestartCount
	}
	for _, container := range w.containers {
		ended := &corev1.ContainerStateTerminated{
			ExitCode: 137, Reason: "ContainerStatusUnknown", Message: "The container could not be located when the pod was terminated", FinishedAt: metav1.Now(),
		}
		if container.init { // it had succeeded, or the pod would not have run
			ended.ExitCode, ended.Reason, ended.Message = 0, "Completed", ""
		}
		container.state = corev1.ContainerState{Terminated: ended}
		container.restarts = restarts[container.spec.Name]
		if mustRestart(w.pod, container) {
			container.last = container.state
		}
	}
	w.stopping = w.pod.Spec.RestartPolicy == corev1.RestartPolicyNever
}

// awaitDeletion keeps a pod that is over until it is deleted, for its logs, and then confirms the deletion.
func (w *worker) awaitDeletion(ctx context.Context) {
	for w.latest.DeletionTimestamp == nil || w.agent.isLost(w.pod.Spec.NodeName) || !isOver(w.reported.Phase) && !isOver(w.latest.Status.Phase) {
		w.reportOnceMore(ctx)
		var again <-chan time.Time // nothing is to be done for most: thousands of pods may lie here
		if w.unwritten {
			again = time.After(retryInterval)
		}
		select {
		case <-ctx.Done():
			return
		case <-w.gone:
			return
		case w.latest = <-w.inbox:
		case <-again:
		}
	}
	for ctx.Err() == nil && !w.isGone.Load() {
		err := w.agent.client.CoreV1().Pods(w.pod.Namespace).Delete(ctx, w.pod.Name, metav1.DeleteOptions{
			GracePeriodSeconds: ptr(int64(0)), Preconditions: &metav1.Preconditions{UID: &w.pod.UID},
		})
		if err == nil || apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
			break
		}
		pause(ctx, retryInterval)
	}
	// Keep the worker until the informer says so too: an update on its way must not make a new one.
	select {
	case <-w.gone:
	case <-ctx.Done():
	}
}

// reportOnceMore writes the last status if the API server did not take it yet.
func (w *worker) reportOnceMore(ctx context.Context) {
	if w.isOver() && !isOver(w.pod.Status.Phase) {
		w.report(ctx)
	}
}

func (w *worker) killAll() {
	for _, run := range w.executions {
		run.kill()
	}
}

func isOver(phase corev1.PodPhase) bool {
	return phase == corev1.PodSucceeded || phase == corev1.PodFailed
}

// isLive says whether any container may still write to its log.
func (w *worker) isLive() bool { return w.live.Load() > 0 }
