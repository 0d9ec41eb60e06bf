package release

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	cdx "github.com/CycloneDX/cyclonedx-go"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

// shipped are the programs with a bill, and the package of each.
var shipped = map[string]string{"collect-operator": "collect-operator", "collect-worker": "collect-worker", "kubectl-collect": "collect-cli"}

func bill(t *testing.T, path string) *cdx.BOM {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	bom := new(cdx.BOM)
	if err := cdx.NewBOMDecoder(file, cdx.BOMFileFormatJSON).Decode(bom); err != nil {
		t.Fatal(err)
	}
	return bom
}

func released(t *testing.T, name string) *cdx.BOM {
	t.Helper()
	return bill(t, filepath.Join(made.folder, name+"_"+platform+".cdx.json"))
}

// crates are the crates of a bill as `name version`, with their checksums; those of the workspace have none.
func crates(bom *cdx.BOM) map[string]string {
	all := map[string]string{}
	for _, component := range *bom.Components {
		local := strings.HasPrefix(component.PackageURL, "pkg:generic/collect-") && component.Type == cdx.ComponentTypeLibrary
		if strings.HasPrefix(component.PackageURL, "pkg:cargo/") {
			all[component.Name+" "+component.Version] = (*component.Hashes)[0].Value
		} else if local {
			all[component.Name+" "+component.Version] = ""
		}
	}
	return all
}

// schemas finds the schemas that CycloneDX publishes in the module of its Go library.
type schemas struct{ folder string }

func (s schemas) Load(url string) (any, error) {
	names, err := filepath.Glob(filepath.Join(s.folder, strings.TrimSuffix(path.Base(url), ".schema.json")+".schema*.json"))
	if err != nil || len(names) != 1 {
		return nil, fmt.Errorf("no schema %s: %q, %w", url, names, err)
	}
	file, err := os.Open(names[0])
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return jsonschema.UnmarshalJSON(file)
}

func TestTheBillsAreWhatCycloneDXTakes(t *testing.T) {
	module := run(t, ".", "go", "list", "-m", "-f", "{{.Dir}}", "github.com/CycloneDX/cyclonedx-go")
	compiler := jsonschema.NewCompiler()
	compiler.UseLoader(schemas{filepath.Join(strings.TrimSpace(module), "schema")})
	schema, err := compiler.Compile("http://cyclonedx.org/schema/bom-1.6.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	names, err := filepath.Glob(filepath.Join(made.folder, "*.cdx.json"))
	if err != nil || len(names) != 5 {
		t.Fatal(names, err)
	}
	validate := func(text []byte) error {
		document, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
		if err != nil {
			return err
		}
		return schema.Validate(document)
	}
	for _, name := range names {
		if err := validate(read(t, name)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := validate(bytes.Replace(read(t, names[0]), []byte(`"type": "library"`), []byte(`"type": "crate"`), 1)); err == nil {
		t.Error("a component of type crate is taken")
	}
}

func TestTheBillsNameTheProgramsAndImages(t *testing.T) {
	for name := range shipped {
		sum := sha256.Sum256(read(t, os.Getenv("COLLECT_BIN_DIR"), name))
		subject := released(t, name).Metadata.Component
		if subject.Name != name || subject.Version != made.version || (*subject.Hashes)[0].Value != hex.EncodeToString(sum[:]) {
			t.Errorf("%s: %+v", name, subject)
		}
	}
	notes := string(read(t, made.folder, "RELEASE-NOTES.md"))
	for image, name := range map[string]string{"operator": "collect-operator", "worker": "collect-worker"} {
		bom := released(t, image+"-image")
		subject := bom.Metadata.Component
		if subject.Type != cdx.ComponentTypeContainer || !strings.Contains(notes, "| "+image+" | sha256:"+(*subject.Hashes)[0].Value+" |") {
			t.Errorf("%s: %+v", image, subject)
		}
		if !maps.Equal(crates(bom), crates(released(t, name))) {
			t.Errorf("image %s and program %s are made of different crates", image, name)
		}
	}
}

func TestTheBillsNameWhatIsLockedAndNothingElse(t *testing.T) {
	lock := string(read(t, made.tree, "Cargo.lock"))
	for name := range shipped {
		all := crates(released(t, name))
		for crate, checksum := range all {
			crateName, version, _ := strings.Cut(crate, " ")
			_, entry, there := strings.Cut(lock, fmt.Sprintf("name = %q\nversion = %q\n", crateName, version))
			entry, _, _ = strings.Cut(entry, "[[package]]")
			if !there || checksum != "" && !strings.Contains(entry, fmt.Sprintf("checksum = %q\n", checksum)) {
				t.Errorf("%s: Cargo.lock does not have %s with this checksum", name, crate)
			}
		}
		for _, want := range []string{"tokio ", "kube ", "serde_json ", "aws-lc-sys ", "collect-api " + made.version} {
			if !slices.ContainsFunc(slices.Collect(maps.Keys(all)), func(crate string) bool { return strings.HasPrefix(crate, want) }) {
				t.Errorf("%s: %sis missing", name, want)
			}
		}
	}
	// Those that only tests or compilers use.
	for _, never := range []string{"proptest", "insta", "cc", "serde_derive", "tempfile"} {
		for crate := range crates(released(t, "collect-operator")) {
			if strings.HasPrefix(crate, never+" ") {
				t.Errorf("the operator is not linked from %s", crate)
			}
		}
	}
}

func TestTheBillsNameTheRuntimeLibraries(t *testing.T) {
	for name := range shipped {
		found := map[string]string{}
		for _, component := range *released(t, name).Components {
			found[component.Name] = component.Version
		}
		rustc := run(t, ".", "rustc", "-vV")
		libc := run(t, ".", "getconf", "GNU_LIBC_VERSION")
		if !strings.Contains(rustc, "release: "+found["rust-std"]+"\n") || libc != "glibc "+found["glibc"]+"\n" || found["libgcc"] == "" {
			t.Errorf("%s: rust %s, glibc %s, libgcc %s", name, found["rust-std"], found["glibc"], found["libgcc"])
		}
	}
}

// Cargo's account of what it compiled for the target is what the bills name together, and what only the demo's programs need, which are
// of the same build.
func TestTheBillsNameExactlyWhatWasCompiledForTheTarget(t *testing.T) {
	named := map[string]bool{}
	for name, pkg := range shipped {
		named[pkg+" "+made.version] = true
		for crate := range crates(released(t, name)) {
			named[crate] = true
		}
	}
	compiled, demo := compiledForTheTarget(t), neededByTheDemo(t)
	for crate := range named {
		if !compiled[crate] {
			t.Errorf("%s is named and was not compiled", crate)
		}
	}
	for crate := range compiled {
		if !named[crate] && !demo[crate] {
			t.Errorf("%s was compiled and is not named", crate)
		}
	}
}

var crateLine = regexp.MustCompile(`^(\d+)(\S+) v(\S+?)[ |]`)

// neededByTheDemo gives the packages of the demo and what is listed below them. What was listed before is below a shipped one too.
func neededByTheDemo(t *testing.T) map[string]bool {
	t.Helper()
	all := map[string]bool{}
	inside := false
	for line := range strings.Lines(output(t, "deploy/programs.sh", "crates")) {
		match := crateLine.FindStringSubmatch(line)
		if match == nil {
			continue
		}
		if match[1] == "0" {
			inside = match[2] == "collect-registry" || match[2] == "collect-s3"
		}
		if inside {
			all[match[2]+" "+match[3]] = true
		}
	}
	return all
}

// output is what a command prints in the working tree, without what it says beside.
func output(t *testing.T, name string, args ...string) string {
	t.Helper()
	command := exec.Command(name, args...)
	command.Dir = top
	out, err := command.Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// compiledForTheTarget asks cargo for the build that is there already.
func compiledForTheTarget(t *testing.T) map[string]bool {
	t.Helper()
	folder := strings.TrimSpace(output(t, "deploy/programs.sh", "folder"))
	all := map[string]bool{}
	for line := range strings.Lines(output(t, "deploy/programs.sh", "compile", "--message-format=json")) {
		var artifact struct {
			Reason    string
			PackageID string `json:"package_id"`
			Target    struct{ Kind []string }
			Filenames []string
		}
		if err := json.Unmarshal([]byte(line), &artifact); err != nil {
			t.Fatal(err)
		}
		if artifact.Reason != "compiler-artifact" || slices.Contains(artifact.Target.Kind, "custom-build") || !strings.HasPrefix(artifact.Filenames[0], folder) {
			continue
		}
		_, id, _ := strings.Cut(artifact.PackageID, "#")
		name, version, _ := strings.Cut(id, "@")
		if version == "" {
			path, _, _ := strings.Cut(artifact.PackageID, "#")
			name, version = filepath.Base(path), id
		}
		all[name+" "+version] = true
	}
	return all
}
