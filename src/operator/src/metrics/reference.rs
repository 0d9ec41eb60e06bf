//! docs/reference/metrics.md: written from the table with `make docs`, and checked to be current by every `cargo test`.

use std::{fs, path::Path};

use super::table::{Kind, TABLE};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference/metrics.md");

const HEAD: &str = "<!-- Written from src/operator/src/metrics/table.rs by `make docs`. -->
# Metrics

The operator serves them at `/metrics` of its HTTP port (8080), in the OpenMetrics text format. No label has more than a few values:
kinds, verbs, codes, phases, and namespace and name of root tasks. There is nothing by shard, url or error text.

- **Scrape with `honorLabels: true`** (plain Prometheus: `honor_labels`). Otherwise the namespace of the operator's pod takes the place of
  the task's, which is then called `exported_namespace`, and neither dashboards nor alerts find it.
- Each replica tells of all objects. Take `max by (namespace, task)` over replicas, never `sum`. Counters of work (attempts, requests) are
  counted by the replica that does it: take `sum`.
- Series of a task go when it is deleted. At most 1000 root tasks have series, those at work first.
- Times are seconds since 1970: `time() - collect_task_start_timestamp_seconds` is an age.
";

fn page() -> String {
    let mut page = HEAD.to_owned();
    let mut group = "";
    for row in TABLE {
        if row.group != group {
            group = row.group;
            page.push_str(&format!(
                "\n## {group}\n\n| Metric | Type | Labels | What it tells |\n| --- | --- | --- | --- |\n"
            ));
        }
        let kind = match row.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram(_) => "histogram",
            Kind::Info => "info",
        };
        let labels: Vec<String> = row.labels.iter().map(|label| format!("`{label}`")).collect();
        page.push_str(&format!("| `{}` | {kind} | {} | {} |\n", row.name, labels.join(", "), row.help));
    }
    page
}

#[test]
fn the_metrics_reference_is_current() {
    let new = page();
    if std::env::var_os("UPDATE").is_some() {
        fs::create_dir_all(Path::new(PAGE).parent().unwrap()).unwrap();
        fs::write(PAGE, &new).unwrap();
    }
    let old = fs::read_to_string(PAGE).unwrap_or_default();
    assert!(old == new, "docs/reference/metrics.md is not current; run `make docs`");
}

#[test]
fn names_say_what_they_are() {
    for row in TABLE {
        assert_eq!(row.name.ends_with("_total"), matches!(row.kind, Kind::Counter), "{}", row.name);
        assert_eq!(row.name.ends_with("_info"), matches!(row.kind, Kind::Info), "{}", row.name);
        assert!(!row.help.ends_with('.') && !row.help.contains('|'), "{}: {}", row.name, row.help);
        assert_eq!(TABLE.iter().filter(|other| other.name == row.name).count(), 1, "{}", row.name);
    }
}
