//! Every bound in one place, with the assertions that tie them together.

use super::page::PAGE_SIZE;

/// Pages in one batch: what one data stream carries between two acknowledgements.
pub const BATCH_PAGES_MAX: usize = 1024;
/// Bytes of page content in one batch.
pub const BATCH_BYTES_MAX: usize = BATCH_PAGES_MAX * PAGE_SIZE;
/// Page numbers are below this: 57-bit addresses, the most that x86-64 has (five-level page tables).
pub const PAGE_INDEX_MAX: u64 = 1 << 45;
/// Page ranges in one frame that forgets pages.
pub const FORGET_RANGES_MAX: usize = 1024;
/// A frame on a page stream: a batch plus its runs and digests.
pub const PAGE_FRAME_MAX: usize = BATCH_BYTES_MAX + BATCH_PAGES_MAX * 64 + 4096;
/// A protobuf message between agents.
pub const MESSAGE_MAX: usize = 4 << 20;
/// Entries in one part of a file manifest or a need list.
pub const MANIFEST_PART_ENTRIES_MAX: usize = 512;
/// Block of a file: the unit that is compared and sent.
pub const FILE_BLOCK: usize = 128 << 10;
/// Entries in one file tree.
pub const TREE_ENTRIES_MAX: usize = 4_000_000;
/// Extended attributes of one file, bytes.
pub const XATTRS_BYTES_MAX: usize = 64 << 10;
/// One path below a tree's root, bytes.
pub const PATH_BYTES_MAX: usize = 4096;
/// Bytes of block digests in one manifest part.
pub const MANIFEST_PART_BYTES_MAX: usize = 2 << 20;
/// All parts of one manifest together, encoded: what a peer can make us hold in memory.
pub const TREE_MANIFEST_BYTES_MAX: usize = 1 << 30;
/// Size of one file: at most half of a manifest may be its block digests (32 bytes each).
pub const FILE_BYTES_MAX: u64 = (TREE_MANIFEST_BYTES_MAX as u64 / 64) * FILE_BLOCK as u64;
/// Data streams of one migration.
pub const STREAMS_MAX: u32 = 16;
/// Pre-copy rounds, whatever is asked.
pub const ROUNDS_MAX: u32 = 100;
/// Runs in one part of a layout.
pub const LAYOUT_PART_RUNS_MAX: usize = 16_384;
/// Image files of one checkpoint.
pub const IMAGE_FILES_MAX: u32 = 100_000;
/// One image file that is not pages.
pub const IMAGE_FILE_BYTES_MAX: u64 = 16 << 30;
/// Processes and shared-memory objects of one container.
pub const OBJECTS_MAX: usize = 100_000;
/// Longest container id (runc's own rule is [A-Za-z0-9_+.-]+, any length; a file name must hold it).
pub const CONTAINER_ID_MAX: usize = 200;
/// Interfaces of one container's network.
pub const NETWORK_INTERFACES_MAX: usize = 32;
/// Addresses of one container's network, all interfaces together.
pub const NETWORK_ADDRESSES_MAX: usize = 256;
/// Routes of one container's network.
pub const NETWORK_ROUTES_MAX: usize = 512;
/// config.json of a bundle.
pub const CONFIG_JSON_MAX: usize = 1 << 20;
/// Handshakes under way at the QUIC endpoint.
pub const HANDSHAKES_MAX: usize = 64;
/// From so many handshakes under way on, a caller must first prove that it has the address it claims (RFC 9000, 8.1.2).
pub const HANDSHAKES_UNPROVEN_MAX: usize = 16;
/// Handshakes under way from one address.
pub const HANDSHAKES_PER_ADDRESS_MAX: usize = 24;
/// Links, handshakes included.
pub const LINKS_MAX: usize = 256;
/// Accepted links that nobody has taken yet.
pub const LINKS_WAITING_MAX: usize = 16;
/// Streams that a peer may have open on one link.
pub const STREAMS_PER_LINK_MAX: u32 = 64;

const _: () = assert!(PAGE_FRAME_MAX < 16 << 20);
const _: () = assert!(FORGET_RANGES_MAX * 16 + 64 < PAGE_FRAME_MAX);
const _: () = assert!(FILE_BLOCK < MESSAGE_MAX);
const _: () = assert!(MANIFEST_PART_BYTES_MAX < MESSAGE_MAX);
const _: () = assert!(CONFIG_JSON_MAX < MESSAGE_MAX);
const _: () = assert!(BATCH_PAGES_MAX <= u16::MAX as usize);
const _: () = assert!(HANDSHAKES_UNPROVEN_MAX < HANDSHAKES_PER_ADDRESS_MAX);
const _: () = assert!(HANDSHAKES_PER_ADDRESS_MAX < HANDSHAKES_MAX && HANDSHAKES_MAX < LINKS_MAX);
const _: () = assert!(2 * STREAMS_MAX <= STREAMS_PER_LINK_MAX);
