//! `make bench-scale SHARDS=n`: what the operator takes, and what it costs the cluster, for a task of n shards.
//!
//! The control plane is the real one. The operator is the real one, as shipped, with the rights that the chart grants. The planner is the
//! real worker, run as a process: it discovers n values of a sample source, claims the sink and hands its chunks to the
//! operator's endpoint. The n collectors and the commit are *played* by the node (tests/cluster, "The scripted node"): their pods
//! start, last [`COLLECTING`] and end with a termination message, as a collector's would be that read ten records. No collector
//! reads or writes anything, so that the machine's time goes to what is measured; and since none leaves a manifest, a real
//! commit would rightly refuse. For the operator a played Job is a Job.
//!
//! The peers run in the same cluster right after the tree is deleted, the operator stopped: raw Jobs from a copy of the operator's
//! own Job, same pod, same scenario, and as many at once as the task's parallelism allows. By as many as the task had shards, left
//! lying, the rate is judged. Some more are deleted by Kubernetes when they have ended, as the operator has its own deleted while the
//! run goes on. Where this machine's time bounds the rate, and not the Job controller (`STOCK=1`: with the limits that Kubernetes
//! ships), the ratio says how much more a shard costs than a Job.
//!
//! Figures that depend on the machine's time are worth what the machine was: the share of other processes is printed.
//! The exit code is 1 if a target is missed.

mod left;
mod passes;
mod peer;
mod seen;
mod table;
mod usage;
mod writes;

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use collect_api::Phase;
use collect_e2e::{Cluster, Node, Operator, Space, audit, played, say, space::phase, tasks::World};
use collect_registry::{Registry, Synthetic};
use k8s_openapi::api::batch::v1::Job;
use serde_json::json;

use crate::{
    seen::Watcher,
    table::{Table, Target},
    usage::Usage,
    writes::Writes,
};

/// Name of the root.
const ROOT: &str = "bench";
/// What a collector's pod does.
const COLLECTING: &str = "succeed-after=1s";
/// Records that a collector says it has read.
const RECORDS: i64 = 10;
/// Raw Jobs that are deleted when they have ended, at most: their rate does not change after the first minute.
const TIDY_JOBS: usize = 3_000;
/// From this many shards on the ratio to raw Jobs must be reached; before, start and end are too large a part of the run.
const RATIO_FROM: usize = 1_000;
/// How long the settled operator is watched.
const SETTLED: Duration = Duration::from_secs(30);
/// How long nothing may happen before the run is given up.
const PATIENCE: Duration = Duration::from_secs(180);

/// What is asked for.
#[derive(Clone, Copy)]
struct Size {
    shards: usize,
    parallelism: usize,
    /// Finished shards of a task that stay.
    history: usize,
    /// Tasks between the root and the shards; with 1 there are none.
    branches: usize,
    /// Raw Jobs.
    raw: usize,
}

impl Size {
    fn of_environment() -> Self {
        let number = |name: &str, default: usize, most: usize| match std::env::var(name) {
            Err(_) => default,
            Ok(text) => match text.parse() {
                Ok(number) if (1..=most).contains(&number) => number,
                _ => panic!("{name}={text}: want a number from 1 to {most}"),
            },
        };
        let shards = number("SHARDS", 20_000, 100_000);
        Self {
            shards,
            parallelism: number("PARALLELISM", 300, 1_000),
            history: number("HISTORY", 100, 1_000),
            branches: number("BRANCHES", 1, 100),
            raw: number("RAW", shards, 100_000),
        }
    }

    /// Unfinished shards that may exist at a time: design.md, "Admission".
    fn window(self) -> usize {
        self.parallelism + (self.parallelism / 2).clamp(2, 50)
    }
}

fn main() -> ExitCode {
    let mut size = Size::of_environment();
    // As many in each branch.
    size.shards = size.shards.next_multiple_of(size.branches);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let table = runtime.expect("a runtime").block_on(bench(size));
    if table.print() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn bench(size: Size) -> Table {
    let cluster =
        Cluster::shared("bench-scale", Node::Process).expect("a process node needs nothing that could be missing");
    let space = Space::new(cluster, "bench").await;
    played::collectors(&space, COLLECTING, RECORDS, size.shards).await;
    let registry =
        Registry::synthetic(Synthetic { values: size.shards / size.branches, records: RECORDS as usize, bytes: 0 });
    let world = World::new(&space, registry).await;
    let mut operator = Operator::new(&space, "bench").await;
    operator.log_as_shipped();
    operator.go().await;
    let mut bench = Bench { cluster, space: &space, size, operator, table: Table::default() };
    let (template, ours) = bench.run(&world).await;
    bench.raw(&template, ours).await;
    bench.table
}

/// How fast, and at what cost.
#[derive(Clone, Copy)]
struct Pace {
    /// Shards or Jobs a second.
    rate: f64,
    /// CPU seconds of all parts for each.
    cpu: f64,
}

struct Bench<'a> {
    cluster: &'static Cluster,
    space: &'a Space,
    size: Size,
    operator: Operator,
    table: Table,
}

impl Bench<'_> {
    /// Runs the task to its end and deletes it; gives back a Job of it, and what raw ones are to be compared with.
    async fn run(&mut self, world: &World) -> (Job, Pace) {
        let Size { shards, parallelism, history, branches, .. } = self.size;
        let user = Operator::user(self.space);
        let mut spec = world.groups(ROOT);
        spec["parallelism"] = json!(parallelism);
        spec["history"] = json!(history);
        if branches > 1 {
            let values: Vec<_> = (1..=branches).map(|branch| branch.to_string()).collect();
            let levels = spec["decompose"]["levels"].as_array_mut().expect("it has levels");
            levels.insert(0, json!({"name": "branch", "values": values}));
        }
        let watcher = Watcher::start(self.space, ROOT).await;
        let (idle, _) = self.operator.memory_kib();
        let usage_before = Usage::now(self.cluster, &self.operator);
        let began = audit::now(self.cluster);

        say(&format!("{shards} shards, {parallelism} at once"));
        let applied = Instant::now();
        self.space.create(ROOT, spec).await;
        let progress = || say(&format!("  operator: {} MiB", self.operator.memory_kib().0 / 1024));
        let (template, ()) = tokio::join!(peer::template(self.space), watcher.until_over(shards, PATIENCE, progress));
        let usage = Usage::now(self.cluster, &self.operator).since(&usage_before);
        let passes = passes::passes(&self.operator).await;
        say("the root is over; waiting until the operator is quiet");
        let quiet_after = writes::until_quiet(self.cluster, &user, Duration::from_secs(5), PATIENCE).await;
        let settled = audit::now(self.cluster);
        tokio::time::sleep(SETTLED).await;
        let settled_end = audit::now(self.cluster);
        let writes = Writes::between(self.cluster, &user, began, settled);
        let quiet = Writes::between(self.cluster, &user, settled, settled_end);
        let (at_rest, _) = self.operator.memory_kib();

        let objects = left::count(self.space).await;
        say(&format!("deleting the tree of {objects} objects"));
        let deleted = Instant::now();
        self.space.delete(ROOT).await;
        let left = left::until_gone(self.space, PATIENCE.min(Duration::from_secs(60))).await;
        let gone_after = deleted.elapsed();
        let (_, memory) = self.operator.memory_kib();
        let all_usage = Usage::now(self.cluster, &self.operator).since(&usage_before);
        self.operator.terminate().await;

        let seen = watcher.seen();
        let (root, over) = seen.end.as_ref().expect("the root is over");
        let status = root.status.as_ref();
        assert_eq!(phase(root), Some(&Phase::Succeeded), "{:?}", status.and_then(|status| status.message.as_ref()));
        assert_eq!(seen.gaps, 0, "the watch of shards was started anew: what it counted is not all");
        assert_eq!(seen.succeeded.len(), shards, "every shard was seen to succeed");
        assert_eq!(seen.delays.len(), shards, "the root counts every shard");
        let first = seen.first_start.expect("shards had attempts");
        let last = *seen.succeeded.last().expect("shards succeeded");
        let working = last.duration_since(first);
        let rate = shards as f64 / working.as_secs_f64();
        let since = |at: Option<Instant>| at.map_or(f64::NAN, |at| at.duration_since(applied).as_secs_f64());

        let table = &mut self.table;
        let tasks = if branches > 1 { format!(" of {branches} tasks") } else { String::new() };
        table.heading(&format!(
            "Collect Operator: {shards} shards{tasks}, {parallelism} at once, pods that {COLLECTING}"
        ));
        table.judged("memory of the operator, at most", memory as f64 / 1024.0, "MiB", Target::AtMost(200.0));
        table.figure("  idle before, at rest after the end", format!("{}, {} MiB", idle / 1024, at_rest / 1024));
        table.figure("CPU of the operator, to the end of the root", format!("{:.1} s", usage.of("operator")));
        table.figure("  per shard", format!("{:.2} ms", usage.of("operator") * 1e3 / shards as f64));
        table.figure("  until the deleted tree was gone", format!("{:.1} s", all_usage.of("operator")));
        for passes in passes {
            let (count, mean) = (passes.count / shards as f64, passes.seconds / passes.count * 1e3);
            table.figure(format!("passes over a {} per shard", passes.kind), format!("{count:.2}, {mean:.1} ms each"));
        }
        per_shard(table, "writes of the operator per shard", &writes.of_operator, shards, Some(Target::AtMost(5.0)));
        per_shard(table, "reads of the operator per shard", &writes.reads, shards, None);
        per_shard(table, "writes of all on the API server per shard", &writes.by_user, shards, None);
        let delays = sorted(&seen.delays);
        table.figure("roll-up delay, p50", format!("{:.2} s", quantile(&delays, 0.5)));
        table.judged("roll-up delay, p99", quantile(&delays, 0.99), "s", Target::AtMost(2.0));
        table.judged("apply to first progress of the root", since(seen.first_progress), "s", Target::AtMost(5.0));
        table.figure("  apply to Running (planned and sealed)", format!("{:.2} s", since(seen.running)));
        table.figure("  apply to the end of the root", format!("{:.1} s", since(Some(*over))));
        let window = self.size.window();
        let most = seen.most_unfinished;
        table.judged("unfinished shards at once, at most", most as f64, "", Target::AtMost(window as f64));
        table.figure("attempts repeated, shards failed", format!("{}, {}", seen.repeated(), seen.failed));
        table.figure("quiet after the end of the root", format!("{:.1} s", quiet_after.as_secs_f64()));
        table.judged("writes in 30 s once settled", quiet.operator() as f64, "", Target::AtMost(0.0));
        table.figure("objects at rest, before the delete", objects);
        let objects: usize = left.iter().map(|(_, count)| count).sum();
        table.judged("objects left after delete", objects as f64, "", Target::AtMost(0.0));
        for (kind, count) in &left {
            table.figure(format!("  {kind}"), count);
        }
        table.figure("  gone after", format!("{:.1} s", gone_after.as_secs_f64()));
        table.figure("shards a second, first attempt to last success", format!("{rate:.1}"));
        let quarter = |from: usize| {
            let at = |place: usize| if place == 0 { first } else { seen.succeeded[place * shards / 4 - 1] };
            (shards as f64 / 4.0) / at(from + 1).duration_since(at(from)).as_secs_f64()
        };
        if shards >= 4 {
            table.figure("  in the first and the last quarter", format!("{:.1}, {:.1}", quarter(0), quarter(3)));
        }
        time(table, &usage, shards);
        (template, Pace { rate, cpu: usage.of_all() / shards as f64 })
    }

    /// Runs raw Jobs and compares: such as are cleaned up as soon as they have ended, which is what the operator does with its own,
    /// and such as are left lying.
    async fn raw(&mut self, template: &Job, ours: Pace) {
        let mut cleaned = template.clone();
        cleaned.spec.as_mut().expect("a Job has a spec").ttl_seconds_after_finished = Some(0);
        let tidy = self.size.raw.min(TIDY_JOBS);
        self.peer("tidy", "deleted when they have ended", &cleaned, tidy, ours, Target::Hoped(0.85)).await;
        let target = if self.size.shards < RATIO_FROM { Target::Hoped(0.85) } else { Target::AtLeast(0.85) };
        self.peer("raw", "left lying", template, self.size.raw, ours, target).await;
        let table = &mut self.table;
        for component in ["kube-controller-manager", "kube-scheduler"] {
            table.heading(&format!("All with {component} {}", usage::limits(self.cluster, component)));
        }
    }

    /// Runs Jobs of a template in a namespace of their own, and compares their rate with that of the shards.
    async fn peer(&mut self, name: &str, fate: &str, template: &Job, count: usize, ours: Pace, target: Target) {
        let at_once = self.size.parallelism;
        say(&format!("{count} {name} Jobs, {at_once} at once"));
        let space = Space::new(self.cluster, name).await;
        played::collectors(&space, COLLECTING, RECORDS, self.size.shards).await;
        let before = Usage::now(self.cluster, &self.operator);
        let took = peer::run(&space, template, count, at_once, PATIENCE).await;
        let usage = Usage::now(self.cluster, &self.operator).since(&before);
        let (rate, cpu) = (count as f64 / took.as_secs_f64(), usage.of_all() / count as f64);

        let table = &mut self.table;
        table.heading(&format!("Peer: {count} raw Jobs, {at_once} at once, the same pods, {fate}"));
        table.figure("Jobs a second, first create to last end", format!("{rate:.1}"));
        time(table, &usage, count);
        table.judged("shards a second / such Jobs a second", ours.rate / rate, "", target);
        // What the ratio of rates comes to where only the machine's time bounds them, whatever else the machine did meanwhile.
        table.figure("CPU of such a Job / CPU of a shard, all parts", format!("{:.2}", cpu / ours.cpu));
    }
}

/// A sum and its parts, for each shard; parts too small to matter are left out.
fn per_shard<'a>(
    table: &mut Table,
    name: &str,
    counts: impl IntoIterator<Item = (&'a String, &'a usize)>,
    shards: usize,
    target: Option<Target>,
) {
    let mut parts: Vec<_> = counts.into_iter().map(|(what, count)| (what, *count as f64 / shards as f64)).collect();
    parts.sort_by(|a, b| b.1.total_cmp(&a.1));
    let sum: f64 = parts.iter().map(|(_, count)| count).sum();
    match target {
        Some(target) => table.judged(name, sum, "", target),
        None => table.figure(name, format!("{sum:.2}")),
    }
    for (what, count) in parts.into_iter().filter(|(_, count)| *count >= 0.01) {
        table.figure(format!("  {what}"), format!("{count:.2}"));
    }
}

/// Where the machine's time went, and so what bounds the rate.
fn time(table: &mut Table, usage: &Usage, count: usize) {
    let busy = usage.busy / usage.capacity * 100.0;
    let bound = if busy >= 90.0 { "its time bounds the rate" } else { "its time does not bound the rate" };
    table.figure("machine busy", format!("{busy:.0} %: {bound}"));
    let mut parts: Vec<_> = usage.by_process.iter().map(|(name, seconds)| (*name, *seconds)).collect();
    parts.push(("processes that have no part in it", usage.of_others()));
    parts.sort_by(|a, b| b.1.total_cmp(&a.1));
    for (name, seconds) in parts {
        let share = seconds / usage.busy * 100.0;
        table.figure(format!("  {name}"), format!("{share:.0} %, {:.1} ms each", seconds * 1e3 / count as f64));
    }
}

fn sorted(delays: &[Duration]) -> Vec<f64> {
    let mut seconds: Vec<_> = delays.iter().map(Duration::as_secs_f64).collect();
    seconds.sort_by(f64::total_cmp);
    seconds
}

/// The smallest value that is not exceeded by this share of all.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(place.max(1) - 1).copied().unwrap_or(f64::NAN)
}
