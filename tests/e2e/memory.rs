//! Nothing is ever lost: programs whose memory is hard to follow are moved in full flight and know what every page must hold.

use std::fs;
use std::time::Duration;

use decamp::lab::{Cluster, ContainerSpec};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::{cluster, cluster_with, id, redis};
use crate::moving::Moving;
use crate::programs::{Program, compile_fuzzer, compile_java};

/// What the fuzzer's choices follow from. The interleaving of its threads is the machine's.
const SEED: &str = "20261201";
/// How often the fuzzer moves.
const MOVES: u32 = 20;
const CLIENT_PROGRAM: &str = "/var/lib/decamp-lab/workloads/";

#[test]
fn the_mapping_fuzzer_moves_in_full_flight() {
    let cluster = cluster("fuzz");
    compile_fuzzer(&cluster);
    println!("seed {SEED}");
    let mut spec = ContainerSpec::workload(id("fuzz"), "", &[]);
    spec.args = ["/workloads/mapfuzz", "--seed", SEED].map(str::to_owned).to_vec();
    let mut fuzzer = Program::start(&cluster, &spec, "mapfuzz.json");
    for number in 1..=MOVES {
        let summary = fuzzer.move_over(&[]);
        let status = fuzzer.assert_goes_on();
        println!("move {number}: {} lazy pages, {} operations", summary["pages_lazy"], status["ops"]);
        assert_nothing_missed(&summary);
        if number % 5 == 0 {
            println!("{}", fuzzer.verify());
        }
    }
    // The judge is sound: one changed bit is noticed.
    println!("{}", fuzzer.spoil());
}

/// The check at the hold found no page that neither the rounds nor CRIU had.
#[track_caller]
fn assert_nothing_missed(summary: &Value) {
    assert_eq!(summary["pages_missed"].as_u64().unwrap_or(0), 0, "{summary:#}");
}

#[test]
fn processes_that_fork_and_exec_carry_their_state_over() {
    let cluster = cluster("forker");
    let spec = ContainerSpec::workload(id("forker"), "forker.py", &["--pause-ms", "30"]);
    let mut forker = Program::start(&cluster, &spec, "forker.json");
    let generations = |status: &Value| -> Vec<u64> {
        status["generations"].as_array().unwrap().iter().map(|number| number.as_u64().unwrap()).collect()
    };
    for _ in 0..4 {
        let before = generations(&forker.assert_goes_on());
        assert_nothing_missed(&forker.move_over(&[]));
        // Every line goes on from where it was.
        let until = std::time::Instant::now() + Duration::from_secs(60);
        while generations(&forker.assert_goes_on()).iter().zip(&before).any(|(now, then)| now <= then) {
            assert!(std::time::Instant::now() < until, "a line stands still at {before:?}");
        }
    }
}

#[test]
fn direct_reads_under_way_are_not_lost() {
    let cluster = cluster("direct");
    let mut reader = Program::start(&cluster, &ContainerSpec::workload(id("direct"), "odirect.py", &[]), "odirect.json");
    for _ in 0..4 {
        assert_nothing_missed(&reader.move_over(&[]));
        println!("{}", reader.verify());
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
        let mut spec = ContainerSpec::workload(crate::harness::id(id), "memory.py", args).address(address.into());
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
        assert_eq!(ended.code, 0, "{}\n{}\n{}", ended.text, self.cluster.agent_log(self.host), self.cluster.agent_log(to));
        self.host = to;
        let summary = ended.event("completed");
        assert_nothing_missed(&summary);
        summary
    }

    /// It cannot be moved; the operator reads why, and it goes on with all it had.
    #[track_caller]
    fn cannot_be_moved(&self) {
        let ended = Moving::start(self.cluster, self.host, self.id, "node-b", &[]).end();
        assert_ne!(ended.code, 0, "{}", ended.text);
        let failed = ended.event("failed");
        println!("{failed:#}");
        assert!(!failed["message"].as_str().unwrap().is_empty() || !failed["reasons"][0].is_null(), "{failed:#}");
        self.verify();
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

#[test]
fn a_killed_agent_does_not_stop_the_pages_that_are_still_to_come() {
    let mut cluster = cluster("refill");
    Memory::start(&cluster, "refill", 71, &["--mib", "192"]);
    let program = format!("{CLIENT_PROGRAM}incr.py");
    let argv = ["python3", &program, "10.77.0.71", "--report", "/tmp/refill.json", "--interval-ms", "4"];
    let mut client = cluster.lab.spawn("client", &argv, "refill.log").unwrap();
    let ended = Moving::start(&cluster, "node-a", "refill", "node-b", &[]).end();
    assert_eq!(ended.code, 0, "{}\n{}", ended.text, cluster.agent_log("node-b"));
    cluster.lab.kill_agent("node-b", Signal::SIGKILL).unwrap();
    cluster.lab.restart_agent("node-b").unwrap();
    let mut back = Memory { cluster: &cluster, id: "refill", address: [10, 77, 0, 71], host: "node-b" };
    println!("{}", back.verify());
    back.move_over();
    println!("{}", back.verify());
    client.signal(Signal::SIGTERM);
    let code = client.wait(Duration::from_secs(60)).unwrap();
    let report = cluster.lab.client().unwrap().read_file("/tmp/refill.json").unwrap();
    assert_eq!(code, 0, "{}", String::from_utf8_lossy(&report));
}

#[test]
fn processes_that_resist_are_moved_whole_or_stay() {
    let cluster = cluster("kinds");
    let kind = |name: &'static str, octet: u8, kind: &str| {
        Memory::start(&cluster, name, octet, &["--mib", "24", "--rate", "500", "--kind", kind])
    };
    for (name, octet, what) in
        [("kind-seccomp", 72, "seccomp"), ("kind-undumpable", 73, "undumpable"), ("kind-thp", 74, "thp")]
    {
        let mut memory = kind(name, octet, what);
        if what == "thp" {
            let rollup = cluster.lab.exec("node-a", &["runc", "exec", name, "cat", "/proc/1/smaps_rollup"]).unwrap();
            println!("{}", rollup.lines().find(|line| line.starts_with("AnonHugePages")).unwrap_or("no huge pages"));
        }
        memory.move_over();
        memory.verify();
        memory.move_over();
        println!("{what}: {}", memory.verify());
    }
    kind("kind-traced", 75, "traced").cannot_be_moved();
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
    let mut memory = Memory::start(&cluster, "hugetlb", 76, &["--mib", "16", "--kind", "hugetlb"]);
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

#[test]
fn redis_moves_while_it_is_used_and_saves() {
    let cluster = cluster("bgsave");
    redis(&cluster, "node-a", "bgsave", 77);
    let client = cluster.lab.client().unwrap();
    let python = |program: &str, more: &str| {
        client.shell(&format!("python3 {CLIENT_PROGRAM}{program} 10.77.0.77 {more}")).unwrap()
    };
    python("fill_redis.py", "--mib 32");
    let program = format!("{CLIENT_PROGRAM}redis_load.py");
    let argv = ["python3", "-u", &program, "10.77.0.77", "--report", "/tmp/load.json", "--rate", "300", "--keys", "2000", "--bgsave-ms", "200"];
    let mut load = cluster.lab.spawn("client", &argv, "load.log").unwrap();
    let until = std::time::Instant::now() + Duration::from_secs(60);
    while !fs::read_to_string(load.log()).unwrap().contains("ready") {
        assert!(std::time::Instant::now() < until, "{:?}", fs::read_to_string(load.log()));
        std::thread::sleep(Duration::from_millis(50));
    }
    for (from, to) in [("node-a", "node-b"), ("node-b", "node-a")] {
        let ended = Moving::start(&cluster, from, "bgsave", to, &[]).end();
        assert_eq!(ended.code, 0, "{}\n{}", ended.text, cluster.agent_log(to));
        assert_nothing_missed(&ended.event("completed"));
        let info = client.shell("redis-cli -h 10.77.0.77 info persistence").unwrap();
        assert!(info.contains("rdb_last_bgsave_status:ok"), "{info}");
    }
    load.signal(Signal::SIGTERM);
    let code = load.wait(Duration::from_secs(90)).unwrap();
    let report = client.read_file("/tmp/load.json").unwrap_or_default();
    let report: Value = serde_json::from_slice(&report).unwrap_or_default();
    println!("{} background saves", report["saves"]);
    assert!(code == 0 && report["ok"] == true && report["saves"].as_u64() > Some(2), "{code}: {} {:?}", report["reason"], fs::read_to_string(load.log()));
    println!("{}", python("check_redis.py", "--mib 32 --other-keys 2000"));
    // What it saves is whole.
    client.shell("redis-cli -h 10.77.0.77 save").unwrap();
    let check = ["runc", "exec", "bgsave", "redis-check-rdb", "/data/dump.rdb"];
    println!("{}", cluster.lab.exec("node-a", &check).unwrap());
}
