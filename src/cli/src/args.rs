//! The command line: what every command takes, and names of tasks and shards as people write them.
//!
//! Flags are called as kubectl calls them.

use std::{path::PathBuf, str::FromStr};

use clap::{Args, Parser};
use collect_api::Duration;

use crate::{Command, exit};

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "kubectl-collect",
    bin_name = "kubectl collect",
    version,
    about = "Look at and control CollectTasks: trees of work that collect data, and prove it",
    after_help = exit::HELP,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    max_term_width = 100
)]
pub struct Cli {
    /// Flags of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Flags of every command: which cluster, as whom, and how it is shown.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Namespace. Default: that of the context, else `default`.
    #[arg(short, long, global = true, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// Kubeconfig file. Default: the files of KUBECONFIG, else ~/.kube/config, else the ServiceAccount of the pod.
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig.
    #[arg(long, global = true, value_name = "CONTEXT")]
    pub context: Option<String>,
    /// Cluster of the kubeconfig.
    #[arg(long, global = true, value_name = "CLUSTER")]
    pub cluster: Option<String>,
    /// User of the kubeconfig.
    #[arg(long, global = true, value_name = "USER")]
    pub user: Option<String>,
    /// User to act as, such as system:serviceaccount:default:reader.
    #[arg(long = "as", global = true, value_name = "USER")]
    pub as_user: Option<String>,
    /// Group to act as; repeatable.
    #[arg(long = "as-group", global = true, value_name = "GROUP")]
    pub as_groups: Vec<String>,
    /// Time that one request may take, such as 5s or 1m; 0s means no limit. Watching is not limited.
    #[arg(long, global = true, value_name = "TIME", default_value = "0s")]
    pub request_timeout: Option<Duration>,
    /// No colours. The same as setting NO_COLOR.
    #[arg(long, global = true)]
    pub no_color: bool,
}

/// All namespaces, for commands that list.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct Everywhere {
    /// In all namespaces.
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
}

/// What a name means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A CollectTask.
    Task,
    /// A CollectShard.
    Shard,
}

/// A task or shard as people name it: `NAME`, `ct/NAME`, `collecttask/NAME`, `csh/NAME`, `collectshard.collect.dev/NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Kind; a bare name is a task's.
    pub kind: Kind,
    /// Name.
    pub name: String,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, name) = match text.split_once('/') {
            None => (Kind::Task, text),
            Some((kind, name)) => (kind_of(kind)?, name),
        };
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
        if name.is_empty() || name.len() > 253 || !name.chars().all(fits) {
            return Err(format!("`{text}` is no name of a CollectTask; `kubectl get ct` lists them"));
        }
        Ok(Self { kind, name: name.to_owned() })
    }
}

fn kind_of(word: &str) -> Result<Kind, String> {
    let (plain, group) = word.split_once('.').unwrap_or((word, collect_api::GROUP));
    let of_ours = group == collect_api::GROUP || group == format!("{}.{}", collect_api::VERSION, collect_api::GROUP);
    match plain.to_ascii_lowercase().as_str() {
        "ct" | "collecttask" | "collecttasks" if of_ours => Ok(Kind::Task),
        "csh" | "collectshard" | "collectshards" if of_ours => Ok(Kind::Shard),
        _ => Err(format!("`{word}` is no kind that this command takes; write ct/NAME or just NAME")),
    }
}

/// The name of a task, as people write it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskName(pub String);

impl FromStr for TaskName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let target = Target::from_str(text)?;
        match target.kind {
            Kind::Task => Ok(Self(target.name)),
            Kind::Shard => Err(format!("`{text}` is a shard; this command takes a task")),
        }
    }
}

impl AsRef<str> for TaskName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_and_command_is_described() {
        fn bare(command: &clap::Command, found: &mut Vec<String>) {
            for arg in command.get_arguments().filter(|arg| arg.get_help().is_none()) {
                found.push(format!("{} {}", command.get_name(), arg.get_id()));
            }
            for sub in command.get_subcommands() {
                if sub.get_about().is_none() {
                    found.push(sub.get_name().to_owned());
                }
                bare(sub, found);
            }
        }
        let mut found = Vec::new();
        bare(&Cli::command(), &mut found);
        assert_eq!(found, Vec::<String>::new());
    }

    #[test]
    fn a_task_is_named_in_many_ways() {
        for text in ["villages", "ct/villages", "CollectTask/villages", "collecttasks.collect.dev/villages"] {
            assert_eq!(text.parse::<TaskName>().unwrap().0, "villages", "{text}");
        }
        assert_eq!("csh/villages-0".parse::<Target>().unwrap().kind, Kind::Shard);
        for text in
            ["", "ct/", "job/villages", "ct/a/b", "Villages", "collecttask.example.org/villages", "csh/villages-0"]
        {
            assert!(text.parse::<TaskName>().is_err(), "{text}");
        }
    }
}
