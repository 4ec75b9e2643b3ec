//! Programs whose memory is tracked: compiled with the host's C compiler when they are first needed.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use decamp::memory::Process;

/// Bound for anything that must happen; a test never waits that long unless something is wrong.
pub(crate) const GENEROUS: Duration = Duration::from_secs(120);

/// The program under test.
pub(crate) fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_decamp"))
}

/// Compiles `targets/NAME.c` once.
fn compiled(name: &str) -> PathBuf {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let out = folder.join(format!("tracker-{}-{name}", std::process::id()));
    if !out.exists() {
        let source = folder.join(format!("tracker-{}-{name}.c", std::process::id()));
        let text = match name {
            "ops" => include_str!("targets/ops.c"),
            "storm" => include_str!("targets/storm.c"),
            "wait" => include_str!("targets/wait.c"),
            "direct" => include_str!("targets/direct.c"),
            _ => panic!("no target {name}"),
        };
        std::fs::write(&source, text).unwrap();
        let status = Command::new("cc").args(["-O1", "-pthread", "-o"]).arg(&out).arg(&source).status();
        std::fs::remove_file(&source).unwrap();
        assert!(status.expect("a C compiler: cc").success(), "{name}.c does not compile");
    }
    out
}

/// A running target program.
pub(crate) struct Target {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Target {
    /// Starts it; the number is the first line that it prints.
    pub(crate) fn start(name: &str, arguments: &[&str]) -> (Self, i64) {
        let mut child = Command::new(compiled(name))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let mut target = Self { child, input, output: BufReader::new(output) };
        let first = target.line().parse().unwrap();
        (target, first)
    }

    /// The one that does what it is told.
    pub(crate) fn ops() -> Self {
        Self::start("ops", &[]).0
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    pub(crate) fn process(&self) -> Process {
        Process { pid: self.pid(), vpid: self.child.id() }
    }

    /// One line of its output; empty when it has ended.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    /// Whether it hears it shows in its answer.
    pub(crate) fn say(&mut self, words: &str) {
        let _ = writeln!(self.input, "{words}");
    }

    /// One command and its answer.
    pub(crate) fn run(&mut self, command: &str) -> i64 {
        self.say(command);
        let line = self.line();
        line.parse().unwrap_or_else(|_| panic!("{command}: {line:?}"))
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).unwrap();
    }

    pub(crate) fn stop(&self) {
        stop(self.pid());
    }

    pub(crate) fn goes_on(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// Did it end by itself?
    pub(crate) fn ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until something is so.
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < GENEROUS, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The state letters of all threads of a process.
pub(crate) fn states(pid: i32) -> Vec<u8> {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    threads
        .flatten()
        .filter_map(|thread| {
            let stat = std::fs::read_to_string(thread.path().join("stat")).ok()?;
            stat.rsplit_once(") ").map(|(_, rest)| rest.as_bytes()[0])
        })
        .collect()
}

/// Stops a process and waits until none of its threads runs, and no transfer into its memory is under way.
pub(crate) fn stop(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
    eventually("all threads stopped", || states(pid).iter().all(|state| matches!(state, b'T' | b'Z')));
}
