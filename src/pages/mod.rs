//! CPU work on pages: is it zero, what is its digest, does compressing pay. Bytes in, answers out: no clock, no file, no thread
//! of its own; time comes in as an argument.

pub mod bitmap;
pub mod book;
pub mod compress;
pub mod hash;
pub mod zero;
