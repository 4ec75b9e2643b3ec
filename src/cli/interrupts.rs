//! Ctrl-C and SIGTERM, counted: the first asks, the second leaves. Nothing here decides what asking means.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::Complaint;

/// How often the operator has interrupted. Clones count together.
#[derive(Debug, Clone)]
pub(crate) struct Interrupts(watch::Receiver<u32>);

impl Interrupts {
    /// From now on signals do not end the process any more but are counted.
    ///
    /// # Errors
    /// A complaint when the handlers cannot be installed.
    pub(crate) fn listen() -> Result<Self, Complaint> {
        let failed = |error: std::io::Error| Complaint::of_error("signals cannot be handled", &error);
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let (count, counted) = watch::channel(0);
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                count.send_modify(|n| *n += 1);
            }
        });
        Ok(Self(counted))
    }

    /// How often so far.
    pub(crate) fn count(&self) -> u32 {
        *self.0.borrow()
    }

    /// Waits for the next one; safe to drop and call again.
    pub(crate) async fn next(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
