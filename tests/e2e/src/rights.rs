//! Rights granted against rights used: what the chart gives the operator, and what the API servers' audit logs say that it asked for.
//!
//! While [`RECORD`] names a folder, each cluster that goes down leaves there what its operators asked of it ([`leave`], called by the
//! cluster's companion). When every suite has run, tests/rights.rs unites the records ([`read`]) and judges them ([`judge`]). A
//! single suite leaves no record and is not judged: it can't have used everything.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    fs::{self, File},
    io::{BufRead, BufReader, BufWriter, Seek, SeekFrom},
    path::{Path, PathBuf},
    process::Command,
};

use k8s_openapi::api::rbac::v1::PolicyRule;
use serde::{Deserialize, Serialize};

use crate::{Cluster, audit};

/// Environment variable with the folder of the records.
pub const RECORD: &str = "COLLECT_E2E_RIGHTS";

/// Name of the operator's ServiceAccount, of the chart's release and so of its roles, in whatever namespace they are.
const ACCOUNT: &str = "collect-operator";
/// Names of objects that are kept for each question: enough for rules about single objects.
const NAMES: usize = 8;
/// Annotation of an audit event with the authorizer's decision, and the one with its reason.
const DECISION: &str = "authorization.k8s.io/decision";
const REASON: &str = "authorization.k8s.io/reason";

/// Whether a request by a right is to be seen in the audit logs of a whole run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// There is no such request.
    Never,
    /// Only if two things meet that no test can have meet.
    ByChance,
}

/// Rights of which a run need not show a request, with the reason why they are granted all the same: group, resource, verb.
pub const UNSEEN: &[(&str, &str, &str, Seen, &str)] = &[
    ("collect.dev", "collecttasks/finalizers", "update", Seen::Never, OWNERS),
    ("collect.dev", "collectshards/finalizers", "update", Seen::Never, OWNERS),
    ("", "pods", "get", Seen::ByChance, "a worker reports before the watch has told of its pod"),
];
const OWNERS: &str =
    "the admission plugin OwnerReferencesPermissionEnforcement asks for it itself, without a request, where it is on";

/// What is asked by a right that every account has, with the reason: role, path or resource, verb.
pub const EVERYBODYS: &[(&str, &str, &str, &str)] = &[(
    "system:discovery",
    "/openapi/v3/apis/collect.dev/v1alpha1",
    "get",
    "helm test looks whether the API server has every field that the program knows",
)];

/// One thing that a role allows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Right {
    /// The role, by the name that it has for the release and namespace of the documentation, without the namespace.
    pub role: String,
    /// API group.
    pub group: String,
    /// Plural name, and `/subresource` where there is one; or the path of something that is no resource.
    pub resource: String,
    /// get, list, watch, create, update, patch, delete, deletecollection.
    pub verb: String,
    /// The one object; empty: all.
    pub name: String,
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { role, group, resource, verb, name } = self;
        let group = if group.is_empty() { "core" } else { group };
        write!(f, "{role}: {verb} {group} {resource} {name}")
    }
}

/// Questions of one kind that operators asked an API server.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Asked {
    /// The role that allowed it; none: it was refused.
    pub role: Option<String>,
    /// API group.
    pub group: String,
    /// Plural name, and `/subresource` where there is one; or the path of something that is no resource.
    pub resource: String,
    /// As in [`Right`].
    pub verb: String,
    /// Whether the account has its rights there: in its own namespace, or in all.
    pub within: bool,
    /// Objects that were named; of many, some.
    pub names: BTreeSet<String>,
    /// How often.
    pub times: u64,
    /// Who asked first, and where.
    pub example: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    verb: String,
    #[serde(rename = "requestURI")]
    uri: String,
    user: User,
    object_ref: Option<Object>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct User {
    username: String,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Object {
    api_group: String,
    resource: String,
    subresource: String,
    namespace: String,
    name: String,
}

/// A role as all installations call it: namespace and name of the release are those of the account.
fn common(role: &str, namespace: &str) -> String {
    role.strip_prefix(&format!("{namespace}-")).unwrap_or(role).to_owned()
}

/// The role that allowed a request, from the words of the authorizer: `RBAC: allowed by RoleBinding "a/n" of Role "b" to …`.
fn allowed_by(annotations: &BTreeMap<String, String>) -> Option<&str> {
    let reason = annotations.get(REASON).filter(|_| annotations.get(DECISION).is_some_and(|word| word == "allow"))?;
    let (_, role) = reason.split_once(" of Role \"").or_else(|| reason.split_once(" of ClusterRole \""))?;
    Some(role.split_once('"')?.0)
}

/// What the operators' accounts asked for, from an audit log; once for each kind of question.
///
/// # Errors
/// If the log can't be read.
pub fn asked(log: impl BufRead) -> std::io::Result<Vec<Asked>> {
    let mut found: BTreeMap<(String, Kind), Asked> = BTreeMap::new();
    let mut everywhere = BTreeSet::new();
    let account = format!(":{ACCOUNT}");
    for line in log.lines() {
        let line = line?;
        // Most lines are others'; reading them as JSON would take minutes.
        if !line.contains(&account) {
            continue;
        }
        // The last line may be half a line, if the API server was killed.
        let Ok(Line { verb, uri, user: User { username }, object_ref, annotations }) = serde_json::from_str(&line)
        else {
            continue;
        };
        let of = username.strip_prefix("system:serviceaccount:").and_then(|rest| rest.strip_suffix(&account));
        let Some(of) = of else { continue };
        let path = uri.split('?').next().unwrap_or_default();
        let object = object_ref.unwrap_or_else(|| Object { resource: path.to_owned(), ..Object::default() });
        let resource = match object.subresource.as_str() {
            "" => object.resource,
            subresource => format!("{}/{subresource}", object.resource),
        };
        let role = allowed_by(&annotations).map(|role| common(role, of));
        if role.as_deref() == Some(ACCOUNT) && annotations[REASON].contains(" of ClusterRole ") {
            everywhere.insert(username.clone());
        }
        let own = object.namespace == of;
        let kind = (role.clone(), object.api_group.clone(), resource.clone(), verb.clone(), own);
        let asked = found.entry((username.clone(), kind)).or_insert_with(|| Asked {
            role,
            group: object.api_group,
            resource,
            verb,
            within: own,
            names: BTreeSet::new(),
            times: 0,
            example: format!("{username}: {uri}"),
        });
        asked.times += 1;
        if !object.name.is_empty() && asked.names.len() < NAMES {
            asked.names.insert(object.name);
        }
    }
    let mut united = BTreeMap::new();
    for ((user, ..), mut one) in found {
        one.within |= everywhere.contains(&user);
        unite(&mut united, one);
    }
    Ok(united.into_values().collect())
}

/// What tells kinds of questions apart: role, group, resource, verb, and whether the account has its rights there.
type Kind = (Option<String>, String, String, String, bool);

fn unite(united: &mut BTreeMap<Kind, Asked>, one: Asked) {
    let key = (one.role.clone(), one.group.clone(), one.resource.clone(), one.verb.clone(), one.within);
    match united.get_mut(&key) {
        None => {
            united.insert(key, one);
        }
        Some(all) => {
            all.times += one.times;
            let room = NAMES.saturating_sub(all.names.len());
            let new: Vec<_> = one.names.difference(&all.names).take(room).cloned().collect();
            all.names.extend(new);
        }
    }
}

/// What is known of a cluster while it is up.
#[derive(Serialize, Deserialize)]
struct Up {
    /// Held until it is down.
    lock: PathBuf,
    /// Where its record begins in its audit log: a cluster may have been kept from an earlier run.
    from: u64,
}

/// Notes that a cluster is up and will leave a record; `lock` is held until it is down.
pub(crate) fn expect(cluster: &Cluster, lock: &Path) {
    if let Some(folder) = std::env::var_os(RECORD).map(PathBuf::from) {
        let up = Up { lock: lock.to_owned(), from: audit::now(cluster) };
        note(&folder, cluster.name, &up).expect("a record can be begun");
    }
}

fn note(folder: &Path, cluster: &str, up: &Up) -> std::io::Result<()> {
    fs::create_dir_all(folder)?;
    fs::write(folder.join(format!("{cluster}.up")), serde_json::to_vec(up)?)
}

/// Leaves the record of a cluster, from its audit log. A second one of the same name is added to the first.
///
/// # Errors
/// If the log can't be read, or the record not be written.
pub fn leave(folder: &Path, cluster: &str, log: &Path) -> std::io::Result<()> {
    let up: Up = serde_json::from_slice(&fs::read(folder.join(format!("{cluster}.up")))?)?;
    let mut log = File::open(log)?;
    log.seek(SeekFrom::Start(up.from))?;
    let log = BufReader::with_capacity(1 << 20, log);
    let file = folder.join(format!("{cluster}.json"));
    let mut united = BTreeMap::new();
    let before: Vec<Asked> = match File::open(&file) {
        Ok(file) => serde_json::from_reader(BufReader::new(file))?,
        Err(_) => Vec::new(),
    };
    for one in before.into_iter().chain(asked(log)?) {
        unite(&mut united, one);
    }
    let whole = folder.join(format!("{cluster}.json.new"));
    serde_json::to_writer_pretty(BufWriter::new(File::create(&whole)?), &united.into_values().collect::<Vec<_>>())?;
    fs::rename(whole, file)
}

/// All records together, once every cluster that was up is down.
///
/// # Panics
/// If a cluster left none.
pub fn read(folder: &Path) -> Vec<Asked> {
    let mut united = BTreeMap::new();
    let mut files: Vec<PathBuf> =
        fs::read_dir(folder).expect("there are records").map(|entry| entry.expect("it can be read").path()).collect();
    files.sort();
    for up in files.iter().filter(|file| file.extension().is_some_and(|extension| extension == "up")) {
        // Its companion takes it down when its suite is over, and gives the lock free after that.
        let lock = serde_json::from_slice::<Up>(&fs::read(up).expect("it can be read")).expect("it is whole").lock;
        let free = Command::new("flock").args(["--timeout", "120"]).arg(&lock).arg("true").status();
        assert!(free.expect("flock runs").success(), "{} is down: {} is free", up.display(), lock.display());
        let record = up.with_extension("json");
        let text = fs::read(&record).unwrap_or_else(|error| panic!("{}: {error}", record.display()));
        let all: Vec<Asked> = serde_json::from_slice(&text).expect("a record is what leave() writes");
        for one in all {
            unite(&mut united, one);
        }
    }
    united.into_values().collect()
}

/// The operator's rights, from roles as the chart renders them for a release of its own name in this namespace.
pub fn granted(roles: &str, namespace: &str) -> BTreeSet<Right> {
    let mut rights = BTreeSet::new();
    for document in serde_yaml::Deserializer::from_str(roles) {
        let role = Role::deserialize(document).expect("helm renders objects");
        if role.kind == "Role" || role.kind == "ClusterRole" {
            let name = common(&role.metadata.name, namespace);
            rights.extend(role.rules.iter().flat_map(|rule| expanded(&name, rule)));
        }
    }
    rights
}

/// A Role or a ClusterRole, or something else with a name.
#[derive(Deserialize)]
struct Role {
    kind: String,
    metadata: Metadata,
    #[serde(default)]
    rules: Vec<PolicyRule>,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
}

fn expanded(role: &str, rule: &PolicyRule) -> Vec<Right> {
    let all = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
    let or_any = |list: Vec<String>| if list.is_empty() { vec![String::new()] } else { list };
    let right = |group: &str, resource: &str, verb: &str, name: &str| Right {
        role: role.to_owned(),
        group: group.to_owned(),
        resource: resource.to_owned(),
        verb: verb.to_owned(),
        name: name.to_owned(),
    };
    let mut rights = Vec::new();
    for verb in &rule.verbs {
        rights.extend(all(&rule.non_resource_urls).iter().map(|path| right("", path, verb, "")));
        for group in all(&rule.api_groups) {
            for resource in all(&rule.resources) {
                let names = or_any(all(&rule.resource_names));
                rights.extend(names.iter().map(|name| right(&group, &resource, verb, name)));
            }
        }
    }
    rights
}

/// The operator's rights as a page tells them, in a table with the columns role, API group, resources and verbs.
pub fn told(page: &str, namespace: &str) -> BTreeSet<Right> {
    let codes = |cell: &str| -> Vec<String> { cell.split('`').skip(1).step_by(2).map(str::to_owned).collect() };
    let mut rights = BTreeSet::new();
    for line in page.lines() {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [role, group, resources, verbs] = cells[..] else { continue };
        let Some(role) = codes(role).pop() else { continue };
        let (resources, names) = resources.split_once(" named ").unwrap_or((resources, ""));
        let rule = PolicyRule {
            api_groups: Some(vec![if group == "core" { String::new() } else { group.to_owned() }]),
            resources: Some(codes(resources)),
            resource_names: Some(codes(names)),
            verbs: verbs.split(", ").map(str::to_owned).collect(),
            ..PolicyRule::default()
        };
        rights.extend(expanded(&common(&role, namespace), &rule));
    }
    rights
}

/// What differs between the rights that are granted and those that were used, a sentence each.
pub fn judge(granted: &BTreeSet<Right>, asked: &[Asked]) -> Vec<String> {
    let mut problems = Vec::new();
    let mut used = BTreeSet::new();
    for one in asked {
        let Asked { group, resource, verb, times, example, .. } = one;
        let mut fitting: Vec<&Right> = granted.iter().filter(|right| one.is_by(right)).collect();
        match &one.role {
            // Refused although granted: the roles came after the operator, or went before it, as with its namespace.
            None if one.within && !fitting.is_empty() => {}
            None => problems.push(format!("refused {times} times: {verb} {group} {resource}; first {example}")),
            Some(role) => {
                fitting.retain(|right| right.role == *role);
                let asked = (role.as_str(), resource.as_str(), verb.as_str());
                let everybodys = EVERYBODYS.iter().any(|(role, resource, verb, _)| (*role, *resource, *verb) == asked);
                if fitting.is_empty() && !everybodys {
                    problems.push(format!(
                        "the chart does not grant {verb} {group} {resource}, {role} does; first {example}"
                    ));
                }
                used.extend(fitting);
            }
        }
    }
    for right in granted {
        match (used.contains(right), unseen(right)) {
            (false, None) => problems.push(format!("granted and never used: {right}")),
            (true, Some(Seen::Never)) => problems.push(format!("an exception for what is used: {right}")),
            _ => {}
        }
    }
    let excepted = granted.iter().filter_map(unseen).count();
    if excepted != UNSEEN.len() {
        problems.push(format!("{} exceptions, of which {excepted} are granted", UNSEEN.len()));
    }
    problems
}

/// The exception for a right, if there is one.
fn unseen(right: &Right) -> Option<Seen> {
    let granted = (right.group.as_str(), right.resource.as_str(), right.verb.as_str());
    UNSEEN.iter().find(|(group, resource, verb, ..)| (*group, *resource, *verb) == granted).map(|(.., seen, _)| *seen)
}

impl Asked {
    /// Whether this right allows it.
    fn is_by(&self, right: &Right) -> bool {
        let same = (&right.group, &right.resource, &right.verb) == (&self.group, &self.resource, &self.verb);
        same && (right.name.is_empty() || self.names.contains(&right.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROLES: &str = r#"---
# Source: the chart
apiVersion: v1
kind: ServiceAccount
metadata: {name: collect-operator}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: collect-system-collect-operator}
rules:
  - {apiGroups: [collect.dev], resources: [collecttasks/finalizers, collectshards/finalizers], verbs: [update]}
  - {apiGroups: [batch], resources: [jobs], verbs: [list, create]}
  - {apiGroups: [""], resources: [pods], verbs: [get]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: collect-operator-lease, namespace: collect-system}
rules:
  - {apiGroups: [coordination.k8s.io], resources: [leases], resourceNames: [collect-operator], verbs: [get]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: collect-operator-lease, namespace: collect-system}
"#;

    /// A line of an audit log: account, verb, group, resource, namespace, name, and the kind and name of the role.
    fn line(namespace: &str, verb: &str, object: [&str; 4], role: Option<(&str, &str)>) -> String {
        let [group, resource, of, name] = object;
        let (decision, reason) = match role {
            Some((kind, role)) => {
                ("allow", format!(r#"RBAC: allowed by {kind}Binding "a" of {kind} "{role}" to ServiceAccount "b""#))
            }
            None => ("forbid", String::new()),
        };
        let line = serde_json::json!({
            "verb": verb, "requestURI": format!("/apis/{group}/{resource}?limit=5"),
            "user": {"username": format!("system:serviceaccount:{namespace}:collect-operator")},
            "objectRef": {"apiGroup": group, "resource": resource, "namespace": of, "name": name},
            "annotations": {DECISION: decision, REASON: reason},
        });
        format!("{line}\n")
    }

    /// Everything that the roles grant, asked for by an operator of all namespaces and by one of a single one.
    fn everything() -> String {
        let all = Some(("ClusterRole", "collect-system-collect-operator"));
        let own = Some(("Role", "collect-operator"));
        [
            line("collect-system", "list", ["batch", "jobs", "", ""], all),
            line("weather", "create", ["batch", "jobs", "weather", "stations-0-a1"], own),
            line(
                "collect-system",
                "get",
                ["coordination.k8s.io", "leases", "collect-system", "collect-operator"],
                Some(("Role", "collect-operator-lease")),
            ),
        ]
        .concat()
    }

    fn problems(log: &str) -> Vec<String> {
        judge(&granted(ROLES, "collect-system"), &asked(log.as_bytes()).expect("it can be read"))
    }

    #[test]
    fn what_is_granted_and_used_is_no_problem() {
        assert_eq!(granted(ROLES, "collect-system").len(), 6);
        assert_eq!(problems(&everything()), Vec::<String>::new());
    }

    #[test]
    fn what_is_granted_and_not_used_is_one() {
        let first = everything().lines().skip(1).collect::<Vec<_>>().join("\n");
        assert_eq!(problems(&first), ["granted and never used: collect-operator: list batch jobs "]);
    }

    #[test]
    fn a_right_to_one_object_is_used_by_that_object_only() {
        let other = everything().replace(r#""name":"collect-operator""#, r#""name":"another""#);
        let problems = problems(&other);
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems[0].starts_with("the chart does not grant get coordination.k8s.io leases"), "{problems:?}");
    }

    #[test]
    fn what_another_role_allows_is_one() {
        let log = everything() + &line("weather", "get", ["", "nodes", "", "a"], Some(("ClusterRole", "admin")));
        assert_eq!(problems(&log).len(), 1);
    }

    #[test]
    fn a_refusal_is_one_unless_the_role_only_came_late_or_went_early() {
        let refused = |of: &str, resource: &str| {
            problems(&(everything() + &line("weather", "list", ["batch", resource, of, ""], None))).len()
        };
        assert_eq!(refused("weather", "jobs"), 0);
        assert_eq!(refused("weather", "cronjobs"), 1);
        assert_eq!(refused("", "jobs"), 1, "an operator of one namespace may not ask for all");
        let of_all = line("collect-system", "list", ["batch", "jobs", "weather", ""], None);
        assert_eq!(problems(&(everything() + &of_all)), Vec::<String>::new());
    }

    #[test]
    fn other_accounts_do_not_count() {
        let others = line("weather", "list", ["batch", "cronjobs", "weather", ""], None)
            .replace(":collect-operator", ":collect-operators");
        assert_eq!(problems(&(everything() + &others)), Vec::<String>::new());
    }

    #[test]
    fn records_add_up() {
        let folder = tempfile::tempdir().expect("a folder");
        let log = folder.path().join("audit.log");
        let before = line("weather", "list", ["batch", "cronjobs", "weather", ""], None);
        fs::write(&log, before.clone() + &everything()).expect("a log");
        let up = Up { lock: folder.path().join("one.lock"), from: before.len() as u64 };
        note(folder.path(), "one", &up).expect("a note");
        leave(folder.path(), "one", &log).expect("a record");
        leave(folder.path(), "one", &log).expect("a record");
        let all = read(folder.path());
        assert_eq!(all.iter().map(|one| one.times).sum::<u64>(), 6);
        assert_eq!(judge(&granted(ROLES, "collect-system"), &all), Vec::<String>::new());
    }

    #[test]
    fn a_page_tells_the_same_rights() {
        let page = "| Role | API group | Resources | Verbs |\n| --- | --- | --- | --- |\n\
            | ClusterRole `collect-system-collect-operator` | collect.dev | `collecttasks/finalizers`, `collectshards/finalizers` | update |\n\
            | ClusterRole `collect-system-collect-operator` | batch | `jobs` | list, create |\n\
            | ClusterRole `collect-system-collect-operator` | core | `pods` | get |\n\
            | Role `collect-operator-lease` | coordination.k8s.io | `leases` named `collect-operator` | get |\n";
        assert_eq!(told(page, "collect-system"), granted(ROLES, "collect-system"));
    }
}
