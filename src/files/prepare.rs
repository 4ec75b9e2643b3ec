//! The destination's tree before blocks arrive: what is gone is removed, what is new gets a name, and every block whose content
//! is already here (in the same file, in an earlier visit's copy, in a file that was renamed) is put in place. What remains is
//! the need list.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat, mknodat};
use nix::unistd::{linkat, symlinkat};

use super::beneath::{Beneath, split};
use super::content::{Content, block_buffer, block_digest, hash_file, read_full, write_block, write_zeros};
use super::entry::{Entry, Kind, ZEROS, block_len};
use super::error::{Doing, FilesError};
use super::memory::Memory;
use super::walk::Node;
use crate::model::Digest;
use crate::model::limits::FILE_BLOCK;
use crate::rpc::v1::FileNeed;

/// Files that go away but are kept open while their content may still be wanted under another name.
const RESCUED_MAX: usize = 128;

/// What has to happen with the entries of a manifest, and what has been found out on the way.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Per entry: its attributes must be set.
    pub(super) touched: Vec<bool>,
    /// Per entry: not all of its content is what the manifest says.
    pub(super) incomplete: Vec<bool>,
    /// Per entry: its content is written in this round, so it reads as zeros where nothing was written.
    pub(super) fresh: Vec<bool>,
    pub(super) needs: Vec<FileNeed>,
    pub(super) files_changed: u64,
    pub(super) files_deleted: u64,
}

/// What is on disk under the name of an entry and can be used in place.
#[derive(Debug, Clone, Copy)]
struct Kept(usize);

/// Prepares one round. Blocks the thread.
#[derive(Debug)]
pub(super) struct Prepare<'a> {
    pub(super) at: &'a mut Beneath,
    /// What is on disk, sorted.
    pub(super) have: &'a [Node],
    pub(super) want: &'a [Entry],
    pub(super) memory: &'a mut Memory,
    pub(super) seeds: &'a [PathBuf],
}

impl Prepare<'_> {
    /// Does everything that can be done without the source.
    pub(super) fn run(mut self) -> Result<Plan, FilesError> {
        let count = self.want.len();
        let mut plan = Plan {
            touched: vec![false; count],
            incomplete: vec![false; count],
            fresh: vec![false; count],
            ..Plan::default()
        };
        let kept = self.match_names();
        let mut local = Local::open(self.seeds);
        self.remove(&kept, &mut local, &mut plan)?;
        self.at.forget();
        self.create(&kept, &mut plan)?;
        for (index, kept) in kept.iter().enumerate() {
            if kept.is_some() || !self.want[index].blocks.is_empty() {
                self.fill(index, *kept, &mut local, &mut plan)?;
            }
        }
        let changed = plan
            .touched
            .iter()
            .zip(self.want)
            .filter(|(touched, entry)| **touched && entry.kind != Kind::Directory);
        plan.files_changed = changed.count() as u64;
        Ok(plan)
    }

    /// Which names on disk can stay. A file stays only when all names of its inode are known to us and belong to this entry:
    /// otherwise changing it in place would change another file, perhaps outside the root.
    fn match_names(&self) -> Vec<Option<Kept>> {
        let mut names: HashMap<(u64, u64), u64> = HashMap::new();
        for node in self.have.iter().filter(|node| node.nlink > 1) {
            *names.entry(node.key.inode()).or_default() += 1;
        }
        let mut owner: HashMap<(u64, u64), Option<u64>> = HashMap::new();
        let mut leaders: HashMap<u64, Option<(u64, u64)>> = HashMap::new();
        let mut have = self.have.iter().enumerate().peekable();
        let mut kept = Vec::with_capacity(self.want.len());
        for entry in self.want {
            while have.next_if(|(_, node)| node.entry.path < entry.path).is_some() {}
            let same_name = have.next_if(|(_, node)| node.entry.path == entry.path);
            let usable = same_name.filter(|(_, node)| {
                let known = node.nlink == 1 || names.get(&node.key.inode()) == Some(&node.nlink);
                alike(&node.entry, entry) && (entry.kind == Kind::Directory || known)
            });
            let inode = usable.map(|(_, node)| node.key.inode());
            let stays = match (inode, entry.link_group) {
                (None, _) => false,
                (Some(_), _) if entry.kind == Kind::Directory => true,
                (Some(inode), 0) => owner.insert(inode, None).is_none(),
                (Some(inode), group) => match leaders.get(&group) {
                    Some(leader) => *leader == Some(inode),
                    None => owner.insert(inode, Some(group)).is_none(),
                },
            };
            if entry.link_group != 0 {
                leaders.entry(entry.link_group).or_insert(if stays { inode } else { None });
            }
            kept.push(usable.filter(|_| stays).map(|(at, _)| Kept(at)));
        }
        kept
    }

    /// Removes what is not in the manifest or cannot stay, children first.
    fn remove(
        &mut self,
        kept: &[Option<Kept>],
        local: &mut Local,
        plan: &mut Plan,
    ) -> Result<(), FilesError> {
        let stays: HashSet<usize> = kept.iter().flatten().map(|kept| kept.0).collect();
        let gone: Vec<usize> = (0..self.have.len()).rev().filter(|at| !stays.contains(at)).collect();
        if gone.is_empty() {
            return Ok(());
        }
        let wanted: HashSet<Digest> = self.wanted_digests(kept);
        for at in gone {
            let node = &self.have[at];
            let path = &node.entry.path[..];
            if let Some(content) = self.memory.content(&node.key)
                && content.blocks.iter().any(|block| wanted.contains(block))
            {
                local.rescue(self.at, path, content);
            }
            self.at.remove(path, node.entry.kind == Kind::Directory).doing("remove", path)?;
            self.memory.forget(node.key.inode());
            touch_parent(self.want, path, plan);
            if find(self.want, path).is_none() {
                plan.files_deleted += 1;
            }
        }
        Ok(())
    }

    /// Digests of blocks that are not in the file of the same name.
    fn wanted_digests(&self, kept: &[Option<Kept>]) -> HashSet<Digest> {
        let mut wanted = HashSet::new();
        for (entry, kept) in self.want.iter().zip(kept) {
            let known = kept.and_then(|kept| self.memory.content(&self.have[kept.0].key));
            let known = known.map_or(&[][..], |content| &content.blocks);
            for (number, block) in entry.blocks.iter().enumerate() {
                if *block != ZEROS && known.get(number) != Some(block) {
                    wanted.insert(*block);
                }
            }
        }
        wanted
    }

    /// Gives every new entry its name; parents come before children, and the first name of a file before its others.
    fn create(&mut self, kept: &[Option<Kept>], plan: &mut Plan) -> Result<(), FilesError> {
        let mut leaders: HashMap<u64, &[u8]> = HashMap::new();
        for (index, entry) in self.want.iter().enumerate() {
            let path = &entry.path[..];
            let leader = match entry.link_group {
                0 => path,
                group => leaders.entry(group).or_insert(path),
            };
            if kept[index].is_some() {
                continue;
            }
            if leader == path {
                self.create_one(entry)?;
                plan.fresh[index] = true;
            } else {
                let (from, to) =
                    (self.at.place(leader).doing("find", leader)?, self.at.place(path).doing("find", path)?);
                linkat(&*from.dir, &from.name[..], &*to.dir, &to.name[..], AtFlags::empty())
                    .doing("link", path)?;
                if let Some(leader) = find(self.want, leader) {
                    plan.touched[leader] = true;
                }
            }
            plan.touched[index] = true;
            touch_parent(self.want, path, plan);
        }
        Ok(())
    }

    /// A new file that nobody but root can use until it is complete.
    fn create_one(&mut self, entry: &Entry) -> Result<(), FilesError> {
        let path = &entry.path[..];
        let place = self.at.place(path).doing("find the directory of", path)?;
        let (dir, name) = (&*place.dir, &place.name[..]);
        let private = Mode::S_IRUSR | Mode::S_IWUSR;
        let node = |kind| mknodat(dir, name, kind, private, entry.rdev);
        match entry.kind {
            Kind::Directory => mkdirat(dir, name, Mode::S_IRWXU),
            Kind::Symlink => symlinkat(&entry.target[..], dir, name),
            Kind::Fifo => node(SFlag::S_IFIFO),
            Kind::Socket => node(SFlag::S_IFSOCK),
            Kind::CharDevice => node(SFlag::S_IFCHR),
            Kind::BlockDevice => node(SFlag::S_IFBLK),
            Kind::File => {
                let flags =
                    OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
                openat(dir, name, flags, private).map(drop)
            }
        }
        .doing("create", path)
    }

    /// Brings a file that stays, or a new regular file, as close to the manifest as is possible here.
    fn fill(
        &mut self,
        index: usize,
        kept: Option<Kept>,
        local: &mut Local,
        plan: &mut Plan,
    ) -> Result<(), FilesError> {
        let entry = &self.want[index];
        let node = kept.map(|kept| &self.have[kept.0]);
        if node.is_some_and(|node| node.entry.difference(entry).is_some()) {
            plan.touched[index] = true;
        }
        let is_other_name = entry.blocks.is_empty() && entry.size > 0;
        if entry.kind != Kind::File || is_other_name {
            return Ok(());
        }
        let old = match node {
            Some(node) => self.content_of(node)?,
            None => Content::empty(),
        };
        let old_size = node.map_or(0, |node| node.entry.size);
        if old_size == entry.size && old.blocks == entry.blocks {
            return Ok(());
        }
        plan.touched[index] = true;
        if let Some(node) = node {
            self.memory.forget(node.key.inode());
        }
        let file = self.at.open_file(&entry.path, OFlag::O_RDWR).doing("open", &entry.path)?;
        file.set_len(entry.size).doing("set the size of", &entry.path)?;
        let mut filler = Fill {
            entry,
            file,
            old_size,
            old,
            local,
            at: &mut *self.at,
            have: self.have,
            memory: &*self.memory,
        };
        for block in filler.run()? {
            push_need(&mut plan.needs, index, block);
        }
        Ok(())
    }

    /// Digests of what is on disk now.
    fn content_of(&mut self, node: &Node) -> Result<Content, FilesError> {
        if let Some(content) = self.memory.content(&node.key) {
            return Ok(content.clone());
        }
        let path = &node.entry.path[..];
        let file = self.at.read_file(path).doing("open", path)?;
        let content = hash_file(&file, node.entry.size, &mut block_buffer()).doing("read", path)?;
        self.memory.insert(node, Some(content.clone()));
        Ok(content)
    }
}

/// Fills one file from what is here.
struct Fill<'a> {
    entry: &'a Entry,
    file: File,
    old_size: u64,
    old: Content,
    local: &'a mut Local,
    at: &'a mut Beneath,
    have: &'a [Node],
    memory: &'a Memory,
}

impl Fill<'_> {
    /// Gives the blocks that are not here.
    fn run(&mut self) -> Result<Vec<u32>, FilesError> {
        let mut missing = Vec::new();
        let mut buffer = block_buffer();
        for (number, want) in self.entry.blocks.iter().enumerate() {
            let block = number as u64;
            let from = block * FILE_BLOCK as u64;
            let len = block_len(self.entry.size, block);
            // Never written, at least not in this file's present length.
            let fresh = from >= self.old_size;
            if self.old.blocks.get(number) == Some(want) {
                continue;
            }
            if *want == ZEROS {
                write_zeros(&self.file, from, len, self.entry.sparse, fresh)
                    .doing("write", &self.entry.path)?;
            } else if self.find(number, *want, &mut buffer[..len]) {
                write_block(&self.file, from, &buffer[..len], self.entry.sparse, fresh)
                    .doing("write", &self.entry.path)?;
            } else {
                missing.push(super::blocks::index(number));
            }
        }
        Ok(missing)
    }

    /// Looks for a block in the seeds and in this tree's other files; believes nothing but the digest.
    fn find(&mut self, number: usize, want: Digest, data: &mut [u8]) -> bool {
        let from = number as u64 * FILE_BLOCK as u64;
        let entry = self.entry;
        let seeded = self.local.seeds_of(&entry.path).iter().any(|seed| is_there(seed, from, want, data));
        if seeded {
            return true;
        }
        self.local.index(self.have, self.memory);
        let Some((place, number)) = self.local.known.get(&want).copied() else { return false };
        let from = number * FILE_BLOCK as u64;
        match place {
            Found::Rescued(at) => is_there(&self.local.rescued[at], from, want, data),
            Found::Here(at) => {
                let file = self.at.read_file(&self.have[at].entry.path).ok();
                file.is_some_and(|file| is_regular(&file) && is_there(&file, from, want, data))
            }
        }
    }
}

fn is_there(file: &File, from: u64, want: Digest, data: &mut [u8]) -> bool {
    read_full(file, data, from).is_ok_and(|filled| filled == data.len()) && block_digest(data) == want
}

fn is_regular(file: &File) -> bool {
    fstat(file).is_ok_and(|stat| Kind::of(&stat) == Kind::File)
}

#[derive(Debug, Clone, Copy)]
enum Found {
    Rescued(usize),
    Here(usize),
}

/// Where content may be found on this host.
struct Local {
    seeds: Vec<Beneath>,
    /// Open files of the seeds under the path that was asked for last.
    seeded: (Vec<u8>, Vec<File>),
    rescued: Vec<File>,
    known: HashMap<Digest, (Found, u64)>,
    indexed: bool,
}

impl Local {
    /// A seed that is not there is no seed.
    fn open(seeds: &[PathBuf]) -> Self {
        let seeds = seeds.iter().filter_map(|seed: &PathBuf| Beneath::open(Path::new(seed)).ok()).collect();
        Self {
            seeds,
            seeded: (vec![0], Vec::new()),
            rescued: Vec::new(),
            known: HashMap::new(),
            indexed: false,
        }
    }

    fn seeds_of(&mut self, path: &[u8]) -> &[File] {
        if self.seeded.0 != path {
            let files = self.seeds.iter_mut().filter_map(|seed| seed.read_file(path).ok());
            self.seeded = (path.to_vec(), files.filter(is_regular).collect());
        }
        &self.seeded.1
    }

    /// Keeps a file open that loses its name.
    fn rescue(&mut self, at: &mut Beneath, path: &[u8], content: &Content) {
        if self.rescued.len() == RESCUED_MAX {
            return;
        }
        if let Ok(file) = at.read_file(path) {
            for (number, block) in content.blocks.iter().enumerate() {
                self.known.insert(*block, (Found::Rescued(self.rescued.len()), number as u64));
            }
            self.rescued.push(file);
        }
    }

    /// Learns, once per round, what the tree's own files hold.
    fn index(&mut self, have: &[Node], memory: &Memory) {
        if std::mem::replace(&mut self.indexed, true) {
            return;
        }
        for (at, node) in have.iter().enumerate() {
            let Some(content) = memory.content(&node.key) else { continue };
            for (number, block) in content.blocks.iter().enumerate() {
                self.known.entry(*block).or_insert((Found::Here(at), number as u64));
            }
        }
    }
}

/// Index of the entry with this path.
pub(super) fn find(entries: &[Entry], path: &[u8]) -> Option<usize> {
    entries.binary_search_by(|entry| entry.path[..].cmp(path)).ok()
}

/// A name came or went: the directory's modification time must be set again.
fn touch_parent(want: &[Entry], path: &[u8], plan: &mut Plan) {
    if !path.is_empty()
        && let Some(parent) = find(want, split(path).0)
    {
        plan.touched[parent] = true;
    }
}

/// Whether what is on disk can become the entry without being made anew.
fn alike(have: &Entry, want: &Entry) -> bool {
    have.kind == want.kind && have.rdev == want.rdev && have.target == want.target
}

fn push_need(needs: &mut Vec<FileNeed>, index: usize, block: u32) {
    let entry = super::blocks::index(index);
    match needs.last_mut() {
        Some(need) if need.entry == entry && need.first_block + need.blocks == block => need.blocks += 1,
        _ => needs.push(FileNeed { entry, first_block: block, blocks: 1 }),
    }
}
