//! Running the real binary.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::fake::Fake;

/// Far more than anything here takes; a test that hangs must end.
const PATIENCE: Duration = Duration::from_secs(30);

/// The binary with nothing of this environment that could change its behaviour.
pub(crate) fn decamp(line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_decamp"));
    command.args(line.split_whitespace()).stdin(Stdio::null());
    for name in ["DECAMP_AGENT", "DECAMP_TLS_CA", "DECAMP_TLS_CERT", "DECAMP_TLS_KEY", "NO_COLOR", "LC_ALL"] {
        command.env_remove(name);
    }
    command.env("LANG", "C.UTF-8").env("TERM", "xterm");
    command
}

/// The same, talking to this agent.
pub(crate) fn asking(fake: &Fake, line: &str) -> Command {
    let mut command = decamp(line);
    command.env("DECAMP_AGENT", format!("unix:{}", fake.socket().display()));
    command
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    fn of(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let code = output.status.code().expect("it was not killed");
        Self { code, out: text(output.stdout), err: text(output.stderr) }
    }

    /// Fails with everything that was printed.
    #[track_caller]
    pub(crate) fn expect(&self, code: i32, out: &[&str], err: &[&str]) {
        assert_eq!(self.code, code, "{self:#?}");
        for piece in out {
            assert!(self.out.contains(piece), "{piece:?} is not on standard output: {self:#?}");
        }
        for piece in err {
            assert!(self.err.contains(piece), "{piece:?} is not on standard error: {self:#?}");
        }
    }
}

/// Runs to the end.
pub(crate) fn run(mut command: Command) -> Ran {
    Ran::of(command.output().unwrap())
}

/// A run that is interfered with.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    out: BufReader<ChildStdout>,
    told: String,
}

impl Running {
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Self { child, out, told: String::new() }
    }

    /// Reads standard output up to a line that contains this.
    pub(crate) fn until(&mut self, piece: &str) {
        loop {
            let mut line = String::new();
            let read = self.out.read_line(&mut line).unwrap();
            self.told.push_str(&line);
            if line.contains(piece) {
                return;
            }
            assert!(read > 0, "{piece:?} was never printed, only {:?}", self.told);
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    /// Closes our end of its standard output.
    pub(crate) fn stop_reading(self) -> Child {
        self.child
    }

    /// Waits for the end.
    pub(crate) fn end(mut self) -> Ran {
        self.out.read_to_string(&mut self.told).unwrap();
        let output = wait(self.child);
        Ran { out: self.told, ..Ran::of(output) }
    }
}

/// Waits for a child, not for ever.
pub(crate) fn wait(mut child: Child) -> Output {
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("it did not end: {:?}", child.wait_with_output());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.wait_with_output().unwrap()
}

/// Waits until something is so.
#[track_caller]
pub(crate) fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
