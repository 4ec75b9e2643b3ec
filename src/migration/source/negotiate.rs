//! Offer, answer, clocks, data streams.

use std::sync::Arc;
use std::time::Duration;

use super::super::clock::{Exchange, Offset};
use super::super::guard::Guard;
use super::super::progress::unix_us;
use super::super::request::Request;
use super::super::session::Session;
use super::super::{Host, MigrationError};
use super::inspect::Inspection;
use crate::journal::Record;
use crate::memory::{PagePlane, PlaneOptions};
use crate::model::{LAZY_PAGES, MigrationId, limits};
use crate::protocol::frame::write_message;
use crate::protocol::pace::Pacer;
use crate::quic::{Link, Stream};
use crate::rpc::v1::{Offer, Ping, StreamHello, control_frame::Body, stream_hello::Role};

/// How long connecting and the destination's preflight may take; digests of base layers are computed in it.
const ANSWER_WITHIN: Duration = Duration::from_secs(120);
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
const PINGS: usize = 5;

pub(super) struct Agreed {
    pub(super) link: Link,
    pub(super) session: Session,
    pub(super) plane: PagePlane,
    pub(super) pacer: Arc<Pacer>,
    pub(super) offset: Offset,
    pub(super) lazy_there: bool,
}

/// Opens a stream and says what it is for.
pub(super) async fn open(link: &Link, role: Role, migration: &MigrationId) -> Result<Stream, MigrationError> {
    let mut stream = link.open_bi().await?;
    let hello = StreamHello { role: role.into(), migration_id: migration.to_string() };
    write_message(&mut stream, &hello).await?;
    Ok(stream)
}

pub(super) async fn negotiate(
    host: &Host,
    request: &Request,
    guard: &Guard,
    record: &Record,
    inspection: &Inspection,
) -> Result<Agreed, MigrationError> {
    let connect = host.endpoint.connect(request.address, &request.to);
    let link = guard.within("connecting to the destination", CONNECT_WITHIN, connect).await?;
    let control =
        guard.run("opening the control stream", open(&link, Role::Control, &record.migration)).await?;
    let mut session = Session::new(request.to.clone(), control);
    guard
        .run("sending the offer", session.send(Body::Offer(offer(host, request, record, inspection))))
        .await?;
    let accept = session.expect("Accept", |body| match body {
        Body::Accept(accept) => Some(accept),
        _ => None,
    });
    let accept = guard.within("the destination's preflight", ANSWER_WITHIN, accept).await?;
    if accept.epoch != record.epoch.0 || !crate::protocol::VERSIONS.contains(&accept.protocol_version) {
        return Err(MigrationError::Protocol {
            host: request.to.to_string(),
            what: format!("accepted epoch {} in version {}", accept.epoch, accept.protocol_version),
        });
    }
    let offset = guard.run("comparing clocks", compare_clocks(&mut session)).await?;
    let options = PlaneOptions { compression: request.compress, ask_retained: accept.retained_pages > 0 };
    let pacer = Arc::new(Pacer::new(request.bandwidth));
    let mut streams = Vec::new();
    for _ in 0..accept.streams.clamp(1, limits::STREAMS_MAX) {
        streams.push(guard.run("opening a page stream", open(&link, Role::Pages, &record.migration)).await?);
    }
    let plane = PagePlane::new(streams, Arc::clone(&pacer), options);
    let lazy_there =
        accept.host.is_some_and(|facts| facts.capabilities.iter().any(|word| word == LAZY_PAGES));
    Ok(Agreed { link, session, plane, pacer, offset, lazy_there })
}

fn offer(host: &Host, request: &Request, record: &Record, inspection: &Inspection) -> Offer {
    Offer {
        migration_id: record.migration.to_string(),
        epoch: record.epoch.0,
        host: Some(host.facts.clone()),
        container: request.container.to_string(),
        config_json: inspection.config_json.clone().into(),
        rootfs: Some(inspection.rootfs.clone()),
        mounts: inspection.mounts.clone(),
        network: Some(inspection.network.clone()),
        memory_bytes: inspection.memory_bytes,
        disk_bytes: inspection.disk_bytes(),
        mode: request.mode.as_str().to_owned(),
        tcp: request.tcp.as_str().to_owned(),
        streams: host.settings.streams,
    }
}

async fn compare_clocks(session: &mut Session) -> Result<Offset, MigrationError> {
    let mut exchanges = Vec::with_capacity(PINGS);
    for _ in 0..PINGS {
        let sent_us = unix_us();
        session.send(Body::Ping(Ping { sent_us })).await?;
        let pong = session
            .expect("Pong", |body| match body {
                Body::Pong(pong) => Some(pong),
                _ => None,
            })
            .await?;
        exchanges.push(Exchange { sent_us, peer_us: pong.peer_us, received_us: unix_us() });
    }
    Ok(Offset::estimate(&exchanges))
}
