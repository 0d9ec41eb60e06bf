//! The operator as those have it who run it: installed by its chart on a real node, as the quickstart says, upgraded, rolled back,
//! uninstalled and installed again while it works; and its worker endpoint against those who have no business there.
//!
//! One cluster, one test after the other: what is installed belongs to the whole cluster.
//!
//! | module         | for |
//! |----------------|-----|
//! | [`page`]       | a page of the documentation, carried out as it is written |
//! | [`lab`]        | source, sink and API of the tests, as pods reach them, and helm |
//! | [`quickstart`] | docs/quickstart.md |
//! | [`chart`]      | the life of a release |
//! | [`endpoint`]   | who is refused at the worker endpoint, and how |

mod chart;
mod endpoint;
mod lab;
mod page;
mod quickstart;

use std::time::Instant;

use collect_e2e::{Cluster, Node, figure};

use crate::lab::Lab;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_operator_is_installed_used_changed_and_removed_as_the_documentation_says() {
    let Some(cluster) = Cluster::shared("e2e-operate", Node::Real) else { return };
    let lab = Lab::new(cluster).await;
    let mut last = Instant::now();
    let mut lap = |what: &str| {
        figure(&format!("seconds: {what}"), last.elapsed().as_secs());
        last = Instant::now();
    };

    quickstart::a_newcomer_gets_to_a_verified_collection_with_the_page_alone(&lab).await;
    lap("quickstart");
    let run = chart::Run::begin(&lab).await;
    chart::without_an_operator_its_test_fails_and_the_task_goes_on(&lab, &run).await;
    lap("no replica, helm test");
    chart::an_upgrade_takes_the_task_over(&lab, &run).await;
    lap("upgrade");
    endpoint::it_refuses_everyone_but_the_rightful_worker(&lab, &run).await;
    lap("refusals of the worker endpoint");
    chart::another_replica_takes_over_from_a_leader_that_is_killed(&lab, &run).await;
    lap("leader killed");
    chart::a_rollback_takes_the_task_over(&lab, &run).await;
    lap("rollback");
    chart::uninstalled_it_leaves_what_it_says_and_installed_again_it_goes_on(&lab, &run).await;
    lap("uninstall, install, the end of the task");
    chart::a_namespaced_operator_serves_its_namespace_and_goes_with_everything(&lab).await;
    lap("namespaced, uninstall with the definitions");
}
