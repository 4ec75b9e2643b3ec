//! Agents that are not believed get nothing, and the operator reads why.

use decamp::lab::Cluster;
use decamp::pki::{self, Validity};

use crate::harness::{cluster, migrate, reconfigure, redis, running};
use crate::subject::{assert_traces, traces};

/// An authority of its own, trusted by node-b alone.
fn other_authority(cluster: &mut Cluster) {
    let dir = tempfile::tempdir().unwrap();
    pki::init(dir.path(), Validity::default(), false).unwrap();
    let issued =
        pki::issue_host(dir.path(), &"node-b".try_into().unwrap(), &[], Validity::default(), false).unwrap();
    for (from, to) in
        [(dir.path().join("ca.crt"), "ca.crt"), (issued.cert, "host.crt"), (issued.key, "host.key")]
    {
        let bytes = std::fs::read(from).unwrap();
        cluster.lab.write_file("node-b", &format!("/etc/decamp/tls/{to}"), &bytes, 0o600).unwrap();
    }
    cluster.lab.restart_agent("node-b").unwrap();
}

#[test]
fn only_agents_of_the_authority_on_the_list_are_served() {
    let mut cluster = cluster("trust");
    redis(&cluster, "node-a", "trust", 50);
    let clean = traces(&cluster, "node-b", "trust");
    let refused = |cluster: &Cluster, words: &[&str]| {
        let (code, text) = migrate(cluster, "node-a", "trust", "node-b", &[]);
        println!("{text}");
        assert_eq!(code, 1, "{text}");
        assert!(words.iter().any(|word| text.contains(word)), "none of {words:?} in {text}");
        assert!(text.contains("trust runs on node-a"), "{text}");
        assert_eq!(running(cluster, "node-a"), ["trust"]);
        assert_traces(cluster, "node-b", "trust", &clean);
    };
    reconfigure(&mut cluster, "node-b", |text| text.replace("receive = true", "receive = false"));
    refused(&cluster, &["allow-list", "receive = true"]);
    reconfigure(&mut cluster, "node-b", |text| text.replace("receive = false", "receive = true"));
    crate::harness::must_migrate(&cluster, "node-a", "trust", "node-b", &[]);
    crate::harness::must_migrate(&cluster, "node-b", "trust", "node-a", &[]);

    other_authority(&mut cluster);
    refused(&cluster, &["certificate"]);
    // The other way round: it is node-b, of the wrong authority, that knocks.
    redis(&cluster, "node-b", "stranger", 60);
    let (code, text) = migrate(&cluster, "node-b", "stranger", "node-a", &[]);
    println!("{text}");
    assert!(code == 1 && text.contains("certificate"), "{text}");
    assert_eq!(running(&cluster, "node-a"), ["trust"]);
    assert_eq!(running(&cluster, "node-b"), ["stranger"]);
}
