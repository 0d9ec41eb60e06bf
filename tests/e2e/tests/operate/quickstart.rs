//! docs/quickstart.md: a newcomer with an API, a token, a bucket and the page.

use std::{
    fs,
    time::{Duration, Instant},
};

use collect_api::{CollectTask, Phase, ValidationReport, condition::VERIFIED, report::Verdict};
use collect_e2e::{Space, cluster, figure, sink, space::condition, tasks::SOON};

use crate::{
    lab::{self, Lab, STATIONS},
    page::{self, Step},
};

/// What the page promises.
const TEN_MINUTES: Duration = Duration::from_secs(600);

pub async fn a_newcomer_gets_to_a_verified_collection_with_the_page_alone(lab: &Lab) {
    let text = fs::read_to_string(cluster::repository().join("docs/quickstart.md")).expect("the page is there");
    let folder = tempfile::tempdir().expect("a folder");
    let archives = tempfile::tempdir().expect("a folder");
    page::checkout(folder.path());
    let variables = || {
        vec![
            ("PATH", lab.path()),
            ("KUBECONFIG", lab.cluster.kubeconfig().display().to_string()),
            ("DIST", archives.path().display().to_string()),
        ]
    };
    let (mut installs, mut applies) = (None, 0);
    for step in page::steps(&text) {
        match step {
            Step::Shell(script) => {
                if script.contains("helm upgrade --install") {
                    installs = Some(Instant::now());
                }
                applies += script.matches("kubectl apply").count();
                lab::shell(script, folder.path(), variables(), TEN_MINUTES).await;
            }
            Step::File(name, text) => fs::write(folder.path().join(name), text).expect("it can be written"),
            // The images lie in the node, under the names that they would have in the registry.
            Step::Illustrative(_, script) if script.contains("skopeo copy") => lab::load(lab.cluster, archives.path()),
            Step::Illustrative(..) => {}
        }
    }
    let took = installs.expect("the page installs the operator").elapsed();
    figure("seconds from helm install to a verified collection by docs/quickstart.md", took.as_secs());
    assert!(took < TEN_MINUTES, "{took:?}");
    assert!(applies > 0, "the page applies a task");

    // Run 1 is what the page tells of; it ends with a second one.
    let space = Space::existing(lab.cluster, "weather").await;
    let report = space.reports().get("stations-r1").await.expect("the page's report is there");
    let counts = report.status.and_then(|status| status.counts).expect("it has counts");
    let all = STATIONS as i64;
    assert_eq!((counts.source, counts.collected, counts.delta, counts.duplicates), (Some(all), all, Some(0), Some(0)));
    let task = space
        .until::<CollectTask>("stations", "the second run has ended", SOON, |task| {
            let status = task.status.as_ref();
            status.is_some_and(|status| status.run == Some(2) && status.phase.as_ref().is_some_and(Phase::is_terminal))
        })
        .await;
    assert_eq!(
        task.status.as_ref().and_then(|status| status.phase.clone()),
        Some(Phase::Succeeded),
        "{:?}",
        task.status
    );
    assert_eq!(condition(&task, VERIFIED).map(|condition| condition.status.as_str()), Some("True"));
    let report = space
        .until::<ValidationReport>("stations-r2", "it has a verdict", SOON, |report| {
            report.status.as_ref().is_some_and(|status| status.verdict.is_some())
        })
        .await;
    assert_eq!(report.status.and_then(|status| status.verdict), Some(Verdict::Pass));

    // What the page shows at the end is what a reader sees.
    let shown =
        page::printed(&text).into_iter().rfind(|line| line.starts_with("stations ")).expect("the page shows the end");
    let seen = space.kubectl("get collecttask stations --no-headers");
    let but_age = |line: &str| line.split_whitespace().take(7).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(but_age(&seen), but_age(shown));

    let collected = sink::read(&lab.bucket(), "stations", "id").await;
    collected.assert_exactly(&(0..STATIONS).map(lab::station).collect());
}
