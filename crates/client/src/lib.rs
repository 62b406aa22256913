//! Typed client of Larder's REST API: requests, the event stream, waiting for operations.
//!
//! Used by the command line and by tests. It never retries a change by itself: a request whose
//! answer was lost may have been carried out.

mod client;
mod error;
mod sse;
mod stream;
mod wait;

pub use client::{Client, InstanceFilter, InstanceRef};
pub use error::ClientError;
pub use sse::{SseMessage, SseParser};
pub use stream::EventStream;
pub use wait::{WaitError, WaitOptions};
