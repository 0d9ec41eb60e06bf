package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/template"

	"github.com/Masterminds/sprig/v3"
	rbacv1 "k8s.io/api/rbac/v1"
	"sigs.k8s.io/yaml"
)

// chartValues reads the chart's values.yaml.
func chartValues(top string) (map[string]any, error) {
	text, err := os.ReadFile(filepath.Join(top, "charts/collect-operator/values.yaml"))
	if err != nil {
		return nil, err
	}
	var values map[string]any
	return values, yaml.Unmarshal(text, &values)
}

// roles renders the chart's rbac.yaml and roles.yaml with its default values, as helm would: they use sprig, include and YAML.
func roles(top string) ([]rbacv1.ClusterRole, error) {
	values, err := chartValues(top)
	if err != nil {
		return nil, err
	}
	folder := filepath.Join(top, "charts/collect-operator/templates")
	all := template.New("chart").Funcs(sprig.TxtFuncMap())
	all.Funcs(template.FuncMap{
		"include": func(name string, data any) (string, error) {
			var text bytes.Buffer
			err := all.ExecuteTemplate(&text, name, data)
			return text.String(), err
		},
		"required": func(message string, value any) (any, error) {
			if value == nil || value == "" {
				return nil, fmt.Errorf("%s", message)
			}
			return value, nil
		},
		"toYaml": func(value any) (string, error) {
			text, err := yaml.Marshal(value)
			return strings.TrimSpace(string(text)), err
		},
		"fromYaml": func(text string) (map[string]any, error) {
			value := map[string]any{}
			return value, yaml.Unmarshal([]byte(text), &value)
		},
	})
	files := []string{"rbac.yaml", "roles.yaml"}
	for _, file := range append(files, "_helpers.tpl") {
		if _, err := all.ParseFiles(filepath.Join(folder, file)); err != nil {
			return nil, err
		}
	}
	data := map[string]any{
		"Values":  values,
		"Release": map[string]any{"Name": "collect-operator", "Namespace": "collect-system", "Service": "Helm"},
		"Chart":   map[string]any{"Name": "collect-operator", "Version": "0", "AppVersion": "0"},
	}
	var text bytes.Buffer
	for _, file := range files {
		text.WriteString("\n---\n")
		if err := all.ExecuteTemplate(&text, file, data); err != nil {
			return nil, err
		}
	}
	var found []rbacv1.ClusterRole
	for _, document := range divider.Split(text.String(), -1) {
		var role rbacv1.ClusterRole
		if err := yaml.Unmarshal([]byte(document), &role); err != nil {
			return nil, err
		}
		if role.Kind == "ClusterRole" || role.Kind == "Role" {
			found = append(found, role)
		}
	}
	return found, nil
}

// rightsTable is the table of docs/operations/security.md.
func rightsTable(roles []rbacv1.ClusterRole) string {
	var text strings.Builder
	text.WriteString("| Role | API group | Resources | Verbs |\n| --- | --- | --- | --- |\n")
	for _, role := range roles {
		for _, rule := range role.Rules {
			group := rule.APIGroups[0]
			if group == "" {
				group = "core"
			}
			resources := codes(rule.Resources)
			if len(rule.ResourceNames) > 0 {
				resources += " named " + codes(rule.ResourceNames)
			}
			fmt.Fprintf(&text, "| %s `%s` | %s | %s | %s |\n", role.Kind, role.Name, group, resources, strings.Join(rule.Verbs, ", "))
		}
	}
	return text.String()
}

// withTable puts a table between `<!-- table: NAME -->` and `<!-- end -->`.
func withTable(text, name, table string) (string, error) {
	head, rest, found := strings.Cut(text, "<!-- table: "+name+" -->\n")
	_, tail, ends := strings.Cut(rest, "<!-- end -->")
	if !found || !ends {
		return "", fmt.Errorf("there is no place for the table %s", name)
	}
	return head + "<!-- table: " + name + " -->\n" + table + "<!-- end -->" + tail, nil
}
