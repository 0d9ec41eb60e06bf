//! One province on a real node, and a blow of every kind while it is collected: kubelet, containerd, runc, API server and etcd are
//! those of a cluster, and so is the way in which they come back. `make chaos` does the same for the whole country, for as long as wanted.

use std::time::Duration;

use collect_e2e::{
    Cluster, Node,
    chaos::{self, Orders, blow},
    figure, say,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blow_of_every_kind_on_a_real_node_changes_nothing() {
    let Some(cluster) = Cluster::shared("chaos-real", Node::Real) else { return };
    let seed = std::env::var("SEED")
        .map_or_else(|_| rand::random_range(1..1_000_000), |seed| seed.parse().expect("SEED is a number"));
    let orders = Orders {
        seed,
        kills: blow::EACH.iter().filter(|(blow, _)| blow.is_kill()).map(|(_, times)| times).sum(),
        time: Duration::from_secs(30),
        cards: blow::EACH,
        sample: "villages-44.yaml",
        codes: "44",
        delay: Duration::from_secs(2),
    };
    let tally = chaos::carry_out(cluster, orders).await.unwrap_or_else(|violation| panic!("{violation}"));
    say(&tally.to_string());
    figure("seconds of blows on a real node", tally.took.as_secs());
    for (blow, _) in blow::EACH {
        assert!(tally.blows.contains_key(blow), "SEED={seed}: {} was dealt", blow.name());
    }
}
