//! The commands that this room does itself; nearly all are clients of an agent.

mod ask;
mod completions;
mod drain;
mod migrate;
mod tables;
mod watch;

pub(crate) use ask::{cancel, history, info, ls};
pub(crate) use completions::completions;
pub(crate) use drain::drain;
pub(crate) use migrate::migrate;
pub(crate) use watch::watch;
