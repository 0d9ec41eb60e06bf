//! Cuts plan lines into compressed chunks at line ends, and takes the digest of the lines.

use std::io::Write;

use collect_api::plan::{MAX_CHUNK_BYTES, PlanLine};
use flate2::{Compression, write::GzEncoder};

use super::PlanError;

/// What the compressor may still hold back when a chunk is cut.
const SLACK_BYTES: usize = 128 * 1024;

/// Chunks in the making.
#[derive(Debug, Default)]
pub struct Chunks {
    done: Vec<Vec<u8>>,
    open: Option<GzEncoder<Vec<u8>>>,
    digest: blake3::Hasher,
}

impl Chunks {
    /// Appends a line.
    ///
    /// # Errors
    /// Never in practice.
    pub fn push(&mut self, line: &PlanLine) -> Result<(), PlanError> {
        let mut text = serde_json::to_vec(line).map_err(|_| PlanError::Chunk)?;
        text.push(b'\n');
        self.digest.update(&text);
        let open = self.open.get_or_insert_with(|| GzEncoder::new(Vec::new(), Compression::default()));
        open.write_all(&text).map_err(|_| PlanError::Chunk)?;
        if open.get_ref().len() + SLACK_BYTES >= MAX_CHUNK_BYTES {
            self.cut()?;
        }
        Ok(())
    }

    fn cut(&mut self) -> Result<(), PlanError> {
        let Some(open) = self.open.take() else { return Ok(()) };
        let chunk = open.finish().map_err(|_| PlanError::Chunk)?;
        if chunk.len() > MAX_CHUNK_BYTES {
            return Err(PlanError::Chunk);
        }
        self.done.push(chunk);
        Ok(())
    }

    /// The chunks and the digest of all lines, hexadecimal.
    ///
    /// # Errors
    /// Never in practice.
    pub fn finish(mut self) -> Result<(Vec<Vec<u8>>, String), PlanError> {
        self.cut()?;
        Ok((self.done, self.digest.finalize().to_hex().to_string()))
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, io::Read};

    use collect_api::plan::{Item, Part, PlannedShard};

    use super::*;

    /// Lines that hardly compress.
    fn line(n: u32) -> PlanLine {
        let item = |k: u32| Item {
            values: BTreeMap::from([(
                "v".into(),
                blake3::hash(&[n.to_le_bytes(), k.to_le_bytes()].concat()).to_hex().to_string(),
            )]),
            part: Part::Whole {},
            records: None,
        };
        PlanLine::Shard(PlannedShard { index: 0, items: (0..60).map(item).collect() })
    }

    #[test]
    fn chunks_are_bounded_cut_at_line_ends_and_repeatable() {
        let write = || {
            let mut chunks = Chunks::default();
            (0..500).for_each(|n| chunks.push(&line(n)).unwrap());
            chunks.finish().unwrap()
        };
        let (chunks, digest) = write();
        assert!(chunks.len() > 1 && chunks.iter().all(|chunk| chunk.len() <= MAX_CHUNK_BYTES));
        let mut lines = Vec::new();
        for chunk in &chunks {
            let mut text = String::new();
            flate2::read::GzDecoder::new(chunk.as_slice()).read_to_string(&mut text).unwrap();
            assert!(text.ends_with('\n'));
            lines.extend(text.lines().map(|line| serde_json::from_str::<PlanLine>(line).unwrap()));
        }
        assert_eq!(lines, (0..500).map(line).collect::<Vec<_>>());
        assert_eq!(write(), (chunks, digest));
    }
}
