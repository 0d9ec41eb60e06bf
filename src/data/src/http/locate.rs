//! Where an answer says something: `$…` in the body, `header:Name`, or `link:rel` in the Link header (RFC 8288).

use ::http::{HeaderMap, HeaderName};
use serde_json::{Value, value::RawValue};

use crate::http::JsonPath;
use crate::text::shorten;

/// A locator that is malformed, or a place that holds something else than it should.
#[derive(Debug, thiserror::Error)]
pub enum LocateError {
    /// Not a JSONPath.
    #[error("`{0}` is no JSONPath of RFC 9535; write one such as $.data.items")]
    NoPath(String),
    /// Not a locator.
    #[error("`{0}` is no locator; write a JSONPath such as $.total, header:Name or link:next")]
    NoLocator(String),
    /// Not a target.
    #[error("`{0}` is no target; write a query parameter's name, query:name, header:Name or body:/json/pointer")]
    NoTarget(String),
    /// The target's place in the body does not exist.
    #[error("`body:{pointer}` can't be set: {cause}; change the pointer or spec.source.http.body.json")]
    NoPlace {
        /// The JSON pointer.
        pointer: String,
        /// What is in the way.
        cause: &'static str,
    },
    /// Several values where one is needed.
    #[error(
        "`{path}` selects {count} values where one is needed; make it select one, such as the array instead of its elements"
    )]
    Several {
        /// The path.
        path: String,
        /// Number of values.
        count: usize,
    },
    /// Too large an answer for a path that can't be walked.
    #[error(
        "`{path}` can't be evaluated on answers above {max} bytes; use a path of names only, such as $.data.items, or smaller pages"
    )]
    TooLarge {
        /// The path.
        path: String,
        /// Bound in bytes.
        max: usize,
    },
    /// A value of the wrong kind.
    #[error("`{locator}` holds {found} where {wanted} is needed; change the locator")]
    WrongKind {
        /// The locator.
        locator: String,
        /// What it holds.
        found: String,
        /// What is needed.
        wanted: &'static str,
    },
}

impl LocateError {
    /// Short word.
    pub fn category(&self) -> &'static str {
        match self {
            Self::NoPath(_) | Self::NoLocator(_) | Self::NoTarget(_) | Self::NoPlace { .. } => "LocatorInvalid",
            Self::Several { .. } | Self::TooLarge { .. } | Self::WrongKind { .. } => "LocatorMismatch",
        }
    }
}

/// Where an answer says something.
#[derive(Clone, Debug)]
pub enum Locator {
    /// In the body.
    Json(JsonPath),
    /// In a header.
    Header(HeaderName),
    /// The target of a Link header with this relation.
    Link(String),
}

impl Locator {
    /// Compiles a locator.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn parse(text: &str) -> Result<Self, LocateError> {
        let wrong = || LocateError::NoLocator(text.to_owned());
        if text.starts_with('$') {
            return JsonPath::parse(text).map(Self::Json);
        }
        match text.split_once(':') {
            Some(("header", name)) => name.parse().map(Self::Header).map_err(|_| wrong()),
            Some(("link", relation)) if !relation.is_empty() => Ok(Self::Link(relation.to_ascii_lowercase())),
            _ => Err(wrong()),
        }
    }

    /// The scalar there; `None` if there is none or it is null.
    ///
    /// # Errors
    /// When several values or an object or array are there.
    pub fn find(&self, body: &RawValue, headers: &HeaderMap) -> Result<Option<Value>, LocateError> {
        match self {
            Self::Header(name) => {
                Ok(headers.get(name).map(|value| Value::String(String::from_utf8_lossy(value.as_bytes()).into_owned())))
            }
            Self::Link(relation) => Ok(link(headers, relation).map(Value::String)),
            Self::Json(path) => match path.select(body)? {
                None => Ok(None),
                Some(raw) => match serde_json::from_str(raw.get()) {
                    Ok(Value::Null) => Ok(None),
                    Ok(value @ (Value::Bool(_) | Value::Number(_) | Value::String(_))) => Ok(Some(value)),
                    _ => Err(self.wrong_kind(raw.get(), "a text or number")),
                },
            },
        }
    }

    /// The whole number there.
    ///
    /// # Errors
    /// When something else is there.
    pub fn find_number(&self, body: &RawValue, headers: &HeaderMap) -> Result<Option<i64>, LocateError> {
        let Some(value) = self.find(body, headers)? else { return Ok(None) };
        let number = match &value {
            Value::Number(number) => number.as_i64().or_else(|| whole(number.as_f64()?)),
            Value::String(text) => text.trim().parse().ok(),
            _ => None,
        };
        match number {
            Some(number) if number >= 0 => Ok(Some(number)),
            _ => Err(self.wrong_kind(&value.to_string(), "a whole number")),
        }
    }

    /// The boolean there; a missing one is `None`.
    ///
    /// # Errors
    /// When something else is there.
    pub fn find_flag(&self, body: &RawValue, headers: &HeaderMap) -> Result<Option<bool>, LocateError> {
        match self.find(body, headers)? {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(Some(true)),
            Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(Some(false)),
            Some(other) => Err(self.wrong_kind(&other.to_string(), "true or false")),
        }
    }

    fn wrong_kind(&self, found: &str, wanted: &'static str) -> LocateError {
        LocateError::WrongKind { locator: self.to_string(), found: shorten(found, 60), wanted }
    }
}

impl std::fmt::Display for Locator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Json(path) => path.fmt(f),
            Self::Header(name) => write!(f, "header:{name}"),
            Self::Link(relation) => write!(f, "link:{relation}"),
        }
    }
}

#[allow(clippy::cast_possible_truncation, reason = "the fraction was checked and the range is exact below 2^53")]
fn whole(number: f64) -> Option<i64> {
    (number.fract() == 0.0 && number.abs() < 9_007_199_254_740_992.0).then_some(number as i64)
}

/// Target of the first Link header value with this relation (RFC 8288): relations are compared without case, a value
/// may have several.
pub fn link(headers: &HeaderMap, relation: &str) -> Option<String> {
    headers.get_all(::http::header::LINK).iter().filter_map(|value| value.to_str().ok()).find_map(|value| {
        let mut rest = value;
        while let Some((_, tail)) = rest.split_once('<') {
            let (target, tail) = tail.split_once('>')?;
            let (parameters, next) = split_unquoted(tail, ',');
            if relations(parameters).any(|found| found.eq_ignore_ascii_case(relation)) {
                return Some(target.trim().to_owned());
            }
            rest = next;
        }
        None
    })
}

/// Splits at the first separator outside quotes.
fn split_unquoted(text: &str, separator: char) -> (&str, &str) {
    let (mut quoted, mut escaped) = (false, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            c if c == separator && !quoted => {
                return (text.get(..at).unwrap_or_default(), text.get(at + 1..).unwrap_or_default());
            }
            _ => {}
        }
    }
    (text, "")
}

fn relations(mut parameters: &str) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        (!parameters.is_empty()).then(|| {
            let (parameter, rest) = split_unquoted(parameters, ';');
            parameters = rest;
            parameter
        })
    })
    .filter_map(|parameter| parameter.split_once('='))
    .filter(|(name, _)| name.trim().eq_ignore_ascii_case("rel"))
    .flat_map(|(_, value)| value.trim().trim_matches('"').split_ascii_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn links_are_read_as_rfc_8288_has_them() {
        let map = headers(&[
            ("link", r#"<https://x/1>; rel="prev first"; title="a, <b>; rel=next""#),
            ("link", r#"<https://x/a,b?p=2>;REL=Next, <https://x/9>; rel="last""#),
        ]);
        assert_eq!(link(&map, "next").as_deref(), Some("https://x/a,b?p=2"));
        assert_eq!(link(&map, "first").as_deref(), Some("https://x/1"));
        assert_eq!(link(&map, "last").as_deref(), Some("https://x/9"));
        assert_eq!(link(&map, "up"), None);
    }

    #[test]
    fn totals_may_be_numbers_or_numeric_texts() {
        let body: &RawValue =
            serde_json::from_str(r#"{"a": 5, "b": "6", "c": 7.0, "d": null, "e": "x", "f": {}, "g": -1}"#).unwrap();
        let map = headers(&[("x-total-count", " 8")]);
        let find = |text: &str| Locator::parse(text).unwrap().find_number(body, &map);
        for (text, wanted) in [
            ("$.a", Some(5)),
            ("$.b", Some(6)),
            ("$.c", Some(7)),
            ("$.d", None),
            ("$.none", None),
            ("header:X-Total-Count", Some(8)),
            ("header:X-None", None),
        ] {
            assert_eq!(find(text).unwrap(), wanted, "{text}");
        }
        for text in ["$.e", "$.f", "$.g"] {
            assert!(matches!(find(text), Err(LocateError::WrongKind { .. })), "{text}");
        }
    }

    #[test]
    fn what_is_no_locator_is_an_error() {
        for text in ["total", "header:", "header:a b", "link:", "query:x"] {
            assert!(Locator::parse(text).is_err(), "{text}");
        }
    }
}
