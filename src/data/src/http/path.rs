//! JSONPath (RFC 9535) on the exact text of an answer. Paths such as `$.a.b[0]` are walked without building a tree; others
//! are evaluated by jsonpath-rust on a tree and the normalised path of the one hit is walked.

use std::fmt;

use jsonpath_rust::parser::{model::JpQuery, parse_json_path};
use jsonpath_rust::query::js_path_process;
use serde_json::{Value, value::RawValue};

use crate::http::LocateError;
use crate::json;

/// Largest answer on which a path that can't be walked is evaluated, in bytes: a tree takes several times as much.
const MAX_TREE_BYTES: usize = 8 << 20;

/// A step of a walk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Member of an object.
    Member(String),
    /// Element of an array.
    Element(usize),
}

/// A compiled JSONPath.
#[derive(Clone)]
pub struct JsonPath {
    text: String,
    form: Form,
}

#[derive(Clone)]
enum Form {
    Walk(Vec<Step>),
    Query(Box<JpQuery>),
}

impl fmt::Debug for JsonPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Display for JsonPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl JsonPath {
    /// Compiles a path.
    ///
    /// # Errors
    /// When it is no JSONPath.
    pub fn parse(text: &str) -> Result<Self, LocateError> {
        let form = match walk_of(text) {
            Some(steps) => Form::Walk(steps),
            None => Form::Query(Box::new(parse_json_path(text).map_err(|_| LocateError::NoPath(text.to_owned()))?)),
        };
        Ok(Self { text: text.to_owned(), form })
    }

    /// The one member of the top level that it names, if that is all it does.
    pub fn top_member(&self) -> Option<&str> {
        match &self.form {
            Form::Walk(steps) => match steps.as_slice() {
                [Step::Member(name)] => Some(name),
                _ => None,
            },
            Form::Query(_) => None,
        }
    }

    /// What it selects; `None` for nothing.
    ///
    /// # Errors
    /// When it selects several values, or the answer is too large to evaluate a path that can't be walked.
    pub fn select<'a>(&self, doc: &'a RawValue) -> Result<Option<&'a RawValue>, LocateError> {
        match &self.form {
            Form::Walk(steps) => Ok(walk(doc, steps)),
            Form::Query(query) => self.evaluate(query, doc),
        }
    }

    fn evaluate<'a>(&self, query: &JpQuery, doc: &'a RawValue) -> Result<Option<&'a RawValue>, LocateError> {
        if doc.get().len() > MAX_TREE_BYTES {
            return Err(LocateError::TooLarge { path: self.text.clone(), max: MAX_TREE_BYTES });
        }
        let tree: Value = serde_json::from_str(doc.get()).map_err(|_| LocateError::NoPath(self.text.clone()))?;
        let hits = js_path_process(query, &tree).map_err(|_| LocateError::NoPath(self.text.clone()))?;
        match hits.as_slice() {
            [] => Ok(None),
            [hit] => Ok(walk_of(&hit.path).and_then(|steps| walk(doc, &steps))),
            _ => Err(LocateError::Several { path: self.text.clone(), count: hits.len() }),
        }
    }
}

fn walk<'a>(doc: &'a RawValue, steps: &[Step]) -> Option<&'a RawValue> {
    steps.iter().try_fold(doc, |raw, step| match step {
        Step::Member(name) => json::member(raw, name),
        Step::Element(place) => json::element(raw, *place),
    })
}

/// The steps of a path that names one place: `$`, `.name`, `['name']`, `["name"]`, `[0]`.
fn walk_of(text: &str) -> Option<Vec<Step>> {
    let mut rest = text.strip_prefix('$')?;
    let mut steps = Vec::new();
    while !rest.is_empty() {
        let (step, tail) = match rest.strip_prefix('.') {
            Some(tail) => shorthand(tail)?,
            None => bracket(rest.strip_prefix('[')?)?,
        };
        steps.push(step);
        rest = tail;
    }
    Some(steps)
}

fn shorthand(text: &str) -> Option<(Step, &str)> {
    let is_name = |c: char| c == '_' || c.is_ascii_alphanumeric() || !c.is_ascii();
    let end = text.find(|c| !is_name(c)).unwrap_or(text.len());
    let (name, tail) = text.split_at(end);
    let starts_well = name.chars().next().is_some_and(|c| !c.is_ascii_digit());
    starts_well.then(|| (Step::Member(name.to_owned()), tail))
}

fn bracket(text: &str) -> Option<(Step, &str)> {
    let quote = text.chars().next()?;
    if quote.is_ascii_digit() {
        let (digits, tail) = text.split_once(']')?;
        return Some((Step::Element(digits.parse().ok()?), tail));
    }
    if quote != '\'' && quote != '"' {
        return None;
    }
    let mut name = String::new();
    let mut chars = text.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => match chars.next()?.1 {
                escaped @ ('\\' | '\'' | '"' | '/') => name.push(escaped),
                _ => return None,
            },
            c if c == quote => return Some((Step::Member(name), text.get(at + 1..)?.strip_prefix(']')?)),
            c => name.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn select<'a>(path: &str, doc: &'a str) -> Result<Option<&'a str>, LocateError> {
        let doc: &RawValue = serde_json::from_str(doc).unwrap();
        Ok(JsonPath::parse(path)?.select(doc)?.map(RawValue::get))
    }

    const DOC: &str = r#"{"data": {"items": [{"id": 1.0}, {"id": 2}]}, "@odata.nextLink": "u", "it's": 3, "n": null}"#;

    #[test]
    fn selects_exact_text() {
        for (path, wanted) in [
            ("$.data.items[0].id", Some("1.0")),
            ("$['data'][\"items\"][1]['id']", Some("2")),
            ("$['@odata.nextLink']", Some("\"u\"")),
            (r"$['it\'s']", Some("3")),
            ("$.n", Some("null")),
            ("$.none.deeper", None),
            ("$", Some(DOC)),
            ("$.data.items[?(@.id == 2)].id", Some("2")),
            ("$..items", Some(r#"[{"id": 1.0}, {"id": 2}]"#)),
            ("$.data.items[-1].id", Some("2")),
            ("$.data.items[?(@.id == 9)]", None),
        ] {
            assert_eq!(select(path, DOC).unwrap(), wanted, "{path}");
        }
    }

    #[test]
    fn several_hits_are_an_error() {
        assert!(matches!(select("$.data.items[*]", DOC), Err(LocateError::Several { count: 2, .. })));
    }

    #[test]
    fn what_is_no_path_is_an_error() {
        for path in ["$.", "$[", "$['a'", "a.b", "$..", "$.a["] {
            assert!(matches!(JsonPath::parse(path), Err(LocateError::NoPath(_))), "{path}");
        }
    }
}
