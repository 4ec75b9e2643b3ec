//! The source's side: off the network just before the destination goes on it, and on again if the migration is aborted after
//! that. Two live holders of one address reset each other's connections.

use super::announce;
use super::capture::Capture;
use super::error::NetworkError;
use super::netns;
use super::plan::plan;
use super::prepare::{close_gate, open_gate, raise_ends};

fn names(capture: &Capture) -> Vec<String> {
    capture.host_ends.iter().map(|end| end.name.clone()).collect()
}

/// Takes the container off its bridges, from outside: its own ends, addresses and routes stay as they are.
///
/// # Errors
/// When a host end is gone; those before it in the list are down then.
pub async fn isolate(capture: &Capture) -> Result<(), NetworkError> {
    close_gate(&names(capture)).await
}

/// Brings host ends up again that an earlier run of the agent took down.
///
/// # Errors
/// When one is gone or does not come up.
pub async fn raise(host_ends: &[String]) -> Result<(), NetworkError> {
    raise_ends(host_ends).await
}

/// Undoes [`isolate`] and announces the addresses, because the destination may have announced them meanwhile.
///
/// # Errors
/// When a host end is gone or does not come up, or the announcement cannot be sent.
pub async fn rejoin(capture: &Capture) -> Result<(), NetworkError> {
    let plan = plan(&capture.descriptor, None).map_err(|reasons| NetworkError::Refused { reasons })?;
    let netns = netns::open(&capture.netns)?;
    open_gate(&plan, netns.clone(), &names(capture)).await?;
    announce::announce(&plan, netns).await
}
