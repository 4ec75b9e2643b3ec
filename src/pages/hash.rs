//! Digests: BLAKE3 of each page, and the root over the digests of many pages in order.
//!
//! `blake3::hash` of 4 KiB keeps only four of the vector lanes busy, because a page is four BLAKE3 chunks. Hashing 16 pages side by
//! side fills them: twice the speed on AVX2 and more on AVX-512, with bit-identical results. That needs `blake3::platform`, which the
//! crate exports but does not promise to keep. It is worth that: this is most of the CPU time of a pre-copy round and of the check
//! before a restore. A build against a version without it fails loudly, and a version that computes something else is
//! noticed by `lanes_work`, which compares with `blake3::hash` once per process and falls back to it.

use std::sync::OnceLock;

use blake3::IncrementCounter;
use blake3::platform::Platform;

use crate::model::page::{Digest, PAGE_SIZE};

/// Digest of the page of zeros.
pub const ZERO_DIGEST: Digest = Digest([
    0xb6, 0xfb, 0x73, 0xfc, 0x46, 0x93, 0x8c, 0x98, 0x1e, 0x2b, 0x0b, 0x4b, 0x1e, 0xf2, 0x82, 0xad, 0xcf,
    0xc8, 0x98, 0x54, 0xd0, 0x1b, 0xfe, 0x39, 0x72, 0xfd, 0xc4, 0x78, 0x5b, 0x41, 0xb2, 0xc7,
]);

/// Pages hashed side by side: the widest vector unit that BLAKE3 knows has 16 lanes.
const LANES: usize = 16;
const CHUNK: usize = 1024;
// The BLAKE3 paper, table 3, and its initial value (that of SHA-256).
const CHUNK_START: u8 = 1;
const CHUNK_END: u8 = 2;
const PARENT: u8 = 4;
const ROOT: u8 = 8;
const IV: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

/// Digest of one page.
#[must_use]
pub fn digest(page: &[u8; PAGE_SIZE]) -> Digest {
    Digest(*blake3::hash(page).as_bytes())
}

/// Appends the digests of `pages`, in order.
pub fn digest_many(pages: &[&[u8; PAGE_SIZE]], out: &mut Vec<Digest>) {
    out.reserve(pages.len());
    let Some(platform) = lanes() else {
        out.extend(pages.iter().map(|page| digest(page)));
        return;
    };
    for group in pages.chunks(LANES) {
        if group.len() == 1 {
            out.push(digest(group[0]));
        } else {
            digest_group(*platform, group, out);
        }
    }
}

/// Appends the digests of the pages that `bytes` consists of, in order.
pub fn digest_bytes(bytes: &[u8], out: &mut Vec<Digest>) {
    let (pages, rest) = bytes.as_chunks::<PAGE_SIZE>();
    assert!(rest.is_empty(), "only whole pages are hashed");
    let mut group: [&[u8; PAGE_SIZE]; LANES] = [&[0; PAGE_SIZE]; LANES];
    for part in pages.chunks(LANES) {
        for (slot, page) in group.iter_mut().zip(part) {
            *slot = page;
        }
        digest_many(&group[..part.len()], out);
    }
}

/// The digest over digests: one value for many pages in a fixed order.
#[derive(Debug, Default, Clone)]
pub struct Root(blake3::Hasher);

impl Root {
    /// The next pages.
    pub fn update(&mut self, digests: &[Digest]) {
        for digest in digests {
            self.0.update(&digest.0);
        }
    }

    /// The root of all pages so far.
    #[must_use]
    pub fn finish(&self) -> Digest {
        Digest(*self.0.finalize().as_bytes())
    }

    /// The root of these.
    #[must_use]
    pub fn of(digests: &[Digest]) -> Digest {
        let mut root = Self::default();
        root.update(digests);
        root.finish()
    }
}

/// First eight bytes of a digest: enough to look it up, never enough to trust it.
#[must_use]
pub fn prefix(digest: &Digest) -> u64 {
    u64::from_le_bytes(*digest.0.first_chunk().expect("a digest has 32 bytes"))
}

fn lanes() -> Option<&'static Platform> {
    static LANES: OnceLock<Option<Platform>> = OnceLock::new();
    LANES.get_or_init(|| Some(Platform::detect()).filter(|platform| lanes_work(*platform))).as_ref()
}

/// Does hashing side by side give what `blake3::hash` gives?
fn lanes_work(platform: Platform) -> bool {
    let mut pages = Box::new([[0u8; PAGE_SIZE]; LANES]);
    for (number, page) in pages.iter_mut().enumerate() {
        for (at, byte) in page.iter_mut().enumerate() {
            *byte = u8::try_from((at * 7 + number * 31 + at / 256) % 251).unwrap_or(0);
        }
    }
    let refs: Vec<&[u8; PAGE_SIZE]> = pages.iter().collect();
    (2..=LANES).all(|count| {
        let mut out = Vec::new();
        digest_group(platform, &refs[..count], &mut out);
        out.iter().zip(&refs).all(|(got, page)| *got == digest(page)) && out.len() == count
    })
}

/// The tree of a page has four chunks and two levels of parents; each step is done for all pages of the group at once.
fn digest_group(platform: Platform, pages: &[&[u8; PAGE_SIZE]], out: &mut Vec<Digest>) {
    let count = pages.len();
    let mut pairs = [[[0u8; 64]; 2]; LANES];
    let mut values = [0u8; LANES * 32];
    for chunk in 0..PAGE_SIZE / CHUNK {
        let mut inputs: [&[u8; CHUNK]; LANES] = [&[0; CHUNK]; LANES];
        for (input, page) in inputs.iter_mut().zip(pages) {
            *input = &page.as_chunks::<CHUNK>().0[chunk];
        }
        let inputs = &inputs[..count];
        let no = IncrementCounter::No;
        platform.hash_many(
            inputs,
            &IV,
            chunk as u64,
            no,
            0,
            CHUNK_START,
            CHUNK_END,
            &mut values[..count * 32],
        );
        for (pair, value) in pairs.iter_mut().zip(values.as_chunks::<32>().0) {
            pair[chunk / 2][chunk % 2 * 32..][..32].copy_from_slice(value);
        }
    }
    let mut tops = [[0u8; 64]; LANES];
    for side in 0..2 {
        let mut inputs: [&[u8; 64]; LANES] = [&[0; 64]; LANES];
        for (input, pair) in inputs.iter_mut().zip(&pairs) {
            *input = &pair[side];
        }
        parents(platform, &inputs[..count], PARENT, &mut values);
        for (top, value) in tops.iter_mut().zip(values.as_chunks::<32>().0) {
            top[side * 32..][..32].copy_from_slice(value);
        }
    }
    let mut inputs: [&[u8; 64]; LANES] = [&[0; 64]; LANES];
    for (input, top) in inputs.iter_mut().zip(&tops) {
        *input = top;
    }
    parents(platform, &inputs[..count], PARENT | ROOT, &mut values);
    out.extend(values.as_chunks::<32>().0[..count].iter().map(|value| Digest(*value)));
}

fn parents(platform: Platform, inputs: &[&[u8; 64]], flags: u8, values: &mut [u8]) {
    platform.hash_many(inputs, &IV, 0, IncrementCounter::No, flags, 0, 0, &mut values[..inputs.len() * 32]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_zero_digest_is_that_of_zeros() {
        assert_eq!(ZERO_DIGEST.0, *blake3::hash(&[0; PAGE_SIZE]).as_bytes());
    }

    #[test]
    fn side_by_side_equals_one_by_one() {
        assert!(lanes().is_some(), "blake3 computes something else side by side: see the head of this file");
        for count in [0, 1, 2, 15, 16, 17, 40] {
            let bytes: Vec<u8> =
                (0..count * PAGE_SIZE).map(|at| u8::try_from((at * at / 97 + at) % 256).unwrap()).collect();
            let mut out = Vec::new();
            digest_bytes(&bytes, &mut out);
            let plain: Vec<Digest> = bytes.as_chunks::<PAGE_SIZE>().0.iter().map(digest).collect();
            assert_eq!(out, plain);
        }
    }

    #[test]
    fn the_root_depends_on_order_and_not_on_portions() {
        let digests = [ZERO_DIGEST, digest(&[1; PAGE_SIZE]), digest(&[2; PAGE_SIZE])];
        let mut parts = Root::default();
        parts.update(&digests[..1]);
        parts.update(&digests[1..]);
        assert_eq!(parts.finish(), Root::of(&digests));
        let swapped = [digests[1], digests[0], digests[2]];
        assert_ne!(Root::of(&swapped), Root::of(&digests));
    }
}
