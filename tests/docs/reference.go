package main

import (
	"cmp"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	v1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
)

const referenceHead = `# API reference

<!-- Written by ` + "`make docs`" + ` from crds/. Do not edit. -->

Every field of collect.dev/v1alpha1. The same in a terminal: ` + "`kubectl explain collecttask.spec --recursive`" + `. What each word means is in
[concepts](../concepts/index.md); how to use it in the [how-to pages](../index.md).

How to read the tables:

- Fields in **bold** are required where the object that holds them is given. ` + "`[]`" + ` is an element of a list, ` + "`<key>`" + ` a key of a map.
- *Default* is what holds where nothing is said. It is not written into the object: what a child inherits stays distinguishable
  from what was set.
- *Bounds*: a range in interval form, lengths of texts in characters, lists and maps by their number of elements, patterns as
  regular expressions (RE2).
- Durations are one or more numbers with a unit: ` + "`500ms`, `90s`, `5m`, `1h30m`, `7d`" + `.
- Rules are CEL expressions that the API server checks. A write that breaks one is refused with its message.
`

// reference writes docs/reference/api.md.
func reference(api map[string]resource) string {
	var text strings.Builder
	text.WriteString(referenceHead)
	for _, kind := range []string{"CollectTask", "CollectShard", "ValidationReport"} {
		writeKind(&text, api[kind])
	}
	return text.String()
}

func writeKind(text *strings.Builder, r resource) {
	spec, version := r.definition.Spec, r.definition.Spec.Versions[0]
	fmt.Fprintf(text, "\n## %s\n\n%s\n\n", spec.Names.Kind, oneLine(r.schema.Description))
	fmt.Fprintf(text, "- Names: `%s`, `%s`, %s; category %s. %s.\n", spec.Names.Plural, spec.Names.Singular,
		codes(spec.Names.ShortNames), codes(spec.Names.Categories), spec.Scope)
	var selectable []string
	for _, field := range version.SelectableFields {
		selectable = append(selectable, strings.TrimPrefix(field.JSONPath, "."))
	}
	fmt.Fprintf(text, "- Field selectors: %s.\n", codes(selectable))
	if scale := version.Subresources.Scale; scale != nil {
		fmt.Fprintf(text, "- Scale subresource: replicas are `%s`, at the moment `%s`.\n", strings.TrimPrefix(scale.SpecReplicasPath, "."),
			strings.TrimPrefix(scale.StatusReplicasPath, "."))
	}
	text.WriteString("\nColumns of `kubectl get`:\n\n| Column | Field | What it says |\n| --- | --- | --- |\n")
	for _, column := range version.AdditionalPrinterColumns {
		name := column.Name
		if column.Priority > 0 {
			name += " (`-o wide`)"
		}
		fmt.Fprintf(text, "| %s | `%s` | %s |\n", name, strings.TrimPrefix(column.JSONPath, "."), cell(column.Description))
	}
	writeRules(text, r)
	for _, part := range []string{"spec", "status"} {
		whole := r.schema.Properties[part]
		fmt.Fprintf(text, "\n### %s of a %s\n\n%s\n", part, spec.Names.Kind, oneLine(whole.Description))
		writeFields(text, &whole, part)
	}
}

// writeFields writes a table of the fields of spec or status, and one for each of these that has fields of its own.
func writeFields(text *strings.Builder, whole *v1.JSONSchemaProps, part string) {
	below := map[string][]row{}
	table := func(rows []row) {
		text.WriteString("\n| Field | Type | Default | Bounds | Description |\n| --- | --- | --- | --- | --- |\n")
		for _, row := range rows {
			fmt.Fprintf(text, "| %s | %s | %s | %s | %s |\n", row.field, row.kind, row.standard, row.bounds, row.description)
		}
	}
	var first []row
	for _, name := range slices.Sorted(maps.Keys(whole.Properties)) {
		inner := whole.Properties[name]
		first = append(first, rowOf(whole, &inner, part, name))
		var rows []row
		deeper(&inner, part+"."+name, &rows)
		below[name] = rows
	}
	table(first)
	for _, name := range slices.Sorted(maps.Keys(below)) {
		if rows := below[name]; len(rows) > 0 {
			fmt.Fprintf(text, "\n#### %s.%s\n", part, name)
			table(rows)
		}
	}
}

// rule is one CEL rule, and the fields that it stands at.
type rule struct {
	at            []string
	message, rule string
}

func writeRules(text *strings.Builder, r resource) {
	var rules []rule
	collectRules(r.schema, "", &rules)
	text.WriteString("\nRules:\n\n")
	for _, rule := range rules {
		fmt.Fprintf(text, "- %s", cell(rule.message))
		if rule.at[0] != "" {
			fmt.Fprintf(text, " (at %s)", codes(rule.at))
		}
		fmt.Fprintf(text, "\n  `%s`\n", rule.rule)
	}
}

func collectRules(schema *v1.JSONSchemaProps, at string, found *[]rule) {
	for _, stated := range schema.XValidations {
		same := func(known rule) bool { return known.rule == stated.Rule && known.message == stated.Message }
		if i := slices.IndexFunc(*found, same); i >= 0 {
			(*found)[i].at = append((*found)[i].at, at)
		} else {
			*found = append(*found, rule{[]string{at}, stated.Message, stated.Rule})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(schema.Properties)) {
		inner := schema.Properties[name]
		collectRules(&inner, strings.TrimPrefix(at+"."+name, "."), found)
	}
	if schema.Items != nil && schema.Items.Schema != nil {
		collectRules(schema.Items.Schema, at+"[]", found)
	}
	if schema.AdditionalProperties != nil && schema.AdditionalProperties.Schema != nil {
		collectRules(schema.AdditionalProperties.Schema, at+".<key>", found)
	}
}

type row struct{ field, kind, standard, bounds, description string }

// walk adds a row for each field below a schema, depth first, in the order of their names.
func walk(schema *v1.JSONSchemaProps, at string, rows *[]row) {
	for _, name := range slices.Sorted(maps.Keys(schema.Properties)) {
		inner := schema.Properties[name]
		*rows = append(*rows, rowOf(schema, &inner, at, name))
		deeper(&inner, at+"."+name, rows)
	}
}

func rowOf(outer, inner *v1.JSONSchemaProps, at, name string) row {
	field := "`" + at + "." + name + "`"
	if slices.Contains(outer.Required, name) {
		field = "**" + field + "**"
	}
	description, standard := takeDefault(oneLine(inner.Description))
	if inner.Default != nil {
		standard = "`" + string(inner.Default.Raw) + "`"
	}
	return row{field, cell(typeOf(inner)), cell(standard), cell(boundsOf(inner)), cell(description)}
}

func deeper(schema *v1.JSONSchemaProps, path string, rows *[]row) {
	switch {
	case schema.Items != nil && schema.Items.Schema != nil:
		deeper(schema.Items.Schema, path+"[]", rows)
	case schema.AdditionalProperties != nil && schema.AdditionalProperties.Schema != nil:
		deeper(schema.AdditionalProperties.Schema, path+".<key>", rows)
	default:
		walk(schema, path, rows)
	}
}

func typeOf(schema *v1.JSONSchemaProps) string {
	switch {
	case schema.Items != nil && schema.Items.Schema != nil:
		return "list of " + typeOf(schema.Items.Schema)
	case schema.AdditionalProperties != nil && schema.AdditionalProperties.Schema != nil:
		return "map of " + typeOf(schema.AdditionalProperties.Schema)
	case schema.Format == "date-time":
		return "time"
	case schema.Type == "object" && schema.XPreserveUnknownFields != nil && *schema.XPreserveUnknownFields:
		return "any object"
	case schema.Format == "int32" || schema.Format == "int64" || schema.Format == "double":
		return schema.Type + " (" + schema.Format + ")"
	}
	return schema.Type
}

func boundsOf(schema *v1.JSONSchemaProps) string {
	var bounds []string
	add := func(bound string) {
		if bound != "" {
			bounds = append(bounds, bound)
		}
	}
	var words []string
	for _, word := range schema.Enum {
		words = append(words, strings.Trim(string(word.Raw), `"`))
	}
	if len(words) > 0 {
		add("one of " + codes(words))
	}
	number := func(value *float64) string {
		if value == nil {
			return ""
		}
		return strconv.FormatFloat(*value, 'f', -1, 64)
	}
	add(interval(number(schema.Minimum), number(schema.Maximum), ""))
	add(interval(count(schema.MinLength), count(schema.MaxLength), " characters"))
	add(interval(count(schema.MinItems), count(schema.MaxItems), " elements"))
	add(interval(count(schema.MinProperties), count(schema.MaxProperties), " keys"))
	if schema.Pattern != "" {
		add("`" + schema.Pattern + "`")
	}
	if schema.Items != nil && schema.Items.Schema != nil {
		if each := boundsOf(schema.Items.Schema); each != "" && schema.Items.Schema.Type != "object" {
			add("each " + each)
		}
	}
	if schema.AdditionalProperties != nil && schema.AdditionalProperties.Schema != nil {
		if each := boundsOf(schema.AdditionalProperties.Schema); each != "" && schema.AdditionalProperties.Schema.Type != "object" {
			add("each " + each)
		}
	}
	return strings.Join(bounds, "; ")
}

func count(value *int64) string {
	if value == nil {
		return ""
	}
	return strconv.FormatInt(*value, 10)
}

func interval(least, most, unit string) string {
	switch {
	case least == "" && most == "":
		return ""
	case least == "":
		return "≤ " + most + unit
	case most == "":
		return "≥ " + least + unit
	case least == most:
		return least + unit
	}
	return least + "–" + most + unit
}

var saysDefault = regexp.MustCompile(`\s*Default: (.+?)\.(\s|$)`)

// takeDefault takes the sentence that says the default out of a description.
func takeDefault(description string) (rest, standard string) {
	at := saysDefault.FindStringSubmatchIndex(description)
	if at == nil {
		return description, ""
	}
	rest = strings.TrimSpace(description[:at[0]] + " " + description[at[1]:])
	return rest, description[at[2]:at[3]]
}

func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }

// cell is a text as it can stand in a table: a bar would end the cell, and <…> would be taken for HTML where it is no code.
func cell(text string) string {
	text = strings.ReplaceAll(text, "|", "\\|")
	parts := strings.Split(text, "`")
	for i := 0; i < len(parts); i += 2 {
		parts[i] = strings.NewReplacer("<", "&lt;", ">", "&gt;").Replace(parts[i])
	}
	return strings.Join(parts, "`")
}

func codes(words []string) string {
	var quoted []string
	for _, word := range words {
		quoted = append(quoted, "`"+word+"`")
	}
	return cmp.Or(strings.Join(quoted, ", "), "none")
}
