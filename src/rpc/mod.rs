//! Messages: what `proto/decamp/v1` generates. Used by the operator's side (gRPC), by the agents among themselves, and, through
//! `serde::Serialize`, as the shape of `--json`. This room converts nothing and checks nothing: whoever receives a message
//! checks it.

#![allow(missing_docs, clippy::all, clippy::pedantic)]
#![allow(
    clippy::cast_possible_truncation,
    clippy::or_fun_call,
    clippy::large_futures,
    clippy::needless_pass_by_value
)]

pub mod json;

/// Version 1 of every message.
pub mod v1 {
    tonic::include_proto!("decamp.v1");
}
