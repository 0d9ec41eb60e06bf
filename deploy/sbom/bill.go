package main

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	cdx "github.com/CycloneDX/cyclonedx-go"
)

// authors is who the chart names as maintainers.
const authors = "The Collect Operator authors"

// bill is what a thing is made of. Components are referred to by their package URLs.
type bill struct {
	subject cdx.Component
	parts   []cdx.Component
	needs   []cdx.Dependency
}

// describe gives the bill of a program. The runtime libraries belong to the program; which crate needs them is not told.
func describe(p *program, l *linked, checksums map[string]string) (*bill, error) {
	version := l.root.version
	b := &bill{subject: component(cdx.ComponentTypeApplication, p.name, version, generic(p.name, version), l.root.licence, p.sha256)}
	references := map[string]string{l.root.key(): b.subject.BOMRef}
	for _, c := range l.crates {
		purl := "pkg:cargo/" + c.name + "@" + url.QueryEscape(c.version)
		if c.local {
			purl = generic(c.name, c.version)
		} else if checksums[c.key()] == "" {
			return nil, fmt.Errorf("crate %s is not in the lock file", c.key())
		}
		part := component(cdx.ComponentTypeLibrary, c.name, c.version, purl, c.licence, checksums[c.key()])
		references[c.key()] = part.BOMRef
		b.parts = append(b.parts, part)
	}
	for key, needs := range l.needs {
		var all []string
		for _, need := range needs {
			all = append(all, references[need])
		}
		if key == l.root.key() {
			for _, part := range runtime(p) {
				all = append(all, part.BOMRef)
				b.parts = append(b.parts, part)
				b.needs = append(b.needs, cdx.Dependency{Ref: part.BOMRef})
			}
		}
		b.needs = append(b.needs, cdx.Dependency{Ref: references[key], Dependencies: &all})
	}
	return b, nil
}

// runtime is what the compilers link into every static program.
func runtime(p *program) []cdx.Component {
	return []cdx.Component{
		component(cdx.ComponentTypeLibrary, "rust-std", p.rust, generic("rust-std", p.rust), "MIT OR Apache-2.0", ""),
		component(cdx.ComponentTypeLibrary, "glibc", p.glibc.version, p.glibc.url("glibc", "glibc"), "LGPL-2.1-or-later", ""),
		component(cdx.ComponentTypeLibrary, "libgcc", p.gcc.version, p.gcc.url("libgcc", "gcc-"+strings.Split(p.gcc.version, ".")[0]),
			"GPL-3.0-or-later WITH GCC-exception-3.1", ""),
	}
}

// url names the source package of a distribution, whose version is what advisories are about, or the library alone.
func (b built) url(name, source string) string {
	if vendor := strings.ToLower(b.vendor); vendor == "debian" || vendor == "ubuntu" {
		return "pkg:deb/" + vendor + "/" + source + "@" + url.QueryEscape(b.pkg) + "?arch=source"
	}
	return generic(name, b.version)
}

// generic is the package URL of what no registry has.
func generic(name, version string) string { return "pkg:generic/" + name + "@" + version }

func component(kind cdx.ComponentType, name, version, purl, licence, sha256 string) cdx.Component {
	c := cdx.Component{BOMRef: purl, Type: kind, Name: name, Version: version, PackageURL: purl}
	if licence != "" {
		c.Licenses = &cdx.Licenses{{Expression: licence}}
	}
	if sha256 != "" {
		c.Hashes = &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: sha256}}
	}
	return c
}

// putInto makes it the bill of an image that holds the program and nothing else.
func (b *bill) putInto(image, arch string) error {
	name, digest, _ := strings.Cut(image, "@sha256:")
	colon := strings.LastIndex(name, ":")
	if digest == "" || colon < 0 {
		return fmt.Errorf("image %s: want NAME:TAG@sha256:…", image)
	}
	name, tag := name[:colon], name[colon+1:]
	purl := fmt.Sprintf("pkg:oci/%s@sha256%%3A%s?arch=%s&repository_url=%s&tag=%s", name[strings.LastIndex(name, "/")+1:], digest, arch, url.QueryEscape(name), tag)
	held := b.subject
	b.subject = component(cdx.ComponentTypeContainer, name, tag, purl, "", digest)
	b.parts = append(b.parts, held)
	b.needs = append(b.needs, cdx.Dependency{Ref: purl, Dependencies: &[]string{held.BOMRef}})
	return nil
}

func (b *bill) bom(made time.Time) *cdx.BOM {
	slices.SortFunc(b.parts, func(x, y cdx.Component) int { return strings.Compare(x.BOMRef, y.BOMRef) })
	slices.SortFunc(b.needs, func(x, y cdx.Dependency) int { return strings.Compare(x.Ref, y.Ref) })
	b.subject.Supplier = &cdx.OrganizationalEntity{Name: authors}
	bom := cdx.NewBOM()
	bom.Metadata = &cdx.Metadata{
		Timestamp: made.UTC().Format(time.RFC3339),
		Authors:   &[]cdx.OrganizationalContact{{Name: authors}},
		Component: &b.subject,
	}
	bom.Components = &b.parts
	bom.Dependencies = &b.needs
	return bom
}
