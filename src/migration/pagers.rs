//! The pagers on this host: one for each container that arrived and whose memory is not all there yet. They are processes of their
//! own and outlive the agent, which finds them again by their folders.
//!
//! ```text
//! <run_dir>/pagers/<container>/   pager.sock  pager.log  pager.json
//! ```

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::{Host, MigrationError, unix_ms};
use crate::model::ContainerId;
use crate::pager::{Pager, PagerHandle, PagerSpec, PagerState};
use crate::rpc::v1::{Failure, HistoryEntry};
use crate::telemetry;

/// The table.
#[derive(Debug, Default)]
pub struct Pagers {
    table: Mutex<HashMap<ContainerId, Followed>>,
}

/// A pager and the task that follows it. The next pager of the same container has the same folder, so a task that is not wanted any
/// more must end: it would take the one for the other.
#[derive(Debug)]
struct Followed {
    state: watch::Receiver<PagerState>,
    task: AbortHandle,
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn all(run_dir: &Path) -> PathBuf {
    run_dir.join("pagers")
}

fn folder(run_dir: &Path, id: &ContainerId) -> PathBuf {
    all(run_dir).join(id.as_str())
}

/// Starts the pager of a container that is about to arrive, with CRIU's work folder.
///
/// # Errors
/// It cannot be started.
pub(super) async fn start(host: &Host, id: &ContainerId, work: &Path) -> Result<PagerHandle, MigrationError> {
    let folder = folder(&host.run_dir, id);
    forget(host, id).await;
    std::fs::create_dir_all(&folder).map_err(MigrationError::io("create", &folder))?;
    let private = <std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o700);
    std::fs::set_permissions(&folder, private).map_err(MigrationError::io("set the mode of", &folder))?;
    let spec = PagerSpec {
        program: host.program.clone(),
        state_file: state_file(&folder),
        work_dir: work.to_owned(),
        folder,
    };
    Ok(Pager::spawn(spec).await?)
}

fn state_file(folder: &Path) -> PathBuf {
    folder.join("pager.json")
}

/// Ends the pager of a container that does not run here, and removes its folder. Nothing there is fine.
pub(super) async fn forget(host: &Host, id: &ContainerId) {
    let folder = folder(&host.run_dir, id);
    host.pagers.lock().remove(id);
    if !folder.exists() {
        return;
    }
    if let Ok(handle) = PagerHandle::reconnect(folder.clone(), state_file(&folder)).await
        && let Err(error) = handle.abort().await
    {
        tracing::debug!(container = %id, %error, "its pager had ended");
    }
    if let Err(error) = std::fs::remove_dir_all(&folder) {
        tracing::warn!(container = %id, %error, "the folder of its pager is left");
    }
}

impl Pagers {
    fn lock(&self) -> MutexGuard<'_, HashMap<ContainerId, Followed>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How far a container's memory is; `None`: all of it is here, or it never had a pager.
    #[must_use]
    pub fn state(&self, id: &ContainerId) -> Option<PagerState> {
        self.lock().get(id).map(|followed| followed.state.borrow().clone())
    }

    /// Waits until all memory of a container is here. Containers without a pager have it all.
    ///
    /// # Errors
    /// [`MigrationError::Incomplete`]: the container lost its pager and was stopped.
    pub async fn resident(&self, id: &ContainerId) -> Result<(), MigrationError> {
        let watching = self.lock().get(id).map(|followed| followed.state.clone());
        let Some(mut state) = watching else { return Ok(()) };
        let lost = || MigrationError::Incomplete { container: id.to_string() };
        match state.wait_for(PagerState::is_final).await.as_deref() {
            Ok(PagerState::Lost) => Err(lost()),
            // Nobody follows any more: it has ended well, or the agent is stopping.
            _ => Ok(()),
        }
    }

    /// Follows the pager of a container that runs, to its end.
    pub(super) fn follow(
        host: &Arc<Host>,
        id: &ContainerId,
        handle: PagerHandle,
    ) -> watch::Receiver<PagerState> {
        let mut state = handle.watch();
        let watched = state.clone();
        // Taken before the task is there, so that it cannot end before its entry is made.
        let mut table = host.pagers.lock();
        let (entry, of) = (state.clone(), id.clone());
        let (host, id) = (Arc::clone(host), id.clone());
        let following = tokio::spawn(async move {
            let last = state.wait_for(PagerState::is_final).await.map(|state| state.clone());
            match last {
                Ok(PagerState::Lost) => lost(&host, &id, &handle).await,
                Ok(PagerState::Failed(why)) => tracing::error!(container = %id, why, "its pager failed"),
                Ok(_) => {
                    if let Some(report) = handle.report() {
                        let seconds = std::time::Duration::from_millis(report.after_ms).as_secs_f64();
                        metrics::histogram!(telemetry::RESIDENT_SECONDS).record(seconds);
                        tracing::info!(container = %id, after_ms = report.after_ms, pages = report.pages_total,
                            faults = report.faults, "all memory is here");
                    }
                    // The folder first: without its entry in the table this task may be ended at any moment.
                    let _gone_with_run_dir = std::fs::remove_dir_all(folder(&host.run_dir, &id));
                    host.pagers.lock().remove(&id);
                }
                Err(_) => {}
            }
        });
        table.insert(of, Followed { state: entry, task: following.abort_handle() });
        watched
    }

    /// At the agent's start: finds the pagers that an earlier agent left at work.
    pub(super) async fn recover(host: &Arc<Host>) {
        let left = std::fs::read_dir(all(&host.run_dir)).into_iter().flatten().flatten();
        for entry in left {
            let Some(id) = entry.file_name().to_str().and_then(|name| ContainerId::try_from(name).ok())
            else {
                continue;
            };
            match PagerHandle::reconnect(entry.path(), state_file(&entry.path())).await {
                Ok(handle) => {
                    tracing::info!(container = %id, state = ?*handle.watch().borrow(), "found its pager");
                    let _followed_in_the_background = Self::follow(host, &id, handle);
                }
                Err(error) => {
                    tracing::warn!(container = %id, %error, "removing what its pager left");
                    let _gone_with_run_dir = std::fs::remove_dir_all(entry.path());
                }
            }
        }
    }
}

/// A pager was killed before it had installed everything. It, or what watched it, has stopped the container.
async fn lost(host: &Arc<Host>, id: &ContainerId, handle: &PagerHandle) {
    metrics::counter!(telemetry::PAGERS_LOST).increment(1);
    let report = handle.report().map(|it| (it.pages_missing, it.why));
    let (missing, why) = report.unwrap_or_else(|| (0, "its pager left no report".to_owned()));
    tracing::error!(container = %id, missing, why, "the container lost its pager and was stopped");
    let entry = HistoryEntry {
        container: id.to_string(),
        destination: host.id.to_string(),
        role: "destination".to_owned(),
        outcome: "lost".to_owned(),
        finished_unix_ms: unix_ms(),
        failure: Some(Failure {
            host: host.id.to_string(),
            message: format!("the pager ended with {missing} pages to come: {why}"),
            state_now: format!(
                "{id} was stopped on {}: going on, it would have read zeros instead of its memory",
                host.id
            ),
            remedy: "start it anew, or from a checkpoint; find out who killed the process decamp-pager"
                .to_owned(),
            ..Failure::default()
        }),
        ..HistoryEntry::default()
    };
    if let Err(error) = host.journal.add_history(&entry).await {
        tracing::error!(container = %id, %error, "the loss is not in the history");
    }
}
