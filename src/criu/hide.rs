//! What CRIU is to leave out of its dump, and what it is told instead of reading smaps while everything stands still: the plan for
//! the object in `preload`, and what that object reports.
//!
//! The flags of a mapping are read before the freeze and could be changed afterwards (mlock, madvise); everything else about a
//! mapping is compared again at the freeze. So the flags are read once more while CRIU waits with its dump complete
//! ([`HidePlan::changed_flags`]), and a dump with outdated ones must not be used.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::model::limits::{OBJECTS_MAX, PAGE_INDEX_MAX};
use crate::model::page::{PAGE_SIZE, PageIndex, PageRange};
use crate::preload::OBJECT;
use crate::preload::plan::{HEADER, HIDDEN_BYTES_MIN, REPORT_SUFFIX, VARIABLE, maps_line, number};

/// Flags that CRIU reads (criu/proc_parse.c, `parse_vma_vmflags`): a change of any other does not matter.
const FLAGS_READ: [&[u8]; 15] =
    [b"gd", b"lo", b"nr", b"ht", b"dp", b"sr", b"rr", b"dc", b"dd", b"mg", b"hg", b"nh", b"wf", b"io", b"pf"];
/// Mappings with one of these are never hidden: they grow, must be in memory before the process runs, or are not plain pages.
/// `ss` is a shadow stack.
const FLAGS_REFUSED: [&[u8]; 7] = [b"lo", b"gd", b"ht", b"io", b"pf", b"dp", b"ss"];
/// The object's and the plan's names in their folder.
const OBJECT_NAME: &str = "libdecamp_hide.so";
const PLAN_NAME: &str = "hide.plan";
/// Largest report that is read.
const REPORT_BYTES_MAX: u64 = 64 << 20;

/// One mapping as it was looked at.
#[derive(Debug, Clone)]
struct Looked {
    /// Its line of maps.
    line: Vec<u8>,
    /// Its line of flags.
    flags: Vec<u8>,
    pages: PageRange,
    /// Of the kind that may be hidden.
    eligible: bool,
    /// Eligible, and not refused by [`HidePlan::restrict`].
    hide: bool,
}

/// What may be hidden of each process, and a copy of what CRIU would read in their smaps.
#[derive(Debug, Clone, Default)]
pub struct HidePlan {
    processes: BTreeMap<i32, Vec<Looked>>,
}

impl HidePlan {
    /// Reads the smaps of running processes, which takes the longer the more memory they have (about 0.1 ms per MiB), and finds
    /// what is eligible: private memory without a file, readable, at least [`HIDDEN_BYTES_MIN`], not locked, growing, huge, shared
    /// with a device, droppable or a shadow stack. A process that is gone is left out.
    ///
    /// # Errors
    /// What reading /proc says, other than that a process is gone.
    pub fn look(pids: &[i32]) -> io::Result<Self> {
        let mut processes = BTreeMap::new();
        for pid in pids {
            match smaps(*pid) {
                Ok(looked) => {
                    processes.insert(*pid, looked);
                }
                Err(e) if gone(&e) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(Self { processes })
    }

    /// Brings the plan up to date: reads smaps only of processes that are new or whose maps are no longer those of the plan, which
    /// takes a fraction of the time of [`HidePlan::look`]; forgets those that are gone. Restrictions are to be made again.
    ///
    /// # Errors
    /// As [`HidePlan::look`].
    pub fn refresh(&mut self, pids: &[i32]) -> io::Result<()> {
        self.processes.retain(|pid, _| pids.contains(pid));
        let mut changed = Vec::new();
        for pid in pids {
            let maps = match fs::read(format!("/proc/{pid}/maps")) {
                Ok(maps) => maps,
                Err(e) if gone(&e) => Vec::new(),
                Err(e) => return Err(e),
            };
            let planned = self.processes.get(pid).map(Vec::as_slice).unwrap_or_default();
            let lines = maps.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
            if planned.is_empty() || !lines.eq(planned.iter().map(|looked| looked.line.as_slice())) {
                self.processes.remove(pid);
                changed.push(*pid);
            }
        }
        self.processes.append(&mut Self::look(&changed)?.processes);
        Ok(())
    }

    /// The processes that were found.
    pub fn pids(&self) -> impl Iterator<Item = i32> {
        self.processes.keys().copied()
    }

    /// What may be hidden of a process, ascending.
    #[must_use]
    pub fn ranges(&self, pid: i32) -> Vec<PageRange> {
        self.processes
            .get(&pid)
            .into_iter()
            .flatten()
            .filter(|looked| looked.hide)
            .map(|looked| looked.pages)
            .collect()
    }

    /// The mappings of a process that CRIU never dumps, because the kernel may drop their pages at any time (MAP_DROPPABLE;
    /// criu/mem.c, `generate_vma_iovs`), ascending. Those that were made since the look are not among them.
    #[must_use]
    pub fn never_dumped(&self, pid: i32) -> Vec<PageRange> {
        let droppable = |looked: &&Looked| looked.flags.split(|byte| *byte == b' ').any(|flag| flag == b"dp");
        self.processes.get(&pid).into_iter().flatten().filter(droppable).map(|looked| looked.pages).collect()
    }

    /// Hides only what `may` agrees to, of all that is eligible; the copy of smaps stays whole.
    pub fn restrict(&mut self, mut may: impl FnMut(i32, PageRange) -> bool) {
        for (pid, mappings) in &mut self.processes {
            for looked in mappings.iter_mut().filter(|looked| looked.eligible) {
                looked.hide = may(*pid, looked.pages);
            }
        }
    }

    /// Writes the object and the plan into a folder, the plan in one step, so that it may be replaced until the dump begins, and
    /// without a report. Returns the variables to add to the environment of the runtime that starts CRIU. Where the object cannot
    /// be loaded (a file system mounted `noexec`) nothing is hidden, and the report says so.
    ///
    /// # Errors
    /// The file system's; a path that `LD_PRELOAD` cannot name.
    pub fn write(&self, folder: &Path) -> io::Result<[(&'static str, OsString); 2]> {
        // Both separate the entries of LD_PRELOAD; the shell variables $LIB and $ORIGIN would be replaced in it.
        if !folder.is_absolute() || folder.as_os_str().as_bytes().iter().any(|byte| b" :$\n".contains(byte)) {
            let what = format!("{} cannot be named in LD_PRELOAD", folder.display());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        let (object, plan) = (folder.join(OBJECT_NAME), folder.join(PLAN_NAME));
        // Never written over: it may be loaded already.
        if !object.exists() {
            in_one_step(&object, OBJECT)?;
        }
        in_one_step(&plan, &self.render())?;
        match fs::remove_file(report_path(folder)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let variable = VARIABLE.to_str().map_err(io::Error::other)?;
        Ok([("LD_PRELOAD", object.into_os_string()), (variable, plan.into_os_string())])
    }

    /// The mappings of a process whose flags are no longer those of the plan, among the flags that CRIU reads. A mapping that the
    /// plan does not have, or has otherwise, is not named: CRIU has then read the flags itself. Takes as long as reading smaps.
    ///
    /// # Errors
    /// What reading /proc says.
    pub fn changed_flags(&self, pid: i32) -> io::Result<Vec<PageRange>> {
        let planned = self.processes.get(&pid).map(Vec::as_slice).unwrap_or_default();
        let mut now = smaps(pid)?.into_iter().peekable();
        let mut changed = Vec::new();
        for looked in planned {
            while now.next_if(|now| now.pages.first < looked.pages.first).is_some() {}
            if let Some(now) = now.next_if(|now| now.line == looked.line)
                && flags(&now.flags).ne(flags(&looked.flags))
            {
                changed.push(looked.pages);
            }
        }
        Ok(changed)
    }

    fn render(&self) -> Vec<u8> {
        let mut plan = HEADER.to_vec();
        for (pid, mappings) in &self.processes {
            let mut section = Vec::new();
            for looked in mappings {
                section.extend_from_slice(if looked.hide { b"h " } else { b"m " });
                section.extend_from_slice(&looked.line);
                section.extend_from_slice(b"\nf ");
                section.extend_from_slice(&looked.flags);
                section.push(b'\n');
            }
            plan.extend_from_slice(format!("process {pid} {}\n", section.len()).as_bytes());
            plan.append(&mut section);
        }
        plan
    }
}

/// Those that CRIU reads.
fn flags(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(|byte| *byte == b' ').filter(|flag| FLAGS_READ.contains(flag) || *flag == b"ss")
}

fn gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(nix::libc::ESRCH)
}

fn smaps(pid: i32) -> io::Result<Vec<Looked>> {
    let mut reader = BufReader::with_capacity(64 << 10, File::open(format!("/proc/{pid}/smaps"))?);
    let (mut found, mut line, mut mapping) = (Vec::new(), Vec::new(), None);
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line)? == 0 {
            return Ok(found);
        }
        let text = line.strip_suffix(b"\n").unwrap_or(&line);
        if maps_line(text).is_some() {
            mapping = Some(text.to_vec());
        } else if text.starts_with(b"VmFlags: ")
            && let Some(mapping) = mapping.take()
        {
            found.extend(looked(mapping, text.to_vec()));
        }
    }
}

fn looked(line: Vec<u8>, flags: Vec<u8>) -> Option<Looked> {
    let parsed = maps_line(&line)?;
    let refused = flags.split(|byte| *byte == b' ').any(|flag| FLAGS_REFUSED.contains(&flag));
    let eligible = parsed.is_private_memory()
        && parsed.mode[0] == b'r'
        && parsed.end - parsed.start >= HIDDEN_BYTES_MIN
        && !refused;
    let pages = PageRange::of_addresses(parsed.start, parsed.end);
    Some(Looked { line, flags, pages, eligible, hide: eligible })
}

fn in_one_step(path: &Path, content: &[u8]) -> io::Result<()> {
    let folder = path.parent().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(content)?;
    file.persist(path).map_err(|e| e.error)?;
    Ok(())
}

fn report_path(folder: &Path) -> PathBuf {
    let mut name = OsString::from(PLAN_NAME);
    name.push(OsStr::from_bytes(REPORT_SUFFIX));
    folder.join(name)
}

/// What was really hidden.
#[derive(Debug)]
pub struct Hidden;

impl Hidden {
    /// Reads the object's report: the hidden ranges of each process (by its pid on this host), ascending. None when it hid nothing,
    /// or was not loaded.
    ///
    /// # Errors
    /// The file system's; a report that is too long or not understood: the dump must not be used then, because nobody knows what is
    /// missing in it.
    pub fn read(folder: &Path) -> io::Result<BTreeMap<i32, Vec<PageRange>>> {
        let mut text = Vec::new();
        match File::open(report_path(folder)) {
            Ok(file) => file.take(REPORT_BYTES_MAX + 1).read_to_end(&mut text)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            Err(e) => return Err(e),
        };
        parse(&text).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "the report of hidden ranges is not one")
        })
    }
}

fn parse(text: &[u8]) -> Option<BTreeMap<i32, Vec<PageRange>>> {
    let mut hidden = BTreeMap::<i32, Vec<PageRange>>::new();
    if text.len() as u64 > REPORT_BYTES_MAX {
        return None;
    }
    // Half a line is a range that was hidden while its note was not finished.
    let lines = if text.is_empty() { text } else { text.strip_suffix(b"\n")? };
    for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let (pid, rest) = number(line, 10)?;
        let (start, rest) = number(rest.strip_prefix(b" ")?, 16)?;
        let (end, rest) = number(rest.strip_prefix(b" ")?, 16)?;
        let aligned = (start | end) % PAGE_SIZE as u64 == 0;
        if !(aligned && rest.is_empty() && start < end && end / PAGE_SIZE as u64 <= PAGE_INDEX_MAX) {
            return None;
        }
        hidden.entry(i32::try_from(pid).ok()?).or_default().push(PageRange::of_addresses(start, end));
        if hidden.len() > OBJECTS_MAX {
            return None;
        }
    }
    for ranges in hidden.values_mut() {
        ranges.sort_unstable_by_key(|range| range.first);
        // CRIU asks again when its cache was filled with something else meanwhile.
        ranges.dedup();
        if ranges.windows(2).any(|pair| pair[0].end() > pair[1].first) {
            return None;
        }
    }
    Some(hidden)
}

/// The pages that the threads of a stopped process have their stack pointers in. CRIU restores such pages before the process runs
/// (criu/mem.c, `is_stack`), so they are never served later. Read from /proc/PID/task/TID/syscall, which also tells it of a thread
/// that ptrace or the freezer has stopped; a thread that runs is left out.
///
/// # Errors
/// What reading /proc says.
pub fn stack_pointer_pages(pid: i32) -> io::Result<Vec<PageIndex>> {
    let mut pages = Vec::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        match fs::read_to_string(thread?.path().join("syscall")) {
            Ok(text) => pages.extend(stack_pointer(&text).map(PageIndex::of_address)),
            Err(e) if gone(&e) => {}
            Err(e) => return Err(e),
        }
    }
    pages.sort_unstable();
    pages.dedup();
    Ok(pages)
}

/// The last but one word (fs/proc/base.c, `proc_pid_syscall`: "NUMBER six arguments SP PC", or "-1 SP PC", or "running").
fn stack_pointer(text: &str) -> Option<u64> {
    let word = text.split_whitespace().rev().nth(1)?;
    u64::from_str_radix(word.strip_prefix("0x")?, 16).ok().filter(|pointer| *pointer != 0)
}

#[cfg(test)]
#[path = "hide_tests.rs"]
mod tests;
