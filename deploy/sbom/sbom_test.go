package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const printed = `0operator v0.1.0 (/src/operator)|Apache-2.0
1core v0.1.0 (/src/core)|Apache-2.0
2serde v1.0.2|MIT OR Apache-2.0
2old v0.3.0+upstream.1|MIT/Apache-2.0
1serde v1.0.2|MIT OR Apache-2.0

0cli v0.1.0 (/src/cli)|Apache-2.0
1core v0.1.0 (/src/core)|Apache-2.0 (*)
1clap v4.0.0|
`

const lock = `version = 4

[[package]]
name = "core"
version = "0.1.0"
dependencies = [
 "serde",
]

[[package]]
name = "serde"
version = "1.0.2"
source = "registry+https://github.com/rust-lang/crates.io-index"
checksum = "aa"

[[package]]
name = "old"
version = "0.3.0+upstream.1"
checksum = "bb"
`

func file(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func sample(t *testing.T, root string) (*linked, map[string]string) {
	t.Helper()
	tree, err := readTree(file(t, printed))
	if err != nil {
		t.Fatal(err)
	}
	below, err := tree.below(root)
	if err != nil {
		t.Fatal(err)
	}
	checksums, err := readLock(file(t, lock))
	if err != nil {
		t.Fatal(err)
	}
	return below, checksums
}

var made = &program{name: "x", sha256: "cc", arch: "amd64", rust: "1.95.0",
	glibc: built{"2.36", "Debian", "2.36-9+deb12u1"}, gcc: built{version: "12.2.0"}}

func TestAProgramIsMadeOfEverythingBelowItsPackage(t *testing.T) {
	for root, want := range map[string]string{
		"operator": "core 0.1.0, old 0.3.0+upstream.1, serde 1.0.2",
		"cli":      "clap 4.0.0, core 0.1.0, old 0.3.0+upstream.1, serde 1.0.2",
	} {
		below, _ := sample(t, root)
		var got []string
		for _, c := range below.crates {
			got = append(got, c.key())
		}
		if strings.Join(got, ", ") != want {
			t.Errorf("%s is made of %v", root, got)
		}
	}
}

func TestTheBillNamesEachPartOnceAndWhoNeedsIt(t *testing.T) {
	below, checksums := sample(t, "operator")
	b, err := describe(made, below, checksums)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.putInto("r.example/x:1@sha256:dd", "amd64"); err != nil {
		t.Fatal(err)
	}
	bom := b.bom(time.Unix(0, 0))
	var got []string
	for _, c := range *bom.Components {
		text := c.PackageURL
		if c.Hashes != nil {
			text += " " + (*c.Hashes)[0].Value
		}
		if c.Licenses != nil {
			text += " " + (*c.Licenses)[0].Expression
		}
		got = append(got, text)
	}
	want := []string{
		"pkg:cargo/old@0.3.0%2Bupstream.1 bb MIT OR Apache-2.0",
		"pkg:cargo/serde@1.0.2 aa MIT OR Apache-2.0",
		"pkg:deb/debian/glibc@2.36-9%2Bdeb12u1?arch=source LGPL-2.1-or-later",
		"pkg:generic/core@0.1.0 Apache-2.0",
		"pkg:generic/libgcc@12.2.0 GPL-3.0-or-later WITH GCC-exception-3.1",
		"pkg:generic/rust-std@1.95.0 MIT OR Apache-2.0",
		"pkg:generic/x@0.1.0 cc Apache-2.0",
	}
	if !slices.Equal(got, want) {
		t.Errorf("parts:\n%s", strings.Join(got, "\n"))
	}
	known := []string{bom.Metadata.Component.BOMRef}
	for _, c := range *bom.Components {
		known = append(known, c.BOMRef)
	}
	var told []string
	for _, d := range *bom.Dependencies {
		told = append(told, d.Ref)
		if d.Dependencies == nil {
			continue
		}
		for _, need := range *d.Dependencies {
			if !slices.Contains(known, need) {
				t.Errorf("%s needs %s, which is no part", d.Ref, need)
			}
		}
	}
	slices.Sort(known)
	if !slices.Equal(told, known) {
		t.Errorf("dependencies are told of %v, parts are %v", told, known)
	}
}

func TestACrateThatIsNotLockedIsRefused(t *testing.T) {
	below, checksums := sample(t, "cli")
	if _, err := describe(made, below, checksums); err == nil || !strings.Contains(err.Error(), "clap 4.0.0 is not in the lock file") {
		t.Error(err)
	}
}

func TestWhatIsNoTreeIsRefused(t *testing.T) {
	for text, complaint := range map[string]string{
		"error: no such package":       "is no crate",
		"0a v1.0.0|MIT\n2b v1.0.0|MIT": "nothing is above b",
	} {
		if _, err := readTree(file(t, text)); err == nil || !strings.Contains(err.Error(), complaint) {
			t.Errorf("%q: %v", text, err)
		}
	}
	tree, err := readTree(file(t, printed))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tree.below("serde"); err == nil {
		t.Error("serde is no package of the workspace")
	}
}

func TestAProgramThatIsNotStaticIsRefused(t *testing.T) {
	if _, err := readProgram("/proc/self/exe"); err == nil {
		t.Error("a Go test tells of no rustc")
	}
}

func TestWhatProgramsSayOfTheirMaking(t *testing.T) {
	for text, want := range map[string]built{
		"GNU C Library (Debian GLIBC 2.36-9+deb12u14) stable release version 2.36.": {"2.36", "Debian", "2.36-9+deb12u14"},
		"GNU C Library (GNU libc) stable release version 2.41.":                     {"2.41", "", ""},
	} {
		match := glibc.FindStringSubmatch(text)
		if got := (built{match[3], match[1], match[2]}); got != want {
			t.Errorf("%s: %+v", text, got)
		}
	}
	for text, want := range map[string]built{
		"GCC: (Debian 12.2.0-14+deb12u1) 12.2.0\x00": {"12.2.0", "Debian", "12.2.0-14+deb12u1"},
		"GCC: (GNU) 15.1.0\x00":                      {"15.1.0", "", ""},
	} {
		match := gcc.FindStringSubmatch(text)
		if got := (built{match[3], match[1], match[2]}); got != want {
			t.Errorf("%s: %+v", text, got)
		}
	}
}
