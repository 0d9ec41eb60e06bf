//! From records by their exact text to a batch, keys and rejects.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use arrow::{
    array::{RecordBatch, RecordBatchOptions},
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use collect_api::{
    record::{FieldType, Record},
    sink::Format,
};
use serde_json::value::RawValue;
use xxhash_rust::xxh3::xxh3_64;

use super::{
    Cell, RecordError, cell,
    columns::{Column, data_type},
};
use crate::{http::JsonPath, json};

/// Column of the exact text.
pub const RAW: &str = "raw";
/// Column of the members that no field takes.
pub const EXTRA: &str = "_extra";

/// Decodes records as declared.
#[derive(Debug)]
pub struct Decoder {
    fields: Vec<Typed>,
    levels: Vec<String>,
    keys: Vec<Key>,
    /// Top-level members that are wanted of every record.
    members: Vec<String>,
    keeps_text: bool,
    schema: SchemaRef,
}

#[derive(Debug)]
struct Typed {
    name: String,
    type_: FieldType,
    from: From,
}

/// Where in a record a value is.
#[derive(Debug)]
enum From {
    /// Top-level member, by its place in `members`.
    Member(usize),
    /// Deeper, or found by a filter.
    Path(JsonPath),
}

#[derive(Debug)]
struct Key {
    name: String,
    from: KeyFrom,
}

#[derive(Debug)]
enum KeyFrom {
    Level,
    Record(From),
}

/// Records of a page, decoded.
#[derive(Debug)]
pub struct Decoded {
    /// The records that fit.
    pub batch: RecordBatch,
    /// Hash of the key of each of them.
    pub keys: Vec<u64>,
    /// Bytes of their text.
    pub bytes: i64,
    /// Those that don't fit.
    pub rejects: Vec<Reject>,
    /// Names of keys that no record had.
    pub absent_keys: Vec<String>,
}

/// A record that doesn't fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reject {
    /// Its place among the records that were decoded together, from 0.
    pub place: usize,
    /// Why.
    pub reason: String,
    /// Its text on one line.
    pub text: String,
}

/// A record on the way into the batch.
struct Row {
    cells: Vec<Cell>,
    extra: Option<String>,
}

impl Decoder {
    /// A decoder for records that go to files of this format.
    ///
    /// # Errors
    /// When the declaration can't work.
    pub fn new(record: &Record, format: Format) -> Result<Self, RecordError> {
        let keeps_text = format == Format::Ndjson;
        if !keeps_text && record.fields.is_empty() {
            return Err(RecordError::NoFields);
        }
        let mut members = Vec::new();
        let mut fields = Vec::new();
        for (name, field) in &record.fields {
            let from = origin(name, field.path.as_deref(), &mut members)?;
            fields.push(Typed { name: name.clone(), type_: field.type_, from });
        }
        let mut keys = Vec::new();
        for name in &record.key {
            let path = record.fields.get(name).and_then(|field| field.path.as_deref());
            let from = match record.levels.contains(name) {
                true => KeyFrom::Level,
                false => KeyFrom::Record(origin(name, path, &mut members)?),
            };
            keys.push(Key { name: name.clone(), from });
        }
        for level in &record.levels {
            place_of(level, &mut members);
        }
        let schema = schema(&fields, &record.levels, keeps_text)?;
        Ok(Self { fields, levels: record.levels.clone(), keys, members, keeps_text, schema })
    }

    /// The schema of every batch.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Decodes records; `values` are the level values that they were asked for with.
    ///
    /// # Errors
    /// When a level has no value here. A record that doesn't fit is no error but a [`Reject`].
    pub fn decode(&self, records: &[&RawValue], values: &BTreeMap<String, String>) -> Result<Decoded, RecordError> {
        let levels = self.level_values(values)?;
        let mut columns: Vec<Column> = self.fields.iter().map(|field| Column::new(field.type_)).collect();
        let mut extras = Column::new(FieldType::Json);
        let mut texts = Column::new(FieldType::String);
        let (mut keys, mut rejects, mut bytes) = (Vec::with_capacity(records.len()), Vec::new(), 0);
        let mut keys_seen = vec![records.is_empty(); self.keys.len()];
        let names: Vec<&str> = self.members.iter().map(String::as_str).collect();
        for (place, record) in records.iter().enumerate() {
            let found = json::members(record, &names).unwrap_or_else(|| vec![None; names.len()]);
            let row = match self.row(record, &found) {
                Ok(row) => row,
                Err(reason) => {
                    rejects.push(Reject { place, reason, text: on_one_line(record.get()) });
                    continue;
                }
            };
            keys.push(self.key(record, &found, values, &mut keys_seen));
            bytes += i64::try_from(record.get().len()).unwrap_or(i64::MAX);
            for (column, cell) in columns.iter_mut().zip(&row.cells) {
                column.push(cell);
            }
            if self.keeps_text {
                texts.push(&Cell::Text(self.text(record, &found, &levels)));
            } else {
                extras.push(&row.extra.map_or(Cell::Null, Cell::Text));
            }
        }
        let batch = self.batch(columns, &levels, if self.keeps_text { texts } else { extras }, keys.len())?;
        let absent = self.keys.iter().zip(keys_seen).filter(|(_, seen)| !seen).map(|(key, _)| key.name.clone());
        // With every record rejected nothing is known about keys.
        let absent_keys = if keys.is_empty() { Vec::new() } else { absent.collect() };
        Ok(Decoded { batch, keys, bytes, rejects, absent_keys })
    }

    fn level_values<'v>(&self, values: &'v BTreeMap<String, String>) -> Result<Vec<&'v str>, RecordError> {
        let value = |name: &String| values.get(name).map(String::as_str);
        self.levels.iter().map(|name| value(name).ok_or_else(|| RecordError::NoLevel { name: name.clone() })).collect()
    }

    fn row(&self, record: &RawValue, found: &[Option<&RawValue>]) -> Result<Row, String> {
        let mut cells = Vec::with_capacity(self.fields.len());
        for field in &self.fields {
            let cell = field.from.find(record, found).and_then(|raw| cell::decode(field.type_, raw));
            cells.push(cell.map_err(|reason| format!("{}: {reason}", field.name))?);
        }
        let extra = if self.keeps_text { None } else { self.extra(record)? };
        Ok(Row { cells, extra })
    }

    /// The members that no field takes whole, as a JSON object.
    fn extra(&self, record: &RawValue) -> Result<Option<String>, String> {
        let entries = json::entries(record).ok_or_else(|| "it is no object".to_owned())?;
        let taken: BTreeSet<&str> = self.fields.iter().filter_map(|field| self.taken(field)).collect();
        let mut extra = String::new();
        for (name, value) in entries.iter().filter(|(name, _)| !taken.contains(name.as_str())) {
            extra.push(if extra.is_empty() { '{' } else { ',' });
            extra.push_str(&serde_json::Value::String(name.clone()).to_string());
            extra.push(':');
            extra.push_str(value.get());
        }
        Ok((!extra.is_empty()).then(|| extra + "}"))
    }

    fn taken<'a>(&'a self, field: &'a Typed) -> Option<&'a str> {
        match &field.from {
            From::Member(place) => self.members.get(*place).map(String::as_str),
            From::Path(_) => None,
        }
    }

    /// Hash of a record's key: each part with its kind and length, so that no two keys run together.
    fn key(
        &self,
        record: &RawValue,
        found: &[Option<&RawValue>],
        values: &BTreeMap<String, String>,
        seen: &mut [bool],
    ) -> u64 {
        let mut bytes = Vec::with_capacity(64);
        for (key, seen) in self.keys.iter().zip(seen) {
            let (tag, text) = match &key.from {
                KeyFrom::Level => {
                    *seen = true;
                    (b'"', values.get(&key.name).cloned().unwrap_or_default())
                }
                KeyFrom::Record(from) => match from.find(record, found).ok().flatten() {
                    None => (b'0', String::new()),
                    Some(raw) => {
                        *seen = true;
                        let tag = raw.get().bytes().next().filter(|first| matches!(first, b'"' | b'n')).unwrap_or(b'1');
                        (tag, json::scalar(raw).unwrap_or_else(|| raw.get().to_owned()))
                    }
                },
            };
            bytes.push(tag);
            bytes.extend_from_slice(&text.len().to_le_bytes());
            bytes.extend_from_slice(text.as_bytes());
        }
        xxh3_64(&bytes)
    }

    /// The record's text on one line, with the levels in front that it does not name itself.
    fn text(&self, record: &RawValue, found: &[Option<&RawValue>], levels: &[&str]) -> String {
        let line = on_one_line(record.get());
        let own = |name: &String| {
            self.members
                .iter()
                .position(|member| member == name)
                .and_then(|place| found.get(place))
                .is_some_and(Option::is_some)
        };
        let added: Vec<String> = self
            .levels
            .iter()
            .zip(levels)
            .filter(|(name, _)| !own(name))
            .map(|(name, value)| format!("{}:{}", quote(name), quote(value)))
            .collect();
        match line.strip_prefix('{') {
            Some(rest) if !added.is_empty() => {
                let comma = if rest.trim_start().starts_with('}') { "" } else { "," };
                format!("{{{}{comma}{rest}", added.join(","))
            }
            _ => line,
        }
    }

    fn batch(
        &self,
        columns: Vec<Column>,
        levels: &[&str],
        last: Column,
        rows: usize,
    ) -> Result<RecordBatch, RecordError> {
        let mut arrays: Vec<_> = columns.into_iter().map(Column::finish).collect();
        for value in levels {
            let mut column = Column::new(FieldType::String);
            let cell = Cell::Text((*value).to_owned());
            (0..rows).for_each(|_| column.push(&cell));
            arrays.push(column.finish());
        }
        arrays.push(last.finish());
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(Arc::clone(&self.schema), arrays, &options)
            .map_err(|error| RecordError::Arrow(error.to_string()))
    }
}

impl From {
    fn find<'a>(&self, record: &'a RawValue, found: &[Option<&'a RawValue>]) -> Result<Option<&'a RawValue>, String> {
        match self {
            Self::Member(place) => Ok(found.get(*place).copied().flatten()),
            Self::Path(path) => path.select(record).map_err(|error| error.to_string()),
        }
    }
}

fn origin(name: &str, path: Option<&str>, members: &mut Vec<String>) -> Result<From, RecordError> {
    let Some(path) = path else { return Ok(From::Member(place_of(name, members))) };
    let path = JsonPath::parse(path)
        .map_err(|error| RecordError::BadPath { name: name.to_owned(), cause: error.to_string() })?;
    Ok(match path.top_member() {
        Some(member) => From::Member(place_of(member, members)),
        None => From::Path(path),
    })
}

fn place_of(name: &str, members: &mut Vec<String>) -> usize {
    members.iter().position(|member| member == name).unwrap_or_else(|| {
        members.push(name.to_owned());
        members.len() - 1
    })
}

fn schema(fields: &[Typed], levels: &[String], keeps_text: bool) -> Result<SchemaRef, RecordError> {
    let typed = fields.iter().map(|field| Field::new(&field.name, data_type(field.type_), true));
    let named = levels.iter().map(|level| Field::new(level, DataType::Utf8, true));
    let last = Field::new(if keeps_text { RAW } else { EXTRA }, DataType::Utf8, true);
    let columns: Vec<Field> = typed.chain(named).chain([last]).collect();
    let mut names = BTreeSet::new();
    match columns.iter().find(|column| !names.insert(column.name())) {
        Some(column) => Err(RecordError::TwiceNamed { name: column.name().clone() }),
        None => Ok(Arc::new(Schema::new(columns))),
    }
}

/// JSON has line breaks only between tokens, where a space means the same.
fn on_one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

fn quote(text: &str) -> String {
    serde_json::Value::String(text.to_owned()).to_string()
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
