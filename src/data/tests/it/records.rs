//! What lands in files: exact text, typed columns, rejects.

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use bytes::Bytes;
use collect_api::protocol::{CollectWork, RateShare, Work};
use collect_data::{Control, Ending};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Value, json};

use crate::lab::{Lab, identity, pages, whole};

async fn collect(lab: &Lab, record: Value, sink: Value) -> Result<Ending, collect_data::Error> {
    let work = CollectWork { items: vec![whole()], checkpoint: None };
    let mut assignment = lab.assignment(json!({"pagination": pages(50)}), Work::Collect(work.clone()));
    assignment.record = serde_json::from_value(record).unwrap();
    let mut declared = lab.sink();
    for (name, value) in sink.as_object().unwrap() {
        declared["objectStore"][name] = value.clone();
    }
    assignment.sink = serde_json::from_value(declared).unwrap();
    let control = Control::new(&RateShare::default());
    collect_data::collect(&assignment, &work, &lab.settings("a"), &control).await
}

#[tokio::test]
async fn ndjson_is_the_exact_text_of_the_source() {
    let lab = Lab::small().await;
    lab.collect(json!({"pagination": pages(50)})).await.unwrap();
    let registry = lab.registry.control.registry();
    let wanted: Vec<String> = (0..216).map(|n| serde_json::to_string(&registry.row(4, n).unwrap()).unwrap()).collect();
    assert_eq!(lab.lines(&identity()), wanted);
}

#[tokio::test]
async fn parquet_holds_typed_columns_in_every_compression() {
    for compression in ["none", "gzip", "zstd"] {
        let lab = Lab::small().await;
        let record = json!({"key": ["code"], "fields": {"code": {"type": "string"}, "title": {"type": "string", "path": "$.name"}}});
        collect(&lab, record, json!({"format": "parquet", "compression": compression})).await.unwrap();
        let part = &lab.manifest(&identity()).parts[0];
        let bytes = Bytes::from(std::fs::read(lab.files().join(&part.path)).unwrap());
        assert!(part.path.ends_with("/part-0.parquet"));
        let mut codes = Vec::new();
        for batch in ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap().build().unwrap() {
            let batch = batch.unwrap();
            codes.extend(batch.column_by_name("code").unwrap().as_string::<i32>().iter().flatten().map(str::to_owned));
            assert!(
                batch.column_by_name("_extra").unwrap().as_string::<i32>().value(0).starts_with("{\"provinceCode\":")
            );
        }
        assert_eq!(codes, lab.held(4), "{compression}");
    }
}

#[tokio::test]
async fn records_that_do_not_fit_go_to_the_reject_file() {
    let lab = Lab::small().await;
    // `code` is a text in the source: nothing fits.
    let record = json!({"key": ["code"], "fields": {"code": {"type": "int64"}}});
    let Ending::Done(result) = collect(&lab, record, json!({"format": "parquet"})).await.unwrap() else { panic!() };
    assert_eq!((result.tally.records, result.tally.rejected, result.files), (0, 216, 0));
    let manifest = lab.manifest(&identity());
    assert_eq!((manifest.parts.len(), manifest.rejects[0].rows), (0, 216));
    let bytes = std::fs::read(lab.files().join(&manifest.rejects[0].path)).unwrap();
    let text = String::from_utf8(zstd::decode_all(bytes.as_slice()).unwrap()).unwrap();
    let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!((&last["position"], &last["record"]["code"]), (&json!(215), &json!(lab.held(4)[215])));
    assert!(last["reason"].as_str().unwrap().ends_with("is no int64"), "{last}");
}

#[tokio::test]
async fn numbers_keep_their_type_in_parquet() {
    let lab = Lab::small().await;
    let record =
        json!({"key": ["code"], "fields": {"code": {"type": "string"}, "n": {"type": "int64", "path": "$.none"}}});
    collect(&lab, record, json!({"format": "parquet"})).await.unwrap();
    let part = &lab.manifest(&identity()).parts[0];
    let bytes = Bytes::from(std::fs::read(lab.files().join(&part.path)).unwrap());
    let batch = ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap().build().unwrap().next().unwrap().unwrap();
    assert_eq!(batch.column_by_name("n").unwrap().as_primitive::<Int64Type>().iter().flatten().count(), 0);
}

#[tokio::test]
async fn a_key_that_is_not_there_fails_and_names_what_is() {
    let lab = Lab::small().await;
    let error = collect(&lab, json!({"key": ["kode"]}), json!({})).await.unwrap_err();
    assert_eq!(error.category(), "KeyMissing");
    assert!(error.to_string().contains("it has: code, name, provinceCode"), "{error}");
}
