//! Inline commands: a line of words, as people type into telnet.

use bytes::{BufMut, Bytes, BytesMut};

/// Splits a line as Redis does (`sdssplitargs` in sds.c): blanks separate, double quotes know
/// `\n \r \t \b \a \xHH` and `\` before anything else, single quotes know `\'`. `None` when a
/// quote is not closed or is followed by something other than a blank.
pub fn split_inline(line: &[u8]) -> Option<Vec<Bytes>> {
    let mut words = Vec::new();
    let mut at = 0;
    loop {
        while line.get(at).is_some_and(|b| is_blank(*b)) {
            at += 1;
        }
        if at >= line.len() {
            return Some(words);
        }
        let mut word = BytesMut::new();
        loop {
            match line.get(at) {
                None => break,
                Some(b) if is_blank(*b) => break,
                Some(b'"') => {
                    at = double_quoted(line, at + 1, &mut word)?;
                    break;
                }
                Some(b'\'') => {
                    at = single_quoted(line, at + 1, &mut word)?;
                    break;
                }
                Some(b) => word.put_u8(*b),
            }
            at += 1;
        }
        words.push(word.freeze());
    }
}

fn is_blank(byte: u8) -> bool {
    byte.is_ascii_whitespace() || byte == 0x0b || byte == 0
}

/// Reads up to the closing quote; answers the position after it.
fn double_quoted(line: &[u8], mut at: usize, word: &mut BytesMut) -> Option<usize> {
    loop {
        match line.get(at)? {
            b'\\' => {
                let next = *line.get(at + 1)?;
                let hex = (next == b'x')
                    .then(|| line.get(at + 2..at + 4))
                    .flatten()
                    .and_then(|pair| Some(hex_digit(pair[0])? << 4 | hex_digit(pair[1])?));
                if let Some(byte) = hex {
                    word.put_u8(byte);
                    at += 4;
                    continue;
                }
                word.put_u8(match next {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 0x08,
                    b'a' => 0x07,
                    other => other,
                });
                at += 2;
            }
            b'"' => return closed(line, at + 1),
            byte => {
                word.put_u8(*byte);
                at += 1;
            }
        }
    }
}

fn single_quoted(line: &[u8], mut at: usize, word: &mut BytesMut) -> Option<usize> {
    loop {
        match (line.get(at)?, line.get(at + 1)) {
            (b'\\', Some(b'\'')) => {
                word.put_u8(b'\'');
                at += 2;
            }
            (b'\'', _) => return closed(line, at + 1),
            (byte, _) => {
                word.put_u8(*byte);
                at += 1;
            }
        }
    }
}

fn closed(line: &[u8], at: usize) -> Option<usize> {
    line.get(at).is_none_or(|b| is_blank(*b)).then_some(at)
}

fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str, expected: Option<&[&[u8]]>) {
        let words = split_inline(line.as_bytes());
        let words: Option<Vec<&[u8]>> =
            words.as_ref().map(|words| words.iter().map(AsRef::as_ref).collect());
        assert_eq!(words.as_deref(), expected, "{line}");
    }

    #[test]
    fn inline_words_are_split_as_redis_splits_them() {
        check("PING", Some(&[b"PING"]));
        check("  set\tk  v ", Some(&[b"set", b"k", b"v"]));
        check("", Some(&[]));
        check(r#"echo "a b\n\x41\"""#, Some(&[b"echo", b"a b\nA\""]));
        check(r"echo 'it\'s' ''", Some(&[b"echo", b"it's", b""]));
        check(r#"echo "open"#, None);
        check(r#"echo "a"b"#, None);
        check("echo 'open", None);
    }
}
