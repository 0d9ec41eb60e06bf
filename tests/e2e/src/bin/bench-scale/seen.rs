//! What a watcher sees of the run. Everything is counted by events: shards may be gone before the end, and a list at the end
//! would not know them.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use collect_api::{CollectShard, CollectTask, Phase, shard::ShardPhase};
use collect_e2e::{
    Space, say,
    space::{is_observed, phase},
};
use futures::StreamExt;
use kube::{
    ResourceExt,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watch_object, watcher},
    },
};
use tokio::sync::Notify;

/// What was seen so far.
#[derive(Debug, Default)]
pub struct Seen {
    /// Uids of shards that are not over.
    unfinished: HashSet<String>,
    /// The most of them at once.
    pub most_unfinished: usize,
    /// Uids of shards that succeeded.
    over: HashSet<String>,
    /// When each of them was seen to have succeeded.
    pub succeeded: Vec<Instant>,
    /// When the first shard had an attempt.
    pub first_start: Option<Instant>,
    /// Shards that needed a second attempt.
    repeated: HashSet<String>,
    /// Shards that ended otherwise.
    pub failed: usize,
    /// When the root's status told of progress for the first time.
    pub first_progress: Option<Instant>,
    /// When the root began to run its plan.
    pub running: Option<Instant>,
    /// For each success that the root counts: how long after it was seen.
    pub delays: Vec<Duration>,
    /// How the root ended, and when.
    pub end: Option<(CollectTask, Instant)>,
    /// Watches that were started anew: events may have been missed then.
    pub gaps: usize,
}

impl Seen {
    /// Shards that needed more than one attempt.
    pub fn repeated(&self) -> usize {
        self.repeated.len()
    }

    fn shard(&mut self, shard: &CollectShard, now: Instant) {
        let uid = shard.uid().unwrap_or_default();
        let status = shard.status.as_ref();
        let phase = status.and_then(|status| status.phase.clone()).unwrap_or(ShardPhase::Pending);
        if let Some(attempt) = status.and_then(|status| status.attempt) {
            self.first_start.get_or_insert(now);
            if attempt > 1 {
                self.repeated.insert(uid.clone());
            }
        }
        if !phase.is_terminal() {
            self.unfinished.insert(uid);
            self.most_unfinished = self.most_unfinished.max(self.unfinished.len());
            return;
        }
        self.unfinished.remove(&uid);
        if self.over.insert(uid) {
            match phase {
                ShardPhase::Succeeded => self.succeeded.push(now),
                _ => self.failed += 1,
            }
        }
    }

    fn root(&mut self, root: CollectTask, now: Instant) {
        let Some(status) = &root.status else { return };
        let counted = status.shards.as_ref().map_or(0, |shards| usize::try_from(shards.succeeded).unwrap_or(0));
        if counted > 0 || status.progress.is_some_and(|progress| progress > 0) {
            self.first_progress.get_or_insert(now);
        }
        if phase(&root) == Some(&Phase::Running) {
            self.running.get_or_insert(now);
        }
        // Of what the root counts before this watcher saw it, the delay is nothing.
        for place in self.delays.len()..counted {
            self.delays.push(self.succeeded.get(place).map_or(Duration::ZERO, |at| now.duration_since(*at)));
        }
        if phase(&root).is_some_and(Phase::is_terminal) && is_observed(&root) {
            self.end.get_or_insert((root, now));
        }
    }
}

/// A watcher of a namespace's shards and one root.
#[derive(Clone, Debug)]
pub struct Watcher {
    seen: Arc<Mutex<Seen>>,
    ended: Arc<Notify>,
}

impl Watcher {
    /// Starts to watch; what happens after this has returned is not missed.
    pub async fn start(space: &Space, root: &str) -> Self {
        let this = Self { seen: Arc::default(), ended: Arc::default() };
        let listed = Arc::new(Notify::new());
        tokio::spawn(this.clone().shards(space.shards(), listed.clone()));
        listed.notified().await;
        tokio::spawn(this.clone().root(space.tasks(), root.to_owned()));
        this
    }

    /// What was seen so far.
    pub fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().expect("nobody panicked with it")
    }

    /// Waits until the root is over.
    ///
    /// # Panics
    /// If no shard ends for `patience`.
    pub async fn until_over(&self, shards: usize, patience: Duration, progress: impl Fn()) {
        let began = Instant::now();
        let mut tick = tokio::time::interval(Duration::from_secs(10));
        tick.tick().await;
        loop {
            tokio::select! {
                () = self.ended.notified() => return,
                _ = tick.tick() => {}
            }
            let (done, last) = {
                let seen = self.seen();
                (seen.succeeded.len(), seen.succeeded.last().copied().unwrap_or(began))
            };
            say(&format!("  {done} of {shards} shards after {:.0} s", began.elapsed().as_secs_f64()));
            progress();
            assert!(last.elapsed() < patience, "no shard ended for {patience:?}; {done} of {shards} had");
        }
    }

    async fn shards(self, api: kube::Api<CollectShard>, listed: Arc<Notify>) {
        let mut events = watcher(api, watcher::Config::default()).default_backoff().boxed();
        let mut lists = 0;
        while let Some(event) = events.next().await {
            let now = Instant::now();
            let mut seen = self.seen();
            match event {
                Ok(Event::Apply(mut shard) | Event::InitApply(mut shard)) => {
                    shard.enter_first_attempt();
                    seen.shard(&shard, now);
                }
                Ok(Event::Delete(shard)) => {
                    seen.unfinished.remove(&shard.uid().unwrap_or_default());
                }
                Ok(Event::Init) => {
                    seen.unfinished.clear();
                    seen.gaps = lists;
                    lists += 1;
                }
                Ok(Event::InitDone) => listed.notify_one(),
                Err(error) => say(&format!("watching shards: {error}")),
            }
        }
    }

    async fn root(self, api: kube::Api<CollectTask>, name: String) {
        let mut events = watch_object(api, &name).default_backoff().boxed();
        while let Some(event) = events.next().await {
            match event {
                Ok(Some(task)) => {
                    let mut seen = self.seen();
                    seen.root(task, Instant::now());
                    if seen.end.is_some() {
                        self.ended.notify_one();
                    }
                }
                Ok(None) => {}
                Err(error) => say(&format!("watching the root: {error}")),
            }
        }
    }
}
