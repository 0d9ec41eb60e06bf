//! Who wrote what: the API server's audit log, which no client can forget to fill.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead, BufReader},
};

use serde::Deserialize;

use crate::Space;

/// One answered request.
#[derive(Clone, Debug)]
pub struct Request {
    /// Who asked.
    pub user: String,
    /// get, list, watch, create, update, patch, delete, deletecollection.
    pub verb: String,
    /// Plural name, and `/subresource` where there is one.
    pub resource: String,
    /// Name of the object, where the request has one.
    pub name: String,
    /// HTTP status of the answer.
    pub code: u16,
}

impl Request {
    /// Whether it is of a kind that changes something.
    pub fn is_write(&self) -> bool {
        !matches!(self.verb.as_str(), "get" | "list" | "watch")
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
    let log = space.cluster.state.join("audit.log");
    let log = BufReader::new(File::open(&log).unwrap_or_else(|error| panic!("{}: {error}", log.display())));
    let of_space = format!("\"namespace\":\"{}\"", space.name);
    let lines = log.lines().map_while(Result::ok).filter(|line| line.contains(&of_space));
    lines
        .filter_map(|line| serde_json::from_str::<Line>(&line).ok())
        .filter(|line| line.object_ref.namespace == space.name)
        .map(|line| Request {
            user: line.user.username,
            verb: line.verb,
            resource: match line.object_ref.subresource.as_str() {
                "" => line.object_ref.resource,
                subresource => format!("{}/{subresource}", line.object_ref.resource),
            },
            name: line.object_ref.name,
            code: line.response_status.code,
        })
        .collect()
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
