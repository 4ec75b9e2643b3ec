//! The control conversation of one migration: frames out, frames in by a reader of its own, so that a refusal or an abort is
//! seen while something else is being waited for.

use std::time::Duration;

use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::MigrationError;
use crate::model::HostId;
use crate::protocol::frame::{FrameError, read_message, write_message};
use crate::quic::Stream;
use crate::rpc::v1::{ControlFrame, control_frame::Body};

/// Frames that may wait here.
const QUEUE: usize = 64;

/// One side of the conversation.
#[derive(Debug)]
pub(super) struct Session {
    peer: HostId,
    writer: WriteHalf<Stream>,
    frames: mpsc::Receiver<Result<Body, FrameError>>,
    reader: JoinHandle<()>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

async fn read_all(mut reader: ReadHalf<Stream>, sink: mpsc::Sender<Result<Body, FrameError>>) {
    loop {
        let frame = match read_message::<_, ControlFrame>(&mut reader).await {
            Ok(ControlFrame { body: Some(body) }) => Ok(body),
            Ok(ControlFrame { body: None }) => Err(FrameError::Unexpected("an empty control frame")),
            Err(error) => Err(error),
        };
        let last = frame.is_err();
        if sink.send(frame).await.is_err() || last {
            return;
        }
    }
}

impl Session {
    /// Takes over the control stream, whose hello is already exchanged.
    #[must_use]
    pub(super) fn new(peer: HostId, stream: Stream) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        let (sink, frames) = mpsc::channel(QUEUE);
        let reader = tokio::spawn(read_all(reader, sink));
        Self { peer, writer, frames, reader }
    }

    /// The other host.
    #[must_use]
    pub(super) fn peer(&self) -> &HostId {
        &self.peer
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// The link is gone.
    pub(super) async fn send(&mut self, body: Body) -> Result<(), MigrationError> {
        write_message(&mut self.writer, &ControlFrame { body: Some(body) }).await?;
        self.writer.flush().await.map_err(FrameError::Io)?;
        Ok(())
    }

    /// The next frame. Cancel safe. A refusal of the other side comes back as an error.
    ///
    /// # Errors
    /// The link is gone, or the other side refused.
    pub(super) async fn next(&mut self) -> Result<Body, MigrationError> {
        match self.frames.recv().await {
            Some(Ok(Body::Refused(refused))) => Err(MigrationError::Peer {
                host: self.peer.to_string(),
                message: refused.message,
                log_lines: refused.log_lines,
                reasons: refused.reasons,
            }),
            Some(Ok(Body::Refuse(refuse))) => {
                Err(MigrationError::Refused { by: self.peer.to_string(), reasons: refuse.reasons })
            }
            Some(Ok(Body::Abort(abort))) => {
                Err(MigrationError::Stopped { host: self.peer.to_string(), why: abort.why })
            }
            Some(Ok(body)) => Ok(body),
            Some(Err(error)) => Err(error.into()),
            None => Err(FrameError::Closed.into()),
        }
    }

    /// The next frame of one kind.
    ///
    /// # Errors
    /// As [`Session::next`], or another kind of frame.
    pub(super) async fn expect<T>(
        &mut self,
        what: &str,
        pick: impl FnOnce(Body) -> Option<T>,
    ) -> Result<T, MigrationError> {
        let body = self.next().await?;
        pick(body).ok_or_else(|| MigrationError::Protocol {
            host: self.peer.to_string(),
            what: format!("sent another frame where {what} belongs"),
        })
    }

    /// Returns when the other side has closed its half: it has seen everything we sent.
    pub(super) async fn drained(&mut self) {
        while self.next().await.is_ok() {}
    }

    /// When something failed, the other side may have said the real reason: prefer that.
    pub(super) async fn better_reason(&mut self, error: MigrationError) -> MigrationError {
        let said = async {
            loop {
                match self.next().await {
                    Ok(_) => {}
                    Err(reason @ (MigrationError::Peer { .. } | MigrationError::Refused { .. })) => {
                        return Some(reason);
                    }
                    Err(_) => return None,
                }
            }
        };
        match error {
            error if !error.may_follow_from_the_peer() => error,
            error => {
                tokio::time::timeout(Duration::from_millis(700), said).await.ok().flatten().unwrap_or(error)
            }
        }
    }
}
