//! One connection to one server, with a deadline on every call.

use std::path::Path;
use std::time::Duration;

use bytes::BytesMut;
use larder_model::{Address, Secret};
use larder_resp::{Decoder, ErrorReply, Frame, Limits, encode_command};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use crate::error::NodeError;

trait Io: AsyncRead + AsyncWrite + Unpin + Send + Sync {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send + Sync> Io for T {}

/// A connection to a server. Calls run one after the other. A call that fails without an answer,
/// or whose future is dropped before it ends, leaves the connection closed: a later call can
/// never read an answer that belongs to an earlier one.
pub struct Connection {
    stream: Box<dyn Io>,
    decoder: Decoder,
    input: BytesMut,
    output: BytesMut,
    server: String,
    /// Host part of `server`, for servers that do not know their own address.
    host: String,
    timeout: Duration,
    /// A call is under way or ended half way.
    broken: bool,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The buffers may hold what users and operators send: never shown.
        f.debug_struct("Connection")
            .field("server", &self.server)
            .field("broken", &self.broken)
            .finish_non_exhaustive()
    }
}

impl Connection {
    /// Connects over TCP. `deadline` holds for connecting and, until
    /// [`Connection::set_timeout`], for every call.
    ///
    /// # Errors
    /// [`NodeError::Connect`] or [`NodeError::Timeout`]. Cancel-safe.
    pub async fn connect(address: &Address, deadline: Duration) -> Result<Self, NodeError> {
        let server = address.to_string();
        let connecting = TcpStream::connect((address.host.as_str(), address.port));
        let stream = match timeout(deadline, connecting).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(source)) => return Err(NodeError::Connect { server, source }),
            Err(_) => return Err(connect_timeout(server, deadline)),
        };
        // A failure to set it costs latency, not correctness.
        stream.set_nodelay(true).ok();
        Ok(Self::over(Box::new(stream), server, address.host.clone(), deadline))
    }

    /// Connects over a unix socket.
    ///
    /// # Errors
    /// As [`Connection::connect`].
    pub async fn connect_unix(path: &Path, deadline: Duration) -> Result<Self, NodeError> {
        let server = path.display().to_string();
        match timeout(deadline, UnixStream::connect(path)).await {
            Ok(Ok(stream)) => {
                Ok(Self::over(Box::new(stream), server, "127.0.0.1".to_owned(), deadline))
            }
            Ok(Err(source)) => Err(NodeError::Connect { server, source }),
            Err(_) => Err(connect_timeout(server, deadline)),
        }
    }

    /// Connects and logs in as an ACL user.
    ///
    /// # Errors
    /// As [`Connection::connect`] and [`Connection::auth`].
    pub async fn login(
        address: &Address,
        user: &str,
        password: &Secret,
        deadline: Duration,
    ) -> Result<Self, NodeError> {
        let mut connection = Self::connect(address, deadline).await?;
        connection.auth(Some(user), password).await?;
        Ok(connection)
    }

    fn over(stream: Box<dyn Io>, server: String, host: String, timeout: Duration) -> Self {
        Self {
            stream,
            decoder: Decoder::replies(Limits::default()),
            input: BytesMut::new(),
            output: BytesMut::new(),
            server,
            host,
            timeout,
            broken: false,
        }
    }

    /// The time that each following call may take as a whole.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Where the server is, as text.
    pub fn server(&self) -> &str {
        &self.server
    }

    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// Whether the connection was given up; every further call fails with [`NodeError::Closed`].
    pub fn is_closed(&self) -> bool {
        self.broken
    }

    /// `AUTH [user] password`; allowed while the server loads.
    ///
    /// # Errors
    /// [`NodeError::NotAllowed`] for a wrong password; then the connection can still be used.
    pub async fn auth(&mut self, user: Option<&str>, password: &Secret) -> Result<(), NodeError> {
        let mut args = vec!["AUTH"];
        args.extend(user);
        args.push(password.expose());
        let result = self.call(&args).await;
        self.forget_what_was_sent();
        self.expect_ok("AUTH", result?)
    }

    /// Sends one command and reads its answer. Error replies come back as errors.
    ///
    /// # Errors
    /// [`NodeError`]. Not cancel-safe in the sense that the command may have been carried out; the
    /// connection is closed then.
    pub async fn call<A: AsRef<[u8]>>(&mut self, args: &[A]) -> Result<Frame, NodeError> {
        let doing = command_name(args);
        self.output.clear();
        encode_command(&mut self.output, args);
        let mut replies = self.exchange(&doing, 1).await?;
        match replies.pop() {
            Some(Frame::Error(error)) => Err(NodeError::from_reply(&self.server, &doing, error)),
            Some(frame) => Ok(frame),
            None => Err(self.closed(&doing)),
        }
    }

    /// Sends several commands at once and reads all answers, in order. An error reply to one does
    /// not hide the answers to the others.
    ///
    /// # Errors
    /// Only when the connection fails; then nothing is known of any of the commands.
    pub async fn pipeline<A: AsRef<[u8]>>(
        &mut self,
        commands: &[Vec<A>],
    ) -> Result<Vec<Result<Frame, NodeError>>, NodeError> {
        self.output.clear();
        for command in commands {
            encode_command(&mut self.output, command);
        }
        let doing = commands.first().map_or_else(String::new, |first| command_name(first));
        let replies = self.exchange(&doing, commands.len()).await?;
        Ok(replies
            .into_iter()
            .zip(commands)
            .map(|(frame, command)| match frame {
                Frame::Error(error) => {
                    Err(NodeError::from_reply(&self.server, &command_name(command), error))
                }
                frame => Ok(frame),
            })
            .collect())
    }

    /// Writes `self.output` and reads `count` frames within the deadline.
    async fn exchange(&mut self, doing: &str, count: usize) -> Result<Vec<Frame>, NodeError> {
        if self.broken {
            return Err(self.closed(doing));
        }
        self.broken = true;
        let deadline = self.timeout;
        let work = async {
            // A server that is full or protected answers and closes without reading: what it said
            // is looked for even when writing failed.
            let written = self.stream.write_all(&self.output).await;
            let mut replies = Vec::with_capacity(count);
            while replies.len() < count {
                match self.decoder.decode(&mut self.input).map_err(Failure::Protocol)? {
                    // Nobody asked for it: not an answer.
                    Some(Frame::Push(_)) => {}
                    Some(frame) => replies.push(frame),
                    None => {
                        self.input.reserve(4096);
                        let read = match self.stream.read_buf(&mut self.input).await {
                            Ok(read) => read,
                            Err(error) => return Err(Failure::Io(written.err().unwrap_or(error))),
                        };
                        if read == 0 {
                            return Err(Failure::Closed(replies.pop()));
                        }
                    }
                }
            }
            Ok(replies)
        };
        match timeout(deadline, work).await {
            Ok(Ok(replies)) => {
                self.broken = false;
                Ok(replies)
            }
            Ok(Err(failure)) => Err(self.failed(doing, failure)),
            Err(_) => Err(NodeError::Timeout {
                server: self.server.clone(),
                doing: doing.to_owned(),
                waited: deadline,
            }),
        }
    }

    /// After a command with a secret in it.
    pub(crate) fn forget_what_was_sent(&mut self) {
        self.output.fill(0);
        self.output.clear();
    }

    fn failed(&self, doing: &str, failure: Failure) -> NodeError {
        let (server, doing) = (self.server.clone(), doing.to_owned());
        match failure {
            // A server that is full or protected says so and closes: its word is worth more than
            // the closed connection.
            Failure::Closed(Some(Frame::Error(error))) => {
                NodeError::from_reply(&server, &doing, error)
            }
            Failure::Closed(_) => NodeError::Closed { server, doing },
            Failure::Io(source) if is_end(&source) => NodeError::Closed { server, doing },
            Failure::Io(source) => NodeError::Io { server, doing, source },
            Failure::Protocol(source) => NodeError::Protocol { server, doing, source },
        }
    }

    fn closed(&self, doing: &str) -> NodeError {
        NodeError::Closed { server: self.server.clone(), doing: doing.to_owned() }
    }

    pub(crate) fn expect_ok(&self, doing: &str, frame: Frame) -> Result<(), NodeError> {
        match frame {
            Frame::Simple(_) => Ok(()),
            other => Err(self.unexpected(doing, &other)),
        }
    }

    pub(crate) fn unexpected(&self, doing: &str, frame: &Frame) -> NodeError {
        NodeError::Unexpected {
            server: self.server.clone(),
            doing: doing.to_owned(),
            got: frame.kind().to_owned(),
        }
    }

    pub(crate) fn unreadable(&self, doing: &str, source: crate::ParseError) -> NodeError {
        NodeError::Parse { server: self.server.clone(), doing: doing.to_owned(), source }
    }

    /// The error for a reply that the caller looked at and did not want.
    pub(crate) fn refused(&self, doing: &str, error: ErrorReply) -> NodeError {
        NodeError::from_reply(&self.server, doing, error)
    }
}

enum Failure {
    Io(std::io::Error),
    Protocol(larder_resp::ProtocolError),
    Closed(Option<Frame>),
}

fn is_end(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

fn connect_timeout(server: String, waited: Duration) -> NodeError {
    NodeError::Timeout { server, doing: "connect".to_owned(), waited }
}

/// `CLIENT LIST`, `PING`: the words of a command that are no secret.
fn command_name<A: AsRef<[u8]>>(args: &[A]) -> String {
    let word = |at: usize| {
        args.get(at)
            .map(|arg| String::from_utf8_lossy(arg.as_ref()).into_owned())
            .unwrap_or_default()
    };
    let first = word(0);
    match first.as_str() {
        "ACL" | "CLIENT" | "CLUSTER" | "CONFIG" => format!("{first} {}", word(1)),
        _ => first,
    }
}
