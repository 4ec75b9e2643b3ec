//! The plan and the report: text, one item per line, read without allocating and without trusting a single byte. A line that is
//! not understood ends the reading: nothing is hidden on a guess.
//!
//! ```text
//! decamp-hide 1
//! process PID BYTES          BYTES: of the section that follows
//! h LINE                     a mapping that may be hidden: its line of /proc/PID/maps
//! f VmFlags: rd wr ...       its flags: the line of /proc/PID/smaps
//! m LINE                     another mapping
//! f VmFlags: ...
//! ```
//! The report has one line per range that was really hidden: `PID START END`, the addresses in hexadecimal.

/// First line of a plan.
pub const HEADER: &[u8] = b"decamp-hide 1\n";
/// The environment variable that names the plan.
pub const VARIABLE: &core::ffi::CStr = c"DECAMP_HIDE_PLAN";
/// The report's path is the plan's with this behind it.
pub const REPORT_SUFFIX: &[u8] = b".hidden";
/// Smaller mappings are not hidden: CRIU looks at mappings below 2 MiB in windows, and nothing is gained with them.
pub const HIDDEN_BYTES_MIN: u64 = 8 << 20;
/// Largest plan, and largest /proc/PID/maps, that is read.
pub const TEXT_BYTES_MAX: usize = 256 << 20;

/// One line of /proc/PID/maps (and the first line of each mapping in smaps; the kernel writes both with one function).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapsLine<'a> {
    /// First address.
    pub start: u64,
    /// One past the last.
    pub end: u64,
    /// r, w, x, and p or s.
    pub mode: [u8; 4],
    /// Device and inode are zero: no file behind it.
    pub no_file: bool,
    /// What stands behind the numbers, without blanks around it.
    pub name: &'a [u8],
}

impl MapsLine<'_> {
    /// Private memory of the process itself: no file, and none of the kernel's special mappings. A stack grows and is no such.
    #[must_use]
    pub fn is_private_memory(&self) -> bool {
        let own = self.name.is_empty() || self.name == b"[heap]" || self.name.starts_with(b"[anon:");
        self.mode[3] == b'p' && self.no_file && own
    }
}

/// Parses one line, without its end.
#[must_use]
pub fn maps_line(line: &[u8]) -> Option<MapsLine<'_>> {
    let (start, rest) = number(line, 16)?;
    let (end, rest) = number(rest.strip_prefix(b"-")?, 16)?;
    let (mode, rest) = rest.strip_prefix(b" ")?.split_first_chunk::<4>()?;
    let (_offset, rest) = number(rest.strip_prefix(b" ")?, 16)?;
    let (major, rest) = number(rest.strip_prefix(b" ")?, 16)?;
    let (minor, rest) = number(rest.strip_prefix(b":")?, 16)?;
    let (inode, rest) = number(rest.strip_prefix(b" ")?, 10)?;
    if start >= end || !(rest.is_empty() || rest.starts_with(b" ")) {
        return None;
    }
    let no_file = major == 0 && minor == 0 && inode == 0;
    Some(MapsLine { start, end, mode: *mode, no_file, name: rest.trim_ascii() })
}

/// The number at the beginning, in base 10 or 16 (lower case, as the kernel writes it), and what follows.
#[must_use]
pub fn number(text: &[u8], base: u64) -> Option<(u64, &[u8])> {
    let (mut value, mut rest) = (0u64, text);
    while let Some((byte, after)) = rest.split_first() {
        let digit = match byte {
            b'0'..=b'9' => u64::from(byte - b'0'),
            b'a'..=b'f' if base == 16 => u64::from(byte - b'a') + 10,
            _ => break,
        };
        value = value.checked_mul(base)?.checked_add(digit)?;
        rest = after;
    }
    (rest.len() < text.len()).then_some((value, rest))
}

/// The first line, without its end, and what follows; `None` when nothing or only half a line is left.
#[must_use]
pub fn split_line(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = text.iter().position(|byte| *byte == b'\n')?;
    Some((text.get(..at)?, text.get(at + 1..)?))
}

/// A mapping of the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Planned<'a> {
    /// Its line of /proc/PID/maps.
    pub line: &'a [u8],
    /// Its flags, the whole line of smaps from `VmFlags:` on.
    pub flags: &'a [u8],
    /// It may be hidden.
    pub hide: bool,
}

/// The section of one process: an iterator over its mappings. It ends at the first line that is not understood.
#[derive(Debug, Clone, Copy)]
pub struct Section<'a>(&'a [u8]);

impl<'a> Iterator for Section<'a> {
    type Item = Planned<'a>;

    fn next(&mut self) -> Option<Planned<'a>> {
        let (first, rest) = split_line(self.0)?;
        let (second, rest) = split_line(rest)?;
        let flags = second.strip_prefix(b"f ").filter(|flags| flags.starts_with(b"VmFlags: "))?;
        let hide = first.starts_with(b"h ");
        let line = first.strip_prefix(b"h ").or_else(|| first.strip_prefix(b"m "))?;
        self.0 = rest;
        Some(Planned { line, flags, hide })
    }
}

impl<'a> Section<'a> {
    /// The section of `pid` in a plan.
    #[must_use]
    pub fn find(plan: &'a [u8], pid: u64) -> Option<Self> {
        let mut rest = plan.strip_prefix(HEADER)?;
        loop {
            let (line, after) = split_line(rest)?;
            let (found, line) = number(line.strip_prefix(b"process ")?, 10)?;
            let (bytes, line) = number(line.strip_prefix(b" ")?, 10)?;
            let section = after.get(..usize::try_from(bytes).ok()?).filter(|_| line.is_empty())?;
            if found == pid {
                return Some(Self(section));
            }
            rest = after.get(section.len()..)?;
        }
    }

    /// How many bytes it has.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.len()
    }

    /// The text that stands for smaps: each line of `maps` and its flags. `put` takes the pieces and says whether it could.
    /// False when a mapping is not in the plan as it is now, or a piece was not taken: nothing of the text may be used then.
    pub fn answer(mut self, maps: &[u8], mut put: impl FnMut(&[u8]) -> bool) -> bool {
        let mut rest = maps;
        let mut planned = self.next();
        while let Some((line, after)) = split_line(rest) {
            let Some(start) = at(line) else { return false };
            while planned.is_some_and(|planned| at(planned.line).is_some_and(|at| at < start)) {
                planned = self.next();
            }
            let Some(same) = planned.filter(|planned| planned.line == line) else { return false };
            if !(put(line) && put(b"\n") && put(same.flags) && put(b"\n")) {
                return false;
            }
            rest = after;
        }
        rest.is_empty() && !maps.is_empty()
    }
}

/// Answers for one process which mappings may be hidden. It remembers where it was: CRIU asks in ascending order, and a process
/// may have tens of thousands of mappings.
#[derive(Debug, Default)]
pub struct Walk {
    below: u64,
    plan_at: usize,
    maps_at: usize,
}

impl Walk {
    /// Whether the mapping [start, end) may be hidden, given the process's maps now: exactly this mapping is marked, and the very
    /// line of the plan is still there. `section` and `maps` are the same in every call.
    pub fn may_hide(&mut self, section: Section<'_>, maps: &[u8], start: u64, end: u64) -> bool {
        if start < self.below {
            *self = Self::default();
        }
        self.below = start;
        let Some(planned) = self.planned(section, start) else { return false };
        let exact = maps_line(planned.line)
            .is_some_and(|line| (line.start, line.end) == (start, end) && line.is_private_memory());
        let wide = end.checked_sub(start).is_some_and(|length| length >= HIDDEN_BYTES_MIN);
        planned.hide && exact && wide && self.current(maps, start) == Some(planned.line)
    }

    /// The first mapping of the plan that begins at `start` or above.
    fn planned<'a>(&mut self, section: Section<'a>, start: u64) -> Option<Planned<'a>> {
        let mut rest = Section(section.0.get(self.plan_at..)?);
        loop {
            self.plan_at = section.0.len().checked_sub(rest.0.len())?;
            let planned = rest.next()?;
            if at(planned.line)? >= start {
                return Some(planned);
            }
        }
    }

    /// The first line of the maps that begins at `start` or above.
    fn current<'a>(&mut self, maps: &'a [u8], start: u64) -> Option<&'a [u8]> {
        let mut rest = maps.get(self.maps_at..)?;
        loop {
            self.maps_at = maps.len().checked_sub(rest.len())?;
            let (line, after) = split_line(rest)?;
            if at(line)? >= start {
                return Some(line);
            }
            rest = after;
        }
    }
}

/// Where a mapping begins.
fn at(line: &[u8]) -> Option<u64> {
    number(line, 16).map(|(start, _)| start)
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
