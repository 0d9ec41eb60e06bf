//! `status`: one task in depth, live on a terminal: how far, how fast, what failed, what is slow, what to do next.

use std::collections::BTreeSet;

use collect_api::{Attempt, CollectShard, CollectTask, CollectTaskStatus, ValidationReport, shard::ShardPhase};
use collect_core::{attempts::Entries, resolve, text};
use kube::ResourceExt;

use crate::{
    args::TaskName,
    error::Error,
    exit::Exit,
    follow::{self, FollowArgs, Picture},
    output::{self, Format, OutputArgs, Room, Style, Table, Tone, cut},
    pace,
    session::Session,
    state,
    tree::{Tree, bar, tone},
};

/// Errors and running shards that are listed.
const LISTED: usize = 5;
/// Cells of the progress bar.
const BAR: usize = 40;

/// Arguments of `status`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of a task.
    name: TaskName,
    #[command(flatten)]
    follow: FollowArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Shows the task.
pub async fn run(args: &Args, session: &Session) -> Result<Exit, Error> {
    let task: CollectTask = session.get(args.name.as_ref()).await?;
    let wide = args.output.output == Some(Format::Wide);
    let draw = |picture: &Picture<'_>| draw(picture, wide);
    match args.output.output {
        Some(format @ (Format::Json | Format::Yaml | Format::Name)) => {
            output::print(&output::object(format, &task)?)?;
            Ok(Exit::Done)
        }
        _ if args.follow.follows(session.style()) => follow::follow(session, &task, draw).await,
        _ => follow::once(session, &task, draw).await,
    }
}

fn draw(picture: &Picture<'_>, wide: bool) -> String {
    let seen = picture.seen;
    let tree = Tree::of(picture.top, &seen.tasks(), &seen.shards(), &seen.reports(), picture.now);
    let below: BTreeSet<&str> = tree.names();
    let mut shards = seen.shards();
    shards.retain(|shard| below.contains(shard.name_any().as_str()));
    let run = picture.top.status.as_ref().and_then(|status| status.run).unwrap_or(1);
    let report = seen
        .reports()
        .into_iter()
        .find(|report| Some(&report.spec.task_uid) == picture.top.metadata.uid.as_ref() && report.spec.run == run);
    let page = Page {
        task: picture.top,
        rate: tree.root.per_second,
        left: tree.root.left,
        shards: shards.iter().map(AsRef::as_ref).collect(),
        report: report.as_deref(),
        now: picture.now,
        wide,
    };
    let text = page.render(picture.style);
    fitted(&text, picture.room)
}

/// The first lines, as many as there is room for. Each was cut already.
fn fitted(text: &str, room: Room) -> String {
    let rows = room.rows.unwrap_or(usize::MAX);
    text.lines().take(rows).map(|line| format!("{}\n", visible_cut(line, room.columns))).collect()
}

/// Cuts a line that may hold colours to so many columns.
fn visible_cut(line: &str, columns: Option<usize>) -> String {
    let Some(columns) = columns else { return line.to_owned() };
    if !line.contains('\u{1b}') {
        return cut(line, columns);
    }
    let (mut kept, mut used, mut escape) = (String::new(), 0, false);
    for c in line.chars() {
        if escape || c == '\u{1b}' {
            escape = c != 'm';
            kept.push(c);
            continue;
        }
        let width = unicode_width::UnicodeWidthChar::width(c).unwrap_or(0);
        if used + width <= columns {
            kept.push(c);
        }
        used += width;
    }
    kept
}

struct Page<'a> {
    task: &'a CollectTask,
    rate: Option<f64>,
    left: Option<i64>,
    shards: Vec<&'a CollectShard>,
    report: Option<&'a ValidationReport>,
    now: jiff::Timestamp,
    wide: bool,
}

impl Page<'_> {
    fn render(&self, style: Style) -> String {
        let empty = CollectTaskStatus::default();
        let status = self.task.status.as_ref().unwrap_or(&empty);
        let mut text = self.head(status, style);
        text.push_str(&self.numbers(status).render(style));
        for (title, table) in [
            ("Running", self.running()),
            ("Last errors", self.errors()),
            ("Failures", failures(status)),
            ("Stragglers", stragglers(status)),
            ("Conditions", conditions(status, self.wide)),
        ] {
            if !table.is_empty() {
                text.push_str(&format!("\n{}\n{}", style.paint(Tone::Strong, title), table.render(style)));
            }
        }
        let next = next(self.task, status);
        if !next.is_empty() {
            text.push_str(&format!("\n{} {next}\n", style.paint(Tone::Strong, "Next:")));
        }
        text
    }

    fn head(&self, status: &CollectTaskStatus, style: Style) -> String {
        let phase = state::phase(self.task);
        let tone = tone(phase.as_str());
        let mut words = vec![
            style.paint(Tone::Strong, &self.task.name_any()),
            style.paint(tone, phase.as_str()),
            format!("run {}", status.run.unwrap_or_else(|| self.task.spec.run_number())),
        ];
        words.extend(pace::elapsed(self.task, self.now).map(pace::span));
        let mut text = format!("{}\n", words.join("  "));
        let progress = status.progress.unwrap_or(0);
        let records = status.records.clone().unwrap_or_default();
        let mut words =
            vec![format!("{progress}%"), format!("{} records", text::of(records.collected, records.expected))];
        if style.terminal {
            words.insert(0, style.paint(tone, &bar(progress, BAR)));
        }
        words.extend(Some(pace::said(self.rate)).filter(|rate| !rate.is_empty()));
        words.extend(self.left.map(|left| format!("{} left", pace::span(left))));
        text.push_str(&format!("{}\n", words.join("  ")));
        if let Some(message) = status.message.as_ref().filter(|message| !message.is_empty()) {
            text.push_str(&format!("{message}\n"));
        }
        if !state::is_observed(self.task) {
            text.push_str("The operator has not taken up the last change of the spec yet.\n");
        }
        text
    }

    fn numbers(&self, status: &CollectTaskStatus) -> Table {
        let mut table = Table::default();
        if let Some(shards) = &status.shards {
            let retries = if shards.retries > 0 { format!(", {} retries", shards.retries) } else { String::new() };
            let (all, done) = (shards.total, shards.succeeded);
            let (running, waiting, failed, cancelled) =
                (shards.running, shards.pending, shards.failed, shards.cancelled);
            table.row(["shards".to_owned(), format!("{done} of {all} done, {running} running, {waiting} waiting, {failed} failed, {cancelled} cancelled{retries}")]);
        }
        if let Some(tasks) = status.tasks.as_ref().filter(|tasks| tasks.total > 0) {
            let done = tasks.succeeded + tasks.partially_succeeded + tasks.collected;
            table.row([
                "children".to_owned(),
                format!(
                    "{done} of {} done, {} active, {} waiting, {} failed",
                    tasks.total, tasks.active, tasks.pending, tasks.failed
                ),
            ]);
        }
        if let Some(workers) = status.workers {
            let most = match self.task.spec.parallelism {
                Some(most) => format!(" of at most {most}"),
                None if self.task.spec.part_of.is_none() => {
                    format!(" of at most {}", resolve::root_parallelism(&self.task.spec))
                }
                None => String::new(),
            };
            table.row(["workers".to_owned(), format!("{workers}{most}")]);
        }
        if let Some(plan) = &status.plan {
            table.row([
                "plan".to_owned(),
                ledger(
                    &Entries::of_plan(Some(plan)),
                    plan.result
                        .as_ref()
                        .map(|plan| format!("{} tasks, {} shards, {} items", plan.tasks, plan.shards, plan.items)),
                ),
            ]);
        }
        if let Some(commit) = &status.commit {
            table.row([
                "commit".to_owned(),
                ledger(
                    &Entries::of_commit(Some(commit)),
                    commit.result.as_ref().map(|commit| {
                        format!(
                            "{} files, {} records, {} bytes; {}",
                            commit.files, commit.records, commit.bytes, commit.list
                        )
                    }),
                ),
            ]);
        }
        if let Some(report) = self.report {
            table.row(["report".to_owned(), verdict(report)]);
        }
        if let Some(redrives) = status.redrives.filter(|redrives| *redrives > 0) {
            table.row(["retried".to_owned(), format!("{redrives} times")]);
        }
        table
    }

    /// Running shards, the slowest of those that tell first.
    fn running(&self) -> Table {
        let mut table = Table::new(&["SHARD", "ATTEMPT", "RECORDS", "RATE", "STAGE", "NODE", "FOR"]);
        let is_running = |shard: &&&CollectShard| {
            shard.status.as_ref().is_some_and(|status| status.phase == Some(ShardPhase::Running))
        };
        let mut running: Vec<&CollectShard> = self.shards.iter().filter(is_running).copied().collect();
        running.sort_by_key(|shard| last(shard).map(|attempt| attempt.authorised_at.0));
        let all = running.len();
        for shard in running.into_iter().take(if self.wide { usize::MAX } else { LISTED }) {
            let (Some(status), Some(attempt)) = (&shard.status, last(shard)) else { continue };
            let progress = status.progress.as_ref().filter(|progress| progress.attempt == attempt.n);
            let since = self.now.duration_since(attempt.authorised_at.0).as_secs();
            table.row([
                shard.name_any(),
                attempt.n.to_string(),
                progress.map(|progress| text::of(progress.records, progress.expected)).unwrap_or_default(),
                pace::said(pace::of_shard(shard)),
                progress.map_or_else(|| "starting".to_owned(), |progress| progress.stage.clone()),
                attempt.node.clone().unwrap_or_default(),
                pace::span(since),
            ]);
        }
        if !self.wide && all > LISTED {
            table.toned(vec![(Tone::Faint, format!("… and {} more (-o wide)", all - LISTED))]);
        }
        table
    }

    /// The newest attempts that ended without success, whatever became of their shard.
    fn errors(&self) -> Table {
        let mut table = Table::new(&["AGO", "SHARD", "ATTEMPT", "OUTCOME", "REASON", "MESSAGE"]);
        let mut errors: Vec<(&CollectShard, &Attempt)> = Vec::new();
        for shard in &self.shards {
            let attempts = shard.status.iter().flat_map(|status| &status.attempts);
            errors.extend(attempts.filter(|attempt| is_error(attempt)).map(|attempt| (*shard, attempt)));
        }
        errors.sort_by_key(|(shard, attempt)| {
            (std::cmp::Reverse(attempt.finished_at.as_ref().map(|at| at.0)), shard.name_any())
        });
        for (shard, attempt) in errors.into_iter().take(if self.wide { usize::MAX } else { LISTED }) {
            let ago = attempt.finished_at.as_ref().map(|at| pace::span(self.now.duration_since(at.0).as_secs()));
            let message = attempt.message.clone().unwrap_or_default();
            table.row([
                ago.unwrap_or_default(),
                shard.name_any(),
                attempt.n.to_string(),
                attempt.outcome.as_ref().map(ToString::to_string).unwrap_or_default(),
                attempt.reason.clone().unwrap_or_default(),
                message,
            ]);
        }
        table
    }
}

fn last(shard: &CollectShard) -> Option<&Attempt> {
    shard.status.as_ref()?.attempts.last()
}

/// Whether an attempt ended in a way that somebody may want to know of.
pub fn is_error(attempt: &Attempt) -> bool {
    use collect_api::Outcome::{AlreadyCommitted, Checkpointed, Stopped, Succeeded};
    attempt
        .outcome
        .as_ref()
        .is_some_and(|outcome| !matches!(outcome, Succeeded | AlreadyCommitted | Checkpointed | Stopped))
}

fn ledger(entries: &Entries<'_>, result: Option<String>) -> String {
    let Some(attempt) = entries.last() else { return result.unwrap_or_else(|| "not begun".into()) };
    let how = match (&result, &attempt.outcome) {
        (Some(result), _) => result.clone(),
        (None, None) => "running".to_owned(),
        (None, Some(outcome)) => {
            let message = attempt.message.as_deref().unwrap_or_default();
            format!("{outcome} {message}").trim_end().to_owned()
        }
    };
    format!("attempt {}: {how}", attempt.n)
}

fn verdict(report: &ValidationReport) -> String {
    let name = report.name_any();
    let Some(status) = &report.status else { return format!("{name}: not judged yet") };
    let verdict = status.verdict.as_ref().map_or("not judged yet", |verdict| verdict.as_str());
    let counts = status.counts.as_ref().map(|counts| match counts.source {
        Some(source) => format!("; source {source}, collected {}", counts.collected),
        None => format!("; collected {}, the source does not say how many there are", counts.collected),
    });
    let reason = status.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
    format!("{name}: {verdict}{reason}{}", counts.unwrap_or_default())
}

fn failures(status: &CollectTaskStatus) -> Table {
    let mut table = Table::new(&["NAME", "ATTEMPTS", "OUTCOME", "REASON", "MESSAGE"]);
    for failure in &status.failures {
        table.row([
            failure.name.clone(),
            failure.attempts.map(|attempts| attempts.to_string()).unwrap_or_default(),
            failure.outcome.as_ref().map(ToString::to_string).unwrap_or_default(),
            failure.reason.clone(),
            failure.message.clone(),
        ]);
    }
    table
}

fn stragglers(status: &CollectTaskStatus) -> Table {
    let mut table = Table::new(&["SHARD", "NODE", "SIBLINGS TOOK", "WHY"]);
    for straggler in &status.stragglers {
        let node = straggler.node.clone().unwrap_or_default();
        table.row([straggler.name.clone(), node, pace::span(straggler.median_seconds), straggler.reason.clone()]);
    }
    table
}

fn conditions(status: &CollectTaskStatus, wide: bool) -> Table {
    let mut table = Table::new(&["TYPE", "STATUS", "REASON", "MESSAGE"]);
    for condition in status
        .conditions
        .iter()
        .filter(|condition| wide || condition.message != status.message.clone().unwrap_or_default())
    {
        table.row([&condition.type_, &condition.status, &condition.reason, &condition.message].map(String::as_str));
    }
    table
}

/// The command that most people want next.
fn next(task: &CollectTask, status: &CollectTaskStatus) -> String {
    use collect_api::Phase::{
        Cancelled, Collected, Failed, PartiallySucceeded, Paused, Planning, Running, Succeeded, Validating,
    };
    let name = task.name_any();
    let root = task.spec.part_of.as_ref().map_or(&name, |part| &part.root);
    let failed = status.shards.as_ref().is_some_and(|shards| shards.failed > 0);
    match state::phase(task) {
        Failed if status.conditions.iter().any(|c| c.reason == collect_api::condition::reason::VALIDATION_FAILED) => {
            format!("kubectl collect report {name}; to collect anew: kubectl collect rerun {root}")
        }
        Failed => format!("mend the cause, then: kubectl collect retry {name}"),
        Cancelled => format!("to go on after all: kubectl collect retry {name}"),
        PartiallySucceeded => format!("mend the cause, then: kubectl collect retry {name}"),
        Paused => format!("kubectl collect resume {name}"),
        Succeeded | Collected => format!("kubectl collect report {name}"),
        Running if failed => format!("mend the cause, then: kubectl collect retry {name}"),
        Running | Planning | Validating => format!("kubectl collect logs {name} -f"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::samples;

    fn page(style: Style) -> String {
        let task = samples::with_status(
            samples::task("villages", None, "Running", 63, (630, Some(1000))),
            json!({
                "shards": {"total": 4, "pending": 1, "running": 1, "succeeded": 1, "failed": 1, "cancelled": 0, "retries": 2},
                "workers": 1,
                "message": "workers collect",
                "failures": [{"name": "villages-2", "attempts": 1, "outcome": "Permanent", "reason": "SourceRefused", "message": "the source answered 403"}],
                "stragglers": [{"name": "villages-1", "node": "node-1", "medianSeconds": 12, "reason": "it is in attempt 2"}],
                "plan": {"attempts": [{"number": 1, "authorisedBy": "a", "authorisedAt": "2026-01-01T00:00:00Z", "outcome": "Succeeded"}],
                         "sealed": 1, "result": {"digest": "d", "chunks": 1, "tasks": 1, "shards": 4, "items": 4}},
            }),
        );
        let (failed, running) = (
            samples::shard("villages-2", "Failed", 2, 0, None),
            samples::shard("villages-1", "Running", 1, 300, Some(400)),
        );
        let report = samples::report("villages", 1, "Fail");
        let page = Page {
            task: &task,
            rate: pace::of_shard(&running),
            left: Some(37),
            shards: vec![&failed, &running],
            report: Some(&report),
            now: samples::now(),
            wide: false,
        };
        page.render(style)
    }

    #[test]
    fn a_task_is_told_in_depth() {
        insta::assert_snapshot!(page(Style::PLAIN));
    }

    #[test]
    fn lines_are_cut_by_what_is_seen_of_them() {
        let text = fitted(&page(Style { color: true, terminal: true }), Room { columns: Some(40), rows: Some(6) });
        assert_eq!(text.lines().count(), 6);
        assert!(text.lines().any(|line| line.contains("\u{1b}[36mRunning\u{1b}[0m")), "{text:?}");
        assert_eq!(visible_cut("\u{1b}[31mFailed\u{1b}[0m and", Some(3)), "\u{1b}[31mFai\u{1b}[0m");
    }

    #[test]
    fn each_end_has_a_next_step() {
        for phase in ["Failed", "Cancelled", "PartiallySucceeded", "Succeeded", "Collected", "Paused", "Running"] {
            let task = samples::task("villages", None, phase, 50, (1, None));
            let told = next(&task, task.status.as_ref().unwrap());
            assert!(told.contains("kubectl collect "), "{phase}: {told}");
        }
    }
}
