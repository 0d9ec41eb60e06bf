//! `events`: what was told of a task and of everything below it, Jobs and pods too, in the order of time.

use std::collections::BTreeSet;

use collect_api::{CollectTask, labels};
use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Event;
use kube::{ResourceExt, api::ListParams, runtime::watcher};

use crate::{
    args::TaskName,
    error::Error,
    exit::Exit,
    live,
    output::{self, Format, OutputArgs, Style, Table, Tone},
    pace,
    session::Session,
};

/// Arguments of `events`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of a task.
    name: TaskName,
    /// Go on with what comes.
    #[arg(short, long)]
    watch: bool,
    /// Only warnings.
    #[arg(long)]
    warnings: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// What belongs to a tree, by its name: names of children, shards, Jobs and pods begin with that of their task.
#[derive(Debug)]
struct Family {
    top: String,
    /// Other root tasks of the namespace: `villages-old` is no child of `villages`.
    others: BTreeSet<String>,
}

impl Family {
    fn has(&self, event: &Event) -> bool {
        let object = &event.involved_object;
        let name = object.name.as_deref().unwrap_or_default();
        let ours = is_below(name, &self.top) && !self.others.iter().any(|other| is_below(name, other));
        match object.kind.as_deref() {
            Some("CollectTask" | "CollectShard" | "ValidationReport") => ours,
            Some("Job" | "Pod") => ours && is_of_an_attempt(name),
            _ => false,
        }
    }
}

fn is_below(name: &str, top: &str) -> bool {
    name.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

/// Jobs end with `-a<attempt>`, and their pods with one word more.
fn is_of_an_attempt(name: &str) -> bool {
    let is_attempt = |word: &str| {
        word.strip_prefix('a')
            .is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
    };
    name.rsplit('-').take(2).any(is_attempt)
}

/// Prints the events.
pub async fn run(args: &Args, session: &Session) -> Result<Exit, Error> {
    let task: CollectTask = session.get(args.name.as_ref()).await?;
    let roots: Vec<CollectTask> =
        session.list(false, ListParams::default().labels(&format!("!{}", labels::ROOT))).await?;
    let top = task.name_any();
    let others = roots.iter().map(ResourceExt::name_any).filter(|root| root.len() > top.len() && is_below(root, &top));
    let family = Family { others: others.collect(), top };
    let wanted = |event: &Event| family.has(event) && (!args.warnings || event.type_.as_deref() == Some("Warning"));

    let mut events: Vec<Event> = session.list(false, ListParams::default()).await?;
    events.retain(&wanted);
    events.sort_by_key(|event| (at(event), event.name_any()));
    match args.output.output {
        Some(format @ (Format::Json | Format::Yaml | Format::Name)) => {
            let mut list = output::List::default();
            list.add(&events)?;
            output::print(&list.write(format)?)?;
        }
        _ if events.is_empty() => {
            output::remark("no events are kept of it; a cluster forgets them after an hour or so")
        }
        _ => output::print(&table(&events, Timestamp::now()).render_in(session.style(), width(session.style()), &[]))?,
    }
    if args.watch {
        let told = events.iter().map(version).collect();
        return follow(args, session, told, wanted).await;
    }
    Ok(Exit::Done)
}

async fn follow(
    args: &Args,
    session: &Session,
    mut told: BTreeSet<(String, Option<String>)>,
    wanted: impl Fn(&Event) -> bool,
) -> Result<Exit, Error> {
    let mut coming = live::lasting(session.api::<Event>().await?, watcher::Config::default(), |event| event);
    let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
    loop {
        let event = tokio::select! {
            event = coming.next() => event,
            _ = &mut interrupted => return Ok(Exit::Done),
        };
        let Some(event) = event else { return Ok(Exit::Done) };
        let (watcher::Event::Apply(event) | watcher::Event::InitApply(event)) = event? else { continue };
        if !wanted(&event) || !told.insert(version(&event)) {
            continue;
        }
        output::print(&match args.output.output {
            Some(format @ (Format::Json | Format::Yaml | Format::Name)) => output::object(format, &event)?,
            _ => line(&event, session.style()),
        })?;
    }
}

/// An event that is told again has another version.
fn version(event: &Event) -> (String, Option<String>) {
    (event.name_any(), event.metadata.resource_version.clone())
}

fn width(style: Style) -> Option<usize> {
    output::terminal_size().filter(|_| style.terminal).map(|(columns, _)| columns)
}

/// When it was last seen.
fn at(event: &Event) -> Option<Timestamp> {
    let series = event.series.as_ref().and_then(|series| series.last_observed_time.as_ref()).map(|at| at.0);
    let micro = event.event_time.as_ref().map(|at| at.0);
    let last = event.last_timestamp.as_ref().map(|at| at.0);
    series.max(last).max(micro).or_else(|| event.metadata.creation_timestamp.as_ref().map(|at| at.0))
}

fn count(event: &Event) -> i32 {
    event.series.as_ref().and_then(|series| series.count).or(event.count).unwrap_or(1)
}

fn object(event: &Event) -> String {
    let object = &event.involved_object;
    let kind = object.kind.as_deref().unwrap_or_default().to_ascii_lowercase();
    format!("{kind}/{}", object.name.as_deref().unwrap_or_default())
}

fn tone(event: &Event) -> Tone {
    if event.type_.as_deref() == Some("Warning") { Tone::Warning } else { Tone::Plain }
}

fn message(event: &Event) -> String {
    event.message.as_deref().unwrap_or_default().replace('\n', " ")
}

fn table(events: &[Event], now: Timestamp) -> Table {
    let mut table = Table::new(&["LAST SEEN", "COUNT", "TYPE", "REASON", "OBJECT", "MESSAGE"]);
    for event in events {
        let ago = at(event).map(|at| pace::span(now.duration_since(at).as_secs())).unwrap_or_default();
        let plain = |text: String| (Tone::Plain, text);
        table.toned(vec![
            plain(ago),
            plain(count(event).to_string()),
            (tone(event), event.type_.clone().unwrap_or_default()),
            (tone(event), event.reason.clone().unwrap_or_default()),
            plain(object(event)),
            plain(message(event)),
        ]);
    }
    table
}

fn line(event: &Event, style: Style) -> String {
    let type_ = style.paint(tone(event), event.type_.as_deref().unwrap_or_default());
    let reason = style.paint(tone(event), event.reason.as_deref().unwrap_or_default());
    format!("{type_}  {reason}  {}  {}\n", object(event), message(event))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::samples;

    fn event(kind: &str, name: &str, at: &str) -> Event {
        serde_json::from_value(json!({
            "metadata": {"name": format!("{name}.1")}, "type": "Warning", "reason": "Retrying", "message": "attempt 1 failed",
            "involvedObject": {"kind": kind, "name": name}, "eventTime": at,
            "series": {"count": 3, "lastObservedTime": at},
        }))
        .unwrap()
    }

    #[test]
    fn the_whole_tree_belongs_to_it_and_another_root_does_not() {
        let family = Family { top: "villages".into(), others: BTreeSet::from(["villages-old".to_owned()]) };
        for (kind, name, expected) in [
            ("CollectTask", "villages", true),
            ("CollectTask", "villages-44", true),
            ("CollectShard", "villages-44-0", true),
            ("Job", "villages-44-0-abcde-a2", true),
            ("Pod", "villages-44-0-abcde-a2-x7k2p", true),
            ("Job", "villages-nightly", false),
            ("CollectTask", "villages-old", false),
            ("CollectShard", "villages-old-0", false),
            ("CollectTask", "villages2", false),
            ("Node", "villages-44", false),
        ] {
            assert_eq!(family.has(&event(kind, name, "2026-01-01T00:00:00.000000Z")), expected, "{kind} {name}");
        }
    }

    #[test]
    fn an_event_is_told_with_its_last_time_and_its_count() {
        let event = event("CollectShard", "villages-0", "2026-01-01T00:00:30.000000Z");
        let text = table(&[event], samples::now()).render(Style::PLAIN);
        assert!(
            text.contains("30s") && text.contains("3      Warning") && text.contains("collectshard/villages-0"),
            "{text}"
        );
    }
}
