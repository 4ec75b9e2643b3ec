//! Ctrl-C during the demo: noticed between steps, so that the lab is removed in order. It never ends the process.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

use nix::sys::signal::{SigSet, Signal};

use super::DemoError;

/// Whether the operator wants to stop. Clones share the answer.
#[derive(Debug, Clone)]
pub(super) struct Interrupt(Arc<(Mutex<bool>, Condvar)>);

impl Interrupt {
    /// From now on SIGINT, SIGTERM and SIGHUP do not end this process any more. Commands in the lab start with every signal
    /// unblocked, so Ctrl-C on a terminal ends the one that runs.
    pub(super) fn listen() -> Result<Self, DemoError> {
        let failed = |error: nix::Error| DemoError::Signals(error.into());
        let mut ends = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            ends.add(signal);
        }
        ends.thread_block().map_err(failed)?;
        let shared = Arc::new((Mutex::new(false), Condvar::new()));
        let told = Arc::clone(&shared);
        let wait = move || {
            while ends.wait().is_ok() {
                *told.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
                told.1.notify_all();
            }
        };
        std::thread::Builder::new().name("signals".into()).spawn(wait).map_err(DemoError::Signals)?;
        Ok(Self(shared))
    }

    /// Fails once it was asked for.
    pub(super) fn check(&self) -> Result<(), DemoError> {
        let asked = *self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        if asked { Err(DemoError::Interrupted) } else { Ok(()) }
    }

    /// Waits until it is asked for.
    pub(super) fn wait(&self) {
        let mut asked = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        while !*asked {
            asked = self.0.1.wait(asked).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
