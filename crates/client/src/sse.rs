//! Reads a stream of server-sent events from bytes as they come.
//!
//! Source of the format: WHATWG HTML, section "Interpreting an event stream".

/// One message of the stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SseMessage {
    /// The last id seen, also on messages that do not set one.
    pub id: String,
    /// `message` when the stream does not name it.
    pub event: String,
    pub data: String,
}

/// Longest line or message that is taken in, in bytes: a stream is not trusted with our memory.
const MAX_MESSAGE: usize = 1 << 20;

/// Takes bytes, gives messages. Comments (keep-alives) give nothing.
#[derive(Debug, Default)]
pub struct SseParser {
    line: Vec<u8>,
    after_cr: bool,
    id: String,
    event: String,
    data: String,
    has_data: bool,
}

/// A line or message was longer than 1 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message of the event stream is longer than {MAX_MESSAGE} bytes")]
pub struct TooLong;

impl SseParser {
    /// Takes the next bytes, split anywhere, and answers the messages they complete.
    ///
    /// # Errors
    /// [`TooLong`]; the parser is of no more use then.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<SseMessage>, TooLong> {
        let mut messages = Vec::new();
        for &byte in bytes {
            // A line ends with CR, LF or CRLF, which may be split between two reads.
            let after_cr = std::mem::take(&mut self.after_cr);
            match byte {
                b'\n' if after_cr => {}
                b'\n' | b'\r' => {
                    self.after_cr = byte == b'\r';
                    let line = std::mem::take(&mut self.line);
                    messages.extend(self.line_done(&String::from_utf8_lossy(&line)));
                }
                _ => {
                    if self.line.len() + self.data.len() >= MAX_MESSAGE {
                        return Err(TooLong);
                    }
                    self.line.push(byte);
                }
            }
        }
        Ok(messages)
    }

    fn line_done(&mut self, line: &str) -> Option<SseMessage> {
        if line.is_empty() {
            return self.message_done();
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" if !value.contains('\0') => value.clone_into(&mut self.id),
            "event" => value.clone_into(&mut self.event),
            "data" => {
                if self.has_data {
                    self.data.push('\n');
                }
                self.has_data = true;
                self.data.push_str(value);
            }
            _ => {}
        }
        None
    }

    fn message_done(&mut self) -> Option<SseMessage> {
        let event = std::mem::take(&mut self.event);
        let data = std::mem::take(&mut self.data);
        std::mem::take(&mut self.has_data).then(|| SseMessage {
            id: self.id.clone(),
            event: if event.is_empty() { "message".to_owned() } else { event },
            data,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_do_not_depend_on_how_the_bytes_are_split() {
        let text = b": hello\r\n\r\nid: 7\nevent: event\ndata: {\"a\":\ndata:1}\n\ndata: x\r\n\r\n";
        let whole = SseParser::default().push(text).unwrap();
        assert_eq!(
            whole,
            [
                SseMessage { id: "7".into(), event: "event".into(), data: "{\"a\":\n1}".into() },
                SseMessage { id: "7".into(), event: "message".into(), data: "x".into() },
            ]
        );
        for cut in 0..text.len() {
            let mut parser = SseParser::default();
            let mut got = parser.push(&text[..cut]).unwrap();
            got.extend(parser.push(&text[cut..]).unwrap());
            assert_eq!(got, whole, "cut at {cut}");
        }
    }

    #[test]
    fn endless_line_is_refused() {
        assert_eq!(SseParser::default().push(&vec![b'a'; MAX_MESSAGE + 1]), Err(TooLong));
    }
}
