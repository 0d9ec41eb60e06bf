//! The comparison at level *counts*: what the source says it holds against what was collected.
//!
//! It claims only what it can: numbers of records, and keys seen twice within a slice. What can't be compared is Inconclusive,
//! never Pass.

use collect_api::{
    CollectShard, ValidationReportStatus,
    condition::reason,
    plan::PathStep,
    protocol::{CommitResult, ItemDifference},
    report::{Counts, Region, Round, ValidationLevel, Verdict},
};
use jiff::Timestamp;

use crate::{conditions::whole_seconds, tree::Node};

/// Regions that a report lists.
pub const REGIONS: usize = 50;
/// Differing items that a report lists.
pub const SAMPLES: usize = 5;

/// The comparison of a child, as its own report tells it.
#[derive(Clone, Debug, PartialEq)]
pub struct ChildReport {
    /// The child's last step.
    pub step: PathStep,
    /// What its report says.
    pub status: ValidationReportStatus,
}

/// What there is to compare.
#[derive(Clone, Debug)]
pub struct Input<'a> {
    /// Level that was asked for.
    pub level: ValidationLevel,
    /// The node of the plan.
    pub node: &'a Node,
    /// Reports of the child tasks.
    pub children: Vec<ChildReport>,
    /// Shards that did not succeed.
    pub failed_shards: i32,
}

/// Compares a task: its own slices and its children's reports.
pub fn compare(input: &Input<'_>, shards: &[impl AsRef<CollectShard>], now: Timestamp) -> ValidationReportStatus {
    let mut found = Found { duplicates: Some(0), source: Some(0), ..Found::default() };
    for shard in shards {
        found.add_shard(shard.as_ref());
    }
    for child in &input.children {
        found.add_child(child);
    }
    let independent = input.node.total;
    // What a failed shard would have been told by the source is not known.
    if input.level == ValidationLevel::None || input.failed_shards > 0 {
        found.source = None;
    }
    let (verdict, reason) = found.judge(input, independent);
    let mut regions = std::mem::take(&mut found.regions);
    let regions_total = i32::try_from(regions.len()).ok().filter(|total| *total > 0);
    regions.sort_by_key(|region| {
        let off = region.source.map_or(0, |source| (region.collected - source).abs());
        (rank(&region.verdict), std::cmp::Reverse(off), region.value.clone())
    });
    regions.truncate(REGIONS);
    found.samples.truncate(SAMPLES);
    let source = found.source.or(independent.filter(|_| input.level == ValidationLevel::Counts));
    ValidationReportStatus {
        recommendations: advice(&reason, &found),
        reason: reason.map(str::to_owned),
        level: Some(match input.level {
            ValidationLevel::None => "none".into(),
            ValidationLevel::Counts => "counts".into(),
        }),
        coverage: Some(coverage(input, &found, independent)),
        counts: Some(Counts {
            source,
            independent,
            collected: found.collected,
            delta: source.map(|source| found.collected - source),
            duplicates: found.duplicates,
            rejected: found.rejected,
        }),
        regions,
        regions_total,
        samples: found.samples,
        rounds: vec![Round { round: 0, verdict: verdict.clone(), at: whole_seconds(now) }],
        verdict: Some(verdict),
        artifacts: None,
    }
}

/// The same report with the run's file list.
pub fn with_artifacts(mut report: ValidationReportStatus, commit: Option<&CommitResult>) -> ValidationReportStatus {
    report.artifacts = commit.cloned();
    report
}

#[derive(Default)]
struct Found {
    source: Option<i64>,
    collected: i64,
    duplicates: Option<i64>,
    rejected: i64,
    without_total: i64,
    moved: i64,
    unreliable: i64,
    child_fail: Option<String>,
    child_inconclusive: Option<String>,
    regions: Vec<Region>,
    samples: Vec<ItemDifference>,
}

impl Found {
    fn add_shard(&mut self, shard: &CollectShard) {
        let Some(result) = shard.status.as_ref().and_then(|status| status.result.as_ref()) else { return };
        let tally = &result.tally;
        self.collected += tally.records;
        self.rejected += tally.rejected;
        self.without_total += i64::from(tally.without_total);
        self.moved += i64::from(tally.moved);
        self.unreliable += i64::from(tally.unreliable);
        self.duplicates = self.duplicates.zip(tally.duplicates).map(|(a, b)| a + b);
        self.source = self.source.filter(|_| tally.without_total == 0).map(|source| source + tally.source);
        self.samples.extend(tally.samples.iter().cloned());
    }

    fn add_child(&mut self, child: &ChildReport) {
        let counts = child.status.counts.clone().unwrap_or_default();
        let verdict = child.status.verdict.clone().unwrap_or(Verdict::Inconclusive);
        self.collected += counts.collected;
        self.rejected += counts.rejected;
        self.duplicates = self.duplicates.zip(counts.duplicates).map(|(a, b)| a + b);
        self.source = self.source.zip(counts.source).map(|(a, b)| a + b);
        self.samples.extend(child.status.samples.iter().cloned());
        let reason = || child.status.reason.clone().unwrap_or_else(|| verdict.to_string());
        match verdict {
            Verdict::Pass => {}
            Verdict::Fail => {
                self.child_fail.get_or_insert_with(reason);
            }
            Verdict::Inconclusive | Verdict::Other(_) => {
                self.child_inconclusive.get_or_insert_with(reason);
            }
        }
        self.regions.push(Region {
            value: child.step.value.clone(),
            label: child.step.label.clone(),
            verdict,
            source: counts.source,
            collected: counts.collected,
        });
    }

    /// The verdict, and why it is not Pass.
    fn judge(&self, input: &Input<'_>, independent: Option<i64>) -> (Verdict, Option<&'static str>) {
        if input.failed_shards > 0 {
            return (Verdict::Fail, Some(reason::SHARDS_FAILED));
        }
        if input.level == ValidationLevel::None {
            return (Verdict::Inconclusive, Some(reason::NOT_VALIDATED));
        }
        if let Some(child) = &self.child_fail {
            return (Verdict::Fail, Some(known(child)));
        }
        // Where the source moved or its totals lie, here or below, a difference of the sums says nothing.
        let below = self.child_inconclusive.as_deref().map(known);
        if self.moved > 0 || below == Some(reason::SOURCE_MOVED) {
            return (Verdict::Inconclusive, Some(reason::SOURCE_MOVED));
        }
        if self.unreliable > 0 || below == Some(reason::TOTAL_UNRELIABLE) {
            return (Verdict::Inconclusive, Some(reason::TOTAL_UNRELIABLE));
        }
        if let Some(total) = independent
            && total != self.collected
        {
            return (Verdict::Fail, Some("IndependentTotalDiffers"));
        }
        match self.source {
            Some(source) if source != self.collected => return (Verdict::Fail, Some("CountsDiffer")),
            // An independent total that fits stands for the totals that the lists don't give.
            None if independent.is_none() => return (Verdict::Inconclusive, Some(reason::NO_TOTAL)),
            _ => {}
        }
        if self.duplicates.is_some_and(|duplicates| duplicates > 0) {
            return (Verdict::Fail, Some("DuplicateKeys"));
        }
        match below {
            Some(reason::NO_TOTAL) if independent.is_some() => (Verdict::Pass, None),
            Some(reason) => (Verdict::Inconclusive, Some(reason)),
            None => (Verdict::Pass, None),
        }
    }
}

/// A child's reason as one of the words that this version knows.
fn known(word: &str) -> &'static str {
    [
        reason::SHARDS_FAILED,
        reason::SOURCE_MOVED,
        reason::TOTAL_UNRELIABLE,
        reason::NO_TOTAL,
        reason::NOT_VALIDATED,
        "CountsDiffer",
        "DuplicateKeys",
        "IndependentTotalDiffers",
    ]
    .into_iter()
    .find(|known| *known == word)
    .unwrap_or("Other")
}

fn rank(verdict: &Verdict) -> u8 {
    match verdict {
        Verdict::Fail => 0,
        Verdict::Inconclusive | Verdict::Other(_) => 1,
        Verdict::Pass => 2,
    }
}

fn coverage(input: &Input<'_>, found: &Found, independent: Option<i64>) -> String {
    if input.level == ValidationLevel::None {
        return "nothing was compared: spec.validation.level is none".into();
    }
    let lists = match found.source {
        Some(_) => "numbers of records of all values as discovered, against the totals of the source's own lists",
        None => "no totals of the source's lists",
    };
    let keys = match found.duplicates {
        Some(_) => "keys seen twice within each slice",
        None => "no keys (some slices have too many)",
    };
    match independent {
        Some(_) => format!("{lists}; the sum, against an independent total; {keys}"),
        None => format!("{lists}; {keys}"),
    }
}

fn advice(reason: &Option<&'static str>, found: &Found) -> Vec<String> {
    let mut advice = Vec::new();
    match *reason {
        Some(reason::NO_TOTAL) => advice.push(
            "Nothing could be compared, because the source gives no total. Set spec.source.http.total (a JSONPath such as $.total, or header:X-Total-Count), or spec.validation.total, and raise spec.run.".into(),
        ),
        Some(reason::SOURCE_MOVED) => advice.push("The source's totals changed while it was read. Collect anew at a quieter time: raise spec.run.".into()),
        Some(reason::TOTAL_UNRELIABLE) => advice.push("The source gave more records than its total says, so the total proves nothing. Leave spec.source.http.total out, or give spec.validation.total.".into()),
        Some(reason::SHARDS_FAILED) => advice.push("Some shards failed: see status.failures of the task, mend the cause, and raise spec.run.".into()),
        Some("CountsDiffer") => advice.push("The numbers differ: see samples and regions for where. What was collected is kept at the sink, and _current.json was not moved. Raise spec.run to collect anew.".into()),
        Some("DuplicateKeys") => advice.push("Some keys came twice within a slice: either spec.record.key does not tell records apart, or the source's pages overlap (sort them by a unique field).".into()),
        Some("IndependentTotalDiffers") => advice.push("The independent total differs from what was collected: the levels may not reach every record, or the total counts something else.".into()),
        Some(reason::NOT_VALIDATED) => advice.push("Set spec.validation.level: counts to compare with the source.".into()),
        _ => {}
    }
    if found.rejected > 0 {
        advice.push(format!("{} records did not fit spec.record.fields; they lie in the reject files beside the parts, each with its reason.", found.rejected));
    }
    advice
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use collect_api::{
        CollectShardSpec, CollectShardStatus,
        protocol::{CollectResult, Tally},
        shard::Slice,
    };

    use super::*;
    use crate::tree::tests as plan;

    fn shard(tally: Tally) -> Arc<CollectShard> {
        let spec = CollectShardSpec {
            task: "t".into(),
            root_uid: "u".into(),
            run: 1,
            index: 0,
            slice: Slice { items: vec![] },
        };
        let mut shard = CollectShard::new("t-0", spec);
        shard.status = Some(CollectShardStatus {
            result: Some(CollectResult { tally, ..Default::default() }),
            ..Default::default()
        });
        Arc::new(shard)
    }

    fn tally(source: i64, records: i64) -> Tally {
        Tally { records, source, items: 1, duplicates: Some(0), ..Tally::default() }
    }

    fn verdict(tally: Tally, total: Option<i64>) -> (Verdict, Option<String>) {
        let mut tree = plan::tree(&[plan::task(&[], 0, 1), plan::shard(0)]);
        tree.nodes[0].total = total;
        let input = Input { level: ValidationLevel::Counts, node: &tree.nodes[0], children: vec![], failed_shards: 0 };
        let report = compare(&input, &[shard(tally)], Timestamp::UNIX_EPOCH);
        (report.verdict.unwrap(), report.reason)
    }

    #[test]
    fn the_verdict_table() {
        let because = |verdict, word: &str| (verdict, Some(word.to_owned()));
        let no_total = Tally { without_total: 1, ..tally(0, 9) };
        for (tally, total, expected) in [
            (tally(9, 9), None, (Verdict::Pass, None)),
            (tally(9, 9), Some(9), (Verdict::Pass, None)),
            (tally(9, 8), None, because(Verdict::Fail, "CountsDiffer")),
            (tally(9, 9), Some(10), because(Verdict::Fail, "IndependentTotalDiffers")),
            (Tally { duplicates: Some(1), ..tally(9, 9) }, None, because(Verdict::Fail, "DuplicateKeys")),
            (Tally { duplicates: None, ..tally(9, 9) }, None, (Verdict::Pass, None)),
            (no_total.clone(), None, because(Verdict::Inconclusive, "NoTotal")),
            (no_total, Some(9), (Verdict::Pass, None)),
            (Tally { moved: 1, ..tally(9, 9) }, None, because(Verdict::Inconclusive, "SourceMoved")),
            (Tally { unreliable: 1, ..tally(9, 10) }, None, because(Verdict::Inconclusive, "TotalUnreliable")),
        ] {
            assert_eq!(verdict(tally.clone(), total), expected, "{tally:?} {total:?}");
        }
    }

    #[test]
    fn a_parent_is_as_good_as_its_worst_child() {
        let tree = plan::tree(&[plan::task(&[], 2, 0), plan::task(&["a"], 0, 0), plan::task(&["b"], 0, 0)]);
        let child = |value: &str, source: i64, collected: i64| {
            let leaf = plan::tree(&[plan::task(&[], 0, 1), plan::shard(0)]);
            let input =
                Input { level: ValidationLevel::Counts, node: &leaf.nodes[0], children: vec![], failed_shards: 0 };
            let status = compare(&input, &[shard(tally(source, collected))], Timestamp::UNIX_EPOCH);
            ChildReport { step: plan::step(value), status }
        };
        let merge = |children| {
            let input = Input { level: ValidationLevel::Counts, node: &tree.nodes[0], children, failed_shards: 0 };
            compare(&input, &Vec::<Arc<CollectShard>>::new(), Timestamp::UNIX_EPOCH)
        };
        let lying = {
            let mut child = child("a", 5, 6);
            child.status.verdict = Some(Verdict::Inconclusive);
            child.status.reason = Some(reason::TOTAL_UNRELIABLE.into());
            merge(vec![child])
        };
        assert_eq!((lying.verdict, lying.reason.as_deref()), (Some(Verdict::Inconclusive), Some("TotalUnreliable")));
        let good = merge(vec![child("a", 5, 5), child("b", 7, 7)]);
        assert_eq!((good.verdict, good.counts.unwrap().collected), (Some(Verdict::Pass), 12));
        // Two differences that cancel each other out are still two differences.
        let bad = merge(vec![child("a", 5, 6), child("b", 7, 6)]);
        assert_eq!((bad.verdict, bad.reason.as_deref()), (Some(Verdict::Fail), Some("CountsDiffer")));
        assert_eq!(bad.counts.unwrap().delta, Some(0));
        assert_eq!(bad.regions_total, Some(2));
    }

    #[test]
    fn a_failed_shard_leaves_nothing_to_compare_with() {
        let tree = plan::tree(&[plan::task(&[], 0, 2), plan::shard(0), plan::shard(1)]);
        let input = Input { level: ValidationLevel::Counts, node: &tree.nodes[0], children: vec![], failed_shards: 1 };
        let report = compare(&input, &[shard(tally(5, 5))], Timestamp::UNIX_EPOCH);
        let counts = report.counts.unwrap();
        assert_eq!((report.verdict, counts.source, counts.delta), (Some(Verdict::Fail), None, None));
    }

    #[test]
    fn a_task_without_work_passes_with_nothing() {
        let tree = plan::tree(&[plan::task(&[], 0, 0)]);
        let input = Input { level: ValidationLevel::Counts, node: &tree.nodes[0], children: vec![], failed_shards: 0 };
        let report = compare(&input, &Vec::<Arc<CollectShard>>::new(), Timestamp::UNIX_EPOCH);
        assert_eq!((report.verdict, report.counts.unwrap().source), (Some(Verdict::Pass), Some(0)));
    }
}
