//! `explain-plan`: what would be created, before it is: from a file by asking the source as the planner would, or from the sealed
//! plan of a task that exists. Nothing is written, neither to the sink nor to the cluster.

mod picture;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use collect_api::{
    CollectTask, CollectTaskSpec,
    plan::PathStep,
    protocol::{PlanResult, RateShare},
    source::{HttpSource, Source},
};
use collect_core::{names, tree::PlanTree};
use collect_data::{
    Control, Settings,
    http::Client,
    plan::{Choice, independent_total, walk, write},
    secrets::Secrets,
};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt;

use self::picture::{Picture, Subject};
use crate::{
    args::TaskName,
    error::Error,
    exit::Exit,
    lint,
    output::{self, Encoding},
    session::Session,
};

/// Key of a chunk's data in its ConfigMap.
const CHUNK_KEY: &str = "plan.ndjson.gz";

/// Show what a task would create: tasks, shards, names, places at the sink, and what it costs.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Task whose sealed plan is shown.
    #[arg(value_name = "NAME", required_unless_present = "file", conflicts_with = "file")]
    name: Option<TaskName>,
    /// File with a CollectTask that need not exist: the source is asked from here, as the planner would. - is standard input.
    #[arg(short = 'f', long = "filename", value_name = "FILE")]
    file: Option<PathBuf>,
    /// Folder with the secrets of the source: one folder for each secret, one file for each key.
    #[arg(long, value_name = "DIR", requires = "file", conflicts_with = "secrets")]
    secrets_dir: Option<PathBuf>,
    /// Key of a secret of the source, as NAME/KEY=VALUE; @FILE as value reads it from a file. Repeatable.
    #[arg(long = "secret", value_name = "NAME/KEY=VALUE", requires = "file", value_parser = secret)]
    secrets: Vec<SecretArg>,
    /// Tasks shown of each level, and shards in all.
    #[arg(long, value_name = "N", default_value_t = 10)]
    limit: usize,
    /// Form of the output: for people if not given.
    #[arg(short, long, value_enum, value_name = "FORM")]
    output: Option<Encoding>,
}

/// A key of a secret. Its value never shows.
#[derive(Clone)]
struct SecretArg {
    name: String,
    key: String,
    value: String,
}

impl std::fmt::Debug for SecretArg {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}=***", self.name, self.key)
    }
}

fn secret(text: &str) -> Result<SecretArg, String> {
    let wrong = || "it is not NAME/KEY=VALUE, such as registry/token=abc or registry/token=@token.txt".to_owned();
    let (place, value) = text.split_once('=').ok_or_else(wrong)?;
    let (name, key) = place.split_once('/').ok_or_else(wrong)?;
    let is_word = |word: &str| {
        !word.is_empty()
            && !word.starts_with('.')
            && word.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    if !is_word(name) || !is_word(key) {
        return Err(wrong());
    }
    let value = match value.strip_prefix('@') {
        Some(file) => fs::read_to_string(file).map_err(|error| format!("{file}: {error}"))?,
        None => value.to_owned(),
    };
    Ok(SecretArg { name: name.to_owned(), key: key.to_owned(), value })
}

/// Runs the command.
pub async fn run(args: &Args, session: &Session) -> Result<Exit, Error> {
    let picture = match (&args.file, &args.name) {
        (Some(file), _) => of_file(args, file).await?,
        (None, Some(name)) => of_cluster(name.as_ref(), session).await?,
        (None, None) => return Err(Error::Usage("name a task, or a file with -f".into())),
    };
    let text = match args.output {
        Some(encoding) => output::encode(encoding, &picture)?,
        None => picture::render(&picture, args.limit, session.style()),
    };
    output::print(&text)?;
    Ok(Exit::Done)
}

async fn of_file(args: &Args, file: &Path) -> Result<Picture, Error> {
    let (name, spec) = read(file)?;
    let Some(Source::Http(source)) = &spec.source else {
        return Err(Error::Usage(format!("{} has no spec.source.http", file.display())));
    };
    // Removed when it is dropped; nobody else may look into it.
    let folder = tempfile::tempdir().map_err(|error| Error::File("a folder for secrets".into(), error))?;
    let secrets_dir = match &args.secrets_dir {
        Some(dir) => dir.clone(),
        None => lay_out(folder.path(), &args.secrets)?,
    };
    let fails = |error: collect_data::Error| {
        Error::Usage(format!("the plan of {name} would fail as {}: {}", error.category(), crate::error::chain(&error)))
    };
    let control = Control::new(&share(source));
    let page_bytes = Settings::default().page_bytes;
    let client =
        Client::new(source, &Secrets::below(secrets_dir), page_bytes, &control).map_err(|error| fails(error.into()))?;
    let client = Arc::new(client);
    let decompose = spec.decompose.clone().unwrap_or_default();
    let tree = walk(&client, source, &decompose, &Choice::All).await.map_err(fails)?;
    let total = match spec.validation.as_ref().and_then(|validation| validation.total.as_ref()) {
        Some(total) => Some(independent_total(&client, source, total).await.map_err(fails)?),
        None => None,
    };
    let plan = write(&tree, total).map_err(fails)?;
    let subject = Subject {
        namespace: String::new(),
        root: name.clone(),
        uid: None,
        spec: &spec,
        result: plan.result.clone(),
        requests: Some(control.requests()),
    };
    draw(&subject, &plan.chunks, &[])
}

fn share(source: &HttpSource) -> RateShare {
    let limits = source.limits.as_ref();
    RateShare {
        requests_per_second: limits.and_then(|limits| limits.requests_per_second),
        concurrency: limits.and_then(|limits| limits.concurrency),
    }
}

fn lay_out(folder: &Path, secrets: &[SecretArg]) -> Result<PathBuf, Error> {
    for secret in secrets {
        let dir = folder.join(&secret.name);
        let written = fs::create_dir_all(&dir).and_then(|()| fs::write(dir.join(&secret.key), &secret.value));
        written.map_err(|error| Error::File(format!("secret {}/{}", secret.name, secret.key), error))?;
    }
    Ok(folder.to_owned())
}

/// The one CollectTask of a file, if the API server would take it.
fn read(file: &Path) -> Result<(String, CollectTaskSpec), Error> {
    let text = if file.as_os_str() == "-" { io::read_to_string(io::stdin()) } else { fs::read_to_string(file) };
    let text = text.map_err(|error| Error::File(file.display().to_string(), error))?;
    lint::task(&file.display().to_string(), &text)
}

async fn of_cluster(name: &str, session: &Session) -> Result<Picture, Error> {
    let task: CollectTask = session.get(name).await?;
    let (root, path) = match &task.spec.part_of {
        None => (task.clone(), Vec::new()),
        Some(part_of) => (session.get::<CollectTask>(&part_of.root).await?, part_of.path.clone()),
    };
    let status = root.status.clone().unwrap_or_default();
    let plan = status.plan.unwrap_or_default();
    let (Some(attempt), Some(result)) = (plan.sealed, plan.result) else {
        let phase = status.phase.map_or_else(|| "without a phase".to_owned(), |phase| format!("{phase}"));
        let message = status.message.unwrap_or_else(|| "the operator has not said anything yet".to_owned());
        let root = root.name_any();
        return Err(Error::Usage(format!(
            "{root} has no sealed plan yet: it is {phase} ({message}); `kubectl collect diagnose {root}` says why"
        )));
    };
    let run = status.run.unwrap_or(1);
    let chunks = chunks(session, &root, run, attempt, &result).await?;
    let mut spec = root.spec.clone();
    // What is shown is the plan that there is; a higher run may already be asked for.
    spec.run = Some(run);
    let subject = Subject {
        namespace: root.namespace().unwrap_or_default(),
        root: root.name_any(),
        uid: root.uid(),
        spec: &spec,
        result,
        requests: None,
    };
    draw(&subject, &chunks, &path)
}

async fn chunks(
    session: &Session,
    root: &CollectTask,
    run: i64,
    attempt: i32,
    result: &PlanResult,
) -> Result<Vec<Vec<u8>>, Error> {
    let mut chunks = Vec::new();
    for index in 0..result.chunks {
        let name = names::plan_chunk(&root.name_any(), &root.uid().unwrap_or_default(), run, attempt, index);
        let map: ConfigMap = session.get(&name).await?;
        let data = map.binary_data.and_then(|mut data| data.remove(CHUNK_KEY)).ok_or_else(|| {
            Error::Usage(format!(
                "ConfigMap {name} has no key {CHUNK_KEY}; it was changed by hand. Delete it: the plan is made again"
            ))
        })?;
        chunks.push(data.0);
    }
    Ok(chunks)
}

fn draw(subject: &Subject<'_>, chunks: &[Vec<u8>], path: &[PathStep]) -> Result<Picture, Error> {
    let root = &subject.root;
    let plan = PlanTree::read(root, chunks, &subject.result.digest)
        .map_err(|error| Error::Usage(format!("the plan of {root} can't be read: {}", crate::error::chain(&error))))?;
    let top = plan.find(path).ok_or_else(|| {
        Error::Usage(format!("the plan of {root} does not hold this task; Kubernetes deletes it soon"))
    })?;
    Ok(Picture::of(subject, &plan, top))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_given_by_name_and_never_shown() {
        let given = secret("registry/token=a=b").unwrap();
        assert_eq!((given.name.as_str(), given.key.as_str(), given.value.as_str()), ("registry", "token", "a=b"));
        assert_eq!(format!("{given:?}"), "registry/token=***");
        for wrong in ["registry", "registry=x", "/key=x", "a/=x", "../a/b=x", "a/../b=x"] {
            assert!(secret(wrong).is_err(), "{wrong}");
        }
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("t"), "from a file").unwrap();
        let given = secret(&format!("a/b=@{}", folder.path().join("t").display())).unwrap();
        assert_eq!(given.value, "from a file");
        let laid = lay_out(folder.path(), &[given]).unwrap();
        assert_eq!(fs::read_to_string(laid.join("a/b")).unwrap(), "from a file");
    }
}
