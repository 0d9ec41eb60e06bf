package node

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func waitingOne() *containerState { return newContainer(corev1.Container{Name: "main"}, false) }

func runningOne() *containerState {
	c := waitingOne()
	c.state = corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}
	c.ready = true
	return c
}

func endedWith(code int32) *containerState {
	c := waitingOne()
	c.state = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: code}}
	return c
}

func asInit(c *containerState) *containerState {
	c.init = true
	return c
}

// waitsToRestart ran once and will again: as the worker leaves it.
func waitsToRestart() *containerState {
	c := endedWith(1)
	c.last = c.state
	return c
}

func TestPhases(t *testing.T) {
	evicted := &verdict{reason: "Evicted", disrupted: true}
	for name, row := range map[string]struct {
		containers []*containerState
		verdict    *verdict
		final      bool
		want       corev1.PodPhase
	}{
		"nothing started":                   {[]*containerState{waitingOne()}, nil, false, corev1.PodPending},
		"running":                           {[]*containerState{runningOne()}, nil, false, corev1.PodRunning},
		"one of two started":                {[]*containerState{runningOne(), waitingOne()}, nil, false, corev1.PodPending},
		"one of two ended":                  {[]*containerState{runningOne(), endedWith(0)}, nil, false, corev1.PodRunning},
		"an init container runs":            {[]*containerState{asInit(runningOne()), waitingOne()}, nil, false, corev1.PodPending},
		"ended well":                        {[]*containerState{endedWith(0)}, nil, true, corev1.PodSucceeded},
		"ended badly":                       {[]*containerState{endedWith(0), endedWith(10)}, nil, true, corev1.PodFailed},
		"waits for its restart":             {[]*containerState{waitsToRestart()}, nil, false, corev1.PodRunning},
		"an init container failed for good": {[]*containerState{asInit(endedWith(1)), waitingOne()}, nil, true, corev1.PodFailed},
		"deleted before it started":         {[]*containerState{waitingOne()}, nil, true, corev1.PodFailed},
		"deleted and ended well":            {[]*containerState{endedWith(0)}, nil, true, corev1.PodSucceeded},
		"evicted":                           {[]*containerState{endedWith(0)}, evicted, true, corev1.PodFailed},
		"past its deadline but its container still ends": {[]*containerState{runningOne()}, &verdict{reason: "DeadlineExceeded"}, true, corev1.PodRunning},
	} {
		got := derive(&corev1.Pod{}, row.containers, row.verdict, row.final, nil, now)
		if got.Phase != row.want {
			t.Errorf("%s: got %s, want %s", name, got.Phase, row.want)
		}
	}
}

func conditionOf(status corev1.PodStatus, kind corev1.PodConditionType) *corev1.PodCondition {
	for i := range status.Conditions {
		if status.Conditions[i].Type == kind {
			return &status.Conditions[i]
		}
	}
	return nil
}

func TestAnEvictionIsADisruptionAndAFailureIsNot(t *testing.T) {
	evicted := derive(&corev1.Pod{}, []*containerState{endedWith(137)}, &verdict{reason: "Evicted", message: "low", disrupted: true}, true, nil, now)
	if got := conditionOf(evicted, corev1.DisruptionTarget); got == nil || got.Status != corev1.ConditionTrue || got.Reason != "TerminationByKubelet" {
		t.Errorf("evicted: %+v", got)
	}
	failed := derive(&corev1.Pod{}, []*containerState{endedWith(137)}, nil, true, nil, now)
	if got := conditionOf(failed, corev1.DisruptionTarget); got != nil {
		t.Errorf("failed: %+v", got)
	}
}

func TestReadyFollowsTheProbeAndEndsWithThePod(t *testing.T) {
	unready := runningOne()
	unready.ready = false
	for name, row := range map[string]struct {
		container *containerState
		final     bool
		want      corev1.ConditionStatus
	}{
		"running and ready":     {runningOne(), false, corev1.ConditionTrue},
		"running and not ready": {unready, false, corev1.ConditionFalse},
		"ended":                 {endedWith(0), true, corev1.ConditionFalse},
	} {
		status := derive(&corev1.Pod{}, []*containerState{row.container}, nil, row.final, nil, now)
		if got := conditionOf(status, corev1.PodReady).Status; got != row.want {
			t.Errorf("%s: Ready is %s", name, got)
		}
	}
}

func TestAConditionThatDoesNotChangeKeepsItsTime(t *testing.T) {
	earlier := metav1.NewTime(now.Add(-time.Hour))
	previous := []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: earlier}}
	if got := condition(corev1.PodReady, true, "", previous, now); got.LastTransitionTime != earlier {
		t.Errorf("unchanged: %v", got.LastTransitionTime)
	}
	if got := condition(corev1.PodReady, false, "why", previous, now); !got.LastTransitionTime.Time.Equal(now) || got.Reason != "why" {
		t.Errorf("changed: %+v", got)
	}
}

func TestRestartPolicies(t *testing.T) {
	for _, row := range []struct {
		policy    corev1.RestartPolicy
		container *containerState
		want      bool
	}{
		{corev1.RestartPolicyNever, endedWith(1), false},
		{corev1.RestartPolicyOnFailure, endedWith(1), true},
		{corev1.RestartPolicyOnFailure, endedWith(0), false},
		{corev1.RestartPolicyAlways, endedWith(0), true},
		{corev1.RestartPolicyAlways, asInit(endedWith(0)), false},
		{corev1.RestartPolicyAlways, asInit(endedWith(1)), true},
	} {
		pod := &corev1.Pod{Spec: corev1.PodSpec{RestartPolicy: row.policy}}
		if got := mustRestart(pod, row.container); got != row.want {
			t.Errorf("%s, exit %d, init %v: %v", row.policy, row.container.state.Terminated.ExitCode, row.container.init, got)
		}
	}
	if restartDelay(0) != time.Second || restartDelay(3) != 8*time.Second || restartDelay(1000) != time.Minute {
		t.Error("delays do not double up to a minute")
	}
}
