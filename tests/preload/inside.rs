//! What runs in a lab host: this program again, started by the tests of the same names in `main`. Outside of one these do nothing.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use decamp::criu::{Hidden, HidePlan, stack_pointer_pages};
use decamp::images::pagemap;
use decamp::model::layout::{LayoutRun, PE_LAZY, PE_PRESENT};
use decamp::model::page::{ObjectId, PAGE_SIZE, PageRange};
use decamp::sys::pagemap::{Pagemap, probe};
use decamp::sys::process_vm::read_pages;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{DONE, INSIDE};

const MIB: u64 = 1 << 20;
const DEADLINE: Duration = Duration::from_secs(120);

/// The subject: two processes, and where their memory is.
struct Subject {
    folder: PathBuf,
    pids: Vec<i32>,
    big: PageRange,
    locked: PageRange,
    guarded: PageRange,
}

fn wait<T>(what: &str, mut f: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(value) = f() {
            return value;
        }
        assert!(started.elapsed() < DEADLINE, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Subject {
    fn start() -> Self {
        let folder = PathBuf::from("/tmp/subject");
        fs::create_dir(&folder).unwrap();
        // A session of its own: CRIU would ask for the session's leader otherwise.
        let mut child = Command::new("setsid")
            .args(["python3", "/tmp/subject.py"])
            .arg(&folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::spawn(move || child.wait());
        let mut subject =
            Self { folder, pids: Vec::new(), big: area(0, 1), locked: area(0, 1), guarded: area(0, 1) };
        let pids = subject.answers("ready");
        let places = fs::read_to_string(subject.folder.join(format!("ready.{}", pids[0]))).unwrap();
        let places: Vec<u64> =
            places.split(' ').map(|place| u64::from_str_radix(place, 16).unwrap()).collect();
        subject.pids = pids;
        subject.big = area(places[0], 64);
        subject.locked = area(places[1], 16);
        subject.guarded = area(places[3], 16);
        subject
    }

    /// Waits until both processes have said this (or that something is bad); their pids, the parent's first.
    fn answers(&self, name: &str) -> Vec<i32> {
        wait(name, || {
            let mut pids = Vec::new();
            for entry in fs::read_dir(&self.folder).unwrap() {
                let entry = entry.unwrap().file_name().into_string().unwrap();
                assert!(
                    !entry.starts_with("bad."),
                    "{}",
                    fs::read_to_string(self.folder.join(&entry)).unwrap()
                );
                pids.extend(entry.strip_prefix(name).and_then(|rest| rest[1..].parse::<i32>().ok()));
            }
            pids.sort_unstable();
            (pids.len() == 2).then_some(pids)
        })
    }

    fn ask(&self, signal: Signal, answer: &str) {
        for pid in &self.pids {
            kill(Pid::from_raw(*pid), signal).unwrap();
        }
        self.answers(answer);
    }
}

fn area(start: u64, mib: u64) -> PageRange {
    PageRange::of_addresses(start, start + mib * MIB)
}

fn criu(images: &Path, arguments: &[&str], environment: &[(&str, std::ffi::OsString)]) {
    let mut command = Command::new("criu");
    command.args(arguments).arg("-D").arg(images).args(["-v4", "-o", "log"]);
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    let status = command.stdin(Stdio::null()).status().unwrap();
    let log = fs::read_to_string(images.join("log")).unwrap_or_default();
    let end: Vec<&str> = log.lines().rev().take(40).collect();
    assert!(status.success(), "criu {arguments:?}: {status}\n{}", end.join("\n"));
}

/// Dumps the tree, which stays stopped; returns what was hidden.
fn dump(subject: &Subject, plan: &HidePlan) -> (PathBuf, BTreeMap<i32, Vec<PageRange>>) {
    let (images, plans) = (PathBuf::from("/tmp/images"), PathBuf::from("/tmp/plans"));
    fs::create_dir(&images).unwrap();
    fs::create_dir(&plans).unwrap();
    let environment = plan.write(&plans).unwrap();
    let root = subject.pids[0].to_string();
    criu(&images, &["dump", "--leave-stopped", "-t", &root], &environment);
    (images, Hidden::read(&plans).unwrap())
}

fn pagemap_of(images: &Path, pid: i32) -> (u32, Vec<LayoutRun>) {
    let name = pagemap::pagemap_name(ObjectId::Task(pid.try_into().unwrap()));
    pagemap::read(&mut File::open(images.join(name)).unwrap()).unwrap()
}

fn dumped(images: &Path, pid: i32, range: PageRange) -> u64 {
    let (_, runs) = pagemap_of(images, pid);
    let inside = |run: &LayoutRun| run.first < range.end().0 && run.end() > range.first.0;
    runs.iter().filter(|run| inside(run)).map(|run| u64::from(run.count)).sum()
}

/// Puts the hidden pages of a stopped process into its images, as if CRIU had dumped them.
fn put_back(images: &Path, pid: i32, hidden: &[PageRange]) -> u64 {
    let mut populated = Vec::new();
    let page_tables = Pagemap::open(pid, probe().unwrap()).unwrap();
    for range in hidden {
        page_tables.populated(*range, false, &mut populated).unwrap();
    }
    let (id, runs) = pagemap_of(images, pid);
    let pages = File::open(images.join(pagemap::pages_name(id))).unwrap();
    // First page, count, where the bytes are in the old file.
    let (mut all, mut offset) = (Vec::new(), 0);
    for run in &runs {
        all.push((run.first, run.count, Some(offset), run.flags));
        offset += u64::from(run.count) * PAGE_SIZE as u64;
    }
    for run in populated.iter().flat_map(|run| run.iter()) {
        all.push((run.0, 1, None, PE_PRESENT | PE_LAZY));
    }
    all.sort_unstable();
    let written = images.join("pages.new");
    let mut out = std::io::BufWriter::new(File::create(&written).unwrap());
    let (mut entries, mut added) = (Vec::<LayoutRun>::new(), 0);
    for (first, count, offset, flags) in all {
        let mut bytes = vec![0; count as usize * PAGE_SIZE];
        if let Some(offset) = offset {
            pages.read_exact_at(&mut bytes, offset).unwrap();
        } else {
            let mut missing = Vec::new();
            let page = PageRange { first: decamp::model::page::PageIndex(first), count: 1 };
            read_pages(pid, &[page], &mut bytes, &mut missing).unwrap();
            // A guard marker looks like a page in swap, and has no content.
            if !missing.is_empty() {
                continue;
            }
            added += 1;
        }
        out.write_all(&bytes).unwrap();
        entries.push(LayoutRun { first, count, flags });
    }
    out.into_inner().unwrap().sync_all().unwrap();
    fs::rename(written, images.join(pagemap::pages_name(id))).unwrap();
    let name = pagemap::pagemap_name(ObjectId::Task(pid.try_into().unwrap()));
    pagemap::write(&mut File::create(images.join(name)).unwrap(), id, &entries).unwrap();
    added
}

fn end(pids: &[i32]) {
    for pid in pids {
        kill(Pid::from_raw(*pid), Signal::SIGKILL).unwrap();
    }
    wait("the processes to be gone", || {
        pids.iter().all(|pid| !Path::new(&format!("/proc/{pid}")).exists()).then_some(())
    });
}

#[test]
fn dump_and_restore() {
    if std::env::var_os(INSIDE).is_none() {
        return;
    }
    let subject = Subject::start();
    let [parent, child] = subject.pids[..] else { panic!("two processes") };
    let plan = HidePlan::look(&subject.pids).unwrap();
    let (images, hidden) = dump(&subject, &plan);
    for pid in [parent, child] {
        assert_eq!(hidden[&pid], plan.ranges(pid), "all that may be hidden was");
        assert!(hidden[&pid].contains(&subject.big));
        assert!(hidden[&pid].contains(&subject.guarded));
        assert_eq!(dumped(&images, pid, subject.big), 0);
        assert_eq!(dumped(&images, pid, subject.guarded), 0);
        assert_eq!(plan.changed_flags(pid).unwrap(), []);
        // A main thread's stack is never hidden, so its pointer is in what was dumped.
        for page in stack_pointer_pages(pid).unwrap() {
            assert_eq!(dumped(&images, pid, PageRange { first: page, count: 1 }).min(1), 1, "{page:?}");
        }
    }
    // Locked memory is not inherited by a forked child: there it is like any other.
    assert_eq!(dumped(&images, parent, subject.locked), subject.locked.count);
    assert_eq!(dumped(&images, child, subject.locked), 0);
    for pid in [parent, child] {
        let added = put_back(&images, pid, &hidden[&pid]);
        assert!(added >= subject.big.count + subject.guarded.count / 2, "{added}");
    }
    end(&subject.pids);
    criu(&images, &["restore", "-d"], &[]);
    subject.ask(Signal::SIGUSR1, "ok");
    end(&subject.pids);
    println!("{DONE}");
}

#[test]
fn dump_what_changed() {
    if std::env::var_os(INSIDE).is_none() {
        return;
    }
    let subject = Subject::start();
    let plan = HidePlan::look(&subject.pids).unwrap();
    // The parent's mapping is cut in two and it gets a new one; the child's stay.
    kill(Pid::from_raw(subject.pids[0]), Signal::SIGUSR2).unwrap();
    let said = subject.folder.join(format!("changed.{}", subject.pids[0]));
    wait("the change", || said.exists().then_some(()));
    let (images, hidden) = dump(&subject, &plan);
    let [parent, child] = subject.pids[..] else { panic!("two processes") };
    assert!(!hidden[&parent].contains(&subject.big));
    assert!(hidden[&parent].contains(&subject.guarded), "what has not changed is hidden all the same");
    assert_eq!(dumped(&images, parent, subject.big), subject.big.count - 1);
    assert_eq!(hidden[&child], plan.ranges(child));
    end(&subject.pids);
    println!("{DONE}");
}

#[test]
fn checkpoint_a_container() {
    if std::env::var_os(INSIDE).is_none() {
        return;
    }
    let state = Command::new("runc").args(["state", "filled"]).output().unwrap().stdout;
    let state: serde_json::Value = serde_json::from_slice(&state).unwrap();
    let pid = i32::try_from(state["pid"].as_i64().unwrap()).unwrap();
    // Until it has filled its block, the mapping comes and goes.
    let filled = |range: &PageRange| {
        let mut populated = Vec::new();
        Pagemap::open(pid, probe().unwrap()).unwrap().populated(*range, false, &mut populated).unwrap();
        populated.iter().map(|run| run.count).sum::<u64>() >= 24 * MIB / PAGE_SIZE as u64
    };
    // clock_nanosleep(2) on x86-64.
    let asleep = || fs::read_to_string(format!("/proc/{pid}/syscall")).is_ok_and(|at| at.starts_with("230 "));
    let plan = wait("the container to fill its memory", || {
        let plan = asleep().then(|| HidePlan::look(&[pid]).unwrap())?;
        plan.ranges(pid).iter().any(filled).then_some(plan)
    });
    let (images, plans) = (PathBuf::from("/tmp/images"), PathBuf::from("/tmp/plans"));
    fs::create_dir(&plans).unwrap();
    let mut runc = Command::new("runc");
    runc.args(["checkpoint", "--image-path"]).arg(&images).arg("--work-path").arg(&images).arg("filled");
    runc.envs(plan.write(&plans).unwrap());
    let output = runc.stdin(Stdio::null()).output().unwrap();
    let log = fs::read_to_string(images.join("dump.log")).unwrap_or_default();
    let end: Vec<&str> = log.lines().rev().take(40).collect();
    assert!(output.status.success(), "{}\n{}", String::from_utf8_lossy(&output.stderr), end.join("\n"));
    assert_eq!(Hidden::read(&plans).unwrap(), BTreeMap::from([(pid, plan.ranges(pid))]));
    for range in plan.ranges(pid) {
        assert_eq!(dumped(&images, 1, range), 0);
    }
    println!("{DONE}");
}
