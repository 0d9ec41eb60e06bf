//! A page's records as Arrow batches.
//!
//! The schema is decided once, from the declaration. NDJSON keeps each record's exact text in the column `raw`: only line
//! breaks between tokens become spaces (JSON has none inside strings), and `record.levels` are put in front as members
//! unless the record has such a member itself. Parquet holds the declared fields, the levels, and every member that no
//! field takes whole in the JSON column `_extra`. A record that doesn't fit goes to the reject file, never silently away.

mod cell;
mod columns;
mod decode;

pub use cell::Cell;
pub use decode::{Decoded, Decoder, EXTRA, RAW, Reject};

/// A declaration of records that can't work, or records that don't fit it at all.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// No record of the first page has a key.
    #[error(
        "no record of the first page has `{name}`, which spec.record.key names; it has: {members}; name one of these, a declared field or a level of spec.record.levels"
    )]
    KeyMissing {
        /// Name of the key.
        name: String,
        /// Members of the first record.
        members: String,
    },
    /// Two columns of one name.
    #[error("spec.record has two columns `{name}`; rename one of fields and levels (`raw` and `_extra` are taken)")]
    TwiceNamed {
        /// Name of the column.
        name: String,
    },
    /// A level that has no value here.
    #[error("spec.record.levels names `{name}`, which has no value here; name a level of spec.decompose.levels")]
    NoLevel {
        /// Name of the level.
        name: String,
    },
    /// Parquet without fields.
    #[error("format: parquet needs typed columns: declare them in spec.record.fields")]
    NoFields,
    /// Not a path.
    #[error("field `{name}`: {cause}")]
    BadPath {
        /// Name of the field.
        name: String,
        /// What is wrong.
        cause: String,
    },
    /// Arrow refused.
    #[error("a batch of records can't be built: {0}; this is a bug, please report it")]
    Arrow(String),
}

impl RecordError {
    /// Short word.
    pub fn category(&self) -> &'static str {
        match self {
            Self::KeyMissing { .. } => "KeyMissing",
            Self::TwiceNamed { .. } | Self::NoLevel { .. } | Self::NoFields | Self::BadPath { .. } => "RecordInvalid",
            Self::Arrow(_) => "Internal",
        }
    }
}
