//! The kernel: thin typed wrappers over calls that no crate wraps, and over those that need a rule of ours. The only room with
//! `unsafe`. It decides nothing: which pages to read or to keep is the business of `memory` and `store`.

pub mod inject;
pub mod memfd;
pub mod pagemap;
pub mod passing;
pub mod priority;
pub mod process_vm;
pub mod twin;
pub mod uffd;
pub mod uffd_wp;
