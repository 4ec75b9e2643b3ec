//! `decamp watch`: one migration to its end, or all that are in flight.

use std::sync::{Arc, Mutex};

use crate::cli::args::WatchArgs;
use crate::cli::connect::{Agent, explain};
use crate::cli::follow::{Follower, OnInterrupt, lock};
use crate::cli::interrupts::Interrupts;
use crate::cli::terminal::Terminal;
use crate::cli::view::View;
use crate::cli::{Complaint, Exit};
use crate::rpc::v1::{Event, WatchRequest, event::Body};

/// Shows what the agent tells; changes nothing.
pub(crate) async fn watch(args: &WatchArgs, terminal: Terminal) -> Result<Exit, Complaint> {
    let agent = Agent::connect(&args.agent).await?;
    let interrupts = Interrupts::listen()?;
    let view = Arc::new(Mutex::new(View::new(terminal, args.telling, args.which.is_none())));
    let result = match &args.which {
        Some(which) => {
            let end =
                Follower::watch(agent, Arc::clone(&view), interrupts, which.to_string(), OnInterrupt::Leave)
                    .await;
            end.into_result()
        }
        None => all(&agent, &view, interrupts).await,
    };
    let written = lock(&view).finish();
    let exit = result?;
    written.map(|()| exit)
}

/// Until the agent has nothing more to tell, or the operator has seen enough: both are the normal end.
async fn all(agent: &Agent, view: &Arc<Mutex<View>>, mut interrupts: Interrupts) -> Result<Exit, Complaint> {
    let mut client = agent.client.clone();
    let call = client.watch(WatchRequest { which: String::new() });
    let mut stream = agent.answer("show its migrations", call).await?;
    let mut told_any = false;
    loop {
        let event = tokio::select! {
            event = stream.message() => event,
            () = interrupts.next() => return Ok(Exit::Done),
        };
        match event {
            Ok(Some(event)) => {
                told_any = true;
                tell(view, &event);
            }
            Ok(None) => {
                if !told_any {
                    lock(view).line("no migration is in flight");
                }
                return Ok(Exit::Done);
            }
            Err(status) => {
                let headline = format!("the connection to the agent at {} was lost", agent.address);
                return Err(Complaint::new(Exit::Unreachable, headline)
                    .fact("what", explain(&status))
                    .fact("now", "migrations in flight go on; watching changes nothing")
                    .fact("next", "`decamp watch` again, and `decamp history`"));
            }
        }
    }
}

fn tell(view: &Arc<Mutex<View>>, event: &Event) {
    let mut view = lock(view);
    view.event(event);
    if let Some(Body::Failed(failure)) = &event.body {
        view.complain(&Complaint::of_failure(&event.container, failure));
    }
}
