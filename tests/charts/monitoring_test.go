package charts

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	corev1 "k8s.io/api/core/v1"
)

// Alerts and dashboards of the tests' own, next to which the chart may have any others.
const (
	sampleAlerts = `
groups:
  - name: sample
    interval: 1m
    rules:
      - record: sample:ratio
        expr: sum(sample_part) / sum(sample_whole)
      - alert: SampleStale
        expr: |
          time() - sample_last_success > 3600
        for: 5m
        labels: {severity: info}
        annotations: {summary: "{{ $labels.task }} is old", runbook_url: https://runbooks.example/sample-stale.md}
      - alert: SampleOpen
        expr: sample_failed > 3 unless on () sample_off
        labels: {severity: warning}
        annotations: {summary: open, runbook_url: https://runbooks.example/sample-open.md}
`
	sampleDashboard = "{\n  \"title\": \"Sample {{task}}\",\n  \"uid\": \"sample\"\n}\n"
)

// grafanaAndPrometheus are the flags of a cluster that has both operators.
var grafanaAndPrometheus = []string{"--api-versions", "monitoring.coreos.com/v1", "--api-versions", "grafana.integreatly.org/v1beta1"}

// withSamples is a copy of the chart that has the samples too.
var withSamples string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "charts")
	if err == nil {
		withSamples = filepath.Join(dir, "collect-operator")
		err = errors.Join(
			os.CopyFS(withSamples, os.DirFS(chart)),
			write(filepath.Join(withSamples, "files/alerts/sample.rules.yaml"), sampleAlerts),
			write(filepath.Join(withSamples, "files/dashboards/sample.json"), sampleDashboard),
		)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

func write(file, text string) error {
	return errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, []byte(text), 0o600))
}

func TestNothingOfMonitoringIsThereUnlessAskedFor(t *testing.T) {
	r := renderChart(t, withSamples, "", grafanaAndPrometheus...)
	if len(r.monitors)+len(r.prometheusRules)+len(r.configMaps)+len(r.dashboards) != 0 {
		t.Error("objects that nobody asked for")
	}
}

func TestMonitoringFailsWithWhatToDoWhereTheClusterOrTheChartLacksIt(t *testing.T) {
	full, bare := withSamples, t.TempDir()
	err := os.CopyFS(bare, os.DirFS(chart))
	for _, folder := range []string{"alerts", "dashboards"} {
		err = errors.Join(err, os.RemoveAll(filepath.Join(bare, "files", folder)))
	}
	if err != nil {
		t.Fatal(err)
	}
	const forced = "skipApiChecks: true\n"
	for _, c := range []struct{ dir, values, message string }{
		{full, "serviceMonitor: {enabled: true}", "serviceMonitor.enabled: the cluster does not have the API monitoring.coreos.com/v1"},
		{full, "prometheusRule: {enabled: true}", "prometheusRule.enabled: the cluster does not have the API monitoring.coreos.com/v1"},
		{full, "dashboards: {grafanaOperator: {enabled: true}}", "the cluster does not have the API grafana.integreatly.org/v1beta1"},
		{bare, forced + "prometheusRule: {enabled: true}", "the chart has no alert in files/alerts/*.yaml"},
		{bare, "dashboards: {enabled: true}", "the chart has no files/dashboards/*.json"},
		{full, forced + "prometheusRule: {enabled: true, alerts: {SampleStael: {for: 1h}}}", "prometheusRule.alerts.SampleStael: there is no such alert"},
		{full, forced + "prometheusRule: {enabled: true, alerts: {SampleOpen: {threshold: 4}}}", "the alert's expression does not end with a number"},
	} {
		out, err := template(t, c.dir, c.values)
		if err == nil || !strings.Contains(out, c.message) {
			t.Errorf("%s: error %v, without %q: %s", c.values, err, c.message, out)
		}
		if c.dir == full && !strings.HasPrefix(c.values, forced) {
			if out, err := template(t, c.dir, forced+c.values); err != nil {
				t.Errorf("%s: not even when forced: %s", c.values, out)
			}
		}
	}
}

func TestTheServiceMonitorFindsTheMetrics(t *testing.T) {
	r := renderChart(t, withSamples, monitored, grafanaAndPrometheus...)
	monitor, service := only(t, r.monitors), only(t, r.services)
	for key, value := range monitor.Spec.Selector.MatchLabels {
		if service.Labels[key] != value {
			t.Errorf("the Service does not have %s=%s", key, value)
		}
	}
	endpoint := only(t, monitor.Spec.Endpoints)
	if !slices.ContainsFunc(service.Spec.Ports, func(port corev1.ServicePort) bool { return port.Name == endpoint.Port }) {
		t.Errorf("the Service has no port %s", endpoint.Port)
	}
	if !endpoint.HonorLabels || endpoint.Interval != "" || service.Labels[monitor.Spec.JobLabel] != "collect-operator" {
		t.Errorf("%+v", monitor.Spec)
	}

	monitor = only(t, renderChart(t, withSamples, everything).monitors)
	endpoint = only(t, monitor.Spec.Endpoints)
	if monitor.Labels["release"] != "prometheus" || endpoint.Interval != "30s" || endpoint.ScrapeTimeout != "10s" || endpoint.HonorLabels ||
		endpoint.RelabelConfigs[0].TargetLabel != "cluster" || endpoint.MetricRelabelConfigs[0].Action != "drop" {
		t.Errorf("%+v", monitor)
	}
}

// sample gives the rules of the tests' own group by name.
func sample(t *testing.T, r rendering) map[string]monitoringv1.Rule {
	t.Helper()
	rules := map[string]monitoringv1.Rule{}
	for _, group := range only(t, r.prometheusRules).Spec.Groups {
		if group.Name == "sample" {
			for _, rule := range group.Rules {
				rules[rule.Alert+rule.Record] = rule
			}
		}
	}
	return rules
}

func TestAlertsComeAsTheyAreWrittenUnlessValuesChangeThem(t *testing.T) {
	plain := sample(t, renderChart(t, withSamples, monitored, grafanaAndPrometheus...))
	if len(plain) != 3 {
		t.Fatalf("%d rules", len(plain))
	}
	stale := plain["SampleStale"]
	if stale.Expr.StrVal != "time() - sample_last_success > 3600\n" || *stale.For != "5m" ||
		!maps.Equal(stale.Labels, map[string]string{"severity": "info"}) ||
		stale.Annotations["summary"] != "{{ $labels.task }} is old" || stale.Annotations["runbook_url"] != "https://runbooks.example/sample-stale.md" {
		t.Errorf("%+v", stale)
	}

	r := renderChart(t, withSamples, everything)
	changed := sample(t, r)
	if _, there := changed["SampleOpen"]; there || len(changed) != 2 {
		t.Errorf("an alert that is off, or %d rules", len(changed))
	}
	stale = changed["SampleStale"]
	if stale.Expr.StrVal != "time() - sample_last_success > 172800" || *stale.For != "1h" ||
		!maps.Equal(stale.Labels, map[string]string{"severity": "critical", "team": "data"}) ||
		stale.Annotations["runbook_url"] != "https://handbook.example/alerts/sample-stale.md" {
		t.Errorf("%+v", stale)
	}
	if record := changed["sample:ratio"]; len(record.Labels) != 0 {
		t.Errorf("%+v", record)
	}
	if r.prometheusRules[0].Labels["release"] != "prometheus" {
		t.Errorf("labels %v", r.prometheusRules[0].Labels)
	}
}

func TestDashboardsComeToTheLetter(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(withSamples, "files/dashboards/*.json"))
	if err != nil {
		t.Fatal(err)
	}
	r := renderChart(t, withSamples, monitored, grafanaAndPrometheus...)
	if len(r.configMaps) != len(files) || len(r.dashboards) != len(files) {
		t.Fatalf("%d ConfigMaps and %d GrafanaDashboards of %d files", len(r.configMaps), len(r.dashboards), len(files))
	}
	for i, file := range files {
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		configMap, reference := r.configMaps[i], r.dashboards[i].Spec.ConfigMapRef
		if !json.Valid(want) || configMap.Data[filepath.Base(file)] != string(want) {
			t.Errorf("%s is not what %s holds", file, configMap.Name)
		}
		if configMap.Labels["grafana_dashboard"] != "1" || configMap.Annotations["grafana_folder"] != "Collect" || configMap.Namespace != namespace {
			t.Errorf("%+v", configMap.ObjectMeta)
		}
		if reference.Name != configMap.Name || reference.Key != filepath.Base(file) || r.dashboards[i].Namespace != configMap.Namespace {
			t.Errorf("the GrafanaDashboard refers to %+v", reference)
		}
	}

	r = renderChart(t, withSamples, everything)
	for i, configMap := range r.configMaps {
		spec := r.dashboards[i].Spec
		if configMap.Namespace != "grafana" || configMap.Labels["board"] != "yes" || configMap.Annotations["folder"] != "Data" ||
			spec.Folder != "Data" || spec.InstanceSelector.MatchLabels["a"] != "b" || !spec.AllowCrossNamespaceImport {
			t.Errorf("%+v %+v", configMap.ObjectMeta, spec)
		}
	}
}
