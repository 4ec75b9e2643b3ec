#![doc = include_str!("../README.md")]

pub mod model;
pub mod pki;
pub mod protocol;
pub mod quic;
pub mod rpc;
