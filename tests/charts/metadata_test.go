package charts

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// annotation decodes the YAML of an Artifact Hub annotation of Chart.yaml.
func annotation[T any](t *testing.T, name string) T {
	t.Helper()
	annotations := decode(t, read(t, "Chart.yaml"))["annotations"].(map[string]any)
	text, there := annotations["artifacthub.io/"+name].(string)
	if !there {
		t.Fatalf("Chart.yaml has no annotation %s", name)
	}
	return strict[T](t, []byte(text))
}

func TestArtifactHubIsToldOfTheCustomResources(t *testing.T) {
	type crd struct{ Kind, Version, Name, DisplayName, Description string }
	var told []string
	for _, c := range annotation[[]crd](t, "crds") {
		told = append(told, "files/crds/collect.dev_"+strings.TrimSuffix(c.Name, ".collect.dev")+".yaml")
		names := definition(t, c.Kind)["spec"].(map[string]any)["names"].(map[string]any)
		if c.DisplayName != names["kind"] || c.Description == "" || c.Version != "v1alpha1" {
			t.Errorf("%+v", c)
		}
	}
	files, err := filepath.Glob(filepath.Join(chart, "files/crds/*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for i, file := range files {
		files[i], _ = filepath.Rel(chart, file)
	}
	slices.Sort(told)
	if !slices.Equal(told, files) {
		t.Errorf("it is told of %v", told)
	}
}

func TestArtifactHubIsToldOfTheImagesThatTheChartRuns(t *testing.T) {
	pod := render(t, "").deployment(t).Spec.Template.Spec.Containers[0]
	for _, i := range annotation[[]struct{ Name, Image string }](t, "images") {
		if pod.Image != i.Image && !slices.Contains(pod.Args, "--worker-image="+i.Image) {
			t.Errorf("nothing runs %s", i.Image)
		}
	}
}

func TestArtifactHubIsToldWhatHasChanged(t *testing.T) {
	for _, change := range annotation[[]struct{ Kind, Description string }](t, "changes") {
		if !slices.Contains([]string{"added", "changed", "deprecated", "removed", "fixed", "security"}, change.Kind) || change.Description == "" {
			t.Errorf("%+v", change)
		}
	}
}

func TestExamplesFitTheCustomResources(t *testing.T) {
	examples := annotation[[]map[string]any](t, "crdsExamples")
	for _, values := range []string{"replicas=1", "watchNamespace=team"} {
		_, rest, _ := strings.Cut(notes(t, values), "<<'EOF'\n")
		task, _, pasted := strings.Cut(rest, "\nEOF\n")
		if !pasted {
			t.Fatalf("the shell would not see where the task of the notes ends: %s", rest)
		}
		examples = append(examples, decode(t, []byte(task)))
	}
	for _, example := range examples {
		versions := definition(t, example["kind"].(string))["spec"].(map[string]any)["versions"].([]any)
		version := versions[0].(map[string]any)
		if example["apiVersion"] != "collect.dev/"+version["name"].(string) {
			t.Errorf("version %v", example["apiVersion"])
		}
		schema := version["schema"].(map[string]any)["openAPIV3Schema"].(map[string]any)
		for _, field := range []string{"apiVersion", "kind", "metadata"} {
			delete(example, field)
		}
		for _, wrong := range unfit(example, schema, "") {
			t.Error(wrong)
		}
	}
}

// definition is the custom resource definition of a kind.
func definition(t *testing.T, kind string) map[string]any {
	t.Helper()
	return decode(t, read(t, "files/crds/collect.dev_"+strings.ToLower(kind)+"s.yaml"))
}

// unfit names the fields of a value that a schema does not have, or requires and misses.
func unfit(value any, schema map[string]any, path string) []string {
	object, is := value.(map[string]any)
	properties, named := schema["properties"].(map[string]any)
	if !is || !named {
		return nil
	}
	var wrong []string
	for name, field := range object {
		if property, there := properties[name].(map[string]any); there {
			wrong = append(wrong, unfit(field, property, path+"."+name)...)
		} else {
			wrong = append(wrong, fmt.Sprintf("there is no %s.%s", path, name))
		}
	}
	required, _ := schema["required"].([]any)
	for _, name := range required {
		if _, there := object[name.(string)]; !there {
			wrong = append(wrong, fmt.Sprintf("%s.%s is missing", path, name))
		}
	}
	return wrong
}

func notes(t *testing.T, values ...string) string {
	t.Helper()
	args := []string{"install", "collect-operator", chart, "--namespace", namespace, "--dry-run=client"}
	for _, value := range values {
		args = append(args, "--set", value)
	}
	out, err := helm(t, args...)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	_, text, found := strings.Cut(out, "\nNOTES:\n")
	if !found {
		t.Fatal("helm prints no notes")
	}
	return text
}

func TestNotesWarnOfWhatGoesWrongLater(t *testing.T) {
	const images, crds = "which no registry has", "deletes every CollectTask"
	if text := notes(t); strings.Count(text, images) != 2 || strings.Contains(text, crds) {
		t.Errorf("by default: %s", text)
	}
	text := notes(t, "image.repository=registry.example/operator", "worker.image.pullPolicy=Never", "crds.keep=false")
	if strings.Contains(text, images) || !strings.Contains(text, crds) {
		t.Errorf("images that are there, resources that go: %s", text)
	}
}
