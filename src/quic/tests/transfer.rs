//! Bytes over links, and how links and streams end.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::relay::Relay;
use super::*;
use crate::model::limits::STREAMS_PER_LINK_MAX;

/// Different for every stream and not periodic in any power of two.
fn content(stream: usize, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&stream.to_le_bytes());
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}

#[tokio::test]
async fn bytes_go_both_ways_and_the_end_is_clean() {
    let fleet = Fleet::new();
    let (a, b) = two(&fleet);
    let (at_a, at_b) = link(&a, &b).await;
    let mut ask = at_b.open_bi().await.unwrap();
    ask.write_all(b"question").await.unwrap();
    ask.shutdown().await.unwrap();
    let mut answer = soon(at_a.accept_bi()).await.unwrap();
    let mut got = Vec::new();
    answer.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"question");
    answer.write_all(b"answer").await.unwrap();
    soon(answer.finish()).await.unwrap();
    let mut got = Vec::new();
    ask.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"answer");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_streams_of_bulk_arrive_unchanged() {
    const STREAMS: usize = 4;
    const BYTES: usize = 48 << 20;
    let fleet = Fleet::new();
    let (a, b) = two(&fleet);
    let (at_a, at_b) = link(&a, &b).await;
    let started = std::time::Instant::now();
    let mut senders = tokio::task::JoinSet::new();
    for stream in 0..STREAMS {
        let at_b = at_b.clone();
        senders.spawn(async move {
            let bytes = content(stream, BYTES);
            let mut out = at_b.open_bi().await.unwrap();
            out.write_u64(stream as u64).await.unwrap();
            out.write_all(&bytes).await.unwrap();
            out.finish().await.unwrap();
        });
    }
    let mut receivers = tokio::task::JoinSet::new();
    for _ in 0..STREAMS {
        let mut incoming = soon(at_a.accept_bi()).await.unwrap();
        receivers.spawn(async move {
            let stream = usize::try_from(incoming.read_u64().await.unwrap()).unwrap();
            let mut got = Vec::new();
            incoming.read_to_end(&mut got).await.unwrap();
            assert!(got == content(stream, BYTES), "stream {stream} differs");
        });
    }
    while let Some(done) = soon(receivers.join_next()).await {
        done.unwrap();
    }
    while let Some(done) = soon(senders.join_next()).await {
        done.unwrap();
    }
    let stats = at_b.stats();
    assert!(stats.bytes_sent >= (STREAMS * BYTES) as u64, "{stats:?}");
    assert!(stats.rtt > Duration::ZERO && stats.packets_sent > 0, "{stats:?}");
    let rate = (STREAMS * BYTES) as f64 / started.elapsed().as_secs_f64() / f64::from(1 << 20);
    eprintln!("{rate:.0} MiB/s, contents made and compared included: {stats:?}");
}

/// A task that dies between two frames must not look like one that is done.
#[tokio::test]
async fn a_dropped_writer_is_no_clean_end() {
    let fleet = Fleet::new();
    let (a, b) = two(&fleet);
    let (at_a, at_b) = link(&a, &b).await;
    let mut out = at_b.open_bi().await.unwrap();
    out.write_all(b"half").await.unwrap();
    let mut incoming = soon(at_a.accept_bi()).await.unwrap();
    let mut four = [0; 4];
    incoming.read_exact(&mut four).await.unwrap();
    drop(out);
    let error = soon(incoming.read_to_end(&mut Vec::new())).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error:?}");
}

/// Both say their clean end; one is faster and drops the stream before the other's end has arrived.
#[tokio::test]
async fn both_ends_may_finish_at_once() {
    let fleet = Fleet::new();
    let (a, b) = two(&fleet);
    let (at_a, at_b) = link(&a, &b).await;
    for answer in [&b""[..], b"an answer that the peer has read"] {
        let mut fast = at_b.open_bi().await.unwrap();
        fast.write_all(b"x").await.unwrap();
        let mut slow = soon(at_a.accept_bi()).await.unwrap();
        slow.write_all(answer).await.unwrap();
        soon(fast.read_exact(&mut vec![0; answer.len()])).await.unwrap();
        soon(fast.finish()).await.unwrap();
        drop(fast);
        // By now the request to stop has arrived.
        tokio::time::sleep(Duration::from_millis(100)).await;
        soon(slow.finish()).await.unwrap();
    }
}

/// A reader that dies has not had all it wanted.
#[tokio::test]
async fn finish_tells_that_the_peer_died() {
    let fleet = Fleet::new();
    let (a, b) = two(&fleet);
    let (at_a, at_b) = link(&a, &b).await;
    let mut out = at_b.open_bi().await.unwrap();
    out.write_all(b"x").await.unwrap();
    drop(soon(at_a.accept_bi()).await.unwrap());
    tokio::time::sleep(Duration::from_millis(100)).await;
    let error = soon(out.finish()).await.unwrap_err();
    assert!(matches!(error, QuicError::Finish(FinishError::Stopped { code: 0 })), "{error:?}");
}

#[tokio::test]
async fn finish_tells_when_the_peer_did_not_want_it() {
    let fleet = Fleet::new();
    let (a, b) = two(&fleet);
    let (at_a, at_b) = link(&a, &b).await;
    let mut out = at_b.open_bi().await.unwrap();
    out.write_all(b"x").await.unwrap();
    let (mut reader, _writer) = soon(at_a.accept_bi()).await.unwrap().split();
    reader.stop(close::ABORTED);
    // The stop may still be under way when the first byte is acknowledged, so data goes on until it has arrived.
    let stopped = soon(async { while out.write_all(&[0; 1000]).await.is_ok() {} });
    stopped.await;
    let error = soon(out.finish()).await.unwrap_err();
    assert!(matches!(error, QuicError::Finish(FinishError::Stopped { code: 7 })), "{error:?}");
    let mut given_up = at_b.open_bi().await.unwrap();
    given_up.reset(close::ABORTED);
    let error = soon(given_up.finish()).await.unwrap_err();
    assert!(matches!(error, QuicError::Finish(FinishError::GivenUp)), "{error:?}");
}

#[tokio::test]
async fn a_close_carries_its_code_and_reason() {
    let fleet = Fleet::new();
    let (a, b) = two(&fleet);
    let (at_a, at_b) = link(&a, &b).await;
    at_b.close(close::ABORTED, "the operator\u{1b}[31m pressed Ctrl-C");
    match soon(at_a.closed()).await {
        LinkError::ClosedByPeer { code: 7, reason, .. } => {
            assert_eq!(reason, "the operator[31m pressed Ctrl-C", "no control characters from a peer");
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(at_b.closed().await, LinkError::ClosedHere { .. }));
    assert!(matches!(at_a.open_bi().await, Err(QuicError::Lost(LinkError::ClosedByPeer { .. }))));
    assert!(at_a.close_reason().is_some());
}

/// Cancelling in the middle of bulk: the window is full, nothing is acknowledged, and the peer must be told all the same.
#[tokio::test]
async fn a_close_gets_through_a_full_window() {
    for (stop_agent, expected) in [(false, close::ABORTED), (true, close::STOPPING)] {
        let fleet = Fleet::new();
        let (a, b) = two(&fleet);
        let relay = Relay::to(a.local_address().unwrap()).await;
        let (at_a, at_b) = link_over(&a, &b, relay.address).await;
        let mut out = at_b.open_bi().await.unwrap();
        relay.swallow_answers();
        let stuck = tokio::time::timeout(Duration::from_millis(300), out.write_all(&vec![0; 64 << 20])).await;
        assert!(stuck.is_err(), "the window is not full");
        if stop_agent {
            b.close().await;
        } else {
            at_b.close(close::ABORTED, "");
        }
        let why = soon(at_a.closed()).await;
        let code = u64::from(expected.number());
        assert!(
            matches!(why, LinkError::ClosedByPeer { code: seen, .. } if seen == code),
            "{expected:?}: {why:?}"
        );
    }
}

/// The same when the cancelled task just drops everything it has.
#[tokio::test]
async fn dropping_everything_gets_through_a_full_window() {
    let fleet = Fleet::new();
    let (a, b) = two(&fleet);
    let relay = Relay::to(a.local_address().unwrap()).await;
    let (at_a, at_b) = link_over(&a, &b, relay.address).await;
    let mut out = at_b.open_bi().await.unwrap();
    relay.swallow_answers();
    let stuck = tokio::time::timeout(Duration::from_millis(300), out.write_all(&vec![0; 64 << 20])).await;
    assert!(stuck.is_err(), "the window is not full");
    drop(at_b);
    assert!(at_a.close_reason().is_none(), "a stream holds its link up");
    drop(out);
    let why = soon(at_a.closed()).await;
    assert!(matches!(why, LinkError::ClosedByPeer { code: 0, .. }), "{why:?}");
}

#[tokio::test]
async fn shutting_down_tells_every_peer() {
    let fleet = Fleet::new();
    let (a, b) = two(&fleet);
    let (_at_a, at_b) = link(&a, &b).await;
    soon(a.close()).await;
    let why = soon(at_b.closed()).await;
    assert!(matches!(why, LinkError::ClosedByPeer { code: 5, .. }), "{why:?}");
    assert!(soon(a.accept()).await.is_none(), "nobody is accepted any more");
}

#[tokio::test]
async fn a_dropped_link_closes() {
    let fleet = Fleet::new();
    let (a, b) = two(&fleet);
    let (at_a, at_b) = link(&a, &b).await;
    drop(at_b);
    let why = soon(at_a.closed()).await;
    assert!(matches!(why, LinkError::ClosedByPeer { code: 0, .. }), "{why:?}");
}

/// The cable is cut: both ends notice by themselves, with a read waiting and without.
#[tokio::test]
async fn a_peer_that_vanishes_is_noticed() {
    let fleet = Fleet::new();
    let quick = Settings { idle_timeout: Duration::from_millis(800), ..USUAL };
    let a = special(&fleet.host("node-a"), &["node-b"], &quick);
    let b = endpoint(&fleet.host("node-b"), &[]);
    let relay = Relay::to(a.local_address().unwrap()).await;
    let (at_a, at_b) = link_over(&a, &b, relay.address).await;
    let mut out = at_b.open_bi().await.unwrap();
    out.write_all(b"x").await.unwrap();
    let mut incoming = soon(at_a.accept_bi()).await.unwrap();
    incoming.read_u8().await.unwrap();
    tokio::time::sleep(Duration::from_millis(1600)).await;
    assert!(at_a.close_reason().is_none(), "keep-alives hold an idle link open");
    relay.cut();
    let (at_a, at_b, read) =
        soon(async { tokio::join!(at_a.closed(), at_b.closed(), incoming.read_u8()) }).await;
    assert!(matches!(at_a, LinkError::Silent { .. }), "{at_a:?}");
    assert!(matches!(at_b, LinkError::Silent { .. }), "the shorter of both timeouts holds: {at_b:?}");
    assert!(read.is_err());
}

/// What a peer may make us hold is bounded: it waits instead of opening stream after stream.
#[tokio::test]
async fn streams_are_bounded() {
    let fleet = Fleet::new();
    let (a, b) = two(&fleet);
    let (at_a, at_b) = link(&a, &b).await;
    let mut open = Vec::new();
    for _ in 0..STREAMS_PER_LINK_MAX {
        let mut stream = soon(at_b.open_bi()).await.unwrap();
        stream.write_all(b"x").await.unwrap();
        open.push(stream);
    }
    let one_more = tokio::time::timeout(Duration::from_millis(100), at_b.open_bi()).await;
    assert!(one_more.is_err(), "the bound did not hold");
    // Room is announced in portions: more than an eighth of the streams must be over.
    for stream in open.drain(..10) {
        drop(stream);
        drop(soon(at_a.accept_bi()).await.unwrap());
    }
    soon(at_b.open_bi()).await.unwrap();
}

/// Its last word was lost on the way: its answer to our next packet tells.
#[tokio::test]
async fn a_restarted_agent_is_told_from_a_dead_one() {
    let fleet = Fleet::new();
    let (a, b) = two(&fleet);
    let address = a.local_address().unwrap();
    let relay = Relay::to(address).await;
    let (at_a, at_b) = link_over(&a, &b, relay.address).await;
    relay.cut();
    drop(at_a);
    a.close().await;
    relay.mend();
    let why = soon(at_b.closed()).await;
    assert!(matches!(why, LinkError::Restarted { .. }), "{why:?}");
}
