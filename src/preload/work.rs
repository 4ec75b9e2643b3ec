//! What is answered inside CRIU, and the little that is remembered: the plan, and the maps of the process CRIU is at.
//!
//! ```text
//! unknown ──first question that could be ours──▶ off      no plan that can be read
//!                                            └─▶ on       the plan is read once, then
//! ```
//! Questions before the freeze do not count as such (CRIU probes PAGEMAP_SCAN on itself), so the plan may be replaced until the
//! dump begins. CRIU asks from one thread; if two ask at once, the second goes to the kernel.

use core::cell::UnsafeCell;
use core::ffi::{CStr, c_int};
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU8, Ordering};

use super::linux::{self, Fd, Text};
use super::plan::{HIDDEN_BYTES_MIN, REPORT_SUFFIX, Section, TEXT_BYTES_MAX, VARIABLE, Walk, number};

/// `PAGE_IS_PRESENT | PAGE_IS_SWAPPED`.
const POPULATED: u64 = 1 << 3 | 1 << 4;
/// Longest path.
const PATH_MAX: usize = 4096;

/// `struct pm_scan_arg`, include/uapi/linux/fs.h.
#[repr(C)]
pub struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// The process CRIU is at.
struct Current {
    pid: u64,
    maps: Text,
    walk: Walk,
}

enum State {
    Unknown,
    Off,
    On { plan: Text, current: Option<Current> },
}

struct Memory {
    taken: AtomicBool,
    state: UnsafeCell<State>,
}

// SAFETY: the state is touched only by who set `taken`.
unsafe impl Sync for Memory {}

static MEMORY: Memory = Memory { taken: AtomicBool::new(false), state: UnsafeCell::new(State::Unknown) };

/// Runs `f` with the plan and the remembered maps, if this is CRIU, there is a plan and nobody else is at it.
fn with_plan<R>(f: impl FnOnce(&Text, &mut Option<Current>) -> Option<R>) -> Option<R> {
    if MEMORY.taken.swap(true, Ordering::Acquire) {
        return None;
    }
    // SAFETY: `taken` was false and is ours now; nobody else has a reference.
    let state = unsafe { &mut *MEMORY.state.get() };
    if matches!(state, State::Unknown) {
        *state = load().map_or(State::Off, |plan| State::On { plan, current: None });
    }
    let result = match state {
        State::On { plan, current } => f(plan, current),
        State::Unknown | State::Off => None,
    };
    MEMORY.taken.store(false, Ordering::Release);
    result
}

fn load() -> Option<Text> {
    let plan = Fd::open(linux::HERE, linux::variable(VARIABLE)?, linux::READ_ONLY)?;
    Text::of_file(&plan, TEXT_BYTES_MAX)
}

/// Whether this is CRIU and it was given a plan; found out once.
pub fn is_criu() -> bool {
    static ANSWER: AtomicU8 = AtomicU8::new(0);
    let known = ANSWER.load(Ordering::Relaxed);
    if known != 0 {
        return known == 1;
    }
    let mut room = [0; PATH_MAX];
    let program = linux::link(c"/proc/self/exe", &mut room);
    let name = program.and_then(|path| path.rsplit(|byte| *byte == b'/').next());
    let yes = name == Some(b"criu") && linux::variable(VARIABLE).is_some();
    ANSWER.store(if yes { 1 } else { 2 }, Ordering::Relaxed);
    yes
}

/// The length of CRIU's next nap at a freezer; none outside CRIU.
pub fn nap() -> Option<i64> {
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    is_criu().then(|| super::nap::length_ns(TAKEN.fetch_add(1, Ordering::Relaxed)))
}

/// A C string on the stack.
struct Path {
    bytes: [u8; PATH_MAX],
    length: usize,
}

impl Write for Path {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.push(text.as_bytes()).ok_or(fmt::Error)
    }
}

impl Path {
    const EMPTY: Self = Self { bytes: [0; PATH_MAX], length: 0 };

    fn push(&mut self, text: &[u8]) -> Option<()> {
        // One byte stays zero: the end.
        let end = self.length.checked_add(text.len()).filter(|end| *end < PATH_MAX)?;
        for (to, from) in self.bytes.get_mut(self.length..end)?.iter_mut().zip(text) {
            *to = *from;
        }
        self.length = end;
        Some(())
    }

    fn as_c(&self) -> Option<&CStr> {
        CStr::from_bytes_until_nul(&self.bytes).ok()
    }

    fn written(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

/// The process whose /proc folder (`rest` empty) or file in it an open descriptor is; never our own.
fn process_of(fd: c_int, rest: &[u8]) -> Option<u64> {
    let mut path = Path::EMPTY;
    write!(path, "/proc/self/fd/{fd}").ok()?;
    let mut room = [0; 128];
    let target = linux::link(path.as_c()?, &mut room)?;
    let (pid, behind) = number(target.strip_prefix(b"/proc/")?, 10)?;
    (behind == rest && pid != linux::own_pid()).then_some(pid)
}

/// The process with its maps, read anew when CRIU has come to another one, or begins with it. All tasks are stopped by then.
fn come_to(pid: u64, current: &mut Option<Current>, anew: bool) -> Option<&mut Current> {
    if anew || current.as_ref().is_none_or(|current| current.pid != pid) {
        *current = None;
        let mut path = Path::EMPTY;
        write!(path, "/proc/{pid}/maps").ok()?;
        let file = Fd::open(linux::HERE, path.as_c()?, linux::READ_ONLY)?;
        let maps = Text::of_file(&file, TEXT_BYTES_MAX)?;
        *current = Some(Current { pid, maps, walk: Walk::default() });
    }
    current.as_mut()
}

/// Notes a hidden range where the agent reads it; what is not noted is not hidden.
fn report(pid: u64, start: u64, end: u64) -> Option<()> {
    let mut path = Path::EMPTY;
    path.push(linux::variable(VARIABLE)?.to_bytes())?;
    path.push(REPORT_SUFFIX)?;
    let mut line = Path::EMPTY;
    writeln!(line, "{pid} {start:x} {end:x}").ok()?;
    let file = Fd::open(linux::HERE, path.as_c()?, linux::APPEND)?;
    file.write(line.written()).then_some(())
}

/// Answers a PAGEMAP_SCAN: true when the range is hidden, and the answer is that there is nothing in it.
///
/// # Safety
/// `argument` is null or a pm_scan_arg that the caller may write.
pub unsafe fn scan(fd: c_int, argument: *mut ScanArg) -> bool {
    // What another program passes is not even looked at.
    if argument.is_null() || !argument.is_aligned() || !is_criu() {
        return false;
    }
    // SAFETY: valid by the caller's promise, and aligned.
    let asked = unsafe { &mut *argument };
    let (start, end) = (asked.start, asked.end);
    // The form of the question what to dump (criu/pagemap-cache.c); the one for guard pages has no such mask.
    let form = asked.size == size_of::<ScanArg>() as u64
        && asked.flags == 0
        && asked.max_pages == 0
        && asked.category_anyof_mask == POPULATED;
    if !form || end.checked_sub(start).is_none_or(|length| length < HIDDEN_BYTES_MIN) {
        return false;
    }
    let hidden = with_plan(|plan, current| {
        let pid = process_of(fd, b"/pagemap")?;
        let section = Section::find(plan.bytes(), pid)?;
        let Current { maps, walk, .. } = come_to(pid, current, false)?;
        walk.may_hide(section, maps.bytes(), start, end).then_some(())?;
        report(pid, start, end)
    });
    if hidden.is_some() {
        asked.walk_end = end;
    }
    hidden.is_some()
}

/// A descriptor to read instead of the smaps of the process whose /proc folder `folder` is.
pub fn smaps(folder: c_int) -> Option<c_int> {
    if !is_criu() {
        return None;
    }
    let pid = process_of(folder, b"")?;
    with_plan(|plan, current| {
        let section = Section::find(plan.bytes(), pid)?;
        let maps = come_to(pid, current, true)?.maps.bytes();
        let mut text = Text::with_room(maps.len().checked_add(section.bytes())?)?;
        if !section.answer(maps, |piece| text.push(piece)) {
            return None;
        }
        let file = Fd::memory(c"smaps")?;
        if !file.write(text.bytes()) {
            return None;
        }
        file.hand_over()
    })
}
