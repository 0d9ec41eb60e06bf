//! A source's declaration, compiled: every locator and target is parsed once, before the first request.

use std::collections::BTreeSet;

use ::http::Method;
use collect_api::{
    decompose::Discover,
    protocol::IndependentTotal,
    source::{HttpSource, Method as Verb, Pagination},
};
use url::Url;

use crate::{
    Error,
    http::{
        Draft, HttpError, JsonPath, LocateError, Locator, Target, Variables,
        paginate::{At, Rule, State},
        render,
        template::{self, Escape, uses},
    },
};

/// How the source gives its pages.
#[derive(Clone, Debug)]
pub enum Style {
    /// One request holds everything.
    Once,
    /// Numbered pages.
    Pages {
        /// Where the number goes.
        param: Target,
        /// Number of the first page.
        start: i64,
        /// Records per page that are asked for.
        size: Option<i64>,
        /// Where the size goes.
        size_param: Option<Target>,
    },
    /// Offset and limit.
    Offsets {
        /// Where the offset goes.
        param: Target,
        /// Records per request.
        limit: i64,
        /// Where the limit goes.
        limit_param: Option<Target>,
    },
    /// A token of the answer goes into the next request.
    Cursor {
        /// Where the token is.
        token: Token,
        /// Where the answer says whether more follows.
        more: Option<Locator>,
        /// Where the token goes.
        into: Target,
    },
    /// The answer holds the next URL.
    Next(Locator),
}

/// Where the token of a cursor is.
#[derive(Clone, Debug)]
pub enum Token {
    /// In the answer.
    Answer(Locator),
    /// In the last record of the page.
    LastRecord(JsonPath),
}

/// A source, compiled.
#[derive(Clone, Debug)]
pub struct Endpoint {
    source: HttpSource,
    /// Field that holds the path, for messages.
    path_field: String,
    /// The array of records; absent: the one array in the answer.
    pub records: Option<JsonPath>,
    /// Where the total is.
    pub total: Option<Locator>,
    /// How pages follow.
    pub style: Style,
}

impl Endpoint {
    /// Compiles a source.
    ///
    /// # Errors
    /// When a locator or target is malformed.
    pub fn of(source: &HttpSource) -> Result<Self, LocateError> {
        Ok(Self {
            source: source.clone(),
            path_field: "spec.source.http.path".to_owned(),
            records: source.records.as_deref().map(JsonPath::parse).transpose()?,
            total: source.total.as_deref().map(Locator::parse).transpose()?,
            style: style(source.pagination.as_ref())?,
        })
    }

    /// The endpoint of a level's values: everything of the source but path and records. Query parameters and headers
    /// that use a variable which is not known at that level are left out.
    ///
    /// # Errors
    /// When a locator is malformed.
    pub fn of_discovery(
        source: &HttpSource,
        level: &str,
        discover: &Discover,
        known: &BTreeSet<String>,
    ) -> Result<Self, LocateError> {
        let mut source = without_unknown(source, known);
        source.path = Some(discover.path.clone());
        source.records.clone_from(&discover.records);
        let path_field = format!("discover.path of level `{level}` in spec.decompose.levels");
        Ok(Self { path_field, ..Self::of(&source)? })
    }

    /// The endpoint of an independent total: one request without pages and level values.
    ///
    /// # Errors
    /// When a locator is malformed.
    pub fn of_total(source: &HttpSource, total: &IndependentTotal) -> Result<Self, LocateError> {
        let mut source = without_unknown(source, &BTreeSet::new());
        source.path = Some(total.path.clone());
        source.total = Some(total.value.clone());
        source.pagination = None;
        (source.method, source.body) = (None, None);
        Ok(Self { path_field: "spec.validation.total.path".to_owned(), ..Self::of(&source)? })
    }

    /// The rule that the paginator follows.
    pub fn rule(&self) -> Rule {
        match &self.style {
            Style::Once => Rule::Once,
            Style::Pages { size, .. } => Rule::Pages { asked: *size },
            Style::Offsets { limit, .. } => Rule::Offsets { limit: *limit },
            Style::Cursor { .. } => Rule::Cursor,
            Style::Next(_) => Rule::Next,
        }
    }

    /// The request for an item, without a place in its pages.
    ///
    /// # Errors
    /// When a template can't be rendered or the URL is malformed.
    pub fn draft(&self, variables: &Variables) -> Result<Draft, Error> {
        let source = &self.source;
        let path = source.path.as_deref().unwrap_or_default();
        let path = template::render(&self.path_field, path, Escape::Percent, variables)?;
        let mut url = join(&source.url, &path)?;
        let mut query = Vec::new();
        for (name, template) in &source.query {
            query.push((
                name,
                template::render(&format!("spec.source.http.query.{name}"), template, Escape::Plain, variables)?,
            ));
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let headers = render::headers(&source.headers, "spec.source.http.headers", variables)?;
        let method = if source.method == Some(Verb::Post) { Method::POST } else { Method::GET };
        let body = render::body(source.body.as_ref(), "spec.source.http.body", &headers, variables)?;
        Ok(Draft { method, url, headers, body })
    }

    /// The request for the page that a state points to. A next URL is taken as it is.
    ///
    /// # Errors
    /// When the page's place can't be put into the request.
    pub fn page(&self, draft: &Draft, state: &State) -> Result<Draft, Error> {
        let mut draft = draft.clone();
        match (&self.style, &state.at) {
            (Style::Pages { param, start, size, size_param }, At::Page(page)) => {
                if let Some((target, size)) = size_param.as_ref().zip(*size) {
                    target.put(&mut draft, &size.into())?;
                }
                param.put(&mut draft, &(start + page).into())?;
            }
            (Style::Offsets { param, limit, limit_param }, At::Offset(offset)) => {
                if let Some(target) = limit_param {
                    target.put(&mut draft, &(*limit).into())?;
                }
                param.put(&mut draft, &(*offset).into())?;
            }
            (Style::Cursor { into, .. }, At::Token(token)) => into.put(&mut draft, token)?,
            (Style::Next(_), At::Url(url)) => {
                draft.url = Url::parse(url).map_err(|_| HttpError::BadUrl { url: String::new() })?;
            }
            (Style::Once | Style::Cursor { .. } | Style::Next(_), At::Start) => {}
            _ => return Err(super::PaginateError::WrongState.into()),
        }
        Ok(draft)
    }
}

fn style(pagination: Option<&Pagination>) -> Result<Style, LocateError> {
    Ok(match pagination {
        None | Some(Pagination::None {}) => Style::Once,
        Some(Pagination::Page(page)) => Style::Pages {
            param: Target::parse(&page.param)?,
            start: page.start.unwrap_or(1),
            size: page.size,
            size_param: page.size_param.as_deref().map(Target::parse).transpose()?,
        },
        Some(Pagination::Offset(offset)) => Style::Offsets {
            param: Target::parse(&offset.param)?,
            limit: offset.limit.max(1),
            limit_param: offset.limit_param.as_deref().map(Target::parse).transpose()?,
        },
        Some(Pagination::Cursor(cursor)) => Style::Cursor {
            token: match (&cursor.next, &cursor.last_of) {
                (Some(next), None) => Token::Answer(Locator::parse(next)?),
                (None, Some(last_of)) => Token::LastRecord(JsonPath::parse(last_of)?),
                _ => {
                    return Err(LocateError::NoLocator(
                        "pagination.cursor without exactly one of next and lastOf".into(),
                    ));
                }
            },
            more: cursor.more.as_deref().map(Locator::parse).transpose()?,
            into: Target::parse(&cursor.into)?,
        },
        Some(Pagination::Next(next)) => Style::Next(Locator::parse(&next.url)?),
    })
}

/// The path behind the base URL, never resolved against it; exactly one slash between them.
fn join(base: &str, path: &str) -> Result<Url, HttpError> {
    let text = match (path, base.strip_suffix('/')) {
        ("", _) => base.to_owned(),
        (path, Some(base)) if path.starts_with(['/', '?']) => format!("{base}{path}"),
        (path, None) if !path.starts_with(['/', '?']) => format!("{base}/{path}"),
        (path, _) => format!("{base}{path}"),
    };
    match Url::parse(&text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.host_str().is_some() => Ok(url),
        _ => Err(HttpError::BadUrl { url: text.split('?').next().unwrap_or_default().to_owned() }),
    }
}

fn without_unknown(source: &HttpSource, known: &BTreeSet<String>) -> HttpSource {
    let mut source = source.clone();
    source.query.retain(|_, template| uses(template).is_subset(known));
    source.headers.retain(|_, template| uses(template).is_subset(known));
    source
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Body;
    use serde_json::{Value, json};

    fn source(json: Value) -> HttpSource {
        serde_json::from_value(json).unwrap()
    }

    fn variables(pairs: &[(&str, &str)]) -> Variables {
        Variables::of(pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn a_path_is_appended_never_resolved() {
        for (base, path, wanted) in [
            ("http://x/api", "/districts/1", "http://x/api/districts/1"),
            ("http://x/api/", "/districts", "http://x/api/districts"),
            ("http://x/api", "districts?a=1", "http://x/api/districts?a=1"),
            ("http://x/api", "?a=1", "http://x/api?a=1"),
            ("http://x/api/", "", "http://x/api/"),
            ("http://x", "//evil/", "http://x//evil/"),
        ] {
            assert_eq!(join(base, path).unwrap().as_str(), wanted);
        }
    }

    #[test]
    fn pages_are_asked_for_where_the_declaration_says() {
        let endpoint = Endpoint::of(&source(json!({
            "url": "http://x/api", "path": "/d/{{ d }}", "query": {"q": "{{ d }}&"},
            "pagination": {"page": {"param": "page", "start": 0, "size": 50, "sizeParam": "header:X-Size"}}
        })))
        .unwrap();
        let draft = endpoint.draft(&variables(&[("d", "a/b")])).unwrap();
        let mut state = State::start(endpoint.rule(), super::super::paginate::Span::default());
        state.at = At::Page(2);
        let page = endpoint.page(&draft, &state).unwrap();
        assert_eq!(page.url.as_str(), "http://x/api/d/a%2Fb?q=a%2Fb%26&page=2");
        assert_eq!(page.headers["x-size"], "50");
    }

    #[test]
    fn strings_of_a_json_body_are_templates() {
        let endpoint = Endpoint::of(&source(json!({
            "url": "http://x/graphql", "method": "POST",
            "body": {"json": {"query": "query($n:Int){a(first:$n){id}}", "variables": {"n": 5, "d": "{{ d }}"}}},
            "pagination": {"cursor": {"next": "$.c", "into": "body:/variables/after"}}
        })))
        .unwrap();
        let draft = endpoint.draft(&variables(&[("d", "\"1\"")])).unwrap();
        let mut state = State::start(Rule::Cursor, super::super::paginate::Span::default());
        assert_eq!(endpoint.page(&draft, &state).unwrap().body, draft.body);
        state.at = At::Token(json!("t"));
        let Body::Json(body) = endpoint.page(&draft, &state).unwrap().body else { panic!() };
        assert_eq!(body["variables"], json!({"n": 5, "d": "\"1\"", "after": "t"}));
    }

    #[test]
    fn a_discovery_leaves_out_what_it_can_not_know() {
        let source = source(json!({
            "url": "http://x/api", "path": "/d/{{ d }}", "query": {"d": "{{ d }}", "p": "{{ p }}", "lang": "zh"},
            "headers": {"X-D": "{{ d }}"}, "records": "$.rows"
        }));
        let discover = Discover {
            path: "/p/{{ p }}".into(),
            records: None,
            value: "$.code".into(),
            label: None,
            allow_empty: None,
        };
        let endpoint = Endpoint::of_discovery(&source, "d", &discover, &BTreeSet::from(["p".to_owned()])).unwrap();
        let draft = endpoint.draft(&variables(&[("p", "44")])).unwrap();
        assert_eq!(draft.url.as_str(), "http://x/api/p/44?lang=zh&p=44");
        assert!(draft.headers.is_empty() && endpoint.records.is_none());
    }
}
