//! What a reply can be, and error replies taken apart.

use std::fmt;

use bytes::Bytes;

/// One value of the protocol. RESP2's null bulk and null array and RESP3's null are all
/// [`Frame::Null`].
#[derive(Clone, Debug, PartialEq)]
pub enum Frame {
    /// `+OK`
    Simple(Bytes),
    /// `-ERR …` and the bulk error `!…` of RESP3.
    Error(ErrorReply),
    /// `:1`
    Integer(i64),
    /// `$3 abc`, and a verbatim string `=` without its three letters of format.
    Bulk(Bytes),
    /// `$-1`, `*-1`, `_`
    Null,
    /// `*2 …`
    Array(Vec<Frame>),
    /// `%1 key value`, in the order it was sent.
    Map(Vec<(Frame, Frame)>),
    /// `~2 …`
    Set(Vec<Frame>),
    /// `>2 …`: sent by the server without being asked.
    Push(Vec<Frame>),
    /// `,1.5`
    Double(f64),
    /// `#t`
    Boolean(bool),
    /// `(12345678901234567890`, digits as sent.
    BigNumber(Bytes),
}

impl Frame {
    /// The bytes of a simple or bulk string.
    pub fn as_bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Simple(bytes) | Self::Bulk(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// The text of a simple or bulk string that is valid UTF-8.
    pub fn as_text(&self) -> Option<&str> {
        self.as_bytes().and_then(|bytes| std::str::from_utf8(bytes).ok())
    }

    /// The word for this kind of frame in messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Simple(_) => "a simple string",
            Self::Error(_) => "an error",
            Self::Integer(_) => "an integer",
            Self::Bulk(_) => "a bulk string",
            Self::Null => "null",
            Self::Array(_) => "an array",
            Self::Map(_) => "a map",
            Self::Set(_) => "a set",
            Self::Push(_) => "a push",
            Self::Double(_) => "a double",
            Self::Boolean(_) => "a boolean",
            Self::BigNumber(_) => "a big number",
        }
    }
}

/// The line of an error reply, without the leading `-`.
#[derive(Clone, PartialEq, Eq)]
pub struct ErrorReply(Bytes);

impl ErrorReply {
    pub fn new(line: impl Into<Bytes>) -> Self {
        Self(line.into())
    }

    /// The code word: `NOAUTH`, `LOADING`, `ERR`. Empty when the line starts with none, as errors
    /// made by scripts may.
    pub fn code(&self) -> &str {
        let word = self.0.split(|b| *b == b' ').next().unwrap_or_default();
        let is_code = word.first().is_some_and(u8::is_ascii_uppercase)
            && word.iter().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || *b == b'_');
        if is_code { std::str::from_utf8(word).unwrap_or_default() } else { "" }
    }

    /// What follows the code word; the whole line where there is none.
    pub fn text(&self) -> String {
        let rest = &self.0[self.code().len()..];
        String::from_utf8_lossy(rest).trim_start().to_owned()
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for ErrorReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Debug for ErrorReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ErrorReply({:?})", String::from_utf8_lossy(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_replies_are_split_into_code_and_text() {
        let check = |line: &'static str, code: &str, text: &str| {
            let error = ErrorReply::new(line);
            assert_eq!((error.code(), error.text().as_str()), (code, text), "{line}");
        };
        check("NOAUTH Authentication required.", "NOAUTH", "Authentication required.");
        check(
            "LOADING Redis is loading the dataset in memory",
            "LOADING",
            "Redis is loading the dataset in memory",
        );
        check("ERR", "ERR", "");
        check("MOVED 3999 127.0.0.1:6381", "MOVED", "3999 127.0.0.1:6381");
        check("Denied by script", "", "Denied by script");
        check("", "", "");
    }
}
