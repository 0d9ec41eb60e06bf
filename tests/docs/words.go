package main

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// source is what pages may name of the Rust code in src/.
type source struct {
	// Every word that begins with a capital letter.
	words map[string]bool
	// Reasons that a worker gives (the categories of its errors), and those of conditions and events.
	reasons map[string]string
	// Types of conditions.
	conditions []string
	// Names of labels and annotations.
	labels []string
}

var (
	category = regexp.MustCompile(`(?s)fn category\(&self\)[^{]*\{(.*?)\n    \}`)
	quoted   = regexp.MustCompile(`"([A-Z][A-Za-z]+)"`)
	capital  = regexp.MustCompile(`\b[A-Z][A-Za-z]+\b`)
	constant = regexp.MustCompile(`pub const [A-Z_]+: &str = "([^"]+)"`)
)

func sources(top string) (source, error) {
	found := source{words: map[string]bool{}, reasons: map[string]string{}}
	err := filepath.WalkDir(filepath.Join(top, "src"), func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || filepath.Ext(path) != ".rs" {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, word := range capital.FindAllString(string(text), -1) {
			found.words[word] = true
		}
		name, _ := filepath.Rel(top, path)
		if strings.HasPrefix(filepath.ToSlash(name), "src/data/") {
			for _, body := range category.FindAllStringSubmatch(string(text), -1) {
				for _, word := range quoted.FindAllStringSubmatch(body[1], -1) {
					found.reasons[word[1]] = name
				}
			}
		}
		return nil
	})
	if err != nil {
		return found, err
	}
	conditions, err := os.ReadFile(filepath.Join(top, "src/api/src/condition.rs"))
	if err != nil {
		return found, err
	}
	types, reasons, _ := strings.Cut(string(conditions), "pub mod reason")
	for _, word := range constant.FindAllStringSubmatch(types, -1) {
		found.conditions = append(found.conditions, word[1])
	}
	for _, word := range constant.FindAllStringSubmatch(reasons, -1) {
		found.reasons[word[1]] = "src/api/src/condition.rs"
	}
	labels, err := os.ReadFile(filepath.Join(top, "src/api/src/labels.rs"))
	if err != nil {
		return found, err
	}
	for _, word := range constant.FindAllStringSubmatch(string(labels), -1) {
		found.labels = append(found.labels, word[1])
	}
	if len(found.reasons) == 0 || len(found.conditions) == 0 || len(found.labels) == 0 {
		return found, fmt.Errorf("no reasons, conditions or labels found in src/: the check looks in the wrong place")
	}
	return found, nil
}

// Words of Kubernetes and of other tools that pages quote.
var foreign = strings.Fields("Healthy Degraded Progressing Suspended Current InProgress Terminating ServerSideApply RespectIgnoreDifferences " +
	"Application Kustomization HTTPRoute CronJob Deployment Job Pod Secret ConfigMap Namespace Lease Service Role ClusterRole")

// unknownWords names code spans of one capitalised word, such as `SinkOccupied`, that the code does not hold: a reason, phase or
// outcome that nobody will ever see.
func unknownWords(all []page, code source) []string {
	word := regexp.MustCompile("`([A-Z][a-z]+(?:[A-Z][A-Za-z]*)?)`")
	var problems []string
	for _, p := range all {
		for i, line := range strings.Split(p.text, "\n") {
			for _, match := range word.FindAllStringSubmatch(line, -1) {
				if slices.Contains(foreign, match[1]) || code.words[match[1]] {
					continue
				}
				problems = append(problems, fmt.Sprintf("%s:%d: `%s` stands nowhere in src/", p.path, i+1, match[1]))
			}
		}
	}
	return problems
}

// untold names the reasons of the code that a page does not explain.
func untold(page page, code source) []string {
	var problems []string
	for _, reason := range slices.Sorted(maps.Keys(code.reasons)) {
		if !strings.Contains(page.text, "`"+reason+"`") {
			problems = append(problems, fmt.Sprintf("%s: the reason `%s` of %s is not explained", page.path, reason, code.reasons[reason]))
		}
	}
	return problems
}

// unknownLabels names labels and annotations that the code does not know.
func unknownLabels(all []page, code source) []string {
	name := regexp.MustCompile(`(?:^|[^A-Za-z0-9._-])(collect\.dev/[A-Za-z0-9-]+)`)
	known := append(slices.Clone(code.labels), "collect.dev/v1alpha1")
	var problems []string
	for _, p := range all {
		for i, line := range strings.Split(p.text, "\n") {
			for _, match := range name.FindAllStringSubmatch(line, -1) {
				if !slices.Contains(known, match[1]) {
					problems = append(problems, fmt.Sprintf("%s:%d: the code knows no %s", p.path, i+1, match[1]))
				}
			}
		}
	}
	return problems
}
