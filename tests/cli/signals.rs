//! Ctrl-C and SIGTERM: the first asks to cancel, the second leaves.

use std::time::Duration;

use decamp::rpc::v1::Phase;
use nix::sys::signal::Signal;

use crate::fake::{Fake, Step, cancelled, completed, phase};
use crate::harness::{Running, asking, eventually};

#[test]
fn the_first_signal_cancels_and_follows_to_the_end() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let script = vec![phase(Phase::PreCopy), Step::AwaitCancel, phase(Phase::RollingBack), cancelled()];
        let fake = Fake::playing("redis", script);
        let mut running = Running::start(asking(&fake, "migrate redis --to node-b"));
        running.until("copying memory");
        running.signal(signal);
        let ran = running.end();
        let pieces = [
            "asking the agent to cancel",
            "Ctrl-C again leaves",
            "redis was not moved: the migration was cancelled",
        ];
        ran.expect(4, &["rolling back"], &pieces);
        let state = fake.state.lock().unwrap();
        assert_eq!(state.cancels.len(), 1);
        assert_eq!(
            state.cancels[0].which, "id-of-redis",
            "the migration is cancelled by its id, not by the container's name"
        );
    }
}

#[test]
fn the_second_signal_leaves_and_says_how_to_come_back() {
    let fake = Fake::playing("redis", vec![phase(Phase::PreCopy), Step::Hang]);
    let mut running = Running::start(asking(&fake, "migrate redis --to node-b"));
    running.until("copying memory");
    running.signal(Signal::SIGINT);
    eventually("the agent is asked to cancel", || fake.state.lock().unwrap().cancels.len() == 1);
    running.signal(Signal::SIGINT);
    running.end().expect(
        6,
        &[],
        &["stopped following redis", "cancelling was asked for", "`decamp watch id-of-redis`"],
    );
}

#[test]
fn too_late_to_cancel_is_said_and_the_success_is_a_success() {
    let script = vec![phase(Phase::Committing), Step::Pause(Duration::from_millis(1500)), completed("redis")];
    let fake = Fake::playing("redis", script);
    fake.state.lock().unwrap().refuse_cancel = Some("it has been handed over".into());
    let mut running = Running::start(asking(&fake, "migrate redis --to node-b"));
    running.until("takes over");
    running.signal(Signal::SIGINT);
    running.end().expect(0, &["downtime 82 ms"], &["redis was not cancelled: it has been handed over"]);
}

#[test]
fn nothing_is_cancelled_before_the_agent_has_named_the_migration() {
    let script = vec![
        Step::Pause(Duration::from_millis(1500)),
        phase(Phase::Preflight),
        Step::AwaitCancel,
        cancelled(),
    ];
    let fake = Fake::playing("redis", script);
    let running = Running::start(asking(&fake, "migrate redis --to node-b"));
    eventually("the agent is asked", || !fake.state.lock().unwrap().migrations.is_empty());
    running.signal(Signal::SIGINT);
    let ran = running.end();
    ran.expect(4, &[], &["as soon as the agent has named the migration"]);
    assert_eq!(fake.state.lock().unwrap().cancels[0].which, "id-of-redis");
}

#[test]
fn leaving_a_watch_changes_nothing() {
    let fake = Fake::playing("redis", vec![phase(Phase::PreCopy), Step::Hang]);
    let mut running = Running::start(asking(&fake, "watch redis"));
    running.until("copying memory");
    running.signal(Signal::SIGINT);
    running.end().expect(6, &[], &["nothing was changed by watching"]);
    assert!(fake.state.lock().unwrap().cancels.is_empty());
}
