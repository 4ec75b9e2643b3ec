//! `decamp migrate --json` in the background: its events, its end, its interruption.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use decamp::lab::{BINARY_IN_HOST, Background, Cluster};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::MIGRATION;

/// How long an event may take to come.
const EVENT: Duration = Duration::from_secs(60);

/// A migration under way.
pub(crate) struct Moving {
    command: Background,
}

/// How it ended.
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) text: String,
}

fn events(text: &str) -> Vec<Value> {
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

impl Moving {
    pub(crate) fn start(cluster: &Cluster, from: &str, id: &str, to: &str, more: &[&str]) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let mut argv = vec![BINARY_IN_HOST, "migrate", id, "--to", to, "--json"];
        argv.extend(more);
        let log = format!("migrate-{}.jsonl", NUMBER.fetch_add(1, Ordering::Relaxed));
        Self { command: cluster.lab.spawn(from, &argv, &log).unwrap() }
    }

    /// Moves something that changes its mappings all the time. One that does so in the last moment before the freeze is told to the
    /// operator, who tries again; so does this.
    pub(crate) fn restless(cluster: &Cluster, from: &str, id: &str, to: &str, more: &[&str]) -> Ended {
        const WORDS: &str = "changed the attributes";
        for _ in 0..7 {
            let ended = Self::start(cluster, from, id, to, more).end();
            if ended.code == 0 || !ended.text.contains(WORDS) {
                return ended;
            }
            println!("{id} {WORDS} of a mapping at the last moment, and is moved again");
        }
        Self::start(cluster, from, id, to, more).end()
    }

    fn text(&self) -> String {
        std::fs::read_to_string(self.command.log()).unwrap()
    }

    /// Waits for an event; that the command ends before is a failure.
    pub(crate) fn until(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) {
        let until = Instant::now() + EVENT;
        loop {
            let ended = self.command.ended().unwrap();
            let text = self.text();
            if events(&text).iter().any(&wanted) {
                return;
            }
            assert!(ended.is_none(), "it ended before {what}:\n{text}");
            assert!(Instant::now() < until, "no {what} in time:\n{text}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn until_phase(&mut self, phase: &str) {
        self.until(phase, |event| event["phase"]["phase"] == phase);
    }

    /// In a memory round, some of which has crossed already.
    pub(crate) fn until_in_memory_round(&mut self) {
        self.until("bytes of a memory round", |event| {
            event["memory_progress"]["bytes_sent"].as_u64().is_some_and(|bytes| bytes > 0)
        });
    }

    /// Ctrl-C.
    pub(crate) fn interrupt(&self) {
        self.command.signal(Signal::SIGINT);
    }

    pub(crate) fn end(mut self) -> Ended {
        let code = self.command.wait(MIGRATION).unwrap_or_else(|error| panic!("{error}:\n{}", self.text()));
        Ended { code, text: self.text() }
    }
}

impl Ended {
    /// The one event of this kind.
    pub(crate) fn event(&self, kind: &str) -> Value {
        let found = events(&self.text).into_iter().find(|event| !event[kind].is_null());
        found.unwrap_or_else(|| panic!("no {kind} in\n{}", self.text))[kind].clone()
    }

    /// It failed with this exit code, and says so in its last event.
    #[track_caller]
    pub(crate) fn must_fail(&self, code: i32) -> Value {
        assert_eq!(self.code, code, "{}", self.text);
        self.event("failed")
    }
}
