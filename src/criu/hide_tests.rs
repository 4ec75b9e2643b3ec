//! The plan of living processes, and reports that may be garbled.

use super::*;
use std::process::{Child, Command, Stdio};

use crate::preload::plan::Section;

/// A process with one big mapping, one that is locked and one that is small; its pid and where they are.
struct Subject {
    child: Child,
    places: Vec<u64>,
}

impl Drop for Subject {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Big, locked, small; each on its own, because the kernel merges neighbours. On a line of input it locks the first one too.
const SCRIPT: &str = r"
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
base = libc.mmap(None, 256 << 20, 0, 0x4022, -1, 0)
def place(at, size):
    address = libc.mmap(base + at, size, 3, 0x32, -1, 0)
    ctypes.memset(address, 1, 4096)
    return address
places = [place(1 << 20, 32 << 20), place(64 << 20, 16 << 20), place(128 << 20, 4 << 20)]
assert libc.mlock(places[1], 4096 * 16) == 0 and libc.mlock(places[1], 16 << 20) == 0
print(*places, flush=True)
sys.stdin.readline()
assert libc.mlock(places[0], 32 << 20) == 0
print('locked', flush=True)
sys.stdin.readline()
";

fn subject() -> (Subject, BufReader<std::process::ChildStdout>) {
    let mut child = Command::new("python3")
        .args(["-c", SCRIPT])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    let places = line.split_whitespace().map(|place| place.parse().unwrap()).collect();
    (Subject { child, places }, output)
}

fn pid(subject: &Subject) -> i32 {
    i32::try_from(subject.child.id()).unwrap()
}

#[test]
fn big_private_memory_is_eligible_and_locked_or_small_is_not() {
    let (mut subject, mut output) = subject();
    let pid = pid(&subject);
    let mut plan = HidePlan::look(&[pid, i32::MAX]).unwrap();
    assert_eq!(plan.pids().collect::<Vec<_>>(), [pid], "a process that does not exist is left out");
    let big = PageRange::of_addresses(subject.places[0], subject.places[0] + (32 << 20));
    let ranges = plan.ranges(pid);
    assert!(ranges.contains(&big), "{ranges:?}");
    for other in &subject.places[1..] {
        let page = PageIndex::of_address(*other);
        assert!(!ranges.iter().any(|range| range.first <= page && page < range.end()), "{ranges:?}");
    }

    // The flags that the plan has are outdated as soon as the mapping is locked.
    assert_eq!(plan.changed_flags(pid).unwrap(), []);
    subject.child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    output.read_line(&mut String::new()).unwrap();
    assert_eq!(plan.changed_flags(pid).unwrap(), [big]);
    assert!(!HidePlan::look(&[pid]).unwrap().ranges(pid).contains(&big));

    plan.restrict(|of, range| of != pid || range != big);
    assert!(!plan.ranges(pid).contains(&big));
    plan.restrict(|_, _| true);
    assert!(plan.ranges(pid).contains(&big), "each restriction begins with all that is eligible");
    // Locking has not changed a line of maps: that is what changed_flags is for. A process that is new is looked at.
    plan.refresh(&[pid]).unwrap();
    assert!(plan.ranges(pid).contains(&big));
    let mut other = HidePlan::default();
    other.refresh(&[pid, i32::MAX]).unwrap();
    assert_eq!(other.pids().collect::<Vec<_>>(), [pid]);
    assert!(!other.ranges(pid).contains(&big));
    other.refresh(&[]).unwrap();
    assert_eq!(other.pids().count(), 0);
}

#[test]
fn the_written_plan_is_what_the_object_reads() {
    let (subject, _output) = subject();
    let pid = pid(&subject);
    let own = i32::try_from(std::process::id()).unwrap();
    let plan = HidePlan::look(&[own, pid]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    fs::write(report_path(folder.path()), "1 0 1000\n").unwrap();
    let variables = plan.write(folder.path()).unwrap();
    assert_eq!(Hidden::read(folder.path()).unwrap(), BTreeMap::new(), "an old report is none");
    assert_eq!(variables[0].0, "LD_PRELOAD");
    assert_eq!(fs::read(&variables[0].1).unwrap(), OBJECT);

    let text = fs::read(&variables[1].1).unwrap();
    let section = Section::find(&text, u64::try_from(pid).unwrap()).unwrap();
    let hidden: Vec<PageRange> = section
        .filter(|planned| planned.hide)
        .map(|planned| maps_line(planned.line).unwrap())
        .map(|line| PageRange::of_addresses(line.start, line.end))
        .collect();
    assert_eq!(hidden, plan.ranges(pid));
    assert!(section.answer(&fs::read(format!("/proc/{pid}/maps")).unwrap(), |_| true));

    for folder in ["relative", "/with blank", "/with:colon"] {
        assert!(plan.write(Path::new(folder)).is_err(), "{folder}");
    }
}

#[test]
fn a_report_is_read_sorted_and_without_repetitions_or_not_at_all() {
    let read = |text: &str| parse(text.as_bytes());
    let range = PageRange::of_addresses;
    let found = read("8 1000 2000\n7 4000 8000\n7 1000 2000\n7 4000 8000\n").unwrap();
    assert_eq!(found[&7], [range(0x1000, 0x2000), range(0x4000, 0x8000)]);
    assert_eq!(found[&8], [range(0x1000, 0x2000)]);
    assert_eq!(read(""), Some(BTreeMap::new()));
    for wrong in [
        "7 1000 2000",
        "7 1000\n",
        "7 2000 1000\n",
        "7 1000 2001\n",
        "7 1000 2000 \n",
        "99999999999 1000 2000\n",
        "7 1000 fffffffffffff000\n",
        "7 1000 3000\n7 2000 4000\n",
        "x\n",
    ] {
        assert_eq!(read(wrong), None, "{wrong:?}");
    }
}

#[test]
fn stack_pointers_of_waiting_threads_lie_in_their_stacks() {
    let (subject, _output) = subject();
    let pid = pid(&subject);
    // It waits for its input; until it does, it may still run.
    let found = (0..1000).find_map(|_| {
        std::thread::sleep(std::time::Duration::from_millis(10));
        stack_pointer_pages(pid).ok().filter(|pages| !pages.is_empty())
    });
    let page = found.unwrap()[0];
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let stack = maps.lines().find(|line| line.ends_with("[stack]")).unwrap();
    let stack = maps_line(stack.as_bytes()).unwrap();
    assert!(PageRange::of_addresses(stack.start, stack.end).iter().any(|inside| inside == page));

    assert_eq!(stack_pointer("running\n"), None);
    assert_eq!(stack_pointer("-1 0x7ffc0000 0x401000\n"), Some(0x7ffc_0000));
    assert_eq!(stack_pointer("0 0x3 0x1 0x2 0x0 0x0 0x0 0x7ffd1000 0x7f00\n"), Some(0x7ffd_1000));
    assert_eq!(stack_pointer(""), None);
}

/// Asks as CRIU does, and then in other ways: what came of smaps, and of three queries.
const QUESTIONS: &str = r"
import ctypes, fcntl, os, sys
pid, start, end = (int(word) for word in sys.argv[1:])
folder = os.open(f'/proc/{pid}', os.O_PATH)
smaps = os.open('smaps', os.O_RDONLY, dir_fd=folder)
real = open(f'/proc/{pid}/smaps').read()
kept = lambda text: [l for l in text.splitlines() if l.startswith('VmFlags') or l.split(' ')[0].count('-') == 1]
text = open(smaps, closefd=False).read()
print('same' if kept(text) == kept(real) else 'other', 'ours' if 'Size' not in text else 'theirs')
pagemap = os.open('pagemap', os.O_RDONLY, dir_fd=folder)
regions = (ctypes.c_uint64 * 300)()
def scan(start, end, mask):
    words = [96, 0, start, end, 0, ctypes.addressof(regions), 100, 0, 0x24, 0x24, mask, 0x18]
    argument = (ctypes.c_uint64 * 12)(*words)
    got = fcntl.ioctl(pagemap, 0xc0606610, argument)
    print(got, argument[4] == end)
scan(start, end, 0x18)
scan(start, end - 4096, 0x18)
scan(start, end, 0x8)
";

fn ask(program: &Path, home: &str, subject: &Subject, environment: &[(&str, OsString)]) -> String {
    let (start, end) = (subject.places[0], subject.places[0] + (32 << 20));
    let mut command = Command::new(program);
    command.args(["-c", QUESTIONS, &subject.child.id().to_string(), &start.to_string(), &end.to_string()]);
    command.env("PYTHONHOME", home).envs(environment.iter().map(|(name, value)| (name, value)));
    let output = command.stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_object_answers_a_program_named_criu_and_no_other() {
    let (subject, _output) = subject();
    let pid = pid(&subject);
    let folder = tempfile::tempdir().unwrap();
    let environment = HidePlan::look(&[pid]).unwrap().write(folder.path()).unwrap();
    let python = Command::new("python3")
        .args(["-c", "import os, sys; print(os.path.realpath(sys.executable)); print(sys.base_prefix)"])
        .output()
        .unwrap();
    let text = String::from_utf8(python.stdout).unwrap();
    let [python, home] = text.lines().collect::<Vec<_>>()[..] else { panic!("{text}") };
    let (criu, other) = (folder.path().join("criu"), folder.path().join("crit"));
    fs::copy(python, &criu).unwrap();
    fs::copy(python, &other).unwrap();

    let big = PageRange::of_addresses(subject.places[0], subject.places[0] + (32 << 20));
    // One page of it was touched.
    assert_eq!(ask(&other, home, &subject, &environment), "same theirs\n1 True\n1 True\n1 True\n");
    assert_eq!(ask(&criu, home, &subject, &environment[..1]), "same theirs\n1 True\n1 True\n1 True\n");
    assert_eq!(Hidden::read(folder.path()).unwrap(), BTreeMap::new());
    assert_eq!(ask(&criu, home, &subject, &environment), "same ours\n0 True\n1 True\n1 True\n");
    assert_eq!(Hidden::read(folder.path()).unwrap(), BTreeMap::from([(pid, vec![big])]));
}
