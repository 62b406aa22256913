//! Bytes to frames, incrementally.

use bytes::{Buf, Bytes, BytesMut};

use crate::frame::{ErrorReply, Frame};
use crate::inline::split_inline;

/// What a peer may send. A peer that exceeds one of these is cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one string. 512 MiB, the servers' own `proto-max-bulk-len`.
    pub max_bulk: usize,
    /// Elements of one array, map or set. The servers take 1,048,576 in a request.
    pub max_elements: usize,
    /// Arrays within arrays. The deepest reply of a server (COMMAND DOCS) has under 10.
    pub max_depth: usize,
    /// Bytes of a line: simple strings, errors, inline commands (64 KiB in the servers).
    pub max_line: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_bulk: 512 << 20, max_elements: 1 << 20, max_depth: 32, max_line: 64 << 10 }
    }
}

/// The peer does not speak the protocol, or exceeds a limit. The connection cannot be used on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    #[error("a reply starts with the unknown byte {0:#04x}")]
    UnknownType(u8),
    #[error("a number in the protocol is not a number")]
    BadNumber,
    #[error("a length in the protocol is negative or beyond the limit of {limit}")]
    TooLong { limit: usize },
    #[error("a line is longer than {limit} bytes")]
    LineTooLong { limit: usize },
    #[error("arrays are nested deeper than {limit}")]
    TooDeep { limit: usize },
    #[error("a string does not end where its length says")]
    MissingEnd,
    #[error("an inline command has unbalanced quotes")]
    UnbalancedQuotes,
}

/// What the elements on the stack will become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Array,
    Map,
    Set,
    Push,
    /// `|`: attributes belong to the frame that follows and are dropped.
    Attribute,
}

#[derive(Debug)]
struct Open {
    kind: Kind,
    items: Vec<Frame>,
    /// Frames still to come; a map of n pairs starts with 2n.
    missing: usize,
}

/// Takes frames off the front of a buffer. Keeps what it has understood of an unfinished frame, so
/// that no byte is looked at twice however small the pieces are, and strings share the buffer's
/// memory.
#[derive(Debug)]
pub struct Decoder {
    limits: Limits,
    inline: bool,
    open: Vec<Open>,
    /// Bytes at the front of the buffer that hold no line end.
    scanned: usize,
    /// Length of the string whose header was read, and what it is.
    string: Option<(usize, u8)>,
}

impl Decoder {
    /// For what servers send.
    pub fn replies(limits: Limits) -> Self {
        Self { limits, inline: false, open: Vec::new(), scanned: 0, string: None }
    }

    /// For what clients send: a line that does not start with `*` is an inline command and comes
    /// out as an array of its words.
    pub fn requests(limits: Limits) -> Self {
        Self { inline: true, ..Self::replies(limits) }
    }

    /// The next whole frame, or `None` when `buffer` ends before it does; what was understood is
    /// taken from `buffer`. The same bytes in other pieces give the same frames.
    ///
    /// # Errors
    /// [`ProtocolError`]; the stream cannot be read on after one.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Frame>, ProtocolError> {
        loop {
            let Some(step) = self.step(buffer)? else { return Ok(None) };
            let mut done = match step {
                Step::Opened => continue,
                Step::Frame(frame) => frame,
            };
            // A finished frame may finish the arrays around it.
            loop {
                let Some(open) = self.open.last_mut() else { return Ok(Some(done)) };
                open.items.push(done);
                open.missing -= 1;
                if open.missing > 0 {
                    break;
                }
                let Some(open) = self.open.pop() else { break };
                match close(open) {
                    Some(frame) => done = frame,
                    None => break,
                }
            }
        }
    }

    /// Whether a frame has been begun and not finished, not counting bytes left in the buffer.
    pub fn is_mid_frame(&self) -> bool {
        !self.open.is_empty() || self.string.is_some()
    }

    fn step(&mut self, buffer: &mut BytesMut) -> Result<Option<Step>, ProtocolError> {
        if let Some((length, mark)) = self.string {
            return self.string_body(buffer, length, mark);
        }
        let Some(line) = self.line(buffer)? else { return Ok(None) };
        let Some(mark) = line.first().copied() else {
            return if self.inline && self.open.is_empty() {
                Ok(Some(Step::Frame(Frame::Array(Vec::new()))))
            } else {
                Err(ProtocolError::UnknownType(b'\r'))
            };
        };
        if self.inline && self.open.is_empty() && mark != b'*' {
            let words = split_inline(&line).ok_or(ProtocolError::UnbalancedQuotes)?;
            return Ok(Some(Step::Frame(Frame::Array(
                words.into_iter().map(Frame::Bulk).collect(),
            ))));
        }
        let rest = line.slice(1..);
        let frame = match mark {
            b'+' => Frame::Simple(rest),
            b'-' => Frame::Error(ErrorReply::new(rest)),
            b':' => Frame::Integer(number(&rest)?),
            b'$' | b'!' | b'=' => match length(&rest, self.limits.max_bulk)? {
                None => Frame::Null,
                Some(length) => {
                    self.string = Some((length, mark));
                    return self.string_body(buffer, length, mark);
                }
            },
            b'*' => return self.opened(Kind::Array, &rest).map(Some),
            b'~' => return self.opened(Kind::Set, &rest).map(Some),
            b'>' => return self.opened(Kind::Push, &rest).map(Some),
            b'%' => return self.opened(Kind::Map, &rest).map(Some),
            b'|' => return self.opened(Kind::Attribute, &rest).map(Some),
            b'_' => Frame::Null,
            b',' => Frame::Double(double(&rest)?),
            b'#' => match rest.as_ref() {
                b"t" => Frame::Boolean(true),
                b"f" => Frame::Boolean(false),
                _ => return Err(ProtocolError::BadNumber),
            },
            b'(' => {
                let digits = rest.strip_prefix(b"-").unwrap_or(&rest);
                if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
                    return Err(ProtocolError::BadNumber);
                }
                Frame::BigNumber(rest)
            }
            other => return Err(ProtocolError::UnknownType(other)),
        };
        Ok(Some(Step::Frame(frame)))
    }

    /// Takes one line, without its end, off the buffer. Inline commands may end with a bare `\n`.
    fn line(&mut self, buffer: &mut BytesMut) -> Result<Option<Bytes>, ProtocolError> {
        let limit = self.limits.max_line;
        let Some(found) = memchr::memchr(b'\n', &buffer[self.scanned..]) else {
            self.scanned = buffer.len();
            return if buffer.len() > limit {
                Err(ProtocolError::LineTooLong { limit })
            } else {
                Ok(None)
            };
        };
        let end = self.scanned + found;
        self.scanned = 0;
        if end > limit {
            return Err(ProtocolError::LineTooLong { limit });
        }
        let mut line = buffer.split_to(end + 1).freeze();
        line.truncate(end);
        if line.last() == Some(&b'\r') {
            line.truncate(end - 1);
        } else if !(self.inline && self.open.is_empty()) {
            return Err(ProtocolError::MissingEnd);
        }
        Ok(Some(line))
    }

    fn string_body(
        &mut self,
        buffer: &mut BytesMut,
        length: usize,
        mark: u8,
    ) -> Result<Option<Step>, ProtocolError> {
        if buffer.len() < length + 2 {
            // Room for all of it at once, but never more than 1 MiB on the word of a peer.
            buffer.reserve((length + 2 - buffer.len()).min(1 << 20));
            return Ok(None);
        }
        if &buffer[length..length + 2] != b"\r\n" {
            return Err(ProtocolError::MissingEnd);
        }
        self.string = None;
        let mut bytes = buffer.split_to(length).freeze();
        buffer.advance(2);
        Ok(Some(Step::Frame(match mark {
            b'!' => Frame::Error(ErrorReply::new(bytes)),
            b'=' => {
                // `txt:` or `mkd:` stands before the text.
                if bytes.get(3) != Some(&b':') {
                    return Err(ProtocolError::MissingEnd);
                }
                bytes.advance(4);
                Frame::Bulk(bytes)
            }
            _ => Frame::Bulk(bytes),
        })))
    }

    fn opened(&mut self, kind: Kind, rest: &[u8]) -> Result<Step, ProtocolError> {
        let Some(count) = length(rest, self.limits.max_elements)? else {
            return Ok(Step::Frame(Frame::Null));
        };
        let missing = match kind {
            Kind::Map | Kind::Attribute => count * 2,
            Kind::Array | Kind::Set | Kind::Push => count,
        };
        // Memory is taken as elements arrive: a header alone must not cost the promised sum.
        let open = Open { kind, items: Vec::with_capacity(missing.min(64)), missing };
        if missing == 0 {
            return Ok(close(open).map_or(Step::Opened, Step::Frame));
        }
        if self.open.len() >= self.limits.max_depth {
            return Err(ProtocolError::TooDeep { limit: self.limits.max_depth });
        }
        self.open.push(open);
        Ok(Step::Opened)
    }
}

enum Step {
    Frame(Frame),
    /// An array was begun (or an attribute ended): go on.
    Opened,
}

/// `None` for attributes, which are dropped.
fn close(open: Open) -> Option<Frame> {
    match open.kind {
        Kind::Array => Some(Frame::Array(open.items)),
        Kind::Set => Some(Frame::Set(open.items)),
        Kind::Push => Some(Frame::Push(open.items)),
        Kind::Attribute => None,
        Kind::Map => {
            let mut pairs = Vec::with_capacity(open.items.len() / 2);
            let mut items = open.items.into_iter();
            while let (Some(key), Some(value)) = (items.next(), items.next()) {
                pairs.push((key, value));
            }
            Some(Frame::Map(pairs))
        }
    }
}

fn number(text: &[u8]) -> Result<i64, ProtocolError> {
    std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or(ProtocolError::BadNumber)
}

/// A length; `None` for -1.
fn length(text: &[u8], limit: usize) -> Result<Option<usize>, ProtocolError> {
    match number(text)? {
        -1 => Ok(None),
        value => match usize::try_from(value) {
            Ok(value) if value <= limit => Ok(Some(value)),
            _ => Err(ProtocolError::TooLong { limit }),
        },
    }
}

fn double(text: &[u8]) -> Result<f64, ProtocolError> {
    // Rust reads `inf`, `-inf` and `nan` as RESP3 spells them.
    std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or(ProtocolError::BadNumber)
}
