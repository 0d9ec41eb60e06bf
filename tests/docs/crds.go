package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	v1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"sigs.k8s.io/yaml"
)

// resource is one custom resource: its definition, and what an API server makes of its schema.
type resource struct {
	definition v1.CustomResourceDefinition
	schema     *v1.JSONSchemaProps
	structural *schema.Structural
	values     validation.SchemaValidator
	rules      *cel.Validator
}

// resources reads crds/.
func resources(top string) (map[string]resource, error) {
	files, err := filepath.Glob(filepath.Join(top, "crds", "*.yaml"))
	if err != nil || len(files) == 0 {
		return nil, fmt.Errorf("no definitions in crds/: %w", err)
	}
	found := map[string]resource{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		var definition v1.CustomResourceDefinition
		if err := yaml.UnmarshalStrict(text, &definition); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		resource, err := compile(definition)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		found[definition.Spec.Names.Kind] = resource
	}
	return found, nil
}

func compile(definition v1.CustomResourceDefinition) (resource, error) {
	versioned := definition.Spec.Versions[0].Schema.OpenAPIV3Schema
	var internal apiextensions.JSONSchemaProps
	if err := v1.Convert_v1_JSONSchemaProps_To_apiextensions_JSONSchemaProps(versioned, &internal, nil); err != nil {
		return resource{}, err
	}
	structural, err := schema.NewStructural(&internal)
	if err != nil {
		return resource{}, err
	}
	values, _, err := validation.NewSchemaValidator(&internal)
	if err != nil {
		return resource{}, err
	}
	return resource{definition, versioned, structural, values, cel.NewValidator(structural, true, celconfig.PerCallLimit)}, nil
}

// refusals says why an API server would refuse to create an object: unknown fields, values that don't fit, rules in CEL.
func (r resource) refusals(object map[string]any) []string {
	var problems []string
	pruned := pruning.PruneWithOptions(copyOf(object), r.structural, true, schema.UnknownFieldPathOptions{TrackUnknownFieldPaths: true})
	for _, path := range pruned {
		problems = append(problems, path+" is no field")
	}
	errs := validation.ValidateCustomResource(nil, object, r.values)
	if len(errs) == 0 {
		errs, _ = r.rules.Validate(context.Background(), field.NewPath("root"), r.structural, object, nil, celconfig.RuntimeCELCostBudget)
	}
	for _, err := range errs {
		problems = append(problems, strings.TrimPrefix(err.Error(), "root."))
	}
	return problems
}

func copyOf(value any) any {
	switch value := value.(type) {
	case map[string]any:
		copied := map[string]any{}
		for key, inner := range value {
			copied[key] = copyOf(inner)
		}
		return copied
	case []any:
		copied := make([]any, len(value))
		for i, inner := range value {
			copied[i] = copyOf(inner)
		}
		return copied
	}
	return value
}

// has says whether a schema has a field. A segment `*` or `<word>` stands for any name; lists and maps may be walked
// through without naming an element.
func has(schema *v1.JSONSchemaProps, path []string) bool {
	if len(path) == 0 {
		return true
	}
	if schema.XPreserveUnknownFields != nil && *schema.XPreserveUnknownFields {
		return true
	}
	if schema.Items != nil && schema.Items.Schema != nil {
		return has(schema.Items.Schema, path)
	}
	if schema.AdditionalProperties != nil && schema.AdditionalProperties.Schema != nil {
		return has(schema.AdditionalProperties.Schema, path[1:])
	}
	if path[0] == "*" || strings.HasPrefix(path[0], "<") {
		for _, inner := range schema.Properties {
			if has(&inner, path[1:]) {
				return true
			}
		}
		return false
	}
	inner, known := schema.Properties[path[0]]
	return known && has(&inner, path[1:])
}

// names are the words by which kubectl knows the resources of the API.
func names(all map[string]resource) []string {
	var words []string
	for _, resource := range all {
		of := resource.definition.Spec.Names
		words = append(append(append(words, of.Plural, of.Singular), of.ShortNames...), of.Categories...)
	}
	slices.Sort(words)
	return slices.Compact(words)
}
