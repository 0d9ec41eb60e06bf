//! What a record is.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a record is: its key, and its columns where the sink needs them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Fields that together tell one record from another: names of declared `fields`, of `levels`, or of top-level members
    /// of the record. Used to count duplicates.
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 128)))]
    pub key: Vec<String>,
    /// Levels whose values become columns, usable in `key`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(min = 1, max = 63)))]
    pub levels: Vec<String>,
    /// Typed columns by name. Without them a record is kept as its exact text.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 256))]
    pub fields: BTreeMap<String, Field>,
}

/// One typed column.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Field {
    /// Type of the column.
    #[serde(rename = "type")]
    pub type_: FieldType,
    /// JSONPath within the record. Default: the member of the same name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512), regex(pattern = r"^\$"))]
    pub path: Option<String>,
}

/// Type of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FieldType {
    /// UTF-8 text.
    String,
    /// 64-bit integer.
    Int64,
    /// 64-bit floating point.
    Float64,
    /// true or false.
    Boolean,
    /// An instant, RFC 3339 in the source, kept in microseconds UTC.
    Timestamp,
    /// A JSON value, kept as its text.
    Json,
}
