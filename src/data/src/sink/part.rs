//! A part in the making: encoded, hashed and uploaded page by page, in bounded memory.

use std::collections::{BTreeMap, BTreeSet};

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use base64::{Engine, engine::general_purpose::STANDARD};
use collect_api::protocol::Checkpoint;
use object_store::buffered::BufWriter;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;

use super::{Encoding, FilePart, Shared, SinkError, Store, encode::Encoder, store::is_refusal};
use crate::text;

/// Size above which a file is uploaded in pieces, and size of a piece: the least that S3 allows.
const PIECE_BYTES: usize = 5 << 20;
/// Pieces that are uploaded at once.
const PIECES_AT_ONCE: usize = 2;

/// Level values of a part: by level, each that occurs.
pub type Levels = BTreeMap<String, BTreeSet<String>>;

/// A file in the making.
pub struct PartWriter {
    path: String,
    encoder: Encoder,
    buffer: Shared,
    upload: BufWriter,
    hasher: blake3::Hasher,
    file_bytes: u64,
    rows: i64,
    levels: Levels,
}

impl std::fmt::Debug for PartWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PartWriter").field("path", &self.path).field("rows", &self.rows).finish_non_exhaustive()
    }
}

impl PartWriter {
    /// Begins a file at `path` below the sink's URL.
    ///
    /// # Errors
    /// When the path or the encoder is refused.
    pub fn new(store: &Store, path: String, encoding: Encoding, schema: &SchemaRef) -> Result<Self, SinkError> {
        let buffer = Shared::default();
        Ok(Self {
            encoder: Encoder::new(encoding, schema, buffer.clone())?,
            upload: BufWriter::with_capacity(store.inner(), store.path(&path)?, PIECE_BYTES)
                .with_max_concurrency(PIECES_AT_ONCE),
            path,
            buffer,
            hasher: blake3::Hasher::new(),
            file_bytes: 0,
            rows: 0,
            levels: Levels::new(),
        })
    }

    /// Rows so far.
    pub fn rows(&self) -> i64 {
        self.rows
    }

    /// Appends records that were asked for with these level values.
    ///
    /// # Errors
    /// When the sink fails.
    pub async fn write(&mut self, batch: &RecordBatch, values: &BTreeMap<String, String>) -> Result<(), SinkError> {
        self.encoder.write(batch)?;
        self.rows += i64::try_from(batch.num_rows()).unwrap_or(i64::MAX);
        for (level, value) in values {
            self.levels.entry(level.clone()).or_default().insert(value.clone());
        }
        self.drain().await
    }

    /// Appends a line of text.
    ///
    /// # Errors
    /// When the sink fails.
    pub async fn write_line(&mut self, text: &str) -> Result<(), SinkError> {
        self.encoder.line(text)?;
        self.rows += 1;
        self.drain().await
    }

    /// Ends the file. Once this returns, the file is complete at the sink.
    ///
    /// # Errors
    /// When the sink fails.
    pub async fn close(mut self) -> Result<FilePart, SinkError> {
        self.encoder.finish()?;
        let rest = self.buffer.drain();
        self.hasher.update(&rest);
        self.file_bytes += rest.len() as u64;
        let end = async {
            self.upload.write_all(&rest).await?;
            self.upload.shutdown().await
        };
        let outcome = end.await;
        outcome.map_err(|error| unavailable(&self.path, &error))?;
        Ok(FilePart {
            path: self.path,
            rows: self.rows,
            bytes: i64::try_from(self.file_bytes).unwrap_or(i64::MAX),
            hash: self.hasher.finalize().to_hex().to_string(),
            levels: self.levels,
        })
    }

    async fn drain(&mut self) -> Result<(), SinkError> {
        let bytes = self.buffer.drain();
        if bytes.is_empty() {
            return Ok(());
        }
        self.hasher.update(&bytes);
        self.file_bytes += bytes.len() as u64;
        self.upload.write_all(&bytes).await.map_err(|error| unavailable(&self.path, &error))
    }
}

fn unavailable(path: &str, error: &std::io::Error) -> SinkError {
    let cause = text::shorten(&text::chain(error), 300);
    match text::io_kind(error) {
        Some(kind) if is_refusal(kind) => SinkError::Denied { doing: "write", path: path.to_owned(), cause },
        Some(std::io::ErrorKind::NotFound) => SinkError::NotFound { path: path.to_owned(), cause },
        _ => SinkError::Unavailable { doing: "write", path: path.to_owned(), cause },
    }
}

/// What the next attempt must know about a closed part to adopt it: `part-N.json` beside it. Written after the part and
/// only where a checkpoint needs it; the commit removes it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PartMeta {
    /// The part; absent where only rejects were closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<FilePart>,
    /// Its reject file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rejects: Option<FilePart>,
    /// Hashes of its records' keys, 8 bytes each, little-endian, base64; absent when there were too many to count duplicates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    keys: Option<String>,
    /// The checkpoint that it was closed for, if that lies between two items: where a slice can go back to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boundary: Option<Checkpoint>,
}

impl PartMeta {
    /// What is known of a part.
    pub fn new(part: Option<FilePart>, rejects: Option<FilePart>, keys: Option<&[u64]>) -> Self {
        let pack = |keys: &[u64]| STANDARD.encode(keys.iter().flat_map(|key| key.to_le_bytes()).collect::<Vec<u8>>());
        Self { part, rejects, keys: keys.map(pack), boundary: None }
    }

    /// The key hashes; `None` if they are absent or damaged.
    pub fn keys(&self) -> Option<Vec<u64>> {
        let bytes = STANDARD.decode(self.keys.as_ref()?).ok()?;
        let (keys, rest) = bytes.as_chunks::<8>();
        rest.is_empty().then(|| keys.iter().map(|key| u64::from_le_bytes(*key)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_the_sidecar() {
        let meta = PartMeta::new(None, None, Some(&[1, u64::MAX, 7]));
        let read: PartMeta = serde_json::from_slice(&serde_json::to_vec(&meta).unwrap()).unwrap();
        assert_eq!((read.keys(), PartMeta::new(None, None, None).keys()), (Some(vec![1, u64::MAX, 7]), None));
    }
}
