//! The demonstration: two containers move from one host to the other and back, and check themselves. This room opens the lab,
//! plays the story and reports it; it judges only what was measured, and moves nothing itself: `decamp migrate` does.
//!
//! ```text
//! open lab ─▶ start ─▶ fill ─▶ there ─▶ check ─▶ back ─▶ check ─▶ report ─▶ close (or, with --keep, at Ctrl-C)
//!                └───────────── any error, Ctrl-C, SIGTERM ───────────────────▶ close
//! ```

mod error;
mod interrupt;
mod report;
mod story;
mod workload;

pub use error::DemoError;
pub use report::{Check, Container, Report, Trip, report};

use interrupt::Interrupt;

use crate::lab::Cluster;

/// Name of the demo's lab.
const LAB: &str = "demo";

/// The demo, played to its end.
#[derive(Debug)]
pub struct Played {
    /// What was moved, and what it cost.
    pub containers: Vec<Container>,
    kept: Option<(Cluster, Interrupt)>,
}

impl Played {
    /// With `keep`: how to look at the lab that is still open.
    #[must_use]
    pub fn how_to_look(&self) -> Vec<String> {
        let Some((cluster, _)) = &self.kept else { return Vec::new() };
        let on = |host: &str, command: &str| format!("  decamp lab exec --name {LAB} {host} -- {command}");
        vec![
            String::new(),
            "the lab is kept until Ctrl-C; from another terminal:".to_owned(),
            on("node-a", "decamp ls"),
            on("node-a", "decamp history"),
            on("node-a", "decamp migrate redis --to node-b"),
            on("client", "redis-cli -h 10.77.0.50 dbsize"),
            format!("  logs of the agents: {}/agent-*.log", cluster.lab.state_dir().display()),
        ]
    }

    /// Waits for Ctrl-C if the lab was kept, then removes it.
    ///
    /// # Errors
    /// What could not be removed.
    pub fn close(self) -> Result<(), DemoError> {
        match self.kept {
            Some((cluster, interrupt)) => {
                interrupt.wait();
                Ok(cluster.lab.close()?)
            }
            None => Ok(()),
        }
    }
}

/// Plays the demo with at least `values_bytes` of values in Redis; `progress` gets the story, line by line. The lab is removed
/// before this returns, whatever happened, unless `keep` and all went well.
///
/// # Errors
/// The lab's, a migration that failed, a workload that cannot be asked, Ctrl-C. A check that fails is no error: it is reported.
pub fn run(values_bytes: u64, keep: bool, progress: &mut dyn FnMut(&str)) -> Result<Played, DemoError> {
    let interrupt = Interrupt::listen()?;
    let (containers, cluster) = story::play(values_bytes, &interrupt, progress)?;
    if keep {
        return Ok(Played { containers, kept: Some((cluster, interrupt)) });
    }
    cluster.lab.close()?;
    Ok(Played { containers, kept: None })
}
