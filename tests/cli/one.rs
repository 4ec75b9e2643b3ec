//! `decamp migrate` from its first word to its exit code.

use decamp::rpc::v1::{
    DowntimePart, Failure, FileStats, MemoryProgress, Note, Phase, Reason, RoundStats, Summary, event::Body,
};
use tonic::Status;

use crate::fake::{Fake, State, Step, completed, failed, phase};
use crate::harness::{Running, asking, decamp, run};

fn whole_story() -> Vec<Step> {
    let part =
        |name: &str, duration_us| DowntimePart { name: name.into(), duration_us, host: "source".into() };
    let summary = Summary {
        source: "node-a".into(),
        destination: "node-b".into(),
        downtime_us: 82_000,
        downtime_parts: vec![part("freeze+dump", 42_000), part("restore", 40_000)],
        total_us: 2_900_000,
        bytes_sent: 484 << 20,
        ..Summary::default()
    };
    let round = RoundStats {
        round: 1,
        pages_dirty: 262_144,
        bytes_sent: 1 << 20,
        duration_us: 1_000_000,
        ..RoundStats::default()
    };
    vec![
        phase(Phase::Preflight),
        Step::Say(Body::Note(Note { text: "14 checks passed".into() })),
        phase(Phase::Files),
        Step::Say(Body::FileRound(FileStats {
            round: 1,
            bytes_total: 4096,
            entries: 3,
            ..FileStats::default()
        })),
        phase(Phase::PreCopy),
        Step::Say(Body::MemoryProgress(MemoryProgress {
            round: 1,
            pages_done: 1,
            pages_total: 2,
            ..MemoryProgress::default()
        })),
        Step::Say(Body::MemoryRound(round)),
        phase(Phase::CutOver),
        phase(Phase::Committing),
        phase(Phase::Completed),
        Step::Say(Body::Completed(summary)),
    ]
}

#[test]
fn a_success_is_told_in_plain_lines() {
    let fake = Fake::playing("redis", whole_story());
    let ran = run(asking(&fake, "migrate redis --to node-b --mount /data=copy --bandwidth 1MiB/s"));
    ran.expect(
        0,
        &["14 checks passed", "round 1", "1.00 GiB", "freeze+dump", "node-a -> node-b   downtime 82 ms"],
        &[],
    );
    assert_eq!(ran.err, "");
    assert!(!ran.out.replace('\n', "").chars().any(char::is_control), "{ran:#?}");
    assert_eq!(ran.out.lines().filter(|line| line.starts_with("memory ")).count(), 2, "{ran:#?}");
    let state = fake.state.lock().unwrap();
    let request = &state.migrations[0];
    assert_eq!(
        (&*request.container, &*request.to, request.bandwidth_bytes_per_s),
        ("redis", "node-b", 1 << 20)
    );
    assert_eq!((&*request.mounts[0].destination, &*request.mounts[0].policy), ("/data", "copy"));
}

#[test]
fn json_is_one_event_per_line() {
    let fake = Fake::playing("redis", whole_story());
    let ran = run(asking(&fake, "migrate redis --to node-b --json"));
    ran.expect(0, &[], &[]);
    let events: Vec<serde_json::Value> =
        ran.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events.len(), whole_story().len());
    assert_eq!(events[0]["phase"]["phase"], "preflight");
    assert_eq!(events[7]["phase"]["phase"], "cut-over");
    assert_eq!(events[10]["completed"]["downtime_parts"][0]["name"], "freeze+dump");
    assert!(
        events.iter().all(|event| event["migration_id"] == "id-of-redis" && event["container"] == "redis")
    );
}

#[test]
fn quiet_is_quiet() {
    let fake = Fake::playing("redis", whole_story());
    let ran = run(asking(&fake, "migrate redis --to node-b -q"));
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (0, "", ""));
}

#[test]
fn a_refusal_lists_all_reasons() {
    let reason = |code: &str, what: &str, evidence: &str, remedy: &str| Reason {
        code: code.into(),
        what: what.into(),
        evidence: evidence.into(),
        remedy: remedy.into(),
    };
    let refusal = Failure {
        phase: Phase::Negotiating.into(),
        host: "node-b".into(),
        state_now: "redis runs at node-a, untouched".into(),
        remedy: "mend these and try again".into(),
        reasons: vec![
            reason("name-taken", "a container redis exists", "runc list", "remove it"),
            reason(
                "mount-source-missing",
                "/srv/data is not there",
                "stat: ENOENT",
                "create it, or --mount /data=copy",
            ),
            reason("memory", "1.00 GiB is wanted, 200 MiB are free", "MemAvailable", "free some"),
        ],
        ..Failure::default()
    };
    let fake = Fake::playing("redis", vec![phase(Phase::Negotiating), failed(refusal)]);
    let ran = run(asking(&fake, "migrate redis --to node-b"));
    let pieces = [
        "refused on node-b for 3 reasons; nothing was changed",
        "1. a container redis exists [name-taken]",
        "evidence  stat: ENOENT",
        "remedy    create it, or --mount /data=copy",
        "3. 1.00 GiB is wanted",
        "now       redis runs at node-a, untouched",
        "next      mend these and try again",
    ];
    ran.expect(3, &[], &pieces);
}

#[test]
fn a_failure_shows_the_evidence_and_where_it_runs() {
    let failure = Failure {
        phase: Phase::CutOver.into(),
        host: "node-b".into(),
        message: "restore: criu exited with 1".into(),
        state_now: "redis runs at node-a with its connections".into(),
        remedy: "load the module".into(),
        log_lines: vec!["Error (criu/net.c:1): \x1b[2Jno such module".into()],
        ..Failure::default()
    };
    let fake = Fake::playing("redis", vec![phase(Phase::CutOver), failed(failure)]);
    let ran = run(asking(&fake, "migrate redis --to node-b"));
    let pieces = [
        "it failed on node-b in the cut-over",
        "what      restore: criu exited",
        "evidence  Error (criu/net.c:1)",
    ];
    ran.expect(1, &[], &pieces);
    ran.expect(1, &[], &["now       redis runs at node-a with", "next      load the module"]);
    assert!(!ran.err.contains('\x1b'), "a log line must not drive the terminal: {ran:#?}");
}

#[test]
fn in_doubt_has_its_own_code() {
    let doubt =
        Failure { phase: Phase::InDoubt.into(), message: "the link is down".into(), ..Failure::default() };
    let fake = Fake::playing("redis", vec![phase(Phase::InDoubt), failed(doubt)]);
    let ran = run(asking(&fake, "migrate redis --to node-b"));
    ran.expect(5, &["in doubt"], &["not known yet on which host redis runs", "never run twice"]);
}

#[test]
fn what_the_agent_will_not_begin() {
    let cases = [
        (Status::invalid_argument("to: node-z is no peer"), 2, "node-z is no peer"),
        (Status::already_exists("redis is being moved (id-7)"), 3, "redis is being moved"),
        (Status::permission_denied("mallory may not ask"), 3, "lists who may ask"),
        (Status::unimplemented(""), 1, "update it"),
        (Status::internal("the journal is full"), 6, "is not known here"),
    ];
    for (status, code, piece) in cases {
        let fake = Fake::start(State { refuse: Some(status), ..State::default() });
        run(asking(&fake, "migrate redis --to node-b")).expect(code, &[], &[piece]);
    }
    let fake = Fake::start(State::default());
    run(asking(&fake, "migrate redis --to node-b")).expect(2, &[], &["no container redis on this host"]);
}

#[test]
fn a_lost_agent_leaves_the_outcome_open() {
    let mut fake = Fake::playing("redis", vec![phase(Phase::PreCopy), Step::Hang]);
    let mut running = Running::start(asking(&fake, "migrate redis --to node-b"));
    running.until("copying memory");
    fake.vanish();
    let pieces = [
        "connection to the agent",
        "was lost",
        "is not known here",
        "`decamp watch id-of-redis`",
        "decamp history",
    ];
    running.end().expect(6, &[], &pieces);
}

#[test]
fn a_stream_that_breaks_or_just_ends_leaves_it_open_too() {
    for script in
        [vec![phase(Phase::Files), Step::Break(Status::internal("oops"))], vec![phase(Phase::Files)]]
    {
        let fake = Fake::playing("redis", script);
        run(asking(&fake, "migrate redis --to node-b")).expect(6, &[], &["is not known here"]);
    }
}

#[test]
fn no_agent() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("none.sock");
    let ran = run(decamp(&format!("migrate redis --to b --agent unix:{}", missing.display())));
    ran.expect(6, &[], &["cannot be reached", "No such file", "systemctl start decamp"]);
    let stale = folder.path().join("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    let ran = run(decamp(&format!("ls --agent {}", stale.display())));
    ran.expect(6, &[], &["cannot be reached", "nobody listens"]);
}

#[test]
fn a_reader_that_leaves_does_not_change_the_outcome() {
    let script = vec![
        phase(Phase::Files),
        Step::AwaitCancel,
        phase(Phase::PreCopy),
        phase(Phase::CutOver),
        completed("redis"),
    ];
    let fake = Fake::playing("redis", script);
    let mut running = Running::start(asking(&fake, "migrate redis --to node-b"));
    running.until("copying files");
    let child = running.stop_reading();
    run(asking(&fake, "cancel id-of-redis")).expect(0, &["cancelling"], &[]);
    let output = crate::harness::wait(child);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
}

#[test]
fn a_full_disk_is_an_error() {
    let fake = Fake::playing("redis", whole_story());
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let output = asking(&fake, "migrate redis --to node-b").stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("standard output cannot be written"),
        "{output:?}"
    );
}
