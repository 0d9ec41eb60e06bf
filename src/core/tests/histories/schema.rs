//! The bounds that the schema of a resource sets, held against an object as the API server would (I18).

use collect_api::{CollectShard, CollectTask, ValidationReport};
use kube::CustomResourceExt;
use serde_json::Value;

/// The schemas of our kinds.
pub struct Schemas {
    pub task: Value,
    pub shard: Value,
    pub report: Value,
}

impl Schemas {
    pub fn new() -> Self {
        Self { task: of::<CollectTask>(), shard: of::<CollectShard>(), report: of::<ValidationReport>() }
    }
}

fn of<K: CustomResourceExt>() -> Value {
    let definition = serde_json::to_value(K::crd()).unwrap();
    definition.pointer("/spec/versions/0/schema/openAPIV3Schema/properties/status").unwrap().clone()
}

/// The first place where a value leaves the bounds of its schema.
pub fn misfit(value: &Value, schema: &Value, at: &str) -> Option<String> {
    let bound = |name: &str| schema.get(name).and_then(Value::as_f64);
    let beyond = |number: f64, least: &str, most: &str| {
        bound(least).is_some_and(|least| number < least) || bound(most).is_some_and(|most| number > most)
    };
    let out = match value {
        Value::Number(number) => beyond(number.as_f64().unwrap(), "minimum", "maximum"),
        Value::String(text) => beyond(text.chars().count() as f64, "minLength", "maxLength"),
        Value::Array(items) => beyond(items.len() as f64, "minItems", "maxItems"),
        Value::Object(_) | Value::Null | Value::Bool(_) => false,
    };
    if out {
        return Some(format!("{at} is out of bounds: {value}"));
    }
    match value {
        Value::Array(items) => items.iter().find_map(|item| misfit(item, schema.get("items")?, at)),
        Value::Object(fields) => {
            let required = schema.get("required").and_then(Value::as_array).into_iter().flatten();
            let missing = required.filter_map(Value::as_str).find(|name| !fields.contains_key(*name));
            missing.map(|name| format!("{at} lacks {name}")).or_else(|| {
                fields.iter().find_map(|(name, field)| {
                    let known = schema.get("properties").and_then(|properties| properties.get(name));
                    let at = format!("{at}.{name}");
                    match known.or_else(|| schema.get("additionalProperties")) {
                        Some(schema) => misfit(field, schema, &at),
                        None => Some(format!("{at} is unknown to the schema")),
                    }
                })
            })
        }
        _ => None,
    }
}
