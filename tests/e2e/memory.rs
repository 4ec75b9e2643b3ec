//! Nothing is ever lost: programs whose memory is hard to follow are moved in full flight and know what every page must hold.

use decamp::lab::{Cluster, ContainerSpec};
use serde_json::Value;

use crate::harness::{cluster, cluster_with, id};
use crate::moving::Moving;
use crate::programs::{Program, compile_java};

/// The check at the hold found no page that neither the rounds nor CRIU had.
#[track_caller]
fn assert_nothing_missed(summary: &Value) {
    assert_eq!(summary["pages_missed"].as_u64().unwrap_or(0), 0, "{summary:#}");
}

#[test]
fn a_java_heap_moves_and_comes_back() {
    let allowed = "[files]\nallow_sources = [\"/var/lib/decamp-lab/workloads\"]\n";
    let cluster = cluster_with("java", |_| allowed.to_owned());
    compile_java(&cluster);
    let mut spec = ContainerSpec::workload(id("java"), "", &[]);
    let words = "/workloads/java/runtime/bin/java -XX:+UseSerialGC -XX:-UsePerfData -Xms64m -Xmx64m -cp /workloads/java/classes Heap /vol";
    spec.args = words.split(' ').map(str::to_owned).collect();
    let mut java = Program::start(&cluster, &spec, "jvm.json");
    for _ in 0..2 {
        assert_nothing_missed(&java.move_over(&["--mount", "/workloads=shared"]));
        println!("{}", java.verify());
    }
}

/// memory.py, asked over the network.
struct Memory<'a> {
    cluster: &'a Cluster,
    id: &'static str,
    address: [u8; 4],
    host: &'static str,
}

impl<'a> Memory<'a> {
    #[track_caller]
    fn start(cluster: &'a Cluster, id: &'static str, last_octet: u8, args: &[&str]) -> Self {
        let address = [10, 77, 0, last_octet];
        let mut spec =
            ContainerSpec::workload(crate::harness::id(id), "memory.py", args).address(address.into());
        // For the kind that traces.
        spec.capabilities.push("CAP_SYS_PTRACE".to_owned());
        cluster.lab.run_container("node-a", &spec).unwrap();
        let file = format!("/var/lib/decamp-lab-containers/{id}/volumes/vol/memory.json");
        let wait = format!("for i in $(seq 600); do test -s {file} && break; sleep 0.1; done; cat {file}");
        let said = cluster.host("node-a").unwrap().shell(&wait).unwrap();
        let status: Value = serde_json::from_str(&said).unwrap();
        assert_eq!(status["ok"], true, "{status:#}");
        Self { cluster, id, address, host: "node-a" }
    }

    #[track_caller]
    fn ask(&self, words: &str) -> Value {
        let [a, b, c, d] = self.address;
        let argv = format!("redis-cli -h {a}.{b}.{c}.{d} {words}");
        let said = self.cluster.lab.client().unwrap().shell(&argv).unwrap();
        serde_json::from_str(&said).unwrap_or(Value::String(said.trim().to_owned()))
    }

    #[track_caller]
    fn verify(&self) -> Value {
        let verdict = self.ask("verify");
        assert_eq!(verdict["ok"], true, "{} on {}: {verdict:#}", self.id, self.host);
        verdict
    }

    #[track_caller]
    fn move_over(&mut self) -> Value {
        let to = if self.host == "node-a" { "node-b" } else { "node-a" };
        let ended = Moving::start(self.cluster, self.host, self.id, to, &[]).end();
        assert_eq!(
            ended.code,
            0,
            "{}\n{}\n{}",
            ended.text,
            self.cluster.agent_log(self.host),
            self.cluster.agent_log(to)
        );
        self.host = to;
        let summary = ended.event("completed");
        assert_nothing_missed(&summary);
        summary
    }
}

/// Memory was not carried by CRIU, but came after the container ran.
#[track_caller]
fn assert_lazy(summary: &Value, mib: u64) {
    let lazy = summary["pages_lazy"].as_u64().unwrap_or(0);
    assert!(lazy >= mib << 8, "{lazy} lazy pages: {summary:#}");
}

#[test]
fn memory_that_is_written_goes_there_and_back_and_there() {
    let cluster = cluster("memory");
    let mut memory = Memory::start(&cluster, "memory", 70, &["--mib", "64", "--rate", "2000"]);
    for _ in 0..3 {
        assert_lazy(&memory.move_over(), 64);
        println!("{}", memory.verify());
    }
    // The judge is sound.
    assert_eq!(memory.ask("rate 0"), "OK");
    assert_eq!(memory.ask("spoil 4711"), "OK");
    let verdict = memory.ask("verify");
    assert!(verdict["ok"] == false && verdict["wrong"] == 1, "{verdict:#}");
}
