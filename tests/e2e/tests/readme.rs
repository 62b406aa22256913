//! The five-minute walk of README.md works as typed.
//!
//! It is all fenced blocks that begin with ```` ```console walk ````, typed into one shell in the
//! project's folder: lines after `$ ` are typed (a `\` at the end goes on in the next line), the
//! lines below are what is shown. A shown line must appear in the output, where `…` stands for
//! anything and blanks count once.

use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use larder_e2e::tidy;
use larder_testkit::{Larder, LarderOptions};

const FENCE: &str = "```console walk\n";
/// Printed by the shell around each step, to tell the steps' output apart.
const MARK: &str = "@@larder-walk";

#[derive(Debug, Default)]
struct Typed {
    command: String,
    shown: Vec<String>,
}

fn walk(readme: &str) -> Result<Vec<Typed>> {
    let mut walk: Vec<Typed> = Vec::new();
    for rest in readme.split(FENCE).skip(1) {
        let (block, _) = rest.split_once("\n```").context("a block of the walk does not end")?;
        let mut goes_on = false;
        let mut first = true;
        for line in block.lines() {
            match (line.strip_prefix("$ "), walk.last_mut()) {
                (_, Some(last)) if goes_on => {
                    last.command.push('\n');
                    last.command.push_str(line.strip_prefix("> ").unwrap_or(line));
                }
                (Some(command), _) => {
                    walk.push(Typed { command: command.to_owned(), shown: Vec::new() });
                }
                (None, Some(last)) if !first => last.shown.push(line.to_owned()),
                _ => bail!("a block of the walk begins with output: {line}"),
            }
            goes_on = line.ends_with('\\');
            first = false;
        }
    }
    Ok(walk)
}

fn squeezed(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Whether `…` in the pattern can stand for something so that it appears in the line.
fn appears(pattern: &str, line: &str) -> bool {
    let mut rest = line;
    for part in pattern.split('…').map(str::trim) {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    true
}

/// Exit code and output of each step, from what the shell printed.
fn results(output: &str) -> Result<Vec<(i32, String)>> {
    let mut results = Vec::new();
    let mut text = String::new();
    for line in output.lines() {
        match line.strip_prefix(MARK) {
            Some(code) => results.push((code.trim().parse()?, std::mem::take(&mut text))),
            None => {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    Ok(results)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_minute_walk_works_as_typed() -> Result<()> {
    let readme = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../README.md");
    let steps = walk(&std::fs::read_to_string(&readme).context("README.md")?)?;
    ensure!(steps.len() >= 4, "a walk of {} steps", steps.len());

    let options = LarderOptions { generated_admin_password: true, ..LarderOptions::default() };
    let larder = Larder::start(options).await?;
    larder.expect_faults();
    // The project's folder after `make run`, as far as the walk sees it.
    let folder = tempfile::tempdir()?;
    std::fs::create_dir_all(folder.path().join("target/release"))?;
    symlink(larder.binary(), folder.path().join("target/release/larder"))?;
    symlink(larder.data(), folder.path().join("larder-data"))?;

    let mut script = String::from("exec 2>&1\n");
    for step in &steps {
        let command = step.command.replace("http://127.0.0.1:7300", &larder.url());
        script += &format!("{command}\nstatus=$?; echo; echo {MARK} $status\n");
    }
    let shell = tokio::process::Command::new("bash")
        .args(["-c", &script])
        .current_dir(folder.path())
        .env("HOME", folder.path())
        .env_remove("LARDER_SERVER")
        .env_remove("LARDER_TOKEN")
        .env_remove("LARDER_CONFIG")
        .env_remove("XDG_CONFIG_HOME")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(Duration::from_secs(180), shell)
        .await
        .context("the five-minute walk takes longer than three minutes")??;
    let output = String::from_utf8_lossy(&output.stdout).into_owned();
    let results = results(&output)?;
    ensure!(results.len() == steps.len(), "the walk ends early:\n{output}");
    for (step, (code, text)) in steps.iter().zip(&results) {
        let command = &step.command;
        ensure!(*code == 0, "`{command}` ends with {code}:\n{text}");
        // redis-cli ends with 0 whatever the server says.
        for wrong in
            ["(error)", "ERR ", "READONLY", "NOAUTH", "MOVED ", "Could not connect", "Error:"]
        {
            ensure!(!text.contains(wrong), "`{command}`:\n{text}");
        }
        // Replicas follow a moment later: only what the primary says is certain.
        if command.starts_with("redis-cli") && command.contains("\"$WRITE\" GET ") {
            ensure!(!text.trim().is_empty(), "`{command}` finds nothing");
        }
        let lines: Vec<String> = text.lines().map(squeezed).collect();
        for line in step.shown.iter().map(|l| squeezed(l)).filter(|l| !l.is_empty()) {
            ensure!(
                lines.iter().any(|l| appears(&line, l)),
                "`{command}` is said to show `{line}`; it shows\n{text}"
            );
        }
    }
    ensure!(tidy::listed(&larder).await?.is_empty(), "the walk leaves instances behind");
    larder.finish().await
}

#[test]
fn shown_lines_may_leave_parts_open() {
    assert!(appears("state … running", "x state is running"));
    assert!(!appears("state … running", "running state"));
}
