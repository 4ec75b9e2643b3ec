//! Copying yields to the containers of this host; a freeze yields to nobody.
//!
//! ```text
//! nothing in flight ─▶ nice 0        rounds only ─▶ nice [migration] nice        a container is frozen ─▶ nice 0
//! ```
//! Rounds read, hash, encrypt and receive with what CPU time the containers leave; while one of them stands still because of us,
//! every thread of the agent is as urgent as any other process. Nice values belong to threads, so all threads are set at each
//! change; threads made later inherit.

use std::sync::{Arc, Mutex, PoisonError};

use crate::sys::priority;

#[derive(Debug, Default)]
struct State {
    copying: usize,
    frozen: usize,
    nice: i32,
}

/// Shared by all migrations of an agent.
#[derive(Debug)]
pub struct Courtesy {
    nice: i32,
    state: Mutex<State>,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Copying,
    Frozen,
}

/// What a migration is doing; ends when dropped.
#[derive(Debug)]
pub struct Turn {
    courtesy: Arc<Courtesy>,
    kind: Kind,
}

impl Courtesy {
    /// `nice`: the value while only rounds are copied, 0 to 19.
    #[must_use]
    pub fn new(nice: i32) -> Self {
        Self { nice, state: Mutex::default() }
    }

    /// A migration copies while its container runs.
    #[must_use]
    pub fn copying(self: &Arc<Self>) -> Turn {
        self.turn(Kind::Copying)
    }

    /// A container stands still, or is about to.
    #[must_use]
    pub fn frozen(self: &Arc<Self>) -> Turn {
        self.turn(Kind::Frozen)
    }

    fn turn(self: &Arc<Self>, kind: Kind) -> Turn {
        self.change(kind, 1);
        Turn { courtesy: Arc::clone(self), kind }
    }

    fn change(&self, kind: Kind, by: isize) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let count = match kind {
            Kind::Copying => &mut state.copying,
            Kind::Frozen => &mut state.frozen,
        };
        *count = count.saturating_add_signed(by);
        let wanted = if state.frozen == 0 && state.copying > 0 { self.nice } else { 0 };
        if wanted == state.nice {
            return;
        }
        match priority::set_all_threads(wanted) {
            Ok(()) => state.nice = wanted,
            // Without CAP_SYS_NICE there is no way back: then it is better not to begin.
            Err(error) => tracing::debug!(%error, wanted, "the agent's priority stays as it is"),
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.courtesy.change(self.kind, -1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(courtesy: &Courtesy) -> i32 {
        courtesy.state.lock().unwrap().nice
    }

    #[test]
    fn a_freeze_is_urgent_whatever_else_is_copied() {
        // 1: the other tests of this process share its threads.
        let courtesy = Arc::new(Courtesy::new(1));
        let copying = courtesy.copying();
        assert_eq!(state(&courtesy), 1);
        let frozen = courtesy.frozen();
        assert_eq!(state(&courtesy), 0);
        let other = courtesy.copying();
        drop(copying);
        assert_eq!(state(&courtesy), 0);
        drop(frozen);
        assert_eq!(state(&courtesy), 1);
        drop(other);
        assert_eq!(state(&courtesy), 0);
    }
}
