//! Collects a slice: its items one after another, each with a fresh paginator, into parts, and at the end the manifest.
//!
//! Records are written in the order of the source. A checkpoint is taken only when a part closes, at a page boundary, so
//! that what it says is complete at the sink (I8). Only the manifest makes parts visible (I6).

mod checkpoint;
mod keys;
mod slice;
mod spent;
mod tally;

use std::{collections::BTreeMap, sync::Arc};

use collect_api::{
    plan::{Item, Part},
    protocol::{Assignment, Checkpoint, CollectResult, CollectWork, ItemTally},
    sink::Sink,
    source::Source,
};

use tokio::time::Instant;
use tracing::{Instrument, debug_span, instrument};

pub use keys::Keys;
pub use tally::{ItemEnd, finish_item, name_of};

use crate::{
    Class, Control, Error, Settings,
    control::Stage,
    http::{
        self, Answer, Client, Endpoint, Fetched, Reader, Variables,
        paginate::{Facts, Rule, State, Stop},
    },
    secrets::Secrets,
    sink::{self, Created, Manifest, Owner, Store},
};
use checkpoint::Place;
use slice::Slice;
use spent::Spent;

/// How the collection of a slice ended, if not with an error.
#[derive(Clone, Debug, PartialEq)]
pub enum Ending {
    /// This worker committed the slice.
    Done(CollectResult),
    /// Another worker had committed it.
    AlreadyCommitted(CollectResult),
    /// It was asked to leave; the checkpoint says where it got to.
    Checkpointed(Checkpoint),
    /// A newer attempt is in place.
    Fenced,
}

/// A slice that can't be collected as assigned.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// The checkpoint is not one of this slice.
    #[error("the checkpoint points to item {item} of {items}; raise spec.run to collect anew")]
    WrongCheckpoint {
        /// Item that it points to.
        item: i32,
        /// Items of the slice.
        items: usize,
    },
    /// What was written is not there any more.
    #[error(
        "the file `{path}` of this slice was removed from the sink or changed while the slice was collected, by hand, or because its run was committed without it; the next attempt collects it again"
    )]
    PartMissing {
        /// The file.
        path: String,
    },
}

impl CollectError {
    /// Short word.
    pub fn category(&self) -> &'static str {
        match self {
            Self::WrongCheckpoint { .. } => "CheckpointInvalid",
            Self::PartMissing { .. } => "PartMissing",
        }
    }

    /// What it means for the attempt.
    pub fn class(&self) -> Class {
        match self {
            Self::WrongCheckpoint { .. } => Class::Permanent,
            Self::PartMissing { .. } => Class::Retryable,
        }
    }
}

/// How reading ended.
enum Read {
    /// Every item was read.
    All,
    /// Asked to leave.
    Paused(Checkpoint),
    /// The source no longer accepts the checkpoint's cursor, or it can't be understood.
    CursorRefused,
}

/// Collects a slice and commits it.
///
/// # Errors
/// Whatever ends the attempt; [`Error::class`] says what that means. What was written without a manifest is never visible.
pub async fn collect(
    assignment: &Assignment,
    work: &CollectWork,
    settings: &Settings,
    control: &Control,
) -> Result<Ending, Error> {
    let collector = debug_span!("prepare").in_scope(|| Collector::new(assignment, work, settings, control))?;
    tokio::select! {
        biased;
        () = control.aborted() => Ok(Ending::Fenced),
        ending = collector.run() => ending,
    }
}

struct Collector<'a> {
    assignment: &'a Assignment,
    work: &'a CollectWork,
    settings: &'a Settings,
    control: &'a Control,
    store: Store,
    client: Arc<Client>,
    endpoint: Arc<Endpoint>,
}

impl<'a> Collector<'a> {
    fn new(
        assignment: &'a Assignment,
        work: &'a CollectWork,
        settings: &'a Settings,
        control: &'a Control,
    ) -> Result<Self, Error> {
        let Source::Http(source) = &assignment.source;
        let Sink::ObjectStore(sink) = &assignment.sink;
        let secrets = Secrets::below(&settings.secrets_dir);
        Ok(Self {
            assignment,
            work,
            settings,
            control,
            store: Store::open(sink, settings)?,
            client: Arc::new(Client::new(source, &secrets, settings.page_bytes, control)?),
            endpoint: Arc::new(Endpoint::of(source)?),
        })
    }

    async fn run(&self) -> Result<Ending, Error> {
        let path = Manifest::path(&self.assignment.identity);
        if let Some((bytes, _)) = self.store.get(&path).await? {
            return self.already_committed(path, &bytes);
        }
        let (mut slice, mut from) = self.begin(self.work.checkpoint.clone().unwrap_or_default()).await?;
        loop {
            match self.read(&mut slice, &from).await? {
                Read::Paused(checkpoint) => return Ok(Ending::Checkpointed(checkpoint)),
                Read::All => return self.commit(slice, path).await,
                Read::CursorRefused => {
                    tracing::warn!("the checkpoint's cursor is not accepted any more: the item starts again");
                    // That lies between two items, so there is no cursor to refuse.
                    (slice, from) = self.begin(slice.before_item()).await?;
                }
            }
        }
    }

    /// The slice with the parts of a checkpoint, and where to go on.
    #[instrument(name = "adopt", level = "debug", skip_all, fields(seq = checkpoint.seq))]
    async fn begin(&self, checkpoint: Checkpoint) -> Result<(Slice<'_>, Checkpoint), Error> {
        if let Some(slice) = Slice::adopt(self.assignment, self.settings, &self.store, &checkpoint).await? {
            return Ok((slice, checkpoint));
        }
        tracing::warn!("parts of the checkpoint are gone from the sink: the slice starts again");
        let slice = Slice::new(self.assignment, self.settings, &self.store, checkpoint.seq)?;
        Ok((slice, Checkpoint::default()))
    }

    fn already_committed(&self, path: String, bytes: &[u8]) -> Result<Ending, Error> {
        let manifest = Manifest::decode(&path, bytes)?;
        manifest.check(&path, &self.assignment.identity)?;
        Ok(Ending::AlreadyCommitted(manifest.result(path)))
    }

    /// Reads the items from a checkpoint on.
    async fn read(&self, slice: &mut Slice<'_>, from: &Checkpoint) -> Result<Read, Error> {
        let items = &self.work.items;
        let wrong = CollectError::WrongCheckpoint { item: from.item, items: items.len() };
        let first = usize::try_from(from.item).ok().filter(|first| *first <= items.len()).ok_or(wrong)?;
        let mut expected: Vec<Option<i64>> = items.iter().map(|item| item.records).collect();
        self.note(slice, &expected);
        let Ok(mut resume) = place_within(from) else { return Ok(Read::CursorRefused) };
        for (index, item) in items.iter().enumerate().skip(first) {
            let resumed = resume.take();
            let (span, spent) = Spent::on(index);
            match self.read_item(slice, index, item, resumed, &mut expected, spent).instrument(span).await? {
                Read::All => {}
                ended @ (Read::Paused(_) | Read::CursorRefused) => return Ok(ended),
            }
        }
        Ok(Read::All)
    }

    async fn read_item(
        &self,
        slice: &mut Slice<'_>,
        index: usize,
        item: &Item,
        resumed: Option<(State, ItemTally)>,
        expected: &mut [Option<i64>],
        mut spent: Spent,
    ) -> Result<Read, Error> {
        let values = self.values(item);
        // Page numbers and offsets never grow old.
        let grows_old = matches!(self.endpoint.rule(), Rule::Cursor | Rule::Next);
        let mut has_checkpoint = resumed.is_some();
        let mut may_refuse = grows_old && has_checkpoint;
        let (state, tally) = resumed.unzip();
        let tally = tally.unwrap_or_default();
        let resume = state.map(|state| (state, tally.total));
        let mut reader = Reader::new(&self.client, &self.endpoint, &variables(&values, item), &item.part, resume)?;
        let mut end = ItemEnd::new(name_of(&values), reader.span(), tally);
        loop {
            let at = Place { item: index, state: reader.state().clone(), tally: end.so_far() };
            self.control.note(|progress| progress.stage = Stage::Reading);
            let begun = Instant::now();
            let fetched = tokio::select! {
                biased;
                _ = self.control.stopped() => return slice.pause(at, self.control).await.map(Read::Paused),
                fetched = reader.fetch() => fetched,
            };
            spent.fetched(begun);
            let fetched = match fetched {
                Err(Error::Http(error)) if may_refuse && refuses_cursor(error.refused_with()) => {
                    return Ok(Read::CursorRefused);
                }
                Err(error) => return Err(self.leave_checkpoint(slice, at, error).await),
                Ok(fetched) => fetched,
            };
            self.control.note(|progress| progress.stage = Stage::Writing);
            let begun = Instant::now();
            let stop = match fetched {
                Fetched::PastEnd => reader.advance(&Facts::default())?,
                Fetched::Page(answer) => match self.take(slice, &mut reader, &mut end, &values, &answer).await {
                    // GraphQL refuses with status 200 and errors in place of data.
                    Err(Error::Page(_)) if may_refuse => return Ok(Read::CursorRefused),
                    stop => stop?,
                },
            };
            spent.written(begun, end.read());
            may_refuse = false;
            if let Some((slot, share)) = expected.get_mut(index).zip(end.share()) {
                *slot = Some(share);
            }
            self.note(slice, expected);
            if stop.is_some() {
                break;
            }
            if slice.is_due() {
                let at = Place { item: index, state: reader.state().clone(), tally: end.so_far() };
                slice.checkpoint(Some(at), index, self.control).await?;
                has_checkpoint = true;
            }
        }
        finish_item(slice.tally_mut(), end);
        // Where a cursor may grow old, the parts that an item was cut into are its own: going back costs little else.
        if slice.is_due() || (grows_old && has_checkpoint && slice.has_open_part()) {
            slice.checkpoint(None, index + 1, self.control).await?;
        }
        Ok(Read::All)
    }

    /// Writes a page and gives the reason to stop, if it was the last.
    async fn take(
        &self,
        slice: &mut Slice<'_>,
        reader: &mut Reader,
        end: &mut ItemEnd,
        values: &BTreeMap<String, String>,
        answer: &Answer,
    ) -> Result<Option<Stop>, Error> {
        let (records, facts) = http::read(&self.endpoint, self.client.origins(), answer)?;
        let stop = reader.advance(&facts)?;
        let before = (slice.tally().records, slice.tally().bytes);
        slice.write(&records, values, end.read()).await?;
        self.control.count_written(slice.tally().records - before.0, slice.tally().bytes - before.1);
        end.page(facts.records, facts.total);
        Ok(stop)
    }

    /// What was read before an error that may pass is kept: a source with a small quota would never be read otherwise.
    async fn leave_checkpoint(&self, slice: &mut Slice<'_>, at: Place, error: Error) -> Error {
        match error.class() {
            Class::Permanent => {}
            Class::Retryable | Class::SourceLimited(_) if !slice.has_open_part() => {}
            Class::Retryable | Class::SourceLimited(_) => {
                if let Err(second) = slice.pause(at, self.control).await {
                    tracing::warn!(error = %second, "no checkpoint on the way out");
                }
            }
        }
        error
    }

    /// Level values of an item, those of the task's own path included.
    fn values(&self, item: &Item) -> BTreeMap<String, String> {
        let mut values = self.assignment.identity.path_values();
        values.extend(item.values.clone());
        values
    }

    fn note(&self, slice: &Slice<'_>, expected: &[Option<i64>]) {
        let expected = expected.iter().copied().sum::<Option<i64>>();
        let (records, bytes) = (slice.tally().records, slice.tally().bytes);
        self.control.note(|progress| {
            (progress.records, progress.bytes, progress.expected) = (records, bytes, expected);
        });
    }

    #[instrument(name = "commit", level = "debug", skip_all)]
    async fn commit(&self, mut slice: Slice<'_>, path: String) -> Result<Ending, Error> {
        self.control.note(|progress| progress.stage = Stage::Committing);
        slice.close(None).await?;
        let manifest = slice.into_manifest(Owner::of(&self.assignment.identity));
        // Whoever was given up and comes back late: the run may have been committed without this slice, and its files removed (I7).
        // What is removed after this look is found by the next commit of the run, which looks again.
        let listed = self.store.list(&self.assignment.identity.slice_folder()).await?;
        let files = manifest.parts.iter().chain(&manifest.rejects);
        if let Some(missing) = sink::missing(files, &listed) {
            return match self.store.get(&path).await? {
                Some((bytes, _)) => self.already_committed(path, &bytes),
                None => Err(CollectError::PartMissing { path: missing.path.clone() }.into()),
            };
        }
        match self.store.create(&path, &manifest.encode()?).await? {
            Created::Ours => Ok(Ending::Done(manifest.result(path))),
            Created::Theirs(bytes) => self.already_committed(path, &bytes),
        }
    }
}

/// The place within an item that a checkpoint points to, if it lies within one. One that can't be understood must not be
/// taken for the item's beginning: what the item gave is in the parts.
fn place_within(checkpoint: &Checkpoint) -> Result<Option<(State, ItemTally)>, serde_json::Error> {
    let Some(paginator) = &checkpoint.paginator else { return Ok(None) };
    let state = serde_json::from_str(paginator)?;
    Ok(Some((state, checkpoint.item_tally.clone().unwrap_or_default())))
}

fn variables(values: &BTreeMap<String, String>, item: &Item) -> Variables {
    let range = match &item.part {
        Part::Range(span) => Some(span.clone()),
        Part::Whole {} | Part::Pages(_) | Part::Offsets(_) => None,
    };
    Variables { values: values.clone(), range }
}

/// Statuses with which sources refuse a cursor that has grown old. 401, 403, 408, 425 and 429 mean something else.
fn refuses_cursor(status: Option<u16>) -> bool {
    status.is_some_and(|status| (400..500).contains(&status) && ![401, 403, 408, 425, 429].contains(&status))
}
