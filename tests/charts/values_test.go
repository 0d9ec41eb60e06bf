package charts

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
	sigsyaml "sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "write the table of values in the chart's README.md")

// value is one that values.yaml documents: the comment above its key begins with `# --`.
type value struct {
	path, description, fallback string
}

// values are those of values.yaml in its order. What a documented value holds in turn is part of it.
func values(t *testing.T) []value {
	t.Helper()
	var document yaml.Node
	if err := yaml.Unmarshal(read(t, "values.yaml"), &document); err != nil {
		t.Fatal(err)
	}
	return documented(t, document.Content[0], "")
}

func documented(t *testing.T, mapping *yaml.Node, prefix string) []value {
	t.Helper()
	var found []value
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		key, node := mapping.Content[i], mapping.Content[i+1]
		path := prefix + key.Value
		_, description, there := strings.Cut(key.HeadComment, "# -- ")
		switch {
		case there:
			var decoded any
			if err := node.Decode(&decoded); err != nil {
				t.Fatal(err)
			}
			fallback, err := json.Marshal(decoded)
			if err != nil {
				t.Fatal(err)
			}
			found = append(found, value{path, strings.ReplaceAll(description, "\n# ", " "), string(fallback)})
		case node.Kind == yaml.MappingNode && len(node.Content) > 0:
			found = append(found, documented(t, node, path+".")...)
		default:
			t.Errorf("values.yaml does not say with `# --` what %s is", path)
		}
	}
	return found
}

// read gives a file of the chart.
func read(t *testing.T, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(chart, name))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func decode(t *testing.T, text []byte) map[string]any {
	t.Helper()
	var decoded map[string]any
	if err := sigsyaml.Unmarshal(text, &decoded); err != nil {
		t.Fatal(err)
	}
	return decoded
}

func TestREADMEHasTheValues(t *testing.T) {
	var table strings.Builder
	table.WriteString("| Value | Default | What it is |\n|---|---|---|\n")
	for _, v := range values(t) {
		fmt.Fprintf(&table, "| `%s` | `%s` | %s |\n", v.path, v.fallback, strings.ReplaceAll(v.description, "|", `\|`))
	}
	const begin, end = "<!-- values -->\n", "<!-- /values -->"
	before, rest, found := strings.Cut(string(read(t, "README.md")), begin)
	old, after, closed := strings.Cut(rest, end)
	if !found || !closed {
		t.Fatalf("README.md has no %s…%s", begin, end)
	}
	if old == table.String() {
		return
	}
	if !*update {
		t.Fatal("the values in the chart's README.md are not those of values.yaml; run `go test -run README -update` in tests/charts")
	}
	if err := os.WriteFile(filepath.Join(chart, "README.md"), []byte(before+begin+table.String()+end+after), 0o644); err != nil {
		t.Fatal(err)
	}
}

// schemaPaths gives every property of the schema by its path, and whether it refuses properties that it does not name.
func schemaPaths(t *testing.T, node, definitions map[string]any, prefix string, into map[string]bool) {
	t.Helper()
	if reference, is := node["$ref"].(string); is {
		node = definitions[strings.TrimPrefix(reference, "#/$defs/")].(map[string]any)
	}
	properties, _ := node["properties"].(map[string]any)
	into[strings.TrimSuffix(prefix, ".")] = node["additionalProperties"] == false
	for name, property := range properties {
		schemaPaths(t, property.(map[string]any), definitions, prefix+name+".", into)
	}
}

func TestTheSchemaHasTheSameValues(t *testing.T) {
	schema := decode(t, read(t, "values.schema.json"))
	inSchema := map[string]bool{}
	schemaPaths(t, schema, schema["$defs"].(map[string]any), "", inSchema)
	all := values(t)
	for path, strict := range inSchema {
		within := func(v value) bool { return path == v.path || strings.HasPrefix(path, v.path+".") }
		above := func(v value) bool { return path == "" || strings.HasPrefix(v.path, path+".") }
		switch {
		case path == "global": // Helm's own
		case slices.ContainsFunc(all, within):
		case !slices.ContainsFunc(all, above):
			t.Errorf("values.yaml does not have %s", path)
		case !strict:
			t.Errorf("the schema takes what it does not know in %q", path)
		}
	}
	for _, v := range all {
		if _, there := inSchema[v.path]; !there {
			t.Errorf("the schema does not have %s", v.path)
		}
	}
}

func TestEveryValueIsTried(t *testing.T) {
	tried := decode(t, []byte(everything))
	// These take the place of others, and have tests of their own.
	elsewhere := []string{"watchNamespace", "endpoint.tls.secretName"}
	for _, v := range values(t) {
		if !slices.Contains(elsewhere, v.path) && !has(tried, strings.Split(v.path, ".")) {
			t.Errorf("no test sets %s", v.path)
		}
	}
}

func has(object map[string]any, path []string) bool {
	next, there := object[path[0]]
	if len(path) == 1 || !there {
		return there
	}
	inner, is := next.(map[string]any)
	return is && has(inner, path[1:])
}

func TestWrongValuesAreRefusedWithTheirPlace(t *testing.T) {
	const wrong = `
replica: 2
image: {tga: v1, pullPolicy: Sometimes, digest: "sha256:beef"}
worker: {image: {repository: ""}}
watchNamespace: a,b
endpoint: {url: "http://plain", port: 80, tls: {sans: [a]}}
log: {format: xml}
tracing: {endpoint: "http://user:secret@collector:4318"}
resources: {request: {cpu: 1}}
probes: {liveness: {httpGet: {path: /}}}
updateStrategy: {type: OnDelete}
topologySpreadConstraints: [{maxSkew: 1}]
extraEnv: [{name: POD_NAME, value: mine}]
extraVolumes: [{name: tls, emptyDir: {}}]
extraVolumeMounts: [{name: a, mountPath: /etc/collect/tls}]
podDisruptionBudget: {enabled: "yes", maxUnavailable: some}
networkPolicy: {apiServer: {port: 443}, dns: {ports: []}}
serviceMonitor: {interval: 30 seconds, namespace: monitoring}
prometheusRule: {runbookBaseUrl: handbook, alerts: {CollectDataStale: {severity: urgent}}}
dashboards: {grafanaOperator: {selector: {}}}
`
	out, err := template(t, chart, wrong)
	if err == nil {
		t.Fatal("they are accepted")
	}
	for _, message := range []string{
		"at '': additional properties 'replica' not allowed",
		"at '/image': additional properties 'tga' not allowed",
		"at '/image/pullPolicy': value must be one of 'Always', 'IfNotPresent', 'Never'",
		"at '/image/digest': 'sha256:beef' does not match",
		"at '/worker/image/repository': minLength",
		"at '/watchNamespace': 'a,b' does not match",
		"at '/endpoint/url': 'http://plain' does not match",
		"at '/endpoint/port': minimum",
		"at '/endpoint/tls': additional properties 'sans' not allowed",
		"at '/log/format': value must be one of 'json', 'text'",
		"at '/tracing/endpoint': 'http://user:secret@collector:4318' does not match",
		"at '/resources': additional properties 'request' not allowed",
		"at '/probes/liveness': additional properties 'httpGet' not allowed",
		"at '/updateStrategy/type': value must be one of 'RollingUpdate', 'Recreate'",
		"at '/topologySpreadConstraints/0': missing property 'topologyKey'",
		"at '/extraEnv/0/name'",
		"at '/extraVolumes/0/name'",
		"at '/extraVolumeMounts/0/mountPath'",
		"at '/podDisruptionBudget/enabled': value must be one of true, false, 'auto'",
		"at '/podDisruptionBudget/maxUnavailable'",
		"at '/networkPolicy/apiServer': additional properties 'port' not allowed",
		"at '/networkPolicy/dns/ports': minItems",
		"at '/serviceMonitor': additional properties 'namespace' not allowed",
		"at '/serviceMonitor/interval': '30 seconds' does not match",
		"at '/prometheusRule/runbookBaseUrl': 'handbook' does not match",
		"at '/prometheusRule/alerts/CollectDataStale/severity': value must be one of",
		"at '/dashboards/grafanaOperator': additional properties 'selector' not allowed",
	} {
		if !strings.Contains(out, message) {
			t.Errorf("no %q in %s", message, out)
		}
	}
}

func TestAServiceAccountOfOnesOwnNeedsItsName(t *testing.T) {
	out, err := template(t, chart, "serviceAccount: {create: false}")
	if err == nil || !strings.Contains(out, "serviceAccount.name is needed") {
		t.Errorf("%v: %s", err, out)
	}
}
