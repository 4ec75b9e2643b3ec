//! The door: who calls is made to prove an address, then an identity, then looked up on the allow-list.
//!
//! ```text
//! packet ─▶ room left? ─▶ address proven (once a few are under way) ─▶ TLS, bounded in time ─▶ a host's certificate?
//!             no: BUSY      no: asked to come back                        no: TLS alert          no: NOT_A_HOST
//!        ─▶ on the allow-list? ─▶ room in the queue? ─▶ greeting ─▶ Endpoint::accept
//!             no: NOT_ALLOWED      no: BUSY
//! ```
//!
//! Every handshake is a task of its own, so a slow caller only occupies its own place, and there is a bound on places in
//! all and per address. This room must never hand out a link that has not passed every gate.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use quinn::{ConnectionError, Incoming};
use rustls_pki_types::CertificateDer;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::close;
use super::error::printable;
use super::link::{Link, canonical};
use crate::model::HostId;
use crate::model::limits::{HANDSHAKES_MAX, HANDSHAKES_PER_ADDRESS_MAX, HANDSHAKES_UNPROVEN_MAX, LINKS_MAX};
use crate::pki::{PeerIdentity, PkiError, peer_identity};

/// What the accepting side sends on a stream of its own when all gates are passed. Without it the caller, whose side of the
/// TLS handshake ends first, could not tell a link from one that is about to be refused.
pub(super) const GREETING: [u8; 1] = [1];

/// Lines about refused callers per second: anybody who can send a packet could fill the log otherwise.
const REFUSAL_LINES_PER_S: u32 = 10;

/// Why somebody was turned away.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("the TLS or QUIC handshake failed")]
    Handshake(#[source] ConnectionError),
    #[error("the handshake was not done in time")]
    Slow,
    #[error("the certificate is not a decamp certificate")]
    Unnamed(#[source] PkiError),
    #[error("no certificate was shown")]
    NoCertificate,
    #[error("the certificate is {0}'s, not a host's")]
    NotAHost(PeerIdentity),
    #[error("{0} is not on the allow-list; to accept it: [peers.{0}] with receive = true")]
    NotListed(HostId),
    #[error("accepted links are waiting in a full queue")]
    QueueFull,
    #[error("the caller went away before the greeting")]
    Left,
}

impl Refusal {
    /// Label of the metric.
    fn label(&self) -> &'static str {
        match self {
            Self::Handshake(_) => "handshake",
            Self::Slow => "slow",
            Self::Unnamed(_) | Self::NoCertificate | Self::NotAHost(_) => "not-a-host",
            Self::NotListed(_) => "not-listed",
            Self::QueueFull => "busy",
            Self::Left => "left",
        }
    }

    /// What the caller is told, when there is a connection to tell it on.
    fn code(&self) -> close::Code {
        match self {
            Self::Unnamed(_) | Self::NoCertificate | Self::NotAHost(_) => close::NOT_A_HOST,
            Self::NotListed(_) => close::NOT_ALLOWED,
            Self::QueueFull => close::BUSY,
            Self::Slow => close::TOO_SLOW,
            Self::Handshake(_) | Self::Left => close::INTERNAL,
        }
    }
}

/// Accepts callers for one endpoint.
#[derive(Debug)]
pub(super) struct Door {
    allow: BTreeSet<HostId>,
    handshake_within: Duration,
    ready: mpsc::Sender<Link>,
    busy: Mutex<HashMap<IpAddr, usize>>,
    lines: Mutex<(Instant, u32)>,
}

impl Door {
    pub(super) fn new(
        allow: BTreeSet<HostId>,
        handshake_within: Duration,
        ready: mpsc::Sender<Link>,
    ) -> Self {
        let lines = Mutex::new((Instant::now(), 0));
        Self { allow, handshake_within, ready, busy: Mutex::default(), lines }
    }

    /// Runs until the endpoint is closed. Dropping the future ends the handshakes under way.
    pub(super) async fn run(self: Arc<Self>, endpoint: quinn::Endpoint) {
        let mut handshakes = JoinSet::new();
        loop {
            let incoming = tokio::select! {
                incoming = endpoint.accept() => incoming,
                Some(_) = handshakes.join_next() => continue,
            };
            let Some(incoming) = incoming else { return };
            let address = canonical(incoming.remote_address());
            if handshakes.len() >= HANDSHAKES_UNPROVEN_MAX && incoming.may_retry() {
                // The error gives the attempt back when it may not be retried, which was asked just now.
                let _ = incoming.retry();
                continue;
            }
            if handshakes.len() >= HANDSHAKES_MAX || endpoint.open_connections() >= LINKS_MAX {
                self.turn_away(incoming, address, "all places are taken");
                continue;
            }
            let Some(place) = Place::take(&self, address.ip()) else {
                self.turn_away(incoming, address, "too many handshakes from this address");
                continue;
            };
            handshakes.spawn(Arc::clone(&self).admit(incoming, address, place));
        }
    }

    fn turn_away(&self, incoming: Incoming, address: SocketAddr, why: &str) {
        incoming.refuse();
        metrics::counter!("decamp_quic_refused_total", "reason" => "busy").increment(1);
        if self.may_log() {
            tracing::warn!(%address, "refused a caller: {why}");
        }
    }

    async fn admit(self: Arc<Self>, incoming: Incoming, address: SocketAddr, place: Place) {
        let outcome = self.handshake(incoming).await;
        drop(place);
        match outcome {
            Ok(link) => {
                metrics::counter!("decamp_quic_accepted_total").increment(1);
                tracing::info!(peer = %link.peer(), %address, "link accepted");
            }
            Err(refusal) => {
                metrics::counter!("decamp_quic_refused_total", "reason" => refusal.label()).increment(1);
                if self.may_log() {
                    let cause =
                        std::error::Error::source(&refusal).map(|e| printable(e.to_string().as_bytes()));
                    tracing::warn!(%address, cause, "refused a caller: {refusal}");
                }
            }
        }
    }

    async fn handshake(&self, incoming: Incoming) -> Result<Link, Refusal> {
        let connecting = incoming.accept().map_err(Refusal::Handshake)?;
        let connection = tokio::time::timeout(self.handshake_within, connecting)
            .await
            .map_err(|_| Refusal::Slow)?
            .map_err(Refusal::Handshake)?;
        let outcome = self.welcome(&connection).await;
        if let Err(refusal) = &outcome {
            connection
                .close(refusal.code().var_int(), close::meaning(refusal.code().number().into()).as_bytes());
        }
        outcome
    }

    async fn welcome(&self, connection: &quinn::Connection) -> Result<Link, Refusal> {
        let peer = match identity_of(connection)? {
            PeerIdentity::Host(peer) => peer,
            operator @ PeerIdentity::Operator(_) => return Err(Refusal::NotAHost(operator)),
        };
        if !self.allow.contains(&peer) {
            return Err(Refusal::NotListed(peer));
        }
        let place = self.ready.try_reserve().map_err(|_| Refusal::QueueFull)?;
        let greet = async {
            let mut stream = connection.open_uni().await.ok()?;
            stream.write_all(&GREETING).await.ok()?;
            stream.finish().ok()
        };
        let greeted = tokio::time::timeout(self.handshake_within, greet).await.map_err(|_| Refusal::Slow)?;
        greeted.ok_or(Refusal::Left)?;
        let link = Link::new(connection.clone(), peer);
        place.send(link.clone());
        Ok(link)
    }

    /// At most [`REFUSAL_LINES_PER_S`]; what is not logged is still counted by the metric.
    fn may_log(&self) -> bool {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.0.elapsed() >= Duration::from_secs(1) {
            *lines = (Instant::now(), 0);
        }
        lines.1 += 1;
        lines.1 <= REFUSAL_LINES_PER_S
    }
}

/// Who the verified certificate of the other end speaks for.
fn identity_of(connection: &quinn::Connection) -> Result<PeerIdentity, Refusal> {
    let chain = certificates_of(connection).ok_or(Refusal::NoCertificate)?;
    let end_entity = chain.first().ok_or(Refusal::NoCertificate)?;
    peer_identity(end_entity).map_err(Refusal::Unnamed)
}

/// The chain that the other end showed and that TLS has verified.
pub(super) fn certificates_of(connection: &quinn::Connection) -> Option<Vec<CertificateDer<'static>>> {
    connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok().map(|chain| *chain)
}

/// One of the places for handshakes from an address, given back when dropped.
struct Place {
    door: Arc<Door>,
    address: IpAddr,
}

impl Place {
    fn take(door: &Arc<Door>, address: IpAddr) -> Option<Self> {
        let mut busy = door.busy.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = busy.entry(address).or_default();
        if *taken >= HANDSHAKES_PER_ADDRESS_MAX {
            return None;
        }
        *taken += 1;
        drop(busy);
        Some(Self { door: Arc::clone(door), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut busy = self.door.busy.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(taken) = busy.get_mut(&self.address) {
            *taken -= 1;
            if *taken == 0 {
                busy.remove(&self.address);
            }
        }
    }
}
