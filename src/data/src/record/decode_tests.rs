use arrow::array::{Array, AsArray};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use serde_json::json;

use super::*;

fn decoder(record: serde_json::Value, format: Format) -> Result<Decoder, RecordError> {
    Decoder::new(&serde_json::from_value(record).unwrap(), format)
}

fn raws<'a>(texts: &[&'a str]) -> Vec<&'a RawValue> {
    texts.iter().map(|text| serde_json::from_str(text).unwrap()).collect()
}

fn values(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn column(decoded: &Decoded, name: &str) -> Vec<Option<String>> {
    let array = decoded.batch.column_by_name(name).unwrap().as_string::<i32>();
    array.iter().map(|value| value.map(str::to_owned)).collect()
}

#[test]
fn text_is_kept_exactly_but_for_line_breaks() {
    let decoder = decoder(json!({"key": ["id"]}), Format::Ndjson).unwrap();
    let texts = [r#"{"id": 1.50,  "n":"a\nb"}"#, "{\n  \"id\": 2\r\n}"];
    let decoded = decoder.decode(&raws(&texts), &values(&[])).unwrap();
    assert_eq!(column(&decoded, RAW), [Some(texts[0].to_owned()), Some("{   \"id\": 2  }".to_owned())]);
    assert_eq!(decoded.bytes, (texts[0].len() + texts[1].len()) as i64);
}

#[test]
fn levels_come_in_front_unless_the_record_has_them() {
    let decoder = decoder(json!({"key": ["repo", "n"], "levels": ["repo"]}), Format::Ndjson).unwrap();
    let texts = [r#"{"n": 1}"#, "{}", r#"{"n": 1, "repo": "own"}"#, "[1]"];
    let decoded = decoder.decode(&raws(&texts), &values(&[("repo", "a\"b")])).unwrap();
    let lines: Vec<String> = column(&decoded, RAW).into_iter().flatten().collect();
    assert_eq!(lines, [r#"{"repo":"a\"b","n": 1}"#, r#"{"repo":"a\"b"}"#, texts[2], "[1]"]);
    assert!(matches!(decoder.decode(&raws(&["{}"]), &values(&[])), Err(RecordError::NoLevel { .. })));
}

#[test]
fn keys_tell_records_apart() {
    let decoder = decoder(json!({"key": ["a", "b"]}), Format::Ndjson).unwrap();
    let different = [
        r#"{"a":"x","b":"yz"}"#,
        r#"{"a":"xy","b":"z"}"#,
        r#"{"a":"1","b":1}"#,
        r#"{"a":1,"b":"1"}"#,
        r#"{"a":null,"b":1}"#,
        r#"{"b":1}"#,
        r#"{"a":"null","b":1}"#,
        r#"{"a":[1],"b":1}"#,
        r#"{"a":"[1]","b":1}"#,
    ];
    let keys: BTreeSet<u64> = decoder.decode(&raws(&different), &values(&[])).unwrap().keys.into_iter().collect();
    assert_eq!(keys.len(), different.len());
    let same = [r#"{"a":"\u0078","b":1,"c":1}"#, r#"{"b":1,"a":"x"}"#];
    let keys = decoder.decode(&raws(&same), &values(&[])).unwrap().keys;
    assert_eq!(keys[0], keys[1]);
}

#[test]
fn a_key_that_no_record_has_is_named() {
    let decoder = decoder(json!({"key": ["id", "code"]}), Format::Ndjson).unwrap();
    let decoded = decoder.decode(&raws(&[r#"{"id":1}"#, r#"{"id":null}"#]), &values(&[])).unwrap();
    assert_eq!(decoded.absent_keys, ["code"]);
    assert!(decoder.decode(&[], &values(&[])).unwrap().absent_keys.is_empty());
}

fn typed() -> serde_json::Value {
    json!({"key": ["n"], "levels": ["repo"], "fields": {
        "n": {"type": "int64"}, "author": {"type": "string", "path": "$.user.login"},
        "at": {"type": "timestamp", "path": "$.created"}
    }})
}

#[test]
fn typed_columns_hold_values_and_the_rest_goes_to_extra() {
    let decoder = decoder(typed(), Format::Parquet).unwrap();
    let record = r#"{"n": 1, "user": {"login": "u"}, "created": "1970-01-01T00:00:01Z", "z": [1,  2]}"#;
    let decoded = decoder.decode(&raws(&[record, r#"{"n": null}"#]), &values(&[("repo", "r")])).unwrap();
    let batch = &decoded.batch;
    assert_eq!(
        batch.schema().fields().iter().map(|f| f.name().as_str()).collect::<Vec<_>>(),
        ["at", "author", "n", "repo", EXTRA]
    );
    assert_eq!(
        batch.column_by_name("n").unwrap().as_primitive::<Int64Type>().iter().collect::<Vec<_>>(),
        [Some(1), None]
    );
    assert_eq!(batch.column_by_name("at").unwrap().as_primitive::<TimestampMicrosecondType>().value(0), 1_000_000);
    assert_eq!(column(&decoded, "author"), [Some("u".to_owned()), None]);
    // `user` is only taken in part, so it stays whole in `_extra`.
    assert_eq!(column(&decoded, EXTRA), [Some(r#"{"user":{"login": "u"},"z":[1,  2]}"#.to_owned()), None]);
    assert!(batch.column_by_name("n").unwrap().is_null(1));
}

#[test]
fn records_that_do_not_fit_are_rejected_with_reason_and_place() {
    for format in [Format::Ndjson, Format::Parquet] {
        let decoder = decoder(typed(), format).unwrap();
        let texts = [r#"{"n": 1}"#, r#"{"n": "x"}"#, r#"{"n": 2, "created": "soon"}"#, r#"{"n": 3}"#];
        let decoded = decoder.decode(&raws(&texts), &values(&[("repo", "r")])).unwrap();
        assert_eq!((decoded.batch.num_rows(), decoded.keys.len()), (2, 2));
        let rejects: Vec<_> = decoded.rejects.iter().map(|r| (r.place, r.reason.as_str())).collect();
        assert_eq!(rejects, [(1, "n: \"x\" is no int64"), (2, "at: \"soon\" is no timestamp (RFC 3339)")]);
    }
}

#[test]
fn declarations_that_can_not_work_are_refused() {
    let field = json!({"type": "int64"});
    let twice = json!({"key": ["a"], "levels": ["a"], "fields": {"a": field}});
    assert!(matches!(decoder(twice, Format::Ndjson), Err(RecordError::TwiceNamed { name }) if name == "a"));
    let taken = json!({"key": ["raw"], "fields": {"raw": field}});
    assert!(matches!(decoder(taken, Format::Ndjson), Err(RecordError::TwiceNamed { .. })));
    assert!(matches!(decoder(json!({"key": ["a"]}), Format::Parquet), Err(RecordError::NoFields)));
    let path = json!({"key": ["a"], "fields": {"a": {"type": "int64", "path": "$["}}});
    assert!(matches!(decoder(path, Format::Ndjson), Err(RecordError::BadPath { .. })));
}
