//! The comparison at level *counts*: what the source says it holds against what was collected.
//!
//! It claims only what it can: numbers of records, and keys seen twice within a slice. What can't be compared is Inconclusive,
//! never Pass.

use collect_api::{
    CollectShard, CollectTask, CollectTaskStatus, Phase, ValidationReport, ValidationReportStatus,
    condition::{FAILED, VERIFIED, reason},
    fold::Comparison,
    plan::PathStep,
    protocol::CommitResult,
    report::{Counts, Region, Round, ValidationLevel, Verdict},
};
use jiff::Timestamp;

use crate::{conditions::whole_seconds, tree::Node};

/// Regions that a report lists.
pub const REGIONS: usize = 50;
/// Differing items that a report lists.
pub const SAMPLES: usize = 5;
/// Rounds that a report lists.
pub const ROUNDS: usize = 10;

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
    /// What its slices and children add up to.
    pub found: Comparison,
    /// Shards that failed.
    pub failed_shards: i32,
    /// Whether so many are borne.
    pub tolerated: bool,
    /// How often a retry took up work again.
    pub round: i32,
}

/// What a shard contributes. One without a result contributes nothing.
pub fn of_shard(shard: &CollectShard) -> Comparison {
    let Some(result) = shard.status.as_ref().and_then(|status| status.result.as_ref()) else {
        return Comparison::default();
    };
    let tally = &result.tally;
    Comparison {
        collected: tally.records,
        source: tally.source,
        source_unknown: tally.without_total > 0,
        duplicates: tally.duplicates.unwrap_or(0),
        duplicates_unknown: tally.duplicates.is_none(),
        rejected: tally.rejected,
        moved: i64::from(tally.moved),
        unreliable: i64::from(tally.unreliable),
        samples: tally.samples.clone(),
        ..Comparison::default()
    }
}

/// The report of a child that is over, as far as its status tells: for a report that somebody deleted, so that the tree
/// above does not wait for it for ever.
pub fn retold(step: PathStep, child: &CollectTaskStatus) -> ChildReport {
    let verdict = child.report.as_ref().map_or(Verdict::Inconclusive, |report| report.verdict.clone());
    let collected = child.records.as_ref().map_or(0, |records| records.collected);
    let condition = |type_: &str| child.conditions.iter().find(|condition| condition.type_ == type_);
    let reason = condition(VERIFIED).or(condition(FAILED)).map(|condition| condition.reason.clone());
    let counts = Counts {
        // It passed only because the two were the same.
        source: Some(collected).filter(|_| verdict == Verdict::Pass),
        collected,
        ..Counts::default()
    };
    let reason = reason.filter(|_| verdict != Verdict::Pass);
    ChildReport {
        step,
        status: ValidationReportStatus { verdict: Some(verdict), reason, counts: Some(counts), ..Default::default() },
    }
}

/// Whether a report is about this round of its task's run: how often a retry had taken up work again.
pub fn is_current(report: &ValidationReport, redrives: Option<i32>) -> bool {
    let rounds = report.status.as_ref().map(|status| status.rounds.as_slice()).unwrap_or_default();
    rounds.last().is_some_and(|round| round.round == redrives.unwrap_or(0))
}

/// The report of a child task as far as it is in view, `None` within if it has none; nothing while it has to be waited for.
///
/// `is_gone`: it was not in view for so long that somebody must have deleted it. Then the child's status tells what it can.
pub fn of_task(child: &CollectTask, report: Option<&ValidationReport>, is_gone: bool) -> Option<Option<ChildReport>> {
    let status = child.status.as_ref()?;
    // Who is cancelled or stopped ends without a report.
    if status.report.is_none() && status.phase.as_ref().is_some_and(Phase::is_terminal) {
        return Some(None);
    }
    let step = child.spec.part_of.as_ref().and_then(|part_of| part_of.path.last()).cloned()?;
    let Some(report) = report else { return is_gone.then(|| Some(retold(step, status))) };
    let told = report.status.as_ref()?;
    let is_as_said = status.report.as_ref().is_none_or(|said| Some(&said.verdict) == told.verdict.as_ref());
    (is_as_said && is_current(report, status.redrives)).then(|| Some(ChildReport { step, status: told.clone() }))
}

/// What a child task contributes, by its report.
pub fn of_child(child: &ChildReport) -> Comparison {
    let counts = child.status.counts.clone().unwrap_or_default();
    let verdict = child.status.verdict.clone().unwrap_or(Verdict::Inconclusive);
    let reason = child.status.reason.clone().unwrap_or_else(|| verdict.to_string());
    // What the committed slices should hold is known even where others failed.
    let source = counts.source.or(counts.source_of_committed);
    Comparison {
        collected: counts.collected,
        source: source.unwrap_or(0),
        source_unknown: source.is_none(),
        duplicates: counts.duplicates.unwrap_or(0),
        duplicates_unknown: counts.duplicates.is_none(),
        rejected: counts.rejected,
        failed: Some(reason.clone()).filter(|_| verdict == Verdict::Fail),
        inconclusive: Some(reason).filter(|_| !matches!(verdict, Verdict::Fail | Verdict::Pass)),
        regions: vec![Region {
            value: child.step.value.clone(),
            label: child.step.label.clone(),
            verdict,
            source: counts.source,
            collected: counts.collected,
        }],
        regions_total: 1,
        samples: child.status.samples.clone(),
        ..Comparison::default()
    }
}

/// Adds a contribution. The order makes no difference but to which samples and which of several reasons are named.
pub fn add(sum: &mut Comparison, more: Comparison) {
    sum.collected += more.collected;
    sum.source += more.source;
    sum.source_unknown |= more.source_unknown;
    sum.duplicates += more.duplicates;
    sum.duplicates_unknown |= more.duplicates_unknown;
    sum.rejected += more.rejected;
    sum.moved += more.moved;
    sum.unreliable += more.unreliable;
    // A comparison that failed says more than a shard that did.
    let shards_failed = |word: &Option<String>| word.as_deref() == Some(reason::SHARDS_FAILED);
    if sum.failed.is_none() || (shards_failed(&sum.failed) && more.failed.is_some()) {
        sum.failed = more.failed;
    }
    sum.inconclusive = sum.inconclusive.take().or(more.inconclusive);
    sum.regions.extend(more.regions);
    sum.regions.sort_by_key(|region| {
        let off = region.source.map_or(0, |source| (region.collected - source).abs());
        (rank(&region.verdict), std::cmp::Reverse(off), region.value.clone())
    });
    sum.regions.truncate(REGIONS);
    sum.regions_total += more.regions_total;
    sum.samples.extend(more.samples);
    sum.samples.truncate(SAMPLES);
}

/// Compares a task: what its slices and children add up to, against what the source says.
pub fn compare(input: &Input<'_>, now: Timestamp) -> ValidationReportStatus {
    let found = &input.found;
    let independent = input.node.total;
    let known = Some(found.source).filter(|_| !found.source_unknown && input.level != ValidationLevel::None);
    // What a failed shard would have been told by the source is not known.
    let whole = input.failed_shards == 0;
    let (verdict, reason) = judge(input, known, independent.filter(|_| whole));
    let source = if whole { known.or(independent.filter(|_| input.level == ValidationLevel::Counts)) } else { None };
    let duplicates = Some(found.duplicates).filter(|_| !found.duplicates_unknown);
    ValidationReportStatus {
        recommendations: advice(&reason, found),
        reason: reason.map(str::to_owned),
        level: Some(match input.level {
            ValidationLevel::None => "none".into(),
            ValidationLevel::Counts => "counts".into(),
        }),
        coverage: Some(coverage(input, known, independent.filter(|_| whole))),
        counts: Some(Counts {
            source,
            source_of_committed: known.filter(|_| !whole),
            independent,
            collected: found.collected,
            delta: source.map(|source| found.collected - source),
            duplicates,
            rejected: found.rejected,
        }),
        regions: found.regions.clone(),
        regions_total: Some(found.regions_total).filter(|total| *total > 0),
        samples: found.samples.clone(),
        rounds: vec![Round { round: input.round, verdict: verdict.clone(), at: whole_seconds(now) }],
        verdict: Some(verdict),
        artifacts: None,
    }
}

/// Whether a report tells of this comparison: of the same round, and with the same result. In one round, what is compared
/// may change all the same: a shard that was deleted by hand comes to another end (I11: a report names its exact inputs).
pub fn tells_of(report: &ValidationReportStatus, comparison: &ValidationReportStatus) -> bool {
    let round = |report: &ValidationReportStatus| report.rounds.last().map(|round| round.round);
    round(report) == round(comparison)
        && report.verdict == comparison.verdict
        && report.reason == comparison.reason
        && report.counts == comparison.counts
}

/// The same report with the run's file list, and with the rounds of the report that it takes the place of.
pub fn completed(
    mut report: ValidationReportStatus,
    commit: Option<&CommitResult>,
    before: Option<&ValidationReportStatus>,
) -> ValidationReportStatus {
    report.artifacts = commit.cloned();
    let mut rounds = before.map(|before| before.rounds.clone()).unwrap_or_default();
    // A round that is compared once more takes its own place.
    rounds.retain(|round| report.rounds.iter().all(|new| new.round != round.round));
    rounds.append(&mut report.rounds);
    let excess = rounds.len().saturating_sub(ROUNDS);
    report.rounds = rounds.split_off(excess);
    report
}

/// The verdict, and why it is not Pass.
fn judge(input: &Input<'_>, source: Option<i64>, independent: Option<i64>) -> (Verdict, Option<&'static str>) {
    let found = &input.found;
    if input.failed_shards > 0 && !input.tolerated {
        return (Verdict::Fail, Some(reason::SHARDS_FAILED));
    }
    if input.level == ValidationLevel::None {
        return (Verdict::Inconclusive, Some(reason::NOT_VALIDATED));
    }
    // Shards that failed below are borne here, or we would not have come so far.
    if let Some(child) = found.failed.as_deref().filter(|why| *why != reason::SHARDS_FAILED) {
        return (Verdict::Fail, Some(known_word(child)));
    }
    // Where the source moved or its totals lie, here or below, a difference of the sums says nothing.
    let below = found.inconclusive.as_deref().map(known_word);
    if found.moved > 0 || below == Some(reason::SOURCE_MOVED) {
        return (Verdict::Inconclusive, Some(reason::SOURCE_MOVED));
    }
    if found.unreliable > 0 || below == Some(reason::TOTAL_UNRELIABLE) {
        return (Verdict::Inconclusive, Some(reason::TOTAL_UNRELIABLE));
    }
    if let Some(total) = independent
        && total != found.collected
    {
        return (Verdict::Fail, Some("IndependentTotalDiffers"));
    }
    match source {
        Some(source) if source != found.collected => return (Verdict::Fail, Some("CountsDiffer")),
        // An independent total that fits stands for the totals that the lists don't give.
        None if independent.is_none() => return (Verdict::Inconclusive, Some(reason::NO_TOTAL)),
        _ => {}
    }
    if found.duplicates > 0 {
        return (Verdict::Fail, Some("DuplicateKeys"));
    }
    match below {
        Some(reason::NO_TOTAL) if independent.is_some() => (Verdict::Pass, None),
        Some(reason) => (Verdict::Inconclusive, Some(reason)),
        None => (Verdict::Pass, None),
    }
}

/// A child's reason as one of the words that this version knows.
fn known_word(word: &str) -> &'static str {
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

fn coverage(input: &Input<'_>, source: Option<i64>, independent: Option<i64>) -> String {
    if input.level == ValidationLevel::None {
        return "nothing was compared: spec.validation.level is none".into();
    }
    let lists = match source {
        Some(_) => "numbers of records of all values as discovered, against the totals of the source's own lists",
        None => "no totals of the source's lists",
    };
    let keys = match input.found.duplicates_unknown {
        false => "keys seen twice within each slice",
        true => "no keys (some slices have too many)",
    };
    let sum = if independent.is_some() { "; the sum, against an independent total" } else { "" };
    let without = match input.failed_shards {
        0 => String::new(),
        failed => format!("; not what {failed} failed shards should have held"),
    };
    format!("{lists}{sum}; {keys}{without}")
}

fn advice(reason: &Option<&'static str>, found: &Comparison) -> Vec<String> {
    let mut advice = Vec::new();
    match *reason {
        Some(reason::NO_TOTAL) => advice.push(
            "Nothing could be compared, because the source gives no total. Set spec.source.http.total (a JSONPath such as $.total, or header:X-Total-Count), or spec.validation.total, and raise spec.run.".into(),
        ),
        Some(reason::SOURCE_MOVED) => advice.push("The source's totals changed while it was read. Collect anew at a quieter time: raise spec.run.".into()),
        Some(reason::TOTAL_UNRELIABLE) => advice.push("The source gave more records than its total says, so the total proves nothing. Leave spec.source.http.total out, or give spec.validation.total.".into()),
        Some(reason::SHARDS_FAILED) => advice.push("Some shards failed: see status.failures of the task, mend the cause, and have them tried again with a new value of the annotation collect.dev/retry on the task (what is committed stays). If the source, sink or record must change, raise spec.run.".into()),
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
    use crate::{conditions, tree::tests as plan};

    fn shard(tally: Tally) -> Arc<CollectShard> {
        let spec = CollectShardSpec {
            task: "t".into(),
            root_uid: "u".into(),
            run: 1,
            index: 0,
            slice: Slice { items: vec![] },
            first_attempt: None,
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

    fn input(node: &Node, found: Comparison) -> Input<'_> {
        Input { level: ValidationLevel::Counts, node, found, failed_shards: 0, tolerated: false, round: 0 }
    }

    fn verdict(tally: Tally, total: Option<i64>) -> (Verdict, Option<String>) {
        let mut tree = plan::tree(&[plan::task(&[], 0, 1), plan::shard(0)]);
        tree.nodes[0].total = total;
        let report = compare(&input(&tree.nodes[0], of_shard(&shard(tally))), Timestamp::UNIX_EPOCH);
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
            let found = of_shard(&shard(tally(source, collected)));
            let status = compare(&input(&leaf.nodes[0], found), Timestamp::UNIX_EPOCH);
            ChildReport { step: plan::step(value), status }
        };
        let merge = |children: Vec<ChildReport>| {
            let mut found = Comparison::default();
            children.iter().for_each(|child| add(&mut found, of_child(child)));
            compare(&input(&tree.nodes[0], found), Timestamp::UNIX_EPOCH)
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
    fn a_report_that_is_gone_is_told_by_the_status() {
        let condition = |type_: &str, reason: &str| {
            let mut conditions = Vec::new();
            let at = conditions::At { generation: None, now: Timestamp::UNIX_EPOCH };
            conditions::set(&mut conditions, type_, "False", reason, "", at);
            conditions
        };
        let status = |verdict, conditions| CollectTaskStatus {
            report: Some(collect_api::task::ReportRef { name: "t-r1".into(), verdict }),
            records: Some(collect_api::task::RecordCounts { collected: 7, ..Default::default() }),
            conditions,
            ..Default::default()
        };
        let told = |verdict, conditions| of_child(&retold(plan::step("a"), &status(verdict, conditions)));
        let passed = told(Verdict::Pass, condition(VERIFIED, "Succeeded"));
        assert_eq!((passed.collected, passed.source, passed.source_unknown, passed.failed), (7, 7, false, None));
        let failed = told(Verdict::Fail, condition(FAILED, reason::SHARDS_FAILED));
        assert_eq!((failed.failed.as_deref(), failed.source_unknown), (Some("ShardsFailed"), true));
        let unknown = told(Verdict::Inconclusive, condition(VERIFIED, reason::NO_TOTAL));
        assert_eq!(unknown.inconclusive.as_deref(), Some("NoTotal"));
    }

    #[test]
    fn a_failed_shard_leaves_nothing_to_compare_with() {
        let tree = plan::tree(&[plan::task(&[], 0, 2), plan::shard(0), plan::shard(1)]);
        let found = of_shard(&shard(tally(5, 5)));
        let failed = Input { failed_shards: 1, ..input(&tree.nodes[0], found) };
        let report = compare(&failed, Timestamp::UNIX_EPOCH);
        let counts = report.counts.unwrap();
        assert_eq!((report.verdict, counts.source, counts.delta), (Some(Verdict::Fail), None, None));
        assert_eq!(counts.source_of_committed, Some(5));
    }

    #[test]
    fn failures_that_are_borne_leave_the_rest_to_compare() {
        let mut tree = plan::tree(&[plan::task(&[], 0, 2), plan::shard(0), plan::shard(1)]);
        tree.nodes[0].total = Some(99);
        let borne = |source, collected| {
            let found = of_shard(&shard(tally(source, collected)));
            let input = Input { failed_shards: 1, tolerated: true, ..input(&tree.nodes[0], found) };
            compare(&input, Timestamp::UNIX_EPOCH)
        };
        let good = borne(5, 5);
        assert_eq!(good.verdict, Some(Verdict::Pass), "the independent total can't fit and is not compared");
        assert!(good.coverage.unwrap().contains("not what 1 failed shards should have held"));
        assert_eq!(borne(5, 4).reason.as_deref(), Some("CountsDiffer"));
    }

    #[test]
    fn a_report_keeps_the_rounds_of_the_one_before() {
        let tree = plan::tree(&[plan::task(&[], 0, 1), plan::shard(0)]);
        let round = |round| {
            let input = Input { round, ..input(&tree.nodes[0], of_shard(&shard(tally(5, 5)))) };
            compare(&input, Timestamp::UNIX_EPOCH)
        };
        let second = completed(round(1), None, Some(&completed(round(0), None, None)));
        assert_eq!(second.rounds.iter().map(|round| round.round).collect::<Vec<_>>(), [0, 1]);
    }

    #[test]
    fn a_report_of_the_same_round_with_another_result_is_written_anew() {
        let tree = plan::tree(&[plan::task(&[], 0, 1), plan::shard(0)]);
        let report = |tally, failed_shards| {
            let found = of_shard(&shard(tally));
            compare(&Input { failed_shards, ..input(&tree.nodes[0], found) }, Timestamp::UNIX_EPOCH)
        };
        let (failed, mended) = (report(tally(0, 0), 1), report(tally(5, 5), 0));
        assert!(tells_of(&mended, &mended) && !tells_of(&failed, &mended));
        let second = completed(mended.clone(), None, Some(&failed));
        assert!(tells_of(&second, &mended));
        assert_eq!(second.rounds.len(), 1);
    }

    #[test]
    fn a_task_without_work_passes_with_nothing() {
        let tree = plan::tree(&[plan::task(&[], 0, 0)]);
        let report = compare(&input(&tree.nodes[0], Comparison::default()), Timestamp::UNIX_EPOCH);
        assert_eq!((report.verdict, report.counts.unwrap().source), (Some(Verdict::Pass), Some(0)));
    }
}
