//! `watch`: what happens, a line for each transition and nothing else.

use std::sync::Arc;

use collect_api::{CollectShard, CollectTask, ValidationReport, shard::ShardPhase};
use futures::StreamExt;
use jiff::{Timestamp, tz::TimeZone};
use kube::ResourceExt;

use crate::{
    args::{Everywhere, TaskName},
    error::Error,
    exit::Exit,
    live::{self, Change, Scope, Seen},
    output::{self, Format, OutputArgs, Style, Tone},
    session::Session,
    state,
    tree::{Tree, tone},
};

/// Arguments of `watch`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of a task; the watch ends when it is over. Default: all tasks, without end.
    #[arg(conflicts_with = "all_namespaces")]
    name: Option<TaskName>,
    /// Every transition of shards too, not only their failures.
    #[arg(long)]
    shards: bool,
    #[command(flatten)]
    everywhere: Everywhere,
    #[command(flatten)]
    output: OutputArgs,
}

/// A transition.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    namespace: String,
    name: String,
    from: String,
    to: String,
    what: String,
}

/// Prints transitions as they come.
pub async fn run(args: &Args, session: &Session) -> Result<Exit, Error> {
    let scope = match &args.name {
        Some(name) => Scope::of(&session.get::<CollectTask>(name.as_ref()).await?),
        None if args.everywhere.all_namespaces => Scope::Everywhere,
        None => Scope::Namespace,
    };
    let mut seen = Seen::nothing(&scope);
    let mut said = live::watch(session, &scope).await?;
    let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
    let mut began = false;
    loop {
        let changes = tokio::select! {
            next = said.next() => match next {
                Some(said) => seen.take(said?),
                None => return Err(Error::Unreachable("watching".into(), "the watch ended".into())),
            },
            _ = &mut interrupted => return Ok(Exit::Done),
        };
        if !seen.is_ready() {
            continue;
        }
        if !began {
            began = true;
            print_all(args, session, &seen, &at_first(&seen))?;
        }
        print_all(args, session, &seen, &changes)?;
        let Some(name) = &args.name else { continue };
        match seen.task(name.as_ref()) {
            Some(task) if state::is_over(&task) => {
                return Ok(if state::is_good(&state::phase(&task)) { Exit::Done } else { Exit::Failed });
            }
            Some(_) => {}
            None => {
                output::remark(&format!("{} is gone: it was deleted", name.as_ref()));
                return Ok(Exit::Unable);
            }
        }
    }
}

/// What there is at the beginning: the root tasks, so that a reader knows where it begins.
fn at_first(seen: &Seen) -> Vec<Change> {
    let roots = seen.tasks().into_iter().filter(|task| task.spec.part_of.is_none());
    roots.map(|task| Change::Task(None, Some(task))).collect()
}

fn print_all(args: &Args, session: &Session, seen: &Seen, changes: &[Change]) -> Result<(), Error> {
    let names = args.name.as_ref().filter(|_| !changes.is_empty()).and_then(|name| {
        let top = seen.task(name.as_ref())?;
        let tree = Tree::of(&top, &seen.tasks(), &seen.shards(), &seen.reports(), Timestamp::now());
        Some(tree.names().into_iter().map(str::to_owned).collect::<std::collections::BTreeSet<_>>())
    });
    for change in changes {
        let Some(line) = line(change, args.shards) else { continue };
        // A branch of the tree tells of itself alone. What was deleted is no part of the tree any more.
        if names.as_ref().is_some_and(|names| !names.contains(&line.name) && line.to != DELETED) {
            continue;
        }
        let text = match (args.output.output, change) {
            (Some(format @ (Format::Json | Format::Yaml | Format::Name)), change) => whole(format, change)?,
            _ => render(&line, args.everywhere.all_namespaces, session.style(), Timestamp::now(), &TimeZone::system()),
        };
        output::print(&text)?;
    }
    Ok(())
}

const DELETED: &str = "deleted";

fn whole(format: Format, change: &Change) -> Result<String, Error> {
    match change {
        Change::Task(old, new) => new.as_deref().or(old.as_deref()).map(|object| output::object(format, object)),
        Change::Shard(old, new) => new.as_deref().or(old.as_deref()).map(|object| output::object(format, object)),
        Change::Report(old, new) => new.as_deref().or(old.as_deref()).map(|object| output::object(format, object)),
    }
    .transpose()
    .map(Option::unwrap_or_default)
}

fn render(line: &Line, with_namespace: bool, style: Style, now: Timestamp, zone: &TimeZone) -> String {
    let at = now.to_zoned(zone.clone()).strftime("%H:%M:%S").to_string();
    let name = if with_namespace { format!("{}/{}", line.namespace, line.name) } else { line.name.clone() };
    let from = if line.from.is_empty() { String::new() } else { format!("{} → ", line.from) };
    let what = if line.what.is_empty() { String::new() } else { format!("  {}", line.what) };
    format!("{}  {name}  {from}{}{what}\n", style.paint(Tone::Faint, &at), style.paint(tone(&line.to), &line.to))
}

/// The line of a change; nothing where nobody needs to know.
fn line(change: &Change, shards: bool) -> Option<Line> {
    match change {
        Change::Task(old, new) => of_task(old.as_ref(), new.as_ref()),
        Change::Shard(old, new) => of_shard(old.as_ref(), new.as_ref(), shards),
        Change::Report(old, new) => of_report(old.as_ref(), new.as_ref()),
    }
}

fn of_task(old: Option<&Arc<CollectTask>>, new: Option<&Arc<CollectTask>>) -> Option<Line> {
    let any = new.or(old)?;
    let (namespace, name) = (any.namespace().unwrap_or_default(), any.name_any());
    let phase = |task: &Arc<CollectTask>| state::phase(task).to_string();
    let from = old.map(phase).unwrap_or_default();
    let Some(new) = new else {
        // Children go when they are folded or replaced; that is nobody's concern.
        return any.spec.part_of.is_none().then(|| Line {
            namespace,
            name,
            from,
            to: DELETED.into(),
            what: String::new(),
        });
    };
    let run = |task: &Arc<CollectTask>| task.status.as_ref().and_then(|status| status.run);
    let to = phase(new);
    if from == to && old.and_then(run) == run(new) {
        return None;
    }
    let status = new.status.clone().unwrap_or_default();
    let summary = status.summary.unwrap_or_default();
    let mut what = Vec::new();
    if old.is_some_and(|old| run(old) != run(new)) {
        what.push(format!("run {}", run(new).unwrap_or(1)));
    }
    what.extend(summary.progress);
    what.extend(summary.records.map(|records| format!("{records} records")));
    what.extend(summary.match_.map(|matched| format!("match {matched}")));
    what.extend(status.message.filter(|_| !state::is_good(&state::phase(new))));
    Some(Line { namespace, name, from, to, what: what.join(", ") })
}

fn of_shard(old: Option<&Arc<CollectShard>>, new: Option<&Arc<CollectShard>>, all: bool) -> Option<Line> {
    let new = new?;
    let phase = |shard: &Arc<CollectShard>| {
        shard.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or(ShardPhase::Pending)
    };
    let (from, to) = (old.map(phase), phase(new));
    let (namespace, name) = (new.namespace().unwrap_or_default(), new.name_any());
    let line = |what: String| {
        let from = from.as_ref().map(ToString::to_string).unwrap_or_default();
        Some(Line { namespace: namespace.clone(), name: name.clone(), from, to: to.to_string(), what })
    };
    // An attempt that ended since, in a way that somebody may want to know of.
    let ended = |shard: &Arc<CollectShard>| {
        let attempts = shard.status.iter().flat_map(|status| &status.attempts);
        attempts.filter(|attempt| crate::status::is_error(attempt)).map(|attempt| attempt.n).max().unwrap_or(0)
    };
    if old.is_some_and(|old| ended(old) < ended(new)) {
        let number = ended(new);
        let attempt = new.status.as_ref()?.attempts.iter().rfind(|attempt| attempt.n == number)?;
        let outcome = attempt.outcome.as_ref().map(ToString::to_string).unwrap_or_default();
        let message = attempt.message.clone().unwrap_or_default();
        return line(format!("attempt {number} {outcome}: {message}").trim_end_matches(": ").to_owned());
    }
    if from.as_ref() == Some(&to) {
        return None;
    }
    let status = new.status.clone().unwrap_or_default();
    let attempt = status.attempt.map(|attempt| format!("attempt {attempt}")).unwrap_or_default();
    match to {
        ShardPhase::Failed => line(status.message.unwrap_or(attempt)),
        _ if all => line(status.message.filter(|_| to == ShardPhase::Pending).unwrap_or(attempt)),
        _ => None,
    }
}

fn of_report(old: Option<&Arc<ValidationReport>>, new: Option<&Arc<ValidationReport>>) -> Option<Line> {
    let new = new?;
    let verdict = |report: &Arc<ValidationReport>| {
        report.status.as_ref().and_then(|status| status.verdict.as_ref()).map(ToString::to_string)
    };
    let to = verdict(new)?;
    let from = old.and_then(verdict);
    // Reports of children are told by their phase.
    if from.as_ref() == Some(&to) || !new.spec.path.is_empty() || old.is_none() {
        return None;
    }
    let (namespace, name) = (new.namespace().unwrap_or_default(), new.spec.task.clone());
    Some(Line { namespace, name, from: from.unwrap_or_default(), to, what: format!("report {}", new.name_any()) })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::samples;

    fn task(phase: &str, progress: i32) -> Option<Arc<CollectTask>> {
        let task = samples::task("villages", None, phase, progress, (10, Some(20)));
        Some(Arc::new(samples::with_status(
            task,
            json!({"message": "why", "summary": {"progress": format!("{progress}%")}}),
        )))
    }

    #[test]
    fn progress_is_no_transition() {
        assert_eq!(line(&Change::Task(task("Running", 10), task("Running", 11)), true), None);
    }

    #[test]
    fn a_transition_is_a_line() {
        let told = line(&Change::Task(task("Running", 10), task("Paused", 11)), false).unwrap();
        let text = render(&told, false, Style::PLAIN, samples::now(), &TimeZone::UTC);
        assert_eq!(text, "00:01:00  villages  Running → Paused  11%, why\n");
        let gone = line(&Change::Task(task("Paused", 11), None), false).unwrap();
        assert!(
            render(&gone, true, Style::PLAIN, samples::now(), &TimeZone::UTC)
                .contains("default/villages  Paused → deleted")
        );
    }

    #[test]
    fn a_shard_speaks_up_when_it_fails_and_otherwise_only_if_asked() {
        let shard = |phase| Some(Arc::new(samples::shard("villages-0", phase, 0, 10, None)));
        let failed = line(&Change::Shard(shard("Running"), shard("Failed")), false).unwrap();
        assert!(failed.what.contains("attempt 1 Permanent: the source answered 403"), "{failed:?}");
        assert_eq!(line(&Change::Shard(shard("Running"), shard("Succeeded")), false), None);
        assert_eq!(line(&Change::Shard(shard("Running"), shard("Succeeded")), true).unwrap().to, "Succeeded");
    }
}
