//! Every wait has a deadline and can be cancelled.

use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::MigrationError;

/// Somebody may ask a migration to stop; the first reason counts.
#[derive(Debug, Clone, Default)]
pub struct Cancel {
    token: CancellationToken,
    why: Arc<OnceLock<String>>,
}

impl Cancel {
    /// Asks.
    pub fn cancel(&self, why: impl Into<String>) {
        let _first_reason_stays = self.why.set(why.into());
        self.token.cancel();
    }

    /// Was it asked for?
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.token.is_cancelled()
    }

    /// For code that knows only tokens.
    #[must_use]
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    fn error(&self) -> MigrationError {
        MigrationError::Cancelled {
            why: self.why.get().cloned().unwrap_or_else(|| "no reason given".to_owned()),
        }
    }
}

/// Cancel and the whole migration's deadline, together.
#[derive(Debug, Clone)]
pub struct Guard {
    cancel: Cancel,
    deadline: Instant,
    timeout: Duration,
}

impl Guard {
    /// From now.
    #[must_use]
    pub fn new(cancel: Cancel, timeout: Duration) -> Self {
        Self { cancel, deadline: Instant::now() + timeout, timeout }
    }

    /// The cancellation.
    #[must_use]
    pub fn cancel(&self) -> &Cancel {
        &self.cancel
    }

    /// Runs a step under the whole migration's deadline.
    ///
    /// # Errors
    /// Cancelled, out of time, or the step's own error.
    pub async fn run<T, E>(
        &self,
        what: &'static str,
        step: impl Future<Output = Result<T, E>>,
    ) -> Result<T, MigrationError>
    where
        E: Into<MigrationError>,
    {
        tokio::select! {
            biased;
            () = self.cancel.token.cancelled() => Err(self.cancel.error()),
            () = tokio::time::sleep_until(self.deadline) => Err(MigrationError::Deadline { what, after: self.timeout }),
            done = step => done.map_err(Into::into),
        }
    }

    /// Runs a step that has a shorter deadline of its own.
    ///
    /// # Errors
    /// As [`Guard::run`].
    pub async fn within<T, E>(
        &self,
        what: &'static str,
        after: Duration,
        step: impl Future<Output = Result<T, E>>,
    ) -> Result<T, MigrationError>
    where
        E: Into<MigrationError>,
    {
        let bounded = async {
            match tokio::time::timeout(after, step).await {
                Ok(done) => done.map_err(Into::into),
                Err(_) => Err(MigrationError::Deadline { what, after }),
            }
        };
        self.run(what, bounded).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn never() -> Result<(), MigrationError> {
        std::future::pending().await
    }

    #[tokio::test(start_paused = true)]
    async fn every_wait_ends() {
        let guard = Guard::new(Cancel::default(), Duration::from_secs(60));
        let short = guard.within("the step", Duration::from_secs(1), never()).await.unwrap_err();
        assert_eq!(short.to_string(), "the step took longer than 1s");
        let long = guard.run("the whole", never()).await.unwrap_err();
        assert_eq!(long.to_string(), "the whole took longer than 1m");
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_reason_for_a_cancel_counts() {
        let cancel = Cancel::default();
        let guard = Guard::new(cancel.clone(), Duration::from_secs(60));
        cancel.cancel("operator");
        cancel.cancel("late");
        assert_eq!(guard.run("x", never()).await.unwrap_err().to_string(), "cancelled: operator");
    }
}
