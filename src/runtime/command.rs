//! Calls of the `runc` program. Its state folder stays runc's own business, so podman's, containerd's or an operator's view
//! of the container stays right.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};

use super::{Orphans, RuntimeError};
use crate::model::ContainerId;

/// Killed processes are gone within moments.
const KILL_WITHIN: Duration = Duration::from_secs(5);

/// How to call the runtime.
#[derive(Debug, Clone)]
pub struct Runc {
    /// The program.
    pub binary: PathBuf,
    /// Its state folder (`--root`).
    pub root: PathBuf,
}

/// Arguments of a checkpoint.
#[derive(Debug)]
pub struct Checkpoint<'a> {
    /// Which container.
    pub id: &'a ContainerId,
    /// Where CRIU writes images.
    pub images: &'a Path,
    /// Where CRIU writes its log.
    pub work: &'a Path,
    /// Address of our page server.
    pub page_server: std::net::SocketAddr,
    /// Keep established TCP connections.
    pub tcp_established: bool,
    /// Environment for CRIU and its hooks.
    pub environment: &'a [(&'static str, OsString)],
}

/// Arguments of a restore.
#[derive(Debug)]
pub struct Restore<'a> {
    /// Which container.
    pub id: &'a ContainerId,
    /// Its bundle here.
    pub bundle: &'a Path,
    /// Images to restore.
    pub images: &'a Path,
    /// Where CRIU writes its log, and finds the pager's socket.
    pub work: &'a Path,
    /// Pages of private memory come from a pager that listens in `work`. Given to the runtime: its own word to CRIU counts more
    /// than CRIU's configuration file.
    pub lazy_pages: bool,
    /// Keep established TCP connections.
    pub tcp_established: bool,
    /// Environment for CRIU and its hooks.
    pub environment: &'a [(&'static str, OsString)],
}

/// A call under way.
#[derive(Debug)]
pub struct RuntimeRun {
    child: Child,
    command: String,
    log: PathBuf,
}

impl RuntimeRun {
    /// Waits for the end.
    ///
    /// # Errors
    /// [`RuntimeError::Failed`] with the last error that the runtime logged.
    pub async fn wait(&mut self) -> Result<(), RuntimeError> {
        let status = self
            .child
            .wait()
            .await
            .map_err(|source| RuntimeError::Spawn { command: self.command.clone(), source })?;
        if status.success() {
            return Ok(());
        }
        let message = last_error(&self.log);
        Err(RuntimeError::Failed { command: self.command.clone(), status: status.to_string(), message })
    }

    /// SIGKILL for the call and everything below it; for one that outlived its deadline.
    pub async fn kill_all(&mut self, id: &ContainerId) {
        if let Some(pid) = self.child.id().and_then(|pid| i32::try_from(pid).ok()) {
            Orphans::below(pid, id).remove(KILL_WITHIN).await;
        }
        self.kill().await;
    }

    /// SIGKILL for the call alone.
    pub async fn kill(&mut self) {
        if let Err(error) = self.child.kill().await {
            tracing::warn!(command = self.command, %error, "the runtime could not be killed");
        }
    }
}

/// The last line of level error in runc's JSON log, or the last line at all.
fn last_error(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let messages = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let errors: Vec<String> = messages
        .filter(|entry| entry["level"] == "error")
        .filter_map(|entry| entry["msg"].as_str().map(str::to_owned))
        .collect();
    let last = errors.last().map(String::as_str).or_else(|| text.lines().last());
    last.unwrap_or("it left no message").to_owned()
}

impl Runc {
    fn command(&self, log: &Path) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg("--root").arg(&self.root).arg("--log").arg(log).args(["--log-format", "json"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // A session of its own: a Ctrl-C in the agent's terminal must not reach a checkpoint in flight.
        command.process_group(0);
        command
    }

    fn spawn(mut command: Command, what: String, log: PathBuf) -> Result<RuntimeRun, RuntimeError> {
        let child =
            command.spawn().map_err(|source| RuntimeError::Spawn { command: what.clone(), source })?;
        // It may have been started while the agent yields to containers; the runtime and CRIU must not.
        if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok())
            && let Err(error) = crate::sys::priority::set_thread(pid, 0)
        {
            tracing::debug!(%error, command = what, "its priority stays the agent's");
        }
        Ok(RuntimeRun { child, command: what, log })
    }

    /// Starts a checkpoint: CRIU dumps into `images`, pages go to the page server, the original is killed when the
    /// `post-dump` hook agrees and resumed when it does not.
    ///
    /// # Errors
    /// runc cannot be started.
    pub fn checkpoint(&self, with: &Checkpoint<'_>) -> Result<RuntimeRun, RuntimeError> {
        let log = with.work.join("runc-checkpoint.log");
        let mut command = self.command(&log);
        command.arg("checkpoint").arg("--image-path").arg(with.images).arg("--work-path").arg(with.work);
        command.arg("--page-server").arg(with.page_server.to_string());
        command.args(["--file-locks", "--link-remap", "--manage-cgroups-mode", "soft"]);
        if with.tcp_established {
            command.arg("--tcp-established");
        }
        command.arg(with.id.as_str()).envs(with.environment.iter().map(|(k, v)| (*k, v)));
        Self::spawn(command, format!("runc checkpoint {}", with.id), log)
    }

    /// Starts a restore, detached: it returns when the container runs.
    ///
    /// # Errors
    /// runc cannot be started.
    pub fn restore(&self, with: &Restore<'_>) -> Result<RuntimeRun, RuntimeError> {
        let log = with.work.join("runc-restore.log");
        let mut command = self.command(&log);
        command.arg("restore").arg("--detach").arg("--bundle").arg(with.bundle);
        command.arg("--image-path").arg(with.images).arg("--work-path").arg(with.work);
        command.args(["--file-locks", "--manage-cgroups-mode", "soft"]);
        if with.lazy_pages {
            command.arg("--lazy-pages");
        }
        if with.tcp_established {
            command.arg("--tcp-established");
        }
        command.arg(with.id.as_str()).envs(with.environment.iter().map(|(k, v)| (*k, v)));
        Self::spawn(command, format!("runc restore {}", with.id), log)
    }

    /// `runc delete --force`: forgets the container, killing what is left of it.
    ///
    /// # Errors
    /// runc fails or takes longer than `within`.
    pub async fn delete(
        &self,
        id: &ContainerId,
        scratch: &Path,
        within: Duration,
    ) -> Result<(), RuntimeError> {
        let log = scratch.join(format!("runc-delete-{id}.log"));
        let mut command = self.command(&log);
        command.args(["delete", "--force"]).arg(id.as_str()).kill_on_drop(true);
        let mut run = Self::spawn(command, format!("runc delete --force {id}"), log)?;
        match tokio::time::timeout(within, run.wait()).await {
            Ok(done) => done,
            Err(_) => {
                run.kill().await;
                Err(RuntimeError::Failed {
                    command: run.command.clone(),
                    status: "killed".to_owned(),
                    message: format!("it took longer than {} s", within.as_secs()),
                })
            }
        }
    }

    /// First line of `runc --version`.
    ///
    /// # Errors
    /// runc cannot be run.
    pub async fn version(&self) -> Result<String, RuntimeError> {
        let spawned = Command::new(&self.binary).arg("--version").stdin(Stdio::null()).output();
        let failed = |source| RuntimeError::Spawn { command: "runc --version".to_owned(), source };
        let output = tokio::time::timeout(Duration::from_secs(10), spawned)
            .await
            .map_err(|_| failed(std::io::ErrorKind::TimedOut.into()))?
            .map_err(failed)?;
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(text.lines().next().unwrap_or_default().trim_start_matches("runc version ").to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_of_a_runc_log_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        std::fs::write(
            &log,
            "{\"level\":\"error\",\"msg\":\"first\"}\n{\"level\":\"error\",\"msg\":\"criu failed: type DUMP\"}\n{\"level\":\"warning\",\"msg\":\"w\"}\n",
        )
        .unwrap();
        assert_eq!(last_error(&log), "criu failed: type DUMP");
        assert_eq!(last_error(&dir.path().join("none")), "it left no message");
    }
}
