//! Runs one command to its end, or to a deadline, and keeps what it wrote.
//!
//! Must never wait without a deadline, and never keep more output than [`OUTPUT_KEPT_MAX`].

use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::error::{Doing, LabError};

/// Bytes of standard output, and of standard error, that are kept; the rest is read and dropped.
pub const OUTPUT_KEPT_MAX: usize = 64 << 20;

/// What a finished command left.
#[derive(Debug, Clone)]
pub struct Output {
    /// Exit code; 128 + number when a signal ended it, as shells say it.
    pub code: i32,
    /// Standard output, at most [`OUTPUT_KEPT_MAX`] bytes.
    pub stdout: Vec<u8>,
    /// Standard error, at most [`OUTPUT_KEPT_MAX`] bytes.
    pub stderr: Vec<u8>,
}

impl Output {
    /// Standard output as text; bytes that are not UTF-8 are replaced.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard output if the command succeeded.
    ///
    /// # Errors
    /// [`LabError::Failed`] with the last lines of both streams.
    pub fn success(self, what: &str) -> Result<String, LabError> {
        if self.code == 0 {
            return Ok(self.text());
        }
        let mut tail = last_lines(&self.stderr, 12);
        if tail.is_empty() {
            tail = last_lines(&self.stdout, 12);
        }
        Err(LabError::Failed { what: what.to_owned(), status: format!("exit code {}", self.code), tail })
    }
}

/// The last lines of a text, for an error message.
#[must_use]
pub fn last_lines(bytes: &[u8], lines: usize) -> String {
    let text = String::from_utf8_lossy(bytes);
    let all: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Exit code as shells say it.
pub(super) fn code_of(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

type Kept = Arc<Mutex<Vec<u8>>>;

fn keep(mut from: impl Read + Send + 'static) -> (Kept, Receiver<()>) {
    let kept = Kept::default();
    let (done, finished) = sync_channel(1);
    let mine = Arc::clone(&kept);
    std::thread::spawn(move || {
        let mut piece = vec![0; 64 << 10];
        while let Ok(n) = from.read(&mut piece) {
            if n == 0 {
                break;
            }
            let mut kept = mine.lock().unwrap_or_else(PoisonError::into_inner);
            let room = OUTPUT_KEPT_MAX.saturating_sub(kept.len()).min(n);
            kept.extend_from_slice(&piece[..room]);
        }
        // Nobody may be waiting any more; that is not an error.
        let _ = done.try_send(());
    });
    (kept, finished)
}

fn taken(kept: &Kept) -> Vec<u8> {
    std::mem::take(&mut *kept.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Waits for a child until `until`; kills and reaps it when that passes.
pub(super) fn wait_until(child: &mut Child, until: Instant) -> std::io::Result<Option<ExitStatus>> {
    let mut pause = Duration::from_micros(500);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= until {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

/// Runs `command` with `input` on its standard input.
///
/// A grandchild that keeps the pipes open does not hold up the answer: what was written half a second after the
/// command ended is what counts.
///
/// # Errors
/// [`LabError::Io`] when it cannot be started, [`LabError::Deadline`] when it was killed for being late.
pub(super) fn run(
    mut command: Command,
    input: &[u8],
    deadline: Duration,
    what: &str,
) -> Result<Output, LabError> {
    let until = Instant::now() + deadline;
    command.stdin(if input.is_empty() { Stdio::null() } else { Stdio::piped() });
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().doing(|| format!("start {what}"))?;
    let stdout = child.stdout.take().map(keep);
    let stderr = child.stderr.take().map(keep);
    if let Some(mut stdin) = child.stdin.take() {
        let input = input.to_vec();
        // A command that does not read all of its input is judged by its exit code.
        std::thread::spawn(move || stdin.write_all(&input).is_ok());
    }
    let status = wait_until(&mut child, until).doing(|| format!("wait for {what}"))?;
    let grace = Instant::now() + Duration::from_millis(500);
    let collect = |stream: Option<(Kept, Receiver<()>)>| {
        stream.map_or_else(Vec::new, |(kept, finished)| {
            match finished.recv_timeout(grace.saturating_duration_since(Instant::now())) {
                Ok(()) | Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => taken(&kept),
            }
        })
    };
    let (stdout, stderr) = (collect(stdout), collect(stderr));
    match status {
        Some(status) => Ok(Output { code: code_of(status), stdout, stderr }),
        None => Err(LabError::Deadline { what: what.to_owned(), deadline }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn input_and_output_larger_than_a_pipe_pass() {
        let input = vec![b'x'; 3 << 20];
        let got = run(sh("cat; exit 3"), &input, Duration::from_secs(20), "cat").unwrap();
        assert_eq!((got.code, got.stdout.len()), (3, input.len()));
        assert!(got.success("cat").unwrap_err().to_string().contains("exit code 3"));
    }

    #[test]
    fn a_late_command_is_killed() {
        let started = Instant::now();
        let got = run(sh("exec sleep 60"), b"", Duration::from_millis(100), "sleep");
        assert!(matches!(got, Err(LabError::Deadline { .. })));
        assert!(started.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn a_grandchild_with_the_pipe_does_not_hold_up_the_answer() {
        let got = run(sh("sleep 5 & echo done"), b"", Duration::from_secs(20), "sh").unwrap();
        assert_eq!(got.text(), "done\n");
    }
}
