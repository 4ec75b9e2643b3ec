//! Frames come back as they went, and nothing that a peer can write makes the decoder panic or allocate beyond its bounds.

use bytes::BytesMut;
use proptest::prelude::*;

use super::*;
use crate::model::limits::{BATCH_PAGES_MAX, FORGET_RANGES_MAX, PAGE_INDEX_MAX};
use crate::model::page::{PAGE_SIZE, PageIndex};

fn object() -> impl Strategy<Value = ObjectId> {
    prop_oneof![any::<u32>().prop_map(ObjectId::Task), any::<u64>().prop_map(ObjectId::Shmem)]
}

fn digest() -> impl Strategy<Value = Digest> {
    any::<[u8; 32]>().prop_map(Digest)
}

/// Ascending runs with gaps, a few content pages so that cases stay small.
fn pages() -> impl Strategy<Value = Pages> {
    let run = (0..3u64, 1..20u16, 0..5u8);
    (any::<u64>(), object(), proptest::collection::vec(run, 0..12), digest(), 0..PAGE_INDEX_MAX / 2, digest())
        .prop_map(|(batch, object, raw, root, start, fill)| {
            let mut next = start;
            let mut runs = Vec::new();
            for (gap, count, kind) in raw {
                let kind = [RunKind::Zero, RunKind::Known, RunKind::Zero, RunKind::Known, RunKind::Content]
                    [usize::from(kind)];
                runs.push(Run { first: next + gap, count, kind });
                next += gap + u64::from(count);
            }
            let mut pages = Pages {
                batch,
                object,
                runs,
                known: Vec::new(),
                root,
                codec: Codec::None,
                payload: Bytes::new(),
            };
            pages.known = vec![fill; pages.count(RunKind::Known)];
            pages.payload = vec![fill.0[0]; pages.count(RunKind::Content) * PAGE_SIZE].into();
            pages
        })
}

fn encode(pages: &Pages) -> Vec<u8> {
    let mut out = Vec::new();
    pages.encode_head(pages.payload.len(), &mut out);
    out.extend_from_slice(&pages.payload);
    out
}

/// The bytes behind the length, which must be right.
fn body(frame: &[u8]) -> Bytes {
    assert_eq!(u32::from_le_bytes(*frame.first_chunk().unwrap()) as usize, frame.len() - 4);
    Bytes::copy_from_slice(&frame[4..])
}

proptest! {
    #[test]
    fn pages_come_back(pages in pages()) {
        prop_assert_eq!(SourceFrame::decode(body(&encode(&pages))).unwrap(), SourceFrame::Pages(pages));
    }

    #[test]
    fn a_damaged_frame_is_an_answer_not_a_panic(pages in pages(), at in any::<proptest::sample::Index>(), byte in any::<u8>(), cut in any::<proptest::sample::Index>()) {
        let mut bytes = body(&encode(&pages)).to_vec();
        let place = at.index(bytes.len());
        bytes[place] = byte;
        bytes.truncate(1 + cut.index(bytes.len()));
        if let Ok(SourceFrame::Pages(back)) = SourceFrame::decode(bytes.into()) {
            let total: usize = back.runs.iter().map(|run| usize::from(run.count)).sum();
            prop_assert!(total <= BATCH_PAGES_MAX);
            prop_assert_eq!(back.known.len(), back.count(RunKind::Known));
        }
    }

    #[test]
    fn random_bytes_never_panic(kind in 0..7u8, bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut frame = vec![kind];
        frame.extend(bytes);
        let _ = SourceFrame::decode(frame.clone().into());
        let _ = DestinationFrame::decode(frame.into());
    }

    #[test]
    fn small_frames_come_back(batch in any::<u64>(), hints in proptest::collection::vec(any::<u64>(), 0..40), held in proptest::collection::vec(any::<bool>(), 0..40), object in object()) {
        let mut out = Vec::new();
        let have = Have { batch, hints: hints.clone() };
        have.encode(&mut out);
        prop_assert_eq!(SourceFrame::decode(body(&out)).unwrap(), SourceFrame::Have(have));

        out.clear();
        let ranges = hints.iter().enumerate().map(|(at, count)| PageRange { first: PageIndex(at as u64 * 1000), count: 1 + count % 1000 }).collect();
        let forget = Forget { batch, object, ranges };
        forget.encode(&mut out);
        prop_assert_eq!(SourceFrame::decode(body(&out)).unwrap(), SourceFrame::Forget(forget));

        for answer in [DestinationFrame::HaveReply { batch, held: held.clone() }, DestinationFrame::Ack { batch, missing: (0..u16::try_from(held.len()).unwrap()).map(|at| at * 3).collect() }] {
            out.clear();
            answer.encode(&mut out);
            prop_assert_eq!(DestinationFrame::decode(body(&out)).unwrap(), answer);
        }
    }
}

fn sample() -> Pages {
    Pages {
        batch: 1,
        object: ObjectId::Task(1),
        runs: vec![
            Run { first: 5, count: 2, kind: RunKind::Zero },
            Run { first: 7, count: 1, kind: RunKind::Content },
        ],
        known: Vec::new(),
        root: Digest([3; 32]),
        codec: Codec::None,
        payload: vec![1; PAGE_SIZE].into(),
    }
}

fn rule(pages: &Pages) -> &'static str {
    match SourceFrame::decode(body(&encode(pages))) {
        Err(PageFrameError::Rule { rule }) => rule,
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_rule_is_checked() {
    let mut overlapping = sample();
    overlapping.runs[1].first = 6;
    assert_eq!(rule(&overlapping), "runs are not empty and strictly ascending");

    let mut empty = sample();
    empty.runs[0].count = 0;
    assert_eq!(rule(&empty), "runs are not empty and strictly ascending");

    let mut outside = sample();
    outside.runs[1].first = PAGE_INDEX_MAX;
    assert_eq!(rule(&outside), "pages lie inside the address space");
    outside.runs[1].first = u64::MAX;
    assert_eq!(rule(&outside), "pages lie inside the address space");

    let mut many = sample();
    many.runs = vec![Run { first: 0, count: u16::MAX, kind: RunKind::Zero }];
    assert_eq!(rule(&many), "more pages than a batch may have");

    let mut short = sample();
    short.payload = Bytes::from_static(&[1; 100]);
    assert_eq!(rule(&short), "the payload does not fit the content pages");
    short.codec = Codec::Zstd;
    assert!(
        SourceFrame::decode(body(&encode(&short))).is_ok(),
        "a compressed payload is shorter than its pages"
    );
    short.payload = vec![1; PAGE_SIZE].into();
    assert_eq!(rule(&short), "the payload does not fit the content pages");
}

#[test]
fn an_answer_in_the_wrong_direction_is_refused() {
    let mut out = Vec::new();
    DestinationFrame::Ack { batch: 1, missing: vec![] }.encode(&mut out);
    assert!(matches!(SourceFrame::decode(body(&out)), Err(PageFrameError::WrongKind { kind: KIND_ACK })));
    let bytes = body(&encode(&sample()));
    assert!(matches!(DestinationFrame::decode(bytes), Err(PageFrameError::WrongKind { kind: KIND_PAGES })));
}

#[test]
fn missing_pages_are_ascending() {
    let mut out = Vec::new();
    DestinationFrame::Ack { batch: 1, missing: vec![3, 3] }.encode(&mut out);
    assert!(matches!(DestinationFrame::decode(body(&out)), Err(PageFrameError::Rule { .. })));
}

#[tokio::test]
async fn frames_are_read_from_a_stream_until_its_end() {
    use tokio::io::AsyncWriteExt;
    let (mut near, mut far) = tokio::io::duplex(1000);
    let frame = encode(&sample());
    let writer = tokio::spawn(async move {
        near.write_all(&frame).await.unwrap();
        near.write_all(&frame).await.unwrap();
        near.write_all(&[9, 0]).await.unwrap();
    });
    let mut buffer = BytesMut::new();
    for _ in 0..2 {
        let bytes = read_frame(&mut far, &mut buffer).await.unwrap().unwrap();
        assert_eq!(SourceFrame::decode(bytes).unwrap(), SourceFrame::Pages(sample()));
    }
    assert!(
        matches!(read_frame(&mut far, &mut buffer).await, Err(PageFrameError::Io(_))),
        "it broke inside a frame"
    );
    writer.await.unwrap();
    let (near, mut far) = tokio::io::duplex(10);
    drop(near);
    assert!(read_frame(&mut far, &mut buffer).await.unwrap().is_none());
}

#[tokio::test]
async fn a_lying_length_allocates_nothing() {
    use tokio::io::AsyncWriteExt;
    let (mut near, mut far) = tokio::io::duplex(10);
    near.write_all(&u32::MAX.to_le_bytes()).await.unwrap();
    let mut buffer = BytesMut::new();
    let refused = read_frame(&mut far, &mut buffer).await;
    assert!(matches!(refused, Err(PageFrameError::TooLong { .. })));
    assert_eq!(buffer.capacity(), 0);
}

#[test]
fn the_largest_batch_fits_a_frame() {
    // 1 of 2 pages known, each in a run of its own: the most overhead there can be.
    let runs: Vec<Run> = (0..BATCH_PAGES_MAX as u64)
        .map(|page| Run {
            first: page * 2,
            count: 1,
            kind: if page % 2 == 0 { RunKind::Known } else { RunKind::Content },
        })
        .collect();
    let mut pages = Pages { runs, ..sample() };
    pages.known = vec![Digest([1; 32]); BATCH_PAGES_MAX / 2];
    pages.payload = vec![2; BATCH_PAGES_MAX / 2 * PAGE_SIZE].into();
    assert!(SourceFrame::decode(body(&encode(&pages))).is_ok());
    let whole = Pages {
        runs: vec![Run { first: 0, count: 1024, kind: RunKind::Content }],
        known: vec![],
        payload: vec![2; BATCH_PAGES_MAX * PAGE_SIZE].into(),
        ..sample()
    };
    assert!(SourceFrame::decode(body(&encode(&whole))).is_ok());
    let ranges =
        (0..FORGET_RANGES_MAX as u64).map(|at| PageRange { first: PageIndex(at * 2), count: 1 }).collect();
    let mut out = Vec::new();
    Forget { batch: 1, object: ObjectId::Task(1), ranges }.encode(&mut out);
    assert!(SourceFrame::decode(body(&out)).is_ok());
}
