//! `logs`: what the workers of a task say, planner, commit and hooks too. Where pods are gone, what status still knows of them.

use std::collections::BTreeSet;

use collect_api::{Attempt, CollectShard, CollectTask, labels};
use futures::{AsyncBufReadExt, StreamExt, TryStreamExt, stream::BoxStream};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt,
    api::{ListParams, LogParams},
    runtime::watcher,
};
use tokio::sync::mpsc;

use crate::{
    args::{Kind, Target},
    error::{About, Error},
    exit::Exit,
    live::{self, Scope, Seen},
    output::{self, Style, Table, Tone},
    session::Session,
    state,
    tree::Tree,
};

/// Lines that wait to be printed before pods have to wait.
const BUFFER: usize = 1000;
/// Tones by which pods are told apart.
const TONES: [Tone; 4] = [Tone::Busy, Tone::Good, Tone::Warning, Tone::Faint];

/// Arguments of `logs`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of a task, with everything below it, or of a shard as csh/NAME.
    name: Target,
    /// Go on until the task is over, with pods that start later too.
    #[arg(short, long)]
    follow: bool,
    /// Only this shard of the task: its number or its name.
    #[arg(long, value_name = "SHARD")]
    shard: Option<String>,
    /// Only this attempt.
    #[arg(long, value_name = "N")]
    attempt: Option<i32>,
    /// Only this kind of work: collect, plan, commit, before-start, after-success or after-failure.
    #[arg(long, value_name = "WORK", value_parser = WORKS)]
    work: Option<String>,
    /// Only the last lines of each pod.
    #[arg(long, value_name = "LINES")]
    tail: Option<i64>,
    /// Put the time before each line, as the node has it.
    #[arg(long)]
    timestamps: bool,
    /// Do not say which pod a line is from.
    #[arg(long)]
    no_prefix: bool,
}

const WORKS: [&str; 6] = ["collect", "plan", "commit", "before-start", "after-success", "after-failure"];

/// Whose logs are wanted. Pure.
#[derive(Debug)]
struct Wanted {
    selector: String,
    tasks: BTreeSet<String>,
}

impl Wanted {
    fn of(args: &Args, root: &str, shard: Option<&str>, tasks: BTreeSet<String>) -> Self {
        let mut selector = format!("{}={root}", labels::ROOT);
        let mut only = |label: &str, value: String| selector.push_str(&format!(",{label}={value}"));
        if let Some(shard) = shard {
            only(labels::SHARD, shard.to_owned());
        }
        if let Some(attempt) = args.attempt {
            only(labels::ATTEMPT, attempt.to_string());
        }
        if let Some(work) = &args.work {
            only(labels::WORK, work.clone());
        }
        Self { selector, tasks }
    }

    fn takes(&self, pod: &Pod) -> bool {
        pod.labels().get(labels::TASK).is_some_and(|task| self.tasks.contains(task))
    }
}

/// Prints the logs.
pub async fn run(args: &Args, session: &Session) -> Result<Exit, Error> {
    let (top, shard) = find(args, session).await?;
    let seen = Seen::read(session, &Scope::of(&top)).await?;
    let tree = Tree::of(&top, &seen.tasks(), &seen.shards(), &seen.reports(), jiff::Timestamp::now());
    let below: BTreeSet<String> = tree.names().into_iter().map(str::to_owned).collect();
    let Scope::Tree { root } = Scope::of(&top) else { return Ok(Exit::Done) };
    let wanted = Wanted::of(args, &root, shard.as_deref(), below.clone());
    let mut pods: Vec<Pod> = session.list(false, ListParams::default().labels(&wanted.selector)).await?;
    pods.retain(|pod| wanted.takes(pod));
    pods.sort_by_key(|pod| (pod.creation_timestamp().map(|at| at.0), pod.name_any()));

    let mut known = known(&top, &seen, &below);
    known.retain(|known| known.is_wanted(args, shard.as_deref()));
    let there: BTreeSet<String> = pods.iter().map(ResourceExt::name_any).collect();
    let gone: Vec<&Known> = known.iter().filter(|known| known.is_gone(&there)).collect();
    if !gone.is_empty() {
        tell_of_gone(&gone, pods.is_empty() && !args.follow, session.style())?;
    } else if pods.is_empty() && !args.follow {
        output::remark("no worker has begun yet; -f waits for them");
    }
    if args.follow {
        return follow(args, session, &top, wanted).await;
    }
    let api = session.api::<Pod>().await?;
    for (number, pod) in pods.iter().enumerate() {
        let prefix = prefix(args, pod, number, session.style());
        let mut lines = lines(&api, session, pod.name_any(), params(args)).await?;
        while let Some(line) = lines.next().await {
            output::print(&format!("{prefix}{}\n", line?))?;
        }
    }
    Ok(if pods.is_empty() { Exit::Failed } else { Exit::Done })
}

/// The task and, where one is meant, the shard.
async fn find(args: &Args, session: &Session) -> Result<(CollectTask, Option<String>), Error> {
    match args.name.kind {
        Kind::Shard if args.shard.is_some() => {
            Err(Error::Usage("give a shard as csh/NAME or with --shard, not both".into()))
        }
        Kind::Shard => {
            let shard: CollectShard = session.get(&args.name.name).await?;
            Ok((session.get(&shard.spec.task).await?, Some(args.name.name.clone())))
        }
        Kind::Task => {
            let shard = args.shard.as_ref().map(|shard| match shard.parse::<i32>() {
                Ok(index) => collect_core::names::shard(&args.name.name, index),
                Err(_) => shard.clone(),
            });
            Ok((session.get(&args.name.name).await?, shard))
        }
    }
}

/// An attempt that status knows of.
#[derive(Debug)]
struct Known {
    work: &'static str,
    of: String,
    attempt: Attempt,
}

impl Known {
    fn is_wanted(&self, args: &Args, shard: Option<&str>) -> bool {
        shard.is_none_or(|shard| self.work == "collect" && self.of == shard)
            && args.attempt.is_none_or(|attempt| attempt == self.attempt.n)
            && args.work.as_ref().is_none_or(|work| work == self.work)
    }

    /// Whether it had a pod, and that is not there any more.
    fn is_gone(&self, there: &BTreeSet<String>) -> bool {
        !self.attempt.is_live()
            && self.attempt.pod.as_ref().is_none_or(|pod| !there.contains(pod))
            && self.attempt.job.is_some()
    }
}

/// The attempts below a task that status lists.
fn known(top: &CollectTask, seen: &Seen, below: &BTreeSet<String>) -> Vec<Known> {
    let mut all = Vec::new();
    let mut add = |work, of: &str, attempts: &[Attempt]| {
        all.extend(attempts.iter().map(|attempt| Known { work, of: of.to_owned(), attempt: attempt.clone() }));
    };
    let status = top.status.clone().unwrap_or_default();
    add("plan", &top.name_any(), &status.plan.map(|plan| plan.attempts).unwrap_or_default());
    add("commit", &top.name_any(), &status.commit.map(|commit| commit.attempts).unwrap_or_default());
    for shard in seen.shards().iter().filter(|shard| below.contains(&shard.name_any())) {
        add("collect", &shard.name_any(), shard.status.as_ref().map_or(&[], |status| &status.attempts));
    }
    all.sort_by_key(|known| (known.attempt.authorised_at.0, known.of.clone()));
    all
}

fn tell_of_gone(gone: &[&Known], whole: bool, style: Style) -> Result<(), Error> {
    if !whole {
        output::remark(&format!(
            "{} ended attempts have no pod any more and so no log; what they came to: kubectl collect status",
            gone.len()
        ));
        return Ok(());
    }
    output::remark("the pods are gone, and with them their logs; this is what status knows of the attempts:");
    output::print(&table_of(gone).render(style))
}

fn table_of(gone: &[&Known]) -> Table {
    let mut table = Table::new(&["WORK", "OF", "ATTEMPT", "OUTCOME", "REASON", "NODE", "RECORDS", "MESSAGE"]);
    for Known { work, of, attempt } in gone {
        table.row([
            (*work).to_owned(),
            of.clone(),
            attempt.n.to_string(),
            attempt.outcome.as_ref().map(ToString::to_string).unwrap_or_default(),
            attempt.reason.clone().unwrap_or_default(),
            attempt.node.clone().unwrap_or_default(),
            attempt.records.map(|records| records.to_string()).unwrap_or_default(),
            attempt.message.clone().unwrap_or_default(),
        ]);
    }
    table
}

fn params(args: &Args) -> LogParams {
    LogParams {
        container: Some(collect_core::job::CONTAINER.to_owned()),
        follow: args.follow,
        tail_lines: args.tail,
        timestamps: args.timestamps,
        ..LogParams::default()
    }
}

/// `villages-44-0 a2 | `, the same tone for all lines of a pod.
fn prefix(args: &Args, pod: &Pod, number: usize, style: Style) -> String {
    if args.no_prefix {
        return String::new();
    }
    let label = |name: &str| pod.labels().get(name).cloned().unwrap_or_default();
    let whose = match label(labels::SHARD) {
        shard if !shard.is_empty() => shard,
        _ => format!("{} {}", label(labels::TASK), label(labels::WORK)),
    };
    let tone = TONES.get(number % TONES.len()).copied().unwrap_or(Tone::Plain);
    format!("{} ", style.paint(tone, &format!("{whose} a{} |", label(labels::ATTEMPT))))
}

type Lines = BoxStream<'static, Result<String, Error>>;

async fn lines(api: &Api<Pod>, session: &Session, pod: String, params: LogParams) -> Result<Lines, Error> {
    let namespace = session.namespace().await?;
    let doing = format!("reading the log of {pod}");
    let about = About { kind: "Pod", plural: "pods", name: &pod, namespace: &namespace };
    let log = session.ask(&doing, about, api.log_stream(&pod, &params)).await?;
    let broken =
        move |error: std::io::Error| Error::Unreachable(format!("reading the log of {pod}"), error.to_string());
    Ok(Box::pin(log.lines().map_err(broken)))
}

/// Logs of all pods, as they start, until the task is over and each of them has said its last.
async fn follow(args: &Args, session: &Session, top: &CollectTask, wanted: Wanted) -> Result<Exit, Error> {
    let api = session.api::<Pod>().await?;
    let (to_print, mut printed) = mpsc::channel::<Result<String, Error>>(BUFFER);
    let mut pods = live::lasting(api.clone(), watcher::Config::default().labels(&wanted.selector), |event| event);
    let alone = watcher::Config::default().fields(&format!("metadata.name={}", top.name_any()));
    let mut tasks = live::lasting(session.api::<CollectTask>().await?, alone, |event| event);
    let mut begun = BTreeSet::new();
    let mut readers = tokio::task::JoinSet::new();
    let (mut listed, mut over) = (false, None);
    let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
    // Child tasks may be created while we look; the root's label says enough where the root was asked for.
    let is_root = top.spec.part_of.is_none();
    loop {
        if let (Some(exit), true, true) = (over, listed, readers.is_empty()) {
            while let Ok(text) = printed.try_recv() {
                output::print(&text?)?;
            }
            return Ok(exit);
        }
        tokio::select! {
            Some(text) = printed.recv() => output::print(&text?)?,
            Some(event) = pods.next() => {
                let event = event?;
                listed |= matches!(event, watcher::Event::InitDone);
                let (watcher::Event::Apply(pod) | watcher::Event::InitApply(pod)) = event else { continue };
                let name = pod.name_any();
                if !has_begun(&pod) || !(is_root || wanted.takes(&pod)) || !begun.insert(name.clone()) {
                    continue;
                }
                let prefix = prefix(args, &pod, begun.len(), session.style());
                // A pod that went in between has nothing to say.
                let Ok(mut lines) = lines(&api, session, name, params(args)).await else { continue };
                let to_print = to_print.clone();
                readers.spawn(async move {
                    while let Some(line) = lines.next().await {
                        let Ok(line) = line else { break };
                        if to_print.send(Ok(format!("{prefix}{line}\n"))).await.is_err() {
                            break;
                        }
                    }
                });
            }
            Some(event) = tasks.next() => match event? {
                watcher::Event::Apply(task) | watcher::Event::InitApply(task) if state::is_over(&task) => {
                    over = Some(if state::is_good(&state::phase(&task)) { Exit::Done } else { Exit::Failed });
                }
                watcher::Event::Delete(_) => over = Some(Exit::Unable),
                _ => {}
            },
            Some(_) = readers.join_next() => {}
            _ = &mut interrupted => return Ok(Exit::Done),
        }
    }
}

/// Whether the worker of a pod has begun, so that there is a log.
fn has_begun(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Running" | "Succeeded" | "Failed"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::json;

    use super::*;
    use crate::samples;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn args(line: &str) -> Args {
        Line::parse_from(std::iter::once("logs").chain(line.split(' '))).args
    }

    fn pod(labels: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "labels": labels}})).unwrap()
    }

    #[test]
    fn pods_are_selected_by_label() {
        let tasks = BTreeSet::from(["villages-44".to_owned()]);
        let wanted =
            Wanted::of(&args("villages-44 --attempt 2 --work collect"), "villages", Some("villages-44-3"), tasks);
        assert_eq!(
            wanted.selector,
            "collect.dev/root=villages,collect.dev/shard=villages-44-3,collect.dev/attempt=2,collect.dev/work=collect"
        );
        assert!(wanted.takes(&pod(json!({"collect.dev/task": "villages-44"}))));
        assert!(!wanted.takes(&pod(json!({"collect.dev/task": "villages-11"}))), "another branch");
    }

    #[test]
    fn a_line_says_whose_it_is() {
        let collector = pod(
            json!({"collect.dev/task": "villages-44", "collect.dev/shard": "villages-44-3", "collect.dev/attempt": "2"}),
        );
        assert_eq!(prefix(&args("villages"), &collector, 0, Style::PLAIN), "villages-44-3 a2 | ");
        let planner =
            pod(json!({"collect.dev/task": "villages", "collect.dev/work": "plan", "collect.dev/attempt": "1"}));
        assert_eq!(prefix(&args("villages"), &planner, 1, Style::PLAIN), "villages plan a1 | ");
        assert_eq!(prefix(&args("villages --no-prefix"), &planner, 1, Style::PLAIN), "");
    }

    #[test]
    fn attempts_without_a_pod_are_told_from_status() {
        let shard = samples::shard("villages-2", "Failed", 2, 0, None);
        let mut attempt = shard.status.unwrap().attempts.remove(0);
        attempt.job = Some("villages-2-abcde-a1".into());
        attempt.pod = Some("villages-2-abcde-a1-xyz".into());
        let known = Known { work: "collect", of: "villages-2".into(), attempt };
        assert!(known.is_gone(&BTreeSet::new()) && !known.is_gone(&BTreeSet::from(["villages-2-abcde-a1-xyz".into()])));
        assert!(
            known.is_wanted(&args("villages --attempt 1"), Some("villages-2"))
                && !known.is_wanted(&args("villages --work plan"), None)
        );
        assert!(table_of(&[&known]).render(Style::PLAIN).contains("give it a token that may read"));
    }
}
