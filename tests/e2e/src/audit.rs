//! Who wrote what: the API server's audit log, which no client can forget to fill.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead, BufReader, Seek, SeekFrom},
    path::PathBuf,
};

use serde::Deserialize;

use crate::{Cluster, Space};

/// One answered request.
#[derive(Clone, Debug)]
pub struct Request {
    /// Who asked.
    pub user: String,
    /// get, list, watch, create, update, patch, delete, deletecollection.
    pub verb: String,
    /// Plural name, and `/subresource` where there is one.
    pub resource: String,
    /// Namespace of the object, where it has one.
    pub namespace: String,
    /// Name of the object, where the request has one.
    pub name: String,
    /// HTTP status of the answer.
    pub code: u16,
}

impl Request {
    /// Whether it is of a kind that changes something. A review is a question, though it is asked by create.
    pub fn is_write(&self) -> bool {
        !matches!(self.verb.as_str(), "get" | "list" | "watch") && !self.resource.ends_with("reviews")
    }

    /// Whether it was carried out.
    pub fn succeeded(&self) -> bool {
        (200..300).contains(&self.code)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    verb: String,
    user: User,
    #[serde(default)]
    object_ref: Object,
    #[serde(default)]
    response_status: Status,
}

#[derive(Deserialize)]
struct User {
    username: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Object {
    resource: String,
    subresource: String,
    namespace: String,
    name: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Status {
    code: u16,
}

/// The answered requests about objects of a namespace, in the order of their answers.
pub fn requests(space: &Space) -> Vec<Request> {
    let of_space = format!("\"namespace\":\"{}\"", space.name);
    let lines = lines(space.cluster, 0, now(space.cluster)).filter(|line| line.contains(&of_space));
    lines.filter_map(|line| request(&line)).filter(|request| request.namespace == space.name).collect()
}

/// The requests answered between two places, read one after the other: the log of a long run is too large to be held.
pub fn between(cluster: &Cluster, from: u64, to: u64) -> impl Iterator<Item = Request> + use<> {
    lines(cluster, from, to).filter_map(|line| request(&line))
}

/// A place in the log: what was answered so far lies before it.
pub fn now(cluster: &Cluster) -> u64 {
    let path = path(cluster);
    path.metadata().unwrap_or_else(|error| panic!("{}: {error}", path.display())).len()
}

fn path(cluster: &Cluster) -> PathBuf {
    cluster.state.join("audit.log")
}

fn lines(cluster: &Cluster, from: u64, to: u64) -> impl Iterator<Item = String> + use<> {
    let path = path(cluster);
    let mut log = File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    log.seek(SeekFrom::Start(from)).expect("a place in the log can be found");
    let mut place = from;
    BufReader::with_capacity(1 << 20, log).lines().map_while(Result::ok).take_while(move |line| {
        let begins = place;
        place += line.len() as u64 + 1;
        begins < to
    })
}

fn request(line: &str) -> Option<Request> {
    let line: Line = serde_json::from_str(line).ok()?;
    Some(Request {
        user: line.user.username,
        verb: line.verb,
        resource: match line.object_ref.subresource.as_str() {
            "" => line.object_ref.resource,
            subresource => format!("{}/{subresource}", line.object_ref.resource),
        },
        namespace: line.object_ref.namespace,
        name: line.object_ref.name,
        code: line.response_status.code,
    })
}

/// Writes of a user that were asked for, carried out or not, by verb and resource.
pub fn writes_by(requests: &[Request], user: &str) -> BTreeMap<String, usize> {
    let mut writes = BTreeMap::new();
    for request in requests.iter().filter(|request| request.user == user && request.is_write()) {
        *writes.entry(format!("{} {}", request.verb, request.resource)).or_default() += 1;
    }
    writes
}

/// Names of Jobs that were created more than once.
///
/// A name is f(shard uid, attempt), so this is I1: at most one Job ever exists for an attempt, over all history.
pub fn jobs_created_twice(requests: &[Request]) -> Vec<String> {
    let mut created: BTreeMap<&str, usize> = BTreeMap::new();
    let creations = requests.iter().filter(|request| request.verb == "create" && request.resource == "jobs");
    for request in creations.filter(|request| request.succeeded()) {
        *created.entry(&request.name).or_default() += 1;
    }
    assert!(!created.is_empty(), "the audit log knows of no Job at all");
    assert!(!created.contains_key(""), "the audit log names the Jobs that were created");
    created.into_iter().filter(|(_, count)| *count > 1).map(|(name, _)| name.to_owned()).collect()
}
