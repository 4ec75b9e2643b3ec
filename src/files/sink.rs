//! The receiving side of a tree.

use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::mpsc::{Receiver, Sender};

use super::attributes::apply;
use super::beneath::Beneath;
use super::blocks::{bytes, each, unpack, write_needs};
use super::content::{Content, FileKey, block_buffer, hash_file, write_block};
use super::entry::{Entry, Kind, manifest_digest};
use super::error::{Doing, FilesError, show};
use super::manifest;
use super::memory::Memory;
use super::overlay::TreeKind;
use super::prepare::{Plan, Prepare};
use super::source::{blocking, locked};
use super::walk::{Node, Walk};
use crate::model::limits::FILE_BLOCK;
use crate::protocol::frame::{FrameError, read_message, write_message};
use crate::rpc::v1::{FileBlock, FilesApplied, FilesDone, FilesHello, NeedPart};

/// Blocks on their way from the stream to the disk.
const BLOCKS_AHEAD: usize = 8;

/// A tree that is received, round after round, from one [`super::TreeSource`].
#[derive(Debug)]
pub struct TreeSink {
    disk: Arc<Mutex<Disk>>,
    /// Number and manifest of the last round that was applied; round 0: none.
    base: (u32, Arc<Vec<Entry>>),
}

/// The destination's tree.
#[derive(Debug)]
struct Disk {
    root: PathBuf,
    seeds: Vec<PathBuf>,
    /// What is on disk, when it is known.
    have: Option<Vec<Node>>,
    memory: Memory,
}

/// By inode: how a file looks after it was brought up to date, and its content when all of it arrived.
type Settled = HashMap<(u64, u64), (FileKey, Option<Content>)>;

impl TreeSink {
    /// A tree that is built at `root`. Its parent directory exists, is ours, and is closed to everybody else: the tree may
    /// hold setuid programs and devices. `root` need not exist; what is there already (an earlier visit's copy) is used and
    /// then made equal to the source's tree. Files under the same paths in the `seeds` are used, too, and left alone.
    #[must_use]
    pub fn new(root: PathBuf, seeds: Vec<PathBuf>) -> Self {
        let disk = Disk { root, seeds, have: None, memory: Memory::default() };
        Self { disk: Arc::new(Mutex::new(disk)), base: (0, Arc::default()) }
    }

    /// Receives one round; the caller has read `hello` from the stream. In the last round, success means that the tree on disk
    /// was looked at again and is what the source sent, content by digest.
    ///
    /// The tree is not synced to disk: call [`TreeSink::sync`] before the source may forget its copy.
    ///
    /// # Errors
    /// Every breach of the protocol and every refusal of the kernel; the source is told. The tree is then in between, and a
    /// later round can go on from there.
    pub async fn receive_round<S>(
        &mut self,
        stream: &mut S,
        hello: FilesHello,
    ) -> Result<FilesApplied, FilesError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let (reader, mut writer) = tokio::io::split(stream);
        let mut reader = BufReader::with_capacity(FILE_BLOCK, reader);
        let (want, plan) = match self.prepare(&mut reader, &hello).await {
            Ok(prepared) => prepared,
            Err(error) => {
                let refusal = NeedPart { error: error.chain(), last: true, ..NeedPart::default() };
                tell(&mut writer, &refusal).await;
                return Err(error);
            }
        };
        write_needs(&mut writer, &plan.needs).await?;
        match self.complete(&mut reader, &hello, Arc::clone(&want), plan).await {
            Ok(applied) => {
                write_message(&mut writer, &applied).await?;
                writer.flush().await.map_err(FrameError::Io)?;
                self.base = (hello.round, want);
                Ok(applied)
            }
            Err(error) => {
                let refusal = FilesApplied { error: error.chain(), ..FilesApplied::default() };
                tell(&mut writer, &refusal).await;
                Err(error)
            }
        }
    }

    /// Writes everything that was received to stable storage (syncfs(2)): from then on it survives a crash of this host, as
    /// what the container had synced survives one at the source. Costs what the disk costs; not meant for the downtime.
    ///
    /// # Errors
    /// [`FilesError::Io`].
    pub async fn sync(&self) -> Result<(), FilesError> {
        let disk = Arc::clone(&self.disk);
        blocking(move || {
            let root = locked(&disk).root.clone();
            Beneath::open(&root)?.sync().doing("sync", b"")
        })
        .await
    }

    async fn prepare<R: AsyncRead + Unpin>(
        &mut self,
        reader: &mut R,
        hello: &FilesHello,
    ) -> Result<(Arc<Vec<Entry>>, Plan), FilesError> {
        let (held, base) = std::mem::take(&mut self.base);
        let base = match hello.base_round {
            0 => Arc::default(),
            base_round if base_round == held => base,
            base_round => return Err(FilesError::UnknownBase { round: hello.round, base_round, held }),
        };
        let want = Arc::new(manifest::read(reader, &base).await?);
        let (disk, entries) = (Arc::clone(&self.disk), Arc::clone(&want));
        // The source begins anew: so do we, from what is on disk now.
        let anew = hello.base_round == 0;
        let plan = blocking(move || locked(&disk).prepare(&entries, anew)).await?;
        Ok((want, plan))
    }

    /// Receives the blocks that were asked for, and finishes the round.
    async fn complete<R: AsyncRead + Unpin>(
        &self,
        reader: &mut R,
        hello: &FilesHello,
        want: Arc<Vec<Entry>>,
        plan: Plan,
    ) -> Result<FilesApplied, FilesError> {
        let last = hello.last;
        let asked = plan.needs.iter().map(|need| u64::from(need.blocks)).sum();
        let (blocks, arriving) = tokio::sync::mpsc::channel(BLOCKS_AHEAD);
        let disk = Arc::clone(&self.disk);
        let mut writing =
            tokio::task::spawn_blocking(move || locked(&disk).complete(&want, plan, arriving, last));
        // When the writer gives up, its error says why; when the stream breaks, the stream's error does.
        tokio::select! {
            received = receive(reader, blocks, asked) => {
                let written = writing.await.map_err(FilesError::Interrupted)?;
                received?;
                written
            }
            written = &mut writing => written.map_err(FilesError::Interrupted)?,
        }
    }
}

/// The peer may be gone: then it learns nothing.
async fn tell<W: AsyncWrite + Unpin>(writer: &mut W, refusal: &impl prost::Message) {
    if write_message(writer, refusal).await.is_ok() {
        let _ = writer.flush().await;
    }
}

/// Hands `asked` blocks on; ends early, without error, when the writer gave up.
async fn receive<R: AsyncRead + Unpin>(
    reader: &mut R,
    blocks: Sender<Option<FileBlock>>,
    asked: u64,
) -> Result<(), FilesError> {
    for _ in 0..asked {
        let block: FileBlock = read_message(reader).await?;
        if blocks.send(Some(block)).await.is_err() {
            return Ok(());
        }
    }
    let FilesDone { done } = read_message(reader).await?;
    if !done {
        return Err(FrameError::Unexpected("blocks that nobody asked for").into());
    }
    // Nobody listens: the writer has its error ready.
    let _ = blocks.send(None).await;
    Ok(())
}

impl Disk {
    fn prepare(&mut self, want: &[Entry], anew: bool) -> Result<Plan, FilesError> {
        let mut at = Beneath::open(&self.root)?;
        let have = match self.have.take().filter(|_| !anew) {
            Some(have) => have,
            None => self.look(&mut at)?,
        };
        Prepare { at: &mut at, have: &have, want, memory: &mut self.memory, seeds: &self.seeds }.run()
    }

    /// What is on disk; nothing when the root is not there.
    fn look(&self, at: &mut Beneath) -> Result<Vec<Node>, FilesError> {
        if at.place(b"").and_then(|place| place.stat()) == Err(Errno::ENOENT) {
            return Ok(Vec::new());
        }
        Walk { at, kind: TreeKind::Tree, memory: &self.memory, frozen: true, bare: false }.run()
    }

    /// Writes blocks as they arrive, then sets attributes, then looks at the result.
    fn complete(
        &mut self,
        want: &[Entry],
        mut plan: Plan,
        mut arriving: Receiver<Option<FileBlock>>,
        last: bool,
    ) -> Result<FilesApplied, FilesError> {
        let mut at = Beneath::open(&self.root)?;
        self.write_blocks(&mut at, want, &mut plan, &mut arriving, last)?;
        let settled = self.settle(&mut at, want, &plan)?;
        at.forget();
        let have = self.look(&mut at)?;
        let mut memory = Memory::default();
        for node in &have {
            let content = match settled.get(&node.key.inode()) {
                Some((key, content)) => content.clone().filter(|_| *key == node.key),
                None => self.memory.content(&node.key).cloned(),
            };
            memory.insert(node, content);
        }
        self.memory = memory;
        let mut applied = FilesApplied {
            files_changed: plan.files_changed,
            files_deleted: plan.files_deleted,
            ..FilesApplied::default()
        };
        applied.bytes_total =
            want.iter().filter(|entry| !entry.blocks.is_empty()).map(|entry| entry.size).sum();
        applied.bytes_known = applied.bytes_total.saturating_sub(bytes(want, &plan.needs));
        if last {
            applied.manifest_digest = self.prove(&mut at, &have, want)?;
        }
        self.have = Some(have);
        Ok(applied)
    }

    fn write_blocks(
        &mut self,
        at: &mut Beneath,
        want: &[Entry],
        plan: &mut Plan,
        arriving: &mut Receiver<Option<FileBlock>>,
        last: bool,
    ) -> Result<(), FilesError> {
        let broken =
            || FilesError::Stream(FrameError::Unexpected("the stream ended before all blocks arrived"));
        let mut open: Option<(usize, File)> = None;
        for (index, number) in each(&plan.needs) {
            let block = arriving.blocking_recv().flatten().ok_or_else(broken)?;
            let entry = &want[index];
            let Some(data) = unpack(&block, (index, number), entry)? else {
                if last {
                    return Err(FilesError::Changed { path: show(&entry.path) });
                }
                plan.incomplete[index] = true;
                continue;
            };
            if open.as_ref().is_none_or(|(known, _)| *known != index) {
                open = Some((index, at.open_file(&entry.path, OFlag::O_WRONLY).doing("open", &entry.path)?));
            }
            if let Some((_, file)) = &open {
                let from = u64::from(number) * FILE_BLOCK as u64;
                write_block(file, from, &data, entry.sparse, plan.fresh[index])
                    .doing("write", &entry.path)?;
            }
        }
        // The source says that it is done: nothing is applied for a source that died on the way.
        match arriving.blocking_recv() {
            Some(None) => Ok(()),
            _ => Err(broken()),
        }
    }

    /// Sets the attributes of everything that was touched: files first, then directories from the deepest up, because every
    /// change in a directory changes its time. Gives what is now known about the files.
    fn settle(&mut self, at: &mut Beneath, want: &[Entry], plan: &Plan) -> Result<Settled, FilesError> {
        let mut settled = HashMap::new();
        let touched = |directories: bool| {
            let entries = want.iter().zip(&plan.touched).zip(&plan.incomplete);
            entries
                .filter(move |((entry, touched), _)| {
                    **touched && (entry.kind == Kind::Directory) == directories
                })
                .map(|((entry, _), incomplete)| (entry, *incomplete))
        };
        let mut groups = std::collections::HashSet::new();
        for (entry, incomplete) in touched(false) {
            if entry.link_group != 0 && !groups.insert(entry.link_group) {
                continue;
            }
            let place = at.place(&entry.path).doing("find", &entry.path)?;
            let key = FileKey::of(&apply(&place, entry)?);
            self.memory.forget(key.inode());
            let content = Content { blocks: Arc::clone(&entry.blocks), sparse: entry.sparse };
            settled.insert(key.inode(), (key, (entry.kind == Kind::File && !incomplete).then_some(content)));
        }
        for (entry, _) in touched(true).collect::<Vec<_>>().into_iter().rev() {
            let place = at.place(&entry.path).doing("find", &entry.path)?;
            let stat = apply(&place, entry)?;
            self.memory.forget(FileKey::of(&stat).inode());
        }
        Ok(settled)
    }

    /// The tree on disk, with digests of content that was checked when it was read or written, must be what was asked for.
    fn prove(&self, at: &mut Beneath, have: &[Node], want: &[Entry]) -> Result<Bytes, FilesError> {
        let mut found: Vec<Entry> = Vec::with_capacity(have.len());
        let mut groups = std::collections::HashSet::new();
        for node in have {
            let mut entry = node.entry.clone();
            let other_name = entry.link_group != 0 && !groups.insert(entry.link_group);
            if entry.kind == Kind::File && !other_name {
                entry.blocks = match self.memory.content(&node.key) {
                    Some(content) => Arc::clone(&content.blocks),
                    None => {
                        let file = at.read_file(&entry.path).doing("open", &entry.path)?;
                        hash_file(&file, entry.size, &mut block_buffer()).doing("read", &entry.path)?.blocks
                    }
                };
            }
            found.push(entry);
        }
        compare(&found, want)?;
        Ok(Bytes::copy_from_slice(&manifest_digest(&found).0))
    }
}

/// Names the first difference.
fn compare(found: &[Entry], want: &[Entry]) -> Result<(), FilesError> {
    let differs = |path: &[u8], what| Err(FilesError::Differs { path: show(path), what });
    for (have, want) in found.iter().zip(want) {
        if have.path != want.path {
            let (first, what) =
                if have.path < want.path { (have, "a name too many") } else { (want, "the name") };
            return differs(&first.path, what);
        }
        if let Some(what) = have.difference(want) {
            return differs(&want.path, what);
        }
        if have.blocks != want.blocks {
            return differs(&want.path, "content");
        }
        if (have.link_group == 0) != (want.link_group == 0) {
            return differs(&want.path, "the set of its names");
        }
    }
    match (found.get(want.len()), want.get(found.len())) {
        (Some(extra), _) => differs(&extra.path, "a name too many"),
        (_, Some(missing)) => differs(&missing.path, "the name"),
        _ => Ok(()),
    }
}
