package charts

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
	sigsyaml "sigs.k8s.io/yaml"
)

const (
	chart     = "../../charts/collect-operator"
	namespace = "collect-system"
)

const (
	namespaced      = "watchNamespace: team"
	highlyAvailable = "replicas: 2"
	monitored       = `
serviceMonitor: {enabled: true}
prometheusRule: {enabled: true}
dashboards: {enabled: true, grafanaOperator: {enabled: true}}
`
	// everything names every value that can be set (TestEveryValueIsTried), most with another value than the default.
	everything = `
nameOverride: cope
fullnameOverride: co
commonLabels: {team: data, app.kubernetes.io/name: other}
replicas: 2
image: {repository: registry.example/operator, tag: v1, digest: "sha256:0123456789012345678901234567890123456789012345678901234567890123", pullPolicy: Always}
imagePullSecrets: [{name: pull}]
worker: {image: {repository: registry.example/worker, tag: v1, digest: "", pullPolicy: Never}}
crds: {enabled: true, keep: false}
rbac: {create: true, aggregate: true, kindRoles: true}
serviceAccount: {create: true, name: collector, annotations: {example.dev/role: reader}}
endpoint:
  port: 9443
  url: https://operator.example:9443
  tls: {extraSANs: [operator.example, 192.0.2.7], validityDays: 30}
http: {port: 9090}
lease: {enabled: false}
log: {format: text}
tracing: {endpoint: "http://collector.example:4318"}
service: {annotations: {prometheus.io/scrape: "true"}}
resources: {requests: {cpu: 1, memory: 128Mi}, limits: {cpu: "2", memory: 512Mi}}
probes: {startup: {failureThreshold: 60}, liveness: {initialDelaySeconds: 5}, readiness: {periodSeconds: 7}}
updateStrategy: {type: RollingUpdate, rollingUpdate: {maxUnavailable: 1}}
revisionHistoryLimit: 1
terminationGracePeriodSeconds: 60
podSecurityContext: {runAsUser: 1000, runAsGroup: null}
securityContext: {privileged: false}
podAnnotations: {a: b, checksum/tls: mine}
podLabels: {c: d, app.kubernetes.io/instance: other}
nodeSelector: {kubernetes.io/os: linux}
tolerations: [{key: k, operator: Exists}]
affinity: {nodeAffinity: {}}
topologySpreadConstraints: [{topologyKey: rack, maxSkew: 2}]
priorityClassName: high
schedulerName: second
runtimeClassName: gvisor
extraArgs: [--further]
extraEnv: [{name: RUST_LOG, value: debug}]
extraVolumes: [{name: roots, configMap: {name: roots}}]
extraVolumeMounts: [{name: roots, mountPath: /etc/ssl/certs, readOnly: true}]
check: {enabled: true, annotations: {sidecar.istio.io/inject: "false", helm.sh/hook: mine}, resources: {requests: {cpu: 20m}, limits: {memory: 64Mi}}}
podDisruptionBudget: {enabled: true, maxUnavailable: 50%}
networkPolicy:
  enabled: true
  endpoint: {from: [{namespaceSelector: {matchLabels: {team: data}}}]}
  metrics: {from: []}
  dns: {ports: [53, 5353], to: [{namespaceSelector: {}}]}
  apiServer: {ports: [8443], to: [{ipBlock: {cidr: 192.0.2.0/24}}]}
  tracing: {ports: [9318], to: [{namespaceSelector: {}}]}
  extraIngress: [{ports: [{port: 1}]}]
  extraEgress: [{ports: [{port: 2}]}]
skipApiChecks: true
serviceMonitor:
  enabled: true
  labels: {release: prometheus, app.kubernetes.io/name: other}
  interval: 30s
  scrapeTimeout: 10s
  honorLabels: false
  relabelings: [{targetLabel: cluster, replacement: one}]
  metricRelabelings: [{action: drop, sourceLabels: [__name__], regex: x}]
prometheusRule:
  enabled: true
  labels: {release: prometheus}
  alertLabels: {team: data, severity: other}
  runbookBaseUrl: https://handbook.example/alerts/
  alerts:
    SampleStale: {threshold: 172800, for: 1h, severity: critical}
    SampleOpen: {enabled: false}
dashboards:
  enabled: true
  namespace: grafana
  label: board
  labelValue: "yes"
  folderAnnotation: folder
  folder: Data
  grafanaOperator: {enabled: true, instanceSelector: {matchLabels: {a: b}}, allowCrossNamespaceImport: true}
`
)

// renderings are those that every general rule must hold for.
func renderings(t *testing.T) map[string]rendering {
	t.Helper()
	return map[string]rendering{
		"defaults":         render(t, ""),
		"namespaced":       render(t, namespaced),
		"highly available": render(t, highlyAvailable),
		"monitored":        renderChart(t, withSamples, monitored, grafanaAndPrometheus...),
		"everything":       renderChart(t, withSamples, everything),
	}
}

// rendering is what one set of values renders to, by type.
type rendering struct {
	text            string
	deployments     []appsv1.Deployment
	pods            []corev1.Pod
	leases          []coordinationv1.Lease
	services        []corev1.Service
	secrets         []corev1.Secret
	accounts        []corev1.ServiceAccount
	roles           []rbacv1.Role
	clusterRoles    []rbacv1.ClusterRole
	bindings        []rbacv1.RoleBinding
	budgets         []policyv1.PodDisruptionBudget
	networkPolicies []networkingv1.NetworkPolicy
	configMaps      []corev1.ConfigMap
	monitors        []monitoringv1.ServiceMonitor
	prometheusRules []monitoringv1.PrometheusRule
	dashboards      []grafanaDashboard
	crds            []metav1.PartialObjectMetadata
}

// grafanaDashboard is what the chart uses of grafana.integreatly.org/v1beta1; the type itself drags in a whole operator.
type grafanaDashboard struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              struct {
		Folder                    string                      `json:"folder"`
		AllowCrossNamespaceImport bool                        `json:"allowCrossNamespaceImport"`
		InstanceSelector          *metav1.LabelSelector       `json:"instanceSelector"`
		ConfigMapRef              corev1.ConfigMapKeySelector `json:"configMapRef"`
	} `json:"spec"`
}

func helm(t *testing.T, args ...string) (string, error) {
	t.Helper()
	words := strings.Fields(os.Getenv("HELM"))
	if len(words) == 0 {
		t.Fatal("HELM must name the helm binary; run `make chart-test`")
	}
	cmd := exec.Command(words[0], append(words[1:], args...)...)
	// No file of the user has a say.
	cmd.Env = append(os.Environ(), "HELM_CONFIG_HOME="+t.TempDir(), "HELM_CACHE_HOME="+t.TempDir(), "HELM_DATA_HOME="+t.TempDir())
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// template renders the chart in dir; flags are further ones of `helm template`.
func template(t *testing.T, dir, values string, flags ...string) (string, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "values.yaml")
	if err := os.WriteFile(file, []byte(values), 0o600); err != nil {
		t.Fatal(err)
	}
	return helm(t, append([]string{"template", "collect-operator", dir, "--namespace", namespace, "--values", file}, flags...)...)
}

func render(t *testing.T, values string) rendering {
	t.Helper()
	return renderChart(t, chart, values)
}

// rendered keeps what was rendered already: each takes helm a moment.
var rendered = map[string]rendering{}

func renderChart(t *testing.T, dir, values string, flags ...string) rendering {
	t.Helper()
	key := strings.Join(append([]string{dir, values}, flags...), "\x00")
	if r, there := rendered[key]; there {
		return r
	}
	out, err := template(t, dir, values, flags...)
	if err != nil {
		t.Fatalf("helm template: %v\n%s", err, out)
	}
	r := rendering{text: out}
	for _, document := range documents(t, out) {
		r.add(t, document)
	}
	rendered[key] = r
	return r
}

func documents(t *testing.T, text string) [][]byte {
	t.Helper()
	var all [][]byte
	reader := yaml.NewYAMLReader(bufio.NewReader(strings.NewReader(text)))
	for {
		document, err := reader.Read()
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, document)
	}
}

func kindOf(t *testing.T, document []byte) string {
	t.Helper()
	var meta metav1.TypeMeta
	if err := sigsyaml.Unmarshal(document, &meta); err != nil {
		t.Fatalf("%v in\n%s", err, document)
	}
	return meta.Kind
}

func (r *rendering) add(t *testing.T, document []byte) {
	t.Helper()
	switch kind := kindOf(t, document); kind {
	case "": // a comment
	case "Deployment":
		r.deployments = append(r.deployments, strict[appsv1.Deployment](t, document))
	case "Pod":
		r.pods = append(r.pods, strict[corev1.Pod](t, document))
	case "Lease":
		r.leases = append(r.leases, strict[coordinationv1.Lease](t, document))
	case "Service":
		r.services = append(r.services, strict[corev1.Service](t, document))
	case "Secret":
		r.secrets = append(r.secrets, strict[corev1.Secret](t, document))
	case "ServiceAccount":
		r.accounts = append(r.accounts, strict[corev1.ServiceAccount](t, document))
	case "Role":
		r.roles = append(r.roles, strict[rbacv1.Role](t, document))
	case "ClusterRole":
		r.clusterRoles = append(r.clusterRoles, strict[rbacv1.ClusterRole](t, document))
	case "RoleBinding":
		r.bindings = append(r.bindings, strict[rbacv1.RoleBinding](t, document))
	case "ClusterRoleBinding":
		strict[rbacv1.ClusterRoleBinding](t, document)
	case "PodDisruptionBudget":
		r.budgets = append(r.budgets, strict[policyv1.PodDisruptionBudget](t, document))
	case "NetworkPolicy":
		r.networkPolicies = append(r.networkPolicies, strict[networkingv1.NetworkPolicy](t, document))
	case "ConfigMap":
		r.configMaps = append(r.configMaps, strict[corev1.ConfigMap](t, document))
	case "ServiceMonitor":
		r.monitors = append(r.monitors, strict[monitoringv1.ServiceMonitor](t, document))
	case "PrometheusRule":
		r.prometheusRules = append(r.prometheusRules, strict[monitoringv1.PrometheusRule](t, document))
	case "GrafanaDashboard":
		r.dashboards = append(r.dashboards, strict[grafanaDashboard](t, document))
	case "CustomResourceDefinition":
		var crd metav1.PartialObjectMetadata
		if err := sigsyaml.Unmarshal(document, &crd); err != nil {
			t.Fatal(err)
		}
		r.crds = append(r.crds, crd)
	default:
		t.Fatalf("a %s is rendered that no test looks at", kind)
	}
}

// strict decodes a document and refuses fields that the type does not have, and doubled ones.
func strict[T any](t *testing.T, document []byte) T {
	t.Helper()
	var object T
	if err := sigsyaml.UnmarshalStrict(document, &object); err != nil {
		t.Fatalf("%v in\n%s", err, document)
	}
	return object
}

func (r rendering) rules() []rbacv1.PolicyRule {
	var rules []rbacv1.PolicyRule
	for _, role := range r.roles {
		rules = append(rules, role.Rules...)
	}
	for _, role := range r.clusterRoles {
		rules = append(rules, role.Rules...)
	}
	return rules
}

func (r rendering) deployment(t *testing.T) appsv1.Deployment {
	t.Helper()
	return only(t, r.deployments)
}

// only gives the one object that has to be there.
func only[T any](t *testing.T, objects []T) T {
	t.Helper()
	if len(objects) != 1 {
		t.Fatalf("%d objects of type %T, not 1", len(objects), *new(T))
	}
	return objects[0]
}
