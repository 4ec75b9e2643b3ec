//! One stream to the destination: takes work from the queue, keeps a few batches in flight, and tells the ledger what was
//! acknowledged.
//!
//! ```text
//!            ask?                                        missing pages
//!  batch ──────────▶ Asked ──HaveReply──▶ Sent ──Ack──▶ resend as content ──▶ Sent ──Ack──▶ ledger
//!    └──── no ────────────────────────────▶ ┘  └──Ack, nothing missing─────────────────────▶ ┘
//! ```
//! Answers come in the order of the frames, so one queue of flights is all the state there is.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::batch::{Batch, Work};
use super::error::MemoryError;
use super::pipeline::{Queue, Shared};
use super::stats::Counters;
use crate::model::page::{Digest, PAGE_SIZE};
use crate::pages::compress::Compressor;
use crate::pages::hash::{Root, prefix};
use crate::protocol::pages::{
    Codec, DestinationFrame, Forget, Have, PageFrameError, Pages, Run, RunKind, read_frame,
};

/// Frames of one stream that may wait for their answers: enough to hide a round trip behind the next batches.
const FLIGHTS_MAX: usize = 4;

/// How a page of a batch travels.
type Kinds = Vec<RunKind>;

/// A frame whose answer is due.
enum Flight {
    /// Asked whether these places of the batch are held.
    Asked {
        batch: Batch,
        kinds: Kinds,
        places: Vec<u16>,
    },
    Sent {
        batch: Batch,
        kinds: Kinds,
        compressed: bool,
    },
    Forget,
}

/// Aborts the task that reads answers when the worker goes.
struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

type Answer = Result<DestinationFrame, PageFrameError>;

pub(super) struct Worker<S> {
    number: usize,
    writer: WriteHalf<S>,
    shared: Arc<Shared>,
    flights: VecDeque<(u64, Flight)>,
    next_batch: u64,
    /// Missing in a `None` only while a blocking thread has it.
    compressor: Option<Compressor>,
    head: Vec<u8>,
}

/// Runs until the queue is closed and everything is answered, or something fails.
pub(super) async fn run<S>(
    number: usize,
    stream: S,
    queue: Arc<Queue>,
    shared: Arc<Shared>,
) -> Result<(), MemoryError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (reader, writer) = tokio::io::split(stream);
    // An honest destination has at most one answer for each flight under way.
    let (answers_in, mut answers) = mpsc::channel(FLIGHTS_MAX);
    let _reading = AbortOnDrop(tokio::spawn(read_answers(reader, answers_in)));
    let compressor = Some(Compressor::new().map_err(MemoryError::Compressor)?);
    let flights = VecDeque::with_capacity(FLIGHTS_MAX);
    let mut worker = Worker { number, writer, shared, flights, next_batch: 0, compressor, head: Vec::new() };
    let mut open = true;
    while open || !worker.flights.is_empty() {
        tokio::select! {
            biased;
            answer = answers.recv() => {
                let answer = answer.ok_or(MemoryError::Closed { stream: number })?;
                let answer = answer.map_err(|source| MemoryError::Stream { stream: number, source })?;
                worker.answered(answer).await?;
            }
            work = queue.next(), if open && worker.flights.len() < FLIGHTS_MAX => match work {
                Some(Work::Pages(batch)) => worker.start(batch).await?,
                Some(Work::Forget { object, ranges }) => {
                    let batch = worker.number_batch(Flight::Forget);
                    worker.head.clear();
                    Forget { batch, object, ranges }.encode(&mut worker.head);
                    worker.write(&[]).await?;
                }
                None => open = false,
            },
        }
    }
    worker.writer.shutdown().await.map_err(|e| worker.broke(e))?;
    // The destination ends its side when it has seen ours end: then nothing of ours is lost under way.
    match answers.recv().await {
        None => Ok(()),
        Some(Err(source)) => Err(MemoryError::Stream { stream: number, source }),
        Some(Ok(_)) => Err(MemoryError::Answer { stream: number, rule: "it answers what was not asked" }),
    }
}

async fn read_answers<S: AsyncRead>(mut reader: ReadHalf<S>, answers: mpsc::Sender<Answer>) {
    let mut buffer = BytesMut::new();
    loop {
        let answer = match read_frame(&mut reader, &mut buffer).await {
            Ok(Some(bytes)) => DestinationFrame::decode(bytes),
            Ok(None) => return,
            Err(e) => Err(e),
        };
        let failed = answer.is_err();
        if answers.send(answer).await.is_err() || failed {
            return;
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Worker<S> {
    fn broke(&self, e: std::io::Error) -> MemoryError {
        MemoryError::Stream { stream: self.number, source: PageFrameError::Io(e) }
    }

    fn rule(&self, rule: &'static str) -> MemoryError {
        MemoryError::Answer { stream: self.number, rule }
    }

    fn number_batch(&mut self, flight: Flight) -> u64 {
        let number = self.next_batch;
        self.next_batch += 1;
        self.flights.push_back((number, flight));
        number
    }

    /// A batch from the queue: what is surely known is told by digest; for the rest the destination may be asked.
    async fn start(&mut self, batch: Batch) -> Result<(), MemoryError> {
        let kinds = self.classify(&batch);
        let places: Vec<u16> = (0u16..)
            .zip(&kinds)
            .filter(|(_, kind)| **kind == RunKind::Content)
            .map(|(place, _)| place)
            .collect();
        if !self.shared.ask_retained || batch.resend || places.is_empty() {
            return self.send(batch, kinds).await;
        }
        let hints = places.iter().map(|place| prefix(&batch.pages[usize::from(*place)].digest)).collect();
        let number = self.number_batch(Flight::Asked { batch, kinds, places });
        self.head.clear();
        Have { batch: number, hints }.encode(&mut self.head);
        self.write(&[]).await
    }

    fn classify(&self, batch: &Batch) -> Kinds {
        let sent = self.shared.sent.lock();
        // The destination stores a batch's content before it resolves its known pages: a repetition costs a digest.
        let mut here = HashSet::new();
        let kind = |page: &super::batch::PageEntry| match page.slot {
            None => RunKind::Zero,
            Some(_) if batch.resend => RunKind::Content,
            Some(_) if sent.contains(&prefix(&page.digest)) || !here.insert(page.digest) => RunKind::Known,
            Some(_) => RunKind::Content,
        };
        batch.pages.iter().map(kind).collect()
    }

    async fn send(&mut self, batch: Batch, kinds: Kinds) -> Result<(), MemoryError> {
        let content: Vec<u16> = batch
            .pages
            .iter()
            .zip(&kinds)
            .filter(|(_, kind)| **kind == RunKind::Content)
            .filter_map(|(page, _)| page.slot)
            .collect();
        let mut frame = describe(&batch, &kinds, self.next_batch);
        let whole = content.len() * PAGE_SIZE == batch.data.len();
        let compress = !content.is_empty() && self.shared.policy().choose();
        // The payload is the batch's own data wherever that is possible.
        let (batch, payload) = if compress {
            self.compress(batch, content).await?
        } else if whole {
            (batch, None)
        } else {
            let picked = pick(&batch, &content, self.shared.pool.take());
            (batch, Some((picked, Codec::None)))
        };
        let (bytes, codec) = match &payload {
            Some((bytes, codec)) => (&bytes[..], *codec),
            None => (&batch.data[..], Codec::None),
        };
        frame.codec = codec;
        self.head.clear();
        frame.encode_head(bytes.len(), &mut self.head);
        let started = self.write(bytes).await;
        if let Some((buffer, _)) = payload {
            self.shared.pool.give(buffer);
        }
        started?;
        self.number_batch(Flight::Sent { batch, kinds, compressed: codec == Codec::Zstd });
        Ok(())
    }

    /// Compresses on a blocking thread. When that does not pay the content goes as it is.
    async fn compress(
        &mut self,
        batch: Batch,
        content: Vec<u16>,
    ) -> Result<(Batch, Option<(Vec<u8>, Codec)>), MemoryError> {
        let mut compressor = match self.compressor.take() {
            Some(compressor) => compressor,
            None => Compressor::new().map_err(MemoryError::Compressor)?,
        };
        let shared = Arc::clone(&self.shared);
        let work = move || {
            let whole = content.len() * PAGE_SIZE == batch.data.len();
            let picked = (!whole).then(|| pick(&batch, &content, shared.pool.take()));
            let bytes = picked.as_deref().unwrap_or(&batch.data);
            let started = Instant::now();
            let packed = compressor.compress(bytes).map(|packed| {
                let mut out = shared.pool.take();
                out.clear();
                out.extend_from_slice(packed);
                out
            });
            let after = packed.as_ref().map_or(bytes.len(), Vec::len);
            shared.policy().compressed(bytes.len(), after, started.elapsed());
            let payload = match (packed, picked) {
                (Some(packed), picked) => {
                    picked.into_iter().for_each(|buffer| shared.pool.give(buffer));
                    Some((packed, Codec::Zstd))
                }
                (None, picked) => picked.map(|bytes| (bytes, Codec::None)),
            };
            (batch, payload, compressor)
        };
        match tokio::task::spawn_blocking(work).await {
            Ok((batch, payload, compressor)) => {
                self.compressor = Some(compressor);
                Ok((batch, payload))
            }
            Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
            Err(_) => Err(MemoryError::Cancelled),
        }
    }

    /// Writes the head and the payload behind it.
    async fn write(&mut self, payload: &[u8]) -> Result<(), MemoryError> {
        let length = self.head.len() + payload.len();
        self.shared.pacer.take(length as u64).await;
        Counters::add(&self.shared.counters.bytes, length as u64);
        let started = Instant::now();
        let written = async {
            self.writer.write_all(&self.head).await?;
            self.writer.write_all(payload).await?;
            self.writer.flush().await
        };
        written.await.map_err(|e| self.broke(e))?;
        if !payload.is_empty() {
            let took = started.elapsed().max(Duration::from_nanos(1));
            self.shared.policy().sent(length, took, self.shared.streams);
        }
        Ok(())
    }

    async fn answered(&mut self, answer: DestinationFrame) -> Result<(), MemoryError> {
        let Some((number, flight)) = self.flights.pop_front() else {
            return Err(self.rule("it answers what was not asked"));
        };
        match (answer, flight) {
            (
                DestinationFrame::HaveReply { batch: answered, held },
                Flight::Asked { batch, mut kinds, places },
            ) if answered == number && held.len() == places.len() => {
                for place in places.iter().zip(held).filter(|(_, held)| *held).map(|(place, _)| place) {
                    kinds[usize::from(*place)] = RunKind::Known;
                }
                self.send(batch, kinds).await
            }
            (DestinationFrame::Ack { batch: answered, missing }, Flight::Forget)
                if answered == number && missing.is_empty() =>
            {
                self.shared.outstanding.done();
                Ok(())
            }
            (
                DestinationFrame::Ack { batch: answered, missing },
                Flight::Sent { batch, kinds, compressed },
            ) if answered == number => self.acknowledged(batch, &kinds, compressed, &missing).await,
            _ => Err(self.rule("its answers do not come in the order of the frames")),
        }
    }

    async fn acknowledged(
        &mut self,
        batch: Batch,
        kinds: &Kinds,
        compressed: bool,
        missing: &[u16],
    ) -> Result<(), MemoryError> {
        if missing.iter().any(|place| kinds.get(usize::from(*place)) != Some(&RunKind::Known)) {
            return Err(self.rule("it misses pages that were not told by digest"));
        }
        let counters = &self.shared.counters;
        let count = |kind| kinds.iter().filter(|is| **is == kind).count() as u64;
        Counters::add(&counters.zero, count(RunKind::Zero));
        Counters::add(&counters.known, count(RunKind::Known) - missing.len() as u64);
        let content = if compressed { &counters.compressed } else { &counters.raw };
        Counters::add(content, count(RunKind::Content));
        let taken = |place: &u16| missing.binary_search(place).is_err();
        let pages = || (0u16..).zip(&batch.pages).filter(|(place, _)| taken(place)).map(|(_, page)| page);
        self.shared.ledger.record(batch.object, pages().map(|page| (page.page, page.digest)));
        {
            let mut sent = self.shared.sent.lock();
            sent.extend(pages().filter(|page| page.slot.is_some()).map(|page| prefix(&page.digest)));
            for place in missing {
                sent.remove(&prefix(&batch.pages[usize::from(*place)].digest));
            }
        }
        if missing.is_empty() {
            self.shared.pool.give(batch.data);
            self.shared.outstanding.done();
            return Ok(());
        }
        let again = batch.subset(missing, self.shared.pool.take());
        self.shared.pool.give(batch.data);
        self.start(again).await
    }
}

/// The frame of a batch, but for codec and payload.
fn describe(batch: &Batch, kinds: &Kinds, number: u64) -> Pages {
    let mut runs: Vec<Run> = Vec::new();
    let mut known = Vec::new();
    let mut root = Root::default();
    for (page, kind) in batch.pages.iter().zip(kinds) {
        root.update(&[page.digest]);
        if *kind == RunKind::Known {
            known.push(page.digest);
        }
        match runs.last_mut() {
            Some(run) if run.kind == *kind && run.first + u64::from(run.count) == page.page => run.count += 1,
            _ => runs.push(Run { first: page.page, count: 1, kind: *kind }),
        }
    }
    let root: Digest = root.finish();
    let payload = bytes::Bytes::new();
    Pages { batch: number, object: batch.object, runs, known, root, codec: Codec::None, payload }
}

/// The bytes of some of a batch's pages, one after the other.
fn pick(batch: &Batch, slots: &[u16], mut out: Vec<u8>) -> Vec<u8> {
    out.clear();
    slots.iter().for_each(|slot| out.extend_from_slice(batch.content(*slot)));
    out
}

/// Hints of contents that the destination certainly got. Contents are overwritten there without our knowing which hint that
/// concerns, so it is pruned now and then to what the ledger has.
#[derive(Debug, Default)]
pub(super) struct Sent(std::sync::Mutex<HashSet<u64>>);

impl Sent {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashSet<u64>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Keeps only what the ledger says the destination holds now, when much else has come together.
    pub(super) fn prune(&self, ledger: &super::Ledger) {
        let pages = usize::try_from(ledger.pages()).unwrap_or(usize::MAX / 4);
        if self.lock().len() <= pages * 2 + 65_536 {
            return;
        }
        let mut now = HashSet::with_capacity(pages);
        ledger.for_each_digest(|digest| {
            now.insert(prefix(digest));
        });
        *self.lock() = now;
    }
}
