//! The container that is moved: memory.py, with so much memory. Started, waited for, asked, removed. Nothing here knows of
//! migrations.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::error::BenchError;
use crate::lab::{CONTAINERS_DIR, ContainerSpec, Host};
use crate::model::ContainerId;

/// How long filling, verifying or removing may take.
pub(super) const DEADLINE: Duration = Duration::from_secs(300);
/// The first address, and how many follow: one that has just left must not meet its successor's packets.
const FIRST_OCTET: u8 = 60;
const OCTETS: u32 = 150;

/// Id and address of the `number`th container of this benchmark.
pub(super) fn identity(mode: &str, number: u32) -> Result<(ContainerId, Ipv4Addr), BenchError> {
    let name = format!("bench-{mode}-{number}");
    let id = name
        .as_str()
        .try_into()
        .map_err(|error: crate::model::id::BadName| BenchError::silent(&name, error.to_string()))?;
    let octet = u8::try_from(number % OCTETS).unwrap_or(0) + FIRST_OCTET;
    Ok((id, Ipv4Addr::new(10, 77, 0, octet)))
}

/// What to run.
pub(super) fn spec(id: ContainerId, memory_mib: u32, pages_per_s: u64) -> ContainerSpec {
    let (mib, rate) = (memory_mib.to_string(), pages_per_s.to_string());
    ContainerSpec::workload(id, "memory.py", &["--mib", &mib, "--rate", &rate])
}

/// Waits until its memory is filled; it was started on this host.
pub(super) fn wait_until_filled(host: &Host, id: &ContainerId) -> Result<(), BenchError> {
    let path = host.outer_path(&format!("{CONTAINERS_DIR}/{id}/volumes/vol/memory.json"));
    let until = Instant::now() + DEADLINE;
    while Instant::now() < until {
        if let Ok(text) = std::fs::read_to_string(&path) {
            let status: Value = serde_json::from_str(&text)
                .map_err(|error| BenchError::silent("memory.py", error.to_string()))?;
            if status["ok"] == true {
                return Ok(());
            }
            return Err(BenchError::silent("memory.py", status["reason"].to_string()));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Err(BenchError::silent("memory.py", "it has not filled its memory in time"))
}

/// Asks it something through redis-cli: `before` is what comes before redis-cli's own arguments.
pub(super) fn ask(host: &Host, before: &[&str], question: &str) -> Result<Value, BenchError> {
    let words = before.iter().copied().chain([question]);
    let argv: Vec<&str> = words.collect();
    let output = host.exec_with(&argv, b"", DEADLINE)?;
    let text = output.text();
    serde_json::from_str(&text).map_err(|_| {
        let said = String::from_utf8_lossy(&output.stderr).into_owned() + &text;
        BenchError::silent(format!("memory.py, asked for {question},"), said.trim())
    })
}

/// Every page as it was written, or an error.
pub(super) fn verify(host: &Host, before: &[&str], memory_mib: u32) -> Result<(), BenchError> {
    let verdict = ask(host, before, "verify")?;
    let pages = u64::from(memory_mib) << 8;
    if verdict["ok"] == true && verdict["pages"] == pages {
        return Ok(());
    }
    let why = verdict["reason"].as_str().map_or_else(|| verdict.to_string(), str::to_owned);
    Err(BenchError::Wrong { what: "memory.py".to_owned(), why })
}

/// The longest gap of a report that began within a span of unix milliseconds, milliseconds.
pub(super) fn longest_gap_ms(report: &Value, length: &str, span: (f64, f64)) -> Option<f64> {
    let gaps = report["gaps"].as_array()?.iter();
    let inside =
        gaps.filter(|gap| gap["from_unix_ms"].as_f64().is_some_and(|at| at >= span.0 && at <= span.1));
    inside.filter_map(|gap| gap[length].as_f64()).reduce(f64::max)
}

/// Removes a container from a host, wherever its files are there: in the lab's folder or in the agent's.
pub(super) fn remove(host: &Host, id: &ContainerId) -> Result<(), BenchError> {
    host.delete_container(id)?;
    let home = format!("/var/lib/decamp/containers/{id}");
    host.shell(&format!(
        "awk -v home={home}/ 'index($5, home) == 1 {{print $5}}' /proc/self/mountinfo | sort -r | while read -r at; do
         umount \"$at\"; done; rm -rf {home}"
    ))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn addresses_are_used_again_only_after_all_others() {
        let (id, address) = identity("idle", 1).unwrap();
        assert_eq!((id.as_str(), address), ("bench-idle-1", Ipv4Addr::new(10, 77, 0, 61)));
        assert_eq!(identity("idle", 149).unwrap().1.octets()[3], 209);
        assert_eq!(identity("idle", 150).unwrap().1.octets()[3], 60);
    }

    #[test]
    fn a_gap_counts_when_it_began_in_the_span() {
        let report = json!({"gaps": [{"real_ms": 9.0, "from_unix_ms": 50.0}, {"real_ms": 3.0, "from_unix_ms": 150.0}]});
        assert_eq!(longest_gap_ms(&report, "real_ms", (100.0, 200.0)), Some(3.0));
        assert_eq!(longest_gap_ms(&report, "real_ms", (300.0, 400.0)), None);
        assert_eq!(longest_gap_ms(&Value::Null, "real_ms", (0.0, 1e9)), None);
    }
}
