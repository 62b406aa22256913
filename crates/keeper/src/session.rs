//! Starting processes that outlive who started them.

use std::path::Path;
use std::process::{Command, Stdio};
use std::{fs::File, io};

/// Environment of `serve` that is no business of long-lived processes: they would show it in
/// `/proc` for years.
fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    ["PASSWORD", "SECRET", "TOKEN"].iter().any(|word| name.contains(word))
}

/// A command for `argv` in a session of its own: no terminal, no signal of its parent's group.
///
/// `setsid(2)` has to be called between fork and exec, which the standard library offers only as
/// `unsafe`. setsid(1) of util-linux does it safely: not being the leader of a group it calls
/// `setsid` and becomes the program, so the pid that we get is the program's. Where it is missing
/// a process group of its own has to do; the keeper's session has no terminal either.
pub(crate) fn command(argv: &[String], log: Option<File>) -> io::Result<Command> {
    let (program, arguments) = argv
        .split_first()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "an empty command line"))?;
    let setsid = ["/usr/bin/setsid", "/bin/setsid"].map(Path::new).into_iter().find(|p| p.exists());
    let mut command = match setsid {
        Some(setsid) => {
            let mut command = Command::new(setsid);
            command.arg(program);
            command
        }
        None => {
            let mut command = Command::new(program);
            std::os::unix::process::CommandExt::process_group(&mut command, 0);
            command
        }
    };
    command.args(arguments).current_dir("/").stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        if is_secret(&name.to_string_lossy()) {
            command.env_remove(name);
        }
    }
    match log {
        Some(log) => {
            command.stdout(log.try_clone()?);
            command.stderr(log);
        }
        None => {
            command.stdout(Stdio::null());
            command.stderr(Stdio::null());
        }
    }
    Ok(command)
}

/// Whether a process with these arguments is `argv`: bare, still in setsid(1), or behind the
/// interpreter of a script.
pub(crate) fn runs(arguments: &[String], argv: &[String]) -> bool {
    !argv.is_empty() && arguments.len() <= argv.len() + 2 && arguments.ends_with(argv)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_secrets_are_known() {
        for name in ["LARDER_TOKEN", "larder_password", "AWS_SECRET_ACCESS_KEY"] {
            assert!(is_secret(name), "{name}");
        }
        assert!(!is_secret("PATH"));
    }
}
