//! The decoder against its own encoder, against any split of the input, against garbage, and
//! against another implementation.

use bytes::{Bytes, BytesMut};
use larder_resp::{
    Decoder, ErrorReply, Frame, Limits, ProtocolError, encode_command, encode_frame,
};
use proptest::prelude::*;
use redis_protocol::resp2::types::OwnedFrame;

fn decode_all(decoder: &mut Decoder, pieces: &[&[u8]]) -> Result<Vec<Frame>, ProtocolError> {
    let mut buffer = BytesMut::new();
    let mut frames = Vec::new();
    for piece in pieces {
        buffer.extend_from_slice(piece);
        while let Some(frame) = decoder.decode(&mut buffer)? {
            frames.push(frame);
        }
    }
    Ok(frames)
}

fn reply(input: &[u8]) -> Result<Vec<Frame>, ProtocolError> {
    decode_all(&mut Decoder::replies(Limits::default()), &[input])
}

fn request(input: &[u8]) -> Result<Vec<Frame>, ProtocolError> {
    decode_all(&mut Decoder::requests(Limits::default()), &[input])
}

fn bulk(text: &'static str) -> Frame {
    Frame::Bulk(Bytes::from_static(text.as_bytes()))
}

#[test]
fn each_kind_of_reply_is_read() {
    let check = |input: &str, expected: Frame| {
        assert_eq!(reply(input.as_bytes()), Ok(vec![expected]), "{input:?}");
    };
    check("+OK\r\n", Frame::Simple("OK".into()));
    check("-ERR no\r\n", Frame::Error(ErrorReply::new("ERR no")));
    check("!6\r\nERR no\r\n", Frame::Error(ErrorReply::new("ERR no")));
    check(":-12\r\n", Frame::Integer(-12));
    check("$0\r\n\r\n", bulk(""));
    check("$2\r\n\r\n\r\n", bulk("\r\n"));
    check("=7\r\ntxt:abc\r\n", bulk("abc"));
    check("$-1\r\n", Frame::Null);
    check("*-1\r\n", Frame::Null);
    check("_\r\n", Frame::Null);
    check("*0\r\n", Frame::Array(vec![]));
    check(
        "*2\r\n:1\r\n*1\r\n+a\r\n",
        Frame::Array(vec![Frame::Integer(1), Frame::Array(vec![Frame::Simple("a".into())])]),
    );
    check("%1\r\n+k\r\n:1\r\n", Frame::Map(vec![(Frame::Simple("k".into()), Frame::Integer(1))]));
    check("~1\r\n#t\r\n", Frame::Set(vec![Frame::Boolean(true)]));
    check(">1\r\n,-inf\r\n", Frame::Push(vec![Frame::Double(f64::NEG_INFINITY)]));
    check("(-123\r\n", Frame::BigNumber("-123".into()));
    check("|1\r\n+ttl\r\n:3\r\n+OK\r\n", Frame::Simple("OK".into()));
    check("*1\r\n|1\r\n+ttl\r\n:3\r\n+OK\r\n", Frame::Array(vec![Frame::Simple("OK".into())]));
    check("|0\r\n+OK\r\n", Frame::Simple("OK".into()));
}

#[test]
fn what_is_not_the_protocol_is_refused() {
    let check = |input: &str, expected: ProtocolError| {
        assert_eq!(reply(input.as_bytes()), Err(expected), "{input:?}");
    };
    check("HTTP/1.1 400\r\n", ProtocolError::UnknownType(b'H'));
    check("\r\n", ProtocolError::UnknownType(b'\r'));
    check(":1x\r\n", ProtocolError::BadNumber);
    check("$-2\r\n", ProtocolError::TooLong { limit: 512 << 20 });
    check("$99999999999\r\n", ProtocolError::TooLong { limit: 512 << 20 });
    check("*99999999\r\n", ProtocolError::TooLong { limit: 1 << 20 });
    check("$2\r\nabcd", ProtocolError::MissingEnd);
    check("+a\n", ProtocolError::MissingEnd);
    check(&"*1\r\n".repeat(40), ProtocolError::TooDeep { limit: 32 });
    check(&"+".repeat(70_000), ProtocolError::LineTooLong { limit: 64 << 10 });
}

#[test]
fn inline_and_multibulk_requests_give_the_same_frames() {
    let ping = Frame::Array(vec![bulk("SET"), bulk("k"), bulk("a b")]);
    assert_eq!(request(b"SET k \"a b\"\r\n"), Ok(vec![ping.clone()]));
    assert_eq!(request(b"SET k \"a b\"\n"), Ok(vec![ping.clone()]));
    assert_eq!(request(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$3\r\na b\r\n"), Ok(vec![ping]));
    assert_eq!(request(b"\r\n"), Ok(vec![Frame::Array(vec![])]));
    assert_eq!(request(b"SET \"k\r\n"), Err(ProtocolError::UnbalancedQuotes));
}

fn any_line() -> impl Strategy<Value = Bytes> {
    "[ -~]{0,12}".prop_map(Bytes::from)
}

fn any_frame() -> impl Strategy<Value = Frame> {
    let leaf = prop_oneof![
        any_line().prop_map(Frame::Simple),
        any_line().prop_map(|line| Frame::Error(ErrorReply::new(line))),
        any::<i64>().prop_map(Frame::Integer),
        prop::collection::vec(any::<u8>(), 0..40).prop_map(|b| Frame::Bulk(b.into())),
        Just(Frame::Null),
        any::<bool>().prop_map(Frame::Boolean),
        any::<f64>()
            .prop_filter("NaN is unequal to itself", |n| !n.is_nan())
            .prop_map(Frame::Double),
        any::<i128>().prop_map(|n| Frame::BigNumber(n.to_string().into())),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Frame::Array),
            prop::collection::vec(inner.clone(), 0..6).prop_map(Frame::Set),
            prop::collection::vec(inner.clone(), 0..6).prop_map(Frame::Push),
            prop::collection::vec((inner.clone(), inner), 0..4).prop_map(Frame::Map),
        ]
    })
}

/// Cuts `input` at the given places.
fn pieces<'a>(input: &'a [u8], cuts: &[prop::sample::Index]) -> Vec<&'a [u8]> {
    let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(input.len() + 1)).collect();
    at.extend([0, input.len()]);
    at.sort_unstable();
    at.windows(2).map(|w| &input[w[0]..w[1]]).collect()
}

/// The frame as the other implementation would have it; RESP2 only.
fn as_other(frame: &Frame) -> Option<OwnedFrame> {
    Some(match frame {
        Frame::Simple(text) => OwnedFrame::SimpleString(text.to_vec()),
        Frame::Error(error) => OwnedFrame::Error(error.to_string()),
        Frame::Integer(number) => OwnedFrame::Integer(*number),
        Frame::Bulk(bytes) => OwnedFrame::BulkString(bytes.to_vec()),
        Frame::Null => OwnedFrame::Null,
        Frame::Array(items) => {
            OwnedFrame::Array(items.iter().map(as_other).collect::<Option<Vec<_>>>()?)
        }
        _ => return None,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn what_is_written_is_read_back_however_it_is_cut(
        frames in prop::collection::vec(any_frame(), 1..4),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
    ) {
        let mut wire = BytesMut::new();
        for frame in &frames {
            encode_frame(&mut wire, frame);
        }
        let mut decoder = Decoder::replies(Limits::default());
        prop_assert_eq!(decode_all(&mut decoder, &pieces(&wire, &cuts)), Ok(frames));
        prop_assert!(!decoder.is_mid_frame());
    }

    #[test]
    fn garbage_never_panics_and_cuts_do_not_change_the_answer(
        garbage in prop::collection::vec(
            prop_oneof![
                4 => prop::sample::select(b"*$+-:%~>|!=_,#(0123456789\r\nax\"'\\ ".to_vec()),
                1 => any::<u8>(),
                2 => Just(b'\r'), 2 => Just(b'\n'),
            ], 0..60),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
    ) {
        for make in [Decoder::replies, Decoder::requests] {
            let whole = decode_all(&mut make(Limits::default()), &[&garbage]);
            let cut = decode_all(&mut make(Limits::default()), &pieces(&garbage, &cuts));
            // NaN is the one value that differs from itself.
            prop_assert_eq!(format!("{:?}", whole), format!("{:?}", cut));
        }
    }

    #[test]
    fn another_implementation_reads_the_same(frame in any_frame()) {
        let Some(expected) = as_other(&frame) else { return Ok(()) };
        let mut wire = BytesMut::new();
        encode_frame(&mut wire, &frame);
        let (other, used) = redis_protocol::resp2::decode::decode(&wire)
            .expect("the other implementation reads it")
            .expect("it is whole");
        prop_assert_eq!(used, wire.len());
        prop_assert_eq!(other, expected);
    }

    #[test]
    fn commands_are_read_as_requests(args in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 1..6)) {
        let mut wire = BytesMut::new();
        encode_command(&mut wire, &args);
        let expected = Frame::Array(args.into_iter().map(|a| Frame::Bulk(a.into())).collect());
        prop_assert_eq!(request(&wire), Ok(vec![expected]));
    }
}
