//! The sending side of a tree.

use std::future::Future;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufWriter};

use super::blocks::{Order, read_blocks, read_needs};
use super::entry::{Entry, manifest_digest};
use super::error::FilesError;
use super::manifest;
use super::overlay::TreeKind;
use super::scan::Scanner;
use crate::model::limits::FILE_BLOCK;
use crate::protocol::frame::{FrameError, read_message, write_message};
use crate::protocol::pace::Pacer;
use crate::rpc::v1::{FileStats, FilesApplied, FilesDone, FilesHello};

/// How long to wait for the destination's own words when it stops listening.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Blocks on their way from the disk to the stream.
const BLOCKS_AHEAD: usize = 8;
/// Small messages are gathered before they are written.
const GATHER_BYTES: usize = 256 << 10;

const _: () = assert!(GATHER_BYTES > FILE_BLOCK);

/// A tree that is sent, round after round, to one [`super::TreeSink`].
#[derive(Debug)]
pub struct TreeSource {
    root: PathBuf,
    scanner: Arc<Mutex<Scanner>>,
    /// Number and manifest of the last round that the destination acknowledged; round 0: none.
    base: (u32, Arc<Vec<Entry>>),
}

impl TreeSource {
    /// A tree at `root`: a directory, or a single file (of any type but a symbolic link). Nothing is read yet.
    #[must_use]
    pub fn new(root: PathBuf, kind: TreeKind) -> Self {
        let scanner = Arc::new(Mutex::new(Scanner::new(root.clone(), kind)));
        Self { root, scanner, base: (0, Arc::default()) }
    }

    /// Sends one round on a stream of its own: scans the tree, sends what the destination does not hold yet. `round` counts
    /// from 1. `last`: the tree must stand still (the container is frozen and every other writer is gone); then, and only then,
    /// success means that both trees are equal. `progress` is told bytes done and bytes to do.
    ///
    /// In an earlier round, files that change meanwhile are left to the next one. After an error the next call begins from
    /// scratch; blocks that arrived are found again.
    ///
    /// # Errors
    /// What the kernel refuses, what cannot travel, what the destination answers ([`FilesError::Refused`]); in the last round
    /// also [`FilesError::Changed`] and [`FilesError::DigestDiffers`].
    pub async fn send_round<S>(
        &mut self,
        stream: &mut S,
        tree: u32,
        round: u32,
        last: bool,
        pacer: &Pacer,
        progress: impl Fn(u64, u64) + Send + Sync,
    ) -> Result<FileStats, FilesError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let began = Instant::now();
        let (base_round, base) = std::mem::take(&mut self.base);
        let (mut reader, writer) = tokio::io::split(stream);
        let mut writer = BufWriter::with_capacity(GATHER_BYTES, writer);
        let hello = FilesHello { tree, round, last, base_round };
        let mut bytes_sent = write_message(&mut writer, &hello).await?;
        writer.flush().await.map_err(FrameError::Io)?;

        let scanner = Arc::clone(&self.scanner);
        let entries = blocking(move || locked(&scanner).scan(last)).await?;
        let entries = Arc::new(entries);
        let listing = manifest::write(&mut writer, &base, &entries, pacer);
        let (listed, needs) = exchange(listing, read_needs(&mut reader, &entries)).await?;
        drop(base);
        bytes_sent += listed;

        let order = Order { root: self.root.clone(), entries: Arc::clone(&entries), needs, frozen: last };
        let sending = send_blocks(&mut writer, order, pacer, &progress);
        let ((sent, changed), applied) = exchange(sending, read_applied(&mut reader)).await?;
        if last && applied.manifest_digest[..] != manifest_digest(&entries).0 {
            return Err(FilesError::DigestDiffers);
        }
        self.base = (round, forget_content(entries, &changed));
        Ok(FileStats {
            round,
            entries: self.base.1.len() as u64,
            files_changed: applied.files_changed,
            files_deleted: applied.files_deleted,
            bytes_total: applied.bytes_total,
            bytes_known: applied.bytes_known,
            bytes_sent: bytes_sent + sent,
            duration_us: u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX),
        })
    }
}

/// Entries of which a block did not arrive: without digests they equal no entry of the next round, so they are told again.
fn forget_content(mut entries: Arc<Vec<Entry>>, changed: &[usize]) -> Arc<Vec<Entry>> {
    if !changed.is_empty() {
        let entries = Arc::make_mut(&mut entries);
        for at in changed {
            entries[*at].blocks = Arc::from([]);
        }
    }
    entries
}

/// Runs blocking work on a thread that may block.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, FilesError> + Send + 'static,
) -> Result<T, FilesError> {
    tokio::task::spawn_blocking(work).await.map_err(FilesError::Interrupted)?
}

/// A lock whose holder panicked is still good: the state is checked against the disk again anyway.
pub(super) fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sends while listening for the answer: a destination that gives up says why, and stops reading.
async fn exchange<A, B>(
    send: impl Future<Output = Result<A, FilesError>>,
    answer: impl Future<Output = Result<B, FilesError>>,
) -> Result<(A, B), FilesError> {
    let (mut send, mut answer) = (pin!(send), pin!(answer));
    tokio::select! {
        biased;
        answered = &mut answer => {
            let answered = answered?;
            Ok((send.await?, answered))
        }
        sent = &mut send => match sent {
            Ok(sent) => Ok((sent, answer.await?)),
            Err(error @ FilesError::Stream(_)) => match tokio::time::timeout(LAST_WORDS, answer).await {
                Ok(Err(refused @ FilesError::Refused { .. })) => Err(refused),
                _ => Err(error),
            },
            Err(error) => Err(error),
        },
    }
}

async fn read_applied<R: AsyncRead + Unpin>(reader: &mut R) -> Result<FilesApplied, FilesError> {
    let applied: FilesApplied = read_message(reader).await?;
    if applied.error.is_empty() { Ok(applied) } else { Err(FilesError::Refused { message: applied.error }) }
}

/// Sends the blocks that were asked for. Gives the bytes sent and the entries of which a block had changed.
async fn send_blocks<W: AsyncWrite + Unpin>(
    writer: &mut W,
    order: Order,
    pacer: &Pacer,
    progress: &(impl Fn(u64, u64) + Send + Sync),
) -> Result<(u64, Vec<usize>), FilesError> {
    let total = order.bytes();
    let (blocks, mut ready) = tokio::sync::mpsc::channel(BLOCKS_AHEAD);
    let reading = tokio::task::spawn_blocking(move || read_blocks(&order, &blocks));
    let (mut sent, mut done, mut changed) = (0, 0, Vec::new());
    progress(0, total);
    while let Some((block, bytes)) = ready.recv().await {
        if block.changed {
            changed.push(block.entry as usize);
        }
        pacer.take(block.data.len() as u64).await;
        sent += write_message(writer, &block).await?;
        done += bytes;
        progress(done, total);
    }
    reading.await.map_err(FilesError::Interrupted)??;
    sent += write_message(writer, &FilesDone { done: true }).await?;
    writer.flush().await.map_err(FrameError::Io)?;
    Ok((sent, changed))
}
