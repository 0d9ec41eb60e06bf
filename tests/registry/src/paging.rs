//! The paging styles. Which one a request uses follows from the parameters it carries.
//!
//! | parameters                    | style  | the next page |
//! |-------------------------------|--------|---------------|
//! | `cursor` (empty at first), `limit` | cursor | the opaque `cursor` of the answer |
//! | `after` (a code), `limit`     | after  | the code of the last row |
//! | `offset`, `limit` or `limit` alone | offset | offset + limit |
//! | `page` (from 1), `size`, or none | page | page + 1 |

use std::ops::Range;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::registry::Registry;

/// Rows of a page when the request does not say.
pub const DEFAULT_SIZE: usize = 100;
/// Most rows of a page; a request for more gets this many.
pub const MAX_SIZE: usize = 5000;

/// Query parameters in order.
pub type Params = Vec<(String, String)>;

/// Where a page starts, by style.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Page(usize),
    Offset(usize),
    Cursor(String),
    After(String),
}

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) place: Place,
    pub(crate) size: usize,
}

fn param<'a>(params: &'a Params, name: &str) -> Option<&'a str> {
    params.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

fn number(params: &Params, name: &str, least: usize, default: usize) -> Result<usize, String> {
    let Some(text) = param(params, name) else { return Ok(default) };
    text.parse()
        .ok()
        .filter(|n| *n >= least)
        .ok_or_else(|| format!("{name}={text}: a whole number from {least} on is needed"))
}

impl Asked {
    pub(crate) fn of(params: &Params) -> Result<Self, String> {
        let limit = || number(params, "limit", 1, DEFAULT_SIZE);
        let (place, size) = if let Some(cursor) = param(params, "cursor") {
            (Place::Cursor(cursor.to_owned()), limit()?)
        } else if let Some(after) = param(params, "after") {
            (Place::After(after.to_owned()), limit()?)
        } else if param(params, "offset").is_some() || param(params, "limit").is_some() {
            (Place::Offset(number(params, "offset", 0, 0)?), limit()?)
        } else {
            (Place::Page(number(params, "page", 1, 1)?), number(params, "size", 1, DEFAULT_SIZE)?)
        };
        Ok(Self { place, size: size.min(MAX_SIZE) })
    }

    /// The rows of this page out of the list `rows` of `level`; `list` is the identity that a cursor is bound to.
    pub(crate) fn rows(
        &self,
        registry: &Registry,
        level: usize,
        rows: &Range<usize>,
        list: &str,
    ) -> Result<Range<usize>, String> {
        let start = match &self.place {
            Place::Page(page) => rows.start.saturating_add((page - 1).saturating_mul(self.size)),
            Place::Offset(offset) => rows.start.saturating_add(*offset),
            Place::After(code) => after(registry, level, rows, code),
            Place::Cursor(cursor) if cursor.is_empty() => rows.start,
            Place::Cursor(cursor) => after(registry, level, rows, &open(cursor, list)?),
        };
        let start = start.min(rows.end);
        Ok(start..start.saturating_add(self.size).min(rows.end))
    }

    /// The parameters of the next page, in this request's style.
    pub(crate) fn next(&self, params: &Params, last: &str, cursor: &str) -> Params {
        let (key, value, size) = match &self.place {
            Place::Page(page) => ("page", (page + 1).to_string(), "size"),
            Place::Offset(offset) => ("offset", (offset + self.size).to_string(), "limit"),
            Place::Cursor(_) => ("cursor", cursor.to_owned(), "limit"),
            Place::After(_) => ("after", last.to_owned(), "limit"),
        };
        let mut next: Params = params.iter().filter(|(name, _)| name != key && name != size).cloned().collect();
        next.push((key.to_owned(), value));
        next.push((size.to_owned(), self.size.to_string()));
        next
    }

    /// Number of the page, from 1, as far as the style has one.
    pub(crate) fn page(&self) -> usize {
        match &self.place {
            Place::Page(page) => *page,
            Place::Offset(offset) => offset / self.size + 1,
            Place::Cursor(_) | Place::After(_) => 1,
        }
    }
}

fn after(registry: &Registry, level: usize, rows: &Range<usize>, code: &str) -> usize {
    // The least string above `code`.
    registry.lower_bound(level, rows.clone(), &format!("{code}\0"))
}

/// The cursor behind the row `last` of `list`.
pub(crate) fn seal(list: &str, last: &str) -> String {
    URL_SAFE_NO_PAD.encode(format!("1\n{list}\n{last}"))
}

fn open(cursor: &str, list: &str) -> Result<String, String> {
    let text = URL_SAFE_NO_PAD.decode(cursor).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let parts: Option<Vec<String>> = text.map(|text| text.split('\n').map(str::to_owned).collect());
    match parts.as_deref() {
        Some([version, of, last]) if version == "1" && of == list => Ok(last.clone()),
        _ => Err("the cursor is not one of this list".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(query: &str) -> Params {
        form_urlencoded::parse(query.as_bytes()).into_owned().collect()
    }

    #[test]
    fn parameters_choose_the_style() {
        let place = |query: &str| Asked::of(&params(query)).map(|asked| (asked.place, asked.size));
        assert_eq!(place(""), Ok((Place::Page(1), 100)));
        assert_eq!(place("page=3&size=7"), Ok((Place::Page(3), 7)));
        assert_eq!(place("size=99999"), Ok((Place::Page(1), 5000)));
        assert_eq!(place("limit=7"), Ok((Place::Offset(0), 7)));
        assert_eq!(place("offset=14&limit=7"), Ok((Place::Offset(14), 7)));
        assert_eq!(place("cursor=&limit=7"), Ok((Place::Cursor(String::new()), 7)));
        assert_eq!(place("after=1101"), Ok((Place::After("1101".into()), 100)));
        assert!(
            place("page=0").is_err()
                && place("size=0").is_err()
                && place("offset=-1").is_err()
                && place("limit=x").is_err()
        );
    }

    #[test]
    fn a_cursor_belongs_to_its_list() {
        let cursor = seal("/api/villages?", "110101001001");
        assert_eq!(open(&cursor, "/api/villages?").as_deref(), Ok("110101001001"));
        assert!(open(&cursor, "/api/streets?").is_err());
        assert!(open("bm9uc2Vuc2U", "/api/villages?").is_err());
    }
}
