//! Real Redis and Valkey servers for tests, each with its own folder and port, killed when
//! dropped.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::BytesMut;
use larder_model::Address;
use larder_resp::{Decoder, Frame, Limits, encode_command};
use rustix::process::{Pid, Signal, kill_process};

use crate::engines;

/// Which server binary a test runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Engine {
    /// `redis-server` in the search path, or what `LARDER_TEST_REDIS` names.
    Redis,
    /// Another binary.
    Path(PathBuf),
}

impl Engine {
    /// The engines that this machine has for tests: [`Engine::Redis`] and those of
    /// [`crate::engines`].
    pub fn all() -> Vec<Self> {
        let more = engines::folders().into_iter().filter_map(|folder| {
            let name = folder.file_name()?.to_str()?;
            engines::binary(name).ok().map(Self::Path)
        });
        std::iter::once(Self::Redis).chain(more).collect()
    }

    /// The binary.
    pub fn binary(&self) -> PathBuf {
        match self {
            Self::Path(path) => path.clone(),
            Self::Redis => {
                std::env::var_os("LARDER_TEST_REDIS").map_or_else(find_redis, PathBuf::from)
            }
        }
    }
}

impl From<&Path> for Engine {
    fn from(path: &Path) -> Self {
        Self::Path(path.to_owned())
    }
}

fn find_redis() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|folder| folder.join("redis-server"))
        .find(|file| file.is_file())
        .unwrap_or_else(|| PathBuf::from("redis-server"))
}

/// A running server. Dropping it kills the server and deletes its folder.
#[derive(Debug)]
pub struct RedisServer {
    child: Child,
    engine: Engine,
    port: u16,
    password: Option<String>,
    folder: tempfile::TempDir,
}

impl RedisServer {
    /// Starts a server on a free port of 127.0.0.1 and waits until it answers. It saves nothing
    /// unless `extra` says so; `extra` are lines of its configuration.
    ///
    /// # Errors
    /// When it does not answer within 10 s, with its last words.
    pub fn start(engine: Engine, extra: &[(&str, &str)]) -> Result<Self> {
        // Somebody else may take the port between the test and the start: then another one.
        let mut last = None;
        for _ in 0..5 {
            match Self::start_on(engine.clone(), free_port(), extra) {
                Ok(server) => return Ok(server),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| anyhow::anyhow!("no attempt was made")))
    }

    /// As [`RedisServer::start`], on a given port.
    ///
    /// # Errors
    /// As [`RedisServer::start`].
    pub fn start_on(engine: Engine, port: u16, extra: &[(&str, &str)]) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("redis-").tempdir()?;
        let mut lines = vec![
            ("bind", "127.0.0.1".to_owned()),
            ("port", port.to_string()),
            ("dir", folder.path().display().to_string()),
            ("logfile", folder.path().join("server.log").display().to_string()),
            ("save", "\"\"".to_owned()),
            ("repl-diskless-sync-delay", "0".to_owned()),
            ("daemonize", "no".to_owned()),
        ];
        lines.extend(extra.iter().map(|(name, value)| (*name, (*value).to_owned())));
        let text: String = lines.iter().map(|(name, value)| format!("{name} {value}\n")).collect();
        fs::write(folder.path().join("redis.conf"), text)?;
        let password = extra.iter().find(|(name, _)| *name == "requirepass");
        let password = password.map(|(_, value)| (*value).to_owned());
        let child = spawn(&engine, folder.path())?;
        let mut server = Self { child, engine, port, password, folder };
        server.wait_until_it_answers()?;
        Ok(server)
    }

    pub fn address(&self) -> Address {
        Address::new("127.0.0.1", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its folder: `redis.conf`, `server.log`, data.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Sends one command and answers what came back as text: array elements on lines of their
    /// own, null as `(nil)`, errors as `(error) …`.
    ///
    /// # Errors
    /// When the server cannot be reached or does not answer within 5 s.
    pub fn cli(&self, args: &[&str]) -> Result<String> {
        let mut stream = self.connect()?;
        let mut wire = BytesMut::new();
        if let Some(password) = &self.password {
            encode_command(&mut wire, &["AUTH", password]);
        }
        encode_command(&mut wire, args);
        stream.write_all(&wire)?;
        let mut decoder = Decoder::replies(Limits::default());
        let mut input = BytesMut::new();
        let mut missing = 1 + usize::from(self.password.is_some());
        loop {
            while let Some(frame) = decoder.decode(&mut input)? {
                missing -= 1;
                if missing == 0 {
                    return Ok(as_text(&frame));
                }
            }
            let mut chunk = [0; 4096];
            let read = stream.read(&mut chunk).with_context(|| format!("no answer to {args:?}"))?;
            if read == 0 {
                bail!("the server closed the connection before it answered {args:?}");
            }
            input.extend_from_slice(&chunk[..read]);
        }
    }

    /// `kill -9`, and waits until it is gone.
    ///
    /// # Errors
    /// When the signal cannot be sent.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Stops all its threads (SIGSTOP).
    ///
    /// # Errors
    /// When the signal cannot be sent.
    pub fn freeze(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets it run on after [`RedisServer::freeze`].
    ///
    /// # Errors
    /// When the signal cannot be sent.
    pub fn thaw(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// Starts it again on the same port and folder; kills it first when it runs.
    ///
    /// # Errors
    /// As [`RedisServer::start`].
    pub fn restart(&mut self) -> Result<()> {
        self.kill().ok();
        self.child = spawn(&self.engine, self.folder.path())?;
        self.wait_until_it_answers()
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id())?;
        let pid = Pid::from_raw(pid).context("a process without id")?;
        Ok(kill_process(pid, signal)?)
    }

    fn connect(&self) -> Result<TcpStream> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    fn wait_until_it_answers(&mut self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            if let Ok(answer) = self.cli(&["PING"])
                && !answer.starts_with("(error) LOADING")
            {
                return Ok(());
            }
            let exited = self.child.try_wait()?;
            if exited.is_some() || Instant::now() > deadline {
                self.kill().ok();
                let mut log = String::new();
                for name in ["server.log", "output.log"] {
                    log += &fs::read_to_string(self.folder.path().join(name)).unwrap_or_default();
                }
                bail!("{:?} did not start on port {}: {log}", self.engine, self.port);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn spawn(engine: &Engine, folder: &Path) -> Result<Child> {
    let binary = engine.binary();
    let output = File::create(folder.join("output.log"))?;
    Command::new(&binary)
        .arg(folder.join("redis.conf"))
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .spawn()
        .with_context(|| format!("cannot start {}", binary.display()))
}

/// A port of 127.0.0.1 on which nobody listens, and nobody on the bus port 10,000 above it.
/// Outside of the range from which the kernel takes ports for clients.
pub fn free_port() -> u16 {
    const FIRST: u16 = 10_500;
    const COUNT: u16 = 6000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Test processes that run side by side start at different places.
    let start = (std::process::id() % 200) as u16 * 29;
    loop {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + start.wrapping_add(step) % COUNT;
        let is_free = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
        if is_free(port) && is_free(port + 10_000) {
            return port;
        }
    }
}

fn as_text(frame: &Frame) -> String {
    match frame {
        Frame::Error(error) => format!("(error) {error}"),
        Frame::Integer(number) => number.to_string(),
        Frame::Null => "(nil)".to_owned(),
        Frame::Array(items) | Frame::Set(items) | Frame::Push(items) => {
            items.iter().map(as_text).collect::<Vec<_>>().join("\n")
        }
        Frame::Simple(bytes) | Frame::Bulk(bytes) | Frame::BigNumber(bytes) => {
            String::from_utf8_lossy(bytes).into_owned()
        }
        other => format!("{other:?}"),
    }
}
