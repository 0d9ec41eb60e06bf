//! Reports progress and does what the operator answers. An operator that can't be reached never stops the work.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use collect_api::protocol::{Assignment, Directive, PlanChunk, ProgressAnswer, ProgressReport};
use collect_data::{Control, Signal};

use crate::operator::{CallError, Operator};

/// Time in which the operator may not know this worker yet.
const GRACE: Duration = Duration::from_secs(60);
/// Bounds of the time between two reports.
const MIN_WAIT: Duration = Duration::from_millis(50);
const MAX_WAIT: Duration = Duration::from_secs(600);
/// Bounds of the wait after a failed call.
const FIRST_BACKOFF: Duration = Duration::from_millis(500);
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// Reports for one attempt.
#[derive(Debug)]
pub struct Reporter {
    operator: Operator,
    control: Control,
    attempt: i32,
    seq: AtomicI64,
    /// Seq of the last checkpoint that the operator has taken.
    confirmed: AtomicI64,
    started: Instant,
}

impl Reporter {
    /// A reporter for an assignment; `None` without an endpoint or with one that can't be used.
    pub fn new(assignment: &Assignment, control: &Control) -> Option<Arc<Self>> {
        match Operator::new(assignment.endpoint.as_ref()?) {
            Ok(operator) => Some(Arc::new(Self {
                operator,
                control: control.clone(),
                attempt: assignment.attempt,
                seq: AtomicI64::new(0),
                confirmed: AtomicI64::new(0),
                started: Instant::now(),
            })),
            Err(error) => {
                tracing::error!(%error, "no progress will be reported; the work goes on");
                None
            }
        }
    }

    /// Seq of the last checkpoint that the operator has taken.
    pub fn confirmed(&self) -> i64 {
        self.confirmed.load(Ordering::Relaxed)
    }

    /// Reports until it is dropped.
    pub async fn run(&self, first_after_ms: u64) {
        let mut wait = Duration::from_millis(first_after_ms);
        let mut failed = 0;
        loop {
            tokio::time::sleep(wait.clamp(MIN_WAIT, MAX_WAIT)).await;
            match self.report().await {
                Ok(after) => (wait, failed) = (after, 0),
                Err(error) => {
                    failed += 1;
                    wait = self.backoff(&error, failed);
                }
            }
        }
    }

    /// One report; gives the time until the next.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn report(&self) -> Result<Duration, CallError> {
        let progress = self.control.progress();
        let report = ProgressReport {
            attempt: self.attempt,
            seq: self.seq.fetch_add(1, Ordering::Relaxed) + 1,
            stage: progress.stage.as_str().to_owned(),
            records: progress.records,
            bytes: progress.bytes,
            expected: progress.expected,
            checkpoint: progress.checkpoint.filter(|checkpoint| checkpoint.seq > self.confirmed()),
            requests: self.control.requests(),
            retries: self.control.retries(),
        };
        let answer = self.operator.report(&report).await?;
        if let Some(checkpoint) = &report.checkpoint
            && answer.directive != Directive::Abort
        {
            self.confirmed.fetch_max(checkpoint.seq, Ordering::Relaxed);
        }
        Ok(self.obey(&answer))
    }

    fn obey(&self, answer: &ProgressAnswer) -> Duration {
        self.control.limiter().set(&answer.rate_share);
        match answer.directive {
            Directive::Continue | Directive::Other(_) => {}
            Directive::CheckpointAndExit => self.control.send(Signal::Pause),
            Directive::Abort => self.control.send(Signal::Abort),
        }
        Duration::from_millis(answer.report_after_ms)
    }

    /// Wait after a failed call. Being unknown is normal at first; later it is logged and tried slowly.
    fn backoff(&self, error: &CallError, failed: u32) -> Duration {
        let is_early = self.started.elapsed() < GRACE;
        match (error.is_unauthorised(), is_early) {
            (true, true) => tracing::debug!(%error, failed, "the operator does not know this worker yet"),
            (true, false) => {
                tracing::warn!(%error, failed, "the operator does not know this worker; the work goes on");
                return MAX_BACKOFF;
            }
            (false, _) => tracing::warn!(error = chain(error), failed, "no report; the work goes on"),
        }
        let ceiling = FIRST_BACKOFF.saturating_mul(1 << failed.saturating_sub(1).min(10)).min(MAX_BACKOFF);
        ceiling.mul_f64(0.5 + rand::random::<f64>() / 2.0)
    }

    /// Hands over the chunks of a plan, one after another, for as long as it takes.
    pub async fn hand_over(&self, chunks: &[Vec<u8>]) {
        for (index, data) in (0..).zip(chunks) {
            let chunk = PlanChunk { attempt: self.attempt, index, data: STANDARD.encode(data) };
            let mut failed = 0;
            while let Err(error) = self.operator.hand_over(&chunk).await {
                failed += 1;
                tokio::time::sleep(self.backoff(&error, failed)).await;
            }
        }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
