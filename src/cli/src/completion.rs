//! `completion`: scripts for shells, and what kubectl asks for a word behind `kubectl collect`.
//!
//! kubectl looks for a program `kubectl_complete-collect`, runs it with the words typed so far, the last one perhaps empty, and
//! reads one candidate a line, with a description behind a tab, then `:` and a number for the shell. This program is that one
//! too, by the name under which it is called.

use std::{ffi::OsStr, path::Path, time::Duration};

use clap::{Arg, Command, CommandFactory, ValueHint};
use clap_complete::{Generator, Shell};
use collect_api::CollectTask;
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, ResourceExt, api::ListParams};

use crate::{
    args::{Cli, Global},
    error::Error,
    exit::Exit,
    output,
    session::{self, Session},
};

/// Name under which kubectl asks for candidates.
const ASKED_AS: &str = "kubectl_complete-collect";
/// A person waits for the candidates.
const PATIENCE: Duration = Duration::from_secs(3);
/// For the shell: no file names. A number of the protocol that kubectl has from cobra.
const NO_FILES: &str = ":4\n";
/// For the shell: file names, as usual.
const FILES: &str = ":0\n";

/// Arguments of `completion`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
With kubectl itself, words behind `kubectl collect` are completed, names of tasks too, as soon as this program is found under the
name kubectl_complete-collect as well:

  ln -s \"$(command -v kubectl-collect)\" /usr/local/bin/kubectl_complete-collect

The scripts are for `kubectl-collect` called by its own name.")]
pub struct Args {
    /// Shell to write the script for.
    shell: Form,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Form {
    /// For bash: source <(kubectl-collect completion bash).
    Bash,
    /// For zsh: source <(kubectl-collect completion zsh).
    Zsh,
    /// For fish: kubectl-collect completion fish | source.
    Fish,
}

/// Prints the script.
pub fn run(args: &Args) -> Result<Exit, Error> {
    let shell = match args.shell {
        Form::Bash => Shell::Bash,
        Form::Zsh => Shell::Zsh,
        Form::Fish => Shell::Fish,
    };
    output::print(&script(shell))?;
    Ok(Exit::Done)
}

fn script(shell: impl Generator) -> String {
    let mut command = Cli::command().bin_name("kubectl-collect");
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "kubectl-collect", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// Whether the program was called to answer kubectl.
pub fn is_asked(program: Option<&OsStr>) -> bool {
    program.and_then(|program| Path::new(program).file_name()).is_some_and(|name| name == ASKED_AS)
}

/// Answers kubectl: candidates for the last word.
pub async fn answer(words: &[String]) -> Result<Exit, Error> {
    let (typed, begun) = match words.split_last() {
        Some((begun, typed)) => (typed, begun.as_str()),
        None => (words, ""),
    };
    let cli = Cli::command();
    let (wanted, global) = wanted(&cli, typed, begun);
    let (candidates, end) = match wanted {
        Wanted::Words(words) => (words, NO_FILES),
        Wanted::Files => (Vec::new(), FILES),
        live => {
            // Who can't be asked has nothing to offer; the shell must not be filled with errors.
            let found = tokio::time::timeout(PATIENCE, ask(&live, global)).await;
            (found.ok().and_then(Result::ok).unwrap_or_default(), NO_FILES)
        }
    };
    let mut text = String::new();
    for (word, about) in candidates.iter().filter(|(word, _)| word.starts_with(begun)) {
        let about = about.lines().next().unwrap_or_default();
        text.push_str(&if about.is_empty() { format!("{word}\n") } else { format!("{word}\t{about}\n") });
    }
    output::print(&format!("{text}{end}"))?;
    Ok(Exit::Done)
}

/// What fits at a place.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    /// These words, each with a description.
    Words(Vec<(String, String)>),
    /// Names of tasks, but not those that were given already.
    Tasks(Vec<String>),
    Namespaces,
    Contexts,
    Files,
}

/// What fits as the word after those that were typed, and the flags among them that say which cluster to ask. Pure.
fn wanted(cli: &Command, typed: &[String], begun: &str) -> (Wanted, Global) {
    let mut command = cli;
    let mut global = Global::default();
    let mut names: Vec<String> = Vec::new();
    let mut words = typed.iter();
    while let Some(word) = words.next() {
        if let Some(arg) = flag(cli, command, word) {
            if !arg.get_action().takes_values() {
                continue;
            }
            let value = match word.split_once('=') {
                Some((_, value)) => value.to_owned(),
                None => match words.next() {
                    Some(value) => value.clone(),
                    // Its value is what is being typed.
                    None => return (values(arg), global),
                },
            };
            match arg.get_id().as_str() {
                "namespace" => global.namespace = Some(value),
                "context" => global.context = Some(value),
                "cluster" => global.cluster = Some(value),
                "user" => global.user = Some(value),
                "kubeconfig" => global.kubeconfig = Some(value.into()),
                _ => {}
            }
        } else if let Some(sub) = command.find_subcommand(word) {
            command = sub;
        } else if !word.starts_with('-') {
            names.push(word.clone());
        }
    }
    if begun.starts_with('-') {
        return (Wanted::Words(flags(cli, command)), global);
    }
    if command.has_subcommands() {
        let words = command.get_subcommands().filter(|sub| !sub.is_hide_set());
        let words =
            words.map(|sub| (sub.get_name().to_owned(), sub.get_about().map(ToString::to_string).unwrap_or_default()));
        return (Wanted::Words(words.collect()), global);
    }
    let many = |arg: &&Arg| {
        arg.get_num_args().is_some_and(|range| range.max_values() > 1)
            || matches!(arg.get_action(), clap::ArgAction::Append)
    };
    let place = command.get_positionals().nth(names.len()).or_else(|| command.get_positionals().find(many));
    match place {
        None => (Wanted::Words(Vec::new()), global),
        Some(arg) if matches!(arg.get_id().as_str(), "name" | "names") => (Wanted::Tasks(names), global),
        Some(arg) => (values(arg), global),
    }
}

fn flag<'a>(cli: &'a Command, command: &'a Command, word: &str) -> Option<&'a Arg> {
    let name = word.split_once('=').map_or(word, |(name, _)| name);
    let is = |arg: &&Arg| match name.strip_prefix("--") {
        Some(long) => arg.get_long() == Some(long),
        None => name.strip_prefix('-').is_some_and(|short| arg.get_short().is_some_and(|own| short == own.to_string())),
    };
    command.get_arguments().find(is).or_else(|| cli.get_arguments().find(is))
}

fn flags(cli: &Command, command: &Command) -> Vec<(String, String)> {
    let own = command.get_arguments().chain(cli.get_arguments().filter(|arg| arg.is_global_set()));
    let long = own.filter(|arg| !arg.is_hide_set()).filter_map(|arg| {
        Some((format!("--{}", arg.get_long()?), arg.get_help().map(ToString::to_string).unwrap_or_default()))
    });
    let mut flags: Vec<_> = long.collect();
    flags.dedup();
    flags
}

/// What fits as the value of a flag.
fn values(arg: &Arg) -> Wanted {
    match arg.get_id().as_str() {
        "namespace" => return Wanted::Namespaces,
        "context" => return Wanted::Contexts,
        _ => {}
    }
    let words: Vec<(String, String)> = arg
        .get_possible_values()
        .iter()
        .filter(|value| !value.is_hide_set())
        .map(|value| (value.get_name().to_owned(), value.get_help().map(ToString::to_string).unwrap_or_default()))
        .collect();
    let is_file = matches!(arg.get_value_hint(), ValueHint::AnyPath | ValueHint::FilePath | ValueHint::DirPath)
        || arg.get_value_names().is_some_and(|names| names.iter().any(|name| name == "FILE" || name == "FOLDER"));
    if is_file { Wanted::Files } else { Wanted::Words(words) }
}

/// Asks the cluster or the kubeconfig.
async fn ask(wanted: &Wanted, global: Global) -> Result<Vec<(String, String)>, Error> {
    match wanted {
        Wanted::Tasks(given) => {
            let session = Session::new(global);
            let tasks: Vec<CollectTask> = session.list(false, ListParams::default()).await?;
            let others = tasks.iter().filter(|task| !given.contains(&task.name_any()));
            Ok(others.map(|task| (task.name_any(), crate::state::phase(task).to_string())).collect())
        }
        Wanted::Namespaces => {
            let namespaces = Api::<Namespace>::all(Session::new(global).client().await?);
            let all = namespaces.list_metadata(&ListParams::default()).await;
            let all = all.map_err(|error| Error::Unreachable("listing namespaces".into(), error.to_string()))?;
            Ok(all.items.iter().map(|namespace| (namespace.name_any(), String::new())).collect())
        }
        Wanted::Contexts => {
            let file = session::kubeconfig(global.kubeconfig.as_ref())?;
            Ok(file.contexts.into_iter().map(|context| (context.name, String::new())).collect())
        }
        Wanted::Words(_) | Wanted::Files => Ok(Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(line: &str) -> (Wanted, Global) {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let (begun, typed) = words.split_last().unwrap();
        wanted(&Cli::command(), typed, begun)
    }

    fn words(wanted: Wanted) -> Vec<String> {
        match wanted {
            Wanted::Words(words) => words.into_iter().map(|(word, _)| word).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_fits_depends_on_what_stands_before() {
        assert!(words(asked("").0).contains(&"tree".to_owned()));
        assert_eq!(asked("tree ").0, Wanted::Tasks(Vec::new()));
        assert_eq!(asked("pause villages ").0, Wanted::Tasks(vec!["villages".to_owned()]), "names of several tasks");
        assert!(words(asked("tree villages ").0).is_empty(), "one name is enough");
        assert_eq!(asked("tree -n ").0, Wanted::Namespaces);
        assert_eq!(asked("--context ").0, Wanted::Contexts);
        assert_eq!(asked("--kubeconfig ").0, Wanted::Files);
        assert_eq!(words(asked("tree -o ").0), ["wide", "json", "yaml", "name"]);
        assert_eq!(words(asked("completion ").0), ["bash", "zsh", "fish"]);
        assert!(words(asked("tree --").0).iter().any(|flag| flag == "--namespace"), "flags of every command too");
    }

    #[test]
    fn the_cluster_that_was_named_is_asked() {
        let (wanted, global) = asked("--context=prod tree -n lake villa");
        assert_eq!(wanted, Wanted::Tasks(Vec::new()));
        assert_eq!((global.context.as_deref(), global.namespace.as_deref()), (Some("prod"), Some("lake")));
    }

    #[test]
    fn the_program_knows_by_which_name_it_was_called() {
        assert!(is_asked(Some(OsStr::new("/usr/local/bin/kubectl_complete-collect"))));
        assert!(!is_asked(Some(OsStr::new("kubectl-collect"))) && !is_asked(None));
    }

    #[test]
    fn every_shell_gets_a_script() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = script(shell);
            assert!(script.contains("kubectl-collect") && script.contains("tree"), "{shell}");
        }
    }
}
