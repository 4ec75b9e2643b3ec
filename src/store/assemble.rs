//! From the store to CRIU's image files: for each object a pagemap and a pages file, every page hashed once more on its way, and
//! at the end one comparison for the whole object with the root that the source computed while the container was frozen. Memory
//! stays flat: what is written is given back from the store. Blocking: call it from a thread that may.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::error::StoreError;
use super::object::{Presence, StoredObject};
use super::{Arc, PageStore};
use crate::images::pagemap;
use crate::model::layout::{LayoutRun, ObjectLayout, PE_LAZY, PE_PARENT, PE_PRESENT, push_merged};
use crate::model::limits::PAGE_INDEX_MAX;
use crate::model::page::{Digest, PAGE_SIZE, PageIndex, PageRange};
use crate::pages::hash::{Root, ZERO_DIGEST, digest_many};

/// Pages in one piece of work: 2 MiB.
const PIECE_PAGES: u64 = 512;

/// What was assembled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AssembleStats {
    /// Objects, two files each.
    pub objects: u64,
    /// Pages whose digests were computed again and whose root was right.
    pub pages_verified: u64,
    /// Of these, all zero: holes in the files.
    pub pages_zero: u64,
    /// Pages that are in no file and come later. Their digests, computed when they arrived, are those of the source; they are
    /// computed once more when a page is installed.
    pub pages_lazy: u64,
}

/// Up to [`PIECE_PAGES`] pages that lie together in a pages file.
struct Piece {
    object: usize,
    /// Place of the first page in the pages file.
    at: u64,
    runs: Vec<PageRange>,
    /// From a hidden mapping: compared with the book, and no part of the object's root.
    hidden: bool,
}

struct Output {
    object: Arc<StoredObject>,
    path: PathBuf,
    file: File,
}

/// Writes `pagemap-*.img` and `pages-N.img` of all `layouts` into `folder`, N counting from `first_pages_id`, with `threads`
/// threads. The pages leave the store, but for those that are lazy: of these only the book is compared with the source's.
///
/// # Errors
/// A layout that breaks a rule, a page that never arrived, a root that differs, a file that cannot be written, or
/// [`StoreError::Stopped`] soon after `stop` was set. The folder is then useless, and so is the store.
pub fn assemble(
    store: &PageStore,
    layouts: &[ObjectLayout],
    folder: &Path,
    first_pages_id: u32,
    threads: usize,
    stop: &AtomicBool,
) -> Result<AssembleStats, StoreError> {
    let mut outputs = Vec::with_capacity(layouts.len());
    let mut pieces = Vec::new();
    for (number, (layout, pages_id)) in layouts.iter().zip(first_pages_id..).enumerate() {
        check(layout)?;
        outputs.push(create(store, layout, folder, pages_id)?);
        compare_hidden(&outputs[number].object, layout)?;
        cut(number, layout, &mut pieces);
    }
    let digests = copy_all(store, &outputs, &pieces, threads.max(1), stop)?;
    let mut stats = AssembleStats { objects: layouts.len() as u64, ..AssembleStats::default() };
    let mut roots = vec![Root::default(); layouts.len()];
    for (piece, digests) in pieces.iter().zip(digests) {
        if !piece.hidden {
            roots[piece.object].update(&digests);
        }
        stats.pages_verified += digests.len() as u64;
        stats.pages_zero += digests.iter().filter(|digest| **digest == ZERO_DIGEST).count() as u64;
    }
    stats.pages_lazy = layouts.iter().map(ObjectLayout::pages_lazy).sum();
    for (layout, root) in layouts.iter().zip(roots) {
        if root.finish() != layout.root {
            return Err(StoreError::WrongObject { object: layout.object });
        }
    }
    Ok(stats)
}

/// A plain dump writes every page as present; those of private memory carry the lazy mark as well (criu/page-xfer.c,
/// ppb_xfer_flags), and mean nothing by it when the restore is not lazy.
fn check(layout: &ObjectLayout) -> Result<(), StoreError> {
    let broken = |rule| StoreError::Layout { object: layout.object, rule };
    let mut next = 0;
    for mapping in &layout.hidden {
        if mapping.count == 0
            || mapping.first.0 < next
            || mapping.count > PAGE_INDEX_MAX
            || mapping.first.0 > PAGE_INDEX_MAX
        {
            return Err(broken("its hidden mappings are not empty and strictly ascending"));
        }
        next = mapping.end().0;
        if next > PAGE_INDEX_MAX {
            return Err(broken("its hidden mappings lie inside the address space"));
        }
    }
    let mut next = 0;
    for run in &layout.runs {
        if run.count == 0 || run.first < next {
            return Err(broken("its runs are not empty and strictly ascending"));
        }
        next = run.end();
        if next > PAGE_INDEX_MAX {
            return Err(broken("its pages lie inside the address space"));
        }
        if run.flags & PE_PARENT != 0 {
            return Err(broken("it has no pages in a parent image"));
        }
        if run.flags & (PE_PRESENT | PE_LAZY) == 0 || run.flags & !(PE_PRESENT | PE_LAZY) != 0 {
            return Err(broken("its pages are present or lazy, and it has no flags that are not known"));
        }
        let (inside, outside) = place(&layout.hidden, run);
        if !inside && !outside {
            return Err(broken("a run lies in one hidden mapping or in none"));
        }
        if !inside && run.flags & PE_PRESENT == 0 {
            return Err(broken("only pages of hidden mappings are lazy"));
        }
    }
    Ok(())
}

/// Are the pages of the hidden mappings those that the source has there, and all of them? What a layout left out would read as
/// zero in the container.
fn compare_hidden(object: &StoredObject, layout: &ObjectLayout) -> Result<(), StoreError> {
    if layout.hidden.is_empty() {
        return Ok(());
    }
    let mut told = Vec::new();
    for run in layout.runs.iter().filter(|run| place(&layout.hidden, run).0) {
        push_merged(&mut told, PageRange { first: PageIndex(run.first), count: u64::from(run.count) });
    }
    if object.root_of(&layout.hidden) != layout.hidden_root || object.held(&layout.hidden) != told {
        return Err(StoreError::WrongObject { object: layout.object });
    }
    // Whoever installs lazy pages wants the files, though all pages may be zero.
    object.files().map(drop)
}

/// Does a run lie inside one hidden mapping; outside all of them?
fn place(hidden: &[PageRange], run: &LayoutRun) -> (bool, bool) {
    let at = hidden.partition_point(|mapping| mapping.end().0 <= run.first);
    let Some(mapping) = hidden.get(at) else { return (false, true) };
    (mapping.first.0 <= run.first && run.end() <= mapping.end().0, run.end() <= mapping.first.0)
}

fn create(
    store: &PageStore,
    layout: &ObjectLayout,
    folder: &Path,
    pages_id: u32,
) -> Result<Output, StoreError> {
    let (_, object) = store.find_or_create(layout.object)?;
    let write_pagemap = |path: &Path| -> io::Result<()> {
        let mut writer = BufWriter::new(File::create_new(path)?);
        // An entry that may be restored lazily is left to the pager by CRIU, wherever its bytes are (criu/mem.c, `restore_priv_vma_
        // content`): those whose bytes are in the pages image say nothing of it.
        let plain = |run: &LayoutRun| match run.flags & PE_PRESENT {
            0 => *run,
            _ => LayoutRun { flags: PE_PRESENT, ..*run },
        };
        let runs: Vec<LayoutRun> = layout.runs.iter().map(plain).collect();
        pagemap::write(&mut writer, pages_id, &runs)?;
        writer.flush()
    };
    let path = folder.join(pagemap::pagemap_name(layout.object));
    write_pagemap(&path).map_err(|source| StoreError::Image { path: path.clone(), source })?;
    let path = folder.join(pagemap::pages_name(pages_id));
    let sized = |file: File| file.set_len(layout.pages_present() * PAGE_SIZE as u64).map(|()| file);
    let file = File::create_new(&path).and_then(sized);
    let file = file.map_err(|source| StoreError::Image { path: path.clone(), source })?;
    Ok(Output { object, path, file })
}

fn cut(object: usize, layout: &ObjectLayout, pieces: &mut Vec<Piece>) {
    let new = |at, hidden| Piece { object, at, runs: Vec::new(), hidden };
    let mut piece = new(0, false);
    let (mut at, mut filled) = (0, 0);
    for run in layout.runs.iter().filter(|run| run.flags & PE_PRESENT != 0) {
        let (hidden, _) = place(&layout.hidden, run);
        if hidden != piece.hidden && filled > 0 {
            at += filled;
            filled = 0;
            pieces.push(std::mem::replace(&mut piece, new(at, hidden)));
        }
        piece.hidden = hidden;
        let mut first = run.first;
        while first < run.end() {
            let count = (run.end() - first).min(PIECE_PAGES - filled);
            piece.runs.push(PageRange { first: PageIndex(first), count });
            first += count;
            filled += count;
            if filled == PIECE_PAGES {
                at += filled;
                filled = 0;
                pieces.push(std::mem::replace(&mut piece, new(at, hidden)));
            }
        }
    }
    if filled > 0 {
        pieces.push(piece);
    }
}

/// All pieces, their digests in the order of the pieces.
fn copy_all(
    store: &PageStore,
    outputs: &[Output],
    pieces: &[Piece],
    threads: usize,
    stop: &AtomicBool,
) -> Result<Vec<Vec<Digest>>, StoreError> {
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let work = || -> Result<Vec<(usize, Vec<Digest>)>, StoreError> {
        let mut buffer = Vec::new();
        let mut done = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(piece) = pieces.get(number) else { return Ok(done) };
            if stop.load(Ordering::Relaxed) || failed.load(Ordering::Relaxed) {
                return Err(StoreError::Stopped);
            }
            match copy(store, &outputs[piece.object], piece, &mut buffer) {
                Ok(digests) => done.push((number, digests)),
                Err(e) => {
                    failed.store(true, Ordering::Relaxed);
                    return Err(e);
                }
            }
        }
    };
    let results: Vec<_> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads.min(pieces.len())).map(|_| scope.spawn(work)).collect();
        running
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    let mut ordered = vec![Vec::new(); pieces.len()];
    let mut error = None;
    for result in results {
        match result {
            Ok(done) => done.into_iter().for_each(|(number, digests)| ordered[number] = digests),
            // The cause, not the threads that stopped because of it.
            Err(e) if error.is_none() || matches!(error, Some(StoreError::Stopped)) => error = Some(e),
            Err(_) => {}
        }
    }
    error.map_or(Ok(ordered), Err)
}

/// One piece: read, hash, write, give back.
fn copy(
    store: &PageStore,
    output: &Output,
    piece: &Piece,
    buffer: &mut Vec<u8>,
) -> Result<Vec<Digest>, StoreError> {
    let pages: u64 = piece.runs.iter().map(|run| run.count).sum();
    buffer.clear();
    buffer.resize(usize::try_from(pages).expect("a piece is small") * PAGE_SIZE, 0);
    let presence = read(output, piece, buffer)?;
    let bytes = buffer.as_chunks::<PAGE_SIZE>().0;
    let content: Vec<&[u8; PAGE_SIZE]> = bytes
        .iter()
        .zip(&presence)
        .filter(|(_, here)| **here == Presence::Content)
        .map(|(page, _)| page)
        .collect();
    let mut content_digests = Vec::new();
    digest_many(&content, &mut content_digests);
    let mut computed = content_digests.into_iter();
    let digests: Vec<Digest> = presence
        .iter()
        .map(|here| match here {
            Presence::Content => computed.next().unwrap_or(ZERO_DIGEST),
            _ => ZERO_DIGEST,
        })
        .collect();
    write(output, piece.at, buffer, &digests)
        .map_err(|source| StoreError::Image { path: output.path.clone(), source })?;
    let booked = || piece.runs.iter().flat_map(|run| run.iter()).map(|page| output.object.digest(page));
    if piece.hidden && !booked().eq(digests.iter().map(|digest| Some(*digest))) {
        return Err(StoreError::WrongObject { object: output.object.id() });
    }
    for run in &piece.runs {
        output.object.forget(*run, &store.budget)?;
    }
    Ok(digests)
}

fn read(output: &Output, piece: &Piece, buffer: &mut [u8]) -> Result<Vec<Presence>, StoreError> {
    let mut presence = Vec::new();
    let mut rest = buffer;
    for run in &piece.runs {
        let start = presence.len();
        let file = output.object.look(*run, &mut presence);
        if let Some(hole) = presence[start..].iter().position(|here| *here == Presence::Absent) {
            return Err(StoreError::MissingPage {
                object: output.object.id(),
                page: run.first.0 + hole as u64,
            });
        }
        let (bytes, after) = rest.split_at_mut((presence.len() - start) * PAGE_SIZE);
        rest = after;
        // Holes of the memory file are the zero pages.
        if let Some(file) = file {
            file.read_pages(run.first.0, bytes).map_err(|source| StoreError::Memory {
                object: output.object.id(),
                action: "read",
                source,
            })?;
        }
    }
    Ok(presence)
}

/// Zero pages are left out: the file was made long enough, and its holes read as zero.
fn write(output: &Output, at: u64, bytes: &[u8], digests: &[Digest]) -> io::Result<()> {
    let mut place = 0;
    for run in digests.chunk_by(|a, b| (*a == ZERO_DIGEST) == (*b == ZERO_DIGEST)) {
        if run[0] != ZERO_DIGEST {
            let part = &bytes[place * PAGE_SIZE..(place + run.len()) * PAGE_SIZE];
            output.file.write_all_at(part, (at + place as u64) * PAGE_SIZE as u64)?;
        }
        place += run.len();
    }
    Ok(())
}
