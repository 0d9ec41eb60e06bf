//! A page of the documentation, carried out as it is written: each `sh` block in a shell, each `yaml` block into the file that the
//! line before it names.
//!
//! What can't be carried out here says so in the page, on the line before the fence: `<!-- illustrative: reason -->`. Blocks of
//! other kinds show what is printed.

use std::{fs, os::unix::fs::symlink, path::Path};

use collect_e2e::cluster;

/// A part of a page that a reader acts on.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// To be typed.
    Shell(String),
    /// To be saved under this name.
    File(String, String),
    /// Meant as an example: why, and what.
    Illustrative(String, String),
}

/// The steps of a page, in order.
///
/// # Panics
/// If a block does not say what to do with it.
pub fn steps(page: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut lines = page.lines();
    // The last line with anything on it, and the line before the fence.
    let (mut said, mut above) = ("", "");
    while let Some(line) = lines.next() {
        let Some(language) = line.strip_prefix("```") else {
            above = line;
            if !line.trim().is_empty() {
                said = line;
            }
            continue;
        };
        let text: String = lines.by_ref().take_while(|line| *line != "```").map(|line| format!("{line}\n")).collect();
        let marker = above.strip_prefix("<!-- illustrative: ").and_then(|rest| rest.strip_suffix(" -->"));
        steps.push(match (marker, language) {
            (Some(reason), _) => Step::Illustrative(reason.to_owned(), text),
            (None, "sh") => Step::Shell(text),
            (None, "yaml") => {
                let name = said.strip_suffix("`:").and_then(|rest| rest.rsplit('`').next());
                let name = name.filter(|name| name.ends_with(".yaml"));
                Step::File(name.unwrap_or_else(|| panic!("nobody says what to do with:\n{text}")).to_owned(), text)
            }
            (None, "console" | "json") => continue,
            (None, language) => panic!("a block of language `{language}` is neither run nor marked:\n{text}"),
        });
    }
    steps
}

/// Lines of what a page shows to be printed.
pub fn printed(page: &str) -> Vec<&str> {
    let blocks = page.split("```console\n").skip(1);
    blocks.filter_map(|rest| rest.split("```").next()).flat_map(str::lines).collect()
}

/// Makes a folder what a checkout is to a reader: every file of the repository, and room for files of their own.
pub fn checkout(folder: &Path) {
    for entry in fs::read_dir(cluster::repository()).expect("the repository is there").filter_map(Result::ok) {
        symlink(entry.path().canonicalize().expect("it is there"), folder.join(entry.file_name())).expect("a link");
    }
}

#[test]
fn a_page_is_read_as_its_steps() {
    let page = "Do:\n\n```sh\nmake it\n```\n\n`it.yaml`:\n\n```yaml\na: 1\n```\n\n<!-- illustrative: a registry of yours -->\n```sh\npush it\n```\n\n```console\nok\n```\n";
    assert_eq!(
        steps(page),
        [
            Step::Shell("make it\n".into()),
            Step::File("it.yaml".into(), "a: 1\n".into()),
            Step::Illustrative("a registry of yours".into(), "push it\n".into()),
        ]
    );
    assert_eq!(printed(page), ["ok"]);
}
