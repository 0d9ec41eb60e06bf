// The documentation's own tools: what is generated, and checks that the rest names only what exists.
//
//	go run . write    writes the API reference and the table of rights; `make docs`
//	go test ./...     checks everything; `make docs-check`
//
// Nothing is run here (tests/e2e/tests/docs.rs does that) and no cluster is asked: the schemas, rules, templates and sources of this repository are what counts.
package main

import (
	"fmt"
	"os"
	"path/filepath"
)

const (
	referencePage = "docs/reference/api.md"
	rightsPage    = "docs/operations/security.md"
)

func main() {
	if len(os.Args) != 2 || os.Args[1] != "write" {
		fmt.Fprintln(os.Stderr, "usage: go run . write")
		os.Exit(2)
	}
	if err := write("../.."); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func write(top string) error {
	files, err := generated(top)
	if err != nil {
		return err
	}
	for name, text := range files {
		path := filepath.Join(top, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// generated gives the pages that are written from the code, whole or in part, as they should be.
func generated(top string) (map[string]string, error) {
	api, err := resources(top)
	if err != nil {
		return nil, err
	}
	roles, err := roles(top)
	if err != nil {
		return nil, err
	}
	security, err := os.ReadFile(filepath.Join(top, rightsPage))
	if err != nil {
		return nil, err
	}
	rights, err := withTable(string(security), "rights", rightsTable(roles))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", rightsPage, err)
	}
	return map[string]string{referencePage: reference(api), rightsPage: rights}, nil
}
