//! A request in the making, and where page numbers, sizes and tokens go in it.

use ::http::{HeaderMap, HeaderName, HeaderValue, Method};
use bytes::Bytes;
use serde_json::Value;
use url::Url;

use crate::http::LocateError;

/// A request without credentials; those are added when it is sent.
#[derive(Clone, Debug)]
pub struct Draft {
    /// Method.
    pub method: Method,
    /// URL with query.
    pub url: Url,
    /// Headers.
    pub headers: HeaderMap,
    /// Body.
    pub body: Body,
}

/// Body of a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    /// None.
    None,
    /// JSON.
    Json(Value),
    /// Form fields.
    Form(Vec<(String, String)>),
    /// Text.
    Text(String),
}

impl Body {
    /// The bytes to send, with their content type.
    pub fn encode(&self) -> Option<(Bytes, &'static str)> {
        match self {
            Self::None => None,
            Self::Json(value) => Some((value.to_string().into(), "application/json")),
            Self::Form(fields) => {
                let text = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
                Some((text.into(), "application/x-www-form-urlencoded"))
            }
            Self::Text(text) => Some((text.clone().into(), "text/plain; charset=utf-8")),
        }
    }
}

/// Where a value goes in a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A query parameter; one of the same name is replaced.
    Query(String),
    /// A header.
    Header(HeaderName),
    /// A place in the JSON body, as a JSON pointer (RFC 6901); missing objects on the way are made.
    Body(String),
}

impl Target {
    /// Compiles `query:x`, `x`, `header:Name` or `body:/json/pointer`.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn parse(text: &str) -> Result<Self, LocateError> {
        let wrong = || LocateError::NoTarget(text.to_owned());
        match text.split_once(':') {
            Some(("query", name)) if !name.is_empty() => Ok(Self::Query(name.to_owned())),
            Some(("header", name)) => name.parse().map(Self::Header).map_err(|_| wrong()),
            Some(("body", pointer)) if pointer.starts_with('/') => Ok(Self::Body(pointer.to_owned())),
            Some(("query" | "body", _)) => Err(wrong()),
            _ if text.is_empty() => Err(wrong()),
            _ => Ok(Self::Query(text.to_owned())),
        }
    }

    /// Puts a value there. Numbers stay numbers in a body and become text elsewhere.
    ///
    /// # Errors
    /// When there is no such place.
    pub fn put(&self, draft: &mut Draft, value: &Value) -> Result<(), LocateError> {
        let text = match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        match self {
            Self::Query(name) => set_query(&mut draft.url, name, &text),
            Self::Header(name) => {
                let value =
                    HeaderValue::from_str(&text).map_err(|_| LocateError::NoTarget(format!("header:{name}")))?;
                draft.headers.insert(name, value);
            }
            Self::Body(pointer) => set_body(&mut draft.body, pointer, value)?,
        }
        Ok(())
    }
}

/// Sets a query parameter, in the place of the first one with that name.
pub(crate) fn set_query(url: &mut Url, name: &str, value: &str) {
    let mut pairs: Vec<(String, String)> = url.query_pairs().into_owned().collect();
    match pairs.iter_mut().find(|(key, _)| key == name) {
        Some(pair) => value.clone_into(&mut pair.1),
        None => pairs.push((name.to_owned(), value.to_owned())),
    }
    url.query_pairs_mut().clear().extend_pairs(pairs);
}

/// Removes a query parameter; a URL without it stays as it is, byte for byte.
pub(crate) fn remove_query(url: &mut Url, name: &str) {
    let pairs: Vec<(String, String)> = url.query_pairs().into_owned().collect();
    if !pairs.iter().any(|(key, _)| key == name) {
        return;
    }
    url.set_query(None);
    let rest: Vec<_> = pairs.into_iter().filter(|(key, _)| key != name).collect();
    if !rest.is_empty() {
        url.query_pairs_mut().extend_pairs(rest);
    }
}

fn set_body(body: &mut Body, pointer: &str, value: &Value) -> Result<(), LocateError> {
    let fail = |cause| LocateError::NoPlace { pointer: pointer.to_owned(), cause };
    let Body::Json(root) = body else { return Err(fail("the request has no JSON body")) };
    let mut place = root;
    for token in pointer.split('/').skip(1) {
        let token = token.replace("~1", "/").replace("~0", "~");
        place = match place {
            Value::Object(object) => object.entry(token).or_insert(Value::Null),
            Value::Array(array) => token
                .parse::<usize>()
                .ok()
                .and_then(|place| array.get_mut(place))
                .ok_or_else(|| fail("there is no such element"))?,
            empty @ Value::Null => {
                *empty = Value::Object(serde_json::Map::new());
                match empty {
                    Value::Object(object) => object.entry(token).or_insert(Value::Null),
                    _ => return Err(fail("there is no object")),
                }
            }
            _ => return Err(fail("a text, number or boolean is in the way")),
        };
    }
    *place = value.clone();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn draft(body: Body) -> Draft {
        Draft {
            method: Method::GET,
            url: "http://x/api?a=1&page=0&b=%26".parse().unwrap(),
            headers: HeaderMap::new(),
            body,
        }
    }

    #[test]
    fn values_go_where_the_target_says() {
        let mut draft = draft(Body::Json(json!({"variables": {"n": 5}, "list": [1]})));
        for (target, value) in [
            ("page", json!(3)),
            ("query:new", json!("a&b")),
            ("header:X-Size", json!(10)),
            ("body:/variables/after", json!("tok")),
            ("body:/deep/er", json!(1)),
            ("body:/list/0", json!(2)),
        ] {
            Target::parse(target).unwrap().put(&mut draft, &value).unwrap();
        }
        assert_eq!(draft.url.query(), Some("a=1&page=3&b=%26&new=a%26b"));
        assert_eq!(draft.headers["x-size"], "10");
        assert_eq!(
            draft.body,
            Body::Json(json!({"variables": {"n": 5, "after": "tok"}, "deep": {"er": 1}, "list": [2]}))
        );
    }

    #[test]
    fn a_place_that_is_not_there_is_an_error() {
        let put = |body, target: &str| {
            Target::parse(target).unwrap().put(&mut draft(body), &json!(1)).unwrap_err().to_string()
        };
        assert!(put(Body::None, "body:/a").contains("no JSON body"));
        assert!(put(Body::Json(json!({"a": "x"})), "body:/a/b").contains("in the way"));
        assert!(put(Body::Json(json!([])), "body:/0").contains("no such element"));
    }

    #[test]
    fn what_is_no_target_is_an_error() {
        for text in ["", "query:", "header:", "header:a b", "body:a", "body:"] {
            assert!(Target::parse(text).is_err(), "{text}");
        }
        assert_eq!(Target::parse("filter:name").unwrap(), Target::Query("filter:name".into()));
    }
}
