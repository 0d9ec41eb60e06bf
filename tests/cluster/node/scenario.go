package node

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"k8s.io/kubernetes/third_party/forked/golang/expansion"
)

// Where a scenario comes from, the nearest first: the pod's annotation, the ConfigMap of its namespace, the agent's flag.
const (
	scenarioAnnotation = "scripted.collect.dev/scenario"
	messageAnnotation  = "scripted.collect.dev/message"
	scenarioConfigMap  = "scripted-scenarios"
)

// Keys of that ConfigMap.
const (
	workLabel     = "collect.dev/work" // of the pod
	workPrefix    = "work."            // followed by the label's value
	defaultKey    = "default"
	messageSuffix = ".message"
)

// Outcome is how a scripted container ends.
type Outcome string

// The outcomes a scenario can name.
const (
	OutcomeExit     Outcome = "exit"
	OutcomeOOM      Outcome = "oom"
	OutcomeEvict    Outcome = "evict"
	OutcomePending  Outcome = "pending"   // never starts
	OutcomeRun      Outcome = "run"       // never ends by itself
	OutcomeNodeLost Outcome = "node-lost" // starts, and then nobody hears of its node again
)

// Scenario is what a scripted container does.
type Scenario struct {
	Outcome    Outcome
	ExitCode   int32
	StartAfter time.Duration
	After      time.Duration // from its start to its end
	TermExit   int32         // exit code when it is asked to stop
	IgnoreTerm bool          // it must be killed
}

// ParseScenario reads a comma-separated list of `key` or `key=value`, such as "start-after=1s,exit=10,after=500ms". See README.md for the keys.
func ParseScenario(text string) (Scenario, error) {
	scenario := Scenario{Outcome: OutcomeExit, After: 200 * time.Millisecond, TermExit: 143}
	for _, part := range strings.Split(text, ",") {
		key, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		var err error
		switch key {
		case "":
		case "start-after":
			scenario.StartAfter, err = time.ParseDuration(value)
		case "after":
			scenario.After, err = time.ParseDuration(value)
		case "succeed-after":
			scenario.After, err = time.ParseDuration(value)
		case "fail-after":
			scenario.After, err = time.ParseDuration(value)
			if scenario.ExitCode == 0 {
				scenario.ExitCode = 1
			}
		case "exit":
			scenario.ExitCode, err = exitCode(value)
		case "term-exit":
			scenario.TermExit, err = exitCode(value)
		case "ignore-term":
			scenario.IgnoreTerm = true
		case string(OutcomeOOM), string(OutcomeEvict), string(OutcomePending), string(OutcomeRun), string(OutcomeNodeLost):
			scenario.Outcome = Outcome(key)
		default:
			err = fmt.Errorf("what is %q?", key)
		}
		if err != nil {
			return Scenario{}, fmt.Errorf("scenario %q: %w", text, err)
		}
	}
	return scenario, nil
}

func exitCode(text string) (int32, error) {
	code, err := strconv.ParseUint(text, 10, 8)
	return int32(code), err
}

// scriptedRunner plays scenarios.
type scriptedRunner struct{ agent *agent }

func (r *scriptedRunner) prepare(context.Context, *worker) error { return nil }
func (r *scriptedRunner) release(*worker)                        {}

func (r *scriptedRunner) start(ctx context.Context, w *worker, container *containerState) (*execution, error) {
	text, message, named, err := r.script(ctx, w)
	if err != nil {
		return nil, err
	}
	if !named {
		text = r.agent.Script
	}
	scenario, err := ParseScenario(text)
	if err != nil {
		return nil, &waiting{"CreateContainerConfigError", err.Error()}
	}
	if scenario.Outcome == OutcomePending {
		return nil, &waiting{"ContainerCreating", "the scenario says pending"}
	}
	if began := w.began; began.IsZero() {
		w.began = time.Now()
	}
	if left := time.Until(w.began.Add(scenario.StartAfter)); left > 0 {
		return nil, &waiting{"ContainerCreating", fmt.Sprintf("the scenario starts it after %s", scenario.StartAfter)}
	}
	own, err := environment(ctx, w.pod, &container.spec, r.agent.objects(w.pod.Namespace), nil)
	if err != nil {
		return nil, err
	}
	own["POD_NAME"], own["POD_NAMESPACE"], own["POD_UID"] = w.pod.Name, w.pod.Namespace, string(w.pod.UID)
	message = expansion.Expand(message, expansion.MappingFuncFor(own))
	run := play(scenario, message)
	run.id, run.image = "scripted://"+string(w.pod.UID), container.spec.Image
	return run, nil
}

// script finds the scenario and message that the pod or its namespace names for it.
func (r *scriptedRunner) script(ctx context.Context, w *worker) (scenario, message string, named bool, err error) {
	scenario, annotated := w.pod.Annotations[scenarioAnnotation]
	message, hasMessage := w.pod.Annotations[messageAnnotation]
	if annotated {
		return scenario, message, true, nil
	}
	data, err := r.agent.objects(w.pod.Namespace).configMap(ctx, scenarioConfigMap, true)
	if err != nil {
		return "", "", false, err
	}
	key := scenarioKey(data, w.pod.Name, w.pod.Labels[workLabel])
	if !hasMessage {
		message = string(data[key+messageSuffix])
	}
	text, named := data[key]
	return string(text), message, named, nil
}

// scenarioKey gives the longest key that the pod's name begins with, else that of its work, else "default".
func scenarioKey(data map[string][]byte, pod, work string) string {
	best := defaultKey
	if _, there := data[workPrefix+work]; there && work != "" {
		best = workPrefix + work
	}
	found := 0
	for key := range data {
		if strings.HasPrefix(pod, key) && len(key) > found && !strings.HasSuffix(key, messageSuffix) {
			best, found = key, len(key)
		}
	}
	return best
}

// castingRunner plays the pods that a scenario is named for and leaves all others to another runner.
type castingRunner struct {
	script *scriptedRunner
	others runner
}

// prepare decides which; it is the first that a runner is asked.
func (r *castingRunner) prepare(ctx context.Context, w *worker) error {
	_, _, named, err := r.script.script(ctx, w)
	if err != nil {
		return err
	}
	w.played = named
	return r.of(w).prepare(ctx, w)
}

func (r *castingRunner) release(w *worker) { r.of(w).release(w) }

func (r *castingRunner) start(ctx context.Context, w *worker, container *containerState) (*execution, error) {
	return r.of(w).start(ctx, w, container)
}

func (r *castingRunner) of(w *worker) runner {
	if w.played {
		return r.script
	}
	return r.others
}

// play lets time pass and gives the scenario's end.
func play(scenario Scenario, message string) *execution {
	exited := make(chan exit, 1)
	term, kill := make(chan struct{}, 1), make(chan struct{}, 1)
	notify := func(channel chan struct{}) func() {
		return func() {
			select {
			case channel <- struct{}{}:
			default:
			}
		}
	}
	go func() {
		var end <-chan time.Time
		if scenario.Outcome != OutcomeRun {
			end = time.After(scenario.After)
		}
		for {
			select {
			case <-kill:
				exited <- exit{code: 137, reason: "Error"}
				return
			case <-term:
				if !scenario.IgnoreTerm {
					exited <- exit{code: scenario.TermExit, reason: reasonOf(scenario.TermExit), message: message}
					return
				}
			case <-end:
				exited <- scenario.end(message)
				return
			}
		}
	}()
	return &execution{exited: exited, stop: notify(term), kill: notify(kill)}
}

// end is what is reported when the time is up.
func (s Scenario) end(message string) exit {
	switch s.Outcome {
	case OutcomeOOM:
		return exit{code: 137, reason: "OOMKilled"}
	case OutcomeEvict:
		why := "The node was low on resource: memory. Threshold quantity: 100Mi, available: 10Mi."
		return exit{code: 137, reason: "Error", verdict: &verdict{reason: "Evicted", message: why, disrupted: true}}
	case OutcomeNodeLost:
		return exit{silent: true}
	default:
		return exit{code: s.ExitCode, reason: reasonOf(s.ExitCode), message: message}
	}
}

func reasonOf(code int32) string {
	if code == 0 {
		return "Completed"
	}
	return "Error"
}
