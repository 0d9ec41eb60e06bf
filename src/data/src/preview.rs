//! A look at a task before it runs: one branch of the tree, the first request, the first records, their columns.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use collect_api::{
    decompose::Decompose,
    plan::{Item, Part},
    protocol::RateShare,
    source::{Auth, HttpSource},
};
use serde_json::value::RawValue;

use crate::{
    Control, Error, Settings,
    http::{
        self, Body, Client, Draft, Endpoint, Variables,
        paginate::{Span, State},
    },
    json::{self, Kind},
    plan::{Choice, Tree, walk},
    secrets::Secrets,
    text,
};

/// Records that are shown.
const SHOWN: usize = 5;

/// What a task would do first.
#[derive(Debug)]
pub struct Preview {
    /// The branch of the tree along the chosen values.
    pub tree: Tree,
    /// The first request, a line each for URL, headers and body; credentials as `***`.
    pub request: Vec<String>,
    /// What it gave; absent if the branch has no work.
    pub answer: Option<First>,
}

/// The first answer.
#[derive(Debug)]
pub struct First {
    /// Its status.
    pub status: u16,
    /// Records on the page.
    pub records: i64,
    /// Records that the source says it holds.
    pub total: Option<i64>,
    /// The first of them, by their exact text.
    pub shown: Vec<String>,
    /// Their top-level members.
    pub columns: Vec<Column>,
}

/// A top-level member of the records on the first page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Type to declare in `spec.record.fields`.
    pub type_: &'static str,
    /// Whether it is missing or null in some records.
    pub is_optional: bool,
    /// One of its values, shortened.
    pub example: String,
}

/// Looks at a task along these level values; where none is given, along the first value.
///
/// # Errors
/// What would end the planner or the first worker.
pub async fn preview(
    source: &HttpSource,
    decompose: &Decompose,
    values: BTreeMap<String, String>,
    settings: &Settings,
) -> Result<Preview, Error> {
    let control = Control::new(&RateShare::default());
    let client = Arc::new(Client::new(source, &Secrets::below(&settings.secrets_dir), settings.page_bytes, &control)?);
    let tree = walk(&client, source, decompose, &Choice::One(values)).await?;
    let endpoint = Endpoint::of(source)?;
    let leaf = tree.nodes.iter().find_map(|node| Some((node, node.shards.first()?.first()?)));
    let Some((node, item)) = leaf else { return Ok(Preview { tree, request: Vec::new(), answer: None }) };
    let mut known: BTreeMap<_, _> = node.path.iter().map(|step| (step.level.clone(), step.value.clone())).collect();
    known.extend(item.values.clone());
    let draft = endpoint.draft(&Variables { values: known, range: range_of(item) })?;
    let state = State::start(endpoint.rule(), Span::of(endpoint.rule(), &item.part)?);
    let draft = endpoint.page(&draft, &state)?;
    let request = describe(&draft, source.auth.as_ref());
    let answer = client.send(&draft).await?;
    let (records, facts) = http::read(&endpoint, client.origins(), &answer)?;
    let first = First {
        status: answer.status.as_u16(),
        records: facts.records,
        total: facts.total,
        shown: records.iter().take(SHOWN).map(|record| record.get().to_owned()).collect(),
        columns: columns(&records),
    };
    Ok(Preview { tree, request, answer: Some(first) })
}

fn range_of(item: &Item) -> Option<collect_api::plan::KeySpan> {
    match &item.part {
        Part::Range(span) => Some(span.clone()),
        Part::Whole {} | Part::Pages(_) | Part::Offsets(_) => None,
    }
}

fn describe(draft: &Draft, auth: Option<&Auth>) -> Vec<String> {
    let mut lines = vec![format!("{} {}", draft.method, draft.url)];
    lines.extend(
        draft.headers.iter().map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value.as_bytes()))),
    );
    lines.extend(auth.map(|auth| match auth {
        Auth::Bearer(_) => "authorization: Bearer ***".to_owned(),
        Auth::Basic(_) => "authorization: Basic ***".to_owned(),
        Auth::ApiKey(key) => format!("{}: ***", key.into),
    }));
    match &draft.body {
        Body::None => {}
        body => lines.extend(body.encode().map(|(bytes, _)| text::shorten(&String::from_utf8_lossy(&bytes), 1000))),
    }
    lines
}

/// The top-level members of these records, in order of their first appearance.
pub fn columns(records: &[&RawValue]) -> Vec<Column> {
    let mut names: Vec<String> = Vec::new();
    let mut seen: BTreeMap<String, (BTreeSet<&'static str>, usize, String)> = BTreeMap::new();
    for record in records {
        for (name, value) in json::entries(record).unwrap_or_default() {
            if json::kind(value) == Kind::Null {
                seen.entry(name.clone()).or_default();
            } else {
                let (types, count, example) = seen.entry(name.clone()).or_default();
                types.insert(type_of(value));
                *count += 1;
                if example.is_empty() {
                    *example = text::shorten(value.get(), 40);
                }
            }
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    let column = |name: String| {
        let (types, count, example) = seen.get(&name).cloned().unwrap_or_default();
        Column { name, type_: common(&types), is_optional: count < records.len(), example }
    };
    names.into_iter().map(column).collect()
}

fn type_of(value: &RawValue) -> &'static str {
    match json::kind(value) {
        Kind::Boolean => "boolean",
        Kind::Number if value.get().parse::<i64>().is_ok() => "int64",
        Kind::Number => "float64",
        Kind::String if json::scalar(value).is_some_and(|text| text.parse::<jiff::Timestamp>().is_ok()) => "timestamp",
        Kind::String => "string",
        Kind::Null | Kind::Array | Kind::Object => "json",
    }
}

/// The one type that holds all of these.
fn common(types: &BTreeSet<&'static str>) -> &'static str {
    let all = |allowed: &[&str]| types.iter().all(|found| allowed.contains(found));
    match types.iter().next() {
        None => "json",
        Some(only) if types.len() == 1 => only,
        Some(_) if all(&["int64", "float64"]) => "float64",
        Some(_) if all(&["string", "timestamp"]) => "string",
        Some(_) => "json",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_get_the_type_that_holds_every_value() {
        let texts = [
            r#"{"n": 1, "f": 1, "t": "2024-01-01T00:00:00Z", "s": "a", "o": {"x": 1}, "z": null}"#,
            r#"{"n": 2, "f": 1.5, "t": "2024-01-01T00:00:00Z", "s": "2024-01-01T00:00:00Z", "m": 1}"#,
            r#"{"n": 3, "f": 2, "t": "2024-01-01T00:00:00Z", "s": "b", "m": "x"}"#,
        ];
        let records: Vec<&RawValue> = texts.iter().map(|text| serde_json::from_str(text).unwrap()).collect();
        let found: Vec<_> = columns(&records).into_iter().map(|c| (c.name, c.type_, c.is_optional)).collect();
        let wanted = [
            ("n", "int64", false),
            ("f", "float64", false),
            ("t", "timestamp", false),
            ("s", "string", false),
            ("o", "json", true),
            ("z", "json", true),
            ("m", "json", true),
        ];
        assert_eq!(found, wanted.map(|(name, type_, optional)| (name.to_owned(), type_, optional)));
    }
}
