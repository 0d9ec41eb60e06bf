//! One value of a typed column, strictly decoded: nothing is rounded, cut or guessed.

use collect_api::record::FieldType;
use jiff::Timestamp;
use serde_json::value::RawValue;

use crate::{
    json::{self, Kind},
    text::shorten,
};

/// One value of a typed column.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    /// Missing or null.
    Null,
    /// Text, or the text of a JSON value.
    Text(String),
    /// 64-bit integer.
    Int(i64),
    /// 64-bit floating point.
    Float(f64),
    /// true or false.
    Bool(bool),
    /// Microseconds since the epoch, UTC.
    Micros(i64),
}

/// Decodes a value for a column of this type.
///
/// # Errors
/// The reason, if it does not fit.
pub fn decode(type_: FieldType, raw: Option<&RawValue>) -> Result<Cell, String> {
    let Some(raw) = raw.filter(|raw| json::kind(raw) != Kind::Null) else { return Ok(Cell::Null) };
    let text = raw.get();
    let cell = match (type_, json::kind(raw)) {
        (FieldType::Json, _) => Some(Cell::Text(text.to_owned())),
        (FieldType::String, Kind::String) => json::scalar(raw).map(Cell::Text),
        (FieldType::Int64, Kind::Number) => text.parse().ok().map(Cell::Int),
        (FieldType::Float64, Kind::Number) => text.parse().ok().filter(|n: &f64| n.is_finite()).map(Cell::Float),
        (FieldType::Boolean, Kind::Boolean) => Some(Cell::Bool(text == "true")),
        (FieldType::Timestamp, Kind::String) => json::scalar(raw)
            .and_then(|text| text.parse::<Timestamp>().ok())
            .map(|at| Cell::Micros(at.as_microsecond())),
        _ => None,
    };
    cell.ok_or_else(|| format!("{} is no {}", shorten(text, 60), word(type_)))
}

fn word(type_: FieldType) -> &'static str {
    match type_ {
        FieldType::String => "string",
        FieldType::Int64 => "int64",
        FieldType::Float64 => "float64",
        FieldType::Boolean => "boolean",
        FieldType::Timestamp => "timestamp (RFC 3339)",
        FieldType::Json => "JSON value",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_fit_or_do_not() {
        let fits = |type_, text: &str| decode(type_, Some(serde_json::from_str(text).unwrap()));
        for (type_, text, wanted) in [
            (FieldType::String, r#""a\u00e9""#, Some(Cell::Text("aé".into()))),
            (FieldType::String, "5", None),
            (FieldType::Int64, "-5", Some(Cell::Int(-5))),
            (FieldType::Int64, "5.0", None),
            (FieldType::Int64, "9223372036854775808", None),
            (FieldType::Int64, "\"5\"", None),
            (FieldType::Float64, "5", Some(Cell::Float(5.0))),
            (FieldType::Float64, "1e400", None),
            (FieldType::Boolean, "true", Some(Cell::Bool(true))),
            (FieldType::Boolean, "1", None),
            (FieldType::Timestamp, "\"1970-01-01T01:00:00.5+01:00\"", Some(Cell::Micros(500_000))),
            (FieldType::Timestamp, "\"1970-01-01\"", None),
            (FieldType::Json, "{\"a\":  1}", Some(Cell::Text("{\"a\":  1}".into()))),
            (FieldType::Int64, "null", Some(Cell::Null)),
        ] {
            assert_eq!(fits(type_, text).ok(), wanted, "{type_:?} {text}");
        }
        assert_eq!(decode(FieldType::Int64, None), Ok(Cell::Null));
        assert_eq!(fits(FieldType::Int64, "\"x\"").unwrap_err(), "\"x\" is no int64");
    }
}
