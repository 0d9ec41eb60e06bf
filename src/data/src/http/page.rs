//! What a page holds: its records by their exact text, and the facts that decide what follows.

use serde_json::{Value, value::RawValue};
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    Error,
    http::{Answer, Endpoint, JsonPath, Origins, Style, endpoint::Token, paginate::Facts},
    json,
};

/// An answer that is JSON but holds no records where they should be.
#[derive(Debug, thiserror::Error)]
pub enum PageError {
    /// The path selects nothing.
    #[error(
        "{what} answered {status}: `{path}` selects nothing in {excerpt:?}; change spec.source.http.records (or the level's discover.records)"
    )]
    Nothing {
        /// The request.
        what: String,
        /// The status.
        status: u16,
        /// The JSONPath.
        path: String,
        /// Beginning of the answer.
        excerpt: String,
    },
    /// The path selects something else than an array.
    #[error(
        "{what} answered {status}: `{path}` selects no array in {excerpt:?}; make spec.source.http.records (or the level's discover.records) select the array of records"
    )]
    NoArray {
        /// The request.
        what: String,
        /// The status.
        status: u16,
        /// The JSONPath.
        path: String,
        /// Beginning of the answer.
        excerpt: String,
    },
    /// No array at all.
    #[error(
        "{what} answered {status} without an array: {excerpt:?}; set spec.source.http.records to the array of records"
    )]
    NoneFound {
        /// The request.
        what: String,
        /// The status.
        status: u16,
        /// Beginning of the answer.
        excerpt: String,
    },
    /// Several arrays.
    #[error(
        "{what} answered with several arrays: {paths}; set spec.source.http.records to the one that holds the records"
    )]
    SeveralFound {
        /// The request.
        what: String,
        /// Their paths.
        paths: String,
    },
}

impl PageError {
    /// Short word.
    pub fn category(&self) -> &'static str {
        "RecordsNotFound"
    }
}

/// The records of an answer and its facts.
///
/// # Errors
/// When the records are not where they should be, or another locator finds the wrong kind of value.
pub fn read<'a>(
    endpoint: &Endpoint,
    origins: &Origins,
    answer: &'a Answer,
) -> Result<(Vec<&'a RawValue>, Facts), Error> {
    let array = records(endpoint.records.as_ref(), answer)?;
    let records = json::elements(array).unwrap_or_default();
    let (body, headers) = (&*answer.body, &answer.headers);
    let total = endpoint.total.as_ref().map(|total| total.find_number(body, headers)).transpose()?.flatten();
    let (next, more) = match &endpoint.style {
        Style::Once | Style::Pages { .. } | Style::Offsets { .. } => (None, None),
        Style::Cursor { token, more, .. } => {
            let more = more.as_ref().map(|more| more.find_flag(body, headers)).transpose()?.flatten();
            (token_of(token, answer, records.last().copied())?, more)
        }
        Style::Next(locator) => {
            let reference = locator.find(body, headers)?.and_then(|value| value.as_str().map(str::to_owned));
            let url = reference.filter(|reference| !reference.is_empty());
            (url.map(|url| origins.follow(&answer.url, &url)).transpose()?.map(|url| Value::String(url.into())), None)
        }
    };
    let count = i64::try_from(records.len()).unwrap_or(i64::MAX);
    let facts = Facts { records: count, digest: xxh3_64(array.get().as_bytes()), total, next, more };
    Ok((records, facts))
}

fn token_of(token: &Token, answer: &Answer, last: Option<&RawValue>) -> Result<Option<Value>, Error> {
    Ok(match (token, last) {
        (Token::Answer(locator), _) => locator.find(&answer.body, &answer.headers)?,
        (Token::LastRecord(_), None) => None,
        (Token::LastRecord(path), Some(record)) => {
            path.select(record)?.and_then(|raw| serde_json::from_str(raw.get()).ok()).filter(|v: &Value| !v.is_null())
        }
    })
}

fn records<'a>(path: Option<&JsonPath>, answer: &'a Answer) -> Result<&'a RawValue, Error> {
    let (what, status) = (answer.what.clone(), answer.status.as_u16());
    let Some(path) = path else {
        let mut found = json::arrays(&answer.body);
        return match (found.pop(), found.is_empty()) {
            (Some((_, array)), true) => Ok(array),
            (Some((last, _)), false) => {
                let mut paths: Vec<String> = found.into_iter().map(|(path, _)| path).collect();
                paths.push(last);
                paths.truncate(10);
                Err(PageError::SeveralFound { what, paths: paths.join(", ") }.into())
            }
            (None, _) => Err(PageError::NoneFound { what, status, excerpt: answer.excerpt.clone() }.into()),
        };
    };
    match path.select(&answer.body)? {
        Some(array) if json::kind(array) == json::Kind::Array => Ok(array),
        Some(_) => {
            Err(PageError::NoArray { what, status, path: path.to_string(), excerpt: answer.excerpt.clone() }.into())
        }
        None => {
            Err(PageError::Nothing { what, status, path: path.to_string(), excerpt: answer.excerpt.clone() }.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use ::http::{HeaderMap, StatusCode};
    use collect_api::source::HttpSource;

    use super::*;

    fn read_page(source: Value, body: &str) -> Result<(Vec<String>, Facts), Error> {
        let mut source = source;
        source["url"] = "https://x.example/api".into();
        let source: HttpSource = serde_json::from_value(source).unwrap();
        let answer = Answer {
            what: "GET /api".into(),
            status: StatusCode::OK,
            url: "https://x.example/api?page=1".parse().unwrap(),
            headers: HeaderMap::new(),
            body: RawValue::from_string(body.to_owned()).unwrap(),
            excerpt: body.to_owned(),
        };
        let (records, facts) = read(&Endpoint::of(&source)?, &Origins::of(&source)?, &answer)?;
        Ok((records.into_iter().map(|raw| raw.get().to_owned()).collect(), facts))
    }

    #[test]
    fn records_keep_their_exact_text() {
        let source = serde_json::json!({"records": "$.data.rows", "total": "$.n"});
        let (records, facts) =
            read_page(source, r#"{"data": {"rows": [{"id": 1.0,  "a": "\u00e9"}, 7]}, "n": 2}"#).unwrap();
        assert_eq!(records, [r#"{"id": 1.0,  "a": "\u00e9"}"#, "7"]);
        assert_eq!((facts.records, facts.total), (2, Some(2)));
    }

    #[test]
    fn the_one_array_is_found_and_several_are_listed() {
        let none = serde_json::json!({});
        assert_eq!(read_page(none.clone(), "[1,2]").unwrap().0, ["1", "2"]);
        assert_eq!(read_page(none.clone(), r#"{"a": {"b": [1]}, "n": 1}"#).unwrap().0, ["1"]);
        let error = read_page(none.clone(), r#"{"a": [], "meta": {"tags": [1]}}"#).unwrap_err().to_string();
        assert!(error.contains("$['a'], $['meta']['tags']; set spec.source.http.records"), "{error}");
        assert!(read_page(none, r#"{"error": "no"}"#).unwrap_err().to_string().contains("without an array"));
    }

    #[test]
    fn a_path_that_finds_no_array_says_what_it_saw() {
        let source = serde_json::json!({"records": "$.data"});
        let error = read_page(source.clone(), r#"{"errors": [{"message": "bad"}]}"#).unwrap_err();
        assert_eq!((error.category(), error.class()), ("RecordsNotFound", crate::Class::Permanent));
        assert!(error.to_string().contains(r#"`$.data` selects nothing in "{\"errors\""#), "{error}");
        assert!(read_page(source, r#"{"data": null}"#).unwrap_err().to_string().contains("selects no array"));
    }

    #[test]
    fn next_urls_are_resolved_and_kept_at_home() {
        let source = serde_json::json!({"records": "$.d", "pagination": {"next": {"url": "$.next"}}});
        let next = |body: &str| read_page(source.clone(), body).map(|(_, facts)| facts.next);
        assert_eq!(next(r#"{"d": [], "next": "?page=2"}"#).unwrap(), Some("https://x.example/api?page=2".into()));
        assert_eq!(next(r#"{"d": [], "next": null}"#).unwrap(), None);
        let error = next(r#"{"d": [], "next": "https://evil.example/"}"#).unwrap_err().to_string();
        assert!(error.contains("https://evil.example") && error.contains("allowOrigins"), "{error}");
    }

    #[test]
    fn the_last_record_may_give_the_token() {
        let source = serde_json::json!({"records": "$.d", "pagination": {"cursor": {"lastOf": "$.id", "more": "$.m", "into": "after"}}});
        let (_, facts) = read_page(source, r#"{"d": [{"id": 1}, {"id": 2}], "m": true}"#).unwrap();
        assert_eq!((facts.next, facts.more), (Some(2.into()), Some(true)));
    }
}
