//! House rules that no linter knows: file headers, file sizes, an error page for each code.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

/// Past this a file is split by verb.
const MOST_LINES: usize = 1000;

pub(crate) fn check() -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("no workspace root")?;
    let mut wrong = Vec::new();
    for file in tracked(root, "*.rs")? {
        let path = root.join(&file);
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        let shown = file.display();
        if !text.starts_with("//!") && !is_test(&file) {
            wrong.push(format!("{shown}: begins without a //! line that says what it is for"));
        }
        let lines = text.lines().count();
        if lines > MOST_LINES {
            wrong.push(format!("{shown}: {lines} lines; split it by verb"));
        }
        for (number, line) in text.lines().enumerate() {
            let ignored = concat!("#[", "ignore");
            if line.trim_start().starts_with(ignored) {
                wrong.push(format!("{shown}:{}: an ignored test", number + 1));
            }
        }
    }
    let codes = std::fs::read_to_string(root.join("crates/model/src/error.rs"))
        .context("reading the error codes")?;
    for code in error_codes(&codes) {
        let page = root.join("docs/errors").join(format!("{code}.md"));
        if !page.exists() {
            wrong.push(format!("docs/errors/{code}.md is missing"));
        }
    }
    if !wrong.is_empty() {
        bail!("{}", wrong.join("\n"));
    }
    Ok(())
}

fn is_test(file: &Path) -> bool {
    file.file_name().is_some_and(|name| name == "tests.rs")
}

fn tracked(root: &Path, pattern: &str) -> anyhow::Result<Vec<PathBuf>> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", pattern])
        .current_dir(root)
        .output()
        .context("running git ls-files")?;
    if !output.status.success() {
        bail!("git ls-files failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout)?.lines().map(PathBuf::from).collect())
}

/// The texts in the `codes!` table: `Name = "text", 400, "Title";`.
fn error_codes(source: &str) -> Vec<&str> {
    let table = source.split_once("codes! {\n").map_or("", |(_, rest)| rest);
    let table = table.split_once("\n}\n").map_or("", |(table, _)| table);
    table.lines().filter_map(|line| line.split('"').nth(1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_found_in_the_table() {
        let source =
            "x\ncodes! {\n    A = \"a-b\", 400, \"T\";\n    C = \"c\", 500, \"U\";\n}\nfn x() {}";
        assert_eq!(error_codes(source), ["a-b", "c"]);
    }
}
