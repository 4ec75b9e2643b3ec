//! QUIC between two endpoints on loopback, both in this process: bytes a second of one stream and of four. Every byte is checked.

#![allow(missing_docs, reason = "criterion's macros make public functions")]

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use decamp::model::HostId;
use decamp::pki::{self, Identity, TlsFiles, Validity};
use decamp::quic::{Endpoint, Link, Transport};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

const BYTES: usize = 64 << 20;

fn identity(dir: &std::path::Path, host: &HostId) -> Identity {
    let issued = pki::issue_host(dir, host, &[], Validity::default(), false).expect("a certificate");
    let files = TlsFiles { ca: dir.join("ca.crt"), cert: issued.cert, key: issued.key };
    Identity::load(&files).expect("what was just issued")
}

fn endpoint(identity: &Identity, peer: &HostId) -> Endpoint {
    let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let transport = Transport { idle_timeout: Duration::from_secs(10) };
    Endpoint::bind(anywhere, identity, BTreeSet::from([peer.clone()]), transport).expect("a free port")
}

async fn send(link: Link, data: Arc<Vec<u8>>, part: usize) {
    let mut stream = link.open_bi().await.expect("a stream");
    stream.write_all(&data[..part]).await.expect("written");
    stream.finish().await.expect("received");
}

async fn receive(link: Link, data: Arc<Vec<u8>>, part: usize) {
    let mut stream = link.accept_bi().await.expect("a stream");
    let mut got = Vec::with_capacity(part);
    stream.read_to_end(&mut got).await.expect("read");
    assert!(got == data[..part], "bytes differ");
    stream.finish().await.expect("finished");
}

fn transfer(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let dir = tempfile::tempdir().expect("a folder");
    pki::init(dir.path(), Validity::default(), false).expect("a CA");
    let names: [HostId; 2] = ["node-a", "node-b"].map(|name| name.try_into().expect("a name"));
    let [a, b] = [0, 1].map(|at| identity(dir.path(), &names[at]));
    let (caller, answerer, there) = runtime.block_on(async {
        let (caller, answerer) = (endpoint(&a, &names[1]), endpoint(&b, &names[0]));
        let there = answerer.local_address().expect("an address");
        (caller, answerer, there)
    });
    let (outgoing, incoming) = runtime.block_on(async {
        let (outgoing, incoming) = tokio::join!(caller.connect(there, &names[1]), answerer.accept());
        (outgoing.expect("connected"), incoming.expect("accepted"))
    });
    let data: Vec<u8> =
        (0u32..).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).take(BYTES).collect();
    let data = Arc::new(data);
    let mut group = criterion.benchmark_group("quic");
    group.throughput(Throughput::Bytes(BYTES as u64)).sample_size(10);
    for streams in [1, 4] {
        let part = BYTES / streams;
        group.bench_function(format!("{streams} streams"), |bencher| {
            bencher.iter(|| {
                runtime.block_on(async {
                    let mut all = JoinSet::new();
                    for _ in 0..streams {
                        all.spawn(send(outgoing.clone(), Arc::clone(&data), part));
                        all.spawn(receive(incoming.clone(), Arc::clone(&data), part));
                    }
                    while let Some(done) = all.join_next().await {
                        done.expect("no panic");
                    }
                });
            });
        });
    }
    group.finish();
}

criterion_group!(benches, transfer);
criterion_main!(benches);
