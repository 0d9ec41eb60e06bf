//! What the API server checks by the schema of a definition, with its words: unknown fields, types, bounds, patterns, enums,
//! required fields.
//!
//! It reads structural schemas as an API server does (no references, no alternatives); a test refuses a definition that uses
//! a keyword which is not known here. Wording and order of the checks follow kube-openapi's validator as of Kubernetes 1.37.

use std::{collections::BTreeMap, fmt};

use regex::Regex;
use serde_json::Value;

use super::document::escape;

/// What kind of error it is, as far as it matters: with a blocking one the rules are not evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A field that no schema knows, or one that stands twice: refused before anything is checked.
    Decoding,
    /// It keeps the rules from being evaluated.
    Blocking,
    /// It does not.
    Plain,
}

/// Something that the API server would refuse.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Field as API servers write it; empty for the object itself.
    pub field: String,
    /// The same as JSON pointer.
    pub pointer: String,
    /// In the API server's words.
    pub message: String,
    /// What kind of error it is.
    pub kind: Kind,
}

/// A place in an object.
#[derive(Clone, Debug, Default)]
pub struct Place {
    /// As API servers write it: `spec.decompose.levels[0].name`.
    pub field: String,
    /// As JSON pointer.
    pub pointer: String,
}

impl Place {
    /// A member of an object.
    pub fn child(&self, name: &str) -> Self {
        let dot = if self.field.is_empty() { "" } else { "." };
        Self { field: format!("{}{dot}{name}", self.field), pointer: format!("{}/{}", self.pointer, escape(name)) }
    }

    /// An element of a list.
    pub fn index(&self, index: usize) -> Self {
        Self { field: format!("{}[{index}]", self.field), pointer: format!("{}/{index}", self.pointer) }
    }

    /// A problem here.
    pub fn problem(&self, kind: Kind, message: String) -> Problem {
        Problem { field: self.field.clone(), pointer: self.pointer.clone(), message, kind }
    }
}

/// Fields that no schema knows.
pub fn unknown_fields(schema: &Value, value: &Value, at: &Place, out: &mut Vec<Problem>) {
    match value {
        Value::Object(members) => {
            let keeps = is_true(schema, "x-kubernetes-preserve-unknown-fields");
            for (name, inner) in members {
                let here = at.child(name);
                let known = schema.get("properties").and_then(|properties| properties.get(name));
                let map = schema.get("additionalProperties").filter(|values| values.is_object());
                match known.or(map) {
                    Some(inner_schema) => unknown_fields(inner_schema, inner, &here, out),
                    None if keeps => {}
                    None => out.push(here.problem(Kind::Decoding, format!("unknown field \"{}\"", here.field))),
                }
            }
        }
        Value::Array(items) => {
            if let Some(schema) = schema.get("items") {
                for (index, item) in items.iter().enumerate() {
                    unknown_fields(schema, item, &at.index(index), out);
                }
            }
        }
        _ => {}
    }
}

/// The value without members that are null: as if nobody had written them. What stands in a list stays.
pub fn without_nulls(schema: &Value, value: &Value) -> Value {
    match value {
        Value::Object(members) => {
            let known = |name: &str| schema.get("properties").and_then(|properties| properties.get(name));
            let map = schema.get("additionalProperties").filter(|values| values.is_object());
            let kept = members.iter().filter_map(|(name, inner)| match known(name).or(map) {
                Some(_) if inner.is_null() => None,
                Some(inner_schema) => Some((name.clone(), without_nulls(inner_schema, inner))),
                None => Some((name.clone(), inner.clone())),
            });
            Value::Object(kept.collect())
        }
        Value::Array(items) => {
            let inner_schema = schema.get("items").unwrap_or(&Value::Null);
            Value::Array(items.iter().map(|item| without_nulls(inner_schema, item)).collect())
        }
        other => other.clone(),
    }
}

/// Checks values against schemas; patterns are compiled once.
#[derive(Debug, Default)]
pub struct Checker {
    patterns: BTreeMap<String, Option<Regex>>,
}

impl Checker {
    /// What is wrong with a value. What is the same as in `old` passes, as it does at the API server.
    pub fn check(&mut self, schema: &Value, value: &Value, old: Option<&Value>, at: &Place, out: &mut Vec<Problem>) {
        if old == Some(value) {
            return;
        }
        check_type(schema, value, at, out);
        match value {
            Value::String(text) => self.check_text(schema, text, at, out),
            Value::Number(number) => check_number(schema, Number::of(number), at, out),
            Value::Array(items) => {
                if let Some(inner) = schema.get("items") {
                    for (index, item) in items.iter().enumerate() {
                        self.check(inner, item, None, &at.index(index), out);
                    }
                }
                check_count(schema, items.len(), at, out);
            }
            Value::Null | Value::Bool(_) | Value::Object(_) => {}
        }
        check_enum(schema, value, at, out);
        if let Value::Object(members) = value {
            if let Some(max) = count(schema, "maxProperties").filter(|max| members.len() > *max) {
                out.push(at.problem(Kind::Blocking, too_many(members.len(), max)));
            }
            for (name, inner) in members {
                let known = schema.get("properties").and_then(|properties| properties.get(name));
                let map = schema.get("additionalProperties").filter(|values| values.is_object());
                if let Some(inner_schema) = known.or(map) {
                    self.check(inner_schema, inner, old.and_then(|old| old.get(name)), &at.child(name), out);
                }
            }
            for name in words(schema, "required").filter(|name| !members.contains_key(*name)) {
                out.push(at.child(name).problem(Kind::Blocking, "Required value".into()));
            }
        }
    }

    fn check_text(&mut self, schema: &Value, text: &str, at: &Place, out: &mut Vec<Problem>) {
        let length = text.chars().count();
        let field = &at.field;
        let shown = quoted(text);
        if let Some(max) = count(schema, "maxLength").filter(|max| length > *max) {
            let bytes = if max == 1 { "byte" } else { "bytes" };
            out.push(at.problem(Kind::Blocking, format!("Too long: may not be more than {max} {bytes}")));
        } else if let Some(min) = count(schema, "minLength").filter(|min| length < *min) {
            let message = format!("Invalid value: {shown}: {field} in body should be at least {min} chars long");
            out.push(at.problem(Kind::Plain, message));
        } else if let Some(pattern) = schema.get("pattern").and_then(Value::as_str)
            && !self.matches(pattern, text)
        {
            out.push(
                at.problem(Kind::Plain, format!("Invalid value: {shown}: {field} in body should match '{pattern}'")),
            );
        }
    }

    /// Patterns are those of Go, where `\s` is one of five characters.
    fn matches(&mut self, pattern: &str, text: &str) -> bool {
        let compile = || Regex::new(&pattern.replace(r"\s", r"\t\n\x0C\r ")).ok();
        let compiled = self.patterns.entry(pattern.to_owned()).or_insert_with(compile);
        compiled.as_ref().is_some_and(|pattern| pattern.is_match(text))
    }
}

/// A number as Go has it after decoding JSON.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Number {
    Int(i64),
    Float(f64),
}

impl Number {
    fn of(number: &serde_json::Number) -> Self {
        number.as_i64().map_or_else(|| Self::Float(number.as_f64().unwrap_or(f64::NAN)), Self::Int)
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Int(number) => write!(f, "{number}"),
            Self::Float(number) => f.write_str(&go_float(*number)),
        }
    }
}

/// `%v` of a float in Go: shortest digits, with an exponent below 1e-4 and from 1e6 on.
fn go_float(number: f64) -> String {
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..6).contains(&exponent) {
        return number.to_string();
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

/// A text as Go quotes it.
pub fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            c if c.is_control() && u32::from(c) < 0x100 => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

fn is_true(schema: &Value, key: &str) -> bool {
    schema.get(key).and_then(Value::as_bool) == Some(true)
}

fn count(schema: &Value, key: &str) -> Option<usize> {
    schema.get(key)?.as_u64().and_then(|count| usize::try_from(count).ok())
}

fn words<'a>(schema: &'a Value, key: &str) -> impl Iterator<Item = &'a str> {
    schema.get(key).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}

fn too_many(found: usize, max: usize) -> String {
    let items = if max == 1 { "item" } else { "items" };
    format!("Too many: {found}: must have at most {max} {items}")
}

fn check_count(schema: &Value, found: usize, at: &Place, out: &mut Vec<Problem>) {
    if let Some(min) = count(schema, "minItems").filter(|min| found < *min) {
        let message = format!("Invalid value: {found}: {} in body should have at least {min} items", at.field);
        out.push(at.problem(Kind::Plain, message));
    }
    if let Some(max) = count(schema, "maxItems").filter(|max| found > *max) {
        out.push(at.problem(Kind::Blocking, too_many(found, max)));
    }
}

fn check_type(schema: &Value, value: &Value, at: &Place, out: &mut Vec<Problem>) {
    let Some(wanted) = schema.get("type").and_then(Value::as_str) else { return };
    let found = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
        Value::Number(number) => match Number::of(number) {
            Number::Int(_) => "integer",
            Number::Float(float) if float.fract() == 0.0 && wanted == "integer" => "integer",
            Number::Float(_) => "number",
        },
    };
    if found == wanted || (found == "integer" && wanted == "number") {
        return;
    }
    // Numbers have a format too; where it is another one, the API server names that.
    let format = schema.get("format").and_then(Value::as_str).filter(|_| matches!(wanted, "integer" | "number"));
    let (wanted, found) = match (format, value) {
        (Some(format), Value::Number(_)) => (format, "float64"),
        (Some(format), Value::Bool(_) | Value::Object(_)) => (format, ""),
        _ => (wanted, found),
    };
    let field = &at.field;
    let message = format!("Invalid value: \"{found}\": {field} in body must be of type {wanted}: \"{found}\"");
    out.push(at.problem(Kind::Blocking, message));
}

fn check_number(schema: &Value, number: Number, at: &Place, out: &mut Vec<Problem>) {
    let field = &at.field;
    let type_ = schema.get("type").and_then(Value::as_str).unwrap_or_default();
    let format = schema.get("format").and_then(Value::as_str);
    let fits = match (type_, number) {
        ("integer", Number::Float(float)) => float.fract() == 0.0,
        ("integer", Number::Int(int)) => format != Some("int32") || i32::try_from(int).is_ok(),
        _ => true,
    };
    if !fits {
        let format = format.map_or_else(|| "(default format)".to_owned(), |format| format!("with format {format}"));
        let message = format!("Invalid value: \"\": Checked value must be of type {type_} {format} in {field}");
        out.push(at.problem(Kind::Plain, message));
    }
    let bound = |key: &str| schema.get(key).and_then(Value::as_f64);
    // A whole number is compared with the whole part of the bound, as the API server does.
    let (below, above) = match number {
        Number::Int(int) => (
            bound("minimum").map(|min| min as i64).filter(|min| int < *min).map(Number::Int),
            bound("maximum").map(|max| max as i64).filter(|max| int > *max).map(Number::Int),
        ),
        Number::Float(float) => (
            bound("minimum").filter(|min| float < *min).map(Number::Float),
            bound("maximum").filter(|max| float > *max).map(Number::Float),
        ),
    };
    if let Some(min) = below {
        let message = format!("Invalid value: {number}: {field} in body should be greater than or equal to {min}");
        out.push(at.problem(Kind::Plain, message));
    }
    if let Some(max) = above {
        let message = format!("Invalid value: {number}: {field} in body should be less than or equal to {max}");
        out.push(at.problem(Kind::Plain, message));
    }
}

/// What the API server says once more, in other words, of the field that the scale subresource shows.
pub fn check_scale(path: &str, object: &Value, root: &Place, out: &mut Vec<Problem>) {
    let mut value = object;
    let mut seen = String::new();
    let mut at = root.clone();
    let names: Vec<&str> = path.trim_start_matches('.').split('.').collect();
    let wrong = |seen: &str, value: &Value, wanted: &str| {
        let (shown, type_) = go_value(value);
        format!("Invalid value: 0: {seen} accessor error: {shown} is of the type {type_}, expected {wanted}")
    };
    let mut message = None;
    for name in names {
        match value {
            Value::Object(members) => match members.get(name) {
                Some(inner) => value = inner,
                None => return,
            },
            _ => {
                message = Some(wrong(&seen, value, "map[string]interface{}"));
                break;
            }
        }
        seen.push_str(&format!(".{name}"));
        at = at.child(name);
    }
    let message = message.or_else(|| match value {
        Value::Number(number) => match Number::of(number) {
            Number::Int(int) if int < 0 => Some(format!("Invalid value: {int}: should be a non-negative integer")),
            Number::Int(int) if int > i64::from(i32::MAX) => {
                Some(format!("Invalid value: {int}: should be less than or equal to {}", i32::MAX))
            }
            Number::Int(_) => None,
            Number::Float(_) => Some(wrong(&seen, value, "int64")),
        },
        other => Some(wrong(&seen, other, "int64")),
    });
    out.extend(message.map(|message| Problem {
        field: path.to_owned(),
        pointer: at.pointer,
        message,
        kind: Kind::Plain,
    }));
}

/// `%v` and `%T` of a value in Go.
fn go_value(value: &Value) -> (String, &'static str) {
    match value {
        Value::Null => ("<nil>".into(), "<nil>"),
        Value::Bool(value) => (value.to_string(), "bool"),
        Value::String(text) => (text.clone(), "string"),
        Value::Number(number) => match Number::of(number) {
            number @ Number::Int(_) => (number.to_string(), "int64"),
            number @ Number::Float(_) => (number.to_string(), "float64"),
        },
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(|item| go_value(item).0).collect();
            (format!("[{}]", items.join(" ")), "[]interface {}")
        }
        Value::Object(members) => {
            let members: Vec<String> =
                members.iter().map(|(name, value)| format!("{name}:{}", go_value(value).0)).collect();
            (format!("map[{}]", members.join(" ")), "map[string]interface {}")
        }
    }
}

fn check_enum(schema: &Value, value: &Value, at: &Place, out: &mut Vec<Problem>) {
    let Some(allowed) = schema.get("enum").and_then(Value::as_array) else { return };
    if allowed.contains(value) {
        return;
    }
    let words: Vec<String> =
        allowed.iter().map(|word| word.as_str().map_or_else(|| quoted(&word.to_string()), quoted)).collect();
    let shown = match value {
        Value::String(text) => quoted(text),
        Value::Number(number) => Number::of(number).to_string(),
        other => other.to_string(),
    };
    out.push(at.problem(Kind::Blocking, format!("Unsupported value: {shown}: supported values: {}", words.join(", "))));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn said(schema: &Value, value: &Value) -> Vec<String> {
        let mut out = Vec::new();
        Checker::default().check(schema, value, None, &Place::default().child("x"), &mut out);
        out.into_iter().map(|problem| problem.message).collect()
    }

    #[test]
    fn bounds_are_told_in_the_api_servers_words() {
        let number = |minimum: f64| json!({"type": "integer", "format": "int32", "minimum": minimum, "maximum": 9.0});
        for (schema, value, message) in [
            (number(1.0), json!(0), "Invalid value: 0: x in body should be greater than or equal to 1"),
            (number(1.0), json!(10), "Invalid value: 10: x in body should be less than or equal to 9"),
            (number(1.0), json!("2"), "Invalid value: \"string\": x in body must be of type integer: \"string\""),
            (number(1.0), json!(null), "Invalid value: \"null\": x in body must be of type integer: \"null\""),
            (json!({"type": "string", "maxLength": 1}), json!("ab"), "Too long: may not be more than 1 byte"),
            (
                json!({"type": "string", "minLength": 2}),
                json!("a"),
                "Invalid value: \"a\": x in body should be at least 2 chars long",
            ),
            (
                json!({"type": "string", "pattern": "^b"}),
                json!("a\""),
                "Invalid value: \"a\\\"\": x in body should match '^b'",
            ),
            (
                json!({"type": "string", "enum": ["b", "c"]}),
                json!("a"),
                "Unsupported value: \"a\": supported values: \"b\", \"c\"",
            ),
            (
                json!({"type": "array", "minItems": 1}),
                json!([]),
                "Invalid value: 0: x in body should have at least 1 items",
            ),
            (json!({"type": "array", "maxItems": 1}), json!([1, 2]), "Too many: 2: must have at most 1 item"),
            (json!({"type": "object", "maxProperties": 0}), json!({"a": 1}), "Too many: 1: must have at most 0 items"),
            (json!({"type": "object", "required": ["a"]}), json!({}), "Required value"),
        ] {
            assert_eq!(said(&schema, &value), [message], "{schema} {value}");
        }
    }

    #[test]
    fn what_fits_is_accepted() {
        for (schema, value) in [
            (json!({"type": "number", "minimum": 0.01}), json!(1)),
            (json!({"type": "integer"}), json!(3.0)),
            (json!({"type": "string", "pattern": r"^[^\s]+$"}), json!("a\u{a0}b")),
            (json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}), json!({"a": [null]})),
            (json!({"type": "string", "format": "date-time"}), json!("whenever")),
        ] {
            assert_eq!(said(&schema, &value), [""; 0], "{schema} {value}");
        }
    }

    #[test]
    fn unknown_fields_are_found_at_any_depth_but_not_where_anything_goes() {
        let schema = json!({"properties": {
            "a": {"items": {"properties": {"b": {}}}},
            "m": {"additionalProperties": {"properties": {"c": {}}}},
            "any": {"x-kubernetes-preserve-unknown-fields": true},
        }});
        let value = json!({"a": [{"b": 1}, {"d": 1}], "m": {"k": {"c": 1, "e": 1}}, "any": {"f": {"g": 1}}, "h": 1});
        let mut out = Vec::new();
        unknown_fields(&schema, &value, &Place::default(), &mut out);
        let mut fields: Vec<_> = out.iter().map(|problem| problem.field.as_str()).collect();
        fields.sort_unstable();
        assert_eq!(fields, ["a[1].d", "h", "m.k.e"]);
        assert!(out.iter().any(|problem| problem.message == "unknown field \"a[1].d\""));
    }

    #[test]
    fn null_is_as_if_it_were_not_there_but_in_lists_and_where_anything_goes() {
        let schema = json!({"properties": {
            "a": {}, "m": {"additionalProperties": {}}, "l": {"items": {"properties": {"b": {}}}},
            "any": {"x-kubernetes-preserve-unknown-fields": true},
        }});
        let value = json!({"a": null, "m": {"k": null}, "l": [null, {"b": null}], "any": {"c": null}});
        assert_eq!(without_nulls(&schema, &value), json!({"m": {}, "l": [null, {}], "any": {"c": null}}));
    }

    #[test]
    fn what_has_not_changed_is_not_held_against_an_update() {
        let schema =
            json!({"properties": {"a": {"type": "string", "maxLength": 1}, "b": {"type": "string", "maxLength": 1}}});
        let (old, new) = (json!({"a": "long", "b": "x"}), json!({"a": "long", "b": "longer"}));
        let mut out = Vec::new();
        Checker::default().check(&schema, &new, Some(&old), &Place::default(), &mut out);
        assert_eq!(out.iter().map(|problem| problem.field.as_str()).collect::<Vec<_>>(), ["b"]);
    }

    #[test]
    fn numbers_look_as_go_writes_them() {
        for (number, text) in [
            (10.5, "10.5"),
            (-0.99, "-0.99"),
            (100_000.0, "100000"),
            (0.000_01, "1e-05"),
            (1e6, "1e+06"),
            (1_000_001.5, "1.0000015e+06"),
        ] {
            assert_eq!(go_float(number), text);
        }
    }
}
