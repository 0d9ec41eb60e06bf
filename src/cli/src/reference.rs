//! docs/reference/kubectl-collect.md, written from the definitions of the command line. `UPDATE=1 cargo test
//! the_reference_of_the_plugin_is_current` writes it.

use std::{fmt::Write as _, fs, path::Path};

use clap::{Arg, Command, CommandFactory};

use crate::{args::Cli, exit};

const HEAD: &str = "<!-- Written from src/cli by `make docs`. -->
# kubectl collect

What a person does with CollectTasks beyond plain kubectl. It is the program `kubectl-collect`: anywhere in `PATH`, kubectl finds it.
How to use it day by day is in [control.md](../how-to/control.md).

- A task is named `NAME`, `ct/NAME` or `collecttask/NAME`, a shard `csh/NAME`.
- It reads the kubeconfig as kubectl does: `KUBECONFIG`, contexts, exec plugins; in a pod the ServiceAccount. Of `KUBECONFIG` every file
  counts. HTTP proxies are not supported.
- It needs no rights of its own: the roles `view` to look and `edit` to change have what it takes, and an error names the right that
  is missing.
- Colours are left out where standard output is no terminal, with `--no-color`, and if `NO_COLOR` is set to anything.
- `-o json`, `yaml` and `name` write the objects themselves, for scripts.

";

fn reference() -> String {
    let mut cli = Cli::command();
    cli.build();
    let mut text = HEAD.to_owned();
    let (codes, global) = (exit::HELP.lines().skip(1), cli.get_arguments().filter(|arg| arg.is_global_set()));
    text.push_str("## Exit codes\n\n| Code | Means |\n| --- | --- |\n");
    for code in codes {
        let (code, means) = code.trim().split_once("  ").unwrap();
        let _ = writeln!(text, "| {code} | {means} |");
    }
    let _ = write!(text, "\n## Flags of every command\n\n{}", table("Flag", global));
    text.push_str("\n## Commands\n\n| Command | |\n| --- | --- |\n");
    let commands = || cli.get_subcommands().filter(|command| !command.is_hide_set());
    for command in commands() {
        let _ = writeln!(text, "| [{0}](#{0}) | {1} |", command.get_name(), about(command));
    }
    for command in commands() {
        let _ = write!(text, "\n### {}\n\n{}\n\n", command.get_name(), about(command));
        let usage = command.clone().render_usage().to_string();
        let usage = usage.trim_start_matches("Usage: ").replace("\n       ", "\n");
        let _ = write!(text, "```text\n{}\n```\n", usage.trim());
        let (mut own, mut places): (Vec<&Arg>, Vec<&Arg>) = (Vec::new(), Vec::new());
        for arg in
            command.get_arguments().filter(|arg| !arg.is_global_set() && !arg.is_hide_set() && arg.get_id() != "help")
        {
            if arg.is_positional() { places.push(arg) } else { own.push(arg) }
        }
        if !places.is_empty() {
            let _ = write!(text, "\n{}", table("Argument", places.into_iter()));
        }
        if !own.is_empty() {
            let _ = write!(text, "\n{}", table("Flag", own.into_iter()));
        }
        if let Some(after) = command.get_after_help() {
            let _ = write!(text, "\n{}\n", prose(&after.to_string()));
        }
    }
    text
}

fn about(command: &Command) -> String {
    command.get_about().map(ToString::to_string).unwrap_or_default()
}

fn table<'a>(what: &str, args: impl Iterator<Item = &'a Arg>) -> String {
    let mut text = format!("| {what} | Meaning |\n| --- | --- |\n");
    for arg in args {
        let mut names: Vec<String> = arg.get_short().map(|short| format!("`-{short}`")).into_iter().collect();
        names.extend(arg.get_long().map(|long| format!("`--{long}`")));
        let takes = arg.get_action().takes_values();
        let value = arg.get_value_names().and_then(|names| names.first()).map(ToString::to_string);
        let value = value.filter(|_| takes).map(|value| format!(" {value}")).unwrap_or_default();
        let name = if arg.is_positional() { value.trim().to_owned() } else { format!("{}{value}", names.join(", ")) };
        let mut meaning = arg.get_help().map(ToString::to_string).unwrap_or_default().replace('\n', " ");
        let more = arg.get_possible_values().iter().any(|word| word.get_help().is_some())
            || !arg.get_default_values().is_empty();
        if takes && more && !meaning.ends_with('.') {
            meaning.push('.');
        }
        let words = arg.get_possible_values();
        if takes && words.iter().any(|word| word.get_help().is_some()) {
            let words = words.iter().filter(|word| !word.is_hide_set()).map(|word| {
                let help = word.get_help().map(ToString::to_string).unwrap_or_default();
                format!("`{}`: {}", word.get_name(), help.trim_end_matches('.'))
            });
            let _ = write!(meaning, " {}.", words.collect::<Vec<_>>().join("; "));
        }
        let defaults = arg.get_default_values();
        if takes && !defaults.is_empty() {
            let defaults: Vec<_> = defaults.iter().map(|value| format!("`{}`", value.to_string_lossy())).collect();
            let _ = write!(meaning, " Default: {}.", defaults.join(", "));
        }
        let _ = writeln!(text, "| {name} | {} |", meaning.replace('|', "\\|"));
    }
    text
}

/// Mark of a block of commands that no test runs: see docs/contributing.md.
const ILLUSTRATIVE: &str = "<!-- illustrative: from the program's help -->";

/// Indented lines become a block of code.
fn prose(text: &str) -> String {
    let mut lines = Vec::new();
    let mut in_code = false;
    for line in text.lines() {
        let is_code = line.starts_with("  ");
        match (in_code, is_code) {
            (false, true) => lines.extend([ILLUSTRATIVE, "```sh"].map(str::to_owned)),
            (true, false) => lines.push("```".to_owned()),
            _ => {}
        }
        in_code = is_code;
        lines.push(if is_code { line.trim().to_owned() } else { line.to_owned() });
    }
    if in_code {
        lines.push("```".to_owned());
    }
    lines.join("\n")
}

#[test]
fn the_reference_of_the_plugin_is_current() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/kubectl-collect.md");
    let text = reference();
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&file, &text).unwrap();
    }
    let written = fs::read_to_string(&file).unwrap_or_default();
    assert!(written == text, "{} is not current; run `make docs`", file.display());
}
