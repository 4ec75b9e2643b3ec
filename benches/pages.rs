//! Stages that work on pages alone: zero test, digest, compression, frames, in bytes per second of page content; and what the
//! books of pages cost.

use std::hint::black_box;

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput};
use decamp::model::page::{Digest, ObjectId, PAGE_SIZE, PageIndex, PageRange};
use decamp::pages::book::Book;
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

/// What comparing 2 GiB of pages costs in a freeze, and before it.
fn books(c: &mut Criterion) {
    const PAGES: u64 = (2 << 30) / PAGE_SIZE as u64;
    // A mapping that begins and ends in the middle of a chunk.
    let within = [PageRange { first: PageIndex(100), count: PAGES }];
    let digest = |page: u64| Digest(std::array::from_fn(|at| page.to_le_bytes()[at % 8]));
    let filled = || {
        let mut book = Book::default();
        within[0].iter().for_each(|page| book.set(page.0, digest(page.0)));
        book
    };
    let mut group = c.benchmark_group("books of 2 GiB");
    let mut book = filled();
    book.refresh();
    group.bench_function("root, nothing changed", |b| b.iter(|| black_box(&book).root_of(&within)));
    group.bench_function("pages that are held", |b| b.iter(|| black_box(&book).held(&within)));
    group.bench_function("roots of all chunks", |b| {
        b.iter_batched_ref(filled, Book::refresh, BatchSize::PerIteration);
    });
    // 4 MiB, scattered.
    (0..1024).for_each(|at| book.set(at * 509 + 300, digest(at)));
    group.bench_function("root, 1024 pages changed", |b| b.iter(|| black_box(&book).root_of(&within)));
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    books(&mut criterion);
    pages(&mut criterion);
    codec(&mut criterion);
    criterion.final_summary();
}
