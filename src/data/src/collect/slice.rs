//! What a slice has written: closed parts, the open part, keys, tally.
//!
//! A checkpoint whose parts are gone can't be used: the slice starts again. One whose cursor the source refuses is gone back
//! from, to the last boundary between two items at which a part was closed. Parts that are given up stay unnamed at the
//! sink until the commit removes them.

use std::{collections::BTreeMap, time::Duration};

use collect_api::{
    protocol::{Assignment, Checkpoint, ClosedParts, Tally},
    sink::Sink,
};
use serde_json::value::RawValue;
use tokio::time::Instant;
use tracing::instrument;

use super::{
    checkpoint::{self, Place},
    keys::Keys,
};
use crate::{
    Control, Error, Settings, json,
    record::{Decoded, Decoder, RecordError, Reject},
    sink::{Encoding, FilePart, Manifest, Owner, PartMeta, PartWriter, SinkError, Store},
    text,
};

/// Most records and text bytes that are decoded at once.
const BATCH_RECORDS: usize = 8192;
const BATCH_BYTES: usize = 4 << 20;

/// What a slice has written so far.
pub struct Slice<'a> {
    store: &'a Store,
    settings: &'a Settings,
    decoder: Decoder,
    encoding: Encoding,
    /// Folder of the slice below the sink's URL.
    folder: String,
    /// Folder of this attempt below that.
    attempt: String,
    adopted: Vec<ClosedParts>,
    /// Parts that this attempt has closed.
    closed: i32,
    parts: Vec<FilePart>,
    rejects: Vec<FilePart>,
    open: Option<Open>,
    keys: Keys,
    tally: Tally,
    seq: i64,
    keys_checked: bool,
    last: Option<Checkpoint>,
    /// The last of the adopted checkpoints that lies between two items.
    boundary: Option<Checkpoint>,
}

/// The open part.
struct Open {
    part: Option<PartWriter>,
    rejects: Option<PartWriter>,
    since: Instant,
    bytes: u64,
}

impl<'a> Slice<'a> {
    /// A slice of which nothing is written. `seq` is that of the last checkpoint.
    pub fn new(assignment: &Assignment, settings: &'a Settings, store: &'a Store, seq: i64) -> Result<Self, Error> {
        let Sink::ObjectStore(sink) = &assignment.sink;
        let encoding = Encoding::of(sink);
        Ok(Self {
            store,
            settings,
            decoder: Decoder::new(&assignment.record, encoding.format)?,
            encoding,
            folder: assignment.identity.slice_folder(),
            attempt: settings.attempt_folder(assignment.attempt),
            adopted: Vec::new(),
            closed: 0,
            parts: Vec::new(),
            rejects: Vec::new(),
            open: None,
            keys: Keys::new(settings.max_keys),
            tally: Tally { duplicates: Some(0), ..Tally::default() },
            seq,
            keys_checked: false,
            last: None,
            boundary: None,
        })
    }

    /// A slice with exactly the closed parts of a checkpoint; `None` if one of them is not what it was.
    pub async fn adopt(
        assignment: &Assignment,
        settings: &'a Settings,
        store: &'a Store,
        checkpoint: &Checkpoint,
    ) -> Result<Option<Self>, Error> {
        let mut slice = Self::new(assignment, settings, store, checkpoint.seq)?;
        if checkpoint.seq == 0 {
            return Ok(Some(slice));
        }
        slice.tally = checkpoint.tally.clone();
        slice.last = Some(checkpoint.clone());
        for closed in &checkpoint.parts {
            for n in 0..closed.count {
                let Some(meta) = slice.meta(&closed.folder, n).await? else { return Ok(None) };
                match meta.keys() {
                    Some(keys) if slice.tally.duplicates.is_some() => drop(slice.keys.visit(&keys)),
                    _ => slice.keys.forget(),
                }
                slice.parts.extend(meta.part);
                slice.rejects.extend(meta.rejects);
                slice.boundary = meta.boundary.or(slice.boundary);
            }
            // The same pod again, which only a run without a cluster does: go on counting.
            if closed.folder == slice.attempt {
                slice.closed = closed.count
            } else {
                slice.adopted.push(closed.clone())
            }
        }
        slice.keys.take_fresh();
        slice.keys_checked = !slice.parts.is_empty();
        if slice.tally.duplicates.is_none() {
            slice.keys.forget();
        }
        if slice.adopted.len() >= checkpoint::MAX_FOLDERS {
            return Ok(None);
        }
        Ok(Some(slice))
    }

    /// The sidecar of a closed part, if the part is still what it says.
    async fn meta(&self, folder: &str, n: i32) -> Result<Option<PartMeta>, SinkError> {
        let path = format!("{}/{folder}/part-{n}.json", self.folder);
        let Some((bytes, _)) = self.store.get(&path).await? else { return Ok(None) };
        let Ok(meta) = serde_json::from_slice::<PartMeta>(&bytes) else { return Ok(None) };
        for file in meta.part.iter().chain(&meta.rejects) {
            let found = self.store.head(&file.path).await?.map(|head| head.bytes);
            if found != u64::try_from(file.bytes).ok() {
                return Ok(None);
            }
        }
        Ok(Some(meta))
    }

    /// Where an adopted slice begins the item whose cursor the source refuses: the last boundary between two items that
    /// a part ends with, or the beginning. It counts as a checkpoint of its own (I8).
    pub fn before_item(&self) -> Checkpoint {
        let boundary = self.boundary.clone().unwrap_or_else(|| beginning(0));
        Checkpoint { seq: self.seq + 1, ..boundary }
    }

    /// What the slice adds up to.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// The same, to add a finished item.
    pub fn tally_mut(&mut self) -> &mut Tally {
        &mut self.tally
    }

    /// Writes the records of a page. `position` is the number of records that the item has given before.
    pub async fn write(
        &mut self,
        records: &[&RawValue],
        values: &BTreeMap<String, String>,
        position: i64,
    ) -> Result<(), Error> {
        let mut place = position;
        let mut rest = records;
        while !rest.is_empty() {
            let (batch, tail) = rest.split_at(batch_length(rest));
            let decoded = self.decoder.decode(batch, values)?;
            self.check_keys(&decoded, batch)?;
            self.store_batch(decoded, values, place).await?;
            place += i64::try_from(batch.len()).unwrap_or(0);
            rest = tail;
        }
        Ok(())
    }

    /// A key that no record of the first batch has is a mistake in the declaration.
    fn check_keys(&mut self, decoded: &Decoded, records: &[&RawValue]) -> Result<(), RecordError> {
        if self.keys_checked || decoded.keys.is_empty() {
            return Ok(());
        }
        self.keys_checked = true;
        let Some(name) = decoded.absent_keys.first() else { return Ok(()) };
        let members = records.first().and_then(|record| json::entries(record)).unwrap_or_default();
        let names: Vec<String> = members.into_iter().map(|(name, _)| name).collect();
        let members = if names.is_empty() { "no members".into() } else { text::shorten(&names.join(", "), 200) };
        Err(RecordError::KeyMissing { name: name.clone(), members })
    }

    async fn store_batch(
        &mut self,
        decoded: Decoded,
        values: &BTreeMap<String, String>,
        place: i64,
    ) -> Result<(), SinkError> {
        let rows = i64::try_from(decoded.batch.num_rows()).unwrap_or(i64::MAX);
        self.tally.records += rows;
        self.tally.bytes += decoded.bytes;
        self.tally.rejected += i64::try_from(decoded.rejects.len()).unwrap_or(i64::MAX);
        let duplicates = self.keys.visit(&decoded.keys);
        self.tally.duplicates = self.tally.duplicates.zip(duplicates).map(|(sum, new)| sum + new);
        let base = format!("{}/{}", self.folder, self.attempt);
        let (n, schema) = (self.closed, self.decoder.schema());
        let open = self.open.get_or_insert_with(|| Open { part: None, rejects: None, since: Instant::now(), bytes: 0 });
        open.bytes += u64::try_from(decoded.bytes).unwrap_or(0);
        if rows > 0 {
            let part = match &mut open.part {
                Some(part) => part,
                none => {
                    let path = format!("{base}/part-{n}.{}", self.encoding.extension());
                    none.insert(PartWriter::new(self.store, path, self.encoding, schema)?)
                }
            };
            part.write(&decoded.batch, values).await?;
        }
        for reject in &decoded.rejects {
            let rejects = match &mut open.rejects {
                Some(rejects) => rejects,
                none => {
                    let encoding = self.encoding.as_lines();
                    let path = format!("{base}/rejected-{n}.{}", encoding.extension());
                    none.insert(PartWriter::new(self.store, path, encoding, schema)?)
                }
            };
            open.bytes += reject.text.len() as u64;
            rejects.write_line(&reject_line(reject, values, place)).await?;
        }
        Ok(())
    }

    /// Whether something was read that no checkpoint holds yet.
    pub fn has_open_part(&self) -> bool {
        self.open.is_some()
    }

    /// Whether the open part should be closed at this page boundary.
    pub fn is_due(&self) -> bool {
        let due = |open: &Open| {
            let age: Duration = open.since.elapsed();
            open.bytes >= self.settings.part_bytes || age >= self.settings.part_age
        };
        self.open.as_ref().is_some_and(due)
    }

    /// Closes the open part and takes a checkpoint there, unless it would not fit: then the part stays open.
    #[instrument(name = "checkpoint", level = "debug", skip_all, fields(seq = self.seq + 1))]
    pub async fn checkpoint(&mut self, place: Option<Place>, item: usize, control: &Control) -> Result<(), Error> {
        let closed = self.closed + i32::from(self.open.is_some());
        let Some(checkpoint) = self.make(place.as_ref(), item, closed) else { return Ok(()) };
        self.close(Some(&checkpoint)).await?;
        self.publish(checkpoint, control);
        Ok(())
    }

    /// Closes the open part and gives the checkpoint to leave with.
    pub async fn pause(&mut self, place: Place, control: &Control) -> Result<Checkpoint, Error> {
        let item = place.item;
        self.checkpoint(Some(place), item, control).await?;
        // One that does not fit falls back to the last one that did, or to the very beginning.
        Ok(self.last.clone().unwrap_or_else(|| beginning(self.seq + 1)))
    }

    fn make(&self, place: Option<&Place>, item: usize, closed: i32) -> Option<Checkpoint> {
        let mut parts = self.adopted.clone();
        if closed > 0 {
            parts.push(ClosedParts { folder: self.attempt.clone(), count: closed });
        }
        checkpoint::make(self.seq + 1, item, place, &parts, &self.tally)
    }

    fn publish(&mut self, checkpoint: Checkpoint, control: &Control) {
        self.seq = checkpoint.seq;
        self.last = Some(checkpoint.clone());
        control.note(|progress| progress.checkpoint = Some(checkpoint));
    }

    /// Closes the open part; with a sidecar if a checkpoint shall name it.
    pub async fn close(&mut self, checkpoint: Option<&Checkpoint>) -> Result<(), SinkError> {
        let Some(open) = self.open.take() else { return Ok(()) };
        let part = match open.part {
            Some(part) => Some(part.close().await?),
            None => None,
        };
        let rejects = match open.rejects {
            Some(rejects) => Some(rejects.close().await?),
            None => None,
        };
        if let Some(checkpoint) = checkpoint {
            let keys = self.keys.take_fresh();
            let mut meta = PartMeta::new(part.clone(), rejects.clone(), keys.as_deref());
            meta.boundary = Some(checkpoint).filter(|checkpoint| checkpoint.paginator.is_none()).cloned();
            let bytes = serde_json::to_vec(&meta).map_err(|error| SinkError::Encode(error.to_string()))?;
            let path = format!("{}/{}/part-{}.json", self.folder, self.attempt, self.closed);
            self.store.put(&path, bytes.into()).await?;
        }
        self.parts.extend(part);
        self.rejects.extend(rejects);
        self.closed += 1;
        Ok(())
    }

    /// The manifest of everything that was closed.
    pub fn into_manifest(self, identity: Owner) -> Manifest {
        Manifest {
            version: 1,
            identity,
            attempt: self.attempt,
            parts: self.parts,
            rejects: self.rejects,
            tally: self.tally,
        }
    }
}

/// The checkpoint of a slice of which nothing is written.
fn beginning(seq: i64) -> Checkpoint {
    Checkpoint { seq, tally: Tally { duplicates: Some(0), ..Tally::default() }, ..Checkpoint::default() }
}

/// How many records of the beginning make up a batch; at least one.
fn batch_length(records: &[&RawValue]) -> usize {
    let mut bytes = 0;
    let fits = |record: &&&RawValue| {
        bytes += record.get().len();
        bytes <= BATCH_BYTES
    };
    records.iter().take(BATCH_RECORDS).take_while(fits).count().max(1)
}

fn reject_line(reject: &Reject, values: &BTreeMap<String, String>, place: i64) -> String {
    let position = place + i64::try_from(reject.place).unwrap_or(0);
    let head = serde_json::json!({"values": values, "position": position, "reason": reject.reason}).to_string();
    format!("{},\"record\":{}}}", head.strip_suffix('}').unwrap_or_default(), reject.text)
}
