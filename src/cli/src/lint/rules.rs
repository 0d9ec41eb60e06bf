//! The rules of a definition (`x-kubernetes-validations`), evaluated as the API server does.
//!
//! Rules over `oldSelf` speak of changes and are skipped where there is nothing to compare with.

use std::collections::BTreeMap;

use cel::{Context, Program};
use serde::{Serialize, Serializer, ser::SerializeMap};
use serde_json::Value;

use super::schema::{Kind, Place, Problem, quoted};

/// A JSON value as CEL has it: whole numbers are signed, and what is null is not there.
struct Plain<'a>(&'a Value);

impl Serialize for Plain<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::Null => serializer.serialize_unit(),
            Value::Bool(value) => serializer.serialize_bool(*value),
            Value::String(text) => serializer.serialize_str(text),
            Value::Number(number) => match number.as_i64() {
                Some(int) => serializer.serialize_i64(int),
                None => serializer.serialize_f64(number.as_f64().unwrap_or(f64::NAN)),
            },
            Value::Array(items) => serializer.collect_seq(items.iter().map(Plain)),
            Value::Object(members) => {
                let mut map = serializer.serialize_map(None)?;
                for (name, value) in members.iter().filter(|(_, value)| !value.is_null()) {
                    map.serialize_entry(name, &Plain(value))?;
                }
                map.end()
            }
        }
    }
}

/// Evaluates rules; each is compiled once.
#[derive(Default)]
pub struct Rules {
    compiled: BTreeMap<String, Result<Program, String>>,
}

impl Rules {
    /// What the rules of a schema, and of all schemas in it, say of a value.
    pub fn check(&mut self, schema: &Value, value: &Value, old: Option<&Value>, at: &Place, out: &mut Vec<Problem>) {
        for rule in schema.get("x-kubernetes-validations").and_then(Value::as_array).into_iter().flatten() {
            self.evaluate(rule, schema, value, old, at, out);
        }
        match value {
            Value::Object(members) => {
                for (name, inner) in members {
                    let known = schema.get("properties").and_then(|properties| properties.get(name));
                    let map = schema.get("additionalProperties").filter(|values| values.is_object());
                    if let Some(inner_schema) = known.or(map) {
                        self.check(inner_schema, inner, old.and_then(|old| old.get(name)), &at.child(name), out);
                    }
                }
            }
            Value::Array(items) => {
                if let Some(inner_schema) = schema.get("items") {
                    for (index, item) in items.iter().enumerate() {
                        self.check(inner_schema, item, None, &at.index(index), out);
                    }
                }
            }
            _ => {}
        }
    }

    fn evaluate(
        &mut self,
        rule: &Value,
        schema: &Value,
        value: &Value,
        old: Option<&Value>,
        at: &Place,
        out: &mut Vec<Problem>,
    ) {
        let Some(text) = rule.get("rule").and_then(Value::as_str) else { return };
        let message = rule
            .get("message")
            .and_then(Value::as_str)
            .map_or_else(|| format!("failed rule: {}", text.trim()), |message| message.trim().to_owned());
        let say = |detail: String| {
            let shown = match schema.get("type").and_then(Value::as_str) {
                Some("object" | "array") | None => String::new(),
                _ => value.as_str().map_or_else(|| format!(": {value}"), |text| format!(": {}", quoted(text))),
            };
            at.problem(Kind::Plain, format!("Invalid value{shown}: {detail}"))
        };
        let program = self
            .compiled
            .entry(text.to_owned())
            .or_insert_with(|| Program::compile(text).map_err(|error| error.to_string()));
        let program = match program {
            Ok(program) => program,
            Err(error) => return out.push(say(format!("rule compile error: {error}"))),
        };
        let speaks_of_a_change = program.references().has_variable("oldSelf");
        match (speaks_of_a_change, old) {
            (true, None) => return,
            // What has not changed is not held against an update.
            (false, Some(old)) if old == value => return,
            _ => {}
        }
        let mut context = Context::default();
        let variables = [("self", Some(value)), ("oldSelf", old)];
        for (name, value) in variables.into_iter().filter_map(|(name, value)| Some((name, value?))) {
            match cel::to_value(Plain(value)) {
                Ok(value) => context.add_variable_from_value(name, value),
                Err(error) => return out.push(say(error.to_string())),
            }
        }
        match program.execute(&context) {
            Ok(cel::Value::Bool(true)) => {}
            Ok(_) => out.push(say(message)),
            Err(error) => out.push(say(format!("{error} evaluating rule: {message}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn said(rule: &str, value: Value, old: Option<Value>) -> Vec<String> {
        let schema = json!({"type": "object", "x-kubernetes-validations": [{"rule": rule, "message": "no"}]});
        let mut out = Vec::new();
        Rules::default().check(&schema, &value, old.as_ref(), &Place::default(), &mut out);
        out.into_iter().map(|problem| problem.message).collect()
    }

    const NO: &str = "Invalid value: no";

    #[test]
    fn what_our_rules_use_is_evaluated() {
        for (rule, value, holds) in [
            ("has(self.a) || size(self.b.c) <= 2", json!({"b": {"c": "ab"}}), true),
            ("has(self.a) || size(self.b.c) <= 2", json!({"b": {"c": "abc"}}), false),
            ("has(self.a)", json!({"a": null}), false),
            ("[has(self.a), has(self.b)].filter(x, x).size() == 1", json!({"a": 1, "b": 1}), false),
            ("[has(self.a), has(self.b)].filter(x, x).size() == 1", json!({"b": {}}), true),
            ("self.u.startsWith('file://')", json!({"u": "file:///x"}), true),
            ("self.l.all(x, x.n != 'r')", json!({"l": [{"n": "a"}, {"n": "r"}]}), false),
            ("self.l.exists(x, x.n == 'r')", json!({"l": [{"n": "a"}]}), false),
            ("self.l.map(x, has(x.as) && x.as == 's') == [false, true]", json!({"l": [{}, {"as": "s"}]}), true),
            ("self.l.filter(x, x > 1).map(x, x) + [9] == [2, 9]", json!({"l": [1, 2]}), true),
            ("(has(self.run) ? self.run : 1) >= 2", json!({}), false),
            ("has(self.a) != has(self.b)", json!({"a": 1}), true),
        ] {
            let expected: &[&str] = if holds { &[] } else { &[NO] };
            assert_eq!(said(rule, value.clone(), None), expected, "{rule} {value}");
        }
    }

    #[test]
    fn a_rule_about_a_change_needs_something_to_compare_with() {
        let rule = "self.run >= oldSelf.run && self.s == oldSelf.s";
        let state = |run: i64| json!({"run": run, "s": {"deep": [1, {"a": "b"}]}});
        assert_eq!(said(rule, state(1), None), [""; 0]);
        assert_eq!(said(rule, state(2), Some(state(1))), [""; 0]);
        assert_eq!(said(rule, state(1), Some(state(2))), [NO]);
    }

    #[test]
    fn a_rule_that_can_not_be_evaluated_refuses() {
        let errors = said("self.missing.deeper == 1", json!({}), None);
        assert!(errors.len() == 1 && errors[0].contains("evaluating rule"), "{errors:?}");
        assert!(said("self.(", json!({}), None)[0].contains("compile error"));
    }
}
