#![doc = include_str!("../README.md")]

pub mod images;
pub mod memory;
pub mod model;
pub mod pages;
pub mod protocol;
pub mod rpc;
pub mod store;
pub mod sys;
