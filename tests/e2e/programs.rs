//! Containers whose program checks itself: started, moved, asked for a full comparison, and found out when they are wrong.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use decamp::lab::{Cluster, ContainerSpec, Host};
use serde_json::Value;

use crate::moving::Moving;

/// How long a program may take until it reports, or has compared everything; generous, because tests share a machine.
const REPORT_WITHIN: Duration = Duration::from_secs(120);

/// A container that keeps `/vol/STATUS` fresh and answers a word in `/vol/verify` with the same word in `/vol/report.json`.
pub(crate) struct Program<'a> {
    cluster: &'a Cluster,
    id: String,
    pub(crate) host: &'static str,
    status: &'static str,
    verifications: u32,
}

fn unix_ms() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64() * 1e3
}

/// What is in the container's `/vol`, wherever it runs; `None` while it is not there.
fn inside(host: &Host, id: &str, file: &str) -> Option<Value> {
    let path = format!("/vol/{file}");
    let output = host.exec_with(&["runc", "exec", id, "cat", &path], b"", REPORT_WITHIN).unwrap();
    if output.code == 0 { serde_json::from_slice(&output.stdout).ok() } else { None }
}

impl<'a> Program<'a> {
    /// Starts it on node-a and waits for its first status.
    #[track_caller]
    pub(crate) fn start(cluster: &'a Cluster, spec: &ContainerSpec, status: &'static str) -> Self {
        cluster.lab.run_container("node-a", spec).unwrap();
        let program = Self { cluster, id: spec.id.to_string(), host: "node-a", status, verifications: 0 };
        program.assert_goes_on();
        program
    }

    fn read(&self, file: &str) -> Option<Value> {
        inside(&self.cluster.host(self.host).unwrap(), &self.id, file)
    }

    /// It reports something that it can only know now, and nothing is wrong.
    #[track_caller]
    pub(crate) fn assert_goes_on(&self) -> Value {
        let now = unix_ms();
        self.wait_for(self.status, |status| status["unix_ms"].as_f64().is_some_and(|at| at > now))
    }

    /// It compares everything it has, and all is right.
    #[track_caller]
    pub(crate) fn verify(&mut self) -> Value {
        self.verifications += 1;
        let token = format!("{}-{}", self.host, self.verifications);
        self.shell(&format!("echo {token} > /vol/verify"));
        self.wait_for("report.json", |report| report["token"] == token.as_str())
    }

    fn shell(&self, script: &str) -> String {
        self.cluster.lab.exec(self.host, &["runc", "exec", &self.id, "sh", "-ec", script]).unwrap()
    }

    #[track_caller]
    fn wait_for(&self, file: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let until = Instant::now() + REPORT_WITHIN;
        loop {
            let found = self.read(file);
            if let Some(found) = &found {
                assert_ne!(found["ok"], false, "{} on {}: {found:#}", self.id, self.host);
                if wanted(found) {
                    return found.clone();
                }
            }
            let failure = self.complaint();
            assert!(failure.is_none(), "{} on {}: {failure:#?}", self.id, self.host);
            assert!(
                Instant::now() < until,
                "{} on {}: no {file} in time, but {found:#?}",
                self.id,
                self.host
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What it said before it ended, if it did: its container is gone then, the files are not.
    fn complaint(&self) -> Option<Value> {
        let host = self.cluster.host(self.host).unwrap();
        let folders =
            ["/var/lib/decamp/containers/ID/volumes/0", "/var/lib/decamp-lab-containers/ID/volumes/vol"];
        let paths =
            folders.map(|folder| host.outer_path(&folder.replace("ID", &self.id)).join("failure.json"));
        paths.iter().find_map(|path| serde_json::from_slice(&std::fs::read(path).ok()?).ok())
    }

    /// Moves it to the other host; returns the summary.
    #[track_caller]
    pub(crate) fn move_over(&mut self, more: &[&str]) -> Value {
        let to = if self.host == "node-a" { "node-b" } else { "node-a" };
        let ended = Moving::restless(self.cluster, self.host, &self.id, to, more);
        if ended.code != 0 {
            let (source, destination) = (self.cluster.agent_log(self.host), self.cluster.agent_log(to));
            let complaint = self.complaint();
            panic!(
                "{} to {to}: {}; it says {complaint:#?}\n{}\n--- {}\n{source}\n--- {to}\n{destination}",
                self.id, ended.code, ended.text, self.host
            );
        }
        self.host = to;
        ended.event("completed")
    }
}

/// The sources of the programs.
fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/workloads")
}

/// Where the containers of a lab find more programs than the lab brings, as this machine sees it.
fn workloads(cluster: &Cluster) -> PathBuf {
    cluster.lab.state_dir().join("workloads")
}

#[track_caller]
fn run(command: &mut Command, remedy: &str) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}; {remedy}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Compiles the Java program for the containers of a lab, and makes a small Java runtime for it: /workloads/java.
pub(crate) fn compile_java(cluster: &Cluster) {
    let to = workloads(cluster).join("java");
    let remedy = "deploy/setup.sh installs a JDK";
    let mut javac = Command::new("javac");
    run(javac.arg("-d").arg(to.join("classes")).arg(sources().join("Heap.java")), remedy);
    let mut jlink = Command::new("jlink");
    run(
        jlink.args(["--add-modules", "java.base", "--strip-debug", "--output"]).arg(to.join("runtime")),
        remedy,
    );
}
