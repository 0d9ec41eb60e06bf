package main

import (
	"bufio"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const top = "../.."

// world is everything that pages are judged by.
type world struct {
	pages      []page
	api        map[string]resource
	values     map[string]any
	code       source
	repository repository
}

func read(t *testing.T) world {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	all, err := pages(top)
	must(err)
	api, err := resources(top)
	must(err)
	values, err := chartValues(top)
	must(err)
	code, err := sources(top)
	must(err)
	makefile, err := os.Open(filepath.Join(top, "Makefile"))
	must(err)
	defer makefile.Close()
	plugin, err := pluginOf(top)
	must(err)
	repository := repository{api: api, values: values, conditions: code.conditions, plugin: plugin, top: top}
	target := regexp.MustCompile(`^([a-z][a-z0-9-]*):`)
	for lines := bufio.NewScanner(makefile); lines.Scan(); {
		if match := target.FindStringSubmatch(lines.Text()); match != nil {
			repository.targets = append(repository.targets, match[1])
		}
	}
	manifests, err := filepath.Glob(filepath.Join(top, "*/*/Cargo.toml"))
	must(err)
	name := regexp.MustCompile(`(?m)^name = "([^"]+)"`)
	for _, manifest := range manifests {
		text, err := os.ReadFile(manifest)
		must(err)
		if match := name.FindSubmatch(text); match != nil {
			repository.crates = append(repository.crates, string(match[1]))
		}
	}
	return world{all, api, values, code, repository}
}

// checks are those that judge pages by their words, by name.
func (w world) checks() map[string]func([]page) []string {
	return map[string]func([]page) []string{
		"links":    func(all []page) []string { return brokenLinks(top, all) },
		"objects":  func(all []page) []string { return wrongObjects(all, w.api, w.values) },
		"fields":   func(all []page) []string { return unknownFields(all, w.api, w.values) },
		"commands": func(all []page) []string { return wrongCommands(all, w.repository) },
		"words":    func(all []page) []string { return unknownWords(all, w.code) },
		"labels":   func(all []page) []string { return unknownLabels(all, w.code) },
	}
}

func TestThePagesNameOnlyWhatExists(t *testing.T) {
	w := read(t)
	if len(w.pages) < 20 {
		t.Fatalf("only %d pages were found", len(w.pages))
	}
	for name, check := range w.checks() {
		for _, problem := range check(w.pages) {
			t.Errorf("%s: %s", name, problem)
		}
	}
}

func TestEveryPageIsReachable(t *testing.T) {
	for _, problem := range unreachable(read(t).pages) {
		t.Error(problem)
	}
}

func TestTroubleshootingExplainsEveryReason(t *testing.T) {
	w := read(t)
	for _, p := range w.pages {
		if p.path == "docs/troubleshooting.md" {
			for _, problem := range untold(p, w.code) {
				t.Error(problem)
			}
			return
		}
	}
	t.Fatal("there is no docs/troubleshooting.md")
}

func TestWhatIsGeneratedIsCurrent(t *testing.T) {
	files, err := generated(top)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join(top, name))
		if err != nil || string(got) != want {
			t.Errorf("%s is not current; run `make docs` (%v)", name, err)
		}
	}
}

func TestTheSamplesAreWhatTheAPITakes(t *testing.T) {
	w := read(t)
	files, err := filepath.Glob(filepath.Join(top, "deploy/samples/*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, problem := range wrongYAML(block{info: []string{"yaml"}, text: string(text)}, w.api, w.values) {
			t.Errorf("%s: %s", file, problem)
		}
	}
}

// What is broken on purpose, and a word of the complaint. An empty word: it is right, and nothing may be said against it.
func TestFaultsAreFound(t *testing.T) {
	w := read(t)
	yaml := func(text string) string { return "```yaml\n" + text + "\n```" }
	sh := func(text string) string { return "```sh\n" + text + "\n```" }
	for _, fault := range []struct{ check, text, complaint string }{
		{"links", "[a](quickstart.md)", ""},
		{"links", "[a](quickstat.md)", "no such file"},
		{"links", "[a](quickstart.md#run-it)", "no heading"},
		{"links", "[a](#here)\n# Here", ""},
		{"links", "[a](#there)\n# Here", "no heading"},
		{"links", "[a](../../etc/passwd)", "out of the repository"},
		{"links", "`[a](nowhere.md)`\n```text\n[a](nowhere.md)\n```", ""},

		{"objects", yaml("spec: {parallelism: 3}"), ""},
		{"objects", yaml("parallelism: 3"), ""},
		{"objects", yaml("spec: {paralelism: 3}"), "spec.paralelism is no field"},
		{"objects", yaml("spec: {parallelism: 3000}"), "less than or equal to 1000"},
		{"objects", yaml("retry: {backoff: {initial: soon}}"), "initial"},
		{"objects", yaml("source: {http: {url: \"https://x.example\", pagination: {none: {}, page: {param: page}}}}"), "set exactly one of"},
		{"objects", yaml("decompose: {shards: {count: {recordsPerShard: 5}}}"), "set spec.source.http.total"},
		{"objects", yaml("sink: {objectStore: {url: \"file:///x\"}}"), "PersistentVolumeClaim"},
		{"objects", yaml("apiVersion: collect.dev/v1alpha1\nkind: CollectTask\nmetadata: {name: a}\nspec: {}"), "needs spec.source"},
		{"objects", yaml("apiVersion: collect.dev/v1beta1\nkind: CollectTask\nmetadata: {name: a}"), "there is no CollectTask"},
		{"objects", yaml("apiVersion: v1\nkind: Secret\nmetadata: {name: a}\nstringdata: {}"), "unknown field"},
		{"objects", yaml("something: else"), "no field of a CollectTask"},
		{"objects", yaml("a: [1"), "yaml"},
		{"objects", yaml("a: 1\na: 2"), "already set"},
		{"objects", "```yaml values\nreplicas: 2\nendpoint: {tls: {secretName: a}}\nnodeSelector: {any: thing}\n```", ""},
		{"objects", "```yaml values\nendpoint: {tls: {secret: a}}\n```", "endpoint.tls.secret is no value"},
		{"objects", "```yaml example\nspec: {}\n```", "no kind of block"},
		{"objects", "```json\n{\"a\": 1\n```", "no JSON"},

		{"fields", "`spec.retry.maxAttempts`, spec.retry.overrides[0].errors and status.hooks.<hook>.attempts.", ""},
		{"fields", "spec.retry.maxAtempts", "spec.retry.maxAtempts"},
		{"fields", "status.plan.sealed.by", "no field"},
		{"fields", "`runs.keep` and `worker.image.repository`", ""},
		{"fields", "`runs.kept`", "runs.kept"},

		{"commands", sh("kubectl get ct stations -o jsonpath={.status.phase}   # a comment"), ""},
		{"commands", sh("kubectl gte ct"), "no command gte"},
		{"commands", sh("kubectl get collectask"), "no resource collectask"},
		{"commands", sh("kubectl get ct --field-selector status.run=1"), "selected by the field status.run"},
		{"commands", sh("kubectl get ct --fieldselector a=b"), "--fieldselector"},
		{"commands", sh("kubectl wait --for=condition=Done ct/a"), "condition Done"},
		{"commands", sh("kubectl explain collecttask.spec.retires"), "spec.retires"},
		{"commands", sh(`kubectl patch ct a --type=merge -p '{"spec":{"desired":"Paused"}}'`), "spec.desired"},
		{"commands", sh(`kubectl patch ct a --type=merge -p '{"spec":'`), "the patch"},
		{"commands", sh("kubectl collect tree villages -n default --watch"), ""},
		{"commands", sh("kubectl collect tre villages"), "no command tre"},
		{"commands", sh("kubectl collect tree villages --replicas 3"), "tree has no flag --replicas"},
		{"commands", sh("echo a | frobnicate"), "frobnicate"},
		{"commands", sh("x=$(frobnicate)"), "frobnicate"},
		{"commands", "```sh illustrative\nfrobnicate\n```", ""},
		{"commands", sh("make docs-check SCALE=full"), ""},
		{"commands", sh("make doc-check"), "no target doc-check"},
		{"commands", "```\nmake doc-check\noutput of it\n```", "no target doc-check"},
		{"commands", "```console\n$ make demo\nfrobnicate\n```", ""},
		{"commands", sh("helm upgrade --install a charts/collect-operator \\\n  --set image.tga=1"), "image.tga"},
		{"commands", sh("helm install a charts/collector"), "no charts/collector"},
		{"commands", sh("helm deploy a"), "helm has no command"},
		{"commands", sh("tests/cluster/clusters up"), "no tests/cluster/clusters"},
		{"commands", sh("cargo run -p collect-clock -- preview"), "no crate collect-clock"},
		{"commands", sh("cargo run -p collect-worker -- preview -f a --secret b"), "no flag --secret"},

		{"words", "`SinkOccupied`, `Running`", ""},
		{"words", "`SinkOcupied`", "SinkOcupied"},
		{"labels", "`collect.dev/root=a`, collect.dev/v1alpha1", ""},
		{"labels", "collect.dev/roots", "collect.dev/roots"},
	} {
		all := []page{{"docs/fault.md", fault.text}, {"docs/quickstart.md", "# Quickstart"}}
		text := strings.Join(w.checks()[fault.check](all), "\n")
		if fault.complaint == "" && text != "" {
			t.Errorf("%s: nothing is wrong with %q, but: %s", fault.check, fault.text, text)
		}
		if fault.complaint != "" && !strings.Contains(text, fault.complaint) {
			t.Errorf("%s: %q is not found: %q does not say %q", fault.check, fault.text, text, fault.complaint)
		}
	}
	lost := page{"docs/lost.md", "nobody links here"}
	if problems := unreachable(append([]page{lost}, w.pages...)); len(problems) != 1 || !strings.HasPrefix(problems[0], lost.path) {
		t.Errorf("a page without a link is not found: %q", problems)
	}
	if problems := untold(page{"docs/troubleshooting.md", "`SinkOccupied`"}, w.code); len(problems) != len(w.code.reasons)-1 {
		t.Errorf("%d of %d reasons are missed", len(problems), len(w.code.reasons)-1)
	}
}

func TestHeadingsBecomeTheAnchorsThatGitHubMakes(t *testing.T) {
	for title, want := range map[string]string{
		"The worker endpoint's certificate": "the-worker-endpoints-certificate",
		"1. Install `the` operator":         "1-install-the-operator",
		"spec of a CollectTask":             "spec-of-a-collecttask",
		"A [link](x.md), and – more":        "a-link-and--more",
	} {
		if got := anchorOf(title); got != want {
			t.Errorf("%q: %q, not %q", title, got, want)
		}
	}
}
