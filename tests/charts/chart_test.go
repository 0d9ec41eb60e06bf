// Package charts renders the Helm chart with the real helm and checks what would reach a cluster: every object is decoded strictly
// into its Kubernetes type, and pods are judged by the code that enforces Pod Security.
//
// HELM names the helm binary; `make chart-test` sets it.
package charts

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
	sigsyaml "sigs.k8s.io/yaml"
)

func TestTheChartIsCleanToHelmLint(t *testing.T) {
	if out, err := helm(t, "lint", "--strict", chart); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func TestPodsMeetTheRestrictedPodSecurityStandard(t *testing.T) {
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	restricted := api.LevelVersion{Level: api.LevelRestricted, Version: api.LatestVersion()}
	for name, r := range renderings(t) {
		operator, check := r.deployment(t).Spec.Template, only(t, r.pods)
		for _, pod := range []corev1.PodTemplateSpec{operator, {ObjectMeta: check.ObjectMeta, Spec: check.Spec}} {
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

func TestTheFieldsOfEveryValueReachTheOperator(t *testing.T) {
	r := renderChart(t, withSamples, everything)
	deployment := r.deployment(t)
	pod := deployment.Spec.Template.Spec
	operator := pod.Containers[0]
	if operator.Image != "registry.example/operator@sha256:0123456789012345678901234567890123456789012345678901234567890123" {
		t.Errorf("image %s", operator.Image)
	}
	want := []string{
		"run", "--http-listen=0.0.0.0:9090", "--endpoint-listen=0.0.0.0:9443", "--endpoint-url=https://operator.example:9443",
		"--endpoint-tls-dir=/etc/collect/tls", "--worker-image=registry.example/worker:v1", "--worker-image-pull-policy=Never",
		"--no-lease", "--log-format=text", "--further",
	}
	if !slices.Equal(operator.Args, want) {
		t.Errorf("args %q", operator.Args)
	}
	if *deployment.Spec.Replicas != 2 || *deployment.Spec.RevisionHistoryLimit != 1 ||
		deployment.Spec.Strategy.RollingUpdate.MaxUnavailable.IntValue() != 1 {
		t.Errorf("deployment %+v", deployment.Spec)
	}
	if pod.ServiceAccountName != "collector" || pod.PriorityClassName != "high" || pod.SchedulerName != "second" ||
		*pod.RuntimeClassName != "gvisor" || *pod.TerminationGracePeriodSeconds != 60 ||
		pod.NodeSelector["kubernetes.io/os"] != "linux" || len(pod.Tolerations) != 1 || len(pod.ImagePullSecrets) != 1 ||
		pod.Affinity == nil || pod.TopologySpreadConstraints[0].MaxSkew != 2 || *pod.SecurityContext.RunAsUser != 1000 {
		t.Errorf("pod %+v", pod)
	}
	if operator.StartupProbe.FailureThreshold != 60 || operator.LivenessProbe.InitialDelaySeconds != 5 ||
		operator.ReadinessProbe.PeriodSeconds != 7 {
		t.Errorf("probes %+v %+v %+v", operator.StartupProbe, operator.LivenessProbe, operator.ReadinessProbe)
	}
	traced := corev1.EnvVar{Name: "OTEL_EXPORTER_OTLP_ENDPOINT", Value: "http://collector.example:4318"}
	if !slices.Contains(operator.Env, traced) {
		t.Errorf("variables %+v", operator.Env)
	}
	if operator.Env[len(operator.Env)-1].Name != "RUST_LOG" || operator.VolumeMounts[1].MountPath != "/etc/ssl/certs" ||
		pod.Volumes[1].ConfigMap.Name != "roots" || operator.SecurityContext.Privileged == nil {
		t.Errorf("container %+v", operator)
	}
	if len(r.roles) != 0 || len(r.leases) != 0 {
		t.Error("a lease, or a Role for it, that is off")
	}
}

func TestAKeyThatTheChartHasItselfIsNotGivenTwice(t *testing.T) {
	// The values name keys of the chart again; documents with doubled keys do not even decode.
	r := renderChart(t, withSamples, everything)
	pod := r.deployment(t).Spec.Template
	if pod.Labels["app.kubernetes.io/name"] != "cope" || pod.Labels["app.kubernetes.io/instance"] != "collect-operator" ||
		pod.Labels["c"] != "d" || pod.Labels["team"] != "data" || pod.Annotations["checksum/tls"] == "mine" || pod.Annotations["a"] != "b" {
		t.Errorf("labels %v, annotations %v", pod.Labels, pod.Annotations)
	}
	for _, document := range documents(t, r.text) {
		var object metav1.PartialObjectMetadata
		if err := sigsyaml.Unmarshal(document, &object); err != nil {
			t.Fatal(err)
		}
		name := map[string]string{"Pod": "cope-check"}[object.Kind]
		if name == "" {
			name = "cope"
		}
		if object.Kind != "" && (object.Labels["team"] != "data" || object.Labels["app.kubernetes.io/name"] != name) {
			t.Errorf("%s %s has the labels %v", object.Kind, object.Name, object.Labels)
		}
	}
}

func TestTheLeaseIsTheOneThatTheOperatorHoldsAndGoesWithTheRelease(t *testing.T) {
	r := render(t, "")
	lease := only(t, r.leases)
	if args := r.deployment(t).Spec.Template.Spec.Containers[0].Args; !slices.Contains(args, "--lease-name="+lease.Name) || lease.Namespace != namespace {
		t.Errorf("the lease is %s, the operator is told %v", lease.Name, args)
	}
	// What the operator writes, helm must not own.
	if lease.Spec != (coordinationv1.LeaseSpec{}) || lease.Annotations["helm.sh/resource-policy"] != "" {
		t.Errorf("%+v", lease)
	}
}

func TestAFieldOfASecurityContextCanBeLeftToTheCluster(t *testing.T) {
	context := render(t, "podSecurityContext: {runAsUser: null, runAsGroup: null, fsGroup: null}").deployment(t).Spec.Template.Spec.SecurityContext
	if context.RunAsUser != nil || context.RunAsGroup != nil || context.FSGroup != nil || !*context.RunAsNonRoot {
		t.Errorf("%+v", context)
	}
}

func TestReplicasAreSpreadAndKeptFromBeingDrainedAtOnce(t *testing.T) {
	r := render(t, highlyAvailable)
	deployment := r.deployment(t)
	var over []string
	for _, spread := range deployment.Spec.Template.Spec.TopologySpreadConstraints {
		over = append(over, spread.TopologyKey)
		if spread.MaxSkew != 1 || spread.WhenUnsatisfiable != corev1.ScheduleAnyway ||
			!maps.Equal(spread.LabelSelector.MatchLabels, deployment.Spec.Selector.MatchLabels) ||
			!slices.Equal(spread.MatchLabelKeys, []string{"pod-template-hash"}) {
			t.Errorf("%+v", spread)
		}
	}
	if !slices.Equal(over, []string{"kubernetes.io/hostname", "topology.kubernetes.io/zone"}) {
		t.Errorf("replicas are spread over %v", over)
	}
	budget := only(t, r.budgets)
	if budget.Spec.MaxUnavailable.IntValue() != 1 || !maps.Equal(budget.Spec.Selector.MatchLabels, deployment.Spec.Selector.MatchLabels) {
		t.Errorf("%+v", budget.Spec)
	}
}

func TestADisruptionBudgetComesWithASecondReplicaOrWhenAskedFor(t *testing.T) {
	for values, want := range map[string]int{
		"":                                     0,
		"replicas: 0":                          0,
		"replicas: 2":                          1,
		"podDisruptionBudget: {enabled: true}": 1,
		"replicas: 2\npodDisruptionBudget: {enabled: false}": 0,
	} {
		if got := len(render(t, values).budgets); got != want {
			t.Errorf("%q gives %d budgets", values, got)
		}
	}
}

func TestTheNetworkPolicyLetsThroughWhatIsNeededAndNothingElse(t *testing.T) {
	if r := render(t, ""); len(r.networkPolicies) != 0 {
		t.Error("a NetworkPolicy that nobody asked for")
	}
	r := render(t, "networkPolicy: {enabled: true}")
	spec := only(t, r.networkPolicies).Spec
	if !maps.Equal(spec.PodSelector.MatchLabels, r.deployment(t).Spec.Selector.MatchLabels) {
		t.Errorf("it is for %v", spec.PodSelector)
	}
	got, err := json.Marshal(map[string]any{"types": spec.PolicyTypes, "in": spec.Ingress, "out": spec.Egress})
	if err != nil {
		t.Fatal(err)
	}
	const anyPod = `"from":[{"namespaceSelector":{}}]`
	test := func(ports, name string) string {
		return `{"ports":` + ports + `,"from":[{"podSelector":{"matchLabels":{"app.kubernetes.io/instance":"collect-operator","app.kubernetes.io/name":"` + name + `"}}}]}`
	}
	want := `{"in":[{"ports":[{"port":8443}],` + anyPod + `},{"ports":[{"port":8080}],` + anyPod + `},` +
		test(`[{"port":8443},{"port":8080}]`, "collect-operator-check") + `],` +
		`"out":[{"ports":[{"protocol":"UDP","port":53},{"protocol":"TCP","port":53}]},{"ports":[{"port":443},{"port":6443}]}],` +
		`"types":["Ingress","Egress"]}`
	if string(got) != want {
		t.Errorf("it lets through\n%s\nnot\n%s", got, want)
	}

	changed := only(t, renderChart(t, withSamples, everything).networkPolicies).Spec
	got, err = json.Marshal(map[string]any{"in": changed.Ingress, "out": changed.Egress})
	if err != nil {
		t.Fatal(err)
	}
	want = `{"in":[{"ports":[{"port":9443}],"from":[{"namespaceSelector":{"matchLabels":{"team":"data"}}}]},{"ports":[{"port":9090}]},` +
		test(`[{"port":9443},{"port":9090}]`, "cope-check") + `,{"ports":[{"port":1}]}],` +
		`"out":[{"ports":[{"protocol":"UDP","port":53},{"protocol":"TCP","port":53},{"protocol":"UDP","port":5353},{"protocol":"TCP","port":5353}],` +
		`"to":[{"namespaceSelector":{}}]},{"ports":[{"port":8443}],"to":[{"ipBlock":{"cidr":"192.0.2.0/24"}}]},{"ports":[{"port":9318}],"to":[{"namespaceSelector":{}}]},{"ports":[{"port":2}]}]}`
	if string(got) != want {
		t.Errorf("it lets through\n%s\nnot\n%s", got, want)
	}
}

func TestWithoutTheCheckNothingOfItIsLeft(t *testing.T) {
	r := render(t, "check: {enabled: false}\nnetworkPolicy: {enabled: true}")
	if len(r.pods) != 0 || len(only(t, r.networkPolicies).Spec.Ingress) != 2 {
		t.Errorf("%d pods, %+v", len(r.pods), r.networkPolicies)
	}
}

func TestTheCheckAsksTheOperatorWhereItsWorkersDo(t *testing.T) {
	for name, want := range map[string][]string{
		"defaults": {"check", "--http-url=http://collect-operator.collect-system.svc:8080",
			"--endpoint-url=https://collect-operator.collect-system.svc:8443", "--endpoint-ca=/etc/collect/tls/ca.crt"},
		"everything": {"check", "--http-url=http://co.collect-system.svc:9090", "--endpoint-url=https://operator.example:9443",
			"--endpoint-ca=/etc/collect/tls/ca.crt"},
	} {
		r := renderings(t)[name]
		operator, pod := r.deployment(t).Spec.Template.Spec, only(t, r.pods)
		check := pod.Spec.Containers[0]
		if !slices.Equal(check.Args, want) || check.Image != operator.Containers[0].Image {
			t.Errorf("%s: %s %q", name, check.Image, check.Args)
		}
		if pod.Spec.ServiceAccountName != operator.ServiceAccountName || pod.Spec.RestartPolicy != corev1.RestartPolicyNever ||
			!maps.Equal(pod.Spec.NodeSelector, operator.NodeSelector) || len(pod.Spec.Tolerations) != len(operator.Tolerations) ||
			pod.Spec.PriorityClassName != operator.PriorityClassName {
			t.Errorf("%s: it is not placed as the operator is: %+v", name, pod.Spec)
		}
		secret := pod.Spec.Volumes[0].Secret
		if secret.SecretName != operator.Volumes[0].Secret.SecretName || len(secret.Items) != 1 || secret.Items[0].Key != "ca.crt" {
			t.Errorf("%s: it gets %+v", name, secret)
		}
		if pod.Annotations["helm.sh/hook"] != "test" || pod.Annotations["helm.sh/hook-delete-policy"] != "before-hook-creation,hook-succeeded,hook-failed" {
			t.Errorf("%s: helm is told %v", name, pod.Annotations)
		}
	}
	if pod := only(t, renderings(t)["everything"].pods); pod.Annotations["sidecar.istio.io/inject"] != "false" || pod.Spec.Containers[0].Resources.Limits.Memory().String() != "64Mi" {
		t.Errorf("%v %v", pod.Annotations, pod.Spec.Containers[0].Resources)
	}
}

func TestTheCheckIsNotTakenForAnOperator(t *testing.T) {
	for name, r := range renderings(t) {
		pod := labels.Set(only(t, r.pods).Labels)
		selectors := map[string]map[string]string{
			"Service": only(t, r.services).Spec.Selector, "Deployment": r.deployment(t).Spec.Selector.MatchLabels,
		}
		for _, budget := range r.budgets {
			selectors["PodDisruptionBudget"] = budget.Spec.Selector.MatchLabels
		}
		for _, policy := range r.networkPolicies {
			selectors["NetworkPolicy"] = policy.Spec.PodSelector.MatchLabels
		}
		for kind, selector := range selectors {
			if labels.SelectorFromSet(selector).Matches(pod) {
				t.Errorf("%s: the %s selects the check", name, kind)
			}
		}
	}
}

func TestTheCertificateIsValidForTheNamesThatWorkersUse(t *testing.T) {
	secret := only(t, renderChart(t, withSamples, everything).secrets)
	// Data that sigs.k8s.io/yaml has decoded from base64 already.
	certificate, ca := parse(t, secret.Data["tls.crt"]), parse(t, secret.Data["ca.crt"])
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
		service := only(t, r.services)
		for key, value := range service.Spec.Selector {
			if deployment.Spec.Template.Labels[key] != value {
				t.Errorf("%s: no pod has %s=%s", name, key, value)
			}
		}
		for key, value := range deployment.Spec.Selector.MatchLabels {
			if deployment.Spec.Template.Labels[key] != value {
				t.Errorf("%s: the Deployment does not select its own pods", name)
			}
		}
		for _, port := range service.Spec.Ports {
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
	rendered := slices.DeleteFunc(documents(t, render(t, "").text), func(document []byte) bool {
		return kindOf(t, document) != "CustomResourceDefinition"
	})
	if len(rendered) != len(files) {
		t.Fatalf("%d of %d", len(rendered), len(files))
	}
	for i, document := range rendered {
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
