//! The wire format of Redis (RESP2 and RESP3) on byte buffers, and hash slots.
//!
//! Pure: no sockets, no clock. A [`Decoder`] is fed bytes in any pieces and gives whole
//! [`Frame`]s; encoding appends to a buffer. What commands mean is not known here.
//! Source of the format: <https://redis.io/docs/latest/develop/reference/protocol-spec/>.

mod decode;
mod encode;
mod frame;
mod inline;
mod slot;

pub use decode::{Decoder, Limits, ProtocolError};
pub use encode::{encode_command, encode_frame};
pub use frame::{ErrorReply, Frame};
pub use inline::split_inline;
pub use slot::{crc16, hash_slot, hash_tag};
