#![doc = include_str!("../README.md")]

pub mod files;
pub mod model;
pub mod protocol;
pub mod rpc;
