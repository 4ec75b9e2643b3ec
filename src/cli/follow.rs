//! Follows one migration to its end, whatever ends it: its own outcome, a lost agent, or an operator who leaves.
//!
//! ```text
//!              first event names it          completed / failed
//!  asked ────────────────────────▶ following ──────────────────▶ outcome
//!    │ refused by the agent           │  │ 1st signal: cancel is asked for, following goes on
//!    ▼                                │  │ 2nd signal ─▶ left     (exit 6: the outcome is not known here)
//!  complaint                          └──── stream ends ─▶ lost  (exit 6)
//! ```
//!
//! It must never cancel a migration that is not the one it started: cancelling waits until the agent has named it.

use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tonic::{Code, Response, Status, Streaming};

use super::connect::{Agent, explain};
use super::interrupts::Interrupts;
use super::view::View;
use super::{Complaint, Exit};
use crate::human::clean;
use crate::rpc::v1::{CancelRequest, Event, Failure, MigrateRequest, Summary, WatchRequest, event::Body};

/// How long the agent may take to take a request to cancel.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(10);

/// A view that several followers share.
pub(crate) type SharedView = Arc<Mutex<View>>;

/// Locks the view; it holds no invariant that a panic could break.
pub(crate) fn lock(view: &SharedView) -> MutexGuard<'_, View> {
    view.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How following ended.
#[derive(Debug)]
pub(crate) enum End {
    /// Moved.
    Completed(Box<Summary>),
    /// The agent says that it failed.
    Failed {
        /// Of which container.
        container: String,
        /// Its words.
        failure: Box<Failure>,
    },
    /// The agent would not begin, was lost, or was left.
    Trouble(Complaint),
}

impl End {
    /// As the result of a command.
    pub(crate) fn into_result(self) -> Result<Exit, Complaint> {
        match self {
            Self::Completed(_) => Ok(Exit::Done),
            Self::Failed { container, failure } => Err(Complaint::of_failure(&container, &failure)),
            Self::Trouble(complaint) => Err(complaint),
        }
    }
}

/// What an interrupt does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnInterrupt {
    /// The first asks to cancel, the second leaves: what this command started.
    Cancel,
    /// The first does nothing, the second leaves: what somebody else started and this command waits for.
    Stay,
    /// The first leaves: what is only watched.
    Leave,
}

/// One migration that is followed.
#[derive(Debug)]
pub(crate) struct Follower {
    agent: Agent,
    view: SharedView,
    interrupts: Interrupts,
    /// What the operator called it.
    subject: String,
    on_interrupt: OnInterrupt,
    /// Learnt from the first event.
    id: String,
    interrupted: bool,
    asked_cancel: bool,
}

impl Follower {
    /// Starts a migration and follows it.
    pub(crate) async fn migrate(
        agent: Agent,
        view: SharedView,
        interrupts: Interrupts,
        request: MigrateRequest,
    ) -> End {
        let mut client = agent.client.clone();
        let follower = Self::new(agent, view, interrupts, request.container.clone(), OnInterrupt::Cancel);
        follower.run("migrate", client.migrate(request)).await
    }

    /// Follows a migration that somebody else started.
    pub(crate) async fn watch(
        agent: Agent,
        view: SharedView,
        interrupts: Interrupts,
        which: String,
        on_interrupt: OnInterrupt,
    ) -> End {
        let mut client = agent.client.clone();
        let follower = Self::new(agent, view, interrupts, which.clone(), on_interrupt);
        follower.run("watch", client.watch(WatchRequest { which })).await
    }

    fn new(
        agent: Agent,
        view: SharedView,
        interrupts: Interrupts,
        subject: String,
        on_interrupt: OnInterrupt,
    ) -> Self {
        let (id, interrupted, asked_cancel) = (String::new(), false, false);
        Self { agent, view, interrupts, subject, on_interrupt, id, interrupted, asked_cancel }
    }

    async fn run<C>(mut self, verb: &str, call: C) -> End
    where
        C: Future<Output = Result<Response<Streaming<Event>>, Status>>,
    {
        let mut call = pin!(call);
        let mut stream = loop {
            tokio::select! {
                answer = &mut call => match answer {
                    Ok(response) => break response.into_inner(),
                    Err(status) => return End::Trouble(self.not_begun(verb, &status)),
                },
                () = self.interrupts.next() => if let Some(end) = self.interrupted() { return end },
            }
        };
        loop {
            tokio::select! {
                event = stream.message() => match event {
                    Ok(Some(event)) => if let Some(end) = self.event(&event) { return end },
                    Ok(None) => return End::Trouble(self.lost("the agent ended the stream before the outcome")),
                    Err(status) => return End::Trouble(self.lost(&explain(&status))),
                },
                () = self.interrupts.next() => if let Some(end) = self.interrupted() { return end },
            }
        }
    }

    fn event(&mut self, event: &Event) -> Option<End> {
        lock(&self.view).event(event);
        if self.id.is_empty() {
            self.id.clone_from(&event.migration_id);
            if self.interrupted {
                self.ask_cancel();
            }
        }
        match &event.body {
            Some(Body::Completed(summary)) => Some(End::Completed(Box::new(summary.clone()))),
            Some(Body::Failed(failure)) => {
                let container = if event.container.is_empty() { &self.subject } else { &event.container };
                Some(End::Failed { container: container.clone(), failure: Box::new(failure.clone()) })
            }
            _ => None,
        }
    }

    fn interrupted(&mut self) -> Option<End> {
        if self.interrupted || self.on_interrupt == OnInterrupt::Leave {
            return Some(End::Trouble(self.left()));
        }
        self.interrupted = true;
        let subject = clean(&self.subject);
        if self.on_interrupt == OnInterrupt::Stay {
            lock(&self.view).say(&format!("{subject} was not started here and goes on; Ctrl-C again leaves"));
        } else if self.id.is_empty() {
            let when = "as soon as the agent has named the migration";
            lock(&self.view).say(&format!("{subject} will be cancelled {when}; Ctrl-C again leaves"));
        } else {
            self.ask_cancel();
        }
        None
    }

    fn ask_cancel(&mut self) {
        if self.on_interrupt != OnInterrupt::Cancel || self.id.is_empty() || self.asked_cancel {
            return;
        }
        self.asked_cancel = true;
        let subject = clean(&self.subject);
        let text = format!(
            "asking the agent to cancel the migration of {subject}; following it to its end, Ctrl-C again leaves"
        );
        lock(&self.view).say(&text);
        let (mut client, view) = (self.agent.client.clone(), Arc::clone(&self.view));
        let request =
            CancelRequest { which: self.id.clone(), why: "interrupted at the command line".to_owned() };
        tokio::spawn(async move {
            let answer = tokio::time::timeout(CANCEL_TIMEOUT, client.cancel(request)).await;
            let trouble = match answer {
                Ok(Ok(reply)) if reply.get_ref().accepted => return,
                Ok(Ok(reply)) => reply.into_inner().message,
                Ok(Err(status)) => explain(&status),
                Err(_) => "the agent did not answer".to_owned(),
            };
            lock(&view).say(&format!("{subject} was not cancelled: {}", clean(&trouble)));
        });
    }

    /// The call itself failed. Some answers mean for certain that nothing began; with the others nobody knows.
    fn not_begun(&self, verb: &str, status: &Status) -> Complaint {
        let certain = matches!(
            status.code(),
            Code::InvalidArgument
                | Code::NotFound
                | Code::OutOfRange
                | Code::FailedPrecondition
                | Code::AlreadyExists
                | Code::ResourceExhausted
                | Code::PermissionDenied
                | Code::Unauthenticated
                | Code::Unimplemented
        );
        if certain || self.on_interrupt != OnInterrupt::Cancel {
            return self.agent.refused(&format!("{verb} {}", self.subject), status);
        }
        self.lost(&explain(status))
    }

    fn lost(&self, why: &str) -> Complaint {
        let headline = format!("the connection to the agent at {} was lost", self.agent.address);
        self.unknown(headline).fact("what", why).fact(
            "now",
            format!("the state of the migration of {} is not known here; it may go on, have ended, or have been rolled back", self.subject),
        )
        .fact("next", self.how_to_find_out())
    }

    fn left(&self) -> Complaint {
        let headline = format!("stopped following {}", self.subject);
        let now = match (self.on_interrupt, self.asked_cancel) {
            (_, true) => "cancelling was asked for; how it ends is not known here",
            (OnInterrupt::Leave, _) => "nothing was changed by watching",
            _ => "the migration goes on without this command",
        };
        self.unknown(headline).fact("now", now).fact("next", self.how_to_find_out())
    }

    fn unknown(&self, headline: String) -> Complaint {
        Complaint::new(Exit::Unreachable, headline)
    }

    fn how_to_find_out(&self) -> String {
        let which = if self.id.is_empty() { &self.subject } else { &self.id };
        format!(
            "`decamp watch {which}` while it is in flight, then `decamp history`; `decamp ls` on both hosts shows where it runs"
        )
    }
}
