//! Commands and frames as bytes.

use bytes::{BufMut, BytesMut};

use crate::frame::Frame;

/// Appends a command: an array of bulk strings, which every version of the protocol reads.
pub fn encode_command<A: AsRef<[u8]>>(out: &mut BytesMut, args: &[A]) {
    header(out, b'*', args.len());
    for arg in args {
        bulk(out, b'$', arg.as_ref());
    }
}

/// Appends a frame. RESP3 kinds are written as such; the caller knows what the peer reads.
/// Bytes of [`Frame::Simple`], [`Frame::Error`] and [`Frame::BigNumber`] must not hold line ends.
pub fn encode_frame(out: &mut BytesMut, frame: &Frame) {
    match frame {
        Frame::Simple(text) => line(out, b'+', text),
        Frame::Error(error) => line(out, b'-', error.as_bytes()),
        Frame::Integer(number) => line(out, b':', number.to_string().as_bytes()),
        Frame::Bulk(bytes) => bulk(out, b'$', bytes),
        Frame::Null => out.put_slice(b"$-1\r\n"),
        Frame::Array(items) => many(out, b'*', items),
        Frame::Set(items) => many(out, b'~', items),
        Frame::Push(items) => many(out, b'>', items),
        Frame::Map(pairs) => {
            header(out, b'%', pairs.len());
            for (key, value) in pairs {
                encode_frame(out, key);
                encode_frame(out, value);
            }
        }
        Frame::Double(number) => line(out, b',', double_text(*number).as_bytes()),
        Frame::Boolean(yes) => out.put_slice(if *yes { b"#t\r\n" } else { b"#f\r\n" }),
        Frame::BigNumber(digits) => line(out, b'(', digits),
    }
}

/// RESP3 spells the odd ones `inf`, `-inf` and `nan`.
fn double_text(number: f64) -> String {
    if number.is_nan() {
        "nan".to_owned()
    } else if number.is_infinite() {
        if number > 0.0 { "inf".to_owned() } else { "-inf".to_owned() }
    } else {
        number.to_string()
    }
}

fn many(out: &mut BytesMut, mark: u8, items: &[Frame]) {
    header(out, mark, items.len());
    for item in items {
        encode_frame(out, item);
    }
}

fn line(out: &mut BytesMut, mark: u8, text: &[u8]) {
    out.reserve(text.len() + 3);
    out.put_u8(mark);
    out.put_slice(text);
    out.put_slice(b"\r\n");
}

fn header(out: &mut BytesMut, mark: u8, count: usize) {
    let mut digits = [0_u8; 20];
    let mut at = digits.len();
    let mut rest = count;
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    line(out, mark, &digits[at..]);
}

fn bulk(out: &mut BytesMut, mark: u8, bytes: &[u8]) {
    header(out, mark, bytes.len());
    out.reserve(bytes.len() + 2);
    out.put_slice(bytes);
    out.put_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_an_array_of_bulk_strings() {
        let mut out = BytesMut::new();
        encode_command(&mut out, &[&b"SET"[..], b"k", b"", &[0xff; 12]]);
        let mut expected = b"*4\r\n$3\r\nSET\r\n$1\r\nk\r\n$0\r\n\r\n$12\r\n".to_vec();
        expected.extend([0xff; 12]);
        expected.extend(b"\r\n");
        assert_eq!(out.as_ref(), expected);
    }
}
