//! dump.log and restore.log, read for the person at 3 a.m.: which lines explain the failure, and what is known about them.
//!
//! The first `Error` line of a log is often harmless (`RLIMIT_NOFILE` without `CAP_SYS_RESOURCE`); the last ones before
//! "Dumping FAILED" / "Restoring FAILED" count.

use std::path::Path;

/// What a log says about a failure.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Diagnosis {
    /// Error lines, oldest first, at most eight.
    pub lines: Vec<String>,
    /// A cause that is known, in words.
    pub cause: Option<&'static str>,
    /// What to do about it.
    pub remedy: Option<&'static str>,
}

/// (what a line contains, what it means, what to do)
const KNOWN: [(&str, &str, &str); 13] = [
    (
        "In-flight connection",
        "a listener has a connection that is not established yet",
        "try again: such connections last milliseconds",
    ),
    (
        "Connected TCP socket",
        "the container has established TCP connections",
        "use --tcp keep or --tcp close",
    ),
    (
        "Can't lookup mount",
        "a process has a file open that lies outside the container's mounts (often its standard output)",
        "start the container with its standard streams on /dev/null, a pipe or a terminal",
    ),
    (
        "io_uring",
        "a process uses io_uring, which CRIU cannot carry",
        "turn io_uring off in the application, or stop it before the migration",
    ),
    (
        "userfaultfd",
        "a process holds a userfaultfd descriptor, which CRIU cannot carry",
        "turn off whatever uses userfaultfd (a JVM's or a snapshotter's option) and try again",
    ),
    (
        // The kernel passes no descriptor of io_uring over a UNIX socket (net/core/scm.c: EINVAL), so CRIU fails before it can
        // name it.
        "send_fds failed (-22)",
        "a process holds a descriptor that the kernel does not let CRIU look at: nearly always io_uring",
        "turn io_uring off in the application, or stop it before the migration",
    ),
    (
        "anon_inode",
        "a process holds a descriptor of a kind that CRIU cannot carry",
        "see the line: the application must close it before the migration",
    ),
    (
        "has bad size",
        "a file changed between the dump and the restore",
        "exclude whatever else writes to the container's files, and try again",
    ),
    ("No space left on device", "there was no room left", "free memory or disk space at that host"),
    ("Cannot allocate memory", "there was not enough memory", "free memory at that host"),
    (
        "Network is unreachable",
        "a connection could not be restored because its network is not there",
        "check that the destination's bridge is configured in [network]",
    ),
    (
        "Can't bind inet socket",
        "an address or port of the container is not available at the destination",
        "free the address there",
    ),
    (
        "Can't get rlimit",
        "CRIU lacks CAP_SYS_RESOURCE and a task runs as another user",
        "give the agent CAP_SYS_RESOURCE",
    ),
];

const HARMLESS: [&str; 3] = ["Can't setup RLIMIT_NOFILE", "exited with", "criu/action-scripts"];

/// Reads a CRIU log. A log that is not there gives an empty diagnosis.
#[must_use]
pub fn diagnose(log: &Path) -> Diagnosis {
    let text =
        std::fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    diagnose_text(&text)
}

fn diagnose_text(text: &str) -> Diagnosis {
    let verdict = text.find("ing FAILED").unwrap_or(text.len());
    let end = text[..verdict].rfind('\n').unwrap_or(0);
    let errors: Vec<&str> = text[..end]
        .lines()
        .filter(|line| line.contains("Error (") && !HARMLESS.iter().any(|harmless| line.contains(harmless)))
        .collect();
    let lines: Vec<String> =
        errors[errors.len().saturating_sub(8)..].iter().map(|line| line.trim().to_owned()).collect();
    let known = KNOWN.iter().find(|(mark, _, _)| lines.iter().any(|line| line.contains(mark)));
    Diagnosis { lines, cause: known.map(|(_, cause, _)| *cause), remedy: known.map(|(_, _, remedy)| *remedy) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_that_explains_is_found_and_the_harmless_one_is_not() {
        let log = "(0.01) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted\n\
                   (0.02) 89 fdinfo 2\n\
                   (0.03) Error (criu/files-reg.c:1790): Can't lookup mount=69 for fd=2 path=/tmp/x.err\n\
                   (0.04) Error (criu/cr-dump.c:1545): Dump files (pid: 89) failed with -1\n\
                   (0.09) Error (criu/cr-dump.c:1975): Dumping FAILED.\n";
        let diagnosis = diagnose_text(log);
        assert_eq!(diagnosis.lines.len(), 2);
        assert!(diagnosis.cause.unwrap().contains("outside the container's mounts"));
        assert_eq!(diagnose_text(""), Diagnosis::default());
    }

    #[test]
    fn a_descriptor_of_io_uring_is_named_although_criu_does_not() {
        let log = "pie: 1: Error (criu/pie/parasite.c:588): send_fds failed (-22)\n\
                   (00.017700) Error (criu/parasite-syscall.c:280): Can't retrieve FDs from socket\n\
                   (00.017704) Error (compel/src/lib/infect-rpc.c:44): Message reply from daemon is trimmed (12/0)\n\
                   (00.017710) Error (criu/cr-dump.c:1545): Dump files (pid: 289) failed with -1\n";
        assert!(diagnose_text(log).cause.unwrap().contains("io_uring"));
    }
}
