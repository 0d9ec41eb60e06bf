//! The commands of the documentation, as they stand there, against a real cluster.
//!
//! Every block of commands in README.md and docs/ has a mark on the line before it, or on the first line of its page: `run` with a
//! scenario, or `illustrative` with a reason (`make docs-check` holds that). A scenario is a cluster in a certain state. Its test
//! types the blocks that name it in the order of their pages, and every command must succeed.

use std::{
    fs::{self, File},
    os::unix::{fs::symlink, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use kube::config::Kubeconfig;
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};

use crate::{
    Cluster,
    cluster::{self, repository},
    demo,
};

/// The scenarios, and the test that runs each.
pub const SCENARIOS: &[(&str, &str)] = &[
    // An empty namespace.
    ("empty", "tests/e2e/tests/docs.rs"),
    // For each page a namespace with the task `stations`, which has succeeded; and `readings`, which depends on it, if it is named.
    ("stations", "tests/e2e/tests/docs.rs"),
    // For each page a namespace with the tree `villages`, which has succeeded.
    ("villages", "tests/e2e/tests/docs.rs"),
    // The tree `villages` in every state that docs/how-to/control.md speaks of.
    ("control", "tests/e2e/tests/docs.rs"),
    // An operator that nobody needs any more.
    ("uninstall", "tests/e2e/tests/docs.rs"),
    // The demo on a real node, with a tree `villages` in its namespace.
    ("demo", "tests/e2e/tests/real.rs"),
    // The quickstart, from nothing.
    ("quickstart", "tests/e2e/tests/operate/quickstart.rs"),
];

/// Time that a block may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// Before every block: the first failure ends it, also in the middle of a pipeline; a search that finds nothing is none.
const PREAMBLE: &str = r#"set -e -o pipefail
grep() { command grep "$@" || [ $? = 1 ]; }
"#;

/// What is said of a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mark {
    /// The scenario that runs it.
    Run(String),
    /// Nobody does.
    Illustrative,
}

/// A block of commands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// Its page, from the top of the repository.
    pub page: String,
    /// Line of its fence, from 1.
    pub line: usize,
    /// The heading that it stands under.
    pub heading: String,
    /// Its mark.
    pub mark: Mark,
    /// Its lines, without their common indentation.
    pub text: String,
    /// Whether only lines after `$ ` are commands, and the others what they print.
    pub is_console: bool,
}

impl Block {
    /// What bash is given.
    fn script(&self) -> String {
        if !self.is_console {
            return self.text.clone();
        }
        let commands = self.text.lines().filter_map(|line| line.strip_prefix("$ "));
        commands.map(|command| format!("{command}\n")).collect()
    }

    /// The lines that it says are printed.
    fn printed(&self) -> Vec<&str> {
        if !self.is_console {
            return Vec::new();
        }
        self.text.lines().filter(|line| !line.starts_with("$ ")).collect()
    }
}

/// All blocks with a mark, in the order of pages and lines.
pub fn blocks() -> Vec<Block> {
    let mut pages = vec![repository().join("README.md")];
    let mut folders = vec![repository().join("docs")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("docs/ can be read") {
            let path = entry.expect("it can be read").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                pages.push(path);
            }
        }
    }
    pages.sort();
    let name = |page: &Path| page.strip_prefix(repository()).expect("it lies there").display().to_string();
    pages.iter().flat_map(|page| of_page(&name(page), &fs::read_to_string(page).expect("a page is text"))).collect()
}

/// The blocks with a mark of one page.
fn of_page(page: &str, text: &str) -> Vec<Block> {
    let lines: Vec<&str> = text.lines().collect();
    let of_all = lines.first().copied().and_then(mark);
    let (mut found, mut heading, mut i) = (Vec::new(), String::new(), 0);
    while let Some(line) = lines.get(i) {
        i += 1;
        if let Some(title) = line.strip_prefix('#') {
            heading = title.trim_start_matches('#').trim().to_owned();
        }
        let Some(language) = line.trim_start().strip_prefix("```") else { continue };
        let (indent, fence) = (line.len() - line.trim_start().len(), i);
        let mut text = String::new();
        while let Some(line) = lines.get(i).filter(|line| line.trim() != "```") {
            text.push_str(line.get(indent..).unwrap_or_default());
            text.push('\n');
            i += 1;
        }
        i += 1;
        let own = lines.get(fence.wrapping_sub(2)).copied().and_then(mark);
        let is_console = language.trim() == "console";
        let is_typed = is_console || language.trim() == "sh" || language.is_empty() && text.lines().any(is_command);
        if let Some(mark) = own.or_else(|| of_all.clone().filter(|_| is_typed)) {
            found.push(Block { page: page.to_owned(), line: fence, heading: heading.clone(), mark, text, is_console });
        }
    }
    found
}

/// Whether a line in a block without a language is something to be typed, as `make docs-check` sees it.
fn is_command(line: &str) -> bool {
    let line = line.strip_prefix("$ ").unwrap_or(line);
    ["kubectl ", "helm ", "make "].iter().any(|program| line.starts_with(program))
}

fn mark(line: &str) -> Option<Mark> {
    let words = line.trim().strip_prefix("<!-- ")?.strip_suffix(" -->")?;
    match words.split_once(": ")? {
        ("run", scenario) => Some(Mark::Run(scenario.to_owned())),
        ("illustrative", _) => Some(Mark::Illustrative),
        _ => None,
    }
}

/// The blocks that a scenario runs.
///
/// # Panics
/// If there are none.
pub fn of_scenario(scenario: &str) -> Vec<Block> {
    assert!(SCENARIOS.iter().any(|(name, _)| *name == scenario), "{scenario} is listed");
    let wanted = Mark::Run(scenario.to_owned());
    let found: Vec<_> = blocks().into_iter().filter(|block| block.mark == wanted).collect();
    assert!(!found.is_empty(), "no page has a block for {scenario}");
    found
}

/// Where commands are typed: a folder, a kubeconfig, and the cluster's own kubectl and helm.
#[derive(Debug)]
pub struct Terminal {
    /// The current folder. `charts` and `crds` are in it, as in a clone of the repository.
    pub folder: PathBuf,
    kubeconfig: PathBuf,
    path: String,
}

impl Terminal {
    /// A terminal of a cluster's administrator, in a folder that is made, with this current namespace.
    pub fn new(cluster: &Cluster, folder: &Path, namespace: &str) -> Self {
        fs::create_dir_all(folder).expect("the folder can be made");
        for name in ["charts", "crds"] {
            let (original, link) = (repository().join(name), folder.join(name));
            if !link.exists() {
                symlink(original.canonicalize().expect("it is there"), link).expect("it can be linked");
            }
        }
        let mut config = Kubeconfig::read_from(cluster.kubeconfig()).expect("the administrator's kubeconfig");
        for context in &mut config.contexts {
            if let Some(context) = &mut context.context {
                context.namespace = Some(namespace.to_owned());
            }
        }
        let kubeconfig = folder.join(".kubeconfig");
        fs::write(&kubeconfig, serde_yaml::to_string(&config).expect("it is YAML")).expect("it can be written");
        let path = std::env::var("PATH").expect("PATH is set");
        let path = format!("{}:{path}", cluster.state.join("bin").display());
        Self { folder: folder.to_owned(), kubeconfig, path }
    }

    /// Types a block; what it leaves in the background is ended with it. Gives what it printed.
    ///
    /// # Panics
    /// If it fails, takes too long, or prints another table than the page shows.
    pub async fn run(&self, block: &Block) -> String {
        let place = format!("{}:{}", block.page, block.line);
        let (out, errors) = (self.folder.join(".stdout"), self.folder.join(".stderr"));
        let began = Instant::now();
        let mut bash = Command::new("bash");
        bash.args(["-c", &format!("{PREAMBLE}{}", block.script())])
            .current_dir(&self.folder)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("PATH", &self.path)
            .stdin(Stdio::null())
            .stdout(File::create(&out).expect("its output can be kept"))
            .stderr(File::create(&errors).expect("its errors can be kept"))
            .process_group(0);
        let mut child = tokio::process::Command::from(bash).kill_on_drop(true).spawn().expect("bash runs");
        let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed())).expect("it was started");
        let status = tokio::time::timeout(PATIENCE, child.wait()).await;
        // Nobody may be left in it: then there is no such group.
        let _ = kill_process_group(group, Signal::KILL);
        let printed = fs::read_to_string(&out).expect("its output is text");
        let said = || {
            let errors = fs::read_to_string(&errors).unwrap_or_default();
            format!("{}\n{printed}{errors}", block.text)
        };
        match status {
            Err(_) => panic!("{place} takes more than {PATIENCE:?}:\n{}", said()),
            Ok(status) => {
                let status = status.expect("it can be waited for");
                assert!(status.success(), "{place} ended with {status} after {:?}:\n{}", began.elapsed(), said());
            }
        }
        assert_prints(&place, &printed, &block.printed());
        printed
    }
}

/// That a table was printed with the columns that the page shows, and as many words in a row.
fn assert_prints(place: &str, printed: &str, shown: &[&str]) {
    let words = |line: &str| -> Vec<String> { line.split_whitespace().map(str::to_owned).collect() };
    let mut rows = printed.lines();
    for (i, shown) in shown.iter().enumerate() {
        let row = rows.next().unwrap_or_else(|| panic!("{place} prints `{shown}`:\n{printed}"));
        if i == 0 {
            assert_eq!(words(row), words(shown), "{place} prints these columns");
        } else {
            assert_eq!(words(row).len(), words(shown).len(), "{place} prints `{row}`, and the page shows `{shown}`");
        }
    }
}

/// The scenario `demo`, on a real node after tests/demo/demo.sh. Gives the number of blocks.
pub async fn on_the_demo(cluster: &Cluster) -> usize {
    let folder = cluster.state.join("terminal");
    let terminal = Terminal::new(cluster, &folder, demo::NAMESPACE);
    let helm = |words: &[&str]| cluster::run(cluster.helm().args(["--namespace", demo::SYSTEM]).args(words));
    fs::write(folder.join("values.yaml"), helm(&["get", "values", demo::RELEASE, "-o", "yaml"])).expect("values");
    let kubectl = |words: &[&str]| cluster::run(cluster.kubectl().args(words));

    // The sample of one province, less all cities but one.
    let sample = File::open(repository().join("deploy/samples/villages-44.yaml")).expect("the sample is there");
    let mut task: Value = serde_yaml::from_reader(sample).expect("it is YAML");
    task["metadata"]["name"] = json!("villages");
    task["spec"]["decompose"]["levels"][1] = json!({"name": "city", "values": ["4401"]});
    task["spec"]["sink"]["objectStore"]["url"] = json!("s3://lake/one-city");
    task["spec"]["validation"]["total"]["path"] = json!("/cities/4401/summary");
    let file = folder.join("villages.yaml");
    fs::write(&file, task.to_string()).expect("it can be written");
    kubectl(&["--namespace", demo::NAMESPACE, "apply", "-f", &file.display().to_string()]);
    kubectl(&["--namespace", demo::NAMESPACE, "wait", "--for=condition=Complete", "ct/villages", "--timeout=120s"]);

    let blocks = of_scenario("demo");
    let deployment = format!("deployment/{}", demo::RELEASE);
    for block in &blocks {
        terminal.run(block).await;
        // Some start the operator again.
        kubectl(&["--namespace", demo::SYSTEM, "rollout", "status", &deployment, "--timeout=60s"]);
    }
    kubectl(&["--namespace", demo::NAMESPACE, "delete", "ct", "villages", "--timeout=60s"]);
    blocks.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "<!-- run: stations -->\n# Title\n\n```sh\nkubectl get ct\n```\n\n```yaml\na: b\n```\n\n## Part\n\n\
        1. First:\n\n   <!-- illustrative: takes an hour -->\n   ```sh\n   make chaos\n     # more\n   ```\n\n\
        <!-- run: demo -->\n```console\n$ kubectl get vr\nNAME   AGE\na      3s\n```\n";

    #[test]
    fn blocks_are_found_with_their_marks_and_headings() {
        let blocks = of_page("a.md", PAGE);
        let seen: Vec<_> = blocks.iter().map(|block| (block.line, &*block.heading, &*block.text)).collect();
        assert_eq!(
            seen,
            [
                (4, "Title", "kubectl get ct\n"),
                (17, "Part", "make chaos\n  # more\n"),
                (23, "Part", "$ kubectl get vr\nNAME   AGE\na      3s\n"),
            ]
        );
        let marks: Vec<_> = blocks.iter().map(|block| block.mark.clone()).collect();
        assert_eq!(marks, [Mark::Run("stations".into()), Mark::Illustrative, Mark::Run("demo".into())]);
        assert_eq!(blocks[2].script(), "kubectl get vr\n");
        assert_eq!(blocks[2].printed(), ["NAME   AGE", "a      3s"]);
    }

    #[test]
    fn every_scenario_of_a_page_is_listed_and_every_listed_one_is_used() {
        for block in blocks() {
            if let Mark::Run(name) = &block.mark {
                assert!(SCENARIOS.iter().any(|(listed, _)| listed == name), "{}:{}: {name}", block.page, block.line);
            }
        }
        for (name, _) in SCENARIOS {
            assert!(!of_scenario(name).is_empty());
        }
    }

    #[test]
    fn tables_are_compared_by_their_columns() {
        assert_prints("a", "NAME   AGE\nstations   5s\n", &["NAME  AGE", "a  3s"]);
        for printed in ["NAME\nstations\n", "NAME   AGE\nstations\n", ""] {
            std::panic::catch_unwind(|| assert_prints("a", printed, &["NAME  AGE", "a  3s"])).expect_err(printed);
        }
    }
}
