//! A plain RESP2 client over one TCP connection, without any retry or reconnect of its own, and
//! independent of the crates under test.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::instance::Endpoint;

/// One reply of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    Simple(String),
    Error(String),
    Integer(i64),
    Bulk(Vec<u8>),
    Nil,
    Array(Vec<Reply>),
}

impl Reply {
    pub fn is_ok(&self) -> bool {
        matches!(self, Self::Simple(text) if text == "OK")
    }

    /// The text of a simple or bulk string; empty for anything else.
    pub fn text(&self) -> String {
        match self {
            Self::Simple(text) | Self::Error(text) => text.clone(),
            Self::Bulk(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            Self::Integer(n) => n.to_string(),
            Self::Nil | Self::Array(_) => String::new(),
        }
    }

    pub fn items(&self) -> &[Reply] {
        match self {
            Self::Array(items) => items,
            _ => &[],
        }
    }
}

/// One connection. After an error of [`Connection::call`] it must be thrown away: replies may
/// still be on their way.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<TcpStream>,
    deadline: Duration,
}

fn late(doing: &str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("{doing}: no answer in time"))
}

impl Connection {
    /// Connects and logs in as `default`. `deadline` holds for the connection and later for each
    /// call.
    ///
    /// # Errors
    /// No connection, no answer in time, or the login was refused (`PermissionDenied`).
    pub async fn open(
        endpoint: &Endpoint,
        password: Option<&str>,
        deadline: Duration,
    ) -> io::Result<Self> {
        let connect = TcpStream::connect((endpoint.host.as_str(), endpoint.port));
        let stream =
            tokio::time::timeout(deadline, connect).await.map_err(|_| late("connecting"))??;
        stream.set_nodelay(true)?;
        let mut connection = Self { stream: BufReader::new(stream), deadline };
        if let Some(password) = password {
            let reply = connection.call(&["AUTH", password]).await?;
            if !reply.is_ok() {
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, reply.text()));
            }
        }
        Ok(connection)
    }

    /// Sends one command and waits for its reply. An error reply is a reply.
    ///
    /// # Errors
    /// The connection broke or the deadline passed. Whether the command was done is unknown then.
    pub async fn call<A: AsRef<[u8]>>(&mut self, args: &[A]) -> io::Result<Reply> {
        let mut replies = self.pipeline(&[args]).await?;
        replies.pop().ok_or_else(|| late("reading"))
    }

    /// Sends all commands, then reads all replies.
    ///
    /// # Errors
    /// As [`Connection::call`].
    pub async fn pipeline<A: AsRef<[u8]>, C: AsRef<[A]>>(
        &mut self,
        commands: &[C],
    ) -> io::Result<Vec<Reply>> {
        let mut bytes = Vec::new();
        for command in commands {
            encode(command.as_ref(), &mut bytes);
        }
        let deadline = self.deadline;
        let exchange = async {
            self.stream.get_mut().write_all(&bytes).await?;
            let mut replies = Vec::with_capacity(commands.len());
            for _ in commands {
                replies.push(self.reply().await?);
            }
            Ok(replies)
        };
        tokio::time::timeout(deadline, exchange).await.map_err(|_| late("calling"))?
    }

    async fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        self.stream.read_until(b'\n', &mut line).await?;
        if !line.ends_with(b"\r\n") {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
        line.truncate(line.len() - 2);
        String::from_utf8(line).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
    }

    async fn reply(&mut self) -> io::Result<Reply> {
        let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let line = self.line().await?;
        let Some((kind, rest)) = line.split_at_checked(1) else {
            return Err(invalid("an empty line is no reply"));
        };
        let number = || rest.parse::<i64>().map_err(|_| invalid("not a number"));
        Ok(match kind {
            "+" => Reply::Simple(rest.to_owned()),
            "-" => Reply::Error(rest.to_owned()),
            ":" => Reply::Integer(number()?),
            "$" => match usize::try_from(number()?) {
                Err(_) => Reply::Nil,
                Ok(length) => {
                    let mut bytes = vec![0; length + 2];
                    self.stream.read_exact(&mut bytes).await?;
                    bytes.truncate(length);
                    Reply::Bulk(bytes)
                }
            },
            "*" => match usize::try_from(number()?) {
                Err(_) => Reply::Nil,
                Ok(length) => {
                    let mut items = Vec::with_capacity(length.min(1024));
                    for _ in 0..length {
                        items.push(Box::pin(self.reply()).await?);
                    }
                    Reply::Array(items)
                }
            },
            _ => return Err(invalid("not RESP2")),
        })
    }
}

fn encode<A: AsRef<[u8]>>(args: &[A], out: &mut Vec<u8>) {
    out.extend_from_slice(format!("*{}\r\n", args.len()).as_bytes());
    for arg in args {
        let arg = arg.as_ref();
        out.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
        out.extend_from_slice(arg);
        out.extend_from_slice(b"\r\n");
    }
}

/// The hash slot of a key: CRC-16/XMODEM of its hash tag, modulo 16384 (Redis Cluster
/// specification, "Key distribution model").
pub fn slot(key: &str) -> u16 {
    let tag = key
        .split_once('{')
        .and_then(|(_, rest)| rest.split_once('}'))
        .map(|(tag, _)| tag)
        .filter(|tag| !tag.is_empty())
        .unwrap_or(key);
    let mut crc = 0_u16;
    for byte in tag.bytes() {
        crc ^= u16::from(byte) << 8;
        for _ in 0..8 {
            crc = if crc & 0x8000 != 0 { (crc << 1) ^ 0x1021 } else { crc << 1 };
        }
    }
    crc % 16384
}

/// A hash tag whose slot lies between `first` and `last`.
pub fn tag_in(first: u16, last: u16) -> String {
    (0_u32..)
        .map(|n| format!("t{n}"))
        .find(|tag| (first..=last).contains(&slot(tag)))
        .expect("some short text falls into every range of slots")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_the_cluster_specification() {
        assert_eq!(slot("123456789"), 12739);
        assert_eq!(slot("{user1000}.following"), slot("user1000"));
        assert!((5461..=10922).contains(&slot(&tag_in(5461, 10922))));
    }
}
