//! Medians and ratios are of the runs that they name, and nothing is called measured that was not.

use serde_json::json;

use super::*;
use crate::bench::migrate::Migrated;
use crate::bench::plan::Job;

fn run(mode: Mode, memory_mib: u32, downtime_ms: f64) -> Run {
    let summary = json!({"total_us": 1_000_000, "bytes_sent": 1 << 20});
    let migrated = Migrated { span: (0.0, 1.0), precopy_unix_ms: 0.0, summary };
    Run::of(Job { mode, memory_mib }, &migrated, downtime_ms)
}

fn options(modes: &[Mode]) -> Options {
    Options { runs: 3, memory_mib: vec![64, 1024, 2048], redis_mib: 64, modes: modes.to_vec() }
}

#[test]
fn ratios_are_of_medians_and_the_warm_up_counts_for_nothing() {
    let mut report = Report::new(&options(&Mode::ALL));
    report.add(0, vec![run(Mode::Idle, 2048, 9999.0)], 1);
    for (round, noise) in [(1, 0.0), (2, 500.0), (3, 1.0)] {
        let runs = vec![
            run(Mode::Idle, 64, 20.0),
            run(Mode::Idle, 1024, 21.0),
            run(Mode::Idle, 2048, 22.0 + noise),
            run(Mode::Empty, 0, 17.5),
            run(Mode::ByHand, 0, 100.0),
            run(Mode::Writer25, 1024, 42.0),
        ];
        report.add(round, runs, 2_000_000_000);
    }
    report.finish();
    assert_eq!(report.runs.len(), 18);
    assert!(report.runs.iter().all(|run| run.floor_ms == Some(17.5)));
    let value = |name: &str| report.summary[name];
    assert_eq!(value("ratio_2048_64"), Some(23.0 / 20.0));
    assert_eq!(value("ratio_1024_floor"), Some(1.2));
    assert_eq!(value("ratio_floor_runc_by_hand"), Some(0.175));
    assert_eq!(value("ratio_writer_25_idle"), Some(2.0));
    assert_eq!(value("ratio_writer_50_idle"), None);
    assert_eq!(
        (report.goals["ratio_2048_64"].met, report.goals["ratio_writer_25_idle"].met),
        (Some(true), Some(false))
    );
    assert_eq!(report.goals["ratio_writer_50_idle"].met, None);
    let document = serde_json::to_value(&report).unwrap();
    assert_eq!(document["runs"][0]["mode"], "idle");
    assert!(document["summary"]["ratio_fill_uffdio_copy"].is_null());
}

#[test]
fn memory_and_redis_are_held_against_what_is_allowed() {
    let mut report = Report::new(&options(&Mode::ALL));
    let mut idle = run(Mode::Idle, 2048, 20.0);
    idle.fill_bytes_per_s = Some(1_500_000_000);
    idle.agent_memory_bytes = Some((64 << 20) + (2048 << 20) / 100);
    let mut redis = run(Mode::RedisClosed, 64, 20.0);
    redis.redis = Some(RedisNumbers {
        quiet_commands_per_s: Some(1000.0),
        precopy_commands_per_s: Some(950.0),
        ..RedisNumbers::default()
    });
    report.add(1, vec![idle, redis], 2_000_000_000);
    report.finish();
    assert_eq!(report.summary["ratio_fill_uffdio_copy"], Some(0.75));
    assert_eq!(report.summary["redis_throughput_precopy_quiet"], Some(0.95));
    assert_eq!(report.summary["redis_p99_fill_quiet"], None);
    let memory = report.summary["ratio_agent_memory_allowed"].unwrap();
    assert!((memory - 1.0).abs() < 1e-3, "{memory}");
    report.failures.push("round 1, idle 64 MiB: memory.py is wrong after the migration".to_owned());
    let text = lines(&report, Style::PLAIN).join("\n");
    assert!(text.contains("redis-closed") && text.contains("1 runs failed"), "{text}");
}
