//! How fast: printed (`--nocapture`), not judged. The yardstick is one thread that only installs pages, in the same minute.

use super::harness::{folder, lent, resident};

const PAGES: u64 = 64 * 1024;

#[tokio::test]
async fn rate_and_latency_are_printed() {
    for touches in [0, 2000] {
        let dir = folder();
        let (pager, mut task, _) = lent(dir.path(), PAGES).await;
        let before: f64 = task.ask(&format!("bulk {PAGES}")).parse().unwrap();
        task.must("restored");
        let waits = if touches > 0 { task.ask(&format!("latency {touches}")) } else { String::new() };
        resident(&pager).await;
        let after: f64 = task.ask(&format!("bulk {PAGES}")).parse().unwrap();
        let report = pager.report().unwrap();
        #[expect(clippy::cast_precision_loss, reason = "printed")]
        let rate = (report.pages_total as f64 / 256.0) / (report.after_ms.max(1) as f64 / 1000.0);
        println!(
            "fill {rate:.0} MiB/s, plain copy {before:.0} and {after:.0} MiB/s, {} faults; {waits}",
            report.faults
        );
        task.must("all");
    }
}
