//! Shows people what a task would do first.

use std::{collections::BTreeMap, path::PathBuf};

use collect_api::{CollectTaskSpec, protocol::exit, source::Source};
use collect_data::{
    Error, Settings,
    plan::lines,
    preview::{First, Preview},
};
use serde::Deserialize;

/// Arguments of `preview`.
#[derive(clap::Args)]
pub struct Args {
    /// File with the CollectTask, in YAML or JSON.
    #[arg(short = 'f', long = "file")]
    file: PathBuf,
    /// Value of a level to follow, as level=value; repeatable. Default: the first value of each level.
    #[arg(long = "value", value_parser = pair)]
    values: Vec<(String, String)>,
    /// Folder with the secrets: one folder for each secret, one file for each key.
    #[arg(long, default_value = ".")]
    secrets_dir: PathBuf,
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((level, value)) if !level.is_empty() => Ok((level.to_owned(), value.to_owned())),
        _ => Err(format!("`{text}` is not level=value, such as province=44")),
    }
}

#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    kind: String,
    #[serde(default)]
    spec: serde_json::Value,
}

/// Prints the preview and gives the exit code.
pub async fn run(args: &Args) -> i32 {
    match look(args).await {
        Ok(preview) => {
            print!("{}", write(&preview));
            exit::DONE
        }
        Err((message, code)) => {
            eprintln!("{message}");
            code
        }
    }
}

async fn look(args: &Args) -> Result<Preview, (String, i32)> {
    let permanent = |message: String| (message, exit::PERMANENT);
    let spec = read(args).map_err(permanent)?;
    let Some(Source::Http(source)) = spec.source else {
        return Err(permanent("the CollectTask has no spec.source.http".into()));
    };
    let values: BTreeMap<String, String> = args.values.iter().cloned().collect();
    let settings = Settings { secrets_dir: args.secrets_dir.clone(), ..Settings::default() };
    let decompose = spec.decompose.unwrap_or_default();
    collect_data::preview(&source, &decompose, values, &settings)
        .await
        .map_err(|error: Error| (format!("{}: {error}", error.category()), error.class().exit_code()))
}

fn read(args: &Args) -> Result<CollectTaskSpec, String> {
    let name = args.file.display();
    let text = std::fs::read_to_string(&args.file).map_err(|error| format!("{name}: {error}"))?;
    for document in serde_yaml::Deserializer::from_str(&text) {
        let document = Document::deserialize(document).map_err(|error| format!("{name}: {error}"))?;
        if document.kind == "CollectTask" {
            return serde_json::from_value(document.spec).map_err(|error| format!("{name}: spec: {error}"));
        }
    }
    Err(format!("{name} holds no CollectTask"))
}

fn write(preview: &Preview) -> String {
    let mut text = String::from("REQUEST\n");
    for line in &preview.request {
        text.push_str(&format!("  {line}\n"));
    }
    match &preview.answer {
        None => text.push_str("  none: the chosen values hold no work\n"),
        Some(first) => text.push_str(&answer(first)),
    }
    text.push_str("\nPLAN along the chosen values\n");
    for line in lines(&preview.tree, None) {
        text.push_str(&plan_line(&line));
    }
    text
}

fn answer(first: &First) -> String {
    let total =
        first.total.map_or_else(|| "not known: set spec.source.http.total".to_owned(), |total| total.to_string());
    let mut text = format!(
        "\nANSWER\n  status {}, {} records on the page, total {total}\n\nRECORDS\n",
        first.status, first.records
    );
    for record in &first.shown {
        text.push_str(&format!("  {record}\n"));
    }
    let width = first.columns.iter().map(|column| column.name.chars().count()).max().unwrap_or(0).max(4);
    text.push_str(&format!("\nSCHEMA\n  {:width$}  {:9}  {:8}  EXAMPLE\n", "NAME", "TYPE", "OPTIONAL"));
    for column in &first.columns {
        let optional = if column.is_optional { "yes" } else { "no" };
        text.push_str(&format!("  {:width$}  {:9}  {optional:8}  {}\n", column.name, column.type_, column.example));
    }
    text
}

fn plan_line(line: &collect_api::plan::PlanLine) -> String {
    use collect_api::plan::PlanLine;
    match line {
        PlanLine::Task(task) => {
            let steps: Vec<String> = task
                .path
                .iter()
                .map(|step| match &step.label {
                    Some(label) => format!("{}={} ({label})", step.level, step.value),
                    None => format!("{}={}", step.level, step.value),
                })
                .collect();
            let name = if steps.is_empty() { "root".to_owned() } else { steps.join(" / ") };
            let records = task.records.map_or_else(String::new, |records| format!(", {records} records"));
            format!("  {name}: {} shards{records}\n", task.shards)
        }
        PlanLine::Shard(shard) => {
            let records: Option<i64> = shard.items.iter().map(|item| item.records).sum();
            let records = records.map_or_else(String::new, |records| format!(", {records} records"));
            format!("    shard {}: {} items{records}\n", shard.index, shard.items.len())
        }
    }
}
