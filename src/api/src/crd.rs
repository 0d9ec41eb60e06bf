//! The CustomResourceDefinitions, as they are installed.
//!
//! What the derive makes is tidied here: no `nullable`, no unsigned formats (API servers warn of them), and unions get a rule
//! whose message names their members in place of a bare `oneOf`.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::{Map, Value, json};

use crate::{CollectShard, CollectTask, ValidationReport};

/// The definitions by plural name.
pub fn all() -> Result<Vec<(&'static str, Value)>, serde_json::Error> {
    [
        ("collecttasks", CollectTask::crd()),
        ("collectshards", CollectShard::crd()),
        ("validationreports", ValidationReport::crd()),
    ]
    .into_iter()
    .map(|(plural, crd)| Ok((plural, tidy_crd(crd)?)))
    .collect()
}

/// Where the schema of a status is.
const STATUS: &str = "/schema/openAPIV3Schema/properties/status";

fn tidy_crd(crd: CustomResourceDefinition) -> Result<Value, serde_json::Error> {
    let kind = crd.spec.names.kind.clone();
    let mut value = serde_json::to_value(crd)?;
    if let Some(versions) = value.pointer_mut("/spec/versions").and_then(Value::as_array_mut) {
        for version in versions {
            if let Some(schema) = version.pointer_mut("/schema/openAPIV3Schema") {
                tidy(schema);
            }
            // What nobody has looked at yet would count as done to kstatus, which `helm install --wait` and Flux go by: without a
            // status there is nothing that it is not. No generation is -1, so it is in progress from the start.
            let unseen = match kind.as_str() {
                "CollectTask" => json!({"observedGeneration": -1}),
                "CollectShard" => json!({"observedGeneration": -1, "phase": "Pending"}),
                _ => continue,
            };
            if let Some(Value::Object(status)) = version.pointer_mut(STATUS) {
                status.insert("default".into(), unseen);
            }
        }
    }
    Ok(value)
}

fn tidy(schema: &mut Value) {
    let Value::Object(object) = schema else { return };
    object.remove("nullable");
    if object.get("format").and_then(Value::as_str).is_some_and(|format| format.starts_with("uint")) {
        object.remove("format");
    }
    if let Some(Value::Array(words)) = object.get_mut("enum") {
        words.retain(|word| !word.is_null());
    }
    if let Some(members) = union_members(object) {
        object.remove("oneOf");
        let rule = members.iter().map(|member| format!("has(self.{member})")).collect::<Vec<_>>().join(", ");
        let rule = json!({
            "rule": format!("[{rule}].filter(x, x).size() == 1"),
            "message": format!("set exactly one of: {}", members.join(", ")),
        });
        match object.get_mut("x-kubernetes-validations") {
            Some(Value::Array(rules)) => rules.push(rule),
            _ => {
                object.insert("x-kubernetes-validations".into(), Value::Array(vec![rule]));
            }
        }
    }
    for key in ["properties", "patternProperties"] {
        if let Some(Value::Object(properties)) = object.get_mut(key) {
            properties.values_mut().for_each(tidy);
        }
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = object.get_mut(key) {
            tidy(inner);
        }
    }
    // The derive has no word for the length of a map's values.
    if let Some(Value::Object(values)) = object.get_mut("additionalProperties")
        && values.get("type").and_then(Value::as_str) == Some("string")
    {
        values.entry("maxLength").or_insert(json!(2048));
    }
}

/// The members of a union that is given as `oneOf` over single required members.
fn union_members(object: &Map<String, Value>) -> Option<Vec<String>> {
    let choices = object.get("oneOf")?.as_array()?;
    choices
        .iter()
        .map(|choice| match choice.get("required")?.as_array()?.as_slice() {
            [Value::String(member)] => Some(member.clone()),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(path: &str, schema: &Value, visit: &mut impl FnMut(&str, &Value)) {
        visit(path, schema);
        if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
            for (name, inner) in properties {
                walk(&format!("{path}.{name}"), inner, visit);
            }
        }
        for key in ["items", "additionalProperties"] {
            if let Some(inner) = schema.get(key).filter(|inner| inner.is_object()) {
                walk(&format!("{path}[]"), inner, visit);
            }
        }
    }

    fn each_schema(mut visit: impl FnMut(&str, &Value)) {
        for (plural, crd) in all().unwrap() {
            let schema = crd.pointer("/spec/versions/0/schema/openAPIV3Schema").unwrap();
            for part in ["spec", "status"] {
                walk(&format!("{plural}.{part}"), &schema["properties"][part], &mut visit);
            }
        }
    }

    #[test]
    fn every_field_is_described() {
        let mut bare = Vec::new();
        each_schema(|path, schema| {
            if schema.get("description").is_none() && !path.ends_with("[]") {
                bare.push(path.to_owned());
            }
        });
        assert_eq!(bare, Vec::<String>::new());
    }

    #[test]
    fn every_string_list_and_map_of_a_spec_is_bounded() {
        let mut unbounded = Vec::new();
        each_schema(|path, schema| {
            if !path.contains(".spec") {
                return;
            }
            let bounded = match schema.get("type").and_then(Value::as_str) {
                Some("string") => {
                    schema.get("maxLength").is_some() || schema.get("enum").is_some() || schema.get("format").is_some()
                }
                Some("array") => schema.get("maxItems").is_some(),
                Some("object") if schema.get("additionalProperties").is_some() => schema.get("maxProperties").is_some(),
                _ => true,
            };
            if !bounded {
                unbounded.push(path.to_owned());
            }
        });
        assert_eq!(unbounded, Vec::<String>::new());
    }

    #[test]
    fn nothing_is_left_that_an_api_server_warns_of() {
        each_schema(|path, schema| {
            assert!(schema.get("nullable").is_none(), "{path}");
            assert!(schema.get("oneOf").is_none(), "{path}: {schema}");
            assert!(!schema.get("format").and_then(Value::as_str).unwrap_or("").starts_with("uint"), "{path}");
        });
    }

    #[test]
    fn a_status_has_no_closed_enums() {
        each_schema(|path, schema| {
            if path.contains(".status") {
                assert!(schema.get("enum").is_none(), "{path}");
            }
        });
    }
}
