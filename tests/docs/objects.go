package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	strictjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// kinds are the Kubernetes objects that pages show; each is decoded strictly.
var kinds = map[string]func() any{
	"v1 ConfigMap":                             func() any { return &corev1.ConfigMap{} },
	"v1 Namespace":                             func() any { return &corev1.Namespace{} },
	"v1 PersistentVolumeClaim":                 func() any { return &corev1.PersistentVolumeClaim{} },
	"v1 ResourceQuota":                         func() any { return &corev1.ResourceQuota{} },
	"v1 Secret":                                func() any { return &corev1.Secret{} },
	"v1 ServiceAccount":                        func() any { return &corev1.ServiceAccount{} },
	"apps/v1 Deployment":                       func() any { return &appsv1.Deployment{} },
	"batch/v1 CronJob":                         func() any { return &batchv1.CronJob{} },
	"batch/v1 Job":                             func() any { return &batchv1.Job{} },
	"networking.k8s.io/v1 NetworkPolicy":       func() any { return &networkingv1.NetworkPolicy{} },
	"rbac.authorization.k8s.io/v1 Role":        func() any { return &rbacv1.Role{} },
	"rbac.authorization.k8s.io/v1 RoleBinding": func() any { return &rbacv1.RoleBinding{} },
	"rbac.authorization.k8s.io/v1 ClusterRole": func() any { return &rbacv1.ClusterRole{} },
}

// base is what a fragment of a spec is laid over, so that it can be judged as a whole task.
const base = `
apiVersion: collect.dev/v1alpha1
kind: CollectTask
metadata: {name: fragment}
spec:
  source: {http: {url: "https://weather.example/stations"}}
  record: {key: [id]}
  sink: {objectStore: {url: "s3://lake/stations"}}
`

// wrongObjects names what an API server, the chart or a parser would refuse in the yaml and json blocks.
//
//	yaml               objects, or fragments of a CollectTask's spec
//	yaml values        values of the chart
//	yaml illustrative  of other tools: only has to be YAML
//	json               one value, or one on each line
func wrongObjects(all []page, api map[string]resource, values map[string]any) []string {
	var problems []string
	for _, p := range all {
		for _, b := range p.blocks() {
			var found []string
			switch {
			case b.is("yaml"):
				found = wrongYAML(b, api, values)
			case b.is("json"):
				found = wrongJSON(b.text)
			}
			for _, problem := range found {
				problems = append(problems, fmt.Sprintf("%s:%d: %s", b.page, b.line, problem))
			}
		}
	}
	return problems
}

var divider = regexp.MustCompile(`(?m)^---\s*$`)

func wrongYAML(b block, api map[string]resource, values map[string]any) []string {
	var problems []string
	for _, text := range divider.Split(b.text, -1) {
		if strings.TrimSpace(text) == "" {
			continue
		}
		asJSON, err := yaml.YAMLToJSONStrict([]byte(text))
		if err != nil {
			problems = append(problems, err.Error())
			continue
		}
		// Whole numbers stay whole, as in an API server.
		var document any
		if err := utiljson.Unmarshal(asJSON, &document); err != nil {
			problems = append(problems, err.Error())
			continue
		}
		object, isMap := document.(map[string]any)
		switch {
		case b.kind() == "illustrative":
		case b.kind() != "" && b.kind() != "values":
			problems = append(problems, fmt.Sprintf("`yaml %s` is no kind of block; use yaml, yaml values or yaml illustrative", b.kind()))
		case !isMap:
			problems = append(problems, "it is no object; mark the block `yaml illustrative` if that is meant")
		case b.kind() == "values":
			problems = append(problems, unknownValues(values, object, nil)...)
		default:
			problems = append(problems, wrongObject(asJSON, object, api)...)
		}
	}
	return problems
}

func wrongObject(text []byte, object map[string]any, api map[string]resource) []string {
	kind, _ := object["kind"].(string)
	version, _ := object["apiVersion"].(string)
	if kind == "" {
		return wrongFragment(object, api)
	}
	if strings.HasPrefix(version, "collect.dev/") {
		resource, known := api[kind]
		if !known || version != "collect.dev/"+resource.definition.Spec.Versions[0].Name {
			return []string{fmt.Sprintf("there is no %s of %s", kind, version)}
		}
		metadata, _ := object["metadata"].(map[string]any)
		if name, _ := metadata["name"].(string); name == "" {
			return []string{"it has no metadata.name"}
		}
		return resource.refusals(object)
	}
	empty, known := kinds[version+" "+kind]
	if !known {
		return []string{fmt.Sprintf("nothing is known here of %s of %s; mark the block `yaml illustrative`", kind, version)}
	}
	problems, err := strictjson.UnmarshalStrict(text, empty())
	if err != nil {
		problems = append(problems, err)
	}
	var words []string
	for _, problem := range problems {
		words = append(words, problem.Error())
	}
	return words
}

// wrongFragment judges a part of a CollectTask: `spec:`, or fields of it. What the API needs besides is taken from base.
func wrongFragment(object map[string]any, api map[string]resource) []string {
	task := api["CollectTask"]
	spec := task.schema.Properties["spec"]
	for _, key := range slices.Sorted(maps.Keys(object)) {
		if _, known := spec.Properties[key]; key != "spec" && key != "metadata" && !known {
			return []string{fmt.Sprintf("%s is no field of a CollectTask or of its spec; mark the block `yaml illustrative` if it is of something else", key)}
		}
	}
	if object["spec"] == nil && object["metadata"] == nil {
		object = map[string]any{"spec": object}
	}
	var whole map[string]any
	if err := yaml.Unmarshal([]byte(base), &whole); err != nil { // holds no numbers
		return []string{err.Error()}
	}
	lay(whole, object)
	return task.refusals(whole)
}

// lay puts one object over another, map by map.
func lay(under, over map[string]any) {
	for key, value := range over {
		inner, isMap := value.(map[string]any)
		below, wasMap := under[key].(map[string]any)
		if isMap && wasMap {
			lay(below, inner)
		} else {
			under[key] = value
		}
	}
}

func unknownValues(values, given map[string]any, path []string) []string {
	var problems []string
	for _, key := range slices.Sorted(maps.Keys(given)) {
		here := append(slices.Clone(path), key)
		if !hasValue(values, here) {
			problems = append(problems, strings.Join(here, ".")+" is no value of the chart")
		} else if inner, isMap := given[key].(map[string]any); isMap {
			problems = append(problems, unknownValues(values, inner, here)...)
		}
	}
	return problems
}

func wrongJSON(text string) []string {
	if json.Valid([]byte(text)) {
		return nil
	}
	for i, line := range strings.Split(strings.TrimSpace(text), "\n") {
		if !json.Valid([]byte(line)) {
			return []string{fmt.Sprintf("line %d is no JSON, nor is the whole", i+1)}
		}
	}
	return nil
}
