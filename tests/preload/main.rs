//! The object that hides mappings from CRIU, with the CRIU of the lab: what is dumped and what is not, and that the process comes
//! back whole when the hidden pages are put beside the dumped ones. Needs root; builds the lab's root file system if this machine
//! has none.
#![allow(clippy::unwrap_used, reason = "a test's way to fail")]

mod inside;

use std::path::PathBuf;
use std::time::Duration;

use decamp::lab::{ContainerSpec, Host, Lab, LabOptions};
use decamp::model::ContainerId;

/// Set where this program runs in a lab host.
const INSIDE: &str = "DECAMP_TEST_INSIDE";
/// What it says there at its end.
const DONE: &str = "came to the end inside";
/// This program, there.
const PROGRAM: &str = "/tmp/test";
const SUBJECT: &str = include_str!("subject.py");

fn open(name: &str) -> Lab {
    let mut options = LabOptions::new(&format!("{name}-{}", std::process::id())).unwrap();
    options.decamp = PathBuf::from(env!("CARGO_BIN_EXE_decamp"));
    options.hosts = vec!["node-a".to_owned()];
    Lab::open(&options, &mut |line| eprintln!("{line}")).unwrap()
}

/// Runs one of the functions of [`inside`] in a host, where CRIU and the processes it dumps see the same process numbers.
fn run_inside(host: &Host, what: &str) {
    host.write_file("/tmp/subject.py", SUBJECT.as_bytes(), 0o644).unwrap();
    std::fs::copy(std::env::current_exe().unwrap(), host.outer_path(PROGRAM)).unwrap();
    let test = format!("inside::{what}");
    let program =
        ["env", &format!("{INSIDE}=1"), "RUST_BACKTRACE=1", PROGRAM, "--exact", &test, "--nocapture"];
    let output = host.exec_with(&program, b"", Duration::from_secs(300)).unwrap();
    let said = output.success(what).unwrap();
    assert!(said.contains(DONE), "{said}");
}

#[test]
fn a_dump_leaves_out_what_is_hidden_and_the_process_comes_back_whole() {
    let lab = open("hide");
    run_inside(&lab.host("node-a").unwrap(), "dump_and_restore");
    lab.close().unwrap();
}

#[test]
fn mappings_that_changed_after_the_look_are_dumped() {
    let lab = open("changed");
    run_inside(&lab.host("node-a").unwrap(), "dump_what_changed");
    lab.close().unwrap();
}

/// The runtime is a program of its own, statically linked or not, and starts CRIU; CRIU starts helpers such as tar.
#[test]
fn the_runtime_hands_the_environment_to_criu() {
    let lab = open("runtime");
    let host = lab.host("node-a").unwrap();
    let fill = "import time; block = bytearray(b'decamp' * (4 << 20)); time.sleep(1000)";
    let spec = ContainerSpec::new(ContainerId::try_from("filled").unwrap(), &["python3", "-c", fill]);
    host.run_container(&spec).unwrap();
    run_inside(&host, "checkpoint_a_container");
    lab.close().unwrap();
}
