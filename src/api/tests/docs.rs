//! What the documentation tells people to write is what the API server takes: every YAML block of docs/ and README.md that
//! holds a CollectTask, or a `spec:` of one, is read with the types and compared with the generated schema.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use collect_api::{CollectTask, CollectTaskSpec};
use serde::Deserialize;
use serde_json::Value;

type Tried<T> = Result<T, Box<dyn std::error::Error>>;

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn schema() -> Tried<Value> {
    let definition: Value =
        serde_yaml::from_str(&fs::read_to_string(top().join("crds/collect.dev_collecttasks.yaml"))?)?;
    let schema = definition.pointer("/spec/versions/0/schema/openAPIV3Schema").ok_or("the definition has no schema")?;
    Ok(schema.clone())
}

/// Every Markdown file below a folder.
fn pages(folder: &Path, found: &mut Vec<PathBuf>) -> Tried<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            pages(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
    Ok(())
}

/// The fenced yaml blocks of a page, with the number of the line where each begins.
fn blocks(text: &str) -> Vec<(usize, String)> {
    let (mut found, mut block) = (Vec::new(), None::<(usize, String)>);
    for (at, line) in text.lines().enumerate() {
        match &mut block {
            None if line.trim() == "```yaml" => block = Some((at + 2, String::new())),
            None => {}
            Some(_) if line.trim() == "```" => found.extend(block.take()),
            Some((_, text)) => text.extend([line, "\n"]),
        }
    }
    found
}

/// What of a value its schema does not know, lacks or forbids.
fn misfits(value: &Value, schema: &Value, at: &str, found: &mut Vec<String>) {
    if schema.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true)) {
        return;
    }
    if let Some(allowed) = schema.get("enum").and_then(Value::as_array)
        && !allowed.contains(value)
    {
        found.push(format!("{at}: {value} is none of {allowed:?}"));
    }
    let bound = |name: &str| schema.get(name).and_then(Value::as_f64);
    if let Some(number) = value.as_f64()
        && (bound("minimum").is_some_and(|least| number < least) || bound("maximum").is_some_and(|most| number > most))
    {
        found.push(format!("{at}: {number} is out of bounds"));
    }
    match value {
        Value::Object(fields) => {
            for name in schema.get("required").and_then(Value::as_array).into_iter().flatten() {
                if !name.as_str().is_some_and(|name| fields.contains_key(name)) {
                    found.push(format!("{at}: {name} is missing"));
                }
            }
            for (name, field) in fields {
                let known = schema.get("properties").and_then(|properties| properties.get(name));
                match known.or_else(|| schema.get("additionalProperties")) {
                    Some(schema) => misfits(field, schema, &format!("{at}.{name}"), found),
                    None => found.push(format!("{at}.{name} is no field")),
                }
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                misfits(item, schema.get("items").unwrap_or(&Value::Null), &format!("{at}[{index}]"), found);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// What is wrong with one document; nothing where it is no CollectTask and no `spec:` of one.
fn wrong(document: &Value, schema: &Value) -> Option<Vec<String>> {
    let mut found = Vec::new();
    let spec_schema = schema.pointer("/properties/spec").unwrap_or(&Value::Null);
    let spec = document.get("spec").unwrap_or(&Value::Null);
    match document.get("kind").and_then(Value::as_str) {
        Some("CollectTask") => {
            found.extend(CollectTask::deserialize(document).err().map(|error| error.to_string()));
            if document.get("apiVersion").and_then(Value::as_str) != Some("collect.dev/v1alpha1") {
                found.push("apiVersion is not collect.dev/v1alpha1".into());
            }
            for name in ["source", "sink", "record"] {
                if spec.get(name).is_none() && spec.get("partOf").is_none() {
                    found.push(format!("spec.{name} is missing"));
                }
            }
            let fields = document.as_object().into_iter().flatten();
            let strange =
                fields.filter(|(name, _)| !["apiVersion", "kind", "metadata", "spec"].contains(&name.as_str()));
            found.extend(strange.map(|(name, _)| format!("{name} is no field")));
        }
        Some(_) => return None,
        None if spec.is_null() => return None,
        None => found.extend(CollectTaskSpec::deserialize(spec).err().map(|error| error.to_string())),
    }
    misfits(spec, spec_schema, "spec", &mut found);
    Some(found)
}

fn documents(text: &str) -> Result<Vec<Value>, serde_yaml::Error> {
    serde_yaml::Deserializer::from_str(text).map(Value::deserialize).collect()
}

#[test]
fn every_task_in_the_documentation_is_one_that_the_api_takes() -> Tried<()> {
    let schema = schema()?;
    let mut files = vec![top().join("README.md")];
    pages(&top().join("docs"), &mut files)?;
    let (mut checked, mut problems) = (BTreeSet::new(), Vec::new());
    for file in files {
        let name = file.strip_prefix(top())?.display().to_string();
        for (line, text) in blocks(&fs::read_to_string(&file)?) {
            if !text.contains("kind: CollectTask") && !text.starts_with("spec:") {
                continue;
            }
            let found = match documents(&text) {
                Ok(documents) => documents.iter().filter_map(|document| wrong(document, &schema)).flatten().collect(),
                Err(error) => vec![error.to_string()],
            };
            problems.extend(found.into_iter().map(|why| format!("{name}:{line}: {why}")));
            checked.insert(name.clone());
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    for page in ["README.md", "docs/concepts/life-cycle.md", "docs/concepts/attempts.md"] {
        assert!(checked.contains(page), "{page} has examples, and they were found: {checked:?}");
    }
    Ok(())
}

#[test]
fn a_mistake_in_the_documentation_is_found() -> Tried<()> {
    let schema = schema()?;
    for (text, says) in [
        ("spec: {paralelism: 3}", "spec.paralelism is no field"),
        ("spec: {retry: {backof: {initial: 1s}}}", "spec.retry.backof is no field"),
        ("spec: {retry: {overrides: [{maxAttempts: 2}]}}", "errors"),
        ("spec: {retry: {maxAttempts: 0}}", "out of bounds"),
        ("spec: {deadline: soon}", "no duration"),
        ("spec: {desiredState: Stopped}", "Stopped"),
        ("spec: {completion: {tolerate: {shards: 1, percent: 2}}}", "single key"),
        (
            "{apiVersion: collect.dev/v1alpha1, kind: CollectTask, metadata: {name: a}, spec: {}}",
            "spec.source is missing",
        ),
    ] {
        let found: Vec<_> = documents(text)?.iter().filter_map(|document| wrong(document, &schema)).flatten().collect();
        assert!(found.iter().any(|why| why.contains(says)), "{text}: {found:?}");
    }
    assert_eq!(blocks("a\n```yaml\nspec: {}\n```\n"), [(3, "spec: {}\n".to_owned())]);
    Ok(())
}
