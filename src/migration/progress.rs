//! What watchers see: milestones are kept for those who come late, numbers in between are only broadcast. The phase is part of
//! every failure, so it is remembered here and set in one place per step.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::broadcast;

use crate::model::{ContainerId, MigrationId};
use crate::rpc::v1::{Event, Note, Phase, PhaseChange, event::Body};

/// Events that a slow watcher may lag behind.
const BACKLOG: usize = 256;
/// Milestones kept for late watchers; a migration has a few dozen.
const MILESTONES_MAX: usize = 4096;

/// Milliseconds since the Unix epoch.
#[must_use]
pub fn unix_ms() -> u64 {
    unix_us() / 1000
}

/// Microseconds since the Unix epoch.
#[must_use]
pub fn unix_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

#[derive(Debug)]
struct Inner {
    migration: MigrationId,
    container: ContainerId,
    state: Mutex<State>,
    sender: broadcast::Sender<Event>,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    /// The phase before that one.
    before: Phase,
    milestones: Vec<Event>,
    notes: Vec<String>,
}

/// One migration's events.
#[derive(Debug, Clone)]
pub struct Progress(Arc<Inner>);

impl Progress {
    /// Nothing has happened yet.
    #[must_use]
    pub fn new(migration: MigrationId, container: ContainerId) -> Self {
        let (sender, _) = broadcast::channel(BACKLOG);
        let state = State {
            phase: Phase::Unspecified,
            before: Phase::Unspecified,
            milestones: Vec::new(),
            notes: Vec::new(),
        };
        Self(Arc::new(Inner { migration, container, state: Mutex::new(state), sender }))
    }

    /// Which migration.
    #[must_use]
    pub fn migration(&self) -> &MigrationId {
        &self.0.migration
    }

    /// Which container.
    #[must_use]
    pub fn container(&self) -> &ContainerId {
        &self.0.container
    }

    /// Where it stands.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner).phase
    }

    /// Where it stood before it was rolled back: the phase in which it failed.
    #[must_use]
    pub fn failed_in(&self) -> Phase {
        let state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.phase == Phase::RollingBack { state.before } else { state.phase }
    }

    /// Notes so far, for the summary.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner).notes.clone()
    }

    /// Enters a phase.
    pub fn enter(&self, phase: Phase) {
        tracing::info!(migration = %self.0.migration, container = %self.0.container, phase = phase.as_str_name(), "phase");
        self.emit(Body::Phase(PhaseChange { phase: phase.into() }));
    }

    /// Tells the operator something.
    pub fn note(&self, text: impl Into<String>) {
        let text = text.into();
        tracing::info!(migration = %self.0.migration, container = %self.0.container, "{text}");
        self.emit(Body::Note(Note { text }));
    }

    /// Publishes an event.
    pub fn emit(&self, body: Body) {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        let passing = matches!(body, Body::MemoryProgress(_) | Body::FileProgress(_));
        match &body {
            Body::Phase(change) => state.before = std::mem::replace(&mut state.phase, change.phase()),
            Body::Note(note) => state.notes.push(note.text.clone()),
            _ => {}
        }
        let event = Event {
            migration_id: self.0.migration.to_string(),
            container: self.0.container.to_string(),
            unix_ms: unix_ms(),
            body: Some(body),
        };
        if !passing && state.milestones.len() < MILESTONES_MAX {
            state.milestones.push(event.clone());
        }
        // Nobody may be watching.
        let _watchers = self.0.sender.send(event);
    }

    /// Everything of note so far, and what comes.
    #[must_use]
    pub fn subscribe(&self) -> (Vec<Event>, broadcast::Receiver<Event>) {
        // Under the lock, so that nothing falls between the two.
        let state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        (state.milestones.clone(), self.0.sender.subscribe())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::v1::MemoryProgress;

    #[test]
    fn a_late_watcher_sees_milestones_but_not_passing_numbers() {
        let progress = Progress::new(MigrationId::fresh(), "c".try_into().unwrap());
        progress.enter(Phase::PreCopy);
        progress.emit(Body::MemoryProgress(MemoryProgress::default()));
        let (seen, mut coming) = progress.subscribe();
        assert_eq!(seen.len(), 1);
        assert_eq!(progress.phase(), Phase::PreCopy);
        progress.note("hello");
        assert!(matches!(coming.try_recv().unwrap().body, Some(Body::Note(_))));
        assert_eq!(progress.notes(), ["hello"]);
        assert_eq!(progress.failed_in(), Phase::PreCopy);
        progress.enter(Phase::RollingBack);
        assert_eq!(progress.failed_in(), Phase::PreCopy);
    }
}
