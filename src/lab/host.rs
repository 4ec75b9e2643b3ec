//! One simulated host: run a command in it, start something in the background, write a file, find its processes.
//!
//! Must never act on a process whose start time is not the one recorded: pids are used again.

use std::fs::{self, File};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procfs::process::Process;
use serde::{Deserialize, Serialize};

use super::cgroup::{self, HostCgroups};
use super::entry::{self, EnterSpec};
use super::error::{Doing, LabError};
use super::process::{Output, run, wait_until};

/// How long a command in a host may take unless another deadline is given.
pub const EXEC_DEADLINE: Duration = Duration::from_secs(120);

/// A process by pid and start time, so that a pid used again is not mistaken for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    pub(super) pid: i32,
    pub(super) start: u64,
}

impl Identity {
    /// Of a running process.
    pub(super) fn of(pid: i32) -> Option<Self> {
        let start = Process::new(pid).ok()?.stat().ok()?.starttime;
        Some(Self { pid, start })
    }

    /// Is it still that process, and not a zombie?
    pub(super) fn alive(self) -> bool {
        let stat = Process::new(self.pid).and_then(|p| p.stat());
        stat.is_ok_and(|s| s.starttime == self.start && s.state != 'Z' && s.state != 'X')
    }

    /// Sends a signal if it is still that process.
    pub(super) fn signal(self, signal: Signal) {
        if self.alive() {
            // It may end between the two lines.
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }
}

/// What [`Host::enter`] can do beyond running a command.
#[derive(Debug, Default, Clone, Copy)]
struct Enter<'a> {
    peer_pid: Option<i32>,
    pid_file: Option<&'a Path>,
    env: &'a [(String, String)],
}

/// A simulated host. A value of this type is only a way to reach it; the [`Lab`](super::Lab) keeps it alive.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Host {
    pub(super) lab: String,
    pub(super) name: String,
    pub(super) octet: u8,
    pub(super) init: Identity,
    pub(super) launcher: Identity,
    pub(super) cgroups: HostCgroups,
    pub(super) decamp: PathBuf,
    pub(super) state: PathBuf,
}

impl Host {
    /// Its name, as hostname(1) inside says it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address in the lab's network.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, self.octet)
    }

    /// Its IPv6 address, where the kernel has IPv6.
    #[must_use]
    pub fn address6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, u16::from(self.octet))
    }

    /// PID 1 of the host as this machine numbers it; killing it with SIGKILL is a power cut.
    #[must_use]
    pub fn init_pid(&self) -> i32 {
        self.init.pid
    }

    /// Is PID 1 of the host there?
    #[must_use]
    pub fn alive(&self) -> bool {
        self.init.alive()
    }

    fn enter(&self, argv: &[String], more: Enter<'_>) -> Result<Command, LabError> {
        if !self.alive() {
            return Err(LabError::HostDown { lab: self.lab.clone(), host: self.name.clone() });
        }
        let spec = EnterSpec {
            init_pid: self.init.pid,
            cgroups: self.cgroups.members.clone(),
            peer_pid: more.peer_pid,
            pid_file: more.pid_file.map(Path::to_owned),
            env: more.env.to_vec(),
            argv: argv.to_vec(),
        };
        entry::helper(&self.decamp, "enter", &spec)
    }

    /// Runs a command and waits for it; returns its standard output.
    ///
    /// # Errors
    /// When the host is down, the command cannot be run, is not done within [`EXEC_DEADLINE`], or fails.
    pub fn exec<S: AsRef<str>>(&self, argv: &[S]) -> Result<String, LabError> {
        let what = self.describe(argv);
        self.exec_with(argv, b"", EXEC_DEADLINE)?.success(&what)
    }

    /// Runs a shell script (`sh -e`) and waits for it; returns its standard output.
    ///
    /// # Errors
    /// As [`Host::exec`].
    pub fn shell(&self, script: &str) -> Result<String, LabError> {
        self.exec(&["sh", "-ec", script])
    }

    /// Runs a command with this standard input and deadline; its failure is the caller's to judge.
    ///
    /// # Errors
    /// When the host is down, the command cannot be started or is not done in time (it is killed then).
    pub fn exec_with<S: AsRef<str>>(
        &self,
        argv: &[S],
        input: &[u8],
        deadline: Duration,
    ) -> Result<Output, LabError> {
        let owned: Vec<String> = argv.iter().map(|a| a.as_ref().to_owned()).collect();
        run(self.enter(&owned, Enter::default())?, input, deadline, &self.describe(argv))
    }

    /// Runs `ip -batch` or `tc -batch` with these lines. [`PEER_NETNS`](entry::PEER_NETNS) in them names the network of
    /// `peer`.
    pub(super) fn network_batch(
        &self,
        program: &str,
        peer: Option<&Self>,
        lines: &str,
    ) -> Result<(), LabError> {
        let argv = [program, "-batch", "-"].map(str::to_owned);
        let peer_pid = peer.map(Self::init_pid);
        let what = format!("{program} in {} ({})", self.name, lines.trim().replace('\n', "; "));
        run(
            self.enter(&argv, Enter { peer_pid, ..Enter::default() })?,
            lines.as_bytes(),
            EXEC_DEADLINE,
            &what,
        )?
        .success(&what)?;
        Ok(())
    }

    /// Runs a command on this process's own terminal or streams; returns its exit code.
    ///
    /// # Errors
    /// When the host is down or the helper cannot be started.
    pub fn exec_attached<S: AsRef<str>>(&self, argv: &[S]) -> Result<i32, LabError> {
        let owned: Vec<String> = argv.iter().map(|a| a.as_ref().to_owned()).collect();
        let status = self
            .enter(&owned, Enter::default())?
            .status()
            .doing(|| format!("run {}", self.describe(argv)))?;
        Ok(super::process::code_of(status))
    }

    fn describe<S: AsRef<str>>(&self, argv: &[S]) -> String {
        let mut words: Vec<&str> = argv.iter().map(AsRef::as_ref).collect();
        words.truncate(12);
        let mut text = words.join(" ");
        if text.len() > 300 {
            text.truncate(text.floor_char_boundary(300));
            text.push('…');
        }
        format!("{text:?} on {}", self.name)
    }

    /// Starts a command in the background; both output streams go to `log`, a file in the lab's state folder.
    ///
    /// # Errors
    /// When the host is down, or the command cannot be started within ten seconds.
    pub fn spawn<S: AsRef<str>>(
        &self,
        argv: &[S],
        env: &[(String, String)],
        log: &str,
    ) -> Result<Background, LabError> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let pid_file = self.state.join(format!("spawn-{}-{number}.pid", std::process::id()));
        let log = self.state.join(log);
        let out = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .doing(|| format!("open {}", log.display()))?;
        let err = out.try_clone().doing(|| format!("open {}", log.display()))?;
        let owned: Vec<String> = argv.iter().map(|a| a.as_ref().to_owned()).collect();
        let mut helper = self
            .enter(&owned, Enter { pid_file: Some(&pid_file), env, peer_pid: None })?
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .doing(|| format!("start {}", self.describe(argv)))?;
        let pid = wait_for_pid(&pid_file, &mut helper);
        // Left behind it would only be one more file in a folder that goes with the lab.
        let _ = fs::remove_file(&pid_file);
        match pid {
            Some(pid) => {
                // One that has ended already is no process any more; its exit code is still to be had.
                let identity = Identity::of(pid).unwrap_or(Identity { pid, start: u64::MAX });
                wait_for_exec(identity);
                Ok(Background { helper, identity, log })
            }
            None => {
                // It may have ended by itself.
                let _ = helper.kill();
                helper.wait().doing(|| "reap a helper")?;
                let said = fs::read(&log).unwrap_or_default();
                Err(LabError::Failed {
                    what: self.describe(argv),
                    status: "no process".into(),
                    tail: super::process::last_lines(&said, 12),
                })
            }
        }
    }

    /// Writes a file in the host, whole or not at all; folders above it are made.
    ///
    /// # Errors
    /// As [`Host::exec`].
    pub fn write_file(&self, path: &str, bytes: &[u8], mode: u32) -> Result<(), LabError> {
        let script = "mkdir -p \"$(dirname \"$1\")\"; umask 077; cat > \"$1.new\"; chmod \"$2\" \"$1.new\"; mv \"$1.new\" \"$1\"";
        let mode = format!("{mode:o}");
        let argv = ["sh", "-ec", script, "write", path, &mode];
        // cat needs to see an end of input even for an empty file: an empty input is /dev/null, which has one.
        self.exec_with(&argv, bytes, EXEC_DEADLINE)?.success(&format!("writing {path} on {}", self.name))?;
        Ok(())
    }

    /// Reads a file of the host.
    ///
    /// # Errors
    /// As [`Host::exec`].
    pub fn read_file(&self, path: &str) -> Result<Vec<u8>, LabError> {
        let got = self.exec_with(&["cat", "--", path], b"", EXEC_DEADLINE)?;
        if got.code != 0 {
            got.clone().success(&format!("reading {path} on {}", self.name))?;
        }
        Ok(got.stdout)
    }

    /// A path of the host as this machine reaches it; useful for sockets. Symbolic links in it that are absolute mislead.
    #[must_use]
    pub fn outer_path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root", self.init.pid)).join(path.trim_start_matches('/'))
    }

    /// Processes of the host and of its containers whose command line contains `pattern`, as this machine numbers them.
    #[must_use]
    pub fn pids_matching(&self, pattern: &str) -> Vec<i32> {
        let mut pids: Vec<i32> = self.cgroups.roots.iter().flat_map(|root| cgroup::members(root)).collect();
        pids.sort_unstable();
        pids.dedup();
        pids.retain(|pid| {
            // Helpers of the lab that wait outside the host's pid namespace sit in its cgroups too.
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let inside = status.lines().any(|l| l.starts_with("NSpid:") && l.split_whitespace().count() > 2);
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            inside
                && *pid != self.init.pid
                && String::from_utf8_lossy(&line).replace('\0', " ").contains(pattern)
        });
        pids
    }
}

/// Waits until the process has become the command: before, its name and arguments are the helper's.
fn wait_for_exec(process: Identity) {
    let until = Instant::now() + Duration::from_secs(10);
    while process.alive() && Instant::now() < until {
        let line = fs::read(format!("/proc/{}/cmdline", process.pid)).unwrap_or_default();
        if !line.is_empty() && line.split(|b| *b == 0).nth(1) != Some(entry::COMMAND.as_bytes()) {
            return;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn wait_for_pid(file: &Path, helper: &mut Child) -> Option<i32> {
    let until = Instant::now() + Duration::from_secs(10);
    while Instant::now() < until {
        if let Some(pid) = fs::read_to_string(file).ok().and_then(|t| t.parse().ok()) {
            return Some(pid);
        }
        if helper.try_wait().ok().flatten().is_some() {
            return fs::read_to_string(file).ok().and_then(|t| t.parse().ok());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    None
}

/// A background command in a host. Dropping it kills the command.
#[derive(Debug)]
pub struct Background {
    helper: Child,
    identity: Identity,
    log: PathBuf,
}

impl Background {
    /// Its pid as this machine numbers it.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.identity.pid
    }

    /// Where its output goes, on this machine.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Sends it a signal; nothing happens if it has ended.
    pub fn signal(&self, signal: Signal) {
        self.identity.signal(signal);
    }

    /// Has it ended? Then its exit code, 128 + number for a signal.
    ///
    /// # Errors
    /// [`LabError::Io`] when the kernel cannot say.
    pub fn ended(&mut self) -> Result<Option<i32>, LabError> {
        Ok(self.helper.try_wait().doing(|| "look after a background command")?.map(super::process::code_of))
    }

    /// Waits for its end; returns the exit code.
    ///
    /// # Errors
    /// [`LabError::Deadline`] when it is not done in time; it is killed then.
    pub fn wait(&mut self, deadline: Duration) -> Result<i32, LabError> {
        let status = wait_until(&mut self.helper, Instant::now() + deadline)
            .doing(|| "wait for a background command")?;
        let late = || LabError::Deadline {
            what: format!("the command that logs to {}", self.log.display()),
            deadline,
        };
        status.map(super::process::code_of).ok_or_else(late)
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // Both fail when it has ended, which is what is wanted.
        let _ = self.helper.kill();
        let _ = self.helper.wait();
    }
}
