//! `decamp migrate`: one container, followed to its end.

use std::sync::{Arc, Mutex};

use crate::cli::args::MigrateArgs;
use crate::cli::connect::Agent;
use crate::cli::follow::{Follower, lock};
use crate::cli::interrupts::Interrupts;
use crate::cli::terminal::Terminal;
use crate::cli::view::View;
use crate::cli::{Complaint, Exit};

/// Starts the migration and shows it.
pub(crate) async fn migrate(args: &MigrateArgs, terminal: Terminal) -> Result<Exit, Complaint> {
    let agent = Agent::connect(&args.agent).await?;
    let interrupts = Interrupts::listen()?;
    let view = Arc::new(Mutex::new(View::new(terminal, args.telling, false)));
    let request = args.options.request(args.container.as_str());
    let end = Follower::migrate(agent, Arc::clone(&view), interrupts, request).await;
    let written = lock(&view).finish();
    let exit = end.into_result()?;
    written.map(|()| exit)
}
