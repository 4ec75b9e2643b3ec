//! Which processes a container has: the tree under its first process, as CRIU will dump it.

use std::collections::HashSet;
use std::fs;
use std::io;

use super::error::MemoryError;

/// One process of the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Process {
    /// Its id as the agent sees it.
    pub pid: i32,
    /// Its id in the pid namespace of the container's first process: the name of its images.
    pub vpid: u32,
}

/// The processes under `init`, itself included, parents before children. A process that comes or goes meanwhile may be missing or
/// too much: the next call and the final dump put that right.
///
/// # Errors
/// [`MemoryError::Processes`] when the first process is gone.
pub fn processes(init: i32) -> Result<Vec<Process>, MemoryError> {
    let failed = |source| MemoryError::Processes { init, source };
    let own = namespace_pids(init).map_err(failed)?;
    let level = own.len() - 1;
    let mut found = vec![Process { pid: init, vpid: own[level] }];
    let mut seen = HashSet::from([init]);
    let mut next = 0;
    while let Some(parent) = found.get(next) {
        next += 1;
        for pid in children(parent.pid) {
            // Gone already, or not in this namespace (then it is no descendant that CRIU could name).
            let Ok(pids) = namespace_pids(pid) else { continue };
            if let Some(vpid) = pids.get(level)
                && seen.insert(pid)
            {
                found.push(Process { pid, vpid: *vpid });
            }
        }
    }
    Ok(found)
}

/// Children of all threads of a process (CONFIG_PROC_CHILDREN, which CRIU needs as well).
fn children(pid: i32) -> Vec<i32> {
    threads(pid)
        .into_iter()
        .filter_map(|thread| fs::read_to_string(format!("/proc/{pid}/task/{thread}/children")).ok())
        .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect()
}

/// The threads of a process; none when it is gone.
pub(super) fn threads(pid: i32) -> Vec<i32> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// Its ids in all pid namespaces that it is in, outermost first (/proc/PID/status, NSpid).
fn namespace_pids(pid: i32) -> io::Result<Vec<u32>> {
    let status = fs::read(format!("/proc/{pid}/status"))?;
    let line = status.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"NSpid:"));
    let text = line.and_then(|line| str::from_utf8(line).ok()).unwrap_or_default();
    let pids: Vec<u32> = text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect();
    if pids.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "no NSpid in /proc/PID/status"));
    }
    Ok(pids)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::BufRead;
    use std::process::{Command, Stdio};

    #[test]
    fn a_tree_in_its_own_namespace_has_its_own_numbers() {
        // The shell is pid 1 of a new namespace and has two children.
        let mut outer = Command::new("unshare")
            .args(["--pid", "--fork", "--kill-child", "sh", "-c", "sleep 60 & sleep 60 & echo ready; wait"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        io::BufReader::new(outer.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let unshare = i32::try_from(outer.id()).unwrap();
        let init = children(unshare)[0];
        let found = processes(init).unwrap();
        let vpids: Vec<u32> = found.iter().map(|process| process.vpid).collect();
        outer.kill().unwrap();
        outer.wait().unwrap();
        assert_eq!(vpids[0], 1);
        assert_eq!(found[0].pid, init);
        assert_eq!(vpids.len(), 3, "{vpids:?}");
        assert!(vpids[1..].iter().all(|vpid| (2..10).contains(vpid)), "{vpids:?}");
    }

    #[test]
    fn a_process_that_is_gone_is_an_error() {
        let mut child = Command::new("true").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        child.wait().unwrap();
        assert!(matches!(processes(pid), Err(MemoryError::Processes { .. })));
    }
}
