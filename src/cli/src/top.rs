//! `top`: how fast tasks collect and what their workers use: the fastest first. With a name, the shards of that task.

use std::collections::BTreeMap;

use collect_api::{Attempt, CollectShard, CollectTask, shard::ShardPhase};
use collect_core::text;
use jiff::Timestamp;
use kube::ResourceExt;

use crate::{
    args::{Everywhere, TaskName},
    error::Error,
    exit::Exit,
    live::{Key, Scope, Seen},
    output::{self, Format, OutputArgs, Style, Table, Tone},
    pace,
    session::Session,
    state,
    tree::{Tree, tone},
};

/// Arguments of `top`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of a task, to see its shards. Default: all root tasks.
    #[arg(conflicts_with = "all_namespaces")]
    name: Option<TaskName>,
    /// By what to sort, the largest first.
    #[arg(long, value_enum, value_name = "WHAT", default_value = "rate")]
    sort_by: Order,
    /// Tasks that are over as well.
    #[arg(long)]
    over: bool,
    #[command(flatten)]
    everywhere: Everywhere,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Order {
    /// Records a second.
    Rate,
    /// Records so far.
    Records,
    /// Workers at the moment.
    Workers,
    /// Largest memory of a worker.
    Memory,
    /// CPU time of all workers so far.
    Cpu,
}

/// A line of the table.
#[derive(Clone, Debug, Default, PartialEq)]
struct Row {
    namespace: String,
    name: String,
    phase: String,
    workers: i32,
    records: i64,
    expected: Option<i64>,
    per_second: Option<f64>,
    left: Option<i64>,
    usage: Usage,
    node: String,
}

/// What workers used, by the last words of those that ended.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Usage {
    /// Largest resident memory of one of them, in bytes.
    peak_bytes: i64,
    cpu_seconds: f64,
}

impl Usage {
    fn add(&mut self, attempt: &Attempt) {
        self.peak_bytes = self.peak_bytes.max(attempt.peak_memory_bytes.unwrap_or(0));
        self.cpu_seconds += attempt.cpu_seconds.unwrap_or(0.0);
    }

    fn of(shard: &CollectShard) -> Self {
        let mut usage = Self::default();
        let Some(status) = &shard.status else { return usage };
        status.attempts.iter().for_each(|attempt| usage.add(attempt));
        usage.cpu_seconds += status.folded.as_ref().map_or(0.0, |folded| folded.cpu_seconds);
        usage
    }
}

/// Prints the table.
pub async fn run(args: &Args, session: &Session) -> Result<Exit, Error> {
    let now = Timestamp::now();
    let (scope, task) = match &args.name {
        Some(name) => {
            let task: CollectTask = session.get(name.as_ref()).await?;
            (Scope::of(&task), Some(task))
        }
        None if args.everywhere.all_namespaces => (Scope::Everywhere, None),
        None => (Scope::Namespace, None),
    };
    let seen = Seen::read(session, &scope).await?;
    let tasks = seen.tasks();
    let mut rows = match &task {
        Some(task) => of_shards(task, &seen, now),
        None => of_tasks(&seen, now),
    };
    rows.retain(|row| args.over || task.is_some() || !is_over(row));
    sort(&mut rows, args.sort_by);
    let text = match args.output.output {
        Some(format @ (Format::Json | Format::Yaml | Format::Name)) => {
            let mut list = output::List::default();
            for row in &rows {
                let same = |meta: &kube::core::ObjectMeta| {
                    meta.name.as_deref() == Some(row.name.as_str())
                        && meta.namespace.as_deref() == Some(row.namespace.as_str())
                };
                list.add(tasks.iter().filter(|object| task.is_none() && same(&object.metadata)).map(AsRef::as_ref))?;
                list.add(
                    seen.shards().iter().filter(|object| task.is_some() && same(&object.metadata)).map(AsRef::as_ref),
                )?;
            }
            list.write(format)?
        }
        form => render(
            &rows,
            Columns { namespace: args.everywhere.all_namespaces, wide: form.is_some(), shards: task.is_some() },
            session.style(),
        ),
    };
    output::print(&text)?;
    if rows.is_empty() && args.output.output.is_none() {
        output::remark("nothing is at work; --over lists what is over, -A looks into all namespaces");
    }
    Ok(Exit::Done)
}

fn is_over(row: &Row) -> bool {
    collect_api::Phase::from(row.phase.clone()).is_terminal()
}

/// A row for each root task.
fn of_tasks(seen: &Seen, now: Timestamp) -> Vec<Row> {
    let (tasks, shards) = (seen.tasks(), seen.shards());
    let mut usage: BTreeMap<Key, Usage> = BTreeMap::new();
    // Records a second and workers, by what the shards say: a task's own status is written less often.
    let mut live: BTreeMap<Key, (f64, i32)> = BTreeMap::new();
    for shard in &shards {
        let root = shard.labels().get(collect_api::labels::ROOT).cloned().unwrap_or_default();
        let key = (shard.namespace().unwrap_or_default(), root);
        let sum = usage.entry(key.clone()).or_default();
        let own = Usage::of(shard);
        sum.peak_bytes = sum.peak_bytes.max(own.peak_bytes);
        sum.cpu_seconds += own.cpu_seconds;
        let live = live.entry(key).or_default();
        live.0 += pace::of_shard(shard).unwrap_or(0.0);
        live.1 +=
            i32::from(shard.status.as_ref().and_then(|status| status.attempts.last()).is_some_and(Attempt::is_live));
    }
    let roots = tasks.iter().filter(|task| task.spec.part_of.is_none());
    roots
        .map(|task| {
            let key = (task.namespace().unwrap_or_default(), task.name_any());
            let status = task.status.clone().unwrap_or_default();
            let mut usage = usage.get(&key).copied().unwrap_or_default();
            let plan = status.plan.iter().flat_map(|plan| &plan.attempts);
            plan.chain(status.commit.iter().flat_map(|commit| &commit.attempts)).for_each(|attempt| usage.add(attempt));
            let (rate, workers) = live.get(&key).copied().unwrap_or_default();
            let per_second = Some(rate).filter(|rate| *rate > 0.0).or_else(|| pace::average(task, now));
            let records = status.records.clone().unwrap_or_default();
            Row {
                phase: state::phase(task).to_string(),
                workers: status.workers.unwrap_or(0).max(workers),
                records: records.collected,
                expected: records.expected,
                per_second,
                left: pace::left(task, per_second, now),
                usage,
                node: String::new(),
                namespace: key.0,
                name: key.1,
            }
        })
        .collect()
}

/// A row for each shard below a task.
fn of_shards(top: &CollectTask, seen: &Seen, now: Timestamp) -> Vec<Row> {
    let tree = Tree::of(top, &seen.tasks(), &seen.shards(), &seen.reports(), now);
    let names = tree.names();
    let shards = seen.shards();
    let below = shards.iter().filter(|shard| names.contains(shard.name_any().as_str()));
    below
        .map(|shard| {
            let status = shard.status.clone().unwrap_or_default();
            let last = status.attempts.last();
            let progress = status.progress.as_ref();
            let result = status.result.as_ref().map(|result| result.tally.records);
            let per_second = pace::of_shard(shard).or_else(|| {
                let attempt = last.filter(|attempt| !attempt.is_live())?;
                let (from, to) = (attempt.started_at.as_ref()?, attempt.finished_at.as_ref()?);
                Some(attempt.records? as f64 / to.0.duration_since(from.0).as_secs().max(1) as f64)
            });
            let phase = status.phase.clone().unwrap_or(ShardPhase::Pending);
            Row {
                namespace: shard.namespace().unwrap_or_default(),
                name: shard.name_any(),
                workers: i32::from(last.is_some_and(Attempt::is_live)),
                records: result.or(progress.map(|progress| progress.records)).unwrap_or(0),
                expected: progress.and_then(|progress| progress.expected),
                per_second,
                left: None,
                usage: Usage::of(shard),
                node: last.and_then(|attempt| attempt.node.clone()).unwrap_or_default(),
                phase: phase.to_string(),
            }
        })
        .collect()
}

fn sort(rows: &mut [Row], order: Order) {
    let number = |row: &Row| match order {
        Order::Rate => row.per_second.unwrap_or(0.0),
        Order::Records => row.records as f64,
        Order::Workers => f64::from(row.workers),
        Order::Memory => row.usage.peak_bytes as f64,
        Order::Cpu => row.usage.cpu_seconds,
    };
    rows.sort_by(|a, b| {
        number(b).total_cmp(&number(a)).then_with(|| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)))
    });
}

#[derive(Clone, Copy)]
struct Columns {
    namespace: bool,
    wide: bool,
    shards: bool,
}

fn render(rows: &[Row], columns: Columns, style: Style) -> String {
    let headings = ["NAMESPACE", "NAME", "PHASE", "WORKERS", "RECORDS", "RATE", "LEFT", "MEMORY", "CPU", "NODE"];
    let shown = |heading: &&str| match *heading {
        "NAMESPACE" => columns.namespace,
        "WORKERS" | "LEFT" => !columns.shards,
        "NODE" => columns.shards || columns.wide,
        _ => true,
    };
    let mut table = Table::new(&headings.iter().copied().filter(shown).collect::<Vec<_>>());
    for row in rows {
        let cell = |heading: &str| match heading {
            "NAMESPACE" => row.namespace.clone(),
            "NAME" => row.name.clone(),
            "PHASE" => row.phase.clone(),
            "WORKERS" => row.workers.to_string(),
            "RECORDS" => text::of(row.records, row.expected),
            "RATE" => pace::said(row.per_second),
            "LEFT" => row.left.map(pace::span).unwrap_or_default(),
            "MEMORY" => bytes(row.usage.peak_bytes),
            "CPU" if row.usage.cpu_seconds > 0.0 => format!("{:.1}s", row.usage.cpu_seconds),
            "NODE" => row.node.clone(),
            _ => String::new(),
        };
        let toned = |heading: &str| if heading == "PHASE" { tone(&row.phase) } else { Tone::Plain };
        table.toned(headings.iter().copied().filter(shown).map(|heading| (toned(heading), cell(heading))).collect());
    }
    table.render(style)
}

/// `64Mi`; nothing where nothing is known.
fn bytes(bytes: i64) -> String {
    match bytes {
        i64::MIN..=0 => String::new(),
        1..1_048_576 => format!("{}Ki", bytes >> 10),
        1_048_576..10_737_418_240 => format!("{}Mi", bytes >> 20),
        _ => format!("{}Gi", bytes >> 30),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;

    fn row(name: &str, per_second: f64, records: i64) -> Row {
        Row {
            name: name.into(),
            phase: "Running".into(),
            per_second: Some(per_second),
            records,
            workers: 2,
            ..Row::default()
        }
    }

    #[test]
    fn the_fastest_is_first_and_names_break_ties() {
        let mut rows = vec![row("b", 5.0, 1), row("c", 9.0, 2), row("a", 5.0, 3)];
        sort(&mut rows, Order::Rate);
        assert_eq!(rows.iter().map(|row| row.name.as_str()).collect::<Vec<_>>(), ["c", "a", "b"]);
        sort(&mut rows, Order::Records);
        assert_eq!(rows[0].name, "a");
    }

    #[test]
    fn memory_and_cpu_come_from_the_attempts() {
        let usage = Usage::of(&samples::shard("villages-0", "Succeeded", 0, 10, None));
        assert_eq!((bytes(usage.peak_bytes).as_str(), usage.cpu_seconds), ("64Mi", 1.5));
        assert_eq!(bytes(0), "");
    }

    #[test]
    fn the_table_has_the_columns_that_were_asked_for() {
        let rows = [row("villages", 5.0, 1)];
        let tasks = render(&rows, Columns { namespace: false, wide: false, shards: false }, Style::PLAIN);
        assert!(tasks.starts_with("NAME") && tasks.contains("WORKERS") && !tasks.contains("NODE"), "{tasks}");
        let everywhere = render(&rows, Columns { namespace: true, wide: false, shards: false }, Style::PLAIN);
        assert!(everywhere.starts_with("NAMESPACE"), "{everywhere}");
    }
}
