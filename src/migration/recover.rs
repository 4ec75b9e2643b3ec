//! At the agent's start: finish or undo what an earlier agent left. Nothing here guesses: the journal says what was decided, and
//! where it was not decided here, the other host is asked.

use std::sync::Arc;
use std::time::Duration;

use super::guard::Cancel;
use super::source::{Decision, finish_release, resolve, undo};
use super::{Host, MigrationError, Pagers, Progress, Registry, Reservation, destination, scratch, unix_ms};
use crate::journal::{Record, Stage};
use crate::rpc::v1::Phase;

/// How long a decided migration is remembered for a source that still has to ask.
const REMEMBER: Duration = Duration::from_secs(7 * 24 * 3600);

/// Settles every record of the journal. Records in doubt are settled in the background, for as long as it takes.
///
/// # Errors
/// The journal cannot be read or written.
pub async fn recover(host: &Arc<Host>, registry: &Arc<Registry>) -> Result<(), MigrationError> {
    scratch::sweep(&host.run_dir);
    Pagers::recover(host).await;
    for record in host.journal.all()? {
        tracing::info!(migration = %record.migration, container = %record.container, stage = ?record.stage, "found in the journal");
        match record.stage {
            Stage::Preparing => {
                // One container that cannot be helped must not keep the agent, and all the others, down.
                match undo(host, &record).await {
                    Ok(()) => host.journal.remove(&record.migration).await?,
                    Err(error) => {
                        tracing::error!(migration = %record.migration, container = %record.container,
                        error = super::chain(&error), "an unfinished migration could not be undone; the next start tries again")
                    }
                }
            }
            Stage::Committing => {
                let progress = Progress::new(record.migration.clone(), record.container.clone());
                progress.enter(Phase::InDoubt);
                progress.note(format!(
                    "in doubt since the agent was stopped: frozen here until {} answers",
                    record.peer
                ));
                // Its name is taken until then: nobody may resume it here, or move it.
                let reservation = registry.reserve_departure(&progress, &Cancel::default(), usize::MAX).ok();
                tokio::spawn(settle_in_doubt(Arc::clone(host), record, reservation));
            }
            Stage::Accepted => destination::forget_arrival(host, &record).await?,
            Stage::Committed => {
                let stage = destination::settle_committed(host, &record).await?;
                tracing::info!(migration = %record.migration, ?stage, "a committed arrival was settled");
            }
            Stage::Running | Stage::Fenced => {
                let expired = unix_ms().saturating_sub(record.started_unix_ms)
                    > u64::try_from(REMEMBER.as_millis()).unwrap_or(u64::MAX);
                if expired {
                    host.journal.remove(&record.migration).await?;
                }
            }
        }
    }
    Ok(())
}

async fn settle_in_doubt(host: Arc<Host>, record: Record, reservation: Option<Reservation>) {
    let settled = match resolve(&host, &record, &Cancel::default()).await {
        Decision::Runs(_) => finish_release(&host, &record).await,
        Decision::Refused(_) => undo(&host, &record).await,
        Decision::Unknown(_) => return,
    };
    let forgotten = match settled {
        Ok(()) => host.journal.remove(&record.migration).await.map_err(MigrationError::from),
        Err(error) => Err(error),
    };
    drop(reservation);
    if let Err(error) = forgotten {
        tracing::error!(migration = %record.migration, container = %record.container, error = super::chain(&error),
            "a migration that was in doubt could not be settled");
    }
}
