//! Everything that ever existed in a namespace, from etcd itself.
//!
//! A watch at the API server shows after a restart only what is there by then, and the audit log lacks the requests that were
//! carried out while the API server was killed. etcd numbers every change, keeps the changes of the last minutes, and gives
//! them again from any number on: whatever is restarted in between, none is missed, and a gap would be told.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{BufWriter, Write},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use collect_api::labels;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    sync::watch,
    task::JoinHandle,
};

use super::invariants;
use crate::{Cluster, http};

/// Where API servers keep objects.
const PREFIX: &str = "/registry/";
/// The first key behind them.
const BEHIND: &str = "/registry0";
/// Group of the custom resources, which etcd holds as JSON. All else is protobuf.
const GROUP: &str = "collect.dev";

/// A reader of etcd's changes, from its start on. Dropping it ends it.
#[derive(Debug)]
pub struct History {
    shared: Arc<Shared>,
    reader: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    book: Mutex<Book>,
    changed: watch::Sender<()>,
}

/// What was seen so far.
#[derive(Debug)]
pub struct Book {
    namespace: String,
    /// Where each change is written down, for people.
    file: BufWriter<File>,
    began: Instant,
    /// Number of the last change that was seen.
    revision: u64,
    /// Jobs that were created, each as often as it was.
    jobs: Vec<CreatedJob>,
    /// Names of what is there, by resource.
    alive: BTreeMap<String, BTreeSet<String>>,
    /// The custom resources that are there, by resource and name.
    objects: BTreeMap<(String, String), Value>,
    broken: Vec<String>,
    writes: usize,
}

/// One creation of a Job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreatedJob {
    /// Its name: f(name and uid of the ledger's object, work, attempt).
    pub name: String,
    /// Uid of the object whose ledger has the attempt.
    pub ledger: String,
    /// Number of the change.
    pub revision: u64,
}

impl History {
    /// Begins to read; what was there before is not known to it.
    pub async fn begin(cluster: &Cluster, namespace: &str, file: &Path) -> Self {
        let spec = fs::read_to_string(cluster.state.join("spec.json")).expect("the cluster has a spec");
        let spec: Value = serde_json::from_str(&spec).expect("it is JSON");
        let etcd = format!("127.0.0.1:{}", spec["ports"]["etcd"].as_u64().expect("etcd has a port"));
        let now = answers(&etcd, 0).await.expect("etcd answers").next().await.expect("etcd answers a watch");
        let book = Book {
            namespace: namespace.to_owned(),
            file: BufWriter::new(File::create(file).expect("the history can be written down")),
            began: Instant::now(),
            revision: now.header.revision.parse().expect("a revision is a number"),
            jobs: Vec::new(),
            alive: BTreeMap::new(),
            objects: BTreeMap::new(),
            broken: Vec::new(),
            writes: 0,
        };
        let shared = Arc::new(Shared { book: Mutex::new(book), changed: watch::Sender::new(()) });
        let reader = tokio::spawn(read(etcd, shared.clone()));
        Self { shared, reader }
    }

    /// What was seen so far.
    pub fn book(&self) -> MutexGuard<'_, Book> {
        self.shared.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the book gives an answer; `None` after the limit.
    pub async fn when<T>(&self, limit: Duration, mut answer: impl FnMut(&Book) -> Option<T>) -> Option<T> {
        let mut changes = self.shared.changed.subscribe();
        let wait = async {
            loop {
                if let Some(answer) = answer(&self.book()) {
                    return Some(answer);
                }
                // Fails only when the reader has ended, and then nothing changes any more.
                changes.changed().await.ok()?;
            }
        };
        tokio::time::timeout(limit, wait).await.ok().flatten()
    }

    /// Waits until the book gives an answer.
    ///
    /// # Panics
    /// After the limit.
    pub async fn until<T>(&self, what: &str, limit: Duration, answer: impl FnMut(&Book) -> Option<T>) -> T {
        self.when(limit, answer).await.unwrap_or_else(|| panic!("waited {limit:?} until {what}"))
    }
}

impl Drop for History {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Book {
    /// Creations of Jobs, in their order.
    pub fn jobs(&self) -> &[CreatedJob] {
        &self.jobs
    }

    /// Jobs that were created more than once: I1.
    pub fn jobs_created_twice(&self) -> BTreeSet<&str> {
        let mut seen = BTreeSet::new();
        self.jobs.iter().filter(|job| !seen.insert((&job.name, &job.ledger))).map(|job| job.name.as_str()).collect()
    }

    /// Names of the objects of a resource, such as `jobs`, that are there.
    pub fn alive(&self, resource: &str) -> impl Iterator<Item = &str> {
        self.alive.get(resource).into_iter().flatten().map(String::as_str)
    }

    /// A custom resource, if it is there.
    pub fn object(&self, resource: &str, name: &str) -> Option<&Value> {
        self.objects.get(&(resource.to_owned(), name.to_owned()))
    }

    /// The custom resources of a kind that are there.
    pub fn objects(&self, resource: &str) -> impl Iterator<Item = &Value> {
        self.objects.iter().filter(move |((of, _), _)| of == resource).map(|(_, object)| object)
    }

    /// What broke an invariant, each with its number.
    pub fn broken(&self) -> &[String] {
        &self.broken
    }

    /// Number of the last change that was seen.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// How many times a custom resource was written.
    pub fn writes(&self) -> usize {
        self.writes
    }

    /// Takes a change over; a change that was seen already changes nothing.
    fn take(&mut self, event: &Event) -> Result<(), String> {
        let kv = &event.kv;
        let key = decoded(&kv.key)?;
        let key = String::from_utf8_lossy(&key).into_owned();
        let revision: u64 = kv.mod_revision.parse().map_err(|_| format!("{key} has no revision"))?;
        let Some((resource, namespace, name)) = parts(&key) else { return Ok(()) };
        if namespace != self.namespace {
            return Ok(());
        }
        let gone = event.type_.as_deref() == Some("DELETE");
        let created = kv.version == "1";
        let names = self.alive.entry(resource.to_owned()).or_default();
        if gone {
            names.remove(name)
        } else {
            names.insert(name.to_owned())
        };
        if resource == "jobs" && created && !gone {
            let ledger = label(&decoded(&kv.value)?, labels::LEDGER_UID).unwrap_or_default();
            self.jobs.push(CreatedJob { name: name.to_owned(), ledger, revision });
        }
        let mut object = Value::Null;
        if key.starts_with(&format!("{PREFIX}{GROUP}/")) {
            self.writes += 1;
            let place = (resource.to_owned(), name.to_owned());
            if gone {
                self.objects.remove(&place);
            } else {
                object = serde_json::from_slice(&decoded(&kv.value)?).map_err(|error| format!("{key}: {error}"))?;
                let before = if created { None } else { self.objects.get(&place) };
                self.broken.extend(invariants::broken(before, &object));
                self.objects.insert(place, object.clone());
            }
        }
        if gone || created || !object.is_null() {
            let what = if gone { "deleted" } else { ["changed", "created"][usize::from(created)] };
            let at = format!("{:.3}", self.began.elapsed().as_secs_f64());
            let line = json!({"at": at, "revision": revision, "what": what, "key": key, "object": object});
            let _ = writeln!(self.file, "{line}");
        }
        Ok(())
    }
}

/// Resource, namespace and name of an object, from its key: `/registry/jobs/n/x`, `/registry/collect.dev/collecttasks/n/x`.
fn parts(key: &str) -> Option<(&str, &str, &str)> {
    let rest = key.strip_prefix(PREFIX)?;
    let rest = rest.strip_prefix(GROUP).and_then(|rest| rest.strip_prefix('/')).unwrap_or(rest);
    let mut parts = rest.split('/');
    let found = (parts.next()?, parts.next()?, parts.next()?);
    parts.next().is_none().then_some(found)
}

/// Value of a label of an object in protobuf: an entry of a map is `0A len key 12 len value`.
fn label(object: &[u8], key: &str) -> Option<String> {
    let key = key.as_bytes();
    object.windows(key.len()).enumerate().filter(|(_, window)| *window == key).find_map(|(at, _)| {
        let [0x12, length, rest @ ..] = object.get(at + key.len()..)? else { return None };
        String::from_utf8(rest.get(..usize::from(*length))?.to_vec()).ok()
    })
}

fn decoded(text: &str) -> Result<Vec<u8>, String> {
    BASE64_STANDARD.decode(text).map_err(|error| format!("etcd's answer is not base64: {error}"))
}

/// Reads on and on. etcd may be restarted under it.
async fn read(etcd: String, shared: Arc<Shared>) {
    loop {
        let from = shared.book.lock().unwrap_or_else(PoisonError::into_inner).revision + 1;
        if let Ok(mut answers) = answers(&etcd, from).await {
            while let Some(answer) = answers.next().await {
                let mut book = shared.book.lock().unwrap_or_else(PoisonError::into_inner);
                if answer.canceled {
                    let since = answer.compact_revision.unwrap_or_default();
                    book.broken.push(format!("the history has a gap: changes from {from} to {since} are lost"));
                    shared.changed.send_replace(());
                    return;
                }
                for event in &answer.events {
                    if let Err(error) = book.take(event) {
                        book.broken.push(format!("the history can't be read: {error}"));
                    }
                    book.revision = book.revision.max(event.kv.mod_revision.parse().unwrap_or(0));
                }
                let _ = book.file.flush();
                drop(book);
                shared.changed.send_replace(());
            }
        }
        // Nothing announces that it is back.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// etcd's answers to a watch.
struct Answers(BufReader<tokio::net::TcpStream>);

/// Asks for all changes from a number on; for those to come if it is 0.
async fn answers(etcd: &str, from: u64) -> std::io::Result<Answers> {
    let (first, end) = (BASE64_STANDARD.encode(PREFIX), BASE64_STANDARD.encode(BEHIND));
    let body = json!({"create_request": {"key": first, "range_end": end, "start_revision": from.to_string()}});
    let stream = http::send("POST", etcd, "/v3/watch", &body.to_string()).await?;
    let mut answers = Answers(BufReader::new(stream));
    // The head.
    while answers.line().await.is_some_and(|line| !line.trim().is_empty()) {}
    Ok(answers)
}

impl Answers {
    /// The next answer; `None` when the connection is gone.
    async fn next(&mut self) -> Option<Answer> {
        let line = self.line().await?;
        Some(serde_json::from_str::<Message>(&line).ok()?.result)
    }

    async fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let length = self.0.read_line(&mut line).await.ok()?;
        (length > 0).then_some(line)
    }
}

#[derive(Deserialize)]
struct Message {
    result: Answer,
}

#[derive(Deserialize)]
struct Answer {
    header: Header,
    #[serde(default)]
    canceled: bool,
    compact_revision: Option<String>,
    #[serde(default)]
    events: Vec<Event>,
}

#[derive(Deserialize)]
struct Header {
    revision: String,
}

#[derive(Deserialize)]
struct Event {
    /// `DELETE`, or absent.
    #[serde(rename = "type")]
    type_: Option<String>,
    kv: Kv,
}

#[derive(Deserialize)]
struct Kv {
    key: String,
    mod_revision: String,
    /// `1` for a creation; absent for a deletion.
    #[serde(default)]
    version: String,
    #[serde(default)]
    value: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(type_: Option<&str>, key: &str, revision: u64, version: u64, value: &[u8]) -> Event {
        Event {
            type_: type_.map(str::to_owned),
            kv: Kv {
                key: BASE64_STANDARD.encode(key),
                mod_revision: revision.to_string(),
                version: version.to_string(),
                value: BASE64_STANDARD.encode(value),
            },
        }
    }

    fn book() -> Book {
        Book {
            namespace: "n".into(),
            file: BufWriter::new(tempfile::tempfile().unwrap()),
            began: Instant::now(),
            revision: 0,
            jobs: Vec::new(),
            alive: BTreeMap::new(),
            objects: BTreeMap::new(),
            broken: Vec::new(),
            writes: 0,
        }
    }

    fn job(uid: &str) -> Vec<u8> {
        let key = labels::LEDGER_UID;
        let (key_length, uid_length) = (u8::try_from(key.len()).unwrap(), u8::try_from(uid.len()).unwrap());
        // The name of the label also stands where it is no label, as in managed fields.
        let mut bytes = format!("f:{key}\"").into_bytes();
        bytes.extend([0x0a, key_length]);
        bytes.extend(key.bytes());
        bytes.extend([0x12, uid_length]);
        bytes.extend(uid.bytes());
        bytes
    }

    #[test]
    fn a_job_that_is_created_again_is_seen() {
        let mut book = book();
        book.take(&event(None, "/registry/jobs/n/a-1", 1, 1, &job("u"))).unwrap();
        book.take(&event(None, "/registry/jobs/n/a-1", 2, 2, &job("u"))).unwrap();
        assert_eq!(book.alive("jobs").collect::<Vec<_>>(), ["a-1"]);
        book.take(&event(Some("DELETE"), "/registry/jobs/n/a-1", 3, 0, b"")).unwrap();
        assert_eq!((book.jobs().len(), book.alive("jobs").count()), (1, 0));
        assert_eq!(book.jobs()[0], CreatedJob { name: "a-1".into(), ledger: "u".into(), revision: 1 });
        assert!(book.jobs_created_twice().is_empty());
        book.take(&event(None, "/registry/jobs/n/a-1", 4, 1, &job("u"))).unwrap();
        assert_eq!(book.jobs_created_twice(), BTreeSet::from(["a-1"]));
    }

    #[test]
    fn the_same_name_for_another_ledger_is_another_job() {
        let mut book = book();
        book.take(&event(None, "/registry/jobs/n/a-1", 1, 1, &job("u"))).unwrap();
        book.take(&event(None, "/registry/jobs/n/a-1", 2, 1, &job("v"))).unwrap();
        assert!(book.jobs_created_twice().is_empty());
    }

    #[test]
    fn other_namespaces_and_cluster_objects_are_left_out() {
        let mut book = book();
        for key in ["/registry/jobs/other/a-1", "/registry/namespaces/n", "/registry/services/specs/n/x"] {
            book.take(&event(None, key, 1, 1, b"")).unwrap();
        }
        assert!(book.alive.is_empty() && book.jobs().is_empty());
    }

    #[test]
    fn custom_resources_are_compared_with_what_they_were() {
        let mut book = book();
        let key = "/registry/collect.dev/collecttasks/n/t";
        let task = |progress: i64| {
            json!({"kind": "CollectTask", "metadata": {"name": "t"}, "status": {"run": 1, "progress": progress}})
                .to_string()
        };
        book.take(&event(None, key, 1, 1, task(50).as_bytes())).unwrap();
        assert_eq!(book.object("collecttasks", "t").unwrap()["status"]["progress"], 50);
        assert!(book.broken().is_empty());
        book.take(&event(None, key, 2, 2, task(40).as_bytes())).unwrap();
        assert!(book.broken()[0].starts_with("I10"), "{:?}", book.broken());
        book.take(&event(Some("DELETE"), key, 3, 0, b"")).unwrap();
        assert_eq!((book.objects("collecttasks").count(), book.writes()), (0, 3));
        // A new object of the same name owes nothing to the old one.
        book.take(&event(None, key, 4, 1, task(0).as_bytes())).unwrap();
        assert_eq!(book.broken().len(), 1);
    }
}
