//! Why a task does not move: a table of checks, the first that finds a cause gives the answer. Pure.
//!
//! A check says only what the evidence shows; where it may not look, it finds nothing.

use collect_api::{
    Attempt, CollectShard, CollectTask, DesiredState, Outcome, Phase,
    condition::{FAILED, RECONCILING, STALLED, reason},
    labels,
    shard::ShardPhase,
    source::Source,
};
use collect_core::{
    attempts::Entries,
    exit::{RetryClass, retry_class},
    ledger::WorkerSeen,
    observed::{pod_is_over, worker_seen},
    resolve,
};
use jiff::Timestamp;
use k8s_openapi::api::{apps::v1::Deployment, batch::v1::Job};
use kube::ResourceExt;
use serde::Serialize;

use super::evidence::{Evidence, Operator, seen_at};
use crate::{
    pace::span,
    state::{is_observed, is_retry_due, phase},
};

/// Seconds that things may take by themselves before they are remarkable.
const PATIENCE: i64 = 20;
/// Seconds after which a lease that is not renewed is no longer held.
const LEASE_SECONDS: i64 = 60;

/// What a finding is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Weight {
    /// It keeps the task from going on.
    Cause,
    /// It says where the task stands.
    State,
    /// Worth knowing.
    Remark,
}

/// Something that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// Short word; that of conditions and attempts where there is one.
    pub code: String,
    /// What it is worth.
    pub weight: Weight,
    /// Why it does not move, in a sentence.
    pub answer: String,
    /// What shows it.
    pub facts: Vec<Fact>,
    /// What to do, as commands.
    pub next: Vec<String>,
}

/// What shows a finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fact {
    /// Kind and name.
    pub object: String,
    /// Field.
    pub field: String,
    /// What stands there.
    pub value: String,
}

type Check = fn(&Evidence) -> Vec<Finding>;

/// The checks, in the order in which causes hide one another: what is above a cause keeps the task from moving, whatever is below.
pub const CHECKS: &[(&str, Check)] = &[
    ("it is being deleted", deleted),
    ("it is over", over),
    ("its parent is gone", orphaned),
    ("the operator is down", operator_down),
    ("the operator does not look at its namespace", operator_elsewhere),
    ("the operator has not seen it", not_observed),
    ("it is cancelled", cancelled),
    ("it is paused", paused),
    ("the run has taken too long", deadline),
    ("a name is taken", stalled),
    ("the run before is still leaving", new_run),
    ("it waits for other tasks", dependencies),
    ("no worker may start", no_parallelism),
    ("a Job is refused", refused),
    ("a pod does not start", pending),
    ("the planner, a hook or the commit fails", root_work),
    ("shards fail and wait", shards),
    ("shards are given up", given_up),
    ("workers can't report", endpoints),
    ("workers make no progress", silent),
    ("shards take long", stragglers),
    ("the lease is not renewed", lease),
    ("the definitions differ", definitions),
    ("it works", working),
];

/// Everything that was found: the answer first.
pub fn diagnose(evidence: &Evidence) -> Vec<Finding> {
    let mut findings: Vec<Finding> = CHECKS.iter().flat_map(|(_, check)| check(evidence)).collect();
    // Stable: among equals the table's order holds.
    findings.sort_by_key(|finding| finding.weight);
    if findings.is_empty() {
        let task = evidence.task();
        findings.push(Finding {
            code: "Unknown".into(),
            weight: Weight::State,
            answer: "nothing that could be read says why it does not move".into(),
            facts: task.map(|task| fact(task, "status.message", message_of(task))).into_iter().collect(),
            next: vec![format!("kubectl collect{} support-bundle {}", flag(evidence), name_of(evidence))],
        });
    }
    findings
}

fn finding(code: &str, weight: Weight, answer: impl Into<String>, facts: Vec<Fact>, next: Vec<String>) -> Vec<Finding> {
    vec![Finding { code: code.to_owned(), weight, answer: answer.into(), facts, next }]
}

fn fact<K: kube::Resource<DynamicType = ()>>(object: &K, field: &str, value: impl Into<String>) -> Fact {
    Fact { object: format!("{} {}", K::kind(&()), object.name_any()), field: field.to_owned(), value: value.into() }
}

fn name_of(evidence: &Evidence) -> String {
    evidence.task().map(ResourceExt::name_any).unwrap_or_default()
}

fn root_of(evidence: &Evidence) -> String {
    evidence.root().map(ResourceExt::name_any).unwrap_or_default()
}

/// ` -n namespace`.
fn flag(evidence: &Evidence) -> String {
    evidence.task().and_then(ResourceExt::namespace).map(|namespace| format!(" -n {namespace}")).unwrap_or_default()
}

fn ago(evidence: &Evidence, time: Timestamp) -> String {
    format!("{} ago", span(evidence.now.duration_since(time).as_secs()))
}

fn age(evidence: &Evidence, time: Option<Timestamp>) -> i64 {
    time.map_or(0, |time| evidence.now.duration_since(time).as_secs())
}

fn message_of(task: &CollectTask) -> String {
    task.status.as_ref().and_then(|status| status.message.clone()).unwrap_or_else(|| "none".to_owned())
}

fn condition<'a>(
    task: &'a CollectTask,
    type_: &str,
) -> Option<&'a k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition> {
    task.status.as_ref()?.conditions.iter().find(|condition| condition.type_ == type_ && condition.status == "True")
}

fn is_over(evidence: &Evidence) -> bool {
    evidence.task().is_some_and(|task| phase(task).is_terminal() && is_observed(task) && !is_retry_due(task))
}

// ---------------------------------------------------------------------------------------------------------------------
// The task itself.

fn deleted(evidence: &Evidence) -> Vec<Finding> {
    let Some((task, at)) =
        evidence.line.iter().find_map(|task| Some((task, task.metadata.deletion_timestamp.as_ref()?)))
    else {
        return Vec::new();
    };
    let waiting = task.metadata.finalizers.clone().unwrap_or_default();
    let root = root_of(evidence);
    let answer = match waiting.is_empty() {
        true => format!("{} is being deleted; what is below it goes first", task.name_any()),
        false => format!("{} is being deleted and waits for finalizers that somebody else set", task.name_any()),
    };
    let mut facts = vec![fact(task, "metadata.deletionTimestamp", ago(evidence, at.0))];
    facts.extend(Some(fact(task, "metadata.finalizers", waiting.join(", "))).filter(|_| !waiting.is_empty()));
    let next = format!("kubectl{} get ct,csh,vr,jobs,pods -l {}={root}", flag(evidence), labels::ROOT);
    finding("Deleting", Weight::Cause, answer, facts, vec![next])
}

/// What failed first hand, for a task that is over.
fn over(evidence: &Evidence) -> Vec<Finding> {
    let Some(task) = evidence.task().filter(|_| is_over(evidence)) else { return Vec::new() };
    let phase = phase(task);
    let name = task.name_any();
    let failed = condition(task, FAILED);
    let why = failed.map_or_else(|| phase.to_string(), |condition| condition.reason.clone());
    let mut facts = vec![fact(task, "status.phase", phase.to_string())];
    facts.extend(failed.map(|condition| {
        let value = format!("{}, {}", condition.reason, ago(evidence, condition.last_transition_time.0));
        fact(task, "status.conditions[Failed]", value)
    }));
    facts.extend(root_ledgers(task).into_iter().filter_map(|(field, entries)| {
        let last = entries.last().filter(|last| last.outcome.as_ref().is_some_and(is_bad))?;
        Some(attempt_fact(evidence, task, &field, last))
    }));
    let status = task.status.clone().unwrap_or_default();
    facts.extend(status.failures.iter().take(3).map(|failure| {
        fact(task, &format!("status.failures[{}]", failure.name), format!("{}: {}", failure.reason, failure.message))
    }));
    let flag = flag(evidence);
    let (weight, next) = match phase {
        Phase::Failed => {
            let reason = status.failures.first().map_or(why.as_str(), |failure| failure.reason.as_str());
            let mut next = cure(evidence, reason, &message_of(task));
            next.push(format!("kubectl collect{flag} retry {name}"));
            (Weight::Cause, next)
        }
        Phase::Cancelled => (
            Weight::Cause,
            vec![format!("kubectl collect{flag} resume {name}"), format!("kubectl collect{flag} retry {name}")],
        ),
        Phase::Collected => (Weight::State, vec![format!("kubectl collect{flag} report {name}")]),
        _ => (Weight::State, vec![format!("kubectl collect{flag} report {name}")]),
    };
    finding(&why, weight, format!("it is over: {phase}. {}", message_of(task)), facts, next)
}

fn orphaned(evidence: &Evidence) -> Vec<Finding> {
    let Some(task) = evidence.task().filter(|_| evidence.is_orphan) else { return Vec::new() };
    let answer = "its parent is gone or another one, so nobody works on it; Kubernetes deletes it soon";
    let owners = task.metadata.owner_references.iter().flatten().map(|owner| owner.name.clone()).collect::<Vec<_>>();
    let facts = vec![fact(task, "metadata.ownerReferences", owners.join(", "))];
    finding(
        reason::ORPHANED,
        Weight::Cause,
        answer,
        facts,
        vec![format!("kubectl{} delete ct {}", flag(evidence), task.name_any())],
    )
}

fn not_observed(evidence: &Evidence) -> Vec<Finding> {
    let Some(task) = evidence.task().filter(|task| !is_observed(task)) else { return Vec::new() };
    let created = task.metadata.creation_timestamp.as_ref().map(|time| time.0);
    if age(evidence, created) < PATIENCE || task.metadata.deletion_timestamp.is_some() {
        return Vec::new();
    }
    let seen = task.status.as_ref().and_then(|status| status.observed_generation);
    let generation = task.metadata.generation.unwrap_or_default();
    // A new run waits for the tree of the old one: the operator has seen it, and says so.
    if condition(task, RECONCILING).is_some_and(|condition| condition.reason == reason::NEW_RUN) {
        return Vec::new();
    }
    let none_found = evidence.operators.as_ref().is_some_and(Vec::is_empty);
    let answer = match (seen, none_found) {
        (None, true) => "no operator has looked at it, and there is none in this cluster that the chart installed",
        (None, false) => "no operator has looked at it",
        (Some(_), _) => "the operator has not taken up the last change yet",
    };
    let mut facts = vec![
        fact(task, "metadata.generation", generation.to_string()),
        fact(task, "status.observedGeneration", seen.map_or_else(|| "none".to_owned(), |seen| seen.to_string())),
    ];
    facts.extend(created.map(|created| fact(task, "metadata.creationTimestamp", ago(evidence, created))));
    let mut next = vec!["kubectl get deployments -A -l app.kubernetes.io/name=collect-operator".to_owned()];
    next.extend(operator_logs(evidence));
    finding("NotObserved", Weight::Cause, answer, facts, next)
}

/// Whether people stopped it, here or above.
fn held(evidence: &Evidence, state: DesiredState) -> Option<(&CollectTask, Fact)> {
    let task = evidence.line.iter().find(|task| task.spec.desired_state == Some(state))?;
    Some((task, fact(task, "spec.desiredState", format!("{state:?}"))))
}

fn cancelled(evidence: &Evidence) -> Vec<Finding> {
    let Some((task, fact)) = held(evidence, DesiredState::Cancelled).filter(|_| !is_over(evidence)) else {
        return Vec::new();
    };
    let (name, flag) = (task.name_any(), flag(evidence));
    let alive = evidence.pods.iter().filter(|pod| !pod_is_over(pod)).count();
    let answer = match alive {
        0 => format!("{name} is cancelled"),
        _ => format!("{name} is cancelled, and {alive} pods are still leaving"),
    };
    let next = vec![format!("kubectl collect{flag} resume {name}"), format!("kubectl collect{flag} retry {name}")];
    finding(reason::CANCELLED, Weight::Cause, answer, vec![fact], next)
}

fn paused(evidence: &Evidence) -> Vec<Finding> {
    let Some((task, fact)) = held(evidence, DesiredState::Paused).filter(|_| !is_over(evidence)) else {
        return Vec::new();
    };
    let name = task.name_any();
    let own = evidence.task().is_some_and(|asked| asked.name_any() == name);
    let answer = match own {
        true => "it is paused: somebody set spec.desiredState to Paused".to_owned(),
        false => format!("it is paused by {name}, a task above it"),
    };
    finding(
        reason::PAUSED,
        Weight::Cause,
        answer,
        vec![fact],
        vec![format!("kubectl collect{} resume {name}", flag(evidence))],
    )
}

fn deadline(evidence: &Evidence) -> Vec<Finding> {
    let Some(root) = evidence.root().filter(|_| !is_over(evidence)) else { return Vec::new() };
    let (Some(limit), Some(elapsed)) =
        (root.spec.deadline, root.status.as_ref().and_then(|status| status.elapsed_seconds))
    else {
        return Vec::new();
    };
    let limit_seconds = i64::try_from(limit.get().as_secs()).unwrap_or(i64::MAX);
    let facts =
        vec![fact(root, "spec.deadline", limit.to_string()), fact(root, "status.elapsedSeconds", elapsed.to_string())];
    let next = vec![format!(
        "kubectl{} patch ct {} --type=merge -p '{{\"spec\":{{\"deadline\":\"...\"}}}}'",
        flag(evidence),
        root.name_any()
    )];
    if elapsed >= limit_seconds {
        return finding(
            reason::DEADLINE_EXCEEDED,
            Weight::Cause,
            "the run took as long as spec.deadline allows and is being stopped",
            facts,
            next,
        );
    }
    if elapsed * 10 >= limit_seconds * 9 {
        let answer = format!("{} are left of spec.deadline", span(limit_seconds - elapsed));
        return finding("DeadlineNear", Weight::Remark, answer, facts, next);
    }
    Vec::new()
}

/// Stalled for a reason that nothing else here tells.
fn stalled(evidence: &Evidence) -> Vec<Finding> {
    let told = [reason::WAITING_FOR_DEPENDENCY, reason::DEPENDENCY_CYCLE];
    let found = evidence.line.iter().find_map(|task| {
        let condition = condition(task, STALLED)?;
        (!phase(task).is_terminal() && !told.contains(&condition.reason.as_str())).then_some((task, condition))
    });
    let Some((task, condition)) = found else { return Vec::new() };
    let facts = vec![fact(
        task,
        "status.conditions[Stalled]",
        format!("{}, {}", condition.reason, ago(evidence, condition.last_transition_time.0)),
    )];
    let next = vec![format!("kubectl{} describe ct {}", flag(evidence), task.name_any())];
    finding(&condition.reason, Weight::Cause, condition.message.clone(), facts, next)
}

fn new_run(evidence: &Evidence) -> Vec<Finding> {
    let Some(root) = evidence.root() else { return Vec::new() };
    let Some(run) = root.status.as_ref().and_then(|status| status.run).filter(|run| *run < root.spec.run_number())
    else {
        return Vec::new();
    };
    let leaving: Vec<_> = evidence.pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_some()).collect();
    let mut facts =
        vec![fact(root, "spec.run", root.spec.run_number().to_string()), fact(root, "status.run", run.to_string())];
    facts.extend(leaving.iter().take(3).filter_map(|pod| {
        let at = pod.metadata.deletion_timestamp.as_ref()?;
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default();
        Some(fact(pod.as_ref(), "metadata.deletionTimestamp", format!("{}, on node {node}", ago(evidence, at.0))))
    }));
    let answer = format!("run {} waits until everything of run {run} is gone", root.spec.run_number());
    let next = vec![format!("kubectl{} get ct,csh,jobs,pods -l {}={}", flag(evidence), labels::ROOT, root.name_any())];
    finding(reason::NEW_RUN, Weight::Cause, answer, facts, next)
}

fn dependencies(evidence: &Evidence) -> Vec<Finding> {
    let Some(root) = evidence.root().filter(|_| !is_over(evidence)) else { return Vec::new() };
    let told = [reason::WAITING_FOR_DEPENDENCY, reason::DEPENDENCY_CYCLE];
    let found = [STALLED, RECONCILING].into_iter().find_map(|type_| condition(root, type_));
    let Some(found) = found.filter(|condition| told.contains(&condition.reason.as_str())) else { return Vec::new() };
    let mut facts = vec![fact(root, &format!("status.conditions[{}]", found.type_), found.reason.clone())];
    let mut next = Vec::new();
    for dependency in &root.spec.depends_on {
        let seen = evidence.dependencies.get(&dependency.name);
        let value = match seen {
            None => "not looked at".to_owned(),
            Some(None) => "there is none".to_owned(),
            Some(Some(task)) => phase(task).to_string(),
        };
        if !matches!(value.as_str(), "Succeeded" | "PartiallySucceeded") {
            next.push(format!("kubectl collect{} diagnose {}", flag(evidence), dependency.name));
        }
        facts.push(Fact { object: format!("CollectTask {}", dependency.name), field: "status.phase".into(), value });
    }
    finding(&found.reason, Weight::Cause, message_of(root), facts, next)
}

fn no_parallelism(evidence: &Evidence) -> Vec<Finding> {
    if is_over(evidence) {
        return Vec::new();
    }
    let Some(task) = evidence.line.iter().find(|task| task.spec.parallelism == Some(0)) else { return Vec::new() };
    let begun = evidence.shards.iter().filter(|shard| live_attempt(shard).is_some()).count();
    let unfinished = evidence.shards.iter().any(|shard| !shard_phase(shard).is_terminal());
    if begun > 0 || !unfinished && phase(task) != Phase::Running {
        return Vec::new();
    }
    let name = task.name_any();
    let facts = vec![fact(task, "spec.parallelism", "0")];
    let answer = format!("no worker may start: spec.parallelism of {name} is 0");
    finding(
        "NoParallelism",
        Weight::Cause,
        answer,
        facts,
        vec![format!("kubectl collect{} scale {name} --parallelism 4", flag(evidence))],
    )
}

// ---------------------------------------------------------------------------------------------------------------------
// Jobs and pods.

/// A live attempt whose Job does not exist: quota or admission refuse it.
fn refused(evidence: &Evidence) -> Vec<Finding> {
    let Some(task) = evidence.task().filter(|_| !is_over(evidence)) else { return Vec::new() };
    let mut all: Vec<(String, String, Fact)> = Vec::new();
    if let Some(condition) = condition(task, RECONCILING).filter(|condition| condition.reason == reason::JOB_REFUSED) {
        let at = ago(evidence, condition.last_transition_time.0);
        let message =
            task.status.as_ref().and_then(|status| status.message.clone()).unwrap_or_else(|| condition.message.clone());
        all.push((
            task.name_any(),
            message,
            fact(task, "status.conditions[Reconciling]", format!("{}, {at}", condition.reason)),
        ));
    }
    for shard in &evidence.shards {
        let Some(attempt) = live_attempt(shard) else { continue };
        let is_there = evidence.jobs.iter().any(|job| is_job_of(job, shard.uid().as_deref(), attempt.n));
        let waits = age(evidence, Some(attempt.authorised_at.0));
        let message = shard.status.as_ref().and_then(|status| status.message.clone());
        if let Some(message) = message.filter(|_| !is_there && waits >= PATIENCE) {
            let field = format!("status.attempts[{}].authorisedAt", attempt.n);
            all.push((shard.name_any(), message, fact(shard, &field, ago(evidence, attempt.authorised_at.0))));
        }
    }
    let Some((name, message, _)) = all.first().cloned() else { return Vec::new() };
    let others = all.len() - 1;
    let more = if others > 0 { format!(" (and {others} more)") } else { String::new() };
    let answer = format!("the API server refuses the Job of {name}{more}: {message}");
    let next = vec![format!("kubectl{} describe resourcequota", flag(evidence))];
    finding(
        reason::JOB_REFUSED,
        Weight::Cause,
        answer,
        all.into_iter().take(3).map(|(_, _, fact)| fact).collect(),
        next,
    )
}

fn is_job_of(job: &Job, uid: Option<&str>, attempt: i32) -> bool {
    let label = |name: &str| job.labels().get(name).map(String::as_str);
    label(labels::LEDGER_UID) == uid && label(labels::ATTEMPT) == Some(attempt.to_string().as_str())
}

/// Pods that do not start, the most frequent cause first.
fn pending(evidence: &Evidence) -> Vec<Finding> {
    let mut causes: Vec<(&'static str, String, Vec<Fact>, Job)> = Vec::new();
    for job in &evidence.jobs {
        let WorkerSeen::Active { pending: Some(pending), .. } = worker_seen(Some(job), &evidence.pods_of(job), false)
        else {
            continue;
        };
        let waits = age(evidence, job.metadata.creation_timestamp.as_ref().map(|time| time.0));
        let pods = evidence.pods_of(job);
        let event = pods
            .iter()
            .find_map(|pod| evidence.warning("Pod", &pod.name_any()))
            .or_else(|| evidence.warning("Job", &job.name_any()));
        let said = event.and_then(|event| event.message.clone());
        let (code, message) = match (pending.reason, pending.message) {
            // It is merely starting, unless a warning says otherwise.
            ("Starting", _) if waits >= PATIENCE && said.is_some() => ("Starting", said.clone()),
            ("Starting", _) => continue,
            ("PodRefused", message) if waits < PATIENCE && said.is_none() => {
                drop(message);
                continue;
            }
            ("PodRefused", message) => ("PodRefused", said.clone().or(message)),
            (code, message) => (code, message),
        };
        let mut facts = vec![match pods.first() {
            Some(pod) => fact(pod.as_ref(), "status.phase", format!("Pending, for {}", span(waits))),
            None => fact(job, "status", format!("no pod, for {}", span(waits))),
        }];
        facts.extend(event.map(|event| Fact {
            object: format!("Event {}", event.involved_object.name.clone().unwrap_or_default()),
            field: event.reason.clone().unwrap_or_default(),
            value: format!(
                "{}{}",
                event.message.clone().unwrap_or_default(),
                seen_at(event).map(|at| format!(", {}", ago(evidence, at))).unwrap_or_default()
            ),
        }));
        let message = message.unwrap_or_default();
        match causes.iter_mut().find(|(known, ..)| *known == code) {
            Some((_, _, known, _)) => known.extend(facts),
            None => causes.push((code, message, facts, job.clone())),
        }
    }
    causes.sort_by_key(|(_, _, facts, _)| std::cmp::Reverse(facts.len()));
    let flag = flag(evidence);
    causes
        .into_iter()
        .flat_map(|(code, message, mut facts, job)| {
            facts.truncate(3);
            let what = match code {
                "ImagePull" => "the image can't be pulled",
                "NoRoom" => "no node has room for a worker",
                "PodRefused" => "quota or admission refuse the pod",
                "ContainerConfig" => "the container can't be made",
                _ => "a pod does not start",
            };
            let mut next = vec![format!("kubectl{flag} describe job {}", job.name_any())];
            if code == "ImagePull" {
                next.push(format!("kubectl{flag} get ct {} -o jsonpath={{.spec.worker.image}}", root_of(evidence)));
            }
            if code == "PodRefused" {
                next.push(format!("kubectl{flag} describe resourcequota"));
            }
            finding(code, Weight::Cause, format!("{what}: {message}"), facts, next)
        })
        .collect()
}

// ---------------------------------------------------------------------------------------------------------------------
// Attempts.

fn is_bad(outcome: &Outcome) -> bool {
    matches!(retry_class(outcome), RetryClass::Failure | RetryClass::Final | RetryClass::Disruption)
        || *outcome == Outcome::SourceLimited
}

fn live_attempt(shard: &CollectShard) -> Option<&Attempt> {
    shard.status.as_ref()?.attempts.last().filter(|attempt| attempt.is_live())
}

fn shard_phase(shard: &CollectShard) -> ShardPhase {
    shard.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or(ShardPhase::Pending)
}

/// The ledgers of a root's own work, each with its field.
fn root_ledgers(task: &CollectTask) -> Vec<(String, Entries<'_>)> {
    let Some(status) = &task.status else { return Vec::new() };
    let mut all = vec![
        ("status.plan".to_owned(), Entries::of_plan(status.plan.as_ref())),
        ("status.commit".to_owned(), Entries::of_commit(status.commit.as_ref())),
    ];
    if let Some(hooks) = &status.hooks {
        for (name, hook) in [
            ("beforeStart", &hooks.before_start),
            ("afterSuccess", &hooks.after_success),
            ("afterFailure", &hooks.after_failure),
        ] {
            all.push((format!("status.hooks.{name}"), Entries::of_hook(hook.as_ref())));
        }
    }
    all
}

fn attempt_fact<K: kube::Resource<DynamicType = ()>>(
    evidence: &Evidence,
    object: &K,
    field: &str,
    attempt: &Attempt,
) -> Fact {
    let outcome = attempt.outcome.as_ref().map_or_else(|| "live".to_owned(), ToString::to_string);
    let reason = attempt
        .reason
        .clone()
        .filter(|reason| *reason != outcome)
        .map(|reason| format!(" ({reason})"))
        .unwrap_or_default();
    let at = attempt.finished_at.as_ref().map(|time| format!(", {}", ago(evidence, time.0))).unwrap_or_default();
    fact(object, &format!("{field}.attempts[{}]", attempt.n), format!("{outcome}{reason}{at}"))
}

/// When the next attempt may start, where that is still to come.
fn wait_of(evidence: &Evidence, attempt: &Attempt) -> Option<String> {
    let left = attempt.retry_after.as_ref()?.0.duration_since(evidence.now).as_secs();
    (left > 0).then(|| format!("; the next attempt starts in {}", span(left)))
}

/// The planner, a hook or the commit: its last attempt failed and the next has not succeeded.
fn root_work(evidence: &Evidence) -> Vec<Finding> {
    let Some(root) = evidence.root().filter(|_| !is_over(evidence)) else { return Vec::new() };
    let mut findings = Vec::new();
    for (field, entries) in root_ledgers(root) {
        let mut newest_first = entries.attempts.iter().rev();
        let Some(last) = newest_first.next() else { continue };
        let failed = match &last.outcome {
            Some(outcome) if is_bad(outcome) => Some(last),
            Some(_) => None,
            // The next one runs; the one before says what is the matter.
            None => newest_first.next().filter(|before| before.outcome.as_ref().is_some_and(is_bad)),
        };
        let Some(failed) = failed.filter(|failed| failed.n > entries.forgiven) else { continue };
        let what = match field.as_str() {
            "status.plan" => "the planner",
            "status.commit" => "the commit",
            _ => "a hook",
        };
        let code = failed.reason.clone().unwrap_or_default();
        let message = failed.message.clone().unwrap_or_default();
        let wait = wait_of(evidence, failed).unwrap_or_default();
        let answer = format!("{what} failed ({code}): {message}{wait}");
        let facts = vec![attempt_fact(evidence, root, &field, failed)];
        let mut next = cure(evidence, &code, &message);
        let work = field.rsplit('.').next().unwrap_or_default();
        next.push(format!(
            "kubectl{} logs -l {}={},{}={work} --tail=50",
            flag(evidence),
            labels::ROOT,
            root.name_any(),
            labels::WORK
        ));
        findings.extend(finding(&code, Weight::Cause, answer, facts, next));
    }
    findings
}

/// Unfinished shards whose last attempt failed, by reason; the most frequent first.
fn shards(evidence: &Evidence) -> Vec<Finding> {
    if is_over(evidence) {
        return Vec::new();
    }
    let unfinished = evidence.shards.iter().filter(|shard| !shard_phase(shard).is_terminal());
    let mut groups: Vec<(String, Vec<(&CollectShard, &Attempt)>)> = Vec::new();
    for shard in unfinished {
        let Some(status) = &shard.status else { continue };
        let Some(failed) = status.attempts.iter().rev().find(|attempt| !attempt.is_live()) else { continue };
        if !failed.outcome.as_ref().is_some_and(is_bad) || failed.n <= status.forgiven.unwrap_or(0) {
            continue;
        }
        let code = failed.reason.clone().unwrap_or_default();
        match groups.iter_mut().find(|(known, _)| *known == code) {
            Some((_, members)) => members.push((shard, failed)),
            None => groups.push((code, vec![(shard, failed)])),
        }
    }
    groups.sort_by_key(|(_, members)| std::cmp::Reverse(members.len()));
    let moves = is_moving(evidence);
    groups
        .into_iter()
        .filter_map(|(code, members)| {
            let (shard, failed) = *members.first()?;
            let message = failed.message.clone().unwrap_or_default();
            let wait = wait_of(evidence, failed).unwrap_or_default();
            let others = members.len() - 1;
            let more = if others > 0 { format!(" and {others} more") } else { String::new() };
            let answer = format!("shard {}{more} failed ({code}): {message}{wait}", shard.name_any());
            let facts = members
                .iter()
                .take(3)
                .map(|(shard, attempt)| attempt_fact(evidence, *shard, "status", attempt))
                .collect();
            let mut next = cure(evidence, &code, &message);
            next.push(format!("kubectl{} logs -l {}={} --tail=50", flag(evidence), labels::SHARD, shard.name_any()));
            // While others collect, a failure here and there does not hold the task.
            let weight = if moves { Weight::Remark } else { Weight::Cause };
            finding(&code, weight, answer, facts, next).pop()
        })
        .collect()
}

fn given_up(evidence: &Evidence) -> Vec<Finding> {
    let failed: Vec<_> = evidence.shards.iter().filter(|shard| shard_phase(shard) == ShardPhase::Failed).collect();
    let Some(first) = failed.first().filter(|_| !is_over(evidence)) else { return Vec::new() };
    let message = first.status.as_ref().and_then(|status| status.message.clone()).unwrap_or_default();
    let answer = format!("{} shards are given up; the first, {}: {message}", failed.len(), first.name_any());
    let facts = failed.iter().take(3).map(|shard| fact(*shard, "status.phase", "Failed")).collect();
    let next = vec![format!("kubectl collect{} retry {}", flag(evidence), name_of(evidence))];
    finding(reason::SHARDS_FAILED, Weight::Remark, answer, facts, next)
}

/// What to do about a reason.
fn cure(evidence: &Evidence, code: &str, message: &str) -> Vec<String> {
    let flag = flag(evidence);
    let root = root_of(evidence);
    let mut quoted = message.split('`').skip(1).step_by(2);
    match code {
        "SecretMissing" | "SecretInvalid" => {
            let (first, second) = (quoted.next().unwrap_or("NAME"), quoted.next().unwrap_or("KEY"));
            // `key .. of secret ..` names them the other way round.
            let (name, key) = if message.starts_with("key") { (second, first) } else { (first, second) };
            vec![
                format!("kubectl{flag} get secret {name}"),
                format!("kubectl{flag} create secret generic {name} --from-literal={key}=..."),
            ]
        }
        "SinkOccupied" => vec![format!("kubectl{flag} get ct {root} -o jsonpath={{.spec.sink}}")],
        "SourceUnavailable" | "SourceLimited" => {
            let url = evidence
                .root()
                .and_then(|root| root.spec.source.as_ref())
                .map(|Source::Http(source)| source.url.clone());
            vec![format!("curl -sS -o /dev/null -w '%{{http_code}}\\n' '{}'", url.unwrap_or_default())]
        }
        _ if code.starts_with("Source")
            || code.starts_with("Record")
            || code.starts_with("Template")
            || code.starts_with("Locat") =>
        {
            vec![format!("kubectl{flag} get ct {root} -o jsonpath={{.spec.source}}")]
        }
        _ if code.starts_with("Sink") => vec![format!("kubectl{flag} get ct {root} -o jsonpath={{.spec.sink}}")],
        _ => Vec::new(),
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Workers that run.

/// Seconds since a running shard's worker was last heard of.
fn silence(evidence: &Evidence, shard: &CollectShard) -> Option<i64> {
    let attempt = live_attempt(shard)?;
    let progress = shard.status.as_ref()?.progress.as_ref().filter(|progress| progress.attempt == attempt.n);
    Some(age(evidence, Some(progress.map_or(attempt.authorised_at.0, |progress| progress.at.0))))
}

fn stall_seconds(evidence: &Evidence) -> i64 {
    let stall = evidence.root().map_or(resolve::STALL_TIMEOUT, |root| resolve::TimeLimits::of(&root.spec).stall);
    i64::try_from(stall.as_secs()).unwrap_or(i64::MAX)
}

/// Whether some worker said within half of stallTimeout that it collects.
fn is_moving(evidence: &Evidence) -> bool {
    let limit = stall_seconds(evidence) / 2;
    evidence.shards.iter().any(|shard| {
        let reported = shard.status.as_ref().is_some_and(|status| status.progress.is_some());
        reported && silence(evidence, shard).is_some_and(|seconds| seconds < limit)
    })
}

fn silent(evidence: &Evidence) -> Vec<Finding> {
    let limit = stall_seconds(evidence) / 2;
    let mut quiet: Vec<(i64, &CollectShard)> = evidence
        .shards
        .iter()
        .filter_map(|shard| Some((silence(evidence, shard)?, shard)))
        .filter(|(seconds, _)| *seconds >= limit)
        .collect();
    quiet.sort_by_key(|(seconds, _)| std::cmp::Reverse(*seconds));
    // A pod that has not started is told of elsewhere.
    quiet.retain(|(_, shard)| {
        let attempt = live_attempt(shard).map_or(0, |attempt| attempt.n);
        let job = evidence.jobs.iter().find(|job| is_job_of(job, shard.uid().as_deref(), attempt));
        job.is_some_and(|job| {
            matches!(worker_seen(Some(job), &evidence.pods_of(job), false), WorkerSeen::Active { pending: None, .. })
        })
    });
    let Some((seconds, first)) = quiet.first() else { return Vec::new() };
    let waits = quiet.iter().filter(|(_, shard)| stage(shard) == Some("waiting")).count();
    let (code, what) = match waits {
        0 => (
            reason::HEARTBEAT_LOST,
            format!("{} workers have not been heard of for {} and more", quiet.len(), span(*seconds)),
        ),
        _ => ("SourceSlow", format!("{waits} workers wait for the source (rate limit, Retry-After or slow answers)")),
    };
    let facts = quiet
        .iter()
        .take(3)
        .map(|(seconds, shard)| {
            fact(
                *shard,
                "status.progress.at",
                format!("{} ago, stage {}", span(*seconds), stage(shard).unwrap_or("none")),
            )
        })
        .collect();
    let next = vec![format!("kubectl{} logs -l {}={} --tail=50", flag(evidence), labels::SHARD, first.name_any())];
    let weight = if is_moving(evidence) { Weight::Remark } else { Weight::Cause };
    finding(code, weight, what, facts, next)
}

fn stage(shard: &CollectShard) -> Option<&str> {
    Some(shard.status.as_ref()?.progress.as_ref()?.stage.as_str())
}

fn stragglers(evidence: &Evidence) -> Vec<Finding> {
    let Some(task) = evidence.task().filter(|_| !is_over(evidence)) else { return Vec::new() };
    let slow: Vec<_> = task.status.iter().flat_map(|status| &status.stragglers).collect();
    let Some(first) = slow.first() else { return Vec::new() };
    let answer =
        format!("{} shards take much longer than their siblings took; {}: {}", slow.len(), first.name, first.reason);
    let facts = slow
        .iter()
        .take(3)
        .map(|slow| fact(task, &format!("status.stragglers[{}]", slow.name), slow.reason.clone()))
        .collect();
    finding(
        reason::STRAGGLERS,
        Weight::Remark,
        answer,
        facts,
        vec![format!("kubectl collect{} top {}", flag(evidence), task.name_any())],
    )
}

// ---------------------------------------------------------------------------------------------------------------------
// The operator.

fn ready(deployment: &Deployment) -> i32 {
    deployment.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0)
}

fn arguments(deployment: &Deployment) -> Vec<String> {
    let pod = deployment.spec.template.spec.as_ref();
    pod.and_then(|pod| pod.containers.first()).and_then(|container| container.args.clone()).unwrap_or_default()
}

/// The namespace that an operator looks at; absent for all.
fn watched(deployment: &Deployment) -> Option<String> {
    let args = arguments(deployment);
    args.iter()
        .find_map(|arg| arg.strip_prefix("--namespace=").map(str::to_owned))
        .filter(|namespace| !namespace.is_empty())
}

/// Operators that look at the task's namespace.
fn responsible(evidence: &Evidence) -> Vec<&Operator> {
    let namespace = evidence.task().and_then(ResourceExt::namespace).unwrap_or_default();
    evidence
        .operators
        .iter()
        .flatten()
        .filter(|operator| watched(&operator.deployment).is_none_or(|watched| watched == namespace))
        .collect()
}

fn place(deployment: &Deployment) -> (String, String) {
    (deployment.namespace().unwrap_or_default(), deployment.name_any())
}

fn operator_logs(evidence: &Evidence) -> Option<String> {
    let (namespace, name) = place(&responsible(evidence).first()?.deployment);
    Some(format!("kubectl -n {namespace} logs deployment/{name} --tail=50"))
}

fn operator_down(evidence: &Evidence) -> Vec<Finding> {
    let operators = responsible(evidence);
    if operators.is_empty() || is_over(evidence) || operators.iter().any(|operator| ready(&operator.deployment) > 0) {
        return Vec::new();
    }
    let facts = operators
        .iter()
        .map(|operator| {
            let wanted = operator.deployment.spec.replicas.unwrap_or(1);
            fact(&operator.deployment, "status.readyReplicas", format!("0 of {wanted}"))
        })
        .collect();
    let (namespace, name) = operators.first().map(|operator| place(&operator.deployment)).unwrap_or_default();
    let mut next = vec![format!("kubectl -n {namespace} describe deployment {name}")];
    next.extend(operator_logs(evidence));
    finding("OperatorDown", Weight::Cause, "no operator is ready: nothing new begins until one is", facts, next)
}

fn operator_elsewhere(evidence: &Evidence) -> Vec<Finding> {
    let Some(task) = evidence.task().filter(|task| !is_observed(task)) else { return Vec::new() };
    let all = evidence.operators.as_deref().unwrap_or_default();
    if all.is_empty() || !responsible(evidence).is_empty() {
        return Vec::new();
    }
    let namespace = task.namespace().unwrap_or_default();
    let facts = all
        .iter()
        .map(|operator| fact(&operator.deployment, "--namespace", watched(&operator.deployment).unwrap_or_default()))
        .collect();
    let answer = format!("no operator looks at namespace {namespace}");
    let next = vec!["helm get values -n NAMESPACE RELEASE  # watchNamespace".to_owned()];
    finding("OperatorElsewhere", Weight::Cause, answer, facts, next)
}

fn endpoints(evidence: &Evidence) -> Vec<Finding> {
    let operators = responsible(evidence);
    let running = evidence.shards.iter().any(|shard| live_attempt(shard).is_some());
    let unreachable =
        operators.iter().find(|operator| ready(&operator.deployment) > 0 && operator.endpoints == Some(0));
    let Some(operator) = unreachable.filter(|_| running) else { return Vec::new() };
    let (namespace, name) = place(&operator.deployment);
    let facts =
        vec![Fact { object: format!("Service {name}"), field: "endpoints".into(), value: "none is ready".into() }];
    let answer = "workers can't report: the operator's Service has no ready address";
    finding(
        "NoEndpoints",
        Weight::Remark,
        answer,
        facts,
        vec![format!("kubectl -n {namespace} get endpointslices -l kubernetes.io/service-name={name}")],
    )
}

fn lease(evidence: &Evidence) -> Vec<Finding> {
    let stale = responsible(evidence).into_iter().find_map(|operator| {
        let spec = operator.lease.as_ref()?.spec.as_ref()?;
        let holder = spec.holder_identity.clone().filter(|holder| !holder.is_empty());
        let seconds = age(evidence, spec.renew_time.as_ref().map(|time| time.0));
        (ready(&operator.deployment) > 0 && (holder.is_none() || seconds >= LEASE_SECONDS))
            .then_some((operator, holder, seconds))
    });
    let Some((operator, holder, seconds)) = stale.filter(|_| !is_over(evidence)) else { return Vec::new() };
    let (namespace, name) = place(&operator.deployment);
    let facts = vec![Fact {
        object: format!("Lease {name}"),
        field: "spec.renewTime".into(),
        value: format!(
            "{} ago, held by {} (by this machine's clock)",
            span(seconds),
            holder.unwrap_or_else(|| "nobody".into())
        ),
    }];
    let answer = "the operator is ready, but nobody renews its lease: no replica does the work";
    let next = vec![
        format!("kubectl -n {namespace} get lease {name} -o yaml"),
        format!("kubectl -n {namespace} logs deployment/{name} --tail=50"),
    ];
    let weight = if is_moving(evidence) { Weight::Remark } else { Weight::Cause };
    finding("LeaseLost", weight, answer, facts, next)
}

fn definitions(evidence: &Evidence) -> Vec<Finding> {
    let Some(other) = evidence.other_definitions.as_ref().filter(|other| !other.is_empty()) else { return Vec::new() };
    let facts = other
        .iter()
        .map(|name| Fact {
            object: format!("CustomResourceDefinition {name}"),
            field: "schema".into(),
            value: "differs".into(),
        })
        .collect();
    let answer = "the definitions in the cluster are those of another version than this program's; fields that only one of them knows get lost";
    finding("DefinitionsDiffer", Weight::Remark, answer, facts, vec!["kubectl collect version".to_owned()])
}

// ---------------------------------------------------------------------------------------------------------------------

/// Where it stands, for a task that nothing holds up.
fn working(evidence: &Evidence) -> Vec<Finding> {
    let Some(task) = evidence.task().filter(|task| !is_over(evidence) && is_observed(task)) else { return Vec::new() };
    let status = task.status.clone().unwrap_or_default();
    let mut facts = vec![fact(task, "status.phase", phase(task).to_string())];
    let newest = evidence
        .shards
        .iter()
        .filter_map(|shard| Some((silence(evidence, shard)?, shard)))
        .min_by_key(|(seconds, _)| *seconds);
    facts.extend(newest.map(|(seconds, shard)| fact(shard, "status.progress.at", format!("{} ago", span(seconds)))));
    let answer = match is_moving(evidence) {
        true => format!("it moves: {}", message_of(task)),
        false => format!("nothing holds it up: it is {}: {}", phase(task), message_of(task)),
    };
    let code = if status.phase.is_some() { phase(task).to_string() } else { "Pending".into() };
    finding(
        &code,
        Weight::State,
        answer,
        facts,
        vec![format!("kubectl collect{} status {}", flag(evidence), task.name_any())],
    )
}
