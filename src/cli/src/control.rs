//! `pause`, `resume`, `cancel`, `retry`, `rerun`, `scale`: what changes a task. Each is one patch that says what it changed.
//!
//! Nothing asks back: all of it can be undone by another of these commands, and no data is deleted.

use collect_api::{CollectShard, CollectTask, DesiredState, labels, shard::ShardPhase};
use collect_core::{resolve, retry};
use jiff::Timestamp;
use k8s_openapi::NamespaceResourceScope;
use kube::{
    Resource, ResourceExt,
    api::{Patch, PatchParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{
    args::{Kind, Target, TaskName},
    error::{About, Error},
    exit::Exit,
    output::{self, Format, OutputArgs},
    session::Session,
    state,
};

/// Name under which changes are recorded in managedFields.
const MANAGER: &str = "kubectl-collect";

/// Whether a change is only tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum DryRun {
    /// Change it.
    #[default]
    None,
    /// Only say what would be sent.
    Client,
    /// Have the API server check it, and change nothing.
    Server,
}

/// What all these commands take.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub struct ChangeArgs {
    /// Whether the change is only tried: by this program, or by the API server with all its rules.
    #[arg(long, value_enum, value_name = "WHERE", default_value = "none")]
    dry_run: DryRun,
    #[command(flatten)]
    output: OutputArgs,
}

/// Arguments of `pause`, `resume` and `cancel`.
#[derive(Debug, clap::Args)]
pub struct TaskArgs {
    /// Names of tasks, also of children: a branch of the tree.
    #[arg(required = true, value_name = "NAME")]
    names: Vec<TaskName>,
    #[command(flatten)]
    change: ChangeArgs,
}

/// Arguments of `retry`.
#[derive(Debug, clap::Args)]
pub struct RetryArgs {
    /// Names of tasks, also of children, or of shards as csh/NAME.
    #[arg(required = true, value_name = "NAME")]
    names: Vec<Target>,
    /// The token that marks this retry; one that was used before does nothing. Default: the time.
    #[arg(long)]
    token: Option<String>,
    #[command(flatten)]
    change: ChangeArgs,
}

/// Arguments of `rerun`.
#[derive(Debug, clap::Args)]
pub struct RerunArgs {
    /// Names of root tasks.
    #[arg(required = true, value_name = "NAME")]
    names: Vec<TaskName>,
    #[command(flatten)]
    change: ChangeArgs,
}

/// Arguments of `scale`.
#[derive(Debug, clap::Args)]
pub struct ScaleArgs {
    /// Names of tasks, also of children.
    #[arg(required = true, value_name = "NAME")]
    names: Vec<TaskName>,
    /// Workers at once below the task; 0 lets nothing new start.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..=1000))]
    replicas: i32,
    #[command(flatten)]
    change: ChangeArgs,
}

/// A change that was decided: what is sent, and what a person is told.
#[derive(Debug, PartialEq)]
struct Plan {
    patch: Value,
    said: String,
    next: String,
}

/// What is to be done with an object.
#[derive(Debug, PartialEq)]
enum Decision {
    Change(Plan),
    /// It is so already.
    Already(String),
    /// It makes no sense, and why.
    Senseless(String),
}

/// `pause`.
pub async fn pause(args: &TaskArgs, session: &Session) -> Result<Exit, Error> {
    desire(args, session, DesiredState::Paused).await
}

/// `resume`.
pub async fn resume(args: &TaskArgs, session: &Session) -> Result<Exit, Error> {
    desire(args, session, DesiredState::Running).await
}

/// `cancel`.
pub async fn cancel(args: &TaskArgs, session: &Session) -> Result<Exit, Error> {
    desire(args, session, DesiredState::Cancelled).await
}

/// `retry`.
pub async fn retry(args: &RetryArgs, session: &Session) -> Result<Exit, Error> {
    let token = args.token.clone().unwrap_or_else(|| Timestamp::now().to_string());
    if token.is_empty() || token.len() > 63 {
        return Err(Error::Usage("--token takes 1 to 63 characters: what is beyond would not count".into()));
    }
    let mut exit = Exit::Done;
    for target in &args.names {
        let one = match target.kind {
            Kind::Task => {
                let task: CollectTask = session.get(&target.name).await?;
                carry_out(session, &task, decide_retry(&task, &token), args.change).await?
            }
            Kind::Shard => {
                let shard: CollectShard = session.get(&target.name).await?;
                carry_out(session, &shard, decide_shard_retry(&shard, &token), args.change).await?
            }
        };
        exit = if exit == Exit::Done { one } else { exit };
    }
    Ok(exit)
}

/// `rerun`.
pub async fn rerun(args: &RerunArgs, session: &Session) -> Result<Exit, Error> {
    let mut exit = Exit::Done;
    for name in &args.names {
        let task: CollectTask = session.get(name.as_ref()).await?;
        let one = carry_out(session, &task, decide_rerun(&task), args.change).await?;
        exit = if exit == Exit::Done { one } else { exit };
    }
    Ok(exit)
}

/// `scale`.
pub async fn scale(args: &ScaleArgs, session: &Session) -> Result<Exit, Error> {
    for name in &args.names {
        let task: CollectTask = session.get(name.as_ref()).await?;
        let Decision::Change(plan) = decide_scale(&task, args.replicas) else {
            output::print(&format!("{} has {} already\n", output::full_name(&task), args.replicas))?;
            continue;
        };
        // Through the subresource: whoever may scale need not be allowed to change the rest.
        if args.change.dry_run != DryRun::Client {
            let api = session.api::<CollectTask>().await?;
            let namespace = session.namespace().await?;
            let name = task.name_any();
            let about = About { kind: "CollectTask", plural: "collecttasks", name: &name, namespace: &namespace };
            let (params, patch) = (params(args.change.dry_run), Patch::Merge(&plan.patch));
            session.ask(&format!("scaling {name}"), about, api.patch_scale(&name, &params, &patch)).await?;
        }
        let changed = match args.change.output.output {
            Some(Format::Json | Format::Yaml) if args.change.dry_run == DryRun::None => {
                session.get(name.as_ref()).await?
            }
            _ => task,
        };
        tell(&changed, &plan, args.change)?;
    }
    Ok(Exit::Done)
}

async fn desire(args: &TaskArgs, session: &Session, desired: DesiredState) -> Result<Exit, Error> {
    let mut exit = Exit::Done;
    for name in &args.names {
        let task: CollectTask = session.get(name.as_ref()).await?;
        let one = carry_out(session, &task, decide_desired(&task, desired), args.change).await?;
        exit = if exit == Exit::Done { one } else { exit };
    }
    Ok(exit)
}

fn decide_desired(task: &CollectTask, desired: DesiredState) -> Decision {
    let name = task.name_any();
    let (phase, old) = (state::phase(task), task.spec.desired_state.unwrap_or_default());
    let workers = task.status.as_ref().and_then(|status| status.workers).unwrap_or(0);
    if old == desired {
        let elsewhere = match (desired, task.spec.part_of.as_ref()) {
            (DesiredState::Running, Some(part)) if !phase.is_terminal() => {
                format!("; what holds it back may stand above it: kubectl collect tree {}", part.root)
            }
            _ => String::new(),
        };
        return Decision::Already(format!("desiredState is {desired:?} already, the phase {phase}{elsewhere}"));
    }
    if phase.is_terminal() && state::is_observed(task) && desired != DesiredState::Running {
        return Decision::Senseless(format!("it is over: {phase}; there is nothing to stop"));
    }
    let patch = json!({"spec": {"desiredState": desired}});
    let (said, next) = match desired {
        DesiredState::Paused => (
            format!("paused (was {phase}): {workers} workers leave a checkpoint and go, nothing new starts"),
            format!("kubectl collect resume {name}"),
        ),
        DesiredState::Running if phase.is_terminal() => (
            format!("may run again, but what was cancelled stays so until it is retried (phase {phase})"),
            format!("kubectl collect retry {name}"),
        ),
        DesiredState::Running => (
            format!("resumed (was {phase}): it goes on from the checkpoints"),
            format!("kubectl collect status {name}"),
        ),
        DesiredState::Cancelled => (
            format!("cancelled (was {phase}): {workers} workers stop; what was committed stays at the sink"),
            format!("kubectl collect retry {name}, to go on after all"),
        ),
    };
    Decision::Change(Plan { patch, said, next })
}

fn decide_retry(task: &CollectTask, token: &str) -> Decision {
    let name = task.name_any();
    let status = task.status.clone().unwrap_or_default();
    let shards = status.shards.clone().unwrap_or_default();
    let phase = state::phase(task);
    if !retry::is_retriable(&status) && shards.failed == 0 && shards.cancelled == 0 {
        let anew = task.spec.part_of.as_ref().map_or(&name, |part| &part.root);
        return Decision::Senseless(format!(
            "nothing below it failed or was cancelled (phase {phase}); to collect all of it anew: kubectl collect rerun {anew}"
        ));
    }
    if state::token(task) == Some(token) {
        return Decision::Senseless(format!(
            "the token {token} stands there already, and a token speaks once; choose another --token"
        ));
    }
    let annotations = json!({"annotations": {labels::RETRY: token}});
    let mut patch = json!({"metadata": annotations});
    let desired = task.spec.desired_state.unwrap_or_default();
    let what = match (shards.failed, shards.cancelled) {
        (0, 0) => "what failed is".to_owned(),
        (failed, 0) => format!("{failed} failed shards are"),
        (0, cancelled) => format!("{cancelled} cancelled shards are"),
        (failed, cancelled) => format!("{failed} failed and {cancelled} cancelled shards are"),
    };
    let mut said = format!("retried (was {phase}): {what} taken up again");
    match desired {
        DesiredState::Running => {}
        DesiredState::Cancelled => {
            patch = json!({"metadata": annotations, "spec": {"desiredState": DesiredState::Running}});
            said.push_str("; desiredState is Running again");
        }
        DesiredState::Paused => said.push_str("; it begins when the task is resumed"),
    }
    let next = if desired == DesiredState::Paused { "resume" } else { "status" };
    Decision::Change(Plan { patch, said, next: format!("kubectl collect {next} {name}") })
}

fn decide_shard_retry(shard: &CollectShard, token: &str) -> Decision {
    let phase = shard.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or(ShardPhase::Pending);
    if !matches!(phase, ShardPhase::Failed | ShardPhase::Cancelled) {
        return Decision::Senseless(format!("it has not failed and was not cancelled (phase {phase})"));
    }
    if state::token(shard) == Some(token) {
        return Decision::Senseless(format!(
            "the token {token} stands there already, and a token speaks once; choose another --token"
        ));
    }
    Decision::Change(Plan {
        patch: json!({"metadata": {"annotations": {labels::RETRY: token}}}),
        said: format!("retried (was {phase})"),
        next: format!("kubectl collect status {}", shard.spec.task),
    })
}

fn decide_rerun(task: &CollectTask) -> Decision {
    let name = task.name_any();
    if let Some(part) = &task.spec.part_of {
        return Decision::Senseless(format!(
            "it is part of {}, and only a whole tree is collected anew; what failed below {name}: kubectl collect retry {name}; the tree: kubectl collect rerun {}",
            part.root, part.root
        ));
    }
    let run = task.spec.run_number() + 1;
    let phase = state::phase(task);
    let mut spec = json!({"run": run});
    let mut said = format!(
        "begins run {run} (was {phase} in run {}); the data of the last good run stays valid until the new one has ended well",
        run - 1
    );
    if task.spec.desired_state.unwrap_or_default() == DesiredState::Cancelled {
        spec = json!({"run": run, "desiredState": DesiredState::Running});
        said.push_str("; desiredState is Running again");
    }
    // The resourceVersion: two people who ask for a new run at once get one.
    let patch = json!({"metadata": {"resourceVersion": task.metadata.resource_version}, "spec": spec});
    Decision::Change(Plan { patch, said, next: format!("kubectl collect status {name}") })
}

fn decide_scale(task: &CollectTask, replicas: i32) -> Decision {
    let is_root = task.spec.part_of.is_none();
    let old = task.spec.parallelism.or_else(|| is_root.then(|| resolve::root_parallelism(&task.spec)));
    if task.spec.parallelism == Some(replicas) {
        return Decision::Already(String::new());
    }
    let was = old.map_or_else(|| "no bound of its own".to_owned(), |old| old.to_string());
    let effect = if replicas == 0 { "; what runs goes on, nothing new starts" } else { "" };
    Decision::Change(Plan {
        patch: json!({"spec": {"replicas": replicas}}),
        said: format!("scaled to {replicas} workers (was {was}){effect}"),
        next: format!("kubectl collect status {}", task.name_any()),
    })
}

fn params(dry_run: DryRun) -> PatchParams {
    PatchParams { dry_run: dry_run == DryRun::Server, field_manager: Some(MANAGER.into()), ..PatchParams::default() }
}

async fn carry_out<K>(session: &Session, object: &K, decision: Decision, args: ChangeArgs) -> Result<Exit, Error>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + DeserializeOwned
        + Serialize
        + std::fmt::Debug,
{
    let plan = match decision {
        Decision::Change(plan) => plan,
        Decision::Already(why) => {
            match args.output.output {
                Some(format @ (Format::Json | Format::Yaml | Format::Name)) => {
                    output::print(&output::object(format, object)?)?
                }
                _ => output::print(&format!("{} unchanged: {why}\n", output::full_name(object)))?,
            }
            return Ok(Exit::Done);
        }
        Decision::Senseless(why) => {
            output::remark(&format!("{} unchanged: {why}", output::full_name(object)));
            return Ok(Exit::Failed);
        }
    };
    let name = object.name_any();
    let changed = if args.dry_run == DryRun::Client {
        object.clone()
    } else {
        let (kind, plural, namespace) = (K::kind(&()), K::plural(&()), session.namespace().await?);
        let about = About { kind: &kind, plural: &plural, name: &name, namespace: &namespace };
        let api = session.api::<K>().await?;
        let (params, patch) = (params(args.dry_run), Patch::Merge(&plan.patch));
        session.ask(&format!("changing {name}"), about, api.patch(&name, &params, &patch)).await?
    };
    tell(&changed, &plan, args)?;
    Ok(Exit::Done)
}

fn tell<K: Resource<DynamicType = ()> + Serialize>(object: &K, plan: &Plan, args: ChangeArgs) -> Result<(), Error> {
    if let Some(format @ (Format::Json | Format::Yaml | Format::Name)) = args.output.output {
        return output::print(&output::object(format, object)?);
    }
    let name = output::full_name(object);
    let said = &plan.said;
    output::print(&match args.dry_run {
        DryRun::None => format!("{name} {said}\n  next: {}\n", plan.next),
        DryRun::Client => format!("{name} {said} (dry run)\n  patch: {}\n", plan.patch),
        DryRun::Server => format!("{name} {said} (server dry run)\n"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;

    fn task(phase: &str, desired: Option<DesiredState>) -> CollectTask {
        let mut task = samples::task("villages", None, phase, 50, (1, None));
        task.spec.desired_state = desired;
        let shards = json!({"total": 2, "pending": 0, "running": 0, "succeeded": 1, "failed": if phase == "Failed" { 1 } else { 0 }, "cancelled": 0});
        samples::with_status(task, json!({"shards": shards, "workers": 3}))
    }

    fn plan(decision: Decision) -> Plan {
        match decision {
            Decision::Change(plan) => plan,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn pause_resume_and_cancel_set_the_desired_state_and_say_what_follows() {
        let paused = plan(decide_desired(&task("Running", None), DesiredState::Paused));
        assert_eq!(paused.patch, json!({"spec": {"desiredState": "Paused"}}));
        assert!(paused.said.contains("3 workers") && paused.next.contains("resume villages"));
        let resumed = plan(decide_desired(&task("Paused", Some(DesiredState::Paused)), DesiredState::Running));
        assert_eq!(resumed.patch, json!({"spec": {"desiredState": "Running"}}));
        let again = plan(decide_desired(&task("Cancelled", Some(DesiredState::Cancelled)), DesiredState::Running));
        assert!(again.next.contains("retry villages"), "resume alone does not take up what was cancelled");
    }

    #[test]
    fn what_is_so_already_is_not_changed_and_what_is_over_can_not_be_stopped() {
        assert!(matches!(
            decide_desired(&task("Paused", Some(DesiredState::Paused)), DesiredState::Paused),
            Decision::Already(_)
        ));
        assert!(matches!(decide_desired(&task("Succeeded", None), DesiredState::Cancelled), Decision::Senseless(_)));
    }

    #[test]
    fn a_retry_is_a_new_token_and_only_where_something_failed() {
        let retried = plan(decide_retry(&task("Failed", None), "t1"));
        assert_eq!(retried.patch, json!({"metadata": {"annotations": {"collect.dev/retry": "t1"}}}));
        assert!(matches!(decide_retry(&task("Succeeded", None), "t1"), Decision::Senseless(_)));
        let mut used = task("Failed", None);
        used.annotations_mut().insert(labels::RETRY.into(), "t1".into());
        assert!(matches!(decide_retry(&used, "t1"), Decision::Senseless(_)), "a token speaks once");
        let cancelled = plan(decide_retry(&task("Cancelled", Some(DesiredState::Cancelled)), "t1"));
        assert_eq!(cancelled.patch["spec"]["desiredState"], "Running");
        let shard = samples::shard("villages-0", "Failed", 0, 0, None);
        assert_eq!(plan(decide_shard_retry(&shard, "t1")).patch, retried.patch);
        assert!(matches!(
            decide_shard_retry(&samples::shard("villages-0", "Running", 0, 0, None), "t"),
            Decision::Senseless(_)
        ));
    }

    #[test]
    fn a_rerun_raises_the_run_of_the_root_and_of_nothing_else() {
        let mut root = task("Failed", Some(DesiredState::Cancelled));
        root.spec.run = Some(3);
        root.metadata.resource_version = Some("7".into());
        let plan = plan(decide_rerun(&root));
        assert_eq!(
            plan.patch,
            json!({"metadata": {"resourceVersion": "7"}, "spec": {"run": 4, "desiredState": "Running"}})
        );
        let child = samples::task("villages-44", Some("villages"), "Failed", 0, (0, None));
        assert!(matches!(decide_rerun(&child), Decision::Senseless(why) if why.contains("rerun villages")));
    }

    #[test]
    fn scaling_goes_by_the_subresource() {
        assert_eq!(plan(decide_scale(&task("Running", None), 2)).patch, json!({"spec": {"replicas": 2}}));
        let mut scaled = task("Running", None);
        scaled.spec.parallelism = Some(2);
        assert!(matches!(decide_scale(&scaled, 2), Decision::Already(_)));
    }
}
