//! The rights that the chart grants the operator are those that it uses: each right of each rendered role against the audit logs of all
//! clusters of a whole run, both ways. Only tests/run.sh can ask for it, once every suite has run.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use collect_e2e::{
    cluster::{repository, run},
    figure,
    rights::{self, Right},
    say, skip,
};

const NAMESPACE: &str = "collect-system";

/// What the chart renders for the operator with these values.
fn rendered(values: &[&str]) -> BTreeSet<Right> {
    let kube = run(Command::new(repository().join("tests/cluster/build.sh")).arg("kube"));
    let mut helm = Command::new(kube.trim());
    helm.args(["helm", "template", "collect-operator"]).arg(repository().join("charts/collect-operator"));
    helm.args(["--namespace", NAMESPACE, "--show-only", "templates/rbac.yaml"]).args(values);
    rights::granted(&run(&mut helm), NAMESPACE)
}

#[test]
fn the_rights_granted_are_the_rights_used() {
    let folder = std::env::var_os(rights::RECORD).expect("tests/run.sh names the folder of the records");
    if !rustix::process::geteuid().is_root() {
        return skip("the rights that are used", "without root, the suites of the real node have left no record");
    }
    let granted = rendered(&[]);
    assert_eq!(
        granted,
        rendered(&["--set", "watchNamespace=weather"]),
        "an operator of one namespace may do the same there"
    );

    let page = fs::read_to_string(repository().join("docs/operations/security.md")).expect("the page is there");
    let roles: BTreeSet<_> = granted.iter().map(|right| &right.role).collect();
    let told: BTreeSet<_> =
        rights::told(&page, NAMESPACE).into_iter().filter(|right| roles.contains(&right.role)).collect();
    assert_eq!(told, granted, "docs/operations/security.md tells the same rights");

    let asked = rights::read(Path::new(&folder));
    for one in asked.iter().filter(|one| one.role.is_none()) {
        say(&format!(
            "refused {} times: {} {} {}; first {}",
            one.times, one.verb, one.group, one.resource, one.example
        ));
    }
    figure("rights that the chart grants the operator", granted.len());
    figure("of these not to be seen in audit logs", rights::UNSEEN.len());
    figure("requests of operators in all audit logs", asked.iter().map(|one| one.times).sum::<u64>());
    let problems = rights::judge(&granted, &asked);
    assert!(problems.is_empty(), "granted and used differ:\n{}", problems.join("\n"));
}
