//! Writes the tables of docs/concepts from the code, between `<!-- table: NAME -->` and `<!-- end -->`, or checks with
//! `--check` that they stand there already. A table that no page shows is an error, as is a name that no table has.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    fmt::Display,
    fs,
    path::PathBuf,
    time::Duration,
};

use collect_api::{CollectTaskSpec, Outcome, Phase, shard::ShardPhase};
use collect_core::{
    attempts,
    exit::RetryClass,
    halt, job, resolve, rollup,
    states::{self, Transition},
    straggler,
};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let check = args.iter().any(|arg| arg == "--check");
    let folder = args.iter().find(|arg| !arg.starts_with("--")).ok_or("usage: tables FOLDER [--check]")?;
    let mut pages: Vec<PathBuf> =
        fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    pages.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    pages.sort();
    let tables = tables();
    let (mut shown, mut stale) = (BTreeSet::new(), Vec::new());
    for path in pages {
        let text = fs::read_to_string(&path)?;
        let new = page(&text, &tables, &mut shown).map_err(|why| format!("{}: {why}", path.display()))?;
        if new == text {
            continue;
        }
        if check {
            stale.push(path.display().to_string());
        } else {
            fs::write(&path, new)?;
        }
    }
    if let Some(name) = tables.keys().find(|name| !shown.contains(**name)) {
        return Err(format!("no page of {folder} shows the table {name}").into());
    }
    if stale.is_empty() { Ok(()) } else { Err(format!("not current: {}; run `make docs`", stale.join(", ")).into()) }
}

/// A page with its tables as they are now.
fn page(
    text: &str,
    tables: &BTreeMap<&'static str, String>,
    shown: &mut BTreeSet<&'static str>,
) -> Result<String, String> {
    let mut new = String::new();
    let mut within = false;
    for line in text.lines() {
        let begins = line.strip_prefix("<!-- table: ").and_then(|rest| rest.strip_suffix(" -->"));
        match (begins, line == "<!-- end -->", within) {
            (Some(name), _, false) => {
                let (name, table) = tables.get_key_value(name).ok_or_else(|| format!("there is no table {name}"))?;
                shown.insert(name);
                new.push_str(&format!("{line}\n{table}"));
                within = true;
            }
            (Some(name), _, true) => return Err(format!("table {name} begins before the one above has its end")),
            (None, true, false) => return Err("an end without a table".into()),
            (None, true, true) => {
                new.push_str(&format!("{line}\n"));
                within = false;
            }
            (None, false, false) => new.push_str(&format!("{line}\n")),
            (None, false, true) => {}
        }
    }
    if within { Err("the last table has no end".into()) } else { Ok(new) }
}

fn tables() -> BTreeMap<&'static str, String> {
    BTreeMap::from([
        ("task-phases", transitions(states::TASK, Phase::KNOWN)),
        ("shard-phases", transitions(states::SHARD, ShardPhase::KNOWN)),
        ("outcomes", outcomes()),
        ("exit-codes", exit_codes()),
        ("defaults", defaults()),
        ("limits", limits()),
    ])
}

fn table(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let mut text = line(&head.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>());
    text.push_str(&format!("|{}\n", " --- |".repeat(head.len())));
    for row in rows {
        text.push_str(&line(&row.iter().map(|cell| cell.replace('|', "\\|")).collect::<Vec<_>>()));
    }
    text
}

/// Grouped by where they begin, new objects first, in the order of the phases.
fn transitions<P: PartialEq + Display>(all: &[Transition<P>], phases: &[P]) -> String {
    let froms = std::iter::once(None).chain(phases.iter().map(Some));
    let rows = froms.flat_map(|from| all.iter().filter(move |(known, ..)| known.as_ref() == from)).map(|row| {
        let (from, to, when) = row;
        let from = from.as_ref().map_or_else(|| "*new*".to_owned(), ToString::to_string);
        vec![from, to.to_string(), (*when).to_owned()]
    });
    table(&["From", "To", "When"], rows)
}

fn outcomes() -> String {
    let rows = states::outcomes().into_iter().map(|(outcome, how, class)| {
        let (budget, next) = charged(class);
        vec![format!("`{outcome}`"), how.to_owned(), budget.to_owned(), next.to_owned()]
    });
    table(&["Outcome", "How it comes about", "Charged to", "What follows"], rows)
}

fn charged(class: RetryClass) -> (&'static str, &'static str) {
    match class {
        RetryClass::Done => ("nothing", "the work is done"),
        RetryClass::Failure => ("`retry.maxAttempts`", "the next attempt, after its backoff"),
        RetryClass::Disruption => ("`retry.maxDisruptions`", "the next attempt, a second later"),
        RetryClass::Free => ("nothing", "the next attempt, a second later, or when source or desiredState allow it"),
        RetryClass::Final => ("nothing", "no attempt, unless `retry.overrides` names it"),
    }
}

fn exit_codes() -> String {
    let row = |code: String, says: &str, outcome: Outcome| vec![code, says.to_owned(), format!("`{outcome}`")];
    let rows = states::exit_codes().into_iter().map(|(code, says, outcome)| row(code.to_string(), says, outcome));
    let rest = row("any other".into(), "it crashed", Outcome::Crashed);
    table(&["Code", "What it says", "Outcome"], rows.chain([rest]))
}

fn time(span: Duration) -> String {
    collect_api::Duration::from_millis(u64::try_from(span.as_millis()).unwrap_or(u64::MAX)).to_string()
}

/// What holds where a spec says nothing, asked of the functions that resolve it.
fn defaults() -> String {
    let nothing = CollectTaskSpec::default();
    let policy = resolve::RetryPolicy::of(None);
    let limits = resolve::TimeLimits::of(&nothing);
    let rows = [
        ("desiredState", format!("{:?}", resolve::strictest([nothing.desired_state]))),
        ("parallelism", format!("{} at the root; below it, no bound of its own", resolve::root_parallelism(&nothing))),
        ("retry.maxAttempts", policy.max_attempts.to_string()),
        ("retry.maxDisruptions", policy.max_disruptions.to_string()),
        ("retry.backoff.initial", time(resolve::BACKOFF_INITIAL)),
        ("retry.backoff.factor", resolve::BACKOFF_FACTOR.to_string()),
        ("retry.backoff.max", time(resolve::BACKOFF_MAX)),
        ("retry.overrides[].maxAttempts", "that of `retry`".into()),
        ("retry.overrides[].backoff", "that of `retry`".into()),
        ("deadline", "no limit".into()),
        ("attemptDeadline", time(limits.attempt)),
        ("stallTimeout", time(limits.stall)),
        (
            "pendingTimeout",
            match limits.pending {
                Some(limit) => time(limit),
                None => format!(
                    "{} where image or configuration are at fault; no limit while there is no room or quota",
                    time(resolve::PENDING_TIMEOUT)
                ),
            },
        ),
        ("completion.tolerate", format!("{} failed shards", halt::tolerated(&nothing, 100))),
        ("completion.failFast", "false".into()),
        ("hooks.*.deadline", time(resolve::HOOK_DEADLINE)),
        ("hooks.*.maxAttempts", resolve::HOOK_ATTEMPTS.to_string()),
        ("ttl.*", "never".into()),
        ("history", resolve::history(&nothing).to_string()),
        ("validation.level", format!("{:?}", resolve::validation_level(&nothing)).to_lowercase()),
        ("run", nothing.run_number().to_string()),
        ("runs.keep", resolve::KEEP_RUNS.to_string()),
    ];
    table(&["Field of `spec`", "Default"], rows.into_iter().map(|(field, default)| vec![format!("`{field}`"), default]))
}

/// What no field changes.
fn limits() -> String {
    let rows = [
        ("Attempts that a ledger lists; older ones of a shard are summed up", attempts::LISTED.to_string()),
        ("Time that a worker has to leave a checkpoint once it is stopped", format!("{}s", job::GRACE_SECONDS)),
        ("Longest wait for a pod that is being deleted, before its attempt counts as over", time(resolve::STOP_GRACE)),
        (
            "Wait for the Job of an attempt that another operator process authorised, before it is `Abandoned`",
            time(resolve::ABANDON_AFTER),
        ),
        ("Longest wait between two tries to create a Job that was refused", time(resolve::REFUSED_PAUSE)),
        ("Failures that a task's status lists", rollup::FAILURES.to_string()),
        ("Stragglers that a task's status lists", straggler::LISTED.to_string()),
        ("Finished siblings that it takes to call a shard a straggler", straggler::SIBLINGS.to_string()),
        ("A straggler takes longer than the median of its siblings times", straggler::TIMES.to_string()),
        ("and longer than", format!("{}s", straggler::LEAST_SECONDS)),
        ("Root reports that are kept", resolve::KEEP_REPORTS.to_string()),
    ];
    table(&["What", "How much"], rows.into_iter().map(|(what, much)| vec![what.to_owned(), much]))
}
