//! Several migrations at once: drain and watch.

use std::collections::HashMap;
use std::time::Duration;

use decamp::rpc::v1::{ContainerInfo, Failure, ListReply, Phase, event::Body};
use nix::sys::signal::Signal;
use tonic::Status;

use crate::fake::{Fake, State, Step, cancelled, completed, failed, phase};
use crate::harness::{Running, asking, run};

fn host(containers: &[(&str, &str, &str)], scripts: Vec<(&str, Vec<Step>)>) -> Fake {
    let info = |(id, status, migration_id): &(&str, &str, &str)| ContainerInfo {
        id: (*id).into(),
        status: (*status).into(),
        migration_id: (*migration_id).into(),
        ..ContainerInfo::default()
    };
    let list = ListReply { containers: containers.iter().map(info).collect() };
    let scripts: HashMap<_, _> =
        scripts.into_iter().map(|(name, script)| (name.to_owned(), script)).collect();
    Fake::start(State { list, scripts, ..State::default() })
}

fn moves(name: &str) -> Vec<Step> {
    vec![phase(Phase::Files), Step::Pause(Duration::from_millis(150)), completed(name)]
}

fn fails() -> Vec<Step> {
    let message = "criu says no".to_owned();
    vec![failed(Failure { phase: Phase::CutOver.into(), message, ..Failure::default() })]
}

#[test]
fn one_failure_stops_nobody_else() {
    let containers =
        [("a", "running", ""), ("b", "running", ""), ("c", "running", ""), ("d", "running", "id-of-d")];
    let rest = [("e", "running", ""), ("sleepy", "paused", ""), ("old", "stopped", "")];
    let all: Vec<_> = containers.into_iter().chain(rest).collect();
    let scripts = vec![
        ("a", moves("a")),
        ("b", fails()),
        ("c", moves("c")),
        ("id-of-d", moves("d")),
        ("e", moves("e")),
    ];
    let fake = host(&all, scripts);
    let ran = run(asking(&fake, "drain --to node-b --tcp close"));
    ran.expect(
        1,
        &["a            files        copying", "4 of 5 moved", "sleepy is paused and was left alone"],
        &["criu says no"],
    );
    let row =
        |name: &str, piece: &str| ran.out.lines().any(|line| line.starts_with(name) && line.contains(piece));
    assert!(
        row("b ", "failed") && row("b ", "criu says no") && row("e ", "moved") && row("c ", "82 ms"),
        "{ran:#?}"
    );
    let state = fake.state.lock().unwrap();
    assert_eq!(state.migrations.len(), 4, "the one in flight is followed, not asked for again");
    assert_eq!(state.watched, ["id-of-d"]);
    assert!(state.migrations.iter().all(|request| request.tcp == "close" && request.to == "node-b"));
    assert_eq!(state.most_in_flight, 2);
}

#[test]
fn all_moved_is_a_success_and_nothing_to_do_too() {
    let fake =
        host(&[("a", "running", ""), ("b", "running", "")], vec![("a", moves("a")), ("b", moves("b"))]);
    run(asking(&fake, "drain --to node-b -j 1")).expect(0, &["2 of 2 moved"], &[]);
    assert_eq!(fake.state.lock().unwrap().most_in_flight, 1);
    let fake = host(&[("a", "stopped", "")], vec![]);
    run(asking(&fake, "drain --to node-b")).expect(0, &["nothing to do"], &[]);
}

#[test]
fn drain_as_json_is_only_events() {
    let fake = host(&[("a", "running", ""), ("gone", "running", "")], vec![("a", moves("a"))]);
    let ran = run(asking(&fake, "drain --to node-b --json"));
    ran.expect(1, &[], &["no container gone"]);
    let events: Vec<serde_json::Value> =
        ran.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let ends = |name: &str, key: &str| {
        events.iter().any(|event| event["container"] == name && event[key].is_object())
    };
    assert!(ends("a", "completed") && ends("gone", "failed"), "{ran:#?}");
}

#[test]
fn an_interrupted_drain_begins_no_more() {
    let script = vec![phase(Phase::PreCopy), Step::AwaitCancel, cancelled()];
    let fake = host(&[("a", "running", ""), ("b", "running", "")], vec![("a", script), ("b", moves("b"))]);
    let mut running = Running::start(asking(&fake, "drain --to node-b -j 1"));
    running.until("copying memory");
    running.signal(Signal::SIGINT);
    let ran = running.end();
    ran.expect(4, &["0 of 2 moved", "not begun"], &["asking the agent to cancel"]);
    assert_eq!(fake.state.lock().unwrap().migrations.len(), 1);
}

#[test]
fn an_interrupted_drain_does_not_cancel_what_others_started() {
    let story = vec![phase(Phase::PreCopy), Step::Pause(Duration::from_millis(1500)), completed("d")];
    let fake = host(&[("d", "running", "id-of-d")], vec![("id-of-d", story)]);
    let mut running = Running::start(asking(&fake, "drain --to node-b"));
    running.until("copying memory");
    running.signal(Signal::SIGINT);
    running.end().expect(0, &["1 of 1 moved"], &["was not started here and goes on"]);
    assert!(fake.state.lock().unwrap().cancels.is_empty());
}

#[test]
fn watching_all_names_each_line_and_survives_failures() {
    let story = vec![phase(Phase::PreCopy), failed(Failure { message: "no".into(), ..Failure::default() })];
    let fake = Fake::playing("", story);
    run(asking(&fake, "watch")).expect(0, &["copying memory"], &["decamp:", "what      no"]);
    let fake = Fake::playing("", vec![]);
    run(asking(&fake, "watch")).expect(0, &["no migration is in flight"], &[]);
    let fake = Fake::playing("", vec![Step::Break(Status::internal("oops"))]);
    run(asking(&fake, "watch")).expect(6, &[], &["oops"]);
}

#[test]
fn watching_one_ends_as_the_migration_does() {
    let fake = Fake::playing("redis", vec![phase(Phase::Files), completed("redis")]);
    run(asking(&fake, "watch redis")).expect(0, &["downtime 82 ms"], &[]);
    let fake = Fake::playing("redis", vec![cancelled()]);
    run(asking(&fake, "watch redis --json")).expect(4, &["\"cancelled\":true"], &[]);
    let fake = Fake::playing("redis", vec![Step::Say(Body::Completed(decamp::rpc::v1::Summary::default()))]);
    run(asking(&fake, "watch nobody")).expect(2, &[], &["no container nobody"]);
}
