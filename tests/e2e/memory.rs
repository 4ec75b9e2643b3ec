//! Nothing is ever lost: programs whose memory is hard to follow are moved in full flight and know what every page must hold.

use std::fs;
use std::time::Duration;

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
fn processes_that_fork_and_exec_carry_their_state_over() {
    let cluster = cluster("generations");
    let spec = ContainerSpec::workload(id("generations"), "generations.py", &["--pause-ms", "30"]);
    let mut tree = Program::start(&cluster, &spec, "generations.json");
    let generations = |status: &Value| -> Vec<u64> {
        status["generations"].as_array().unwrap().iter().map(|number| number.as_u64().unwrap()).collect()
    };
    for _ in 0..4 {
        let before = generations(&tree.assert_goes_on());
        assert_nothing_missed(&tree.move_over(&[]));
        // Every line goes on from where it was.
        let until = std::time::Instant::now() + Duration::from_secs(60);
        while generations(&tree.assert_goes_on()).iter().zip(&before).any(|(now, then)| now <= then) {
            assert!(std::time::Instant::now() < until, "a line stands still at {before:?}");
        }
    }
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
        let spec = ContainerSpec::workload(crate::harness::id(id), "memory.py", args).address(address.into());
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

/// Huge pages that a test asked the kernel for; dropping it gives them back.
struct HugePages {
    before: String,
}

const NR_HUGEPAGES: &str = "/proc/sys/vm/nr_hugepages";

impl HugePages {
    /// `None` when the kernel has none to give (hugetlbpage.rst, nr_hugepages).
    fn take(more: u64) -> Option<Self> {
        let count = || fs::read_to_string(NR_HUGEPAGES).ok()?.trim().parse::<u64>().ok();
        let before = count()?;
        let taken = Self { before: before.to_string() };
        fs::write(NR_HUGEPAGES, (before + more).to_string()).ok()?;
        (count()? >= before + more).then_some(taken)
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        // Nobody else in this machine's tests changes it.
        let _ = fs::write(NR_HUGEPAGES, &self.before);
    }
}

#[test]
fn memory_of_the_huge_page_pool_is_moved_whole_or_stays() {
    let Some(_pages) = HugePages::take(32) else {
        println!("not tested: this kernel has no huge pages to give ({NR_HUGEPAGES})");
        return;
    };
    let cluster = cluster("hugetlb");
    let mut memory = Memory::start(&cluster, "hugetlb", 76, &["--mib", "16", "--hugetlb"]);
    let ended = Moving::start(&cluster, "node-a", memory.id, "node-b", &[]).end();
    if ended.code == 0 {
        memory.host = "node-b";
        println!("moved: {}", memory.verify());
        memory.move_over();
    } else {
        println!("stays: {:#}", ended.event("failed"));
    }
    memory.verify();
}
