package release

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// kube is the program that is kubectl and helm.
func kube(t *testing.T) string {
	t.Helper()
	path := os.Getenv("KUBE")
	if path == "" {
		t.Fatal("KUBE names no program; run `make release-test`")
	}
	return path
}

func TestThePluginsArchiveHoldsAProgramThatTellsItsVersion(t *testing.T) {
	all := untargz(t, "kubectl-collect_"+platform+".tar.gz")
	if len(all) != 2 || !bytes.Equal(all["LICENSE"].data, read(t, made.tree, "LICENSE")) {
		t.Errorf("it holds %d files", len(all))
	}
	program := filepath.Join(t.TempDir(), "kubectl-collect")
	if err := os.WriteFile(program, all["kubectl-collect"].data, os.FileMode(all["kubectl-collect"].mode)); err != nil {
		t.Fatal(err)
	}
	if out := run(t, ".", program, "--version"); !strings.Contains(out, made.version) {
		t.Errorf("it says %q", out)
	}
}

// The validator of krew's own index, which has krew install the plugin from the address and compare the checksum.
func TestKrewInstallsThePluginFromItsManifest(t *testing.T) {
	bin := t.TempDir()
	run(t, ".", "go", "build", "-trimpath", "-o", filepath.Join(bin, "kubectl-krew"), "sigs.k8s.io/krew/cmd/krew")
	run(t, ".", "go", "build", "-trimpath", "-o", filepath.Join(bin, "validate"), "sigs.k8s.io/krew/cmd/validate-krew-manifest")
	if err := os.Symlink(kube(t), filepath.Join(bin, "kubectl")); err != nil {
		t.Fatal(err)
	}
	manifest := filepath.Join(made.folder, "collect.yaml")
	validate := func(manifest string) (string, error) {
		return execute(".", "env", "PATH="+bin+":"+os.Getenv("PATH"), filepath.Join(bin, "validate"), "-manifest", manifest)
	}
	out, err := validate(manifest)
	if err != nil {
		t.Error(err)
	}
	if !strings.Contains(out, "all 1 spec.platforms installed fine") || strings.Contains(out, "line length") {
		t.Errorf("krew says:\n%s", out)
	}
	var plugin struct {
		Spec struct {
			Version   string
			Platforms []struct{ URI, SHA256 string }
		}
	}
	if err := yaml.Unmarshal(read(t, manifest), &plugin); err != nil || plugin.Spec.Version != "v"+made.version {
		t.Errorf("%+v, %v", plugin, err)
	}
	wrong := filepath.Join(t.TempDir(), "collect.yaml")
	text := strings.ReplaceAll(string(read(t, manifest)), plugin.Spec.Platforms[0].SHA256, strings.Repeat("0", 64))
	if err := os.WriteFile(wrong, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := validate(wrong); err == nil || !strings.Contains(err.Error(), "checksum does not match") {
		t.Errorf("with a wrong checksum: %v", err)
	}
}
