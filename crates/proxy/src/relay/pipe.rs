//! Bytes from one socket to another, and back.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::Poll;

use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

/// A pipelined batch fits; larger ones gain little.
const BUFFER: usize = 16 << 10;
/// Buffers kept for the next reader. Only a reader whose writer is stuck holds one for longer than
/// a moment, so that thousands of idle connections cost no buffers.
const KEPT_BUFFERS: usize = 32;

thread_local! {
    static BUFFERS: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

fn take_buffer() -> Box<[u8]> {
    BUFFERS.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; BUFFER].into_boxed_slice())
}

fn give_buffer(buffer: Box<[u8]>) {
    BUFFERS.with_borrow_mut(|kept| {
        if kept.len() < KEPT_BUFFERS {
            kept.push(buffer);
        }
    });
}

/// Why a direction ended.
enum End {
    /// The reader's peer has sent everything.
    Eof,
    Reading,
    Writing,
}

/// Relays until the server closes or the client is gone. A client that only shuts down its sending
/// side gets its remaining answers. When the server dies the client is closed, nothing is retried.
/// Dropping the future closes both.
pub(crate) async fn relay(client: &mut TcpStream, server: &mut TcpStream) {
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let up = async {
        match copy(&mut from_client, &mut to_server).await {
            End::Eof => {
                to_server.shutdown().await.ok();
                std::future::pending().await
            }
            // The server takes nothing any more; what it said before is still on its way down.
            End::Writing => std::future::pending().await,
            End::Reading => {}
        }
    };
    let down = copy(&mut from_server, &mut to_client);
    tokio::select! {
        () = up => {}
        _ = down => {}
    }
}

async fn copy(from: &mut ReadHalf<'_>, to: &mut WriteHalf<'_>) -> End {
    loop {
        let (buffer, read) = match read_some(from).await {
            Ok((_, 0)) => return End::Eof,
            Ok(found) => found,
            Err(_) => return End::Reading,
        };
        let written = to.write_all(&buffer[..read]).await;
        give_buffer(buffer);
        if written.is_err() {
            return End::Writing;
        }
    }
}

/// Reads into a buffer that is taken only once there is something to read.
async fn read_some(from: &mut ReadHalf<'_>) -> io::Result<(Box<[u8]>, usize)> {
    poll_fn(|context| {
        let mut buffer = take_buffer();
        let mut space = ReadBuf::new(&mut buffer);
        let poll = Pin::new(&mut *from).poll_read(context, &mut space);
        let read = space.filled().len();
        match poll {
            Poll::Ready(Ok(())) if read > 0 => Poll::Ready(Ok((buffer, read))),
            other => {
                give_buffer(buffer);
                other.map_ok(|()| (Box::default(), 0))
            }
        }
    })
    .await
}
