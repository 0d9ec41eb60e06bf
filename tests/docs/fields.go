package main

import (
	"fmt"
	"regexp"
	"strings"
)

var (
	// A path such as spec.retry.maxAttempts, status.plan.attempts[0].reason or status.hooks.<hook>.attempts.
	fieldPath = regexp.MustCompile(`(^|[^A-Za-z0-9_/-])((?:spec|status)(?:\.[A-Za-z][A-Za-z0-9]*|\.<[a-z]+>|\.\*|\[[0-9a-z*]*\])+)`)
	// A code span that is nothing but a path, such as retry.maxAttempts.
	shortPath = regexp.MustCompile("`([a-z][A-Za-z]*(?:\\.[A-Za-z][A-Za-z]*|\\.<[a-z]+>|\\.\\*|\\[[0-9a-z*]*\\])+)`")
	index     = regexp.MustCompile(`\[[0-9a-z*]*\]`)
)

// unknownFields names every path in the pages that no custom resource has: those that begin with spec or status, and code
// spans that begin with a field of a CollectTask's spec, such as `retry.maxAttempts`.
func unknownFields(all []page, api map[string]resource, values map[string]any) []string {
	var problems []string
	spec := api["CollectTask"].schema.Properties["spec"]
	for _, p := range all {
		for i, line := range strings.Split(p.text, "\n") {
			for _, at := range fieldPath.FindAllStringSubmatchIndex(line, -1) {
				path := line[at[4]:at[5]]
				// A rule in CEL goes on with functions.
				before := line[:at[4]]
				if strings.HasSuffix(before, "self.") || strings.HasSuffix(before, "oldSelf.") || anyHas(api, segments(path)) {
					continue
				}
				problems = append(problems, fmt.Sprintf("%s:%d: %s is no field of any resource", p.path, i+1, path))
			}
			for _, match := range shortPath.FindAllStringSubmatch(line, -1) {
				path := segments(match[1])
				if _, known := spec.Properties[path[0]]; !known || has(&spec, path) || hasValue(values, path) {
					continue
				}
				problems = append(problems, fmt.Sprintf("%s:%d: `%s` is no field of spec, nor a value of the chart", p.path, i+1, match[1]))
			}
		}
	}
	return problems
}

func segments(path string) []string {
	return strings.Split(index.ReplaceAllString(path, ""), ".")
}

func anyHas(api map[string]resource, path []string) bool {
	for _, resource := range api {
		if has(resource.schema, path) {
			return true
		}
	}
	return false
}

// hasValue says whether the chart has a value. What is empty in values.yaml may hold anything.
func hasValue(values map[string]any, path []string) bool {
	if len(path) == 0 {
		return true
	}
	inner, known := values[path[0]]
	if !known {
		return false
	}
	switch inner := inner.(type) {
	case map[string]any:
		return len(inner) == 0 || hasValue(inner, path[1:])
	case []any:
		return true
	}
	return len(path) == 1
}
