//! Redis while it is moved. Two loads, never at once: a closed loop that takes all it can get, for throughput (redis-benchmark, 8
//! connections, each sends when it has its answer), and an open loop at a fixed rate that one Redis serves with ease, for
//! latencies, which a closed loop would hide. Commands are counted by Redis itself.
//!
//! ```text
//! ── quiet ──│─ (files) ─│── pre-copy ──│ freeze │── fill ──│
//!        migrate    first memory     largest gap       resident
//!                      round         of the samples
//! ```

use std::time::Duration;

use serde_json::Value;

use super::client::Client;
use super::error::BenchError;
use super::migrate::{DESTINATION, SOURCE};
use super::plan::{Job, Mode};
use super::statistics::percentile;
use super::subject::{self, DEADLINE};
use super::trip::{RedisNumbers, Run, watched};
use crate::lab::{Cluster, ContainerSpec, Host, Volume, WORKLOADS_IN_HOST};
use crate::model::ContainerId;

/// How long it is watched before the migration, and at least after it.
const QUIET: Duration = Duration::from_secs(4);
/// Requests a second of the open loop.
const RATE: &str = "1000";
/// Keys of the load, beside those that are only held and checked.
const KEYS: u32 = 10_000;
/// The shortest window that a number is taken from, milliseconds.
const WINDOW_MS_MIN: f64 = 100.0;

/// Moves one.
pub(super) fn run(cluster: &Cluster, job: Job, number: u32) -> Result<Run, BenchError> {
    let (id, address) = subject::identity(job.mode.word(), number)?;
    let mut spec = ContainerSpec::redis(id.clone(), address);
    spec.volumes.push(Volume {
        source: WORKLOADS_IN_HOST.into(),
        destination: "/workloads".into(),
        read_only: true,
    });
    let ticker = "python3 -u /workloads/gap.py --status /data/gap.json & exec \"$@\"";
    spec.args.splice(0..0, ["sh", "-c", ticker, "sh"].map(str::to_owned));
    cluster.host(SOURCE)?.run_container(&spec)?;
    let moved = moved(cluster, job, &id, address, number);
    let removed = [SOURCE, DESTINATION].map(|host| subject::remove(&cluster.host(host)?, &id));
    let run = moved?;
    removed.into_iter().collect::<Result<Vec<()>, _>>()?;
    Ok(run)
}

fn moved(
    cluster: &Cluster,
    job: Job,
    id: &ContainerId,
    address: std::net::Ipv4Addr,
    number: u32,
) -> Result<Run, BenchError> {
    let client = cluster.lab.client()?;
    let mib = job.memory_mib.to_string();
    let wait =
        "for i in $(seq 200); do redis-cli -h \"$1\" ping >/dev/null 2>&1 && exit; sleep 0.1; done; exit 1";
    client.exec(&["sh", "-c", wait, "wait", &address.to_string()])?;
    tool(&client, "fill_redis.py", &[&address.to_string(), "--mib", &mib])?;
    let rate = if job.mode == Mode::RedisOpen { RATE } else { "0" };
    let keys = KEYS.to_string();
    let load = Client::start(&client, "redis_load.py", address, number, &["--rate", rate, "--keys", &keys])?;
    let saturating = match job.mode {
        Mode::RedisClosed => Some(saturate(&client, &address.to_string(), number)?),
        _ => None,
    };
    std::thread::sleep(QUIET);
    let (migrated, peak) = watched(cluster, id)?;
    std::thread::sleep(QUIET / 4);
    let broke = saturating.map(|mut process| process.ended()).transpose()?.flatten();
    let load = load.end()?;
    if let Some(code) = broke {
        return Err(BenchError::silent(
            "redis-benchmark",
            format!("it ended with code {code} in the middle"),
        ));
    }
    let gap = inside_gap(&cluster.host(DESTINATION)?, id, migrated.span)?;
    let mut run = Run::of(job, &migrated, gap);
    run.agent_memory_bytes = Some(peak);
    let samples = pairs(&load["samples"]);
    let freeze = largest_gap(&samples, migrated.span)
        .ok_or_else(|| BenchError::silent("redis_load.py", "no samples from the time of the migration"))?;
    run.client_gap_ms = Some(freeze.1 - freeze.0);
    let fill_ends = run.resident_after_ms.map_or(freeze.1, |ms| freeze.1 + ms);
    let quiet = (migrated.span.0 - QUIET.as_secs_f64() * 900.0, migrated.span.0);
    let windows = [quiet, (migrated.precopy_unix_ms, freeze.0), (freeze.1, fill_ends)];
    run.redis = Some(numbers(job.mode, &samples, &pairs(&load["latencies"]), windows));
    let more = ["--other-keys", &keys];
    let checked =
        tool(&client, "check_redis.py", &[&[&*address.to_string(), "--mib", &mib], &more[..]].concat())?;
    if checked["ok"] != true {
        return Err(BenchError::Wrong { what: "redis".into(), why: checked["reason"].to_string() });
    }
    run.verified = true;
    Ok(run)
}

fn numbers(
    mode: Mode,
    samples: &[(f64, f64)],
    latencies: &[(f64, f64)],
    [quiet, precopy, fill]: [(f64, f64); 3],
) -> RedisNumbers {
    if mode == Mode::RedisClosed {
        return RedisNumbers {
            quiet_commands_per_s: commands_per_s(samples, quiet),
            precopy_commands_per_s: commands_per_s(samples, precopy),
            fill_commands_per_s: commands_per_s(samples, fill),
            ..RedisNumbers::default()
        };
    }
    RedisNumbers {
        quiet_p99_us: p99(latencies, quiet),
        precopy_p99_us: p99(latencies, precopy),
        fill_p99_us: p99(latencies, fill),
        ..RedisNumbers::default()
    }
}

/// Starts the load that takes all it can get.
fn saturate(client: &Host, address: &str, number: u32) -> Result<crate::lab::Background, BenchError> {
    // Only keys that redis_load.py has made: the number of keys must stay what check_redis.py expects.
    let argv = [
        "redis-benchmark",
        "-h",
        address,
        "-c",
        "8",
        "-r",
        &KEYS.to_string(),
        "-n",
        "2000000000",
        "-q",
        "set",
    ]
    .map(str::to_owned);
    let words = argv.into_iter().chain(["load:__rand_int__", "a value that is not long"].map(str::to_owned));
    Ok(client.spawn(&words.collect::<Vec<_>>(), &[], &format!("redis-benchmark-{number}.log"))?)
}

/// Runs a workload on the client host to its end; its last line is JSON.
fn tool(client: &Host, program: &str, args: &[&str]) -> Result<Value, BenchError> {
    let path = format!("{WORKLOADS_IN_HOST}/{program}");
    let argv: Vec<&str> = ["python3", &path].into_iter().chain(args.iter().copied()).collect();
    let output = client.exec_with(&argv, b"", DEADLINE)?;
    let text = output.text();
    let last = text.lines().next_back().unwrap_or_default();
    serde_json::from_str(last)
        .map_err(|_| BenchError::silent(program, String::from_utf8_lossy(&output.stderr)))
}

/// What the ticker in the container saw.
fn inside_gap(host: &Host, id: &ContainerId, span: (f64, f64)) -> Result<f64, BenchError> {
    let text = host.exec(&["runc", "exec", id.as_str(), "cat", "/data/gap.json"])?;
    let report =
        serde_json::from_str(&text).map_err(|error| BenchError::silent("gap.py", error.to_string()))?;
    let gap = subject::longest_gap_ms(&report, "real_ms", span);
    gap.ok_or_else(|| BenchError::silent("gap.py", "no gap began during the migration"))
}

fn pairs(list: &Value) -> Vec<(f64, f64)> {
    let rows = list.as_array().into_iter().flatten();
    rows.filter_map(|row| Some((row[0].as_f64()?, row[1].as_f64()?))).collect()
}

/// The two neighbours that are farthest apart, begun within the span.
fn largest_gap(samples: &[(f64, f64)], span: (f64, f64)) -> Option<(f64, f64)> {
    let gaps = samples.windows(2).map(|pair| (pair[0].0, pair[1].0));
    gaps.filter(|gap| gap.0 >= span.0 && gap.0 <= span.1).max_by(|a, b| (a.1 - a.0).total_cmp(&(b.1 - b.0)))
}

/// Commands between the first and the last sample of a window, by the time between them.
fn commands_per_s(samples: &[(f64, f64)], window: (f64, f64)) -> Option<f64> {
    let inside: Vec<_> =
        samples.iter().filter(|sample| sample.0 >= window.0 && sample.0 <= window.1).collect();
    let (first, last) = (inside.first()?, inside.last()?);
    let ms = last.0 - first.0;
    (ms >= WINDOW_MS_MIN).then(|| (last.1 - first.1) / ms * 1e3)
}

/// Of the requests that were due in a window.
fn p99(latencies: &[(f64, f64)], window: (f64, f64)) -> Option<f64> {
    let due = latencies.iter().filter(|request| request.0 >= window.0 && request.0 <= window.1);
    let inside: Vec<f64> = due.map(|request| request.1).collect();
    (window.1 - window.0 >= WINDOW_MS_MIN).then(|| percentile(&inside, 99)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_cut_out_of_samples() {
        let samples: Vec<(f64, f64)> =
            (0..100).map(|at| (f64::from(at) * 20.0, f64::from(at) * 100.0)).collect();
        let rate = commands_per_s(&samples, (100.0, 1000.0)).unwrap();
        assert!((rate - 5000.0).abs() < 1e-6, "{rate}");
        assert_eq!(commands_per_s(&samples, (100.0, 150.0)), None);
        let mut stopped = samples.clone();
        stopped.drain(50..60);
        assert_eq!(largest_gap(&stopped, (0.0, 2000.0)), Some((980.0, 1200.0)));
        assert_eq!(largest_gap(&stopped, (1100.0, 1110.0)), None);
    }

    #[test]
    fn latencies_count_where_they_were_due() {
        let latencies: Vec<(f64, f64)> = (0..1000).map(|at| (f64::from(at), f64::from(at % 100))).collect();
        assert_eq!(p99(&latencies, (0.0, 999.0)), Some(98.0));
        assert_eq!(p99(&latencies, (0.0, 50.0)), None);
        let numbers = numbers(Mode::RedisOpen, &[], &latencies, [(0.0, 999.0), (0.0, 500.0), (900.0, 900.0)]);
        assert!(numbers.quiet_p99_us.is_some() && numbers.fill_p99_us.is_none());
        assert!(numbers.quiet_commands_per_s.is_none());
    }
}
