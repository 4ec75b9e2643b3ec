#![doc = include_str!("../README.md")]

pub mod criu;
pub mod hook;
pub mod images;
pub mod journal;
pub mod lab;
pub mod memory;
pub mod model;
pub mod network;
pub mod pages;
pub mod protocol;
pub mod rpc;
pub mod runtime;
pub mod store;
pub mod sys;
