//! Finds out what a server binary is, by asking it and by letting it live for a moment on a unix
//! socket in a folder of its own, without a port.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use larder_model::{Code, EngineName, Refusal};
use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use crate::connection::Connection;
use crate::info::{Flavour, InfoText};

/// `--version` answers at once; a cold disk may need a moment to load the binary.
const VERSION_DEADLINE: Duration = Duration::from_secs(5);
/// Copying a binary into its place takes less.
const BUSY_DEADLINE: Duration = Duration::from_secs(2);
/// An empty server answers within a tenth of a second.
const LIFE_DEADLINE: Duration = Duration::from_secs(10);
/// Paths of unix sockets end at 107 bytes.
const MAX_SOCKET_PATH: usize = 107;
/// The oldest version whose commands Larder can rely on (`CLIENT PAUSE … WRITE`, `CLIENT UNPAUSE`).
const OLDEST: (u32, u32) = (6, 2);

/// What a server binary is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineProbe {
    /// `redis-7.0`, `valkey-8.1`: flavour and the first two numbers of the version.
    pub name: EngineName,
    pub flavour: Flavour,
    /// Full version: `7.0.15`.
    pub version: String,
    /// As the kernel calls it: `x86_64`, `aarch64`. Empty when the server does not say.
    pub arch: String,
    /// 32 or 64.
    pub bits: u32,
    /// `jemalloc-5.3.0`, `libc`.
    pub malloc: String,
    /// Built with TLS.
    pub tls: bool,
    /// The names of everything that `CONFIG GET *` shows.
    pub directives: BTreeSet<String>,
    /// The file that was probed, as it was named.
    pub path: PathBuf,
}

/// What tells one server binary from another at the same path, without running it. `None` when it
/// cannot be looked at.
pub fn fingerprint(binary: &Path) -> Option<String> {
    let file = fs::metadata(binary).ok()?;
    let (size, inode) = (file.len(), file.ino());
    // Package managers and copies set the time of the content back, nobody that of the change.
    let (seconds, nanos) = (file.ctime(), file.ctime_nsec());
    Some(format!("{} {size} {inode} {seconds}.{nanos:09}", binary.display()))
}

/// Probes `binary`, within about 15 s. Leaves no process and no file behind, also when the future
/// is dropped.
///
/// # Errors
/// [`Refusal`] with `engine-unusable` and the reason: no such file, not executable, not a server,
/// a version that is too old, a server that does not start.
pub async fn probe(binary: &Path) -> Result<EngineProbe, Refusal> {
    let binary = std::path::absolute(binary).unwrap_or_else(|_| binary.to_owned());
    let subject = Subject(&binary);
    subject.check_file()?;
    let folder = temp_folder().map_err(|error| {
        subject.unusable(format!("no folder can be made to try it in: {error}"))
    })?;
    let said = subject.version_line(folder.path()).await?;
    if said.version < OLDEST {
        return Err(subject.unusable(format!(
            "it is version {}; Larder needs {}.{} or later",
            said.text, OLDEST.0, OLDEST.1
        )));
    }
    let life = subject.live(folder.path(), said).await;
    // The folder must not outlive the answer.
    folder.close().ok();
    life
}

/// What `--version` says: `Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64 …`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct VersionLine {
    flavour: Flavour,
    text: String,
    version: (u32, u32),
    malloc: String,
    bits: u32,
}

fn parse_version_line(output: &str) -> Option<VersionLine> {
    let line = output.lines().find(|line| line.contains(" server v="))?;
    let flavour = if line.starts_with("Redis server ") {
        Flavour::Redis
    } else if line.starts_with("Valkey server ") {
        Flavour::Valkey
    } else {
        return None;
    };
    let field = |name: &str| {
        line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
    };
    let text = field("v")?.to_owned();
    Some(VersionLine {
        flavour,
        version: major_minor(&text)?,
        malloc: field("malloc").unwrap_or_default().to_owned(),
        bits: field("bits").and_then(|bits| bits.parse().ok()).unwrap_or(64),
        text,
    })
}

fn major_minor(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split('.').map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

struct Subject<'a>(&'a Path);

impl Subject<'_> {
    fn unusable(&self, reason: impl std::fmt::Display) -> Refusal {
        let detail = format!("{} cannot be used as an engine: {reason}", self.0.display());
        Refusal::new(Code::EngineUnusable, detail).field("path")
    }

    fn check_file(&self) -> Result<(), Refusal> {
        let meta = fs::metadata(self.0).map_err(|error| self.unusable(error))?;
        if !meta.is_file() {
            return Err(self.unusable("it is not a file"));
        }
        if meta.permissions().mode() & 0o111 == 0 {
            return Err(self.unusable("it is not executable"));
        }
        Ok(())
    }

    /// Starts it as leader of a process group, so that a wrapper's children end with it.
    fn command(&self, folder: &Path) -> Command {
        let mut command = Command::new(self.0);
        command.current_dir(folder).stdin(Stdio::null()).process_group(0).kill_on_drop(true);
        command
    }

    /// A file that is just being put in place by an upgrade is busy for a moment.
    async fn spawn(&self, mut command: Command) -> Result<Child, Refusal> {
        let deadline = Instant::now() + BUSY_DEADLINE;
        loop {
            match command.spawn() {
                Ok(child) => return Ok(child),
                Err(error)
                    if error.kind() == std::io::ErrorKind::ExecutableFileBusy
                        && Instant::now() < deadline =>
                {
                    sleep(Duration::from_millis(20)).await;
                }
                Err(error) => return Err(self.unusable(format!("it cannot be started: {error}"))),
            }
        }
    }

    async fn version_line(&self, folder: &Path) -> Result<VersionLine, Refusal> {
        let mut command = self.command(folder);
        command.arg("--version").stdout(Stdio::piped()).stderr(Stdio::null());
        let child = self.spawn(command).await?;
        let mut group = Group::new(child);
        let mut output = Vec::new();
        if let Some(stdout) = group.child.stdout.take() {
            // What is no server may print without end.
            let reading = stdout.take(64 << 10);
            let mut reading = std::pin::pin!(reading);
            if timeout(VERSION_DEADLINE, reading.read_to_end(&mut output)).await.is_err() {
                return Err(self.unusable("it does not answer `--version`"));
            }
        }
        let output = String::from_utf8_lossy(&output);
        parse_version_line(&output).ok_or_else(|| {
            let first: String =
                output.lines().next().unwrap_or_default().chars().take(80).collect();
            let said = if first.trim().is_empty() { "nothing".to_owned() } else { first };
            self.unusable(format!(
                "it is not a Redis or Valkey server: asked for its version it said {said:?}"
            ))
        })
    }

    async fn live(&self, folder: &Path, said: VersionLine) -> Result<EngineProbe, Refusal> {
        let log = folder.join("log");
        let output = File::create(&log).map_err(|error| self.unusable(error))?;
        let errors = output.try_clone().map_err(|error| self.unusable(error))?;
        let socket = folder.join("s");
        let mut command = self.command(folder);
        command
            .args(["--port", "0", "--unixsocketperm", "700", "--unixsocket"])
            .arg(&socket)
            .args(["--save", "", "--appendonly", "no", "--daemonize", "no", "--dir"])
            .arg(folder)
            .stdout(output)
            .stderr(errors);
        let child = self.spawn(command).await?;
        let mut group = Group::new(child);
        let questions = self.ask(&mut group, &socket, said);
        let result = timeout(LIFE_DEADLINE, questions).await;
        drop(group);
        match result {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(reason)) => Err(self.unusable(format!("{reason}{}", last_words(&log)))),
            Err(_) => Err(self.unusable(format!(
                "it did not answer within {} s{}",
                LIFE_DEADLINE.as_secs(),
                last_words(&log)
            ))),
        }
    }

    async fn ask(
        &self,
        group: &mut Group,
        socket: &Path,
        said: VersionLine,
    ) -> Result<EngineProbe, String> {
        let mut connection = loop {
            match Connection::connect_unix(socket, Duration::from_secs(2)).await {
                Ok(connection) => break connection,
                Err(error) => {
                    if let Ok(Some(status)) = group.child.try_wait() {
                        return Err(format!("it does not run as a server ({status})"));
                    }
                    if !error.is_refused() {
                        return Err(error.to_string());
                    }
                }
            }
            sleep(Duration::from_millis(10)).await;
        };
        let info = connection.text(&["INFO"]).await.map_err(|error| error.to_string())?;
        let fields = InfoText::new(&info);
        // Started under the name `redis-sentinel` the same binary is something else.
        if let Some(mode) = fields.get("redis_mode").or(fields.get("server_mode"))
            && mode != "standalone"
        {
            return Err(format!("it runs as {mode}, not as a server"));
        }
        let version = fields
            .get("valkey_version")
            .or(fields.get("redis_version"))
            .ok_or("its INFO has no version")?;
        let (major, minor) =
            major_minor(version).ok_or_else(|| format!("its version is {version:?}"))?;
        let name = EngineName::new(format!("{}-{major}.{minor}", said.flavour))
            .map_err(|error| error.to_string())?;
        let directives: BTreeSet<String> = connection
            .config_get("*")
            .await
            .map_err(|error| error.to_string())?
            .into_keys()
            .collect();
        // `Linux 6.1.0 x86_64`
        let os = fields.get("os").unwrap_or_default();
        let found = EngineProbe {
            name,
            flavour: said.flavour,
            version: version.to_owned(),
            arch: os.rsplit(' ').next().unwrap_or_default().to_owned(),
            bits: said.bits,
            malloc: fields.get("mem_allocator").map_or(said.malloc, str::to_owned),
            // The TLS settings exist only where TLS was built in (config.c, `USE_OPENSSL`).
            tls: directives.contains("tls-port"),
            directives,
            path: self.0.to_owned(),
        };
        // Politely first, so that it removes its own files; the group is killed in any case.
        connection.set_timeout(Duration::from_secs(1));
        connection.shutdown_nosave().await.ok();
        timeout(Duration::from_secs(1), group.child.wait()).await.ok();
        Ok(found)
    }
}

/// A child and its process group, killed when dropped.
struct Group {
    child: Child,
    id: Option<Pid>,
    started: Instant,
}

impl Group {
    fn new(child: Child) -> Self {
        let id = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        Self { child, id, started: Instant::now() }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // A process group's number is not given away while the group has members, and within the
        // seconds that a probe lasts pids do not come round: at worst nobody is hit.
        if let Some(id) = self.id
            && self.started.elapsed() < 2 * LIFE_DEADLINE
        {
            kill_process_group(id, Signal::KILL).ok();
        }
    }
}

fn temp_folder() -> std::io::Result<tempfile::TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("larder-probe-").permissions(fs::Permissions::from_mode(0o700));
    let folder = builder.tempdir()?;
    if folder.path().as_os_str().len() + "/s".len() <= MAX_SOCKET_PATH {
        return Ok(folder);
    }
    builder.tempdir_in("/tmp")
}

/// The end of what the server printed, for the reason of a refusal.
fn last_words(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text[text.len().saturating_sub(2000)..]).into_owned();
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let last: Vec<String> = lines[lines.len().saturating_sub(2)..]
        .iter()
        .map(|line| line.trim().chars().take(160).collect())
        .collect();
    if last.is_empty() { String::new() } else { format!("; it said: {}", last.join(" / ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, flavour: Flavour, version: &str, numbers: (u32, u32), malloc: &str) {
        let expected = VersionLine {
            flavour,
            text: version.to_owned(),
            version: numbers,
            malloc: malloc.to_owned(),
            bits: 64,
        };
        assert_eq!(parse_version_line(text), Some(expected), "{text}");
    }

    #[test]
    fn version_lines_of_real_servers_are_read() {
        check(
            "Redis server v=6.2.5 sha=00000000:0 malloc=jemalloc-5.1.0 bits=64 build=135cf79b58e84c2a\n",
            Flavour::Redis,
            "6.2.5",
            (6, 2),
            "jemalloc-5.1.0",
        );
        check(
            "Valkey server v=9.1.2 sha=00000000:1 malloc=libc bits=64 build=1536df31c0395150\n",
            Flavour::Valkey,
            "9.1.2",
            (9, 1),
            "libc",
        );
    }

    #[test]
    fn other_programs_are_no_servers() {
        assert_eq!(parse_version_line("redis-cli 7.0.15\n"), None);
        assert_eq!(
            parse_version_line(
                "KeyDB server v=6.3.4 sha=0:0 malloc=jemalloc-5.2.1 bits=64 build=x\n"
            ),
            None
        );
        assert_eq!(parse_version_line("Redis server v=unstable malloc=libc\n"), None);
        assert_eq!(parse_version_line(""), None);
    }
}
