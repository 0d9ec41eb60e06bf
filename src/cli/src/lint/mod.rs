//! `lint`: judges files as the API server would, without one, and adds advice.
//!
//! The definitions are those that this program was built with. Errors are what the API server would refuse, in its words;
//! warnings are advice, and nothing is refused for them.

mod advice;
mod document;
mod rules;
mod schema;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use collect_api::{CollectTaskSpec, GROUP, VERSION, crd};
use regex::Regex;
use serde::Serialize;
use serde_json::{Map, Value, json};

use self::{
    rules::Rules,
    schema::{Checker, Kind, Place, Problem, quoted},
};
use crate::{
    error::Error,
    exit::Exit,
    output::{self, Encoding, Tone},
    session::Session,
};

/// Judge files as the API server would, without one, and give advice.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Files or folders with CollectTasks, in YAML or JSON; - is standard input. Repeatable.
    #[arg(short = 'f', long = "filename", required = true, num_args = 1.., value_name = "FILE")]
    files: Vec<PathBuf>,
    /// File with the objects as they are now: rules about changes are checked too.
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// Fail on warnings too.
    #[arg(long)]
    strict: bool,
    /// Form of the output: a line for each finding if not given.
    #[arg(short, long, value_enum, value_name = "FORM")]
    output: Option<Encoding>,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The API server refuses it.
    Error,
    /// It is accepted.
    Warning,
}

/// Something to say about a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Name of the file.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Document within the file, from 0.
    pub document: usize,
    /// `kind/name` of the object; empty where it has none.
    pub object: String,
    /// How bad it is.
    pub severity: Severity,
    /// Field, as API servers write it; empty for the object itself.
    pub field: String,
    /// What is wrong.
    pub message: String,
}

/// Runs the command.
pub async fn run(args: &Args, session: &Session) -> Result<Exit, Error> {
    let mut linter = Linter::new()?;
    let old = match &args.against {
        None => BTreeMap::new(),
        Some(file) => objects_of(&file.display().to_string(), &read(file)?)?,
    };
    let mut findings = Vec::new();
    let mut judged = 0;
    for file in files(&args.files)? {
        let text = read(&file)?;
        let (found, objects) = linter.file(&name_of(&file), &text, &old);
        findings.extend(found);
        judged += objects;
    }
    let errors = findings.iter().filter(|finding| finding.severity == Severity::Error).count();
    let warnings = findings.len() - errors;
    if judged == 0 && errors == 0 {
        return Err(Error::Usage(format!("no object of {GROUP} is in these files; name files with CollectTasks")));
    }
    match args.output {
        Some(encoding) => {
            let all = json!({"objects": judged, "errors": errors, "warnings": warnings, "findings": findings});
            output::print(&output::encode(encoding, &all)?)?;
        }
        None => {
            output::print(&lines(&findings, session.style()))?;
            output::remark(&format!("{judged} objects, {errors} errors, {warnings} warnings"));
        }
    }
    Ok(if errors > 0 || (args.strict && warnings > 0) { Exit::Failed } else { Exit::Done })
}

/// A line for each finding: `file:line: error: field: message`.
fn lines(findings: &[Finding], style: output::Style) -> String {
    let mut text = String::new();
    for finding in findings {
        let severity = match finding.severity {
            Severity::Error => style.paint(Tone::Bad, "error"),
            Severity::Warning => style.paint(Tone::Warning, "warning"),
        };
        let field = if finding.field.is_empty() { String::new() } else { format!("{}: ", finding.field) };
        text.push_str(&format!("{}:{}: {severity}: {field}{}\n", finding.file, finding.line, finding.message));
    }
    text
}

fn name_of(file: &Path) -> String {
    if file.as_os_str() == "-" { "stdin".to_owned() } else { file.display().to_string() }
}

fn read(file: &Path) -> Result<String, Error> {
    let text = if file.as_os_str() == "-" { io::read_to_string(io::stdin()) } else { fs::read_to_string(file) };
    text.map_err(|error| Error::File(name_of(file), error))
}

/// The files themselves, and those of the folders, all the way down, in order of their names.
fn files(named: &[PathBuf]) -> Result<Vec<PathBuf>, Error> {
    let mut all = Vec::new();
    for path in named {
        if path.as_os_str() != "-" && path.is_dir() {
            let entries = fs::read_dir(path).and_then(Iterator::collect::<io::Result<Vec<_>>>);
            let entries = entries.map_err(|error| Error::File(name_of(path), error))?;
            let mut inner: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).collect();
            inner.retain(|path| path.is_dir() || is_manifest(path));
            inner.sort();
            all.extend(files(&inner)?);
        } else {
            all.push(path.clone());
        }
    }
    Ok(all)
}

fn is_manifest(path: &Path) -> bool {
    path.extension()
        .and_then(|extension| extension.to_str())
        .is_some_and(|extension| matches!(extension, "yaml" | "yml" | "json"))
}

/// Objects by kind and name.
type Objects = BTreeMap<(String, String), Value>;

fn objects_of(file: &str, text: &str) -> Result<Objects, Error> {
    let documents = document::read(text).map_err(|error| Error::Usage(format!("{file}:{}: {error}", error.line)))?;
    let mut objects = Objects::new();
    for document in &documents {
        for (_, object) in members(&document.value) {
            objects.insert(
                (text_at(object, "/kind").to_owned(), text_at(object, "/metadata/name").to_owned()),
                object.clone(),
            );
        }
    }
    Ok(objects)
}

/// The objects of a document with their places: itself, or those of a List.
fn members(value: &Value) -> Vec<(Place, &Value)> {
    match value.get("items").and_then(Value::as_array) {
        Some(items) if text_at(value, "/kind").ends_with("List") => items
            .iter()
            .enumerate()
            .map(|(index, item)| (Place { field: String::new(), pointer: format!("/items/{index}") }, item))
            .collect(),
        _ => vec![(Place::default(), value)],
    }
}

fn text_at<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The one CollectTask of a text, if the API server would take it: for commands that look at a task before it exists.
pub fn task(file: &str, text: &str) -> Result<(String, CollectTaskSpec), Error> {
    let (findings, _) = Linter::new()?.file(file, text, &Objects::new());
    if let Some(first) = findings.iter().find(|finding| finding.severity == Severity::Error) {
        let field = if first.field.is_empty() { String::new() } else { format!("{}: ", first.field) };
        return Err(Error::Usage(format!(
            "{file}:{}: {field}{}; `kubectl collect lint -f {file}` tells all",
            first.line, first.message
        )));
    }
    let tasks: Vec<_> = objects_of(file, text)?.into_iter().filter(|((kind, _), _)| kind == "CollectTask").collect();
    let [((_, name), task)] = tasks.as_slice() else {
        return Err(Error::Usage(format!("{file} holds {} CollectTasks; this command takes one", tasks.len())));
    };
    let spec = task.get("spec").cloned().unwrap_or_default();
    let spec = serde_json::from_value(spec).map_err(|error| Error::Usage(format!("{file}: spec: {error}")))?;
    Ok((name.clone(), spec))
}

/// Members of `metadata` that people may write, and those that the API server writes.
const METADATA: [&str; 15] = [
    "annotations",
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generateName",
    "generation",
    "labels",
    "managedFields",
    "name",
    "namespace",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
];

/// What a name of an object must look like.
const NAME_PATTERN: &str = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";

/// Judges objects by the definitions that this program was built with.
pub struct Linter {
    schemas: BTreeMap<String, Value>,
    /// Where the kinds that can be scaled hold their number of replicas.
    scales: BTreeMap<String, String>,
    checker: Checker,
    rules: Rules,
    name: Option<Regex>,
}

impl Linter {
    /// Reads the definitions.
    pub fn new() -> Result<Self, Error> {
        let definitions = crd::all().map_err(|error| Error::Encode(error.to_string()))?;
        let (mut schemas, mut scales) = (BTreeMap::new(), BTreeMap::new());
        for (_, definition) in &definitions {
            let kind = text_at(definition, "/spec/names/kind").to_owned();
            let scale = text_at(definition, "/spec/versions/0/subresources/scale/specReplicasPath");
            if !scale.is_empty() {
                scales.insert(kind.clone(), scale.to_owned());
            }
            if let Some(schema) = definition.pointer("/spec/versions/0/schema/openAPIV3Schema") {
                schemas.insert(kind, schema.clone());
            }
        }
        let name = Regex::new(&format!("^(?:{NAME_PATTERN})$")).ok();
        Ok(Self { schemas, scales, checker: Checker::default(), rules: Rules::default(), name })
    }

    /// Findings about a file, and how many objects of ours are in it.
    pub fn file(&mut self, file: &str, text: &str, old: &Objects) -> (Vec<Finding>, usize) {
        let finding = |line: usize, document: usize, severity: Severity, message: String| Finding {
            file: file.to_owned(),
            line,
            document,
            object: String::new(),
            severity,
            field: String::new(),
            message,
        };
        let documents = match document::read(text) {
            Ok(documents) => documents,
            Err(error) => return (vec![finding(error.line, 0, Severity::Error, error.what)], 0),
        };
        let mut findings = Vec::new();
        let mut judged = 0;
        for (number, document) in documents.iter().enumerate() {
            let first = findings.len();
            for (line, key) in &document.repeated {
                let message = format!("key {} already set in map", quoted(key));
                findings.push(finding(*line, number, Severity::Error, message));
            }
            for (root, object) in members(&document.value) {
                let api_version = text_at(object, "/apiVersion");
                if !api_version.is_empty() && !api_version.starts_with(&format!("{GROUP}/")) {
                    continue;
                }
                judged += 1;
                let kind = text_at(object, "/kind").to_owned();
                let name = text_at(object, "/metadata/name").to_owned();
                let place = |field: &str, pointer: &str, severity: Severity, message: String| Finding {
                    object: format!("{kind}/{name}"),
                    field: field.to_owned(),
                    ..finding(document.line_of(pointer), number, severity, message)
                };
                let before = old.get(&(kind.clone(), name.clone()));
                let problems = self.object(object, before, &root);
                let is_refused = !problems.is_empty();
                findings.extend(
                    problems
                        .into_iter()
                        .map(|problem| place(&problem.field, &problem.pointer, Severity::Error, problem.message)),
                );
                let spec = object.get("spec").cloned().map(serde_json::from_value::<CollectTaskSpec>);
                if kind == "CollectTask"
                    && let Some(Ok(spec)) = spec
                    && !is_refused
                {
                    findings.extend(advice::advise(&name, &spec).into_iter().map(|advice| {
                        let pointer = format!("{}{}", root.pointer, advice.pointer);
                        place(&advice.field, &pointer, Severity::Warning, advice.message)
                    }));
                }
            }
            if let Some(of_document) = findings.get_mut(first..) {
                of_document.sort_by_key(|finding| (finding.line, finding.severity));
            }
        }
        (findings, judged)
    }

    /// What the API server would say to an object; nothing if it would take it.
    pub fn object(&mut self, object: &Value, old: Option<&Value>, root: &Place) -> Vec<Problem> {
        let mut problems = Vec::new();
        let (api_version, kind) = (text_at(object, "/apiVersion"), text_at(object, "/kind"));
        let Some(schema) = self.schemas.get(kind).filter(|_| api_version == format!("{GROUP}/{VERSION}")) else {
            let message = format!("no matches for kind {} in version {}", quoted(kind), quoted(api_version));
            return vec![root.problem(Kind::Blocking, message)];
        };
        decoding(schema, object, root, &mut problems);
        self.metadata(object, old, root, &mut problems);
        let stored = |object: &Value| schema::without_nulls(schema, &as_stored(object));
        let whole = stored(object);
        let before = old.map(stored);
        self.checker.check(schema, &whole, before.as_ref(), root, &mut problems);
        if let Some(path) = self.scales.get(kind) {
            schema::check_scale(path, &whole, root, &mut problems);
        }
        if problems.iter().any(|problem| problem.kind == Kind::Blocking) {
            let message = "Invalid value: null: some validation rules were not checked because the object was invalid; correct the existing errors to complete validation";
            problems.push(root.problem(Kind::Plain, message.into()));
        } else {
            self.rules.check(schema, &whole, before.as_ref(), root, &mut problems);
        }
        problems
    }

    /// The object's name, as every kind has it.
    fn metadata(&self, object: &Value, old: Option<&Value>, root: &Place, out: &mut Vec<Problem>) {
        if old.is_some() {
            return;
        }
        let at = root.child("metadata");
        let prefix = text_at(object, "/metadata/generateName");
        let name = match text_at(object, "/metadata/name") {
            "" if prefix.is_empty() => {
                let message = "Required value: name or generateName is required";
                return out.push(at.child("name").problem(Kind::Blocking, message.into()));
            }
            "" => format!("{prefix}00000"),
            name => name.to_owned(),
        };
        let here = at.child("name");
        let shown = quoted(&name);
        if name.len() > 253 {
            out.push(here.problem(Kind::Plain, format!("Invalid value: {shown}: must be no more than 253 bytes")));
        }
        if !self.name.as_ref().is_some_and(|pattern| pattern.is_match(&name)) {
            out.push(here.problem(
                Kind::Plain,
                format!(
                    "Invalid value: {shown}: a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '{NAME_PATTERN}')"
                ),
            ));
        }
    }
}

/// The object as the rules see it: without its status, and of its metadata only the name.
fn as_stored(object: &Value) -> Value {
    let mut whole = Map::new();
    for name in ["apiVersion", "kind", "spec"] {
        if let Some(value) = object.get(name) {
            whole.insert(name.to_owned(), value.clone());
        }
    }
    let (name, prefix) = (text_at(object, "/metadata/name"), text_at(object, "/metadata/generateName"));
    let name = if name.is_empty() { format!("{prefix}00000") } else { name.to_owned() };
    whole.insert("metadata".to_owned(), json!({"name": name}));
    Value::Object(whole)
}

/// What can't be decoded: fields that nobody knows, and labels that are no texts.
fn decoding(schema: &Value, object: &Value, root: &Place, out: &mut Vec<Problem>) {
    let unknown = |at: Place| {
        let message = format!("unknown field \"{}\"", at.field);
        at.problem(Kind::Decoding, message)
    };
    for (name, value) in object.as_object().into_iter().flatten() {
        match name.as_str() {
            "apiVersion" | "kind" => {}
            "metadata" => {
                let at = root.child(name);
                for (member, inner) in value.as_object().into_iter().flatten() {
                    if !METADATA.contains(&member.as_str()) {
                        out.push(unknown(at.child(member)));
                    }
                    if !matches!(member.as_str(), "labels" | "annotations") {
                        continue;
                    }
                    for (key, word) in inner.as_object().into_iter().flatten() {
                        let type_ = match word {
                            Value::String(_) | Value::Null => continue,
                            Value::Number(_) => "number",
                            Value::Bool(_) => "bool",
                            Value::Array(_) => "array",
                            Value::Object(_) => "object",
                        };
                        let message = format!(
                            "json: cannot unmarshal {type_} into Go struct field ObjectMeta.metadata.{member} of type string"
                        );
                        out.push(at.child(member).child(key).problem(Kind::Decoding, message));
                    }
                }
            }
            _ => match schema.get("properties").and_then(|properties| properties.get(name)) {
                Some(inner) => schema::unknown_fields(inner, value, &root.child(name), out),
                None => out.push(unknown(root.child(name))),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const SMALLEST: &str = "apiVersion: collect.dev/v1alpha1
kind: CollectTask
metadata: {name: stations}
spec:
  source: {http: {url: \"https://weather.example/stations\", total: $.total}}
  record: {key: [id]}
  sink: {objectStore: {url: \"s3://lake/stations\"}}
";

    fn said(text: &str) -> Vec<String> {
        let (findings, _) = Linter::new().unwrap().file("f.yaml", text, &Objects::new());
        lines(&findings, output::Style::PLAIN).lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_good_file_is_silent() {
        assert_eq!(said(SMALLEST), [""; 0]);
    }

    #[test]
    fn errors_have_the_line_and_the_api_servers_words() {
        let text = SMALLEST.replace("  record: {key: [id]}\n", "  record: {key: []}\n  paralelism: 3\n");
        assert_eq!(
            said(&text),
            [
                "f.yaml:6: error: spec.record.key: Invalid value: 0: spec.record.key in body should have at least 1 items",
                "f.yaml:7: error: spec.paralelism: unknown field \"spec.paralelism\"",
            ]
        );
    }

    #[test]
    fn rules_are_not_evaluated_on_a_broken_object_and_it_says_so() {
        let text = SMALLEST.replace("spec:\n", "spec:\n  parallelism: many\n  dependsOn: [{name: stations}]\n");
        let found = said(&text);
        assert_eq!(found.len(), 3, "{found:#?}");
        assert!(found[0].contains("some validation rules were not checked"), "{found:#?}");
        let text = SMALLEST.replace("spec:\n", "spec:\n  dependsOn: [{name: stations}]\n");
        assert_eq!(
            said(&text),
            [
                "f.yaml:1: error: Invalid value: a CollectTask can't depend on itself: remove its own name from spec.dependsOn"
            ]
        );
    }

    #[test]
    fn a_change_is_judged_against_what_stands() {
        let old = objects_of("old.yaml", SMALLEST).unwrap();
        let new = SMALLEST.replace("s3://lake/stations", "s3://lake/elsewhere");
        let (findings, _) = Linter::new().unwrap().file("f.yaml", &new, &old);
        assert_eq!(findings.len(), 1, "{findings:#?}");
        assert!(findings[0].message.contains("change only together with a higher spec.run"));
        let raised = new.replace("spec:\n", "spec:\n  run: 2\n");
        assert_eq!(Linter::new().unwrap().file("f.yaml", &raised, &old).0, []);
    }

    #[test]
    fn lists_other_kinds_and_other_versions_are_told_apart() {
        let item = SMALLEST.replace('\n', "\n  ").trim_end().to_owned();
        let list = format!(
            "apiVersion: v1\nkind: List\nitems:\n- {item}\n---\napiVersion: v1\nkind: Secret\nmetadata: {{}}\n"
        );
        let (findings, objects) = Linter::new().unwrap().file("f", &list, &Objects::new());
        assert_eq!((findings, objects), (vec![], 1));
        let wrong = SMALLEST.replace("v1alpha1", "v1");
        assert_eq!(
            said(&wrong),
            ["f.yaml:1: error: no matches for kind \"CollectTask\" in version \"collect.dev/v1\""]
        );
    }

    #[test]
    fn names_and_labels_are_checked_too() {
        let named = |metadata: &str| said(&SMALLEST.replace("{name: stations}", metadata));
        let unnamed = named("{}");
        assert!(
            unnamed.iter().any(|line| line.contains("metadata.name: Required value: name or generateName")),
            "{unnamed:?}"
        );
        assert!(named("{name: Stations}")[0].contains("a lowercase RFC 1123 subdomain must consist of"));
        assert!(named("{name: a, labels: {x: 1}}")[0].contains("cannot unmarshal number"));
        assert!(named("{name: a, label: {x: y}}")[0].contains("unknown field \"metadata.label\""));
        assert_eq!(named("{generateName: a-}"), [""; 0]);
    }

    /// A keyword that the walk does not know would be a rule that lint does not keep.
    #[test]
    fn the_definitions_use_only_what_is_checked_here() {
        const KNOWN: [&str; 21] = [
            "type",
            "properties",
            "items",
            "additionalProperties",
            "required",
            "enum",
            "minimum",
            "maximum",
            "minLength",
            "maxLength",
            "pattern",
            "minItems",
            "maxItems",
            "maxProperties",
            "format",
            "description",
            "default",
            "x-kubernetes-validations",
            "x-kubernetes-preserve-unknown-fields",
            "title",
            "example",
        ];
        fn walk(schema: &Value, keys: &mut BTreeSet<String>) {
            for (key, value) in schema.as_object().into_iter().flatten() {
                keys.insert(key.clone());
                match key.as_str() {
                    "properties" => value.as_object().unwrap().values().for_each(|inner| walk(inner, keys)),
                    "items" | "additionalProperties" => walk(value, keys),
                    _ => {}
                }
            }
        }
        let mut keys = BTreeSet::new();
        let linter = Linter::new().unwrap();
        assert_eq!(linter.schemas.len(), 3);
        linter.schemas.values().for_each(|schema| {
            // A default would have to be filled in before the rules are evaluated.
            assert!(!schema["properties"]["spec"].to_string().contains("\"default\":"));
            walk(schema, &mut keys);
        });
        let unknown: Vec<_> = keys.iter().filter(|key| !KNOWN.contains(&key.as_str())).collect();
        assert!(unknown.is_empty() && keys.contains("pattern"), "{unknown:?}");
    }

    #[test]
    fn the_rules_of_the_definitions_can_be_evaluated() {
        fn walk<'a>(schema: &'a Value, rules: &mut Vec<&'a str>) {
            for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
                rules.push(rule["rule"].as_str().unwrap());
                let known = ["rule", "message"];
                assert!(rule.as_object().unwrap().keys().all(|key| known.contains(&key.as_str())), "{rule}");
            }
            schema["properties"].as_object().into_iter().flatten().for_each(|(_, inner)| walk(inner, rules));
            ["items", "additionalProperties"].iter().for_each(|key| {
                if schema[*key].is_object() {
                    walk(&schema[*key], rules);
                }
            });
        }
        let linter = Linter::new().unwrap();
        let mut rules = Vec::new();
        linter.schemas.values().for_each(|schema| walk(schema, &mut rules));
        assert!(rules.len() > 25);
        for rule in rules {
            assert!(cel::Program::compile(rule).is_ok(), "{rule}");
        }
    }
}
