// Package release makes a release of the working tree with deploy/release.sh, from programs that are built, and checks every file with
// the tools of those who get it: helm, krew, ssh-keygen, sha256sum, the schema of CycloneDX.
//
// KUBE names the program that is kubectl and helm, COLLECT_BIN_DIR the programs; `make release-test` sets both.
package release

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
)

const top = "../.."

// The release that tests look at, signed; the same commit's once more, unsigned; and what was printed.
var made struct {
	version, tree, folder, again string
	key                          string
	printed, printedAgain        string
	url                          string
}

func TestMain(m *testing.M) {
	scratch, err := os.MkdirTemp("", "release")
	if err == nil {
		err = makeBoth(scratch)
	}
	status := 1
	if err == nil {
		status = m.Run()
	} else {
		fmt.Fprintln(os.Stderr, err)
	}
	os.RemoveAll(scratch)
	os.Exit(status)
}

func makeBoth(scratch string) error {
	made.tree, made.folder, made.again = filepath.Join(scratch, "tree"), filepath.Join(scratch, "first"), filepath.Join(scratch, "second")
	made.key = filepath.Join(scratch, "key")
	if err := copyTree(made.tree); err != nil {
		return err
	}
	if _, err := execute(scratch, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "releases", "-f", made.key); err != nil {
		return err
	}
	// krew downloads the plugin from here.
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	go http.Serve(listener, http.FileServer(http.Dir(made.folder)))
	made.url = "RELEASE_URL=http://" + listener.Addr().String()
	made.printed, err = release(made.tree, made.url, "SIGN_KEY="+made.key, "DIST="+made.folder)
	if err != nil {
		return err
	}
	// Elsewhere, with files that are younger and closed to others.
	mask := syscall.Umask(0o077)
	defer syscall.Umask(mask)
	if _, err := execute(scratch, "git", "clone", "-q", made.tree, "elsewhere"); err != nil {
		return err
	}
	made.printedAgain, err = release(filepath.Join(scratch, "elsewhere"), made.url, "DIST="+made.again)
	return err
}

// copyTree makes a repository with one commit: the files of the working tree, of a version that has its day.
func copyTree(to string) error {
	manifest, err := os.ReadFile(filepath.Join(top, "Cargo.toml"))
	if err != nil {
		return err
	}
	made.version = string(regexp.MustCompile(`(?m)^version = "(.*)"`).FindSubmatch(manifest)[1])
	for _, command := range []string{
		`mkdir "$1"`,
		`git ls-files -z --cached --others --exclude-standard --deduplicate | while IFS= read -rd '' file; do
			[ ! -e "$file" ] || printf '%s\0' "$file"; done | tar --null -T - -cf - | tar -xf - -C "$1"`,
		`sed -i '0,/^## /s/ - unreleased$/ - 2026-01-31/' "$1/CHANGELOG.md"`,
		`cd "$1" && git init -q && git add --all --force && git -c user.name=tests -c user.email=tests@localhost -c commit.gpgsign=false commit -q -m release`,
	} {
		if _, err := execute(top, "bash", "-euo", "pipefail", "-c", command, "bash", to); err != nil {
			return err
		}
	}
	return nil
}

// release runs the script in a tree; `variables` win over the environment.
func release(tree string, variables ...string) (string, error) {
	return execute(tree, "env", append(append([]string{"-u", "VERSION", "-u", "SIGN_KEY", "-u", "RELEASE_URL"}, variables...), "deploy/release.sh")...)
}

func execute(folder, name string, args ...string) (string, error) {
	command := exec.Command(name, args...)
	command.Dir = folder
	out, err := command.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out), err
}

func run(t *testing.T, folder, name string, args ...string) string {
	t.Helper()
	out, err := execute(folder, name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func read(t *testing.T, path ...string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func files(t *testing.T, folder string) []string {
	t.Helper()
	entries, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	return names
}

func TestAReleaseHasTheseFiles(t *testing.T) {
	want := []string{
		"RELEASE-NOTES.md", "SHA256SUMS", "SHA256SUMS.sig", "collect-operator-" + made.version + ".tgz",
		"collect-operator-crds-" + made.version + ".yaml", "collect-operator-monitoring-" + made.version + ".tar.gz",
		"collect-operator_" + platform + ".cdx.json", "collect-worker_" + platform + ".cdx.json", "collect.yaml",
		"kubectl-collect_" + platform + ".cdx.json", "kubectl-collect_" + platform + ".tar.gz", "operator-image_" + platform + ".cdx.json",
		"operator_" + platform + ".oci.tar", "worker-image_" + platform + ".cdx.json", "worker_" + platform + ".oci.tar",
	}
	if got := files(t, made.folder); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

func TestTheChecksumsAreOfEveryFile(t *testing.T) {
	run(t, made.folder, "sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS")
	var named []string
	for line := range strings.Lines(string(read(t, made.folder, "SHA256SUMS"))) {
		named = append(named, strings.Fields(line)[1])
	}
	there := slices.DeleteFunc(files(t, made.folder), func(name string) bool { return strings.HasPrefix(name, "SHA256SUMS") })
	if !slices.Equal(named, there) {
		t.Errorf("checksums are of %q", named)
	}
}

func TestTheSignatureHoldsAndAnotherFileBreaksIt(t *testing.T) {
	signers := filepath.Join(t.TempDir(), "signers")
	if err := os.WriteFile(signers, append([]byte("releases "), read(t, made.key+".pub")...), 0o600); err != nil {
		t.Fatal(err)
	}
	verify := func(text []byte) error {
		command := exec.Command("ssh-keygen", "-Y", "verify", "-f", signers, "-I", "releases", "-n", "file", "-s", filepath.Join(made.folder, "SHA256SUMS.sig"))
		command.Stdin = bytes.NewReader(text)
		return command.Run()
	}
	sums := read(t, made.folder, "SHA256SUMS")
	if err := verify(sums); err != nil {
		t.Error(err)
	}
	if err := verify(append(sums, '\n')); err == nil {
		t.Error("the signature holds for another text as well")
	}
}

func TestWithoutAKeyNothingIsSignedAndItIsSaid(t *testing.T) {
	if _, err := os.Stat(filepath.Join(made.again, "SHA256SUMS.sig")); err == nil {
		t.Error("there is a signature")
	}
	if said := "nothing is signed"; !strings.Contains(made.printedAgain, said) || strings.Contains(made.printed, said) {
		t.Errorf("it says:\n%s", made.printedAgain)
	}
}

func TestTheSameCommitGivesTheSameBytes(t *testing.T) {
	for _, name := range files(t, made.again) {
		if !bytes.Equal(read(t, made.folder, name), read(t, made.again, name)) {
			t.Errorf("%s differs", name)
		}
	}
}

func TestTheNotesSayWhatChanged(t *testing.T) {
	notes := string(read(t, made.folder, "RELEASE-NOTES.md"))
	changes := string(read(t, made.tree, "CHANGELOG.md"))
	_, section, _ := strings.Cut(changes, "## ["+made.version+"] - ")
	_, section, _ = strings.Cut(section, "\n\n")
	section, _, _ = strings.Cut(section, "\n## ")
	if section = strings.TrimSpace(section); section == "" || !strings.Contains(notes, "\n"+section+"\n") {
		t.Errorf("the notes:\n%s", notes)
	}
	for _, name := range files(t, made.folder) {
		if !strings.Contains(notes, name) && !strings.HasSuffix(name, ".cdx.json") && name != "RELEASE-NOTES.md" && name != "SHA256SUMS.sig" {
			t.Errorf("the notes do not tell of %s", name)
		}
	}
}

// What is changed in a tree, and what the refusal says then. Nothing is built before.
func TestAReleaseThatWouldBeWrongIsRefused(t *testing.T) {
	chart := "charts/collect-operator/Chart.yaml"
	edit := func(file, from, to string) string {
		return fmt.Sprintf("sed -i 's/%s/%s/' %s && git commit -qam edit", from, to, file)
	}
	for name, fault := range map[string]struct {
		change, variable string
		says             []string
	}{
		"a changed file":        {"echo >>README.md", "", []string{"not as they were committed", " M README.md"}},
		"a new file":            {"touch charts/new", "", []string{"?? charts/new"}},
		"another version":       {"true", "VERSION=9.0.0", []string{"set workspace.package.version", "set version", "set appVersion", "write ## [9.0.0] - "}},
		"another crate version": {edit("Cargo.toml", `^version = ".*"`, `version = "9.0.0"`), "VERSION=" + made.version, []string{"Cargo.toml has version 9.0.0, not " + made.version}},
		"another chart version": {edit(chart, "^version: .*", "version: 9.0.0"), "", []string{"Chart.yaml has version 9.0.0, not " + made.version}},
		"another app version":   {edit(chart, "^appVersion: .*", `appVersion: "9.0.0"`), "", []string{"Chart.yaml has appVersion 9.0.0, not " + made.version}},
		"another changelog":     {edit("CHANGELOG.md", `^## \[`, `## [9.`), "", []string{"heading of CHANGELOG.md is [9." + made.version + "] - ", "write ## [" + made.version + "] - 2"}},
		"no day":                {edit("CHANGELOG.md", `^\(## .*\) - .*`, `\1 - unreleased`), "", []string{"CHANGELOG.md says that " + made.version + " is unreleased", "write the day"}},
		"a folder with files":   {"true", "DIST=" + made.folder, []string{made.folder + " is not empty", "DIST=folder"}},
	} {
		t.Run(name, func(t *testing.T) {
			tree := filepath.Join(t.TempDir(), "tree")
			run(t, ".", "git", "clone", "-q", made.tree, tree)
			run(t, tree, "git", "config", "user.name", "tests")
			run(t, tree, "git", "config", "user.email", "tests@localhost")
			run(t, tree, "git", "config", "commit.gpgsign", "false")
			run(t, tree, "bash", "-c", fault.change)
			variables := []string{"DIST=" + filepath.Join(tree, "dist")}
			if fault.variable != "" {
				variables = append(variables, fault.variable)
			}
			before := files(t, made.folder)
			out, err := release(tree, variables...)
			if err == nil {
				t.Fatalf("it was made:\n%s", out)
			}
			for _, part := range fault.says {
				if !strings.Contains(out, part) {
					t.Errorf("%q is not in:\n%s", part, out)
				}
			}
			if _, err := os.Stat(filepath.Join(tree, "dist")); err == nil || !slices.Equal(before, files(t, made.folder)) {
				t.Error("something was written")
			}
		})
	}
}
