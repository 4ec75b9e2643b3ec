//! The same container without memory, moved by `runc checkpoint` and `runc restore`, as a careful person would do it by hand:
//! bundle, root file system and network are ready at the destination, images are on tmpfs, both commands are started before and
//! wait for a word, and nobody logs in, copies over a network or encrypts. What decamp's fixed time is held against.
//!
//! ```text
//! node-a: runc checkpoint ─▶ word ─▶ this process copies the images ─▶ word ─▶ node-b: runc restore
//! ```
//! The container has no client and no connections, which is in its favour.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::error::BenchError;
use super::migrate::{DESTINATION, SOURCE, unix_ms};
use super::plan::Mode;
use super::subject;
use super::trip::{Run, load_average};
use crate::lab::{Background, Cluster, Host};
use crate::model::ContainerId;

/// Folder of images, logs and words on both hosts; /run is a tmpfs.
const DIR: &str = "/run/bench-hand";
/// How long one of the two commands may take.
const WITHIN: Duration = Duration::from_secs(60);

/// Moves one.
pub(super) fn run(cluster: &Cluster, number: u32) -> Result<Run, BenchError> {
    let (id, _) = subject::identity(Mode::ByHand.word(), number)?;
    let (source, destination) = (cluster.host(SOURCE)?, cluster.host(DESTINATION)?);
    let spec = subject::spec(id.clone(), 0, 0);
    destination.prepare_container(&spec)?;
    source.run_container(&spec)?;
    let moved = moved(&source, &destination, &id);
    let removed = [&source, &destination].map(|host| {
        subject::remove(host, &id)?;
        Ok(host.shell(&format!("rm -rf {DIR}")).map(drop)?)
    });
    let run = moved?;
    removed.into_iter().collect::<Result<Vec<()>, BenchError>>()?;
    Ok(run)
}

fn moved(source: &Host, destination: &Host, id: &ContainerId) -> Result<Run, BenchError> {
    subject::wait_until_filled(source, id)?;
    let images = format!("--image-path {DIR}/images --work-path {DIR}/work --tcp-established");
    let dump = Command::prepare(source, &format!("runc --log {DIR}/runc.log checkpoint {images} {id}"))?;
    let bundle = crate::lab::bundle(id);
    let restore = Command::prepare(
        destination,
        &format!(
            "runc --log {DIR}/runc.log restore --detach --bundle {bundle} {images} {id} </dev/null >/dev/null 2>&1"
        ),
    )?;
    // Whatever starts slowly has started by then.
    std::thread::sleep(Duration::from_millis(300));
    let began = unix_ms();
    dump.go()?;
    let bytes_sent = copy(source, destination)?;
    restore.go()?;
    let span = (began, unix_ms());
    let cli = ["runc", "exec", id.as_str(), "redis-cli"];
    let report = subject::ask(destination, &cli, "gap")?;
    let gap = subject::longest_gap_ms(&report, "real_ms", span);
    let gap = gap.ok_or_else(|| BenchError::silent("the ticker", "no gap began during the move"))?;
    subject::verify(destination, &cli, 0)?;
    Ok(Run {
        round: 0,
        tool: "runc",
        mode: Mode::ByHand,
        memory_mib: 0,
        dirty_pages_per_s: 0,
        downtime_ms: gap,
        agents_downtime_ms: None,
        ticker_gap_ms: gap,
        client_gap_ms: None,
        total_ms: span.1 - span.0,
        bytes_sent,
        floor_ms: None,
        verified: true,
        pages_lazy: None,
        resident_after_ms: None,
        fill_bytes_per_s: None,
        link_pages_per_s: None,
        rounds: 0,
        agent_memory_bytes: None,
        downtime_parts_us: std::collections::BTreeMap::new(),
        redis: None,
        load_average: load_average(),
    })
}

/// Copies the images from host to host, as fast as files can be copied; returns how many bytes that were.
fn copy(source: &Host, destination: &Host) -> Result<u64, BenchError> {
    let images = format!("{DIR}/images");
    let (from, to) = (source.outer_path(&images), destination.outer_path(&images));
    let copied = || -> std::io::Result<u64> {
        let mut bytes = 0;
        for entry in std::fs::read_dir(&from)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                bytes += std::fs::copy(entry.path(), to.join(entry.file_name()))?;
            }
        }
        Ok(bytes)
    };
    copied().map_err(BenchError::io(format!("copy {} to the other host", from.display())))
}

/// A command that has started and waits for a word.
struct Command {
    shell: Background,
    go: File,
    done: File,
    log: std::path::PathBuf,
}

impl Command {
    fn prepare(host: &Host, command: &str) -> Result<Self, BenchError> {
        host.shell(&format!(
            "mkdir -p {DIR}/images {DIR}/work; rm -f {DIR}/go {DIR}/done; mkfifo {DIR}/go {DIR}/done"
        ))?;
        let script = format!("read -r word <{DIR}/go; {command}; echo $? >{DIR}/done");
        // The lab's helper waits for the shell; this process is told through the pipe, at once.
        let name = format!("by-hand-{}.log", host.name());
        let shell = host.spawn(&["sh", "-c", &script], &[], &name)?;
        let open = |path: &str| {
            let path = host.outer_path(path);
            open_both_ways(&path).map_err(BenchError::io(format!("open {}", path.display())))
        };
        Ok(Self {
            go: open(&format!("{DIR}/go"))?,
            done: open(&format!("{DIR}/done"))?,
            log: host.outer_path(&format!("{DIR}/runc.log")),
            shell,
        })
    }

    /// Gives the word and waits for the end.
    fn go(mut self) -> Result<(), BenchError> {
        self.go.write_all(b"go\n").map_err(BenchError::io("tell runc to begin"))?;
        let until = Instant::now() + WITHIN;
        let mut code = String::new();
        while !code.ends_with('\n') {
            let left = until.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
            let mut wanted = [PollFd::new(std::os::fd::AsFd::as_fd(&self.done), PollFlags::POLLIN)];
            let ready =
                poll(&mut wanted, timeout).map_err(|error| BenchError::io("wait for runc")(error.into()))?;
            if ready == 0 {
                return Err(BenchError::silent("runc", "it is not done in time"));
            }
            let mut bytes = [0; 16];
            let got = self.done.read(&mut bytes).map_err(BenchError::io("hear from runc"))?;
            code += &String::from_utf8_lossy(&bytes[..got]);
        }
        drop(self.shell);
        if code.trim() == "0" {
            return Ok(());
        }
        let said = std::fs::read(&self.log).unwrap_or_default();
        Err(BenchError::silent(
            "runc",
            format!("exit code {}: {}", code.trim(), crate::lab::last_lines(&said, 3)),
        ))
    }
}

/// A FIFO that is open for both neither waits for the other side nor ever ends (fifo(7)).
fn open_both_ways(path: &Path) -> std::io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options().read(true).write(true).custom_flags(OFlag::O_CLOEXEC.bits()).open(path)
}
