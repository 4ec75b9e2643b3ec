//! The agent's side: one socket, every migration in flight registered by a secret token.

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::{Action, Greeting};

/// A greeting is one short line.
const GREETING_BYTES_MAX: u64 = 1024;
/// How long a connection may take to say its line.
const GREETING_WITHIN: Duration = Duration::from_secs(5);
/// Hooks in conversation at once.
const CONNECTIONS_MAX: usize = 256;

/// The socket could not be made, or a hook could not be answered.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// No listener.
    #[error("cannot listen for CRIU's hooks on {path}")]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// CRIU's process went away before the verdict.
    #[error("the hook went away before it was answered")]
    Gone,
    /// CRIU ended without reaching the script point.
    #[error("no hook came")]
    Never,
}

/// What CRIU is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Go on.
    Proceed,
    /// Stop: at the source resume the tasks, at the destination destroy the restored ones.
    Refuse(String),
}

/// CRIU stands at a script point.
#[derive(Debug)]
pub struct HookCall {
    /// Which one.
    pub action: Action,
    /// First process of the container as CRIU sees it; 0 when CRIU does not say.
    pub init_pid: i32,
    /// When the hook's line arrived.
    pub arrived: Instant,
    reply: oneshot::Sender<Verdict>,
    gone: oneshot::Receiver<()>,
}

impl HookCall {
    /// Answers; CRIU goes on or stops.
    ///
    /// # Errors
    /// [`HookError::Gone`] when nobody listens any more.
    pub fn answer(self, verdict: Verdict) -> Result<(), HookError> {
        self.reply.send(verdict).map_err(|_| HookError::Gone)
    }

    /// Returns when the hook's process is gone (CRIU or the hook was killed).
    pub async fn gone(&mut self) {
        let _either_way_it_is_gone = (&mut self.gone).await;
    }
}

type Table = Mutex<HashMap<String, mpsc::Sender<HookCall>>>;

/// The socket that hooks call.
#[derive(Debug, Clone)]
pub struct HookHub {
    path: PathBuf,
    table: Arc<Table>,
}

/// One registration; dropping it makes later hooks fail, which is the safe side.
#[derive(Debug)]
pub struct HookWaiter {
    token: String,
    table: Arc<Table>,
    calls: mpsc::Receiver<HookCall>,
}

impl Drop for HookWaiter {
    fn drop(&mut self) {
        self.table.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.token);
    }
}

impl HookWaiter {
    /// The secret to put into [`super::ENV_TOKEN`].
    #[must_use]
    pub fn token(&self) -> &str {
        &self.token
    }

    /// The next call. Cancel safe.
    ///
    /// # Errors
    /// [`HookError::Never`] when the hub is gone.
    pub async fn next(&mut self) -> Result<HookCall, HookError> {
        self.calls.recv().await.ok_or(HookError::Never)
    }
}

impl HookHub {
    /// Binds the socket (mode 0600, replacing a dead agent's) and serves it until the runtime ends.
    ///
    /// # Errors
    /// [`HookError::Listen`].
    pub fn bind(path: &Path) -> Result<Self, HookError> {
        let fail = |source| HookError::Listen { path: path.to_owned(), source };
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(fail(error)),
            _ => {}
        }
        let listener = UnixListener::bind(path).map_err(fail)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(fail)?;
        let hub = Self { path: path.to_owned(), table: Arc::default() };
        tokio::spawn(accept_all(listener, Arc::clone(&hub.table)));
        Ok(hub)
    }

    /// The socket's path, for [`super::ENV_SOCKET`].
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Registers a dump or restore that is about to start.
    #[must_use]
    pub fn register(&self) -> HookWaiter {
        let token = uuid::Uuid::new_v4().simple().to_string();
        let (sender, calls) = mpsc::channel(4);
        self.table.lock().unwrap_or_else(PoisonError::into_inner).insert(token.clone(), sender);
        HookWaiter { token, table: Arc::clone(&self.table), calls }
    }
}

async fn accept_all(listener: UnixListener, table: Arc<Table>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let table = Arc::clone(&table);
                tokio::spawn(async move {
                    if let Err(error) = converse(stream, &table).await {
                        tracing::warn!(%error, "a hook could not be served");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a hook");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn converse(stream: UnixStream, table: &Table) -> std::io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader.take(GREETING_BYTES_MAX));
    let mut line = String::new();
    tokio::time::timeout(GREETING_WITHIN, reader.read_line(&mut line)).await??;
    let arrived = Instant::now();
    let greeting: Greeting = serde_json::from_str(&line)?;
    let registered = table.lock().unwrap_or_else(PoisonError::into_inner).get(&greeting.token).cloned();
    let Some(registered) = registered else {
        return writer.write_all(b"no: no migration waits for this hook\n").await;
    };
    let (reply, answered) = oneshot::channel();
    let (gone_sender, gone) = oneshot::channel();
    let call = HookCall { action: greeting.action, init_pid: greeting.init_pid, arrived, reply, gone };
    if registered.send(call).await.is_err() {
        return writer.write_all(b"no: the migration has ended\n").await;
    }
    let mut rest = [0u8; 1];
    let verdict = tokio::select! {
        verdict = answered => verdict.unwrap_or_else(|_| Verdict::Refuse("the migration has ended".to_owned())),
        // The hook says nothing more: anything readable is its end.
        _ = reader.read(&mut rest) => {
            drop(gone_sender);
            return Ok(());
        }
    };
    let answer = match verdict {
        Verdict::Proceed => "ok\n".to_owned(),
        Verdict::Refuse(why) => format!("no: {}\n", why.replace('\n', " ")),
    };
    writer.write_all(answer.as_bytes()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn greet(hub: &HookHub, token: &str, action: &str) -> String {
        let mut stream = UnixStream::connect(hub.path()).await.unwrap();
        let line = format!("{{\"token\":\"{token}\",\"action\":\"{action}\",\"init_pid\":7}}\n");
        stream.write_all(line.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn verdicts_reach_the_hook_and_strangers_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let hub = HookHub::bind(&dir.path().join("hook.sock")).unwrap();
        let mut waiter = hub.register();
        let token = waiter.token().to_owned();
        let deciding = tokio::spawn(async move {
            let first = waiter.next().await.unwrap();
            assert_eq!((first.action, first.init_pid), (Action::PreDump, 7));
            first.answer(Verdict::Proceed).unwrap();
            let second = waiter.next().await.unwrap();
            second.answer(Verdict::Refuse("link\nlost".to_owned())).unwrap();
            drop(waiter.next().await.unwrap());
        });
        assert_eq!(greet(&hub, &token, "pre-dump").await, "ok\n");
        assert_eq!(greet(&hub, &token, "post-dump").await, "no: link lost\n");
        assert!(greet(&hub, &token, "post-dump").await.starts_with("no: the migration has ended"));
        deciding.await.unwrap();
        assert!(greet(&hub, &token, "post-dump").await.starts_with("no: no migration waits"));
        assert!(greet(&hub, "guess", "post-dump").await.starts_with("no:"));
    }

    #[tokio::test]
    async fn a_hook_that_dies_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let hub = HookHub::bind(&dir.path().join("hook.sock")).unwrap();
        let mut waiter = hub.register();
        let mut stream = UnixStream::connect(hub.path()).await.unwrap();
        let line = format!("{{\"token\":\"{}\",\"action\":\"post-dump\",\"init_pid\":7}}\n", waiter.token());
        stream.write_all(line.as_bytes()).await.unwrap();
        let mut call = waiter.next().await.unwrap();
        drop(stream);
        tokio::time::timeout(Duration::from_secs(5), call.gone()).await.unwrap();
        assert!(matches!(call.answer(Verdict::Proceed), Err(HookError::Gone)));
    }
}
