//! `wait`: until tasks have come to something. Unlike `kubectl wait` it ends at once where that can't come true any more.

use std::str::FromStr;

use collect_api::{CollectTask, Duration, Phase};
use futures::StreamExt;
use kube::{ResourceExt, runtime::watcher};

use crate::{
    args::TaskName,
    error::Error,
    exit::Exit,
    live,
    output::{self, Format, OutputArgs},
    session::Session,
    state,
};

/// Arguments of `wait`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Names of tasks; all of them are waited for.
    #[arg(required = true, value_name = "NAME")]
    names: Vec<TaskName>,
    /// What to wait for: over (however it ends), complete (Succeeded, PartiallySucceeded or Collected), succeeded, failed,
    /// phase=PHASE, or condition=TYPE[=STATUS].
    #[arg(long = "for", value_name = "WHAT", default_value = "complete")]
    goal: Goal,
    /// How long to wait, such as 90s or 2h; 0s only looks.
    #[arg(long, value_name = "TIME", default_value = "30m")]
    timeout: Duration,
    #[command(flatten)]
    output: OutputArgs,
}

/// What is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Goal {
    /// It is over.
    Over,
    /// It is over, with data that is valid.
    Complete,
    /// It is over, compared and equal.
    Succeeded,
    /// It is over without success.
    Failed,
    /// It is in this phase.
    Phase(Phase),
    /// A condition has this status.
    Condition(String, String),
}

impl FromStr for Goal {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (word, value) = text.split_once('=').map_or((text, None), |(word, value)| (word, Some(value)));
        match (word.to_ascii_lowercase().as_str(), value) {
            ("over", None) => Ok(Self::Over),
            ("complete", None) => Ok(Self::Complete),
            ("succeeded", None) => Ok(Self::Succeeded),
            ("failed", None) => Ok(Self::Failed),
            ("phase", Some(phase)) => {
                let known = Phase::KNOWN.iter().find(|known| known.as_str().eq_ignore_ascii_case(phase));
                known.cloned().map(Self::Phase).ok_or_else(|| {
                    let all: Vec<&str> = Phase::KNOWN.iter().map(Phase::as_str).collect();
                    format!("`{phase}` is no phase; one of {}", all.join(", "))
                })
            }
            ("condition", Some(condition)) if !condition.is_empty() => {
                let (type_, status) = condition.split_once('=').unwrap_or((condition, "True"));
                Ok(Self::Condition(type_.to_owned(), status.to_owned()))
            }
            _ => Err(format!(
                "`{text}` is nothing to wait for; write over, complete, succeeded, failed, phase=PHASE or condition=TYPE[=STATUS]"
            )),
        }
    }
}

/// What a task says of a goal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// It is so.
    Met,
    /// It may still become so.
    Open,
    /// It is over, and it is not so.
    Missed,
}

impl Goal {
    /// What the task, as it is now, says of the goal.
    pub fn judge(&self, task: &CollectTask) -> Judgement {
        let (phase, over) = (state::phase(task), state::is_over(task));
        let met = match self {
            Self::Over => over,
            Self::Complete => over && state::is_good(&phase),
            Self::Succeeded => over && matches!(phase, Phase::Succeeded | Phase::PartiallySucceeded),
            Self::Failed => over && !state::is_good(&phase),
            Self::Phase(wanted) if wanted.is_terminal() => over && phase == *wanted,
            Self::Phase(wanted) => state::is_observed(task) && phase == *wanted,
            Self::Condition(type_, status) => state::is_observed(task) && has_condition(task, type_, status),
        };
        match (met, over) {
            (true, _) => Judgement::Met,
            (false, true) => Judgement::Missed,
            (false, false) => Judgement::Open,
        }
    }
}

fn has_condition(task: &CollectTask, type_: &str, status: &str) -> bool {
    let conditions = task.status.iter().flat_map(|status| &status.conditions);
    let mut known = conditions.filter(|condition| condition.type_.eq_ignore_ascii_case(type_));
    // Some are there only while they are true.
    known.next().map_or("False", |condition| condition.status.as_str()).eq_ignore_ascii_case(status)
}

/// Waits for all of the tasks.
pub async fn run(args: &Args, session: &Session) -> Result<Exit, Error> {
    let waits = args.names.iter().map(|name| until(session, name.as_ref(), &args.goal));
    let all = futures::future::try_join_all(waits);
    let limit = args.timeout.get().max(std::time::Duration::from_secs(1));
    let ended = tokio::time::timeout(limit, all).await;
    let all = ended.map_err(|_| Error::TimedOut { what: waited_for(args), limit: args.timeout })??;
    let mut exit = Exit::Done;
    for (task, judgement) in all {
        if judgement == Judgement::Missed {
            exit = Exit::Failed;
        }
        output::print(&match args.output.output {
            Some(format @ (Format::Json | Format::Yaml | Format::Name)) => output::object(format, &task)?,
            _ => said(&task, &judgement),
        })?;
    }
    Ok(exit)
}

fn waited_for(args: &Args) -> String {
    let names: Vec<&str> = args.names.iter().map(AsRef::as_ref).collect();
    format!("waiting for {}", names.join(", "))
}

fn said(task: &CollectTask, judgement: &Judgement) -> String {
    let phase = state::phase(task);
    let message = task.status.as_ref().and_then(|status| status.message.clone()).filter(|message| !message.is_empty());
    let message = message.map(|message| format!(": {message}")).unwrap_or_default();
    match judgement {
        Judgement::Missed => format!("{} ended as {phase}{message}\n", output::full_name(task)),
        Judgement::Met | Judgement::Open => format!("{} is {phase}{message}\n", output::full_name(task)),
    }
}

/// Watches one task until its goal is met or can't be met any more.
async fn until(session: &Session, name: &str, goal: &Goal) -> Result<(CollectTask, Judgement), Error> {
    // An early word where there is no such task; the watch would wait for it to be created.
    session.get::<CollectTask>(name).await?;
    let alone = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut events = live::lasting(session.api::<CollectTask>().await?, alone, |event| event);
    while let Some(event) = events.next().await {
        match event? {
            watcher::Event::InitApply(task) | watcher::Event::Apply(task) => match goal.judge(&task) {
                Judgement::Open => {}
                judgement => return Ok((task, judgement)),
            },
            watcher::Event::Delete(task) => {
                let namespace = task.namespace().unwrap_or_default();
                return Err(Error::NotFound {
                    kind: "CollectTask".into(),
                    plural: "collecttasks".into(),
                    name: name.to_owned(),
                    namespace,
                });
            }
            watcher::Event::Init | watcher::Event::InitDone => {}
        }
    }
    Err(Error::Unreachable(format!("waiting for {name}"), "the watch ended".into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;

    fn judge(goal: &str, phase: &str) -> Judgement {
        goal.parse::<Goal>().unwrap().judge(&samples::task("villages", None, phase, 0, (0, None)))
    }

    #[test]
    fn a_goal_that_can_not_be_met_any_more_ends_the_wait() {
        use Judgement::{Met, Missed, Open};
        for (goal, phase, expected) in [
            ("complete", "Running", Open),
            ("complete", "Collected", Met),
            ("complete", "Failed", Missed),
            ("succeeded", "Collected", Missed),
            ("succeeded", "PartiallySucceeded", Met),
            ("failed", "Cancelled", Met),
            ("failed", "Succeeded", Missed),
            ("failed", "Paused", Open),
            ("over", "Cancelled", Met),
            ("phase=running", "Running", Met),
            ("phase=Running", "Pending", Open),
            ("phase=Paused", "Succeeded", Missed),
            ("condition=Complete", "Running", Open),
            ("condition=Stalled=False", "Running", Met),
        ] {
            assert_eq!(judge(goal, phase), expected, "{goal} {phase}");
        }
    }

    #[test]
    fn what_nobody_can_wait_for_is_refused() {
        for goal in ["done", "phase", "phase=Done", "complete=1", "condition="] {
            assert!(goal.parse::<Goal>().is_err(), "{goal}");
        }
    }
}
