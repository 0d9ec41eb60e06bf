package dashboards

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

type rule struct {
	Record, Alert, Expr, For string
	Labels, Annotations      map[string]string
}

type rules struct {
	Groups []struct {
		Name  string
		Rules []rule
	}
}

type ruleTests struct {
	Tests []struct {
		AlertRuleTest []struct {
			Alertname string
			ExpAlerts []any `json:"exp_alerts"`
		} `json:"alert_rule_test"`
	}
}

const (
	rulesFile        = repository + "deploy/alerts/collect.rules.yaml"
	testsFile        = "collect.rules.test.yaml"
	alertmanagerFile = repository + "deploy/alerts/alertmanager.example.yaml"
)

func read(t *testing.T, file string, into any) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(text, into); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
}

func all(t *testing.T) []rule {
	t.Helper()
	var file rules
	read(t, rulesFile, &file)
	var all []rule
	for _, group := range file.Groups {
		all = append(all, group.Rules...)
	}
	return all
}

func alerts(t *testing.T) []rule {
	t.Helper()
	alerts := slices.DeleteFunc(all(t), func(r rule) bool { return r.Alert == "" })
	if len(alerts) == 0 {
		t.Fatal("no alert")
	}
	return alerts
}

// kebab gives CollectTaskFailed as collect-task-failed.
func kebab(name string) string {
	return strings.ToLower(regexp.MustCompile(`(.)([A-Z])`).ReplaceAllString(name, "$1-$2"))
}

// run runs a program of Prometheus. Where it is missing nothing can be said.
func run(t *testing.T, program string, args ...string) {
	t.Helper()
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		t.Errorf("%s %s: %v\n%s", program, strings.Join(args, " "), err, out)
	}
}

func TestRulesAreValid(t *testing.T) {
	run(t, "promtool", "check", "rules", "--lint=all", "--lint-fatal", rulesFile)
}

func TestAlertsFireWhereTheyShouldAndNowhereElse(t *testing.T) {
	run(t, "promtool", "test", "rules", testsFile)
	var tests ruleTests
	read(t, testsFile, &tests)
	fires, silent := map[string]bool{}, map[string]bool{}
	for _, test := range tests.Tests {
		for _, at := range test.AlertRuleTest {
			if len(at.ExpAlerts) > 0 {
				fires[at.Alertname] = true
			} else {
				silent[at.Alertname] = true
			}
		}
	}
	for _, alert := range alerts(t) {
		if !fires[alert.Alert] || !silent[alert.Alert] {
			t.Errorf("%s: tested to fire %v, tested not to fire %v", alert.Alert, fires[alert.Alert], silent[alert.Alert])
		}
	}
}

// Each expression of a board stands in a rules file of its own, so that promtool reads it as Prometheus would.
func TestExpressionsOfBoardsAreValid(t *testing.T) {
	variable := regexp.MustCompile(`\$(\w+)`)
	var text strings.Builder
	text.WriteString("groups:\n- name: boards\n  rules:\n")
	count := 0
	for _, b := range boards(t) {
		for _, p := range b.all() {
			for _, target := range p.Targets {
				expr := strings.ReplaceAll(target.Expr, "$__rate_interval", "5m")
				expr = variable.ReplaceAllString(expr, "x")
				fmt.Fprintf(&text, "  - record: %s:panel_%d:%s\n    expr: %q\n", strings.ReplaceAll(b.UID, "-", "_"), p.ID, target.RefID, expr)
				count++
			}
		}
	}
	if count < 50 {
		t.Errorf("only %d expressions", count)
	}
	file := filepath.Join(t.TempDir(), "boards.rules.yaml")
	if err := os.WriteFile(file, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "promtool", "check", "rules", file)
}

func TestRulesAskForWhatTheOperatorHas(t *testing.T) {
	metrics := metricsOf(t)
	recorded := map[string][]string{}
	for _, r := range all(t) {
		if r.Record == "" {
			continue
		}
		level, _, _ := strings.Cut(r.Record, ":")
		recorded[r.Record] = strings.Split(level, "_")
		if strings.Count(r.Record, ":") != 2 {
			t.Errorf("%s is not level:metric:operations", r.Record)
		}
	}
	used := map[string]bool{}
	for _, r := range all(t) {
		u := checkUse(t, metrics, r.Record+r.Alert, r.Expr, recorded)
		for _, s := range u.selectors {
			used[s.metric] = true
		}
	}
	for name := range recorded {
		if !used[name] {
			t.Errorf("no alert uses %s", name)
		}
	}
}

func TestAlertsAreComplete(t *testing.T) {
	threshold := regexp.MustCompile(`[<>]=?\s*[0-9.]+\s*$`)
	names := map[string]bool{}
	for _, a := range alerts(t) {
		if names[a.Alert] || !strings.HasPrefix(a.Alert, "Collect") {
			t.Errorf("name %s", a.Alert)
		}
		names[a.Alert] = true
		if !slices.Contains([]string{"critical", "warning", "info"}, a.Labels["severity"]) || a.For == "" {
			t.Errorf("%s: severity %q, for %q", a.Alert, a.Labels["severity"], a.For)
		}
		if a.Annotations["summary"] == "" || len(a.Annotations["description"]) < 40 {
			t.Errorf("%s: summary or description", a.Alert)
		}
		if path.Base(a.Annotations["runbook_url"]) != kebab(a.Alert)+".md" {
			t.Errorf("%s: runbook %s", a.Alert, a.Annotations["runbook_url"])
		}
		// The chart changes the threshold by this number. What is absent has none.
		if !threshold.MatchString(a.Expr) && !strings.HasPrefix(a.Expr, "absent(") {
			t.Errorf("%s does not end with its threshold: %s", a.Alert, a.Expr)
		}
		if strings.Contains(a.Annotations["description"]+a.Annotations["summary"], "$labels.") {
			for _, label := range regexp.MustCompile(`\$labels\.(\w+)`).FindAllStringSubmatch(a.Annotations["description"]+a.Annotations["summary"], -1) {
				if u, err := parse(a.Expr); err != nil || !slices.Contains(u.labels, label[1]) && !strings.Contains(a.Expr, ":") {
					t.Errorf("%s tells of label %s, which it does not have", a.Alert, label[1])
				}
			}
		}
	}
}

func TestEveryAlertHasItsRunbookAndEveryRunbookItsAlert(t *testing.T) {
	files, err := filepath.Glob(repository + "docs/runbooks/*.md")
	if err != nil {
		t.Fatal(err)
	}
	var pages, expected []string
	for _, file := range files {
		if filepath.Base(file) != "index.md" {
			pages = append(pages, filepath.Base(file))
		}
	}
	index, err := os.ReadFile(repository + "docs/runbooks/index.md")
	if err != nil {
		t.Error(err)
	}
	for _, alert := range alerts(t) {
		page := kebab(alert.Alert) + ".md"
		expected = append(expected, page)
		text, err := os.ReadFile(repository + "docs/runbooks/" + page)
		if err != nil {
			t.Error(err)
			continue
		}
		if !strings.HasPrefix(string(text), "# "+alert.Alert+"\n") {
			t.Errorf("%s does not begin with its alert's name", page)
		}
		for _, heading := range []string{"## Meaning", "## Impact", "## What to look at", "## What to do"} {
			if _, after, ok := strings.Cut(string(text), "\n"+heading+"\n"); !ok || len(strings.TrimSpace(strings.Split(after, "\n## ")[0])) < 40 {
				t.Errorf("%s: nothing under %q", page, heading)
			}
		}
		if !strings.Contains(string(text), "kubectl ") {
			t.Errorf("%s names no command", page)
		}
		if !strings.Contains(string(index), "("+page+")") {
			t.Errorf("index.md does not name %s", page)
		}
	}
	slices.Sort(expected)
	if !slices.Equal(pages, expected) {
		t.Errorf("runbooks %v\nalerts   %v", pages, expected)
	}
}

func TestTheChartHasTheSameFiles(t *testing.T) {
	for _, c := range []struct{ ours, charts string }{{"deploy/alerts/*.rules.yaml", "alerts"}, {"deploy/dashboards/*.json", "dashboards"}} {
		files, err := filepath.Glob(repository + c.ours)
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %v %v", c.ours, files, err)
		}
		folder := repository + "charts/collect-operator/files/" + c.charts
		copies, err := os.ReadDir(folder)
		if err != nil || len(copies) != len(files) {
			t.Errorf("%d files in %s, %d in %s, %v; run `make dashboards`", len(files), c.ours, len(copies), folder, err)
		}
		for _, file := range files {
			ours, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			theirs, err := os.ReadFile(filepath.Join(folder, filepath.Base(file)))
			if err != nil || !bytes.Equal(ours, theirs) {
				t.Errorf("%s is another file in the chart (%v); run `make dashboards`", filepath.Base(file), err)
			}
		}
	}
}

func TestTheAlertmanagerExampleSendsAlertsWhereItSays(t *testing.T) {
	run(t, "amtool", "check-config", alertmanagerFile)
	for severity, receivers := range map[string]string{"critical": "chat,on-call", "warning": "chat", "info": "mail"} {
		run(t, "amtool", "config", "routes", "test", "--config.file="+alertmanagerFile, "--verify.receivers="+receivers,
			"alertname=CollectTaskFailed", "severity="+severity, "namespace=n", "task=t")
	}
}
