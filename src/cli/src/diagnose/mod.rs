//! `diagnose`: why a task does not move: one answer first, with what shows it and what to do; then whatever else was found.

mod evidence;
mod findings;
#[cfg(test)]
mod findings_tests;

use serde_json::json;

use self::findings::{Finding, Weight, diagnose};
use crate::{
    args::TaskName,
    error::Error,
    exit::Exit,
    output::{self, Encoding, Style, Tone},
    session::Session,
};

/// Say why a task does not move, what shows it, and what to do.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Task.
    #[arg(value_name = "NAME")]
    name: TaskName,
    /// Form of the output: for people if not given.
    #[arg(short, long, value_enum, value_name = "FORM")]
    output: Option<Encoding>,
}

/// Runs the command. It ends with 1 where something keeps the task from going on.
pub async fn run(args: &Args, session: &Session) -> Result<Exit, Error> {
    let evidence = evidence::gather(args.name.as_ref(), session).await?;
    let findings = diagnose(&evidence);
    let text = match args.output {
        Some(encoding) => {
            let all = json!({"task": args.name.as_ref(), "findings": findings, "unreadable": evidence.unreadable});
            output::encode(encoding, &all)?
        }
        None => render(args.name.as_ref(), &findings, &evidence.unreadable, session.style()),
    };
    output::print(&text)?;
    let held = findings.iter().any(|finding| finding.weight == Weight::Cause);
    Ok(if held { Exit::Failed } else { Exit::Done })
}

/// The answer, then the rest.
fn render(name: &str, findings: &[Finding], unreadable: &[String], style: Style) -> String {
    let mut text = String::new();
    for (index, finding) in findings.iter().enumerate() {
        let tone = match finding.weight {
            Weight::Cause => Tone::Bad,
            Weight::State => Tone::Good,
            Weight::Remark => Tone::Warning,
        };
        if index == 1 {
            text.push_str(&format!("\n{}\n", style.paint(Tone::Strong, "Also found")));
        }
        let lead = if index == 0 { format!("{name}: ") } else { "- ".to_owned() };
        text.push_str(&format!("{lead}{} {}\n", style.paint(tone, &finding.code), finding.answer));
        for fact in &finding.facts {
            text.push_str(&format!("    {}  {}: {}\n", fact.object, style.paint(Tone::Faint, &fact.field), fact.value));
        }
        for next in &finding.next {
            text.push_str(&format!("  $ {next}\n"));
        }
    }
    if !unreadable.is_empty() {
        text.push_str(&format!("\n{}\n", style.paint(Tone::Strong, "Not looked at")));
        unreadable.iter().for_each(|what| text.push_str(&format!("- {what}\n")));
    }
    text
}
