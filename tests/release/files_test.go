package release

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"io"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

const platform = "linux_" + runtime.GOARCH

// member is a file of an archive.
type member struct {
	mode int64
	data []byte
}

// untar gives the plain files of an archive, which belong to nobody in particular.
func untar(t *testing.T, archive io.Reader) map[string]member {
	t.Helper()
	all := map[string]member{}
	reader := tar.NewReader(archive)
	for {
		header, err := reader.Next()
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		if header.Uid != 0 || header.Gid != 0 || header.Uname != "" {
			t.Errorf("%s belongs to %d %s", header.Name, header.Uid, header.Uname)
		}
		data, err := io.ReadAll(reader)
		if err != nil {
			t.Fatal(err)
		}
		if header.Typeflag == tar.TypeReg {
			all[header.Name] = member{header.Mode, data}
		}
	}
}

func untargz(t *testing.T, name string) map[string]member {
	t.Helper()
	unpacked, err := gzip.NewReader(bytes.NewReader(read(t, made.folder, name)))
	if err != nil {
		t.Fatal(err)
	}
	return untar(t, unpacked)
}

// sameFiles compares members of an archive with files of the repository.
func sameFiles(t *testing.T, all map[string]member, prefix, folder, pattern string) {
	t.Helper()
	sources, err := filepath.Glob(filepath.Join(made.tree, folder, pattern))
	if err != nil || len(sources) == 0 {
		t.Fatalf("%s/%s: %v", folder, pattern, err)
	}
	for _, source := range sources {
		name := prefix + filepath.Base(source)
		if found, there := all[name]; !there || !bytes.Equal(found.data, read(t, source)) {
			t.Errorf("%s is missing or another", name)
		}
	}
}

func chartArchive() string {
	return filepath.Join(made.folder, "collect-operator-"+made.version+".tgz")
}

func helm(t *testing.T, args ...string) string {
	t.Helper()
	return run(t, ".", "env", append([]string{"HELM_CACHE_HOME=" + t.TempDir(), kube(t), "helm"}, args...)...)
}

func TestTheChartInstallsFromItsArchive(t *testing.T) {
	rendered := helm(t, "template", "release", chartArchive(), "--namespace", "collect-system")
	var kinds []string
	for _, document := range strings.Split(rendered, "\n---\n") {
		var object struct{ Kind string }
		if err := yaml.Unmarshal([]byte(document), &object); err != nil {
			t.Fatal(err)
		}
		kinds = append(kinds, object.Kind)
	}
	for _, kind := range []string{"CustomResourceDefinition", "Deployment", "Service", "ServiceAccount", "ClusterRole"} {
		if !slices.Contains(kinds, kind) {
			t.Errorf("there is no %s among %v", kind, kinds)
		}
	}
	for _, image := range []string{"operator", "worker"} {
		if !strings.Contains(rendered, "docker.io/local/"+image+":"+made.version) {
			t.Errorf("the chart does not run %s of this version", image)
		}
	}
	all := untargz(t, filepath.Base(chartArchive()))
	sameFiles(t, all, "collect-operator/files/crds/", "crds", "*.yaml")
	sameFiles(t, all, "collect-operator/files/dashboards/", "deploy/dashboards", "*.json")
	sameFiles(t, all, "collect-operator/templates/", "charts/collect-operator/templates", "*.*")
	sameFiles(t, all, "collect-operator/templates/tests/", "charts/collect-operator/templates/tests", "*.yaml")
}

func TestTheDefinitionsAreThoseOfTheRepository(t *testing.T) {
	bundle := read(t, made.folder, "collect-operator-crds-"+made.version+".yaml")
	all := map[string]member{}
	for _, document := range bytes.Split(bundle, []byte("---\n"))[1:] {
		var definition struct {
			Kind string
			Spec struct{ Names struct{ Plural string } }
		}
		if err := yaml.Unmarshal(document, &definition); err != nil || definition.Kind != "CustomResourceDefinition" {
			t.Fatalf("%s: %v", definition.Kind, err)
		}
		all["collect.dev_"+definition.Spec.Names.Plural+".yaml"] = member{data: document}
	}
	sameFiles(t, all, "", "crds", "*.yaml")
}

func TestTheMonitoringArchiveHasRulesAndDashboards(t *testing.T) {
	all := untargz(t, "collect-operator-monitoring-"+made.version+".tar.gz")
	sameFiles(t, all, "alerts/", "deploy/alerts", "*")
	sameFiles(t, all, "dashboards/", "deploy/dashboards", "*")
}
