//! Commands with one question and one answer: ls, info, history, cancel.

use serde::Serialize;

use super::tables;
use crate::cli::args::{CancelArgs, HistoryArgs, InfoArgs, LsArgs};
use crate::cli::connect::Agent;
use crate::cli::terminal::{Screen, Terminal};
use crate::cli::{Complaint, Exit};
use crate::human::clean;
use crate::rpc::v1::{CancelRequest, HistoryRequest, InfoRequest, ListRequest};

/// Containers on the agent's host.
pub(crate) async fn ls(args: &LsArgs, terminal: Terminal) -> Result<Exit, Complaint> {
    let agent = Agent::connect(&args.agent).await?;
    let reply = agent.answer("list its containers", agent.client.clone().list(ListRequest {})).await?;
    print(args.json, &reply, || tables::containers(&reply, terminal.out))
}

/// What the agent and its host can do.
pub(crate) async fn info(args: &InfoArgs, terminal: Terminal) -> Result<Exit, Complaint> {
    let agent = Agent::connect(&args.agent).await?;
    let reply = agent.answer("describe itself", agent.client.clone().info(InfoRequest {})).await?;
    print(args.json, &reply, || tables::info(&reply, terminal.out))
}

/// Finished migrations.
pub(crate) async fn history(args: &HistoryArgs, terminal: Terminal) -> Result<Exit, Complaint> {
    let agent = Agent::connect(&args.agent).await?;
    let request = HistoryRequest { limit: args.limit };
    let reply = agent.answer("show its history", agent.client.clone().history(request)).await?;
    print(args.json, &reply, || tables::history(&reply, terminal.out))
}

/// Asks a migration to stop.
pub(crate) async fn cancel(args: &CancelArgs) -> Result<Exit, Complaint> {
    let agent = Agent::connect(&args.agent).await?;
    let request = CancelRequest { which: args.which.to_string(), why: args.why.clone() };
    let reply = agent.answer(&format!("cancel {}", args.which), agent.client.clone().cancel(request)).await?;
    let told = if reply.message.is_empty() { "no reason was given" } else { &reply.message };
    print(args.json, &reply, || {
        if !reply.accepted {
            return Vec::new();
        }
        vec![format!("{}: cancelling; `decamp watch {}` shows the end", args.which, args.which)]
    })?;
    if reply.accepted {
        return Ok(Exit::Done);
    }
    Err(Complaint::new(Exit::Refused, format!("{} is not cancelled", args.which)).fact("what", clean(told)))
}

/// One JSON document, or lines for people.
fn print<T: Serialize>(
    json: bool,
    reply: &T,
    lines: impl FnOnce() -> Vec<String>,
) -> Result<Exit, Complaint> {
    let mut screen = Screen::standard(false);
    if json {
        screen.line(&serde_json::to_string(reply).expect("a message has only strings as keys"));
    } else {
        lines().iter().for_each(|line| screen.line(line));
    }
    screen.finish().map(|()| Exit::Done)
}
