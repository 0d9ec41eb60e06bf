//! `files`: the files of a task's valid run. The API knows how many there are and where their list lies; the list itself is read
//! from the sink, with credentials of whoever asks: the cluster's Secrets are never touched.

use std::path::PathBuf;

use collect_api::{
    CollectTask,
    plan::PathStep,
    protocol::{CommitResult, Identity},
    sink::{ObjectStoreSink, Sink},
};
use collect_data::{
    Settings,
    sink::{FilePart, Store},
};
use kube::ResourceExt;

use crate::{
    args::TaskName,
    error::Error,
    exit::Exit,
    output::{self, Style, Table},
    session::Session,
};

/// Arguments of `files`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of a task: of the root, or of a child for its part of the files.
    name: TaskName,
    /// Only what the API knows: how many files, and where their list lies. No credentials are needed.
    #[arg(long)]
    summary: bool,
    /// Folder with the secrets: one folder for each secret, one file for each key. Default: the credentials in AWS_ACCESS_KEY_ID
    /// and AWS_SECRET_ACCESS_KEY, if the sink is an S3 store.
    #[arg(long, value_name = "FOLDER")]
    secrets_dir: Option<PathBuf>,
    /// Folder where the volume of a file:// sink is mounted on this machine.
    #[arg(long, value_name = "FOLDER")]
    volume_dir: Option<PathBuf>,
    /// Endpoint of the S3 store as this machine reaches it. Default: that of the task.
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
    /// Form of the output: a table if not given.
    #[arg(short, long, value_enum, value_name = "FORM")]
    output: Option<Form>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Form {
    /// With hash and level values.
    Wide,
    /// A JSON object a line, as in the list at the sink.
    Json,
    /// Only the URLs.
    Name,
}

/// Prints the files.
pub async fn run(args: &Args, session: &Session) -> Result<Exit, Error> {
    let task: CollectTask = session.get(args.name.as_ref()).await?;
    let (root, path) = match &task.spec.part_of {
        Some(part) => (session.get::<CollectTask>(&part.root).await?, part.path.clone()),
        None => (task, Vec::new()),
    };
    let Some(committed) = root.status.as_ref().and_then(|status| status.commit.as_ref()?.result.clone()) else {
        output::remark(&format!(
            "run {} of {} is not committed, so no files are valid yet; what an earlier run left stays as it is (see _current.json at the sink)",
            root.status.as_ref().and_then(|status| status.run).unwrap_or(1),
            root.name_any()
        ));
        return Ok(Exit::Failed);
    };
    let Some(Sink::ObjectStore(sink)) = &root.spec.sink else {
        return Err(Error::Usage(format!("{} has no spec.sink.objectStore, so there are no files", root.name_any())));
    };
    if args.summary {
        output::print(&summary(sink, &committed))?;
        return Ok(Exit::Done);
    }
    let (settings, sink) = reach(args, sink)?;
    let store = Store::open(&sink, &settings).map_err(|error| unreadable(&error.to_string()))?;
    let read = store.get(&committed.list).await.map_err(|error| unreadable(&error.to_string()))?;
    let Some((list, _)) = read else {
        return Err(unreadable(&format!("{} is not there", committed.list)));
    };
    let parts = parts(&String::from_utf8_lossy(&list), &folder(&root, path))?;
    output::print(&render(&sink, &parts, args.output, session.style())?)?;
    Ok(Exit::Done)
}

fn unreadable(why: &str) -> Error {
    Error::Usage(format!(
        "the list of files can't be read from here: {why}; give your own access with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, --secrets-dir, --volume-dir or --endpoint, or see what the API knows with --summary"
    ))
}

fn summary(sink: &ObjectStoreSink, committed: &CommitResult) -> String {
    let mut table = Table::default();
    table.row(["files".to_owned(), committed.files.to_string()]);
    table.row(["records".to_owned(), committed.records.to_string()]);
    table.row(["bytes".to_owned(), committed.bytes.to_string()]);
    table.row(["list".to_owned(), url(sink, &committed.list)]);
    table.render(Style::PLAIN)
}

/// The sink as it is reached from here: other credentials, perhaps another address.
fn reach(args: &Args, sink: &ObjectStoreSink) -> Result<(Settings, ObjectStoreSink), Error> {
    let (mut settings, mut sink) = (Settings::default(), sink.clone());
    if sink.url.starts_with("file://") && args.volume_dir.is_none() {
        return Err(unreadable(
            "it lies on a volume of the cluster; mount it here and name the folder with --volume-dir",
        ));
    }
    settings.volume_dir = args.volume_dir.clone().unwrap_or_default();
    match &args.secrets_dir {
        Some(folder) => settings.secrets_dir.clone_from(folder),
        // The environment's credentials take the place of a Secret that only workers can read.
        None => sink.secret_ref = None,
    }
    if args.endpoint.is_some() {
        sink.endpoint.clone_from(&args.endpoint);
    }
    Ok((settings, sink))
}

/// Folder below the sink's URL that holds everything of a task in the root's present run.
fn folder(root: &CollectTask, path: Vec<PathStep>) -> String {
    let identity = Identity {
        namespace: root.namespace().unwrap_or_default(),
        root: root.name_any(),
        root_uid: root.uid().unwrap_or_default(),
        run: root.status.as_ref().and_then(|status| status.run).unwrap_or(1),
        path,
        index: 0,
        plan_digest: String::new(),
    };
    identity.slice_folder().trim_end_matches('0').to_owned()
}

/// The files of a list that lie below a folder.
fn parts(list: &str, folder: &str) -> Result<Vec<FilePart>, Error> {
    let mut parts = Vec::new();
    for line in list.lines().filter(|line| !line.trim().is_empty()) {
        let part: FilePart = serde_json::from_str(line).map_err(|error| unreadable(&error.to_string()))?;
        if part.path.starts_with(folder) {
            parts.push(part);
        }
    }
    Ok(parts)
}

fn url(sink: &ObjectStoreSink, path: &str) -> String {
    format!("{}/{path}", sink.url.trim_end_matches('/'))
}

fn render(sink: &ObjectStoreSink, parts: &[FilePart], form: Option<Form>, style: Style) -> Result<String, Error> {
    match form {
        Some(Form::Name) => Ok(parts.iter().map(|part| format!("{}\n", url(sink, &part.path))).collect()),
        Some(Form::Json) => parts
            .iter()
            .map(|part| {
                serde_json::to_string(part).map(|line| line + "\n").map_err(|error| Error::Encode(error.to_string()))
            })
            .collect(),
        form => {
            let wide = form.is_some();
            let headings: &[&str] =
                if wide { &["PATH", "ROWS", "BYTES", "HASH", "VALUES"] } else { &["PATH", "ROWS", "BYTES"] };
            let mut table = Table::new(headings);
            for part in parts {
                let mut row = vec![part.path.clone(), part.rows.to_string(), part.bytes.to_string()];
                if wide {
                    row.push(part.hash.clone());
                    row.push(serde_json::to_string(&part.levels).unwrap_or_default());
                }
                table.row(row);
            }
            Ok(table.render(style))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;

    const LIST: &str = r#"{"path":"runs/1-uid-vill/44/0/1-a/part-0.ndjson","rows":5,"bytes":50,"hash":"h","levels":{"province":["44"]}}
{"path":"runs/1-uid-vill/11/0/1-b/part-0.ndjson","rows":3,"bytes":30,"hash":"h"}
"#;

    #[test]
    fn a_child_has_its_part_of_the_files() {
        let root = samples::task("villages", None, "Succeeded", 100, (8, None));
        let child = samples::task("villages-44", Some("villages"), "Succeeded", 100, (5, None));
        assert_eq!(parts(LIST, &folder(&root, Vec::new())).unwrap().len(), 2);
        let own = parts(LIST, &folder(&root, child.spec.part_of.unwrap().path)).unwrap();
        assert_eq!(own.iter().map(|part| part.rows).collect::<Vec<_>>(), [5]);
    }

    #[test]
    fn files_are_shown_as_they_are_asked_for() {
        let sink: ObjectStoreSink = serde_json::from_value(serde_json::json!({"url": "s3://lake/villages/"})).unwrap();
        let all = parts(LIST, "runs/").unwrap();
        let show = |form| render(&sink, &all, form, Style::PLAIN).unwrap();
        assert!(show(Some(Form::Name)).starts_with("s3://lake/villages/runs/1-uid-vill/44/0/1-a/part-0.ndjson\n"));
        assert_eq!(show(Some(Form::Json)).lines().count(), 2);
        assert!(show(None).starts_with("PATH") && show(Some(Form::Wide)).contains(r#"{"province":["44"]}"#));
    }
}
