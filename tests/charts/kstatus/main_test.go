package main

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

func TestATaskThatNobodyHasSeenYetIsInProgress(t *testing.T) {
	text, err := os.ReadFile("../../../crds/collect.dev_collecttasks.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var definition map[string]any
	if err := yaml.Unmarshal(text, &definition); err != nil {
		t.Fatal(err)
	}
	versions := definition["spec"].(map[string]any)["versions"].([]any)
	status, there, err := unstructured.NestedMap(versions[0].(map[string]any), "schema", "openAPIV3Schema", "properties", "status", "default")
	if err != nil || !there {
		t.Fatal("the definition has no default status", err)
	}
	asJSON, err := json.Marshal(status)
	if err != nil {
		t.Fatal(err)
	}
	object := `{"apiVersion":"collect.dev/v1alpha1","kind":"CollectTask","metadata":{"name":"a","generation":1},"status":` + string(asJSON) + "}\n"
	for given, want := range map[string]string{
		object: "InProgress",
		strings.Replace(object, `"status":`+string(asJSON), `"status":{}`, 1): "Current", // what the default is for
	} {
		var out bytes.Buffer
		if err := judge(strings.NewReader(given), &out); err != nil {
			t.Fatal(err)
		}
		if got, _, _ := strings.Cut(out.String(), "\t"); got != want {
			t.Errorf("%s is %s, not %s", strings.TrimSpace(given), got, want)
		}
	}
}
