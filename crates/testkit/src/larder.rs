//! A whole Larder for one test: the real binary with a folder, ports and a login of its own.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};

use crate::instance::Instance;
use crate::kubernetes::{self, Namespace};
use crate::ports::PortBlock;
use crate::process;
use crate::{engines, http, logs, wait};

/// Password of every instance that [`Larder::create`] makes.
pub const PASSWORD: &str = "Tenant-Pa55word";
/// Password of `admin`.
pub const ADMIN_PASSWORD: &str = "Admin-Pa55word-1";

/// What a test wants to be different.
#[derive(Clone, Debug, Default)]
pub struct LarderOptions {
    /// The data folder; a temporary one when `None`.
    pub data: Option<PathBuf>,
    /// How many ports instances may use; all that the test holds (but a few) when `None`.
    pub ports: Option<u16>,
    /// How many hundreds of ports the test holds; 1 when `None`.
    pub port_blocks: Option<u16>,
    /// The binary; `LARDER_BIN`, or `larder` beside the test's own, when `None`.
    pub binary: Option<PathBuf>,
    /// Lines that are added to the configuration file.
    pub config: String,
    /// Password of `admin`; [`ADMIN_PASSWORD`] when `None`.
    pub admin_password: Option<String>,
    /// Let Larder make the first password, as for a person who starts it by hand.
    pub generated_admin_password: bool,
}

/// How a command ended.
#[derive(Clone, Debug)]
pub struct CliOutput {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// A running Larder. Everything of it is killed and removed at the end; a test that succeeds must
/// call [`Larder::finish`], which also looks at the logs.
#[derive(Debug)]
pub struct Larder {
    /// Holds data folder, configuration, logs of `serve`; kept when the test fails.
    home: Option<TempDir>,
    data: PathBuf,
    binary: PathBuf,
    /// `None`: made by Larder.
    admin_password: Option<String>,
    ports: PortBlock,
    serve: Option<Child>,
    /// Where instances are made that say nothing else; on this machine when `None`.
    namespace: Option<Namespace>,
    expected: Mutex<Vec<String>>,
    finished: bool,
}

/// The binary under test: `LARDER_BIN`, or `larder` in a folder above the test's own executable.
///
/// # Errors
/// There is none: build it with `cargo build -p larder`.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("LARDER_BIN") {
        return std::path::absolute(path).context("LARDER_BIN");
    }
    let own = std::env::current_exe()?;
    own.ancestors()
        .map(|folder| folder.join("larder"))
        .find(|path| path.is_file())
        .context("no `larder` beside the test: run `cargo build -p larder` or set LARDER_BIN")
}

impl Larder {
    /// Starts `serve` and logs in as `admin`.
    ///
    /// # Errors
    /// It does not become ready within 20 s; its log is in the text.
    pub async fn start(options: LarderOptions) -> Result<Self> {
        let home = tempfile::Builder::new().prefix("larder-e2e-").tempdir()?;
        let home_path = home.path().canonicalize()?;
        let ports = PortBlock::take(options.port_blocks.unwrap_or(1))?;
        let last = options.ports.map_or(ports.last(), |count| ports.first + count - 1);
        let folders: Vec<String> = engines::folders().iter().map(|f| format!("{f:?}")).collect();
        let config = format!(
            "{}\n[local]\nport_first = {}\nport_last = {last}\nengine_dirs = [{}]\n",
            options.config,
            ports.first,
            folders.join(", ")
        );
        std::fs::write(home_path.join("larder.toml"), config)?;
        let mut larder = Self {
            data: options.data.unwrap_or_else(|| home_path.join("data")),
            binary: match options.binary {
                Some(binary) => binary,
                None => binary()?,
            },
            admin_password: (!options.generated_admin_password)
                .then(|| options.admin_password.unwrap_or_else(|| ADMIN_PASSWORD.to_owned())),
            home: Some(home),
            ports,
            serve: None,
            namespace: None,
            expected: Mutex::default(),
            finished: false,
        };
        larder.start_serve().await?;
        larder.login().await?;
        if let Some(namespace) = Namespace::wanted() {
            let bound = namespace.bind(&larder).await;
            larder.namespace = Some(namespace);
            bound?;
        }
        Ok(larder)
    }

    /// With nothing special.
    ///
    /// # Errors
    /// As [`Larder::start`].
    pub async fn started() -> Result<Self> {
        Self::start(LarderOptions::default()).await
    }

    fn home(&self) -> &Path {
        self.home.as_ref().map_or(Path::new("/nonexistent"), TempDir::path)
    }

    pub fn data(&self) -> &Path {
        &self.data
    }

    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// Where instances are when they are not on this machine.
    pub fn namespace(&self) -> Option<&Namespace> {
        self.namespace.as_ref()
    }

    /// Where `serve` listens.
    pub fn port(&self) -> u16 {
        self.ports.listen()
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port())
    }

    /// The first port that instances may use.
    pub fn first_port(&self) -> u16 {
        self.ports.first
    }

    /// Where the output of `serve` is appended.
    pub fn serve_log(&self) -> PathBuf {
        self.home().join("serve.log")
    }

    /// What `serve` is started with.
    pub fn serve_command(&self) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .arg("serve")
            .arg("--data")
            .arg(&self.data)
            .arg("--listen")
            .arg(format!("127.0.0.1:{}", self.port()))
            .arg("--config")
            .arg(self.home().join("larder.toml"))
            .env_remove("LARDER_ADMIN_PASSWORD")
            .stdin(Stdio::null());
        if let Some(password) = &self.admin_password {
            command.env("LARDER_ADMIN_PASSWORD", password);
        }
        command
    }

    /// Starts `serve` and waits until it is ready.
    ///
    /// # Errors
    /// It exits, or is not ready within 20 s.
    pub async fn start_serve(&mut self) -> Result<()> {
        ensure!(self.serve.is_none(), "serve runs already");
        let log = std::fs::File::options().create(true).append(true).open(self.serve_log())?;
        let mut command = self.serve_command();
        command.stdout(log.try_clone()?).stderr(log);
        let mut child =
            command.spawn().with_context(|| format!("starting {}", self.binary.display()))?;
        let port = self.port();
        let ready = wait::eventually("serve is ready", Duration::from_secs(20), async || {
            if let Some(status) = child.try_wait()? {
                // No use in waiting on.
                return Ok(Some(Err(status)));
            }
            let answer = http::request(port, "GET", "/readyz", None, None).await?;
            Ok((answer.status == 200).then_some(Ok(())))
        })
        .await;
        let ended = match ready {
            Ok(Ok(())) => None,
            Ok(Err(status)) => Some(format!("serve exited: {status}")),
            Err(error) => Some(format!("{error:#}")),
        };
        self.serve = Some(child);
        match ended {
            None => Ok(()),
            Some(text) => bail!("{text}; its log:\n{}", tail(&self.serve_log())),
        }
    }

    /// The pid of `serve`.
    ///
    /// # Errors
    /// It does not run.
    pub fn serve_pid(&self) -> Result<u32> {
        self.serve.as_ref().and_then(Child::id).context("serve does not run")
    }

    /// `kill -9` of `serve` alone.
    ///
    /// # Errors
    /// It does not run.
    pub async fn kill_serve(&mut self) -> Result<()> {
        let mut child = self.serve.take().context("serve does not run")?;
        child.kill().await.context("killing serve")
    }

    /// SIGTERM, as a service manager sends it, and waits for the end.
    ///
    /// # Errors
    /// It does not end within 20 s, or not with success.
    pub async fn stop_serve(&mut self) -> Result<()> {
        let mut child = self.serve.take().context("serve does not run")?;
        process::terminate(child.id().context("serve has ended")?)?;
        let status = tokio::time::timeout(Duration::from_secs(20), child.wait())
            .await
            .context("serve does not end within 20 s of SIGTERM")??;
        ensure!(status.success(), "serve ended with {status}:\n{}", tail(&self.serve_log()));
        Ok(())
    }

    async fn login(&self) -> Result<()> {
        let password = match &self.admin_password {
            Some(password) => password.clone(),
            None => std::fs::read_to_string(self.data.join("initial-admin-password"))
                .context("the generated password")?
                .trim()
                .to_owned(),
        };
        let url = self.url();
        let args = ["login", "--server", &url, "--user", "admin", "--password-stdin"];
        let output = self.cli_with_input(&args, &format!("{password}\n")).await?;
        ensure!(output.code == 0, "logging in: {output:?}");
        Ok(())
    }

    /// Runs `larder ARGS…` against this Larder.
    ///
    /// # Errors
    /// Only when the command cannot be run, or takes longer than three minutes: its exit code is
    /// part of the answer.
    pub async fn run(&self, args: &[&str]) -> Result<CliOutput> {
        self.cli_with_input(args, "").await
    }

    /// As [`Larder::run`], with standard input.
    ///
    /// # Errors
    /// As [`Larder::run`].
    pub async fn cli_with_input(&self, args: &[&str], input: &str) -> Result<CliOutput> {
        let mut command = Command::new(&self.binary);
        command
            .args(args)
            .env("LARDER_SERVER", self.url())
            .env("LARDER_CONFIG", self.home().join("cli.json"))
            .env_remove("LARDER_TOKEN")
            .env_remove("LARDER_PROJECT")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child =
            command.spawn().with_context(|| format!("starting {}", self.binary.display()))?;
        if let Some(mut stdin) = child.stdin.take() {
            // A command that reads nothing may have closed it.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        let output = tokio::time::timeout(Duration::from_secs(180), child.wait_with_output())
            .await
            .with_context(|| format!("larder {args:?} takes longer than three minutes"))??;
        Ok(CliOutput {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs a command that must succeed; gives its standard output.
    ///
    /// # Errors
    /// Another exit code than 0, with what it said.
    pub async fn cli(&self, args: &[&str]) -> Result<String> {
        let output = self.run(args).await?;
        ensure!(output.code == 0, "larder {args:?}: {output:?}");
        Ok(output.stdout)
    }

    /// As [`Larder::cli`], with `-o json`, read as JSON.
    ///
    /// # Errors
    /// As [`Larder::cli`], or the output is not JSON.
    pub async fn json(&self, args: &[&str]) -> Result<Value> {
        let args: Vec<&str> = args.iter().copied().chain(["-o", "json"]).collect();
        let text = self.cli(&args).await?;
        serde_json::from_str(&text)
            .with_context(|| format!("larder {args:?} printed no JSON: {text}"))
    }

    /// Creates an instance with [`PASSWORD`] and waits until it runs. `args` come after the name;
    /// the engine is that of the run (`engines::engine`) unless they name one.
    ///
    /// # Errors
    /// The creation is refused or fails.
    pub async fn create(&self, name: &str, args: &[&str]) -> Result<Instance> {
        let mut all = vec!["instance", "create", name];
        all.extend(args);
        let engine = crate::engines::engine();
        if !args.contains(&"--engine") {
            all.extend(["--engine", &engine]);
        }
        if self.namespace.is_some() {
            all.extend(["--container-cluster", kubernetes::BOUND]);
            if !args.contains(&"--memory") {
                all.extend(["--memory", kubernetes::MEMORY]);
            }
        }
        all.extend(["--password-stdin", "--wait", "--timeout", "90s", "-o", "json"]);
        let output = self.cli_with_input(&all, &format!("{PASSWORD}\n")).await?;
        ensure!(output.code == 0, "larder {all:?}: {output:?}");
        let printed: Instance = serde_json::from_str(&output.stdout)
            .with_context(|| format!("create --wait prints no instance: {}", output.stdout))?;
        ensure!(printed.name == name, "another instance is printed: {printed:?}");
        self.wait_state(name, "running", Duration::from_secs(20)).await
    }

    /// # Errors
    /// There is no such instance, or what is shown is not an instance.
    pub async fn get(&self, name: &str) -> Result<Instance> {
        let value = self.json(&["instance", "get", name]).await?;
        serde_json::from_value(value.clone()).with_context(|| format!("not an instance: {value}"))
    }

    /// Waits until the instance is shown in a state, and gives it.
    ///
    /// # Errors
    /// Not within the given time; with the last that was shown.
    pub async fn wait_state(&self, name: &str, state: &str, within: Duration) -> Result<Instance> {
        self.wait_for(name, &format!("{name} is {state}"), within, |i| i.state == state).await
    }

    /// Waits until what is shown of the instance satisfies `wanted`.
    ///
    /// # Errors
    /// Not within the given time; with the last that was shown.
    pub async fn wait_for(
        &self,
        name: &str,
        what: &str,
        within: Duration,
        wanted: impl Fn(&Instance) -> bool,
    ) -> Result<Instance> {
        let mut last = None;
        let seen = wait::eventually(what, within, async || {
            let instance = self.get(name).await?;
            let done = wanted(&instance);
            last = Some(instance.clone());
            Ok(done.then_some(instance))
        })
        .await;
        match seen {
            Ok(instance) => Ok(instance),
            Err(error) => {
                Err(error.context(format!("{}; last shown: {last:#?}", self.plan_text(name).await)))
            }
        }
    }

    async fn plan_text(&self, name: &str) -> String {
        match self.run(&["instance", "plan", name]).await {
            Ok(output) => format!("the plan says: {}{}", output.stdout, output.stderr),
            Err(error) => format!("no plan: {error}"),
        }
    }

    /// Announces log lines of level WARN or ERROR that hold this text: the fault of this test
    /// causes them.
    pub fn expect_log(&self, part: &str) {
        self.expected.lock().expect("no holder panics").push(part.to_owned());
    }

    /// Announces what a story with killed or stopped processes makes Larder say.
    pub fn expect_faults(&self) {
        for part in [
            // The keeper, of children that hang and of a holder that does not renew.
            "process killed",
            "lease not renewed, server killed",
            // Agents, of peers that are gone.
            "old primary killed",
            "old primary not killed",
            "old primary demoted",
            "replica silent",
            "not told to take over",
        ] {
            self.expect_log(part);
        }
    }

    /// Reasons of the instance's events, oldest first.
    ///
    /// # Errors
    /// They cannot be listed.
    pub async fn event_reasons(&self, name: &str) -> Result<Vec<String>> {
        let events = self.json(&["event", "list", "--instance", name]).await?;
        let reason = |e: &Value| e["reason"].as_str().map(str::to_owned);
        Ok(events.as_array().context("no array")?.iter().filter_map(reason).collect())
    }

    /// The successful end of a test: nothing unexpected in the logs, everything can be killed,
    /// nothing is left.
    ///
    /// # Errors
    /// Log lines that nobody announced, or processes that do not go.
    pub async fn finish(mut self) -> Result<()> {
        if let Some(namespace) = &self.namespace {
            namespace.leave(&self, &self.home().join("pods")).await?;
            self.namespace = None;
        }
        if let Some(mut serve) = self.serve.take() {
            // Killed before the others, so that it does not complain of their death.
            let _ = serve.kill().await;
        }
        self.kill_everything()?;
        let expected = self.expected.lock().expect("no holder panics").clone();
        let mut findings = logs::scan(self.home(), &expected);
        if !self.data.starts_with(self.home()) {
            findings.extend(logs::scan(&self.data, &expected));
        }
        if !findings.is_empty() {
            let lines: Vec<String> = findings.iter().take(20).map(ToString::to_string).collect();
            bail!("{} log lines that nobody announced:\n{}", findings.len(), lines.join("\n"));
        }
        self.finished = true;
        Ok(())
    }

    fn kill_everything(&self) -> Result<()> {
        process::kill_all_of(&self.data)?;
        if let Ok(run_dir) = std::fs::read_to_string(self.data.join("run-dir")) {
            let run_dir = PathBuf::from(run_dir.trim());
            // Only what looks like Larder's own.
            if run_dir.to_string_lossy().contains("larder") {
                let _ = std::fs::remove_dir_all(run_dir);
            }
        }
        Ok(())
    }
}

impl Drop for Larder {
    #[expect(
        clippy::print_stderr,
        reason = "the only way to say where the logs of a failed test are"
    )]
    fn drop(&mut self) {
        if let Some(serve) = &mut self.serve {
            // It may have ended.
            let _ = serve.start_kill();
        }
        if let Some(Err(error)) = self.namespace.as_ref().map(Namespace::abandon) {
            eprintln!("cleaning up after a test: {error:#}");
        }
        if let Err(error) = self.kill_everything() {
            eprintln!("cleaning up after a test: {error:#}");
        }
        if !self.finished
            && let Some(home) = self.home.take()
        {
            let home = home.keep();
            eprintln!("the test failed; its folder is kept: {}", home.display());
        }
    }
}

fn tail(path: &Path) -> String {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}
