//! A destination that cannot take a container says everything that is in the way at once.

use decamp::lab::ContainerSpec;

use crate::harness::{cluster_with, id, migrate, reconfigure};
use crate::moving::Moving;
use crate::subject::{Subject, assert_traces, traces};

/// Changes of the destination that each are a reason, all reversible.
const OBSTACLES: &str = "mkdir /tmp/upper /tmp/work
     base=/var/lib/decamp-lab/base
     mount -t overlay overlay -o lowerdir=$base,upperdir=/tmp/upper,workdir=/tmp/work $base
     echo 'another base' > $base/etc/another
     mount -o remount,size=1m /var/lib/decamp";
const OBSTACLES_GONE: &str = "umount /var/lib/decamp-lab/base; mount -o remount,size=50% /var/lib/decamp";

#[test]
fn every_reason_is_in_one_answer() {
    let mut cluster =
        cluster_with("refuse", |_| "[files]\nallow_sources = [\"/var/tmp/allowed\"]\n".to_owned());
    let subject = Subject::start(&cluster, "refused");
    let volume = "/var/lib/decamp-lab-containers/refused/volumes/data/large";
    cluster.host("node-a").unwrap().shell(&format!("head -c 4M /dev/urandom > {volume}")).unwrap();
    let destination = cluster.host("node-b").unwrap();
    let namesake = ContainerSpec::new(id("refused"), &["sleep", "infinity"]);
    cluster.lab.run_container("node-b", &namesake).unwrap();
    destination.shell(OBSTACLES).unwrap();
    reconfigure(&mut cluster, "node-b", |text| text + "[store]\nreserve_memory = \"1000GiB\"\n");
    let before = traces(&cluster, "node-b", "refused");

    let ended = Moving::start(&cluster, "node-a", "refused", "node-b", &[]).end();
    let failed = ended.must_fail(3);
    println!("{failed:#}");
    let reasons = failed["reasons"].as_array().unwrap();
    let codes: Vec<&str> = reasons.iter().map(|reason| reason["code"].as_str().unwrap()).collect();
    for wanted in ["base-differs", "memory", "disk", "name-taken"] {
        assert!(codes.contains(&wanted), "no {wanted} in {failed:#}");
    }
    for reason in reasons {
        let said = |field: &str| !reason[field].as_str().unwrap().is_empty();
        assert!(said("what") && said("evidence") && said("remedy"), "{reason:#}");
    }
    assert_traces(&cluster, "node-b", "refused", &before);

    // Without --json all of them are there to read as well.
    let (code, text) = migrate(&cluster, "node-a", "refused", "node-b", &[]);
    assert!(code == 3 && codes.iter().all(|code| text.contains(code)), "{text}");

    cluster.lab.delete_container("node-b", &namesake.id).unwrap();
    destination.shell(OBSTACLES_GONE).unwrap();
    reconfigure(&mut cluster, "node-b", |text| text.replace("1000GiB", "64MiB"));
    subject.assert_unharmed(&cluster);
    subject.finish(&cluster);
}

#[test]
fn a_mount_without_its_source_is_refused() {
    let cluster = cluster_with("sources", |_| "[files]\nallow_sources = [\"/var/tmp/allowed\"]\n".to_owned());
    let spec = ContainerSpec::new(id("sources"), &["sleep", "infinity"])
        .volume("/var/tmp/allowed/missing", "/missing")
        .volume("/var/tmp/elsewhere", "/elsewhere")
        .volume("/var/tmp/allowed/kind", "/kind");
    let folders = "mkdir -p /var/tmp/allowed/missing /var/tmp/elsewhere /var/tmp/allowed/kind";
    cluster.host("node-a").unwrap().shell(folders).unwrap();
    let there = "mkdir -p /var/tmp/allowed /var/tmp/elsewhere; touch /var/tmp/allowed/kind";
    cluster.host("node-b").unwrap().shell(there).unwrap();
    cluster.lab.run_container("node-a", &spec).unwrap();
    let before = traces(&cluster, "node-b", "sources");
    let shared = ["/missing=shared", "/elsewhere=shared", "/kind=shared"];
    let more: Vec<&str> = shared.iter().flat_map(|rule| ["--mount", rule]).collect();
    let failed = Moving::start(&cluster, "node-a", "sources", "node-b", &more).end().must_fail(3);
    let reasons = failed["reasons"].as_array().unwrap();
    let codes: Vec<&str> = reasons.iter().map(|reason| reason["code"].as_str().unwrap()).collect();
    assert_eq!(codes, ["mount-source-missing", "mount-not-allowed", "mount-source-kind"], "{failed:#}");
    assert_traces(&cluster, "node-b", "sources", &before);

    let (code, text) = migrate(&cluster, "node-a", "sources", "node-b", &["--mount", "/missing=refuse"]);
    assert!(code == 3 && text.contains("mount-refused"), "{text}");
    // Copied, all three are fine.
    crate::harness::must_migrate(&cluster, "node-a", "sources", "node-b", &[]);
}

#[test]
fn a_mistyped_request_is_refused_before_anything_moves() {
    let cluster = cluster_with("typo", |_| String::new());
    let spec =
        decamp::lab::ContainerSpec::new(crate::harness::id("typo"), &["sleep", "1000"]).volume("vol", "/vol");
    cluster.lab.run_container("node-a", &spec).unwrap();
    for (name, more, said) in [
        ("nobody", &[][..], "there is no container nobody"),
        ("typo", &["--mount", "/wol=refuse"][..], "no bind mount at /wol"),
        ("typo", &["--bandwidth", "5"][..], "64KiB/s"),
    ] {
        let (code, text) = crate::harness::migrate(&cluster, "node-a", name, "node-b", more);
        assert_eq!(code, 3, "{text}");
        assert!(text.contains(said), "{text}");
    }
    assert_eq!(crate::harness::running(&cluster, "node-a"), ["typo"]);
}
