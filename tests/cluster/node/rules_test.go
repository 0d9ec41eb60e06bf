package node

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"collect.dev/tests/cluster/image"
)

func TestMountPathsAreRewrittenWhereTheyArePaths(t *testing.T) {
	rules := []rewrite{{"/data", "/real/data"}, {"/data/inner", "/real/inner"}, {"/dev/termination-log", "/real/log"}}
	for text, want := range map[string]string{
		"/data":                         "/real/data",
		"/data/x":                       "/real/data/x",
		"/data/inner/x":                 "/real/inner/x",
		"--dir=/data,/data":             "--dir=/real/data,/real/data",
		`{"dir":"/data"}`:               `{"dir":"/real/data"}`,
		"file:///data/x":                "file:///real/data/x",
		"https://host/data":             "https://host/data",
		"/database":                     "/database",
		"/data.old":                     "/data.old",
		"/other/data":                   "/other/data",
		"echo x > /dev/termination-log": "echo x > /real/log",
		"":                              "",
	} {
		if got := apply(rules, text); got != want {
			t.Errorf("%q became %q, want %q", text, got, want)
		}
	}
}

func TestARewrittenPathIsNotRewrittenAgain(t *testing.T) {
	rules := []rewrite{{"/a", "/b/a"}, {"/b", "/c"}}
	if got := apply(rules, "/a /b"); got != "/b/a /c" {
		t.Errorf("got %q", got)
	}
}

func TestScenarios(t *testing.T) {
	plain := Scenario{Outcome: OutcomeExit, After: 200 * time.Millisecond, TermExit: 143}
	with := func(change func(*Scenario)) Scenario {
		scenario := plain
		change(&scenario)
		return scenario
	}
	for text, want := range map[string]Scenario{
		"":                      plain,
		"succeed-after=2s":      with(func(s *Scenario) { s.After = 2 * time.Second }),
		"fail-after=1s":         with(func(s *Scenario) { s.After, s.ExitCode = time.Second, 1 }),
		"exit=10,fail-after=1s": with(func(s *Scenario) { s.After, s.ExitCode = time.Second, 10 }),
		"oom, after=1s":         with(func(s *Scenario) { s.Outcome, s.After = OutcomeOOM, time.Second }),
		"run,ignore-term":       with(func(s *Scenario) { s.Outcome, s.IgnoreTerm = OutcomeRun, true }),
		"pending":               with(func(s *Scenario) { s.Outcome = OutcomePending }),
		"node-lost":             with(func(s *Scenario) { s.Outcome = OutcomeNodeLost }),
		"start-after=1s,term-exit=20,run": with(func(s *Scenario) {
			s.Outcome, s.StartAfter, s.TermExit = OutcomeRun, time.Second, 20
		}),
	} {
		if got, err := ParseScenario(text); err != nil || got != want {
			t.Errorf("%q: got %+v %v, want %+v", text, got, err, want)
		}
	}
	for _, bad := range []string{"what", "exit=x", "exit=256", "after=soon"} {
		if _, err := ParseScenario(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestTheLongestPrefixNamesTheScenarioThenTheWork(t *testing.T) {
	data := map[string][]byte{"a": nil, "a-b": nil, "a-b.message": nil, "work.collect": nil, "work.collect.message": nil, "default": nil}
	for _, row := range []struct{ pod, work, want string }{
		{"a-b-1", "", "a-b"},
		{"a-c", "", "a"},
		{"a-c", "collect", "a"},
		{"x", "collect", "work.collect"},
		{"x", "plan", "default"},
		{"x", "", "default"},
	} {
		if got := scenarioKey(data, row.pod, row.work); got != row.want {
			t.Errorf("%s of work %q: got %s, want %s", row.pod, row.work, got, row.want)
		}
	}
}

// recordingRunner notes which pods came to it.
type recordingRunner struct{ prepared, released []string }

func (r *recordingRunner) prepare(_ context.Context, w *worker) error {
	r.prepared = append(r.prepared, w.pod.Name)
	return nil
}

func (r *recordingRunner) release(w *worker) { r.released = append(r.released, w.pod.Name) }

func (r *recordingRunner) start(context.Context, *worker, *containerState) (*execution, error) {
	return &execution{id: "process"}, nil
}

func TestOnlyPodsThatAScenarioIsNamedForArePlayed(t *testing.T) {
	a := &agent{client: fake.NewClientset(&corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: scenarioConfigMap},
		Data:       map[string]string{"work.collect": "exit=10,after=0s", "work.collect.message": "by $(POD_NAME)"},
	})}
	others := &recordingRunner{}
	cast := &castingRunner{script: &scriptedRunner{agent: a}, others: others}
	pod := func(namespace, name, work string) *worker {
		meta := metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{workLabel: work}}
		return newWorker(a, &corev1.Pod{ObjectMeta: meta, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c"}}}})
	}
	played := pod("n", "played", "collect")
	for _, w := range []*worker{played, pod("n", "planner", "plan"), pod("elsewhere", "collector", "collect")} {
		if err := cast.prepare(t.Context(), w); err != nil {
			t.Fatal(err)
		}
		cast.release(w)
	}
	if want := []string{"planner", "collector"}; !slices.Equal(others.prepared, want) || !slices.Equal(others.released, want) {
		t.Errorf("prepared %v, released %v, want both %v", others.prepared, others.released, want)
	}
	run, err := cast.start(t.Context(), played, played.containers[0])
	if err != nil {
		t.Fatal(err)
	}
	select {
	case got := <-run.exited:
		if got.code != 10 || got.message != "by played" {
			t.Errorf("got exit %d, %q", got.code, got.message)
		}
	case <-time.After(5 * time.Second):
		t.Error("it did not end")
	}
}

func TestAScriptedContainerEndsAsTheScenarioSays(t *testing.T) {
	for name, row := range map[string]struct {
		scenario Scenario
		act      func(*execution)
		want     int32
	}{
		"by itself":         {Scenario{Outcome: OutcomeExit, ExitCode: 10}, func(*execution) {}, 10},
		"out of memory":     {Scenario{Outcome: OutcomeOOM}, func(*execution) {}, 137},
		"asked to stop":     {Scenario{Outcome: OutcomeRun, TermExit: 20}, func(e *execution) { e.stop() }, 20},
		"deaf until killed": {Scenario{Outcome: OutcomeRun, IgnoreTerm: true}, func(e *execution) { e.stop(); e.kill() }, 137},
	} {
		run := play(row.scenario, "")
		row.act(run)
		select {
		case got := <-run.exited:
			if got.code != row.want {
				t.Errorf("%s: exit %d, want %d", name, got.code, row.want)
			}
		case <-time.After(5 * time.Second):
			t.Errorf("%s: did not end", name)
		}
	}
}

func TestACommandOfThePodDiscardsTheImagesArguments(t *testing.T) {
	loaded := &image.Image{Entrypoint: []string{"e"}, Cmd: []string{"c"}}
	for _, row := range []struct{ command, args, want []string }{
		{nil, nil, []string{"e", "c"}},
		{nil, []string{"a"}, []string{"e", "a"}},
		{[]string{"x"}, nil, []string{"x"}},
		{[]string{"x"}, []string{"a"}, []string{"x", "a"}},
	} {
		if got := arguments(loaded, &corev1.Container{Command: row.command, Args: row.args}); !slices.Equal(got, row.want) {
			t.Errorf("command %v args %v: got %v", row.command, row.args, got)
		}
	}
}

func TestAMissingKeyIsAnErrorUnlessOptional(t *testing.T) {
	data := map[string][]byte{"a": []byte("1")}
	items := []corev1.KeyToPath{{Key: "b", Path: "x"}}
	if _, err := project(data, items, 0o644, false); err == nil {
		t.Error("a missing key was accepted")
	}
	if files, err := project(data, items, 0o644, true); err != nil || len(files) > 0 {
		t.Errorf("optional: %v %v", files, err)
	}
	if files, err := project(data, nil, 0o600, false); err != nil || string(files["a"].data) != "1" || files["a"].mode != 0o600 {
		t.Errorf("all keys: %v %v", files, err)
	}
}

func TestLogsOfTheLastRunTheOneBeforeAndTheirTails(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"main.0", "main.1"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("1\n2\n3\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if path, live := newestLog(dir, "main", false); filepath.Base(path) != "main.1" || !live {
		t.Errorf("newest: %s %v", path, live)
	}
	if path, live := newestLog(dir, "main", true); filepath.Base(path) != "main.0" || live {
		t.Errorf("previous: %s %v", path, live)
	}
	if path, _ := newestLog(dir, "other", false); path != "" {
		t.Errorf("no logs: %s", path)
	}
	for lines, want := range map[int]int64{0: 6, 1: 4, 2: 2, 3: 0, 9: 0} {
		file, err := os.Open(filepath.Join(dir, "main.0"))
		if err != nil {
			t.Fatal(err)
		}
		if err := seekTail(file, lines); err != nil {
			t.Fatal(err)
		}
		if at, _ := file.Seek(0, 1); at != want {
			t.Errorf("the last %d lines begin at %d, want %d", lines, at, want)
		}
		file.Close()
	}
}

func TestTheTerminationMessageIsTheFileElseTheLogOfAFailure(t *testing.T) {
	dir := t.TempDir()
	messages, log := filepath.Join(dir, "message"), filepath.Join(dir, "log")
	write := func(path, text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(log, "last words\n")
	file := &corev1.Container{}
	fallback := &corev1.Container{TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError}
	for name, row := range map[string]struct {
		spec    *corev1.Container
		written string
		failed  bool
		want    string
	}{
		"written":                  {file, "m", true, "m"},
		"nothing":                  {file, "", true, ""},
		"fallback after a failure": {fallback, "", true, "last words\n"},
		"no fallback on success":   {fallback, "", false, ""},
		"the file comes first":     {fallback, "m", true, "m"},
	} {
		write(messages, row.written)
		if got := terminationMessage(row.spec, messages, log, row.failed); got != row.want {
			t.Errorf("%s: %q", name, got)
		}
	}
}
