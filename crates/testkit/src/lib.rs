//! What tests stand on: real Redis and Valkey servers, a whole Larder with a folder of its own, a
//! writing client whose history is checked, and a judge that looks for two primaries.
//!
//! Everything runs on 127.0.0.1, on ports that this run holds alone, or on a test bed's Kubernetes
//! (see [`kubernetes`]), and is gone at the end of the test, also of one that failed.

pub mod disk;
pub mod engines;
pub mod history;
pub mod http;
pub mod instance;
pub mod kubernetes;
pub mod larder;
pub mod logs;
mod nodes;
pub mod ports;
pub mod primaries;
pub mod process;
pub mod redis;
pub mod resp;
pub mod wait;

pub use history::{History, Writer, WriterOptions};
pub use instance::{Endpoint, Instance, Node};
pub use larder::{Larder, LarderOptions, PASSWORD};
pub use primaries::PrimaryWatch;
pub use resp::{Connection, Reply};
pub use wait::eventually;
