package dashboards

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

type datasource struct{ Type, UID string }

type target struct {
	Datasource   datasource
	Expr         string
	RefID        string
	LegendFormat string
}

type link struct{ URL string }

type property struct {
	ID    string
	Value json.RawMessage
}

type panel struct {
	ID          int
	Type, Title string
	Description string
	Collapsed   bool
	Datasource  datasource
	Targets     []target
	Panels      []panel
	GridPos     struct{ X, Y, W, H int }
	FieldConfig struct {
		Defaults  struct{ Unit string }
		Overrides []struct{ Properties []property }
	}
}

type variable struct {
	Name, Type string
	Label      string
	Definition string
	Datasource datasource
	Multi      bool
	IncludeAll bool
	AllValue   string
	Refresh    int
}

type board struct {
	file          string
	ID            *int
	UID, Title    string
	Description   string
	Editable      *bool
	SchemaVersion int
	Tags          []string
	Refresh       string
	Links         []struct {
		Type        string
		Tags        []string
		IncludeVars bool
		KeepTime    bool
	}
	Templating struct{ List []variable }
	Panels     []panel
}

// The boards that there are, with their variables. A uid is part of links and bookmarks: it never changes.
var expectedBoards = map[string]struct {
	uid       string
	variables []string
}{
	"operator.json": {"collect-operator", []string{"datasource", "job", "instance"}},
	"tasks.json":    {"collect-tasks", []string{"datasource", "job", "namespace", "task"}},
	"task.json":     {"collect-task", []string{"datasource", "job", "namespace", "task"}},
}

// Metrics that no board shows, each with the reason.
var notShown = map[string]string{
	"collect_trace_spans_lost_total": "0 where no OTLP endpoint is set, which is the default",
}

// What Prometheus itself has beside the operator's metrics.
var ofPrometheus = map[string][]string{"ALERTS": {"alertname", "alertstate", "severity", "namespace", "task"}}

// Labels that Prometheus gives to what it scrapes.
var targetLabels = []string{"job", "instance", "namespace"}

// Units of Grafana that our panels may have.
var units = []string{"none", "short", "percentunit", "s", "bytes", "Bps", "ops", "reqps", "wps", "recps", "dateTimeFromNow"}

func boards(t *testing.T) []board {
	t.Helper()
	files, err := filepath.Glob(repository + "deploy/dashboards/*.json")
	if err != nil || len(files) != len(expectedBoards) {
		t.Fatalf("%d boards, %v", len(files), err)
	}
	var boards []board
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		b := board{file: filepath.Base(file)}
		if err := json.Unmarshal(text, &b); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if !strings.Contains(string(text), "\n  \"id\": null,") {
			t.Errorf("%s: id is not null", b.file)
		}
		boards = append(boards, b)
	}
	return boards
}

// all gives the panels of a board with those of its collapsed rows, rows included.
func (b board) all() []panel {
	var all []panel
	for _, p := range b.Panels {
		all = append(append(all, p), p.Panels...)
	}
	return all
}

func TestBoardsHaveTheirHead(t *testing.T) {
	for _, b := range boards(t) {
		expected, known := expectedBoards[b.file]
		if !known || b.UID != expected.uid {
			t.Errorf("%s has uid %q", b.file, b.UID)
		}
		if b.ID != nil || b.Editable == nil || *b.Editable || b.SchemaVersion < 39 || b.Title == "" || b.Description == "" || b.Refresh == "" {
			t.Errorf("%s: id, editable, schemaVersion, title, description or refresh", b.file)
		}
		if !slices.Contains(b.Tags, "collect") || len(b.Links) != 1 || b.Links[0].Type != "dashboards" || !slices.Contains(b.Links[0].Tags, "collect") ||
			!b.Links[0].IncludeVars || !b.Links[0].KeepTime {
			t.Errorf("%s does not lead to the other boards", b.file)
		}
	}
}

func TestVariablesAreDefinedAndUsed(t *testing.T) {
	metrics := metricsOf(t)
	for _, b := range boards(t) {
		var names []string
		for _, v := range b.Templating.List {
			names = append(names, v.Name)
			if v.Label == "" {
				t.Errorf("%s: variable %s has no label", b.file, v.Name)
			}
			if v.Name == "datasource" {
				continue
			}
			if v.Type != "query" || v.Datasource.UID != "${datasource}" || v.Refresh != 2 || v.IncludeAll != v.Multi || v.IncludeAll && v.AllValue != ".+" {
				t.Errorf("%s: variable %s: %+v", b.file, v.Name, v)
			}
			query := regexp.MustCompile(`^label_values\((.+), (\w+)\)$`).FindStringSubmatch(v.Definition)
			if query == nil {
				t.Fatalf("%s: variable %s asks %s", b.file, v.Name, v.Definition)
			}
			checkUse(t, metrics, b.file+" variable "+v.Name, query[1], nil)
			if query[2] != v.Name {
				t.Errorf("%s: variable %s holds values of %s", b.file, v.Name, query[2])
			}
		}
		if !slices.Equal(names, expectedBoards[b.file].variables) {
			t.Errorf("%s has variables %v", b.file, names)
		}
		var text strings.Builder
		for _, p := range b.all() {
			for _, target := range p.Targets {
				text.WriteString(target.Expr + "\n")
			}
		}
		for _, used := range regexp.MustCompile(`\$\{?(\w+)`).FindAllStringSubmatch(text.String(), -1) {
			if used[1] != "__rate_interval" && !slices.Contains(names, used[1]) {
				t.Errorf("%s uses $%s, which is no variable", b.file, used[1])
			}
		}
		for _, name := range names[1:] {
			if !strings.Contains(text.String(), "$"+name) {
				t.Errorf("%s does not use $%s", b.file, name)
			}
		}
	}
}

func TestPanelsAreComplete(t *testing.T) {
	for _, b := range boards(t) {
		ids := map[int]bool{}
		for _, p := range b.all() {
			where := b.file + " " + p.Title
			if ids[p.ID] || p.ID == 0 {
				t.Errorf("%s: id %d", where, p.ID)
			}
			ids[p.ID] = true
			if p.Title == "" {
				t.Errorf("%s: panel %d has no title", b.file, p.ID)
			}
			if p.Type == "row" {
				if p.Collapsed != (len(p.Panels) > 0) {
					t.Errorf("%s: collapsed is %v with %d panels within", where, p.Collapsed, len(p.Panels))
				}
				continue
			}
			if len(p.Description) < 20 || !strings.HasSuffix(p.Description, ".") {
				t.Errorf("%s: description %q", where, p.Description)
			}
			if !slices.Contains(units, p.FieldConfig.Defaults.Unit) {
				t.Errorf("%s: unit %q", where, p.FieldConfig.Defaults.Unit)
			}
			if p.Datasource != (datasource{"prometheus", "${datasource}"}) || len(p.Targets) == 0 {
				t.Errorf("%s: data source %+v, %d targets", where, p.Datasource, len(p.Targets))
			}
			refs := map[string]bool{}
			for _, target := range p.Targets {
				if target.Datasource != p.Datasource || refs[target.RefID] || target.RefID == "" || target.LegendFormat == "" {
					t.Errorf("%s: target %+v", where, target)
				}
				refs[target.RefID] = true
			}
			for _, override := range p.FieldConfig.Overrides {
				for _, property := range override.Properties {
					if property.ID == "unit" && !slices.Contains(units, strings.Trim(string(property.Value), `"`)) {
						t.Errorf("%s: unit %s", where, property.Value)
					}
					var links []link
					if property.ID == "links" && (json.Unmarshal(property.Value, &links) != nil || len(links) == 0) {
						t.Errorf("%s: links %s", where, property.Value)
					}
					for _, link := range links {
						uid, _, _ := strings.Cut(strings.TrimPrefix(link.URL, "/d/"), "?")
						if !slices.ContainsFunc(boards(t), func(b board) bool { return b.UID == uid }) {
							t.Errorf("%s: a link to board %q", where, uid)
						}
					}
				}
			}
		}
	}
}

func TestNoPanelLiesOnAnother(t *testing.T) {
	for _, b := range boards(t) {
		// A collapsed row's panels come to lie where the next row is now: each such row is a layer of its own.
		type cell struct{ layer, x, y int }
		taken := map[cell]string{}
		place := func(layer int, p panel) {
			g := p.GridPos
			if g.W < 1 || g.H < 1 || g.X < 0 || g.Y < 0 || g.X+g.W > 24 {
				t.Errorf("%s: %s at %+v", b.file, p.Title, g)
			}
			for x := g.X; x < g.X+g.W; x++ {
				for y := g.Y; y < g.Y+g.H; y++ {
					if other, there := taken[cell{layer, x, y}]; there {
						t.Errorf("%s: %s lies on %s", b.file, p.Title, other)
					}
					taken[cell{layer, x, y}] = p.Title
				}
			}
		}
		for _, p := range b.Panels {
			place(0, p)
			for _, within := range p.Panels {
				place(p.ID, within)
				if within.GridPos.Y <= p.GridPos.Y {
					t.Errorf("%s: %s lies above its row %s", b.file, within.Title, p.Title)
				}
			}
		}
	}
}

func TestExpressionsOfBoardsAskForWhatTheOperatorHas(t *testing.T) {
	metrics := metricsOf(t)
	shown := map[string]bool{}
	for _, b := range boards(t) {
		for _, p := range b.all() {
			for _, target := range p.Targets {
				where := b.file + " " + p.Title
				u := checkUse(t, metrics, where, target.Expr, ofPrometheus)
				for _, s := range u.selectors {
					base, _, _ := find(metrics, s.metric)
					shown[base] = true
					if _, of := ofPrometheus[s.metric]; of {
						continue
					}
					if s.matchers["job"] != "=~$job" {
						t.Errorf("%s: %s is not held to $job", where, s.metric)
					}
					if b.UID == "collect-operator" && s.matchers["instance"] != "=~$instance" {
						t.Errorf("%s: %s is not held to $instance", where, s.metric)
					}
					if m := metrics[base]; slices.Contains(m.labels, "task") {
						exact := map[string]string{"collect-task": "=", "collect-tasks": "=~"}[b.UID]
						if s.matchers["namespace"] != exact+"$namespace" || s.matchers["task"] != exact+"$task" {
							t.Errorf("%s: %s is not held to $namespace and $task", where, s.metric)
						}
					}
				}
				if strings.Contains(strings.ReplaceAll(target.Expr, "[$__rate_interval]", ""), "[") {
					t.Errorf("%s: a range that is not $__rate_interval: %s", where, target.Expr)
				}
			}
		}
	}
	for name := range metrics {
		if reason, left := notShown[name]; shown[name] == left {
			t.Errorf("%s: on a board %v; left out because %q", name, shown[name], reason)
		}
	}
	for name := range notShown {
		if _, known := metrics[name]; !known {
			t.Errorf("%s is left out, but is no metric", name)
		}
	}
}

// checkUse sees to it that metrics and labels of an expression exist and are used as their type allows. `others` are metrics that
// are not the operator's, with their labels.
func checkUse(t *testing.T, metrics map[string]metric, where, expr string, others map[string][]string) use {
	t.Helper()
	u, err := parse(expr)
	if err != nil || len(u.selectors) == 0 {
		t.Errorf("%s: %v: %s", where, err, expr)
	}
	known := slices.Clone(targetLabels)
	for _, s := range u.selectors {
		_, m, ok := find(metrics, s.metric)
		labels, other := others[s.metric]
		if !ok && !other {
			t.Errorf("%s: there is no metric %s", where, s.metric)
			continue
		}
		labels = append(slices.Clone(labels), m.labels...)
		if m.kind == "histogram" {
			labels = append(labels, "le")
		}
		known = append(known, labels...)
		for label := range s.matchers {
			if !slices.Contains(labels, label) && !slices.Contains(targetLabels, label) {
				t.Errorf("%s: %s has no label %s", where, s.metric, label)
			}
		}
		switch onlyGrows := m.kind == "counter" || m.kind == "histogram"; {
		case onlyGrows && (!s.isRange || s.function != "rate" && s.function != "increase"):
			t.Errorf("%s: %s only grows: its rate or increase tells something", where, s.metric)
		case !onlyGrows && s.isRange && s.function != "deriv":
			t.Errorf("%s: %s is no counter: %s tells nothing", where, s.metric, s.function)
		}
	}
	for _, label := range u.labels {
		if !slices.Contains(known, label) {
			t.Errorf("%s: nothing has a label %s: %s", where, label, expr)
		}
	}
	return u
}

func metricsOf(t *testing.T) map[string]metric {
	t.Helper()
	metrics, err := reference()
	if err != nil {
		t.Fatal(err)
	}
	return metrics
}

func TestParseFindsMetricsAndLabels(t *testing.T) {
	u, err := parse(`topk(2, sum by (le, "x") (rate(a_total{b=~"c|d", e!="f"}[5m]))) / on (g) group_left (h) max(i offset 5m) > bool 0.5 # j`)
	if err != nil || len(u.selectors) != 2 || u.selectors[0].metric != "a_total" || u.selectors[0].matchers["b"] != "=~c|d" || u.selectors[0].matchers["e"] != "!=f" ||
		!u.selectors[0].isRange || u.selectors[0].function != "rate" || u.selectors[1].metric != "i" || !slices.Equal(u.labels, []string{"le", `"x"`, "g", "h"}) {
		t.Errorf("%+v %v", u, err)
	}
	for _, bad := range []string{`a{b="c"`, `{b="c"}`, `a{b}`} {
		if u, err := parse(bad); err == nil {
			t.Errorf("%s: %+v", bad, u)
		}
	}
}
