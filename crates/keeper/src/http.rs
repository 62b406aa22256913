//! The smallest HTTP client that the sockets of one machine need: one request, one answer.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Larger answers are refused: a status of a node has some kilobytes.
const LARGEST_ANSWER: u64 = 8 << 20;

/// An answer: status and body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
}

/// `GET path` over the unix socket, within `deadline` in all. Cancel-safe.
///
/// # Errors
/// `TimedOut` after the deadline; `InvalidData` for what is not HTTP; else what the system says.
pub async fn get(socket: &Path, path: &str, deadline: Duration) -> io::Result<Answer> {
    request(socket, "GET", path, None, deadline).await
}

/// `POST path` with a JSON body, as [`get`].
pub async fn post(
    socket: &Path,
    path: &str,
    body: &[u8],
    deadline: Duration,
) -> io::Result<Answer> {
    request(socket, "POST", path, Some(body), deadline).await
}

async fn request(
    socket: &Path,
    method: &str,
    path: &str,
    body: Option<&[u8]>,
    deadline: Duration,
) -> io::Result<Answer> {
    let exchange = async {
        let mut stream = UnixStream::connect(socket).await?;
        // HTTP/1.0, because its answers end with the connection: no chunks to put together.
        let mut request = format!("{method} {path} HTTP/1.0\r\nhost: larder\r\n").into_bytes();
        if let Some(body) = body {
            let length = body.len();
            request.extend_from_slice(
                format!("content-type: application/json\r\ncontent-length: {length}\r\n")
                    .as_bytes(),
            );
        }
        request.extend_from_slice(b"\r\n");
        request.extend_from_slice(body.unwrap_or_default());
        stream.write_all(&request).await?;
        let mut answer = Vec::new();
        stream.take(LARGEST_ANSWER).read_to_end(&mut answer).await?;
        parse(&answer)
    };
    tokio::time::timeout(deadline, exchange).await.unwrap_or_else(|_| {
        Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {deadline:?}")))
    })
}

fn parse(bytes: &[u8]) -> io::Result<Answer> {
    let invalid = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    let end = bytes
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .ok_or_else(|| invalid("the answer ends within its head"))?;
    let head = std::str::from_utf8(&bytes[..end]).map_err(|_| invalid("the head is not text"))?;
    let mut lines = head.split("\r\n");
    let status = lines
        .next()
        .filter(|line| line.starts_with("HTTP/1."))
        .and_then(|line| line.split(' ').nth(1)?.parse().ok())
        .ok_or_else(|| invalid("the answer is not HTTP"))?;
    let body = bytes[end + 4..].to_vec();
    let length = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    match length {
        Some(length) if length != body.len() => Err(invalid("the answer was cut off")),
        _ => Ok(Answer { status, body }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_taken_apart() {
        let answer = parse(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").expect("whole");
        assert_eq!(answer, Answer { status: 200, body: b"{}".to_vec() });
    }

    #[test]
    fn cut_off_and_foreign_answers_are_errors() {
        for bad in [
            "",
            "HTTP/1.1 200 OK\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n{}",
            "-ERR unknown command\r\n\r\n",
        ] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_silent_socket_costs_no_more_than_the_deadline() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("s");
        let _listener = tokio::net::UnixListener::bind(&path).expect("bind");
        let error = get(&path, "/v1/ping", Duration::from_millis(50)).await.expect_err("silent");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
