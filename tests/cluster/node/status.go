package node

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// containerState is what is known of one container.
type containerState struct {
	spec     corev1.Container
	init     bool
	image    string // digest, once known
	state    corev1.ContainerState
	last     corev1.ContainerState // of the run before
	restarts int32
	ready    bool
	id       string
}

func (c *containerState) running() bool   { return c.state.Running != nil }
func (c *containerState) ended() bool     { return c.state.Terminated != nil }
func (c *containerState) succeeded() bool { return c.ended() && c.state.Terminated.ExitCode == 0 }

// verdict ends a pod for a reason of its own, whatever its containers did.
type verdict struct {
	reason, message string
	disrupted       bool // by the node, not by itself: condition DisruptionTarget
}

// derive gives a pod's status as a kubelet would report it.
//
// Pure: `final` says that no container will be started again; `previous` gives the times of conditions that did not change.
func derive(pod *corev1.Pod, containers []*containerState, ended *verdict, final bool, previous []corev1.PodCondition, now time.Time) corev1.PodStatus {
	status := corev1.PodStatus{
		Phase:     phase(pod, containers, ended, final),
		HostIP:    "127.0.0.1",
		HostIPs:   []corev1.HostIP{{IP: "127.0.0.1"}},
		StartTime: pod.Status.StartTime,
	}
	if status.StartTime == nil {
		status.StartTime = &metav1.Time{Time: now}
	}
	initialised, ready, started := true, true, false
	for _, container := range containers {
		reported := corev1.ContainerStatus{
			Name: container.spec.Name, Image: container.spec.Image, ImageID: container.image, ContainerID: container.id,
			State: container.state, LastTerminationState: container.last, RestartCount: container.restarts,
			Ready: container.ready && container.running(), Started: ptr(container.running()),
		}
		started = started || container.running() || container.ended()
		if container.init {
			initialised = initialised && container.succeeded()
			reported.Ready = container.succeeded()
			status.InitContainerStatuses = append(status.InitContainerStatuses, reported)
			continue
		}
		ready = ready && reported.Ready
		status.ContainerStatuses = append(status.ContainerStatuses, reported)
	}
	if started {
		status.PodIP, status.PodIPs = "127.0.0.1", []corev1.PodIP{{IP: "127.0.0.1"}}
	}
	over := status.Phase == corev1.PodSucceeded || status.Phase == corev1.PodFailed
	why := "ContainersNotReady"
	if status.Phase == corev1.PodSucceeded {
		why = "PodCompleted"
	} else if status.Phase == corev1.PodFailed {
		why = "PodFailed"
	}
	status.Conditions = []corev1.PodCondition{
		condition(corev1.PodReadyToStartContainers, started && !over, "", previous, now),
		condition(corev1.PodInitialized, initialised, "ContainersNotInitialized", previous, now),
		condition(corev1.ContainersReady, ready && !over, why, previous, now),
		condition(corev1.PodReady, ready && !over, why, previous, now),
	}
	if ended != nil {
		status.Reason, status.Message = ended.reason, ended.message
		if ended.disrupted {
			disruption := condition(corev1.DisruptionTarget, true, "", previous, now)
			disruption.Reason, disruption.Message = "TerminationByKubelet", ended.message
			status.Conditions = append(status.Conditions, disruption)
		}
	}
	return status
}

// phase: a pod is over when its verdict is spoken or all its containers ended and none will start again.
func phase(pod *corev1.Pod, containers []*containerState, ended *verdict, final bool) corev1.PodPhase {
	if ended != nil {
		if anyRunning(containers) {
			return corev1.PodRunning
		}
		return corev1.PodFailed
	}
	pending, running, failed := false, false, false
	for _, container := range containers {
		switch {
		case container.running():
			running = running || !container.init
			pending = pending || container.init
		case container.ended():
			failed = failed || !container.succeeded()
		default:
			// One that waits for its restart has run before: the pod is running, not pending.
			waitsAgain := container.last.Terminated != nil && !container.init
			running = running || waitsAgain
			pending = pending || !waitsAgain
		}
	}
	switch {
	case final && failed:
		return corev1.PodFailed
	case final && pending:
		return corev1.PodFailed
	case pending:
		return corev1.PodPending
	case running || !final:
		return corev1.PodRunning
	default:
		return corev1.PodSucceeded
	}
}

func anyRunning(containers []*containerState) bool {
	for _, container := range containers {
		if container.running() {
			return true
		}
	}
	return false
}

// mustRestart says whether an ended container starts again under the pod's policy.
func mustRestart(pod *corev1.Pod, container *containerState) bool {
	switch pod.Spec.RestartPolicy {
	case corev1.RestartPolicyAlways:
		return !container.init || !container.succeeded()
	case corev1.RestartPolicyOnFailure:
		return !container.succeeded()
	}
	return false
}

// restartDelay doubles from one second up to a minute; a kubelet is ten times slower, which would only make tests wait.
func restartDelay(restarts int32) time.Duration {
	return min(time.Second<<min(restarts, 6), time.Minute)
}

func condition(kind corev1.PodConditionType, holds bool, reason string, previous []corev1.PodCondition, now time.Time) corev1.PodCondition {
	made := corev1.PodCondition{Type: kind, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Time{Time: now}}
	if !holds {
		made.Status, made.Reason = corev1.ConditionFalse, reason
	}
	for _, old := range previous {
		if old.Type == kind && old.Status == made.Status {
			made.LastTransitionTime = old.LastTransitionTime
		}
	}
	return made
}

func ptr[T any](value T) *T { return &value }
