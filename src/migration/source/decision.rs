//! After Commit was sent only the destination knows whether the container runs there. It is asked until it says so: never a
//! timeout, never a guess.

use std::time::Duration;

use tokio::io::AsyncWriteExt;

use super::super::guard::Cancel;
use super::super::{Host, MigrationError};
use super::Source;
use super::negotiate::open;
use crate::journal::Record;
use crate::protocol::frame::{FrameError, read_message, write_message};
use crate::rpc::v1::{
    Phase, Query, QueryAnswer, Running, control_frame::Body, query_answer, stream_hello::Role,
};

/// Between two questions.
const ASK_AGAIN: Duration = Duration::from_secs(1);
const QUESTION_WITHIN: Duration = Duration::from_secs(10);

/// What the destination said.
#[derive(Debug)]
pub enum Decision {
    /// It runs there.
    Runs(Running),
    /// It never will, in that epoch.
    Refused(String),
    /// We are stopping and do not know yet.
    Unknown(String),
}

impl Source {
    pub(super) async fn decide(&mut self, sent: Result<(), MigrationError>) -> Decision {
        let answered = match sent {
            Ok(()) => self.running_or_refused().await,
            Err(error) => Err(error),
        };
        let error = match answered {
            Ok(decision) => return decision,
            Err(error) => error,
        };
        self.progress.enter(Phase::InDoubt);
        self.progress.note(format!(
            "the answer to the commit was lost ({}): the container stays frozen here until {} says whether it runs there",
            super::super::error::chain(&error),
            self.request.to
        ));
        let decision = resolve(&self.host, &self.record, self.guard.cancel()).await;
        if matches!(decision, Decision::Runs(_)) {
            self.progress.note(format!("{} says that it runs there", self.request.to));
        }
        decision
    }

    async fn running_or_refused(&mut self) -> Result<Decision, MigrationError> {
        loop {
            match self.session.next().await {
                Ok(Body::Running(running)) if running.epoch == self.record.epoch.0 => {
                    return Ok(Decision::Runs(running));
                }
                Ok(_) => {}
                // After a commit only "refused" is a decision; it fences the epoch.
                Err(MigrationError::Peer { message, .. }) => return Ok(Decision::Refused(message)),
                Err(error) => return Err(error),
            }
        }
    }
}

/// Asks the destination until it answers. A cancel is not obeyed here (nobody may guess), only the agent's own end is.
pub async fn resolve(host: &Host, record: &Record, stop: &Cancel) -> Decision {
    loop {
        match tokio::time::timeout(QUESTION_WITHIN, ask(host, record)).await {
            Ok(Ok(answer)) => match answer.state() {
                query_answer::State::Running => {
                    return Decision::Runs(Running {
                        epoch: record.epoch.0,
                        resumed_us: answer.resumed_us,
                        ..Default::default()
                    });
                }
                query_answer::State::Refused => return Decision::Refused(answer.message),
                query_answer::State::Committed | query_answer::State::Unspecified => {}
            },
            Ok(Err(error)) => {
                tracing::warn!(migration = %record.migration, container = %record.container, peer = %record.peer,
                    error = super::super::error::chain(&error), "in doubt: the destination cannot be asked yet");
            }
            Err(_) => {
                tracing::warn!(migration = %record.migration, peer = %record.peer, "in doubt: no answer yet");
            }
        }
        if host.stopping.is_cancelled() {
            return Decision::Unknown("the agent is stopping".to_owned());
        }
        tokio::select! {
            () = tokio::time::sleep(ASK_AGAIN) => {}
            () = host.stopping.cancelled() => {}
        }
        if stop.is_cancelled() {
            tracing::info!(migration = %record.migration, "a cancel came after the commit; only the destination's answer decides now");
        }
    }
}

async fn ask(host: &Host, record: &Record) -> Result<QueryAnswer, MigrationError> {
    let (_, address) = host
        .settings
        .peer(record.peer.as_str())
        .map_err(|reason| MigrationError::Refused { by: host.id.to_string(), reasons: vec![reason] })?;
    let link = host.endpoint.connect(address, &record.peer).await?;
    let mut stream = open(&link, Role::Query, &record.migration).await?;
    let query = Query { migration_id: record.migration.to_string(), epoch: record.epoch.0 };
    write_message(&mut stream, &query).await?;
    stream.flush().await.map_err(FrameError::Io)?;
    Ok(read_message(&mut stream).await?)
}
