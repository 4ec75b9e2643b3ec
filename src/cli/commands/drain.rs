//! `decamp drain`: every running container, a few at a time, and a table at the end. One failure does not stop the others.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use tokio::task::JoinSet;

use crate::cli::args::DrainArgs;
use crate::cli::connect::Agent;
use crate::cli::follow::{End, Follower, OnInterrupt, SharedView, lock};
use crate::cli::interrupts::Interrupts;
use crate::cli::terminal::Terminal;
use crate::cli::view::View;
use crate::cli::{Complaint, Exit};
use crate::human::{Column, Paint, Style, Table, bytes, duration_us};
use crate::rpc::v1::{ContainerInfo, Event, Failure, ListRequest, Summary, event::Body};

/// How one container ended.
#[derive(Debug)]
struct Row {
    container: String,
    exit: Exit,
    summary: Option<Box<Summary>>,
    why: String,
}

/// Moves them all.
pub(crate) async fn drain(args: &DrainArgs, terminal: Terminal) -> Result<Exit, Complaint> {
    let agent = Agent::connect(&args.agent).await?;
    let interrupts = Interrupts::listen()?;
    let reply = agent.answer("list its containers", agent.client.clone().list(ListRequest {})).await?;
    let view: SharedView = Arc::new(Mutex::new(View::new(terminal, args.telling, true)));
    let (running, left_alone): (Vec<_>, Vec<_>) =
        reply.containers.into_iter().partition(|c| c.status == "running");
    if running.is_empty() {
        lock(&view).line("no running container on this host: nothing to do");
    }
    let order: Vec<String> = running.iter().map(|container| container.id.clone()).collect();
    let mut rows = all(args, &agent, &interrupts, &view, running).await;
    rows.sort_by_key(|row| order.iter().position(|id| *id == row.container));
    let mut view = lock(&view);
    let written = view.finish();
    if !rows.is_empty() {
        table(&rows, terminal.out).iter().for_each(|line| view.line(line));
    }
    for container in left_alone.iter().filter(|container| container.status == "paused") {
        view.line(&format!("{} is paused and was left alone", crate::human::clean(&container.id)));
    }
    written.and_then(|()| view.finish())?;
    let exits: Vec<Exit> = rows.iter().map(|row| row.exit).collect();
    Ok(Exit::of_many(&exits))
}

async fn all(
    args: &DrainArgs,
    agent: &Agent,
    interrupts: &Interrupts,
    view: &SharedView,
    running: Vec<ContainerInfo>,
) -> Vec<Row> {
    let mut waiting: VecDeque<ContainerInfo> = running.into();
    let mut rows = Vec::new();
    let mut moving = JoinSet::new();
    loop {
        while moving.len() < usize::from(args.jobs) && interrupts.count() == 0 {
            let Some(container) = waiting.pop_front() else { break };
            let (agent, view, interrupts) = (agent.clone(), Arc::clone(view), interrupts.clone());
            let request = args.options.request(&container.id);
            moving.spawn(async move {
                // One that is on its way already is followed, so that the table tells the truth about it.
                let end = if container.migration_id.is_empty() {
                    Follower::migrate(agent, view, interrupts, request).await
                } else {
                    Follower::watch(agent, view, interrupts, container.migration_id, OnInterrupt::Stay).await
                };
                (container.id, end)
            });
        }
        match moving.join_next().await {
            Some(Ok((container, end))) => rows.push(ended(view, container, end)),
            Some(Err(panic)) => lock(view).say(&format!("a follower failed: {panic}")),
            None => break,
        }
    }
    let cancelled = |container: ContainerInfo| {
        let why = "not begun".to_owned();
        Row { container: container.id, exit: Exit::Cancelled, summary: None, why }
    };
    rows.extend(waiting.into_iter().map(cancelled));
    rows
}

fn ended(view: &SharedView, container: String, end: End) -> Row {
    let mut view = lock(view);
    let complaint = match end {
        End::Completed(summary) => {
            return Row { container, exit: Exit::Done, summary: Some(summary), why: String::new() };
        }
        End::Failed { failure, .. } => Complaint::of_failure(&container, &failure),
        End::Trouble(complaint) => {
            view.event(&as_event(&container, &complaint));
            complaint
        }
    };
    view.complain(&complaint);
    let first_reason = complaint.reasons.first().map(|reason| reason.what.clone());
    let what = complaint.facts.iter().find(|(label, _)| *label == "what").map(|(_, text)| text.clone());
    let why = what.or(first_reason).unwrap_or_else(|| complaint.headline.clone());
    Row { container, exit: complaint.exit, summary: None, why }
}

/// What the agent did not say as an event, as one: a program that reads `--json` misses nothing.
fn as_event(container: &str, complaint: &Complaint) -> Event {
    let message =
        complaint.facts.iter().fold(complaint.headline.clone(), |text, (_, fact)| format!("{text}: {fact}"));
    let failure = Failure { message, ..Failure::default() };
    Event { container: container.to_owned(), body: Some(Body::Failed(failure)), ..Event::default() }
}

fn table(rows: &[Row], style: Style) -> Vec<String> {
    let mut table = Table::new(&[
        Column::text("CONTAINER"),
        Column::text("RESULT"),
        Column::number("DOWNTIME"),
        Column::number("TOTAL"),
        Column::number("ON THE WIRE"),
        Column::text("WHY"),
    ]);
    for row in rows {
        let (word, paint) = match row.exit {
            Exit::Done => ("moved", Paint::Good),
            Exit::Cancelled => ("stays", Paint::Warn),
            Exit::InDoubt | Exit::Unreachable => ("not known", Paint::Bad),
            Exit::Refused | Exit::Usage => ("refused", Paint::Bad),
            Exit::Failed | Exit::CheckFailed => ("failed", Paint::Bad),
        };
        let number =
            |text: fn(&Summary) -> String| (row.summary.as_deref().map_or_else(String::new, text), None);
        table.painted_row([
            (row.container.clone(), Some(Paint::Strong)),
            (word.to_owned(), Some(paint)),
            number(|summary| duration_us(summary.downtime_us)),
            number(|summary| duration_us(summary.total_us)),
            number(|summary| bytes(summary.bytes_sent)),
            (row.why.clone(), None),
        ]);
    }
    let moved = rows.iter().filter(|row| row.exit == Exit::Done).count();
    let mut lines = table.lines(style);
    lines.push(format!("{moved} of {} moved", rows.len()));
    lines
}
