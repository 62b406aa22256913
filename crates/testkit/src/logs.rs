//! The logs of a run: warnings and errors that no test announced are failures.

use std::path::{Path, PathBuf};

/// One line that should not be there.
#[derive(Clone, Debug)]
pub struct Finding {
    pub file: PathBuf,
    pub line: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.file.display(), self.line)
    }
}

/// Larder's own logs. The servers' are theirs.
const OURS: [&str; 4] = ["serve.log", "keeper.log", "agent.log", "relay.log"];

/// All files below `folder`, links not followed.
pub fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for entry in entries.filter_map(Result::ok) {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => open.push(entry.path()),
                Ok(kind) if kind.is_file() => found.push(entry.path()),
                _ => {}
            }
        }
    }
    found.sort();
    found
}

fn is_ours(path: &Path) -> bool {
    // A rotated log is `agent.log.1`.
    path.file_name()
        .and_then(|name| name.to_str())
        .is_some_and(|name| OURS.iter().any(|ours| name.starts_with(ours)))
}

fn is_bad(line: &str) -> bool {
    [" WARN ", " ERROR ", "\"level\":\"WARN\"", "\"level\":\"ERROR\"", "panicked at"]
        .into_iter()
        .any(|mark| line.contains(mark))
}

/// Lines of level WARN or ERROR, and panics, in Larder's logs below `folder`, except those that
/// hold one of `announced`. A panic cannot be announced.
pub fn scan(folder: &Path, announced: &[String]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in files_below(folder).into_iter().filter(|path| is_ours(path)) {
        let text = std::fs::read(&file).unwrap_or_default();
        for line in String::from_utf8_lossy(&text).lines().filter(|line| is_bad(line)) {
            let expected = announced.iter().any(|pattern| line.contains(pattern.as_str()));
            if !expected || line.contains("panicked at") {
                findings.push(Finding { file: file.clone(), line: line.to_owned() });
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn announced_warnings_pass_and_panics_never_do() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("nodes/agent.log");
        std::fs::create_dir_all(log.parent().unwrap()).unwrap();
        std::fs::write(
            &log,
            "T  INFO x: fine\nT  WARN x: server lost\nT ERROR x: other\nthread panicked at server lost\n",
        )
        .unwrap();
        std::fs::write(folder.path().join("server.log"), "T WARN not ours\n").unwrap();
        let lines: Vec<String> =
            scan(folder.path(), &["server lost".into()]).into_iter().map(|f| f.line).collect();
        assert_eq!(lines, ["T ERROR x: other", "thread panicked at server lost"]);
    }
}
