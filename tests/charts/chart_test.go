// Package charts renders the Helm chart with the real helm and checks what would reach a cluster: every object is decoded strictly
// into its Kubernetes type, and pods are judged by the code that enforces Pod Security.
//
// HELM names the helm binary; `make chart-test` sets it.
package charts

import (
	"bufio"
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
	sigsyaml "sigs.k8s.io/yaml"
)

const (
	chart     = "../../charts/collect-operator"
	namespace = "collect-system"
)

// everything is a values file that changes every value that can be changed.
const everything = `
fullnameOverride: co
replicas: 2
image: {repository: registry.example/operator, digest: "sha256:0123456789012345678901234567890123456789012345678901234567890123", pullPolicy: Always}
imagePullSecrets: [{name: pull}]
worker: {image: {repository: registry.example/worker, tag: v1, pullPolicy: Never}}
crds: {enabled: true, keep: false}
rbac: {create: true, aggregate: true}
serviceAccount: {create: true, name: collector, annotations: {example.dev/role: reader}}
endpoint:
  port: 9443
  url: https://operator.example:9443
  tls: {extraSANs: [operator.example, 192.0.2.7], validityDays: 30}
http: {port: 9090}
lease: {enabled: false}
log: {format: text}
service: {annotations: {prometheus.io/scrape: "true"}}
resources: {requests: {cpu: 1, memory: 128Mi}, limits: {cpu: "2", memory: 512Mi}}
terminationGracePeriodSeconds: 60
podAnnotations: {a: b}
podLabels: {c: d}
nodeSelector: {kubernetes.io/os: linux}
tolerations: [{key: k, operator: Exists}]
affinity: {nodeAffinity: {}}
priorityClassName: high
extraEnv: [{name: RUST_LOG, value: debug}]
`

// rendering is what one set of values renders to, by type.
type rendering struct {
	text         string
	deployments  []appsv1.Deployment
	services     []corev1.Service
	secrets      []corev1.Secret
	accounts     []corev1.ServiceAccount
	roles        []rbacv1.Role
	clusterRoles []rbacv1.ClusterRole
	bindings     []rbacv1.RoleBinding
	crds         []metav1.PartialObjectMetadata
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

func template(t *testing.T, values string) (string, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "values.yaml")
	if err := os.WriteFile(file, []byte(values), 0o600); err != nil {
		t.Fatal(err)
	}
	return helm(t, "template", "collect-operator", chart, "--namespace", namespace, "--values", file)
}

func render(t *testing.T, values string) rendering {
	t.Helper()
	out, err := template(t, values)
	if err != nil {
		t.Fatalf("helm template: %v\n%s", err, out)
	}
	r := rendering{text: out}
	reader := yaml.NewYAMLReader(bufio.NewReader(strings.NewReader(out)))
	for {
		document, err := reader.Read()
		if err == io.EOF {
			return r
		}
		if err != nil {
			t.Fatal(err)
		}
		r.add(t, document)
	}
}

func (r *rendering) add(t *testing.T, document []byte) {
	t.Helper()
	var meta metav1.TypeMeta
	if err := sigsyaml.Unmarshal(document, &meta); err != nil {
		t.Fatalf("%v in\n%s", err, document)
	}
	switch meta.Kind {
	case "": // a comment
	case "Deployment":
		r.deployments = append(r.deployments, strict[appsv1.Deployment](t, document))
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
	case "CustomResourceDefinition":
		var crd metav1.PartialObjectMetadata
		if err := sigsyaml.Unmarshal(document, &crd); err != nil {
			t.Fatal(err)
		}
		r.crds = append(r.crds, crd)
	default:
		t.Fatalf("a %s is rendered that no test looks at", meta.Kind)
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

func (r *rendering) rules() []rbacv1.PolicyRule {
	var rules []rbacv1.PolicyRule
	for _, role := range r.roles {
		rules = append(rules, role.Rules...)
	}
	for _, role := range r.clusterRoles {
		rules = append(rules, role.Rules...)
	}
	return rules
}

func (r *rendering) deployment(t *testing.T) appsv1.Deployment {
	t.Helper()
	if len(r.deployments) != 1 {
		t.Fatalf("%d Deployments", len(r.deployments))
	}
	return r.deployments[0]
}

// renderings are the three that every general rule must hold for.
func renderings(t *testing.T) map[string]rendering {
	t.Helper()
	return map[string]rendering{
		"defaults":   render(t, ""),
		"namespaced": render(t, "watchNamespace: team"),
		"everything": render(t, everything),
	}
}

func TestTheChartIsCleanToHelmLint(t *testing.T) {
	if out, err := helm(t, "lint", "--strict", chart); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func TestNoRoleHasARightOnSecretsOrOnEverything(t *testing.T) {
	for name, r := range renderings(t) {
		rules := r.rules()
		if len(rules) == 0 {
			t.Errorf("%s: no rules at all", name)
		}
		for _, rule := range rules {
			for _, resource := range rule.Resources {
				if resource == "*" || strings.HasPrefix(resource, "secrets") || strings.HasPrefix(resource, "pods/") {
					t.Errorf("%s: a role may %v %s", name, rule.Verbs, resource)
				}
			}
			if slices.Contains(rule.Verbs, "*") || slices.Contains(rule.APIGroups, "*") {
				t.Errorf("%s: a role holds a wildcard: %v", name, rule)
			}
			for _, verb := range []string{"escalate", "bind", "impersonate"} {
				if slices.Contains(rule.Verbs, verb) {
					t.Errorf("%s: a role may %s", name, verb)
				}
			}
		}
	}
}

func TestPodsMeetTheRestrictedPodSecurityStandard(t *testing.T) {
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	restricted := api.LevelVersion{Level: api.LevelRestricted, Version: api.LatestVersion()}
	for name, r := range renderings(t) {
		pod := r.deployment(t).Spec.Template
		result := policy.AggregateCheckResults(evaluator.EvaluatePod(restricted, &pod.ObjectMeta, &pod.Spec))
		if !result.Allowed {
			t.Errorf("%s: %s", name, result.ForbiddenDetail())
		}
		for _, container := range pod.Spec.Containers {
			if root := container.SecurityContext.ReadOnlyRootFilesystem; root == nil || !*root {
				t.Errorf("%s: the root file system of %s can be written", name, container.Name)
			}
			if container.Resources.Limits.Memory().IsZero() || container.Resources.Requests.Cpu().IsZero() {
				t.Errorf("%s: %s has no memory limit or no CPU request", name, container.Name)
			}
		}
	}
}

func TestSamplesOfTheDemoMeetTheRestrictedPodSecurityStandard(t *testing.T) {
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	restricted := api.LevelVersion{Level: api.LevelRestricted, Version: api.LatestVersion()}
	for _, file := range []string{"registry", "s3"} {
		text, err := os.ReadFile("../demo/manifests/" + file + ".yaml")
		if err != nil {
			t.Fatal(err)
		}
		var r rendering
		for _, document := range bytes.Split(text, []byte("\n---\n")) {
			r.add(t, document)
		}
		pod := r.deployment(t).Spec.Template
		if result := policy.AggregateCheckResults(evaluator.EvaluatePod(restricted, &pod.ObjectMeta, &pod.Spec)); !result.Allowed {
			t.Errorf("%s: %s", file, result.ForbiddenDetail())
		}
	}
}

func TestANamespacedOperatorHasNoRightElsewhereButToAskWhoAWorkerIs(t *testing.T) {
	r := render(t, "watchNamespace: team\nrbac: {aggregate: false}")
	if len(r.clusterRoles) != 1 {
		t.Fatalf("%d ClusterRoles", len(r.clusterRoles))
	}
	for _, rule := range r.clusterRoles[0].Rules {
		if !slices.Equal(rule.Resources, []string{"tokenreviews"}) || !slices.Equal(rule.Verbs, []string{"create"}) {
			t.Errorf("the ClusterRole may %v %v", rule.Verbs, rule.Resources)
		}
	}
	var homes []string
	for _, role := range r.roles {
		homes = append(homes, role.Namespace)
	}
	slices.Sort(homes)
	if !slices.Equal(homes, []string{namespace, "team"}) {
		t.Errorf("Roles in %v", homes)
	}
	if args := r.deployment(t).Spec.Template.Spec.Containers[0].Args; !slices.Contains(args, "--namespace=team") {
		t.Errorf("the operator is run with %v", args)
	}
}

func TestBothModesGiveTheSameRights(t *testing.T) {
	everywhere, one := render(t, "rbac: {aggregate: false}"), render(t, "watchNamespace: team\nrbac: {aggregate: false}")
	if a, b := everywhere.rules(), one.rules(); len(a) != len(b) {
		t.Errorf("%d rules in all namespaces, %d in one", len(a), len(b))
	}
}

func TestTheFieldsOfEveryValueReachTheOperator(t *testing.T) {
	r := render(t, everything)
	deployment := r.deployment(t)
	pod := deployment.Spec.Template.Spec
	if got := pod.Containers[0].Image; got != "registry.example/operator@sha256:0123456789012345678901234567890123456789012345678901234567890123" {
		t.Errorf("image %s", got)
	}
	want := []string{
		"run", "--http-listen=0.0.0.0:9090", "--endpoint-listen=0.0.0.0:9443", "--endpoint-url=https://operator.example:9443",
		"--endpoint-tls-dir=/etc/collect/tls", "--worker-image=registry.example/worker:v1", "--worker-image-pull-policy=Never",
		"--no-lease", "--log-format=text",
	}
	if !slices.Equal(pod.Containers[0].Args, want) {
		t.Errorf("args %q", pod.Containers[0].Args)
	}
	if *deployment.Spec.Replicas != 2 || pod.ServiceAccountName != "collector" || pod.PriorityClassName != "high" ||
		*pod.TerminationGracePeriodSeconds != 60 || pod.NodeSelector["kubernetes.io/os"] != "linux" || len(pod.Tolerations) != 1 ||
		len(pod.ImagePullSecrets) != 1 || pod.Affinity == nil {
		t.Errorf("pod %+v", pod)
	}
	if env := pod.Containers[0].Env; env[len(env)-1].Name != "RUST_LOG" {
		t.Errorf("env %v", env)
	}
	if len(r.roles) != 0 {
		t.Error("a Role for a lease that is off")
	}
}

func TestTheCertificateIsValidForTheNamesThatWorkersUse(t *testing.T) {
	r := render(t, everything)
	if len(r.secrets) != 1 {
		t.Fatalf("%d Secrets", len(r.secrets))
	}
	// Data that sigs.k8s.io/yaml has decoded from base64 already.
	certificate, ca := parse(t, r.secrets[0].Data["tls.crt"]), parse(t, r.secrets[0].Data["ca.crt"])
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	for _, host := range []string{"co", "co.collect-system", "co.collect-system.svc", "co.collect-system.svc.cluster.local", "operator.example", "192.0.2.7"} {
		if _, err := certificate.Verify(x509.VerifyOptions{DNSName: host, Roots: roots}); err != nil {
			t.Errorf("%s: %v", host, err)
		}
	}
}

func parse(t *testing.T, text []byte) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(text)
	if block == nil {
		t.Fatalf("no PEM: %s", base64.StdEncoding.EncodeToString(text))
	}
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return certificate
}

func TestASecretOfOnesOwnTakesTheCertificatesPlace(t *testing.T) {
	r := render(t, "endpoint: {tls: {secretName: mine}}")
	if len(r.secrets) != 0 {
		t.Error("a Secret is made all the same")
	}
	if got := r.deployment(t).Spec.Template.Spec.Volumes[0].Secret.SecretName; got != "mine" {
		t.Errorf("secret %s is mounted", got)
	}
}

func TestTheServiceLeadsToThePods(t *testing.T) {
	for name, r := range renderings(t) {
		deployment := r.deployment(t)
		for key, value := range r.services[0].Spec.Selector {
			if deployment.Spec.Template.Labels[key] != value {
				t.Errorf("%s: no pod has %s=%s", name, key, value)
			}
		}
		for key, value := range deployment.Spec.Selector.MatchLabels {
			if deployment.Spec.Template.Labels[key] != value {
				t.Errorf("%s: the Deployment does not select its own pods", name)
			}
		}
		for _, port := range r.services[0].Spec.Ports {
			there := func(p corev1.ContainerPort) bool {
				return p.Name == port.TargetPort.StrVal && p.ContainerPort == port.Port
			}
			if !slices.ContainsFunc(deployment.Spec.Template.Spec.Containers[0].Ports, there) {
				t.Errorf("%s: port %s leads nowhere", name, port.Name)
			}
		}
	}
}

func TestTheCustomResourcesAreThoseOfTheRepository(t *testing.T) {
	files, err := filepath.Glob("../../crds/*.yaml")
	if err != nil || len(files) != 3 {
		t.Fatal(files, err)
	}
	r := render(t, "")
	if len(r.crds) != len(files) {
		t.Fatalf("%d of %d", len(r.crds), len(files))
	}
	for i, document := range documents(t, r.text, "CustomResourceDefinition") {
		text, err := os.ReadFile(files[i])
		if err != nil {
			t.Fatal(err)
		}
		var want, got map[string]any
		if sigsyaml.Unmarshal(text, &want) != nil || sigsyaml.Unmarshal(document, &got) != nil {
			t.Fatal("no YAML")
		}
		metadata := got["metadata"].(map[string]any)
		if metadata["annotations"].(map[string]any)["helm.sh/resource-policy"] != "keep" {
			t.Errorf("%s goes with the release", files[i])
		}
		delete(metadata, "annotations")
		delete(metadata, "labels")
		a, _ := json.Marshal(want)
		b, _ := json.Marshal(got)
		if !bytes.Equal(a, b) {
			t.Errorf("%s differs from the chart's; run `make crds`", files[i])
		}
	}
}

func documents(t *testing.T, text, kind string) [][]byte {
	t.Helper()
	var found [][]byte
	reader := yaml.NewYAMLReader(bufio.NewReader(strings.NewReader(text)))
	for {
		document, err := reader.Read()
		if err == io.EOF {
			return found
		}
		if err != nil {
			t.Fatal(err)
		}
		var meta metav1.TypeMeta
		if sigsyaml.Unmarshal(document, &meta) == nil && meta.Kind == kind {
			found = append(found, document)
		}
	}
}

func TestTheCustomResourcesCanBeLeftOutOrLetGo(t *testing.T) {
	if r := render(t, "crds: {enabled: false}"); len(r.crds) != 0 {
		t.Error("custom resources in spite of crds.enabled: false")
	}
	for _, crd := range render(t, "crds: {keep: false}").crds {
		if _, kept := crd.Annotations["helm.sh/resource-policy"]; kept {
			t.Errorf("%s is kept in spite of crds.keep: false", crd.Name)
		}
	}
}

func TestAValueThatIsNotThereIsRefused(t *testing.T) {
	for values, word := range map[string]string{
		"replica: 2":                        "replica",
		"image: {tga: v1}":                  "tga",
		"endpoint: {tls: {sans: [a]}}":      "sans",
		"image: {pullPolicy: Sometimes}":    "pullPolicy",
		"endpoint: {url: http://plain}":     "url",
		"endpoint: {port: 80}":              "port",
		"watchNamespace: a,b":               "watchNamespace",
		"resources: {request: {cpu: 1}}":    "request",
		"serviceAccount: {create: false}":   "serviceAccount.name",
		"log: {format: xml}":                "format",
		"image: {digest: 'sha256:beef'}":    "digest",
		"worker: {image: {repository: ''}}": "repository",
	} {
		out, err := template(t, values)
		if err == nil {
			t.Errorf("%s is accepted", values)
		} else if !strings.Contains(out, word) {
			t.Errorf("%s: the message does not say what: %s", values, out)
		}
	}
}
