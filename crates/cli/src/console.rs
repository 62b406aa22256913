//! Where data, messages and answers go and come from.

use std::borrow::Cow;
use std::io::{BufRead, IsTerminal as _, Write};

use larder_model::{Secret, check_password};
use serde::Serialize;

use crate::args::Format;
use crate::exit::{CliError, output_failed};

/// Standard input, output and error, and whether a person sits there.
pub struct Console {
    pub stdin: Box<dyn BufRead + Send>,
    pub stdout: Box<dyn Write + Send>,
    pub stderr: Box<dyn Write + Send>,
    pub stdin_is_terminal: bool,
    pub stdout_is_terminal: bool,
    pub stderr_is_terminal: bool,
    pub format: Format,
}

impl std::fmt::Debug for Console {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Console").field("format", &self.format).finish_non_exhaustive()
    }
}

impl Console {
    /// The process's own.
    pub fn from_process(format: Format) -> Self {
        Self {
            stdin: Box::new(std::io::BufReader::new(std::io::stdin())),
            stdout: Box::new(std::io::stdout()),
            stderr: Box::new(std::io::stderr()),
            stdin_is_terminal: std::io::stdin().is_terminal(),
            stdout_is_terminal: std::io::stdout().is_terminal(),
            stderr_is_terminal: std::io::stderr().is_terminal(),
            format,
        }
    }

    pub(crate) fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    pub(crate) fn is_wide(&self) -> bool {
        self.format == Format::Wide
    }

    /// Data, to standard output.
    pub(crate) fn data(&mut self, text: &str) -> Result<(), CliError> {
        let text = text.trim_end_matches(['\r', '\n']);
        let text = harmless(text, self.stdout_is_terminal);
        writeln!(self.stdout, "{text}").and_then(|()| self.stdout.flush()).map_err(output_failed)
    }

    /// Data as JSON, to standard output.
    pub(crate) fn json<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), CliError> {
        let text = serde_json::to_string_pretty(value).map_err(|e| output_failed(e.into()))?;
        self.data(&text)
    }

    /// One line of JSON, for streams.
    pub(crate) fn json_line<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), CliError> {
        let text = serde_json::to_string(value).map_err(|e| output_failed(e.into()))?;
        self.data(&text)
    }

    /// A message for people, to standard error. It is no loss when nobody can read it.
    pub(crate) fn say(&mut self, text: &str) {
        let text = harmless(text, self.stderr_is_terminal);
        let _ = writeln!(self.stderr, "{text}");
    }

    /// Why a command failed, to standard error. Who asked for JSON gets a refusal as the API's own
    /// object, with its code and field, on one line.
    pub(crate) fn say_error(&mut self, error: &CliError) {
        if let Some(problem) = error.problem().filter(|_| self.is_json())
            && let Ok(text) = serde_json::to_string(problem)
        {
            self.say(&text);
            return;
        }
        self.say(&format!("error: {error}"));
        if let Some(hint) = error.hint() {
            self.say(hint);
        }
    }

    fn line(&mut self) -> Result<String, CliError> {
        let mut line = String::new();
        self.stdin
            .read_line(&mut line)
            .map_err(|cause| CliError::Io { doing: "reading from standard input", cause })?;
        let line = line.strip_suffix('\n').unwrap_or(&line);
        Ok(line.strip_suffix('\r').unwrap_or(line).to_owned())
    }

    /// One line of standard input.
    pub(crate) fn password_from_stdin(&mut self) -> Result<Secret, CliError> {
        let line = self.line()?;
        if line.is_empty() {
            return Err(CliError::Usage("standard input holds no password".into()));
        }
        Ok(Secret::new(line))
    }

    /// Asks on the terminal without showing what is typed; `None` when nobody can be asked.
    pub(crate) fn ask_password(&mut self, prompt: &str) -> Result<Option<Secret>, CliError> {
        if !(self.stdin_is_terminal && self.stderr_is_terminal) {
            return Ok(None);
        }
        let _ = write!(self.stderr, "{prompt}: ");
        let _ = self.stderr.flush();
        let typed = console::Term::stderr()
            .read_secure_line()
            .map_err(|cause| CliError::Io { doing: "reading the password", cause })?;
        Ok(Some(Secret::new(typed)))
    }

    /// Asks for a new password twice; `None` when nobody can be asked.
    pub(crate) fn ask_new_password(&mut self) -> Result<Option<Secret>, CliError> {
        let Some(first) = self.ask_password("New password")? else { return Ok(None) };
        if let Err(refusal) = check_password(first.expose()) {
            return Err(CliError::Operation(Box::new(refusal.into())));
        }
        let second = self.ask_password("Once more")?;
        if second.as_ref() != Some(&first) {
            return Err(CliError::Usage("the two passwords differ".into()));
        }
        Ok(Some(first))
    }

    /// Asks on the terminal before something is destroyed; elsewhere `--yes` is the word.
    pub(crate) fn confirm(&mut self, question: &str, yes: bool) -> Result<(), CliError> {
        if yes {
            return Ok(());
        }
        if !(self.stdin_is_terminal && self.stderr_is_terminal) {
            return Err(CliError::Usage(format!("{question} Nobody can be asked here: say --yes")));
        }
        let _ = write!(self.stderr, "{question} [y/N] ");
        let _ = self.stderr.flush();
        let answer = self.line()?;
        if matches!(answer.trim(), "y" | "Y" | "yes") {
            Ok(())
        } else {
            Err(CliError::NotConfirmed)
        }
    }
}

/// Takes the control characters out of what goes to a terminal: descriptions, messages and names
/// are other people's text and may hold escape sequences.
fn harmless(text: &str, on_terminal: bool) -> Cow<'_, str> {
    let bad = |c: char| c.is_control() && c != '\n';
    if on_terminal && text.contains(bad) {
        Cow::Owned(text.replace(bad, "?"))
    } else {
        Cow::Borrowed(text)
    }
}

/// A password that passes the rule for passwords: 24 letters and digits, some 140 bits.
pub(crate) fn generate_password() -> Result<Secret, CliError> {
    const ALPHABET: &[u8; 57] = b"abcdefghijkmnopqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789";
    loop {
        let mut text = String::with_capacity(24);
        while text.len() < 24 {
            let mut bytes = [0_u8; 32];
            getrandom::fill(&mut bytes).map_err(|e| CliError::Io {
                doing: "asking the system for random bytes",
                cause: std::io::Error::other(e.to_string()),
            })?;
            // Values above the last whole multiple of the alphabet would favour its beginning.
            let fair = bytes.iter().filter(|b| usize::from(**b) < 256 / 57 * 57);
            text.extend(
                fair.take(24 - text.len()).map(|b| char::from(ALPHABET[usize::from(*b) % 57])),
            );
        }
        if check_password(&text).is_ok() {
            return Ok(Secret::new(text));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_do_not_reach_a_terminal() {
        assert_eq!(harmless("a\x1b[2Jb\nc", true), "a?[2Jb\nc");
        assert_eq!(harmless("a\x1b[2Jb", false), "a\x1b[2Jb");
    }

    #[test]
    fn generated_passwords_pass_the_rule_and_differ() {
        let one = generate_password().unwrap();
        assert_eq!(check_password(one.expose()), Ok(()));
        assert_ne!(one, generate_password().unwrap());
    }
}
