//! One file per command that is a client of an agent.

mod ask;
mod drain;
mod migrate;
mod tables;
mod watch;

pub(crate) use ask::{cancel, history, info, ls};
pub(crate) use drain::drain;
pub(crate) use migrate::migrate;
pub(crate) use watch::watch;
