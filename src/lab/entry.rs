//! The hidden commands `decamp lab-host …`: a process with several threads may not enter or make a pid or mount namespace
//! safely, so the lab starts its own binary again for each of these steps.
//!
//! ```text
//! lab ──pipe──▶ open ──fork──▶ init = PID 1 of the host       (pipe closed ⇒ init killed ⇒ the kernel ends the host)
//! lab ────────▶ enter ─fork──▶ inner ─exec─▶ the command      (enter killed ⇒ the command killed)
//! lab ────────▶ sandbox ─fork▶ inner ─exec─▶ debootstrap      (its mounts and children vanish with it)
//! ```
//! Must never run after another thread was started: [`entry`] is the first thing `main` calls.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::cgroup::{self, HostCgroups};
use super::error::{Doing, LabError, chain};
use super::mounts::{self, Places};
use super::process::code_of;

/// The hidden subcommand.
pub(super) const COMMAND: &str = "lab-host";
/// Where the decamp binary is inside a host.
pub const BINARY_IN_HOST: &str = "/usr/local/bin/decamp";
/// Where a command finds the network namespace that [`EnterSpec::peer_pid`] asks for.
const PEER_NETNS_FD: i32 = 200;
/// The same as a path, for ip(8).
pub(super) const PEER_NETNS: &str = "/proc/self/fd/200";
/// What commands in a host find programs by.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What a helper exits with when it could not do its part, as opposed to the command's own exit code.
pub(super) const HELPER_FAILED: u8 = 125;

/// How to open a host.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct OpenSpec {
    pub(super) lab: String,
    pub(super) host: String,
    pub(super) places: Places,
}

/// What `open` answers, as one line of JSON.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Opened {
    pub(super) init_pid: i32,
    pub(super) cgroups: HostCgroups,
    pub(super) error: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct InitSpec {
    open: OpenSpec,
    cgroups: HostCgroups,
}

/// How to run a command in a host.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct EnterSpec {
    /// PID 1 of the host as this machine numbers it.
    pub(super) init_pid: i32,
    /// Cgroups to sit in.
    pub(super) cgroups: Vec<PathBuf>,
    /// The command gets the network namespace of this process as descriptor [`PEER_NETNS_FD`].
    pub(super) peer_pid: Option<i32>,
    /// Where to write the command's pid, as this machine numbers it.
    pub(super) pid_file: Option<PathBuf>,
    /// More environment.
    pub(super) env: Vec<(String, String)>,
    /// The command.
    pub(super) argv: Vec<String>,
}

/// Runs a hidden command if the arguments ask for one. The first thing in `main`: no thread may have been started.
///
/// `None`: the arguments are not ours.
#[must_use]
pub fn entry(args: impl IntoIterator<Item = OsString>) -> Option<ExitCode> {
    let args: Vec<String> = args.into_iter().map(|a| a.to_string_lossy().into_owned()).collect();
    if args.get(1).is_none_or(|a| a != COMMAND) {
        return None;
    }
    // Whoever starts us may have signals blocked for its own waiting; nobody below shall inherit that.
    let unblocked = SigSet::empty().thread_set_mask().doing(|| "unblock signals");
    let step = args.get(2).map_or("", String::as_str);
    let spec = args.get(3).map_or("", String::as_str);
    let result = unblocked.and_then(|()| match step {
        "open" => parse(spec).and_then(|spec| open(&spec)),
        "init" => hear_spec().and_then(|spec| init(&spec)),
        "enter" => parse(spec).and_then(|spec| enter(&spec)),
        "sandbox" => sandbox(&args[3..]),
        "inner" => inner(&args[3..]),
        other => Err(LabError::BadInput {
            what: format!("{COMMAND} {other:?}"),
            why: "it is an internal command of decamp lab".into(),
        }),
    });
    Some(result.unwrap_or_else(|e| {
        eprintln!("decamp {COMMAND} {step}: {}", chain(&e));
        ExitCode::from(HELPER_FAILED)
    }))
}

fn parse<T: DeserializeOwned>(json: &str) -> Result<T, LabError> {
    serde_json::from_str(json).map_err(|source| LabError::State { path: "argument".into(), source })
}

/// PID 1 gets its orders on standard input: a command line is there to be read in ps(1) for as long as the host lives.
fn hear_spec() -> Result<InitSpec, LabError> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).doing(|| "read the host's description")?;
    parse(&text)
}

/// A command that starts one of the helpers above.
pub(super) fn helper(
    decamp: &std::path::Path,
    step: &str,
    spec: &impl Serialize,
) -> Result<Command, LabError> {
    let json =
        serde_json::to_string(spec).map_err(std::io::Error::other).doing(|| "write a helper's argument")?;
    let mut command = Command::new(decamp);
    command.args([COMMAND, step, &json]);
    Ok(command)
}

/// The host's outer half: lives as long as the pipe on its standard input, then removes what the kernel does not.
fn open(spec: &OpenSpec) -> Result<ExitCode, LabError> {
    // Ctrl-C goes to the whole foreground group; the lab decides what it means, not each helper.
    nix::unistd::setsid().doing(|| "leave the terminal")?;
    let cgroups = cgroup::create(&spec.lab, &spec.host)?;
    let opened = start_init(spec, &cgroups);
    let (mut child, error) = match opened {
        Ok((child, error)) => (Some(child), error),
        Err(e) => (None, Some(chain(&e))),
    };
    let pid = child.as_ref().map_or(0, |c| i32::try_from(c.id()).unwrap_or(0));
    let ok = error.is_none();
    let answer = Opened { init_pid: pid, cgroups: cgroups.clone(), error };
    let told = serde_json::to_writer(std::io::stdout(), &answer).map_err(std::io::Error::from);
    let told =
        told.and_then(|()| std::io::stdout().write_all(b"\n")).and_then(|()| std::io::stdout().flush());
    if let Some(child) = &mut child {
        if ok && told.is_ok() {
            wait_for_end(child)?;
        }
        // It may have ended by itself.
        let _ = child.kill();
        child.wait().doing(|| format!("wait for host {}", spec.host))?;
    }
    cgroup::remove(&cgroups.roots, Duration::from_secs(10))?;
    Ok(ExitCode::SUCCESS)
}

/// Returns when PID 1 has ended, or the other end of the pipe on standard input, which is the lab.
///
/// Not with a thread: after unshare(CLONE_NEWPID) the kernel refuses to make one.
fn wait_for_end(child: &mut Child) -> Result<(), LabError> {
    let mut ended = SigSet::empty();
    ended.add(Signal::SIGCHLD);
    ended.thread_block().doing(|| "block SIGCHLD")?;
    let signals = SignalFd::new(&ended).doing(|| "watch for SIGCHLD")?;
    let stdin = std::io::stdin();
    loop {
        if child.try_wait().doing(|| "look after the host's first process")?.is_some() {
            return Ok(());
        }
        let mut both =
            [PollFd::new(signals.as_fd(), PollFlags::POLLIN), PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
        match poll(&mut both, PollTimeout::NONE) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(e) => return Err(e).doing(|| "wait for the lab's end"),
        }
        if both[1].any().unwrap_or(false) {
            // Nobody writes to this pipe: readable means closed.
            return Ok(());
        }
        if both[0].any().unwrap_or(false) {
            signals.read_signal().doing(|| "take a SIGCHLD")?;
        }
    }
}

/// Starts PID 1; returns what it complained about, if it did.
fn start_init(spec: &OpenSpec, cgroups: &HostCgroups) -> Result<(Child, Option<String>), LabError> {
    unshare(CloneFlags::CLONE_NEWPID).doing(|| "make a pid namespace")?;
    let init = InitSpec { open: spec.clone(), cgroups: cgroups.clone() };
    let text = serde_json::to_vec(&init).map_err(std::io::Error::other).doing(|| "describe the host")?;
    let mut child = Command::new("/proc/self/exe")
        .args([COMMAND, "init"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .doing(|| "start the host's first process")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(&text).doing(|| "describe the host to its first process")?;
    }
    let mut ready = String::new();
    if let Some(mut out) = child.stdout.take() {
        out.read_to_string(&mut ready).doing(|| "hear from the host's first process")?;
    }
    if ready == "ready" {
        return Ok((child, None));
    }
    let mut why = String::new();
    if let Some(mut err) = child.stderr.take() {
        err.read_to_string(&mut why).doing(|| "hear from the host's first process")?;
    }
    Ok((child, Some(why.trim().to_owned())))
}

/// PID 1 of a host: makes its namespaces and mounts, says so, then reaps until it is killed.
fn init(spec: &InitSpec) -> Result<ExitCode, LabError> {
    set_pdeathsig(Signal::SIGKILL).doing(|| "tie the host to the lab")?;
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    children.thread_block().doing(|| "block SIGCHLD")?;
    cgroup::join(&spec.cgroups.roots)?;
    let parts = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWCGROUP;
    unshare(parts).doing(|| "make the host's namespaces")?;
    if spec.cgroups.members != spec.cgroups.roots {
        cgroup::join(&spec.cgroups.members)?;
        spec.cgroups.roots.iter().for_each(|root| cgroup::hand_down(root));
    }
    nix::unistd::sethostname(&spec.open.host).doing(|| "set the host's name")?;
    mounts::build(&spec.open.host, &spec.open.places)?;
    nix::unistd::setsid().doing(|| "become a session leader")?;
    let mut out = std::io::stdout();
    out.write_all(b"ready").and_then(|()| out.flush()).doing(|| "say that the host is ready")?;
    let null = File::options().read(true).write(true).open("/dev/null").doing(|| "open /dev/null")?;
    nix::unistd::dup2_stdin(&null).doing(|| "let go of the pipe")?;
    nix::unistd::dup2_stdout(&null).doing(|| "let go of the pipe")?;
    nix::unistd::dup2_stderr(&null).doing(|| "let go of the pipe")?;
    loop {
        match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(_) => {
                children.wait().doing(|| "wait for children")?;
            }
            Ok(_) => {}
        }
    }
}

/// Goes into a host and runs a command there; exits with the command's code.
fn enter(spec: &EnterSpec) -> Result<ExitCode, LabError> {
    // The mount namespace last: it takes /proc of this machine away. The pid namespace holds for children only.
    let wanted = [
        ("cgroup", CloneFlags::CLONE_NEWCGROUP),
        ("ipc", CloneFlags::CLONE_NEWIPC),
        ("uts", CloneFlags::CLONE_NEWUTS),
        ("net", CloneFlags::CLONE_NEWNET),
        ("pid", CloneFlags::CLONE_NEWPID),
        ("mnt", CloneFlags::CLONE_NEWNS),
    ];
    let mut opened = Vec::new();
    for (name, flag) in wanted {
        let path = format!("/proc/{}/ns/{name}", spec.init_pid);
        opened.push((name, File::open(&path).doing(|| format!("open {path}"))?, flag));
    }
    let pid_file = spec
        .pid_file
        .as_ref()
        .map(|path| File::create(path).doing(|| format!("create {}", path.display())))
        .transpose()?;
    if let Some(peer) = spec.peer_pid {
        pass_netns(peer)?;
    }
    cgroup::join(&spec.cgroups)?;
    for (name, file, flag) in opened {
        setns(&file, flag).doing(|| format!("enter the host's {name} namespace"))?;
    }
    std::env::set_current_dir("/").doing(|| "go to the host's root")?;
    let mut child = Command::new(BINARY_IN_HOST)
        .args([COMMAND, "inner"])
        .args(&spec.argv)
        .env_clear()
        .envs(environment(&spec.env))
        .spawn()
        .doing(|| format!("start {BINARY_IN_HOST} in the host"))?;
    if let Some(mut file) = pid_file {
        file.write_all(child.id().to_string().as_bytes()).doing(|| "write the pid file")?;
    }
    finish(&mut child)
}

/// Waits for the child and takes over its exit code.
fn finish(child: &mut Child) -> Result<ExitCode, LabError> {
    let status = child.wait().doing(|| "wait for the command")?;
    Ok(ExitCode::from(u8::try_from(code_of(status)).unwrap_or(HELPER_FAILED)))
}

/// A clean environment: a host shall not depend on who opened it, except for what steers logging and the terminal.
fn environment(more: &[(String, String)]) -> Vec<(String, String)> {
    let kept = ["TERM", "RUST_LOG", "RUST_BACKTRACE"];
    let kept = kept.iter().filter_map(|k| std::env::var(k).ok().map(|v| ((*k).to_owned(), v)));
    let fixed = [("PATH", PATH), ("HOME", "/root"), ("LANG", "C.UTF-8")];
    let fixed = fixed.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    kept.chain(fixed).chain(more.iter().cloned()).collect()
}

/// Opens another process's network namespace for the command to inherit: ip(8) finds a pid only in its own /proc, and the
/// two hosts do not see each other's.
fn pass_netns(pid: i32) -> Result<(), LabError> {
    let path = format!("/proc/{pid}/ns/net");
    let file = File::open(&path).doing(|| format!("open {path}"))?;
    // F_DUPFD, unlike F_DUPFD_CLOEXEC, leaves the copy open across exec(2).
    let copy = nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_DUPFD(PEER_NETNS_FD))
        .doing(|| format!("pass on {path}"))?;
    if copy == PEER_NETNS_FD {
        return Ok(());
    }
    Err(LabError::BadInput { what: format!("descriptor {copy}"), why: format!("{PEER_NETNS_FD} was taken") })
}

/// Runs `argv` with private mounts and pids: when it or we end, its mounts and all its children are gone.
fn sandbox(argv: &[String]) -> Result<ExitCode, LabError> {
    set_pdeathsig(Signal::SIGKILL).doing(|| "tie the helper to the lab")?;
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID).doing(|| "make private namespaces")?;
    mounts::make_private()?;
    let mut child = Command::new("/proc/self/exe")
        .args([COMMAND, "inner"])
        .args(argv)
        .spawn()
        .doing(|| "start the command in its own namespaces")?;
    finish(&mut child)
}

/// Becomes the command, tied to its parent's life.
fn inner(argv: &[String]) -> Result<ExitCode, LabError> {
    set_pdeathsig(Signal::SIGKILL).doing(|| "tie the command to its helper")?;
    let Some((program, rest)) = argv.split_first() else {
        return Err(LabError::BadInput {
            what: "an empty command".into(),
            why: "there is nothing to run".into(),
        });
    };
    let source = Command::new(program).args(rest).exec();
    let code = if source.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 };
    eprintln!("cannot run {program}: {source}");
    Ok(ExitCode::from(code))
}
