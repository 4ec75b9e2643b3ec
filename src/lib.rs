#![doc = include_str!("../README.md")]

pub mod lab;
pub mod model;
pub mod protocol;
pub mod rpc;
