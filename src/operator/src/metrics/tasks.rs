//! What the caches say of objects and root tasks, as samples. Pure: the same objects always give the same samples.
//!
//! Only roots have series of their own, and only [`LISTED`] of them: what Prometheus has to keep must not grow with a tree.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use collect_api::{
    CollectShard, CollectTask, Phase, ValidationReport, ValidationReportStatus, condition::STALLED, report::Verdict,
};
use collect_core::conditions;
use jiff::Timestamp;
use kube::ResourceExt;

use super::{Sample, seconds, table};

/// Roots that have series of their own.
pub const LISTED: usize = 1000;

/// The objects of a moment.
#[derive(Default)]
pub struct Seen {
    /// CollectTasks, roots and others.
    pub tasks: Vec<Arc<CollectTask>>,
    /// CollectShards.
    pub shards: Vec<Arc<CollectShard>>,
    /// ValidationReports.
    pub reports: Vec<Arc<ValidationReport>>,
}

/// What is worked out for a root from other objects of its tree.
#[derive(Default)]
struct Tree<'a> {
    /// Reports about the root itself, of any run.
    reports: Vec<&'a ValidationReport>,
    stragglers: usize,
    /// When the running shard that has been silent longest was last heard of.
    silent_since: Option<Timestamp>,
}

/// All samples. `unchanged` tells for how long the records of a root have had this number, by its uid.
pub fn samples(seen: &Seen, unchanged: impl Fn(&str, i64) -> Duration, now: Timestamp) -> Vec<Sample> {
    let mut samples = objects(seen);
    let mut roots: Vec<&CollectTask> =
        seen.tasks.iter().map(Arc::as_ref).filter(|task| task.spec.part_of.is_none()).collect();
    // Those that are at work come first: of them alerts must be able to tell.
    roots.sort_by_cached_key(|task| (phase(task).is_terminal(), task.namespace(), task.name_any()));
    let unlisted = roots.len().saturating_sub(LISTED);
    samples.push(Sample::new(&table::TASKS_UNLISTED, [], unlisted as f64));
    let trees = trees(seen);
    for root in roots.into_iter().take(LISTED) {
        let uid = root.uid().unwrap_or_default();
        let none = Tree::default();
        root_samples(root, trees.get(uid.as_str()).unwrap_or(&none), &unchanged, now, &mut samples);
    }
    samples
}

fn phase(task: &CollectTask) -> Phase {
    task.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or(Phase::Pending)
}

fn objects(seen: &Seen) -> Vec<Sample> {
    let mut counts: BTreeMap<(&str, &str), u32> = BTreeMap::new();
    for task in &seen.tasks {
        let phase = task.status.as_ref().and_then(|status| status.phase.as_ref());
        *counts.entry(("CollectTask", phase.map_or("Pending", |phase| phase.as_str()))).or_default() += 1;
    }
    for shard in &seen.shards {
        let phase = shard.status.as_ref().and_then(|status| status.phase.as_ref());
        *counts.entry(("CollectShard", phase.map_or("Pending", |phase| phase.as_str()))).or_default() += 1;
    }
    counts
        .into_iter()
        .map(|((kind, phase), count)| Sample::new(&table::OBJECTS, [kind, phase], f64::from(count)))
        .collect()
}

/// What other objects say of each root, by its uid.
fn trees(seen: &Seen) -> HashMap<&str, Tree<'_>> {
    let mut trees: HashMap<&str, Tree<'_>> = HashMap::new();
    for task in &seen.tasks {
        let own = task.metadata.uid.as_deref().unwrap_or_default();
        let uid = task.spec.part_of.as_ref().map_or(own, |part_of| &part_of.root_uid);
        trees.entry(uid).or_default().stragglers += task.status.as_ref().map_or(0, |status| status.stragglers.len());
    }
    for report in seen.reports.iter().filter(|report| report.spec.path.is_empty()) {
        trees.entry(&report.spec.task_uid).or_default().reports.push(report);
    }
    for shard in &seen.shards {
        let Some(status) = &shard.status else { continue };
        let Some(live) = status.attempts.last().filter(|attempt| attempt.is_live()) else { continue };
        let told = status.progress.as_ref().filter(|progress| progress.attempt == live.n);
        let heard = told.map_or(live.authorised_at.0, |progress| progress.at.0);
        let tree = trees.entry(&shard.spec.root_uid).or_default();
        tree.silent_since = Some(tree.silent_since.map_or(heard, |before| before.min(heard)));
    }
    trees
}

fn root_samples(
    root: &CollectTask,
    tree: &Tree<'_>,
    unchanged: impl Fn(&str, i64) -> Duration,
    now: Timestamp,
    samples: &mut Vec<Sample>,
) {
    let (namespace, name) = (root.namespace().unwrap_or_default(), root.name_any());
    let phase = phase(root);
    samples.push(Sample::new(&table::TASK_PHASE, [&namespace, &name, phase.as_str()], 1.0));
    let mut tell = |row, value: Option<f64>| {
        if let Some(value) = value {
            samples.push(Sample::new(row, [&namespace, &name], value));
        }
    };
    let Some(status) = &root.status else { return };
    let newest = newest(&tree.reports);
    let is_over = phase.is_terminal();
    tell(&table::TASK_STALLED, Some(f64::from(u8::from(conditions::is_true(&status.conditions, STALLED)))));
    tell(&table::TASK_STRAGGLERS, Some(tree.stragglers as f64));
    tell(&table::TASK_WORKERS, status.workers.map(f64::from));
    tell(&table::TASK_PROGRESS, status.progress.map(|percent| f64::from(percent) / 100.0));
    tell(&table::TASK_BYTES, status.bytes.map(|bytes| bytes as f64));
    tell(&table::TASK_START, status.started_at.as_ref().map(|time| seconds(time.0)));
    tell(&table::TASK_END, status.finished_at.as_ref().map(|time| seconds(time.0)));
    tell(&table::TASK_MATCH, newest.and_then(match_ratio));
    tell(
        &table::TASK_VERIFIED,
        newest.and_then(|report| match &report.verdict {
            Some(Verdict::Pass) => Some(1.0),
            Some(Verdict::Fail) => Some(0.0),
            _ => None,
        }),
    );
    tell(&table::TASK_LAST_SUCCESS, last_success(root, &phase, &tree.reports).map(seconds));
    tell(
        &table::TASK_DEADLINE,
        root.spec.deadline.zip(status.elapsed_seconds).and_then(|(deadline, elapsed)| {
            let deadline = deadline.get().as_secs_f64();
            (deadline > 0.0).then(|| elapsed as f64 / deadline)
        }),
    );
    if let Some(records) = &status.records {
        tell(&table::TASK_RECORDS, Some(records.collected as f64));
        tell(&table::TASK_RECORDS_EXPECTED, records.expected.map(|expected| expected as f64));
        if !is_over {
            let still = unchanged(&root.uid().unwrap_or_default(), records.collected);
            tell(&table::TASK_LAST_PROGRESS, Some(seconds(now) - still.as_secs_f64()));
        }
    }
    tell(&table::TASK_CHECKPOINT_AGE, tree.silent_since.map(|since| (seconds(now) - seconds(since)).max(0.0)));
    if let Some(shards) = &status.shards {
        tell(&table::TASK_RETRIES, Some(f64::from(shards.retries)));
        let phases = [
            ("total", shards.total),
            ("Pending", shards.pending),
            ("Running", shards.running),
            ("Succeeded", shards.succeeded),
            ("Failed", shards.failed),
            ("Cancelled", shards.cancelled),
        ];
        for (phase, count) in phases {
            samples.push(Sample::new(&table::TASK_SHARDS, [&namespace, &name, phase], f64::from(count)));
        }
    }
}

/// The report of the newest run that has come to a verdict.
fn newest<'a>(reports: &[&'a ValidationReport]) -> Option<&'a ValidationReportStatus> {
    let judged = reports.iter().filter_map(|report| Some((report.spec.run, report.status.as_ref()?)));
    judged.filter(|(_, status)| status.verdict.is_some()).max_by_key(|(run, _)| *run).map(|(_, status)| status)
}

fn match_ratio(report: &ValidationReportStatus) -> Option<f64> {
    let counts = report.counts.as_ref()?;
    match counts.source? {
        0 if counts.collected == 0 => Some(1.0),
        // As many times too many as there are records.
        0 => Some(1.0 + counts.collected as f64),
        source => Some(counts.collected as f64 / source as f64),
    }
}

/// When data was last made the valid one: by the present run, or by an earlier one whose report says that it was committed.
fn last_success(root: &CollectTask, phase: &Phase, reports: &[&ValidationReport]) -> Option<Timestamp> {
    let succeeded = matches!(phase, Phase::Succeeded | Phase::PartiallySucceeded | Phase::Collected);
    let finished = root.status.as_ref().and_then(|status| status.finished_at.as_ref()).filter(|_| succeeded);
    let earlier = reports.iter().filter_map(|report| {
        let status = report.status.as_ref().filter(|status| status.artifacts.is_some())?;
        let good = matches!(status.verdict, Some(Verdict::Pass | Verdict::Inconclusive));
        status.rounds.last().filter(|_| good).map(|round| round.at.0)
    });
    finished.map(|time| time.0).into_iter().chain(earlier).max()
}

#[cfg(test)]
pub mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn object<T: serde::de::DeserializeOwned>(value: Value) -> Arc<T> {
        Arc::new(serde_json::from_value(value).unwrap())
    }

    /// A task as a whole, by what it says besides its name.
    fn task(name: &str, spec: Value, status: Value) -> Arc<CollectTask> {
        object(json!({
            "apiVersion": "collect.dev/v1alpha1", "kind": "CollectTask",
            "metadata": {"namespace": "n", "name": name, "uid": format!("u-{name}")}, "spec": spec, "status": status,
        }))
    }

    fn report(task: &str, run: i64, path: Value, status: Value) -> Arc<ValidationReport> {
        object(json!({
            "apiVersion": "collect.dev/v1alpha1", "kind": "ValidationReport",
            "metadata": {"namespace": "n", "name": format!("{task}-r{run}")},
            "spec": {"task": task, "taskUid": format!("u-{task}"), "rootUid": "u-a", "run": run, "planDigest": "", "level": "counts", "path": path},
            "status": status,
        }))
    }

    fn shard(index: i32, attempt: Value, progress: Option<Value>) -> Arc<CollectShard> {
        let mut status = json!({"phase": "Running", "attempts": [attempt]});
        if let Some(progress) = progress {
            status["progress"] = progress;
        }
        object(json!({
            "apiVersion": "collect.dev/v1alpha1", "kind": "CollectShard",
            "metadata": {"namespace": "n", "name": format!("a-{index}"), "uid": format!("s{index}")},
            "spec": {"task": "a", "rootUid": "u-a", "run": 1, "index": index, "slice": {"items": []}},
            "status": status,
        }))
    }

    fn running() -> Value {
        json!({
            "phase": "Running", "run": 2, "startedAt": "2026-01-01T00:00:00Z", "progress": 40, "workers": 3, "bytes": 1024,
            "shards": {"total": 10, "pending": 3, "running": 3, "succeeded": 4, "failed": 0, "cancelled": 0, "retries": 2},
            "records": {"collected": 400, "expected": 1000}, "elapsedSeconds": 90,
            "stragglers": [{"name": "a-1", "medianSeconds": 10, "reason": "slow"}],
        })
    }

    const AT: &str = "2026-01-01T00:10:00Z";

    fn at() -> Timestamp {
        AT.parse().unwrap()
    }

    /// Samples as `name{values}` with their value; the namespace n and task a are left out.
    fn told(seen: &Seen) -> BTreeMap<String, f64> {
        let samples = samples(seen, |_, _| Duration::from_secs(30), at());
        samples
            .iter()
            .map(|sample| {
                let values: Vec<_> = sample.labels.iter().map(|(_, value)| value.as_str()).collect();
                (format!("{} {}", sample.row.name.trim_start_matches("collect_"), values.join(" ")), sample.value)
            })
            .collect()
    }

    /// Objects that give every sample there is.
    pub fn everything(now: Timestamp) -> Vec<Sample> {
        let mut status = running();
        status["finishedAt"] = json!(AT);
        let seen = Seen {
            tasks: vec![task("a", json!({"deadline": "3m"}), status)],
            shards: vec![shard(0, json!({"number": 1, "authorisedBy": "me", "authorisedAt": AT}), None)],
            reports: vec![report("a", 1, json!([]), passed(1000, 1000, true))],
        };
        samples(&seen, |_, _| Duration::ZERO, now)
    }

    fn passed(source: i64, collected: i64, committed: bool) -> Value {
        let mut status = json!({
            "verdict": "Pass", "counts": {"source": source, "collected": collected},
            "rounds": [{"round": 0, "verdict": "Pass", "at": "2025-12-31T00:00:00Z"}],
        });
        if committed {
            status["artifacts"] = json!({"files": 1, "records": collected, "bytes": 1});
        }
        status
    }

    #[test]
    fn a_running_root_is_told_with_all_its_numbers() {
        let child =
            json!({"partOf": {"root": "a", "rootUid": "u-a", "run": 2, "path": [{"level": "l", "value": "1"}]}});
        let seen = Seen {
            tasks: vec![
                task("a", json!({"deadline": "3m"}), running()),
                task(
                    "a-1",
                    child,
                    json!({"phase": "Running", "stragglers": [{"name": "x", "medianSeconds": 1, "reason": ""}]}),
                ),
            ],
            shards: vec![
                shard(
                    0,
                    json!({"number": 2, "authorisedBy": "me", "authorisedAt": "2026-01-01T00:00:00Z"}),
                    Some(
                        json!({"attempt": 2, "seq": 1, "stage": "reading", "records": 1, "bytes": 1, "at": "2026-01-01T00:09:50Z"}),
                    ),
                ),
                shard(
                    1,
                    json!({"number": 2, "authorisedBy": "me", "authorisedAt": "2026-01-01T00:09:00Z"}),
                    Some(
                        json!({"attempt": 1, "seq": 9, "stage": "reading", "records": 1, "bytes": 1, "at": "2026-01-01T00:01:00Z"}),
                    ),
                ),
            ],
            reports: vec![report("a", 1, json!([]), passed(1000, 990, true))],
        };
        let found = told(&seen);
        let expected = BTreeMap::from(
            [
                ("objects CollectTask Running", 2.0),
                ("objects CollectShard Running", 2.0),
                ("task_phase n a Running", 1.0),
                ("task_shards n a total", 10.0),
                ("task_shards n a Pending", 3.0),
                ("task_shards n a Running", 3.0),
                ("task_shards n a Succeeded", 4.0),
                ("task_shards n a Failed", 0.0),
                ("task_shards n a Cancelled", 0.0),
                ("task_records n a", 400.0),
                ("task_records_expected n a", 1000.0),
                ("task_bytes n a", 1024.0),
                ("task_workers n a", 3.0),
                ("task_progress_ratio n a", 0.4),
                ("task_retries n a", 2.0),
                ("task_stragglers n a", 2.0),
                ("task_match_ratio n a", 0.99),
                ("task_verified n a", 1.0),
                ("task_stalled n a", 0.0),
                ("task_start_timestamp_seconds n a", 1_767_225_600.0),
                ("task_last_success_timestamp_seconds n a", 1_767_139_200.0),
                ("task_deadline_ratio n a", 0.5),
                ("task_last_progress_timestamp_seconds n a", seconds(at()) - 30.0),
                ("task_checkpoint_age_seconds n a", 60.0),
                ("tasks_unlisted ", 0.0),
            ]
            .map(|(name, value)| (name.to_owned(), value)),
        );
        assert_eq!(found, expected);
    }

    #[test]
    fn a_task_that_has_just_been_created_has_a_phase_and_nothing_else() {
        let new = Arc::new(CollectTask { status: None, ..CollectTask::clone(&task("a", json!({}), json!({}))) });
        let found = told(&Seen { tasks: vec![new], ..Seen::default() });
        let names: Vec<_> = found.keys().map(String::as_str).collect();
        assert_eq!(names, ["objects CollectTask Pending", "task_phase n a Pending", "tasks_unlisted "]);
    }

    #[test]
    fn a_task_that_is_over_makes_no_progress_and_may_have_succeeded() {
        let over = |phase: &str| {
            let status = json!({
                "phase": phase, "run": 1, "finishedAt": "2026-01-01T00:09:00Z", "records": {"collected": 1},
                "conditions": [{"type": "Stalled", "status": "True", "reason": "Failed", "message": "", "lastTransitionTime": AT}],
            });
            told(&Seen { tasks: vec![task("a", json!({}), status)], ..Seen::default() })
        };
        for phase in ["Succeeded", "PartiallySucceeded", "Collected"] {
            let found = over(phase);
            assert_eq!(found["task_last_success_timestamp_seconds n a"], found["task_end_timestamp_seconds n a"]);
        }
        let failed = over("Failed");
        assert_eq!(failed["task_stalled n a"], 1.0);
        assert!(!failed.contains_key("task_last_success_timestamp_seconds n a"));
        assert!(!failed.contains_key("task_last_progress_timestamp_seconds n a"));
    }

    #[test]
    fn the_newest_report_about_the_root_counts() {
        let of = |reports: Vec<Arc<ValidationReport>>| {
            told(&Seen { tasks: vec![task("a", json!({}), running())], reports, ..Seen::default() })
        };
        let mut failed = passed(100, 80, false);
        failed["verdict"] = json!("Fail");
        let below = report("a", 3, json!([{"level": "l", "value": "1"}]), passed(1, 1, true));
        let found =
            of(vec![report("a", 2, json!([]), failed), report("a", 1, json!([]), passed(100, 100, true)), below]);
        assert_eq!((found["task_match_ratio n a"], found["task_verified n a"]), (0.8, 0.0));
        assert_eq!(found["task_last_success_timestamp_seconds n a"], 1_767_139_200.0, "that of run 1");

        let mut open = passed(0, 0, true);
        open["verdict"] = json!("Inconclusive");
        let found = of(vec![report("a", 1, json!([]), open)]);
        assert_eq!(found["task_match_ratio n a"], 1.0);
        assert!(!found.contains_key("task_verified n a"));
        assert!(found.contains_key("task_last_success_timestamp_seconds n a"), "Collected is success too");

        let uncommitted = of(vec![report("a", 1, json!([]), passed(10, 11, false))]);
        assert_eq!(uncommitted["task_match_ratio n a"], 1.1);
        assert!(!uncommitted.contains_key("task_last_success_timestamp_seconds n a"));
        assert!(!of(Vec::new()).contains_key("task_match_ratio n a"));
    }

    #[test]
    fn beyond_a_thousand_those_that_are_over_are_left_out_first() {
        let mut tasks: Vec<_> =
            (0..LISTED).map(|n| task(&format!("b{n}"), json!({}), json!({"phase": "Succeeded"}))).collect();
        tasks.push(task("z", json!({}), running()));
        let found = told(&Seen { tasks, ..Seen::default() });
        assert_eq!(found["tasks_unlisted "], 1.0);
        assert_eq!(found["task_phase n z Running"], 1.0);
        assert_eq!(found.keys().filter(|name| name.starts_with("task_phase")).count(), LISTED);
    }
}
