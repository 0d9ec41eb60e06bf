//! Encoders that write into a buffer which is emptied after every page, so that memory stays bounded.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex, PoisonError},
};

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::SchemaRef;
use collect_api::sink::{Compression, Format, ObjectStoreSink};
use flate2::write::GzEncoder;
use parquet::{
    arrow::ArrowWriter,
    basic::{Compression as Codec, GzipLevel, ZstdLevel},
    file::properties::WriterProperties,
};

use super::SinkError;
use crate::record::RAW;

/// Size of a row group in memory at which it is written.
const ROW_GROUP_BYTES: usize = 16 << 20;

/// A buffer that encoder and uploader share.
#[derive(Clone, Debug, Default)]
pub struct Shared(Arc<Mutex<Vec<u8>>>);

impl Shared {
    /// Takes out what has been written.
    pub fn drain(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Form and compression of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encoding {
    /// Form.
    pub format: Format,
    /// Compression.
    pub compression: Compression,
}

impl Encoding {
    /// The sink's, with its defaults: NDJSON, zstd.
    pub fn of(sink: &ObjectStoreSink) -> Self {
        Self {
            format: sink.format.unwrap_or(Format::Ndjson),
            compression: sink.compression.unwrap_or(Compression::Zstd),
        }
    }

    /// The same compression for lines of text.
    pub fn as_lines(self) -> Self {
        Self { format: Format::Ndjson, ..self }
    }

    /// Extension of its files.
    pub fn extension(self) -> &'static str {
        match (self.format, self.compression) {
            (Format::Parquet, _) => "parquet",
            (Format::Ndjson, Compression::None) => "ndjson",
            (Format::Ndjson, Compression::Gzip) => "ndjson.gz",
            (Format::Ndjson, Compression::Zstd) => "ndjson.zst",
        }
    }
}

pub(super) enum Encoder {
    Plain(Shared),
    Gzip(GzEncoder<Shared>),
    Zstd(zstd::stream::write::Encoder<'static, Shared>),
    Parquet(Box<ArrowWriter<Shared>>),
}

fn failed(error: impl std::fmt::Display) -> SinkError {
    SinkError::Encode(error.to_string())
}

impl Encoder {
    pub(super) fn new(encoding: Encoding, schema: &SchemaRef, out: Shared) -> Result<Self, SinkError> {
        Ok(match (encoding.format, encoding.compression) {
            (Format::Ndjson, Compression::None) => Self::Plain(out),
            (Format::Ndjson, Compression::Gzip) => Self::Gzip(GzEncoder::new(out, flate2::Compression::default())),
            (Format::Ndjson, Compression::Zstd) => {
                Self::Zstd(zstd::stream::write::Encoder::new(out, 3).map_err(failed)?)
            }
            (Format::Parquet, compression) => {
                let codec = match compression {
                    Compression::None => Codec::UNCOMPRESSED,
                    Compression::Gzip => Codec::GZIP(GzipLevel::default()),
                    Compression::Zstd => Codec::ZSTD(ZstdLevel::try_new(3).map_err(failed)?),
                };
                let properties = WriterProperties::builder().set_compression(codec).build();
                let writer = ArrowWriter::try_new(out, schema.clone(), Some(properties)).map_err(failed)?;
                Self::Parquet(Box::new(writer))
            }
        })
    }

    /// Writes a batch; lines take the column `raw`.
    pub(super) fn write(&mut self, batch: &RecordBatch) -> Result<(), SinkError> {
        if let Self::Parquet(writer) = self {
            writer.write(batch).map_err(failed)?;
            if writer.in_progress_size() >= ROW_GROUP_BYTES {
                writer.flush().map_err(failed)?;
            }
            return Ok(());
        }
        let column = batch.column_by_name(RAW).ok_or_else(|| failed("a batch has no raw text"))?;
        let texts = column.as_string_opt::<i32>().ok_or_else(|| failed("raw is no text"))?;
        for text in texts.iter().flatten() {
            self.line(text)?;
        }
        Ok(())
    }

    /// Writes a line; nothing for Parquet.
    pub(super) fn line(&mut self, text: &str) -> Result<(), SinkError> {
        let out: &mut dyn Write = match self {
            Self::Plain(out) => out,
            Self::Gzip(out) => out,
            Self::Zstd(out) => out,
            Self::Parquet(_) => return Ok(()),
        };
        out.write_all(text.as_bytes()).and_then(|()| out.write_all(b"\n")).map_err(failed)
    }

    /// Writes the end of the file.
    pub(super) fn finish(self) -> Result<(), SinkError> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::Gzip(out) => out.finish().map(drop).map_err(failed),
            Self::Zstd(out) => out.finish().map(drop).map_err(failed),
            Self::Parquet(writer) => writer.close().map(drop).map_err(failed),
        }
    }
}
