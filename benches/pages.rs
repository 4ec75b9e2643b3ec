//! Stages that work on pages alone: zero test, digest, compression, frames. Bytes per second of page content.

use std::hint::black_box;

use bytes::Bytes;
use criterion::{Criterion, Throughput};
use decamp::model::page::{ObjectId, PAGE_SIZE};
use decamp::pages::compress::{Compressor, Decompressor};
use decamp::pages::hash::{Root, ZERO_DIGEST, digest, digest_bytes};
use decamp::pages::zero::is_zero;
use decamp::protocol::pages::{Codec, Pages, Run, RunKind, SourceFrame};

const MIB: usize = 1 << 20;

/// Half text-like, half noise: about as compressible as a heap.
fn content() -> Vec<u8> {
    let mut bytes = vec![0; MIB];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    for (number, page) in bytes.chunks_mut(PAGE_SIZE).enumerate().filter(|(number, _)| number % 2 == 0) {
        let line = format!("{number}: a line of some text that a process keeps, again and again; ");
        page.iter_mut().zip(line.bytes().cycle()).for_each(|(byte, letter)| *byte = letter);
    }
    bytes
}

fn pages(c: &mut Criterion) {
    let content = content();
    let zeros = vec![0; MIB];
    let mut group = c.benchmark_group("pages");
    group.throughput(Throughput::Bytes(MIB as u64));
    let count = |bytes: &[u8]| bytes.as_chunks::<PAGE_SIZE>().0.iter().filter(|page| is_zero(page)).count();
    group.bench_function("zero test, zero pages", |b| b.iter(|| count(black_box(&zeros))));
    group.bench_function("zero test, other pages", |b| b.iter(|| count(black_box(&content))));
    group.bench_function("digest, page by page", |b| {
        b.iter(|| black_box(&content).as_chunks::<PAGE_SIZE>().0.iter().map(digest).collect::<Vec<_>>());
    });
    let mut digests = Vec::new();
    group.bench_function("digest, side by side", |b| {
        b.iter(|| {
            digests.clear();
            digest_bytes(black_box(&content), &mut digests);
        });
    });
    group.bench_function("root over digests", |b| b.iter(|| Root::of(black_box(&digests))));
    let mut compressor = Compressor::new().expect("memory");
    group.bench_function("zstd level 1", |b| {
        b.iter(|| compressor.compress(black_box(&content)).map(<[u8]>::len))
    });
    let packed = compressor.compress(&content).expect("it shrinks").to_vec();
    let mut decompressor = Decompressor::new().expect("memory");
    let mut unpacked = vec![0; MIB];
    group.bench_function("unzstd", |b| b.iter(|| decompressor.decompress(black_box(&packed), &mut unpacked)));
    group.finish();
}

fn codec(c: &mut Criterion) {
    let payload = Bytes::from(content());
    let frame = |kind: RunKind, payload: Bytes| {
        let runs = (0..256).map(|page| Run { first: page * 2, count: 1, kind }).collect();
        let known = if kind == RunKind::Known { vec![ZERO_DIGEST; 256] } else { Vec::new() };
        Pages {
            batch: 1,
            object: ObjectId::Task(1),
            runs,
            known,
            root: ZERO_DIGEST,
            codec: Codec::None,
            payload,
        }
    };
    let mut group = c.benchmark_group("frames");
    group.throughput(Throughput::Bytes(MIB as u64));
    for (name, frame) in [
        ("256 scattered pages of content", frame(RunKind::Content, payload)),
        ("256 scattered known pages", frame(RunKind::Known, Bytes::new())),
    ] {
        let mut head = Vec::new();
        group.bench_function(format!("encode {name}"), |b| {
            b.iter(|| {
                head.clear();
                black_box(&frame).encode_head(frame.payload.len(), &mut head);
            });
        });
        let mut bytes = head[4..].to_vec();
        bytes.extend_from_slice(&frame.payload);
        let bytes = Bytes::from(bytes);
        group.bench_function(format!("decode {name}"), |b| b.iter(|| SourceFrame::decode(bytes.clone())));
    }
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    pages(&mut criterion);
    codec(&mut criterion);
    criterion.final_summary();
}
