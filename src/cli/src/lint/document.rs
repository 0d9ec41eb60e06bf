//! A YAML or JSON file as values that know where they stand.
//!
//! Plain words become what kubectl makes of them (YAML 1.1, as its parser resolves them): `on` and `n` are booleans, `010` is 8.
//! A person must see here what the API server would get.

use std::collections::BTreeMap;

use granit_parser::{Event, Parser, ScalarStyle, Span, StrInput, options};
use serde_json::{Map, Number, Value};

/// Deepest nesting that is read.
const MAX_DEPTH: usize = 64;

/// One document of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// What it says.
    pub value: Value,
    /// Line of its beginning, from 1.
    pub line: usize,
    /// Lines of everything in it, by JSON pointer.
    places: BTreeMap<String, usize>,
    /// Keys that stand twice in a map: line and key.
    pub repeated: Vec<(usize, String)>,
}

impl Document {
    /// Line of what a JSON pointer names; where that is missing, of what it would stand in.
    pub fn line_of(&self, pointer: &str) -> usize {
        let mut pointer = pointer;
        loop {
            if let Some(line) = self.places.get(pointer) {
                return *line;
            }
            match pointer.rsplit_once('/') {
                Some((above, _)) => pointer = above,
                None => return self.line,
            }
        }
    }
}

/// A file that is no YAML.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{what}")]
pub struct Malformed {
    /// Line, from 1.
    pub line: usize,
    /// What is wrong.
    pub what: String,
}

/// Reads all documents of a text. Empty ones are left out.
///
/// # Errors
/// Where the text is no YAML.
pub fn read(text: &str) -> Result<Vec<Document>, Malformed> {
    let events = Parser::new_from_str_with_options(text, options! { emit_comments: false });
    let mut reader = Reader { events, anchors: BTreeMap::new(), places: BTreeMap::new(), repeated: Vec::new() };
    let mut documents = Vec::new();
    while let Some((event, span)) = reader.next()? {
        match event {
            Event::StreamStart | Event::StreamEnd | Event::DocumentStart(..) | Event::DocumentEnd => {}
            node => {
                let line = span.start.line();
                let value = reader.node(node, &span, "", 0)?;
                let document = Document {
                    value,
                    line,
                    places: std::mem::take(&mut reader.places),
                    repeated: std::mem::take(&mut reader.repeated),
                };
                reader.anchors.clear();
                if !document.value.is_null() {
                    documents.push(document);
                }
            }
        }
    }
    Ok(documents)
}

struct Reader<'a> {
    events: Parser<'a, StrInput<'a>>,
    anchors: BTreeMap<usize, Value>,
    places: BTreeMap<String, usize>,
    repeated: Vec<(usize, String)>,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<Option<(Event<'a>, Span)>, Malformed> {
        match self.events.next() {
            None => Ok(None),
            Some(Ok(event)) => Ok(Some(event)),
            Some(Err(error)) => Err(Malformed { line: error.marker().line(), what: error.info() }),
        }
    }

    fn follow(&mut self, line: usize) -> Result<(Event<'a>, Span), Malformed> {
        self.next()?.ok_or_else(|| Malformed { line, what: "the file ends in the middle of a value".into() })
    }

    fn node(&mut self, event: Event<'a>, span: &Span, pointer: &str, depth: usize) -> Result<Value, Malformed> {
        let line = span.start.line();
        let fail = |what: &str| Err(Malformed { line, what: what.to_owned() });
        if depth > MAX_DEPTH {
            return fail("it is nested too deeply");
        }
        self.places.entry(pointer.to_owned()).or_insert(line);
        let (anchor, value) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                (anchor, scalar(&text, style, tag.is_some_and(|tag| tag.suffix() == "str")))
            }
            Event::SequenceStart(_, anchor, _) => {
                let mut items = Vec::new();
                loop {
                    let (event, span) = self.follow(line)?;
                    if matches!(event, Event::SequenceEnd) {
                        break;
                    }
                    let item = self.node(event, &span, &format!("{pointer}/{}", items.len()), depth + 1)?;
                    items.push(item);
                }
                (anchor, Value::Array(items))
            }
            Event::MappingStart(_, anchor, _) => (anchor, Value::Object(self.mapping(line, pointer, depth)?)),
            Event::Alias(id) => match self.anchors.get(&id) {
                Some(value) => (0, value.clone()),
                None => return fail("an alias points to a value that holds it"),
            },
            _ => return fail("this form of YAML is not read here"),
        };
        if anchor != 0 {
            self.anchors.insert(anchor, value.clone());
        }
        Ok(value)
    }

    fn mapping(&mut self, line: usize, pointer: &str, depth: usize) -> Result<Map<String, Value>, Malformed> {
        let mut map = Map::new();
        let mut merged: Vec<Value> = Vec::new();
        loop {
            let (event, span) = self.follow(line)?;
            if matches!(event, Event::MappingEnd) {
                break;
            }
            let at = span.start.line();
            let is_merge = matches!(&event, Event::Scalar(text, ScalarStyle::Plain, ..) if text == "<<");
            let key = match self.node(event, &span, &format!("{pointer}/\u{0}"), depth + 1)? {
                Value::String(key) => key,
                Value::Number(number) => number.to_string(),
                Value::Bool(key) => key.to_string(),
                Value::Null | Value::Array(_) | Value::Object(_) => {
                    return Err(Malformed { line: at, what: "a key of a map must be a word or a number".into() });
                }
            };
            let inner = format!("{pointer}/{}", escape(&key));
            self.places.entry(inner.clone()).or_insert(at);
            let (event, span) = self.follow(at)?;
            let value = self.node(event, &span, &inner, depth + 1)?;
            if is_merge {
                merged.push(value);
            } else if map.insert(key.clone(), value).is_some() {
                self.repeated.push((at, key));
            }
        }
        // What stands in the map itself wins over what is merged into it.
        let parts = merged.into_iter().flat_map(|value| match value {
            Value::Array(parts) => parts,
            other => vec![other],
        });
        for part in parts {
            let Value::Object(part) = part else {
                return Err(Malformed { line, what: "`<<` merges maps only".into() });
            };
            for (key, value) in part {
                map.entry(key).or_insert(value);
            }
        }
        Ok(map)
    }
}

/// A key as a step of a JSON pointer.
pub fn escape(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

/// What kubectl's parser makes of a scalar.
fn scalar(text: &str, style: ScalarStyle, is_text: bool) -> Value {
    if is_text || style != ScalarStyle::Plain {
        return Value::String(text.to_owned());
    }
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => return Value::Bool(true),
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Value::Bool(false);
        }
        _ => {}
    }
    let starts_like_a_number = text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '.' | '+' | '-'));
    if !starts_like_a_number || is_date(text) {
        return Value::String(text.to_owned());
    }
    let plain = text.replace('_', "");
    integer(&plain).or_else(|| float(&plain)).unwrap_or_else(|| Value::String(text.to_owned()))
}

/// Whole numbers: decimal, `0x`, `0o`, `0b`, and octal with a mere leading zero.
fn integer(text: &str) -> Option<Value> {
    let (negative, digits) = match text.strip_prefix(['-', '+']) {
        Some(digits) => (text.starts_with('-'), digits),
        None => (false, text),
    };
    if !digits.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let lower = digits.to_ascii_lowercase();
    let number = if let Some(hex) = lower.strip_prefix("0x") {
        u64::from_str_radix(hex, 16)
    } else if let Some(octal) = lower.strip_prefix("0o") {
        u64::from_str_radix(octal, 8)
    } else if let Some(binary) = lower.strip_prefix("0b") {
        u64::from_str_radix(binary, 2)
    } else if lower.len() > 1 && lower.starts_with('0') {
        u64::from_str_radix(&lower, 8)
    } else {
        lower.parse()
    };
    let number = number.ok()?;
    match negative {
        false => Some(Value::Number(number.into())),
        true => i64::try_from(number).ok().map(|number| Value::Number((-number).into())),
    }
}

fn float(text: &str) -> Option<Value> {
    let body = text.strip_prefix(['-', '+']).unwrap_or(text);
    let is_float = body.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && body.contains(|c: char| c.is_ascii_digit())
        && body.chars().all(|c| c.is_ascii_digit() || matches!(c, '.' | 'e' | 'E' | '+' | '-'));
    let number: f64 = if is_float { text.parse().ok()? } else { return None };
    // As JSON has it: a whole number is one, however it was written.
    if number.fract() == 0.0 && number.abs() < 1e15 {
        return Some(Value::Number((number as i64).into()));
    }
    Number::from_f64(number).map(Value::Number)
}

/// `2026-01-31`, with or without a time: kubectl keeps it as text.
fn is_date(text: &str) -> bool {
    let year = text.split('-').next().unwrap_or_default();
    year.len() == 4 && year.bytes().all(|b| b.is_ascii_digit()) && text.len() > 5 && text.matches('-').count() >= 2
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn one(text: &str) -> Value {
        read(text).unwrap().remove(0).value
    }

    #[test]
    fn plain_words_become_what_kubectl_makes_of_them() {
        for (text, value) in [
            ("on", json!(true)),
            ("n", json!(false)),
            ("'on'", json!("on")),
            ("010", json!(8)),
            ("0x10", json!(16)),
            ("1_000", json!(1000)),
            ("44", json!(44)),
            ("'44'", json!("44")),
            ("4.0", json!(4)),
            ("10.5", json!(10.5)),
            ("1e3", json!(1000)),
            ("-3", json!(-3)),
            ("08", json!(8)),
            ("2026-01-01T00:00:00Z", json!("2026-01-01T00:00:00Z")),
            ("2026-01-01", json!("2026-01-01")),
            ("12:30:00", json!("12:30:00")),
            ("1.2.3", json!("1.2.3")),
            ("6h", json!("6h")),
            ("!!str 5", json!("5")),
            ("\"a\\tb\"", json!("a\tb")),
            ("{a: [1, x], b: {}}", json!({"a": [1, "x"], "b": {}})),
        ] {
            assert_eq!(one(text), value, "{text}");
        }
        assert!(read("~").unwrap().is_empty(), "an empty document is none");
    }

    #[test]
    fn everything_knows_its_line() {
        let text = "a: 1\nb:\n  - c: 2\n    d: >-\n      long\n  - e/f: 3\n---\ng: 4\n";
        let documents = read(text).unwrap();
        let lines: Vec<usize> = ["", "/a", "/b", "/b/0", "/b/0/d", "/b/1/e~1f", "/b/1/missing/too", "/nothing"]
            .iter()
            .map(|pointer| documents[0].line_of(pointer))
            .collect();
        assert_eq!(lines, [1, 1, 2, 3, 4, 6, 6, 1]);
        assert_eq!((documents.len(), documents[1].line_of("/g")), (2, 8));
    }

    #[test]
    fn anchors_merges_and_repeated_keys_are_seen() {
        let text = "base: &b {x: 1, z: 2}\nuse: {<<: *b, z: 3}\nbase: 5\n";
        let document = read(text).unwrap().remove(0);
        assert_eq!(document.value["use"], json!({"x": 1, "z": 3}));
        assert_eq!(document.repeated, [(3, "base".to_owned())]);
    }

    #[test]
    fn what_is_no_yaml_says_where() {
        let error = read("a: 1\nb: [1, 2\nc: 3\n").unwrap_err();
        assert!(error.line >= 2 && !error.what.is_empty(), "{error:?}");
        let deep = "[".repeat(200) + &"]".repeat(200);
        assert!(read(&deep).is_err());
    }
}
