//! What goes into the bundle: redacted, listed, packed. Pure.

use std::{collections::BTreeMap, io};

use flate2::{Compression, write::GzEncoder};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use super::redact::Redactor;
use crate::error::Error;

/// A file in the making.
#[derive(Clone, Debug)]
pub enum Content {
    /// Objects, written as YAML documents.
    Objects(Vec<Value>),
    /// A text, such as a log.
    Text(String),
}

/// What was left out, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// What.
    pub what: String,
    /// Why.
    pub why: String,
}

/// Everything that was gathered, by its place in the bundle.
#[derive(Clone, Debug, Default)]
pub struct Gathered {
    /// Files by path.
    pub files: BTreeMap<String, Content>,
    /// What is not in it.
    pub left_out: Vec<LeftOut>,
}

impl Gathered {
    /// Notes that something is not in it.
    pub fn leave_out(&mut self, what: impl Into<String>, why: impl Into<String>) {
        self.left_out.push(LeftOut { what: what.into(), why: why.into() });
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Manifest<'a> {
    made_at: String,
    made_by: String,
    about: &'a str,
    redaction: &'static str,
    files: Vec<Listed>,
    left_out: &'a [LeftOut],
}

#[derive(Serialize)]
struct Listed {
    path: String,
    bytes: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    objects: Option<usize>,
}

const REDACTION: &str = "Secrets were never read. *** stands for: headers but harmless ones; query, form and body members whose names tell of credentials; bodies given as text; users and passwords in URLs; all environment values; arguments of hooks; what looks like a token or key; and every value that was taken out for one of these, wherever else it stood.";

/// Redacts everything and writes the files, the manifest among them.
///
/// # Errors
/// When something can't be written as YAML.
pub fn write(gathered: Gathered, about: &str, now: Timestamp) -> Result<BTreeMap<String, Vec<u8>>, Error> {
    let mut redactor = Redactor::default();
    let mut gathered = gathered;
    // All places first: what one object gives away is looked for in all the others.
    for content in gathered.files.values_mut() {
        if let Content::Objects(objects) = content {
            objects.iter_mut().for_each(|object| redactor.object(object));
        }
    }
    let mut files = BTreeMap::new();
    let mut listed = Vec::new();
    for (path, content) in gathered.files {
        let path = redactor.text(&path);
        let (text, objects) = match content {
            Content::Text(text) => (redactor.text(&text), None),
            Content::Objects(objects) => {
                let count = objects.len();
                let mut text = String::new();
                for mut object in objects {
                    redactor.texts(&mut object);
                    text.push_str("---\n");
                    text.push_str(&serde_yaml::to_string(&object).map_err(|error| Error::Encode(error.to_string()))?);
                }
                (text, Some(count))
            }
        };
        listed.push(Listed { path: path.clone(), bytes: text.len(), objects });
        files.insert(path, text.into_bytes());
    }
    let left_out: Vec<LeftOut> = gathered
        .left_out
        .iter()
        .map(|left| LeftOut { what: redactor.text(&left.what), why: redactor.text(&left.why) })
        .collect();
    let manifest = Manifest {
        made_at: Timestamp::from_second(now.as_second()).unwrap_or(now).to_string(),
        made_by: format!("kubectl-collect {}", env!("CARGO_PKG_VERSION")),
        about,
        redaction: REDACTION,
        files: listed,
        left_out: &left_out,
    };
    let manifest = serde_yaml::to_string(&manifest).map_err(|error| Error::Encode(error.to_string()))?;
    files.insert("manifest.yaml".to_owned(), manifest.into_bytes());
    Ok(files)
}

/// The files as a compressed archive, all below one folder.
///
/// # Errors
/// Never in practice.
pub fn pack(folder: &str, files: &BTreeMap<String, Vec<u8>>, now: Timestamp) -> io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
    for (path, data) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(u64::try_from(data.len()).unwrap_or(u64::MAX));
        header.set_mode(0o644);
        header.set_mtime(u64::try_from(now.as_second()).unwrap_or(0));
        archive.append_data(&mut header, format!("{folder}/{path}"), data.as_slice())?;
    }
    archive.into_inner()?.finish()
}

/// The end of a text: at most so many bytes, cut at a line.
pub fn tail(text: &str, bytes: usize) -> String {
    if text.len() <= bytes {
        return text.to_owned();
    }
    let mut start = text.len() - bytes;
    while !text.is_char_boundary(start) {
        start += 1;
    }
    let rest = text.get(start..).unwrap_or_default();
    let from = rest.find('\n').map_or(0, |at| at + 1);
    format!("… (the beginning is left out)\n{}", rest.get(from..).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use serde_json::json;

    use super::*;

    fn gathered() -> Gathered {
        let mut gathered = Gathered::default();
        let task = json!({"kind": "CollectTask", "metadata": {"name": "villages"}, "spec": {"source": {"http": {
            "url": "https://x.example", "headers": {"X-Key": "planted-header"}}}}});
        let event = json!({"kind": "Event", "message": "answered: planted-header is wrong"});
        gathered.files.insert("objects/collecttasks.yaml".into(), Content::Objects(vec![task.clone(), task]));
        gathered.files.insert("a-first/events.yaml".into(), Content::Objects(vec![event]));
        gathered.files.insert(
            "logs/worker.log".into(),
            Content::Text("sent planted-header\nGET https://u:planted@x.example/\n".into()),
        );
        gathered.leave_out("logs of pod x", "planted-header said no");
        gathered
    }

    fn now() -> Timestamp {
        "2026-01-01T00:00:00.5Z".parse().unwrap()
    }

    #[test]
    fn every_file_is_redacted_and_listed() {
        let files = write(gathered(), "villages", now()).unwrap();
        let all: String = files.values().map(|data| String::from_utf8_lossy(data).into_owned()).collect();
        assert!(!all.contains("planted"), "{all}");
        let manifest: Value = serde_yaml::from_slice(&files["manifest.yaml"]).unwrap();
        let listed: Vec<_> =
            manifest["files"].as_array().unwrap().iter().map(|file| file["path"].as_str().unwrap()).collect();
        assert_eq!(listed, ["a-first/events.yaml", "logs/worker.log", "objects/collecttasks.yaml"]);
        assert_eq!(manifest["files"][2]["objects"], 2);
        assert_eq!(manifest["leftOut"][0], json!({"what": "logs of pod x", "why": "*** said no"}));
        assert_eq!(manifest["madeAt"], "2026-01-01T00:00:00Z");
    }

    #[test]
    fn the_archive_holds_the_files_below_one_folder() {
        let files = write(gathered(), "villages", now()).unwrap();
        let packed = pack("support", &files, now()).unwrap();
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(packed.as_slice()));
        let mut found = BTreeMap::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            let mut data = Vec::new();
            entry.read_to_end(&mut data).unwrap();
            found.insert(path.strip_prefix("support/").unwrap().to_owned(), data);
        }
        assert_eq!(found, files);
    }

    #[test]
    fn logs_keep_their_end() {
        assert_eq!(tail("a\nb\n", 10), "a\nb\n");
        assert_eq!(tail("first\nsecond\nthird\n", 12), "… (the beginning is left out)\nthird\n");
        assert!(tail("深圳市深圳市", 5).ends_with('市'));
    }
}
