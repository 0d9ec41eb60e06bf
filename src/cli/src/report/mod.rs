//! `report`: the verdict on a run, for the terminal, for scripts, or as a page to send around.

mod page;

use collect_api::{CollectTask, ValidationReport};
use collect_core::names;
use jiff::Timestamp;
use kube::api::ListParams;

use self::page::Page;
use crate::{
    args::TaskName,
    error::Error,
    exit::Exit,
    output::{self, Format},
    session::Session,
};

/// Show what the comparison with the source came to.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Task that the report is about.
    #[arg(value_name = "NAME")]
    name: TaskName,
    /// Run. Default: the newest that has a report.
    #[arg(long, value_name = "N")]
    run: Option<i64>,
    /// Form of the output: for people if not given.
    #[arg(short, long, value_enum, value_name = "FORM")]
    output: Option<Form>,
}

/// Forms of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Form {
    /// The ValidationReport as JSON.
    Json,
    /// The ValidationReport as YAML.
    Yaml,
    /// Only kind and name.
    Name,
    /// One HTML page that loads nothing.
    Html,
}

/// Runs the command.
pub async fn run(args: &Args, session: &Session) -> Result<Exit, Error> {
    let name = args.name.as_ref();
    let report = match args.run {
        Some(run) => session.get::<ValidationReport>(&names::report(name, run)).await?,
        None => newest(name, session).await?,
    };
    let format = match args.output {
        Some(Form::Json) => Some(Format::Json),
        Some(Form::Yaml) => Some(Format::Yaml),
        Some(Form::Name) => Some(Format::Name),
        Some(Form::Html) | None => None,
    };
    let text = match format {
        Some(format) => output::object(format, &report)?,
        None => {
            // A report outlives its task's status of that run; without it the page tells less.
            let task = session.get::<CollectTask>(name).await.ok();
            let page = Page::of(&report, task.as_ref(), Timestamp::now());
            if args.output == Some(Form::Html) { page.html()? } else { page.text(session.style()) }
        }
    };
    output::print(&text)?;
    Ok(Exit::Done)
}

async fn newest(name: &str, session: &Session) -> Result<ValidationReport, Error> {
    let selected = ListParams::default().fields(&format!("spec.task={name}"));
    let reports: Vec<ValidationReport> = session.list(false, selected).await?;
    if let Some(report) = reports.into_iter().max_by_key(|report| report.spec.run) {
        return Ok(report);
    }
    let task: CollectTask = session.get(name).await?;
    let phase = task
        .status
        .and_then(|status| status.phase)
        .map_or_else(|| "without a phase".to_owned(), |phase| phase.to_string());
    Err(Error::Usage(format!(
        "there is no report about {name} yet: it is {phase}. A report is made when all its work is over; `kubectl collect diagnose {name}` says what it waits for"
    )))
}
