//! Clients beside the containers, on the lab's client host: a program in the background that writes a report when it ends.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use super::error::BenchError;
use crate::lab::{Background, Host, WORKLOADS_IN_HOST};

/// How long a client may take to begin, and to take the answers that are due at the end.
const DEADLINE: Duration = Duration::from_secs(60);

/// A client under way; dropping it ends it.
#[derive(Debug)]
pub(super) struct Client {
    process: Background,
    host: Host,
    program: &'static str,
    report: String,
}

impl Client {
    /// Starts a workload that takes an address, `--report FILE` and `more`, and ends at SIGTERM with a report.
    pub(super) fn start(
        host: &Host,
        program: &'static str,
        address: Ipv4Addr,
        number: u32,
        more: &[&str],
    ) -> Result<Self, BenchError> {
        let path = format!("{WORKLOADS_IN_HOST}/{program}");
        let report = format!("/tmp/{program}-{number}.json");
        let address = address.to_string();
        let mut argv = vec!["python3", "-u", &path, &address, "--report", &report];
        argv.extend(more);
        let process = host.spawn(&argv, &[], &format!("{program}-{number}.log"))?;
        let mut client = Self { process, host: host.clone(), program, report };
        client.wait_until_caught()?;
        Ok(client)
    }

    /// Until it handles SIGTERM, which would end it without a report before (proc_pid_status(5), SigCgt).
    fn wait_until_caught(&mut self) -> Result<(), BenchError> {
        let until = Instant::now() + DEADLINE;
        while Instant::now() < until && self.process.ended()?.is_none() {
            let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.pid()));
            let status = status.unwrap_or_default();
            let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).map(str::trim);
            let mask = mask.and_then(|mask| u64::from_str_radix(mask, 16).ok()).unwrap_or(0);
            if mask & (1 << (Signal::SIGTERM as i32 - 1)) != 0 {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Err(self.silent())
    }

    fn silent(&self) -> BenchError {
        BenchError::silent(self.program, std::fs::read_to_string(self.process.log()).unwrap_or_default())
    }

    /// Its last report, which must say that all was right.
    pub(super) fn end(mut self) -> Result<Value, BenchError> {
        self.process.signal(Signal::SIGTERM);
        self.process.wait(DEADLINE)?;
        let bytes = std::fs::read(self.host.outer_path(&self.report)).map_err(|_| self.silent())?;
        let report: Value = serde_json::from_slice(&bytes)
            .map_err(|error| BenchError::silent(self.program, error.to_string()))?;
        if report["ok"] == true {
            return Ok(report);
        }
        let why = report["reason"].as_str().unwrap_or("it had no answers").to_owned();
        Err(BenchError::Wrong { what: self.program.to_owned(), why })
    }
}
