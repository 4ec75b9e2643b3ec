//! CRIU's image files: reading and writing the ones that decamp makes itself. Bytes in, bytes out; the formats are CRIU's
//! (criu/image.c, images/*.proto), re-declared from their field numbers. Anything not understood is refused, never guessed.

pub mod inventory;
pub mod pagemap;
pub mod timerfd;

/// CRIU's protobuf messages, from `proto/criu`.
#[allow(missing_docs, missing_debug_implementations, clippy::all)]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/criu.rs"));
}
