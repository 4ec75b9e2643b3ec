//! Looking and asking: ls, info, history, cancel, help, completions.

use decamp::rpc::v1::{ContainerInfo, HistoryEntry, HistoryReply, InfoReply, ListReply, Reason};

use crate::fake::{Fake, State};
use crate::harness::{Running, asking, decamp, run, wait};

fn busy_host() -> Fake {
    let redis = ContainerInfo {
        id: "redis".into(),
        status: "running".into(),
        init_pid: 7,
        ..ContainerInfo::default()
    };
    let problem =
        Reason { what: "criu is too old".into(), remedy: "install 4.2".into(), ..Reason::default() };
    let entry =
        HistoryEntry { container: "redis".into(), outcome: "in-doubt".into(), ..HistoryEntry::default() };
    Fake::start(State {
        list: ListReply { containers: vec![redis] },
        info: InfoReply { host: "node-a".into(), problems: vec![problem], ..InfoReply::default() },
        history: HistoryReply { entries: vec![entry; 5000] },
        ..State::default()
    })
}

#[test]
fn answers_as_tables_and_as_json() {
    let fake = busy_host();
    run(asking(&fake, "ls")).expect(0, &["CONTAINER", "redis      running"], &[]);
    run(asking(&fake, "info")).expect(0, &["node-a", "1. criu is too old", "install 4.2"], &[]);
    let ran = run(asking(&fake, "history -n 3"));
    ran.expect(0, &["in-doubt"], &[]);
    assert_eq!(ran.out.lines().count(), 4);
    for (line, pointer, value) in [
        ("ls --json", "/containers/0/init_pid", "7"),
        ("info --json", "/problems/0/remedy", "\"install 4.2\""),
        ("history -n 2 --json", "/entries/1/outcome", "\"in-doubt\""),
    ] {
        let ran = run(asking(&fake, line));
        let json: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
        assert_eq!(json.pointer(pointer).unwrap().to_string(), value, "{line}");
        assert_eq!(ran.out.lines().count(), 1, "{line}");
    }
}

#[test]
fn colour_only_where_it_is_wanted() {
    let fake = busy_host();
    assert!(!run(asking(&fake, "ls")).out.contains('\x1b'));
    assert!(run(asking(&fake, "ls --color always")).out.contains("\x1b[1mredis\x1b[0m"));
}

#[test]
fn cancel_says_whether_it_was_taken() {
    let fake = busy_host();
    run(asking(&fake, "cancel redis --why because")).expect(0, &["redis: cancelling"], &[]);
    assert_eq!(fake.state.lock().unwrap().cancels[0].why, "because");
    fake.state.lock().unwrap().refuse_cancel = Some("it has been handed over".into());
    run(asking(&fake, "cancel redis")).expect(3, &[], &["redis is not cancelled", "it has been handed over"]);
    run(asking(&fake, "cancel redis --json")).expect(3, &["\"accepted\":false"], &["not cancelled"]);
}

#[test]
fn a_pipe_that_closes_early_is_no_error() {
    let fake = busy_host();
    let mut running = Running::start(asking(&fake, "history -n 5000"));
    running.until("FINISHED");
    let output = wait(running.stop_reading());
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]), "{output:?}");
}

#[test]
fn help_and_usage() {
    run(decamp("--help")).expect(0, &["Exit codes:", "Move:\n  migrate"], &[]);
    run(decamp("help migrate")).expect(
        0,
        &["Examples:", "--downtime-target <TIME>", "Ctrl-C asks the agent to cancel"],
        &[],
    );
    run(decamp("--version")).expect(0, &["decamp "], &[]);
    run(decamp("migrate redis")).expect(2, &[], &["--to <HOST>"]);
    run(decamp("migrate redis --to b --bandwidth 5M")).expect(2, &[], &["can mean two things"]);
    run(decamp("")).expect(2, &[], &["Usage: decamp"]);
}

#[test]
fn completions_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        run(decamp(&format!("completions {shell}"))).expect(0, &["migrate", "downtime-target"], &[]);
    }
}
