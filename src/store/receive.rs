//! One page stream at the destination: read a frame, do what it says, answer.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::apply::Scratch;
use super::{PageStore, RetainedPages, StoreError};
use crate::protocol::pages::{DestinationFrame, PageFrameError, Pages, RunKind, SourceFrame, read_frame};

/// A stream that is silent for so long is between two rounds.
const SILENCE: Duration = Duration::from_millis(20);

/// What came over one stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StreamStats {
    /// Frames of all kinds.
    pub frames: u64,
    /// Bytes of frames, their lengths included.
    pub bytes_received: u64,
    /// Zero pages.
    pub pages_zero: u64,
    /// Pages whose bytes came.
    pub pages_content: u64,
    /// Pages that were resolved here.
    pub pages_known: u64,
    /// Pages that were named as known and could not be resolved.
    pub pages_missing: u64,
}

impl StreamStats {
    fn count(&mut self, batch: &Pages, missing: usize) {
        self.pages_zero += batch.count(RunKind::Zero) as u64;
        self.pages_content += batch.count(RunKind::Content) as u64;
        self.pages_known += (batch.known.len() - missing) as u64;
        self.pages_missing += missing as u64;
    }
}

/// Serves a page stream until the source ends its side between two frames. A batch is applied on a blocking thread; while that
/// runs nothing more is read, so a source that sends faster than we hash is slowed down by the transport.
///
/// # Errors
/// [`StoreError`]; the stream cannot be used any more, and the migration has failed.
pub async fn serve_page_stream<S>(
    mut stream: S,
    store: Arc<PageStore>,
    retained: Arc<RetainedPages>,
) -> Result<StreamStats, StoreError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let mut stats = StreamStats::default();
    let mut scratch = Scratch::new()?;
    let mut buffer = BytesMut::new();
    let mut answer = Vec::new();
    while let Some(bytes) = next_frame(&mut stream, &mut buffer, &store).await? {
        stats.frames += 1;
        stats.bytes_received += bytes.len() as u64 + 4;
        let reply = match SourceFrame::decode(bytes).map_err(StoreError::Stream)? {
            SourceFrame::Have(have) => {
                let held =
                    have.hints.iter().map(|hint| store.hints_at(*hint) || retained.hints_at(*hint)).collect();
                DestinationFrame::HaveReply { batch: have.batch, held }
            }
            SourceFrame::Pages(pages) => {
                let (store, retained) = (Arc::clone(&store), Arc::clone(&retained));
                let work = move || {
                    let missing = store.apply(&pages, &retained, &mut scratch)?;
                    Ok((pages, missing, scratch))
                };
                let (pages, missing, back) = on_blocking_thread(work).await?;
                scratch = back;
                stats.count(&pages, missing.len());
                DestinationFrame::Ack { batch: pages.batch, missing }
            }
            SourceFrame::Forget(forget) => {
                let store = Arc::clone(&store);
                let batch = forget.batch;
                on_blocking_thread(move || store.forget(&forget)).await?;
                DestinationFrame::Ack { batch, missing: Vec::new() }
            }
        };
        answer.clear();
        reply.encode(&mut answer);
        let broke = |e| StoreError::Stream(PageFrameError::Io(e));
        stream.write_all(&answer).await.map_err(broke)?;
        stream.flush().await.map_err(broke)?;
    }
    stream.shutdown().await.map_err(|e| StoreError::Stream(PageFrameError::Io(e)))?;
    Ok(stats)
}

/// The next frame. While none comes, the store gets ready for the freeze.
async fn next_frame<S>(
    stream: &mut S,
    buffer: &mut BytesMut,
    store: &Arc<PageStore>,
) -> Result<Option<Bytes>, StoreError>
where
    S: AsyncRead + Unpin,
{
    let frame = read_frame(stream, buffer);
    tokio::pin!(frame);
    if store.is_stale() {
        tokio::select! {
            biased;
            frame = &mut frame => return frame.map_err(StoreError::Stream),
            () = tokio::time::sleep(SILENCE) => {
                let store = Arc::clone(store);
                // Nobody waits for it: a frame that comes meanwhile is served as ever.
                drop(tokio::task::spawn_blocking(move || store.refresh()));
            }
        }
    }
    frame.await.map_err(StoreError::Stream)
}

/// Runs `work` where it may take its time; a panic there is a panic here.
async fn on_blocking_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
        // The runtime is shutting down.
        Err(_) => Err(StoreError::Stopped),
    }
}
