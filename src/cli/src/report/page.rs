//! What a report tells, in the order in which a person asks: the verdict, what it covers, the numbers, where it differs, what to do,
//! how the work went. Pure; the same words for the terminal and for the page.

use collect_api::{
    CollectTask, ValidationReport,
    report::{Counts, Region, Verdict},
};
use collect_core::text;
use jiff::Timestamp;
use kube::ResourceExt;
use minijinja::{AutoEscape, Environment, Value, value::Serde};
use serde::Serialize;

use crate::{
    error::Error,
    output::{Style, Table, Tone},
};

const TEMPLATE: &str = include_str!("page.html");

/// A report, ready to be shown.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Page {
    /// Name of the report.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Name of the task.
    pub task: String,
    /// Run.
    pub run: i64,
    /// Path from the root, such as `province 44 (广东省)`.
    pub path: Vec<String>,
    /// Pass, Fail, Inconclusive; or what it says otherwise.
    pub verdict: String,
    /// `pass`, `fail` or `open`.
    pub class: &'static str,
    /// What the verdict means, in a sentence.
    pub meaning: String,
    /// Short word for why it is not Pass.
    pub reason: Option<String>,
    /// What was compared.
    pub coverage: Option<String>,
    /// The numbers: name, value, what it means.
    pub counts: Vec<(String, String, &'static str)>,
    /// Children, the worst first.
    pub regions: Vec<RegionRow>,
    /// Children that are not listed.
    pub more_regions: i64,
    /// Items whose count differs.
    pub samples: Vec<SampleRow>,
    /// What to do next.
    pub recommendations: Vec<String>,
    /// Rounds of comparison.
    pub rounds: Vec<(i32, String, String)>,
    /// How the work went: name and value.
    pub work: Vec<(String, String)>,
    /// What failed, a sample: name, reason, message.
    pub failures: Vec<(String, String, String)>,
    /// What exactly was compared: name and value.
    pub inputs: Vec<(String, String)>,
    /// When the page was made.
    pub made_at: String,
}

/// A child's comparison.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RegionRow {
    /// Value and name.
    pub name: String,
    /// Verdict.
    pub verdict: String,
    /// `pass`, `fail` or `open`.
    pub class: &'static str,
    /// Records of the source, or a dash.
    pub source: String,
    /// Records collected.
    pub collected: String,
    /// Collected less source, or a dash.
    pub delta: String,
    /// Collected of the source's in percent, 0 to 100; absent where the source does not say.
    pub share: Option<f64>,
}

/// An item whose count differs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SampleRow {
    /// Values of the item.
    pub item: String,
    /// Records of the source.
    pub source: String,
    /// Records collected.
    pub collected: String,
    /// Collected less source.
    pub delta: String,
}

impl Page {
    /// What a report tells; `task` is the task that it is about, where it is still there.
    pub fn of(report: &ValidationReport, task: Option<&CollectTask>, now: Timestamp) -> Self {
        let status = report.status.clone().unwrap_or_default();
        let spec = &report.spec;
        let listed = i64::try_from(status.regions.len()).unwrap_or(i64::MAX);
        let step = |step: &collect_api::plan::PathStep| match &step.label {
            Some(label) => format!("{} {} ({label})", step.level, step.value),
            None => format!("{} {}", step.level, step.value),
        };
        let mut inputs = vec![
            ("Task".to_owned(), format!("{}/{}", report.namespace().unwrap_or_default(), spec.task)),
            ("Uid of the task".to_owned(), spec.task_uid.clone()),
            ("Uid of the root".to_owned(), spec.root_uid.clone()),
            ("Plan".to_owned(), spec.plan_digest.clone()),
        ];
        if let Some(artifacts) = &status.artifacts {
            let count = |n: i64| grouped(n);
            inputs.push((
                "File list".to_owned(),
                format!(
                    "{}: {} files, {} records, {}",
                    artifacts.list,
                    count(artifacts.files),
                    count(artifacts.records),
                    bytes(artifacts.bytes)
                ),
            ));
        }
        Self {
            name: report.name_any(),
            namespace: report.namespace().unwrap_or_default(),
            task: spec.task.clone(),
            run: spec.run,
            path: spec.path.iter().map(step).collect(),
            verdict: status.verdict.as_ref().map_or_else(|| "Unknown".to_owned(), ToString::to_string),
            class: class(status.verdict.as_ref()),
            meaning: meaning(status.verdict.as_ref(), status.counts.as_ref()),
            reason: status.reason.clone(),
            coverage: status.coverage.clone(),
            counts: status.counts.as_ref().map(counts).unwrap_or_default(),
            regions: status.regions.iter().map(region).collect(),
            more_regions: (i64::from(status.regions_total.unwrap_or(0)) - listed).max(0),
            samples: status
                .samples
                .iter()
                .map(|sample| SampleRow {
                    item: sample.item.clone(),
                    source: grouped(sample.source),
                    collected: grouped(sample.collected),
                    delta: signed(sample.collected - sample.source),
                })
                .collect(),
            recommendations: status.recommendations.clone(),
            rounds: status
                .rounds
                .iter()
                .map(|round| (round.round, round.verdict.to_string(), round.at.0.to_string()))
                .collect(),
            work: task.filter(|task| is_of(task, report)).map(work).unwrap_or_default(),
            failures: task
                .filter(|task| is_of(task, report))
                .and_then(|task| task.status.as_ref())
                .map(|status| status.failures.iter())
                .into_iter()
                .flatten()
                .map(|failure| (failure.name.clone(), failure.reason.clone(), failure.message.clone()))
                .collect(),
            inputs,
            made_at: whole_seconds(now),
        }
    }

    /// The page: one file, nothing else is loaded.
    pub fn html(&self) -> Result<String, Error> {
        let mut environment = Environment::new();
        environment.set_auto_escape_callback(|_| AutoEscape::Html);
        environment
            .template_from_str(TEMPLATE)
            .and_then(|template| template.render(Value::from(Serde(self))))
            .map_err(|error| Error::Encode(error.to_string()))
    }

    /// The report for a terminal.
    pub fn text(&self, style: Style) -> String {
        let tone = match self.class {
            "pass" => Tone::Good,
            "fail" => Tone::Bad,
            _ => Tone::Warning,
        };
        let mut text = format!("{}  {}, run {}\n", style.paint(tone, &self.verdict), self.task, self.run);
        if !self.path.is_empty() {
            text.push_str(&format!("  {}\n", self.path.join(" / ")));
        }
        text.push_str(&format!("  {}\n", self.meaning));
        if let Some(coverage) = &self.coverage {
            text.push_str(&format!("  Compared: {coverage}\n"));
        }
        let mut section = |table: Table| {
            if !table.is_empty() {
                text.push_str(&format!("\n{}", table.render(style)));
            }
        };
        let mut table = Table::new(&["NUMBER", "RECORDS"]);
        self.counts.iter().for_each(|(name, value, _)| table.row([name.clone(), value.clone()]));
        section(table);
        let mut table = Table::new(&["REGION", "VERDICT", "SOURCE", "COLLECTED", "DELTA"]);
        for row in &self.regions {
            table.row([&row.name, &row.verdict, &row.source, &row.collected, &row.delta].map(Clone::clone));
        }
        section(table);
        if self.more_regions > 0 {
            text.push_str(&format!("… and {} more, none of them worse\n", self.more_regions));
        }
        let mut section = |table: Table| {
            if !table.is_empty() {
                text.push_str(&format!("\n{}", table.render(style)));
            }
        };
        let mut table = Table::new(&["DIFFERS", "SOURCE", "COLLECTED", "DELTA"]);
        for row in &self.samples {
            table.row([&row.item, &row.source, &row.collected, &row.delta].map(Clone::clone));
        }
        section(table);
        let mut table = Table::new(&["WORK", ""]);
        self.work.iter().for_each(|(name, value)| table.row([name.clone(), value.clone()]));
        section(table);
        let mut table = Table::new(&["FAILED", "REASON", "MESSAGE"]);
        self.failures
            .iter()
            .for_each(|(name, reason, message)| table.row([name.clone(), reason.clone(), message.clone()]));
        section(table);
        if self.rounds.len() > 1 {
            let mut table = Table::new(&["ROUND", "VERDICT", "AT"]);
            self.rounds
                .iter()
                .for_each(|(round, verdict, at)| table.row([round.to_string(), verdict.clone(), at.clone()]));
            section(table);
        }
        let mut table = Table::new(&["INPUT", ""]);
        self.inputs.iter().for_each(|(name, value)| table.row([name.clone(), value.clone()]));
        section(table);
        if !self.recommendations.is_empty() {
            text.push_str("\nNext:\n");
            self.recommendations.iter().for_each(|advice| text.push_str(&format!("  - {advice}\n")));
        }
        text
    }
}

/// Whether a task's status is about the report's run of this very task.
fn is_of(task: &CollectTask, report: &ValidationReport) -> bool {
    task.uid().as_deref() == Some(report.spec.task_uid.as_str())
        && task.status.as_ref().and_then(|status| status.run).is_none_or(|run| run == report.spec.run)
}

fn class(verdict: Option<&Verdict>) -> &'static str {
    match verdict {
        Some(Verdict::Pass) => "pass",
        Some(Verdict::Fail) => "fail",
        Some(Verdict::Inconclusive | Verdict::Other(_)) | None => "open",
    }
}

fn meaning(verdict: Option<&Verdict>, counts: Option<&Counts>) -> String {
    let collected = counts.map_or(0, |counts| counts.collected);
    match verdict {
        Some(Verdict::Pass) => {
            format!("{} records were collected, as many as the source says it holds.", grouped(collected))
        }
        Some(Verdict::Fail) => match counts.and_then(|counts| counts.delta) {
            Some(delta) if delta != 0 => format!(
                "{} records were collected, {} {} than the source says it holds. The data is kept.",
                grouped(collected),
                grouped(delta.abs()),
                if delta < 0 { "fewer" } else { "more" }
            ),
            _ => format!("{} records were collected, and the comparison failed. The data is kept.", grouped(collected)),
        },
        Some(Verdict::Inconclusive) => {
            format!("{} records were collected; whether they are all could not be told.", grouped(collected))
        }
        Some(Verdict::Other(_)) => "A newer version of the operator judged this.".to_owned(),
        None => "The comparison has not been made yet.".to_owned(),
    }
}

fn counts(counts: &Counts) -> Vec<(String, String, &'static str)> {
    let mut rows = Vec::new();
    let mut row = |name: &str, value: Option<String>, means| {
        if let Some(value) = value {
            rows.push((name.to_owned(), value, means));
        }
    };
    row("Source", counts.source.map(grouped), "records that the source says it holds");
    row(
        "Of committed slices",
        counts.source_of_committed.map(grouped),
        "records that the source says the committed slices hold",
    );
    row("Independent total", counts.independent.map(grouped), "records by spec.validation.total");
    row("Collected", Some(grouped(counts.collected)), "records in committed slices");
    row("Delta", counts.delta.map(signed), "collected less source");
    row("Match", counts.source.map(|source| text::matched(source, counts.collected)), "collected against source");
    row("Duplicates", counts.duplicates.map(grouped), "records whose key stood in their slice already");
    row("Rejected", Some(grouped(counts.rejected)), "records that did not fit the declared fields");
    rows
}

fn region(region: &Region) -> RegionRow {
    let delta = region.source.map(|source| region.collected - source);
    RegionRow {
        name: match &region.label {
            Some(label) => format!("{} {label}", region.value),
            None => region.value.clone(),
        },
        verdict: region.verdict.to_string(),
        class: class(Some(&region.verdict)),
        source: region.source.map_or_else(|| "-".to_owned(), grouped),
        collected: grouped(region.collected),
        delta: delta.map_or_else(|| "-".to_owned(), signed),
        share: region.source.map(|source| match source {
            ..=0 => 100.0,
            source => (region.collected as f64 * 100.0 / source as f64).clamp(0.0, 100.0),
        }),
    }
}

fn work(task: &CollectTask) -> Vec<(String, String)> {
    let status = task.status.clone().unwrap_or_default();
    let mut rows = Vec::new();
    let mut row = |name: &str, value: Option<String>| rows.extend(value.map(|value| (name.to_owned(), value)));
    row("Phase", status.phase.as_ref().map(ToString::to_string));
    row("Began", status.started_at.as_ref().map(|time| whole_seconds(time.0)));
    row("Ended", status.finished_at.as_ref().map(|time| whole_seconds(time.0)));
    let took = status.started_at.as_ref().zip(status.finished_at.as_ref());
    let seconds = took.map(|(from, to)| to.0.duration_since(from.0).as_secs().max(0));
    row(
        "Took",
        seconds
            .and_then(|seconds| u64::try_from(seconds).ok())
            .map(|seconds| collect_api::Duration::from_secs(seconds).to_string()),
    );
    let records = status.records.as_ref().map(|records| records.collected);
    row("Rate", seconds.zip(records).and_then(|(seconds, records)| text::rate(records, (seconds.max(1)) as f64)));
    if let Some(shards) = &status.shards {
        row(
            "Shards",
            Some(format!(
                "{} of {} succeeded, {} failed",
                grouped(shards.succeeded.into()),
                grouped(shards.total.into()),
                shards.failed
            )),
        );
        row("Attempts repeated", Some(grouped(shards.retries.into())));
    }
    row("Retries by hand", status.redrives.filter(|redrives| *redrives > 0).map(|redrives| grouped(redrives.into())));
    row("Bytes", status.bytes.map(bytes));
    rows
}

fn whole_seconds(time: Timestamp) -> String {
    Timestamp::from_second(time.as_second()).unwrap_or(time).to_string()
}

/// `620,573`.
fn grouped(number: i64) -> String {
    let digits = number.unsigned_abs().to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if number < 0 { format!("-{text}") } else { text }
}

fn signed(number: i64) -> String {
    if number > 0 { format!("+{}", grouped(number)) } else { grouped(number) }
}

/// `12.3 MiB`.
fn bytes(number: i64) -> String {
    let mut value = number as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{value:.0} {unit}") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

#[cfg(test)]
pub mod tests {
    use serde_json::{Value, json};

    use super::*;

    pub fn report(status: Value) -> ValidationReport {
        serde_json::from_value(json!({
            "apiVersion": "collect.dev/v1alpha1", "kind": "ValidationReport",
            "metadata": {"name": "villages-r1", "namespace": "default"},
            "spec": {"task": "villages", "taskUid": "u1", "rootUid": "u1", "run": 1, "planDigest": "00ff", "level": "counts"},
            "status": status,
        }))
        .unwrap()
    }

    pub fn failing() -> Value {
        json!({
            "verdict": "Fail", "reason": "CountsDiffer", "level": "counts", "coverage": "numbers of records of all values as discovered",
            "counts": {"source": 620_573, "collected": 620_570, "delta": -3, "duplicates": 0, "rejected": 2},
            "regions": [
                {"value": "44", "label": "广东省", "verdict": "Fail", "source": 26_190, "collected": 26_187},
                {"value": "11", "label": "<b>北京</b>", "verdict": "Pass", "source": 7_000, "collected": 7_000},
                {"value": "71", "verdict": "Inconclusive", "collected": 5},
            ],
            "regionsTotal": 34,
            "samples": [{"item": "440304", "source": 321, "collected": 318}],
            "recommendations": ["Set a new value of the annotation collect.dev/retry."],
            "rounds": [{"round": 0, "verdict": "Fail", "at": "2026-01-01T00:10:00Z"}, {"round": 1, "verdict": "Fail", "at": "2026-01-01T00:20:00Z"}],
            "artifacts": {"files": 12, "records": 620_570, "bytes": 123_456_789, "list": "runs/1-u1/_files.ndjson"},
        })
    }

    pub fn task() -> CollectTask {
        serde_json::from_value(json!({
            "apiVersion": "collect.dev/v1alpha1", "kind": "CollectTask", "metadata": {"name": "villages", "namespace": "default", "uid": "u1"},
            "spec": {},
            "status": {
                "phase": "Failed", "run": 1, "startedAt": "2026-01-01T00:00:00Z", "finishedAt": "2026-01-01T00:10:00Z",
                "shards": {"total": 180, "pending": 0, "running": 0, "succeeded": 179, "failed": 1, "cancelled": 0, "retries": 4},
                "records": {"collected": 620_570}, "bytes": 88_000_000,
                "failures": [{"name": "villages-44-0", "reason": "SourceNotFound", "message": "404 <script>alert(1)</script>"}],
            },
        }))
        .unwrap()
    }

    fn now() -> Timestamp {
        "2026-01-02T00:00:00.5Z".parse().unwrap()
    }

    #[test]
    fn the_text_tells_the_verdict_first_and_what_to_do_last() {
        let text = Page::of(&report(failing()), Some(&task()), now()).text(Style::PLAIN);
        assert!(text.starts_with("Fail  villages, run 1\n  620,570 records were collected, 3 fewer than"), "{text}");
        for line in [
            "Source      620,573",
            "Match       99.99%",
            "44 广东省",
            "-3",
            "… and 31 more, none of them worse",
            "440304   321     318        -3",
            "Took               10m",
            "Rate               1.0k/s",
            "179 of 180 succeeded, 1 failed",
            "Attempts repeated  4",
            "SourceNotFound",
            "117.7 MiB",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert!(text.ends_with("Next:\n  - Set a new value of the annotation collect.dev/retry.\n"), "{text}");
    }

    #[test]
    fn a_page_holds_the_same_escapes_everything_and_loads_nothing() {
        let html = Page::of(&report(failing()), Some(&task()), now()).html().unwrap();
        for words in [
            "620,573",
            "广东省",
            "99.99%",
            "and 31 more",
            "440304",
            "SourceNotFound",
            "collect.dev&#x2f;retry",
            "2026-01-02T00:00:00Z",
        ] {
            assert!(html.contains(words), "{words} is not in\n{html}");
        }
        for never in ["<script", "<b>北京", "http://", "https://", "src=", "@import", "url("] {
            assert!(!html.contains(never), "{never} is in\n{html}");
        }
        assert!(html.contains("&lt;script&gt;alert(1)") && html.contains("&lt;b&gt;北京"), "{html}");
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        let page = Page::of(
            &report(json!({"verdict": "Inconclusive", "reason": "NoTotal", "counts": {"collected": 5, "rejected": 0}})),
            None,
            now(),
        );
        let names: Vec<_> = page.counts.iter().map(|(name, ..)| name.as_str()).collect();
        assert_eq!((names.as_slice(), page.class), (&["Collected", "Rejected"][..], "open"));
        assert!(page.work.is_empty() && page.meaning.contains("could not be told"));
        let bare = Page::of(&report(json!({})), None, now());
        assert_eq!((bare.verdict.as_str(), bare.class), ("Unknown", "open"));
        assert!(bare.html().unwrap().contains("has not been made yet"));
    }

    #[test]
    fn a_task_of_that_name_which_is_another_one_says_nothing() {
        let mut other = task();
        other.metadata.uid = Some("u2".into());
        assert!(Page::of(&report(failing()), Some(&other), now()).work.is_empty());
        let mut later = task();
        later.status.as_mut().unwrap().run = Some(2);
        assert!(Page::of(&report(failing()), Some(&later), now()).work.is_empty());
    }

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!([0, 999, 1000, -1_234_567].map(grouped), ["0", "999", "1,000", "-1,234,567"]);
        assert_eq!([signed(3), signed(-3), signed(0)], ["+3", "-3", "0"]);
        assert_eq!([bytes(5), bytes(2048), bytes(5 << 40)], ["5 B", "2.0 KiB", "5.0 TiB"]);
    }
}
