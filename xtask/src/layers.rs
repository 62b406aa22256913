//! Compares who depends on whom with the drawing in ARCHITECTURE.md.
//!
//! The drawing is a fenced block that starts with `layers`; each line is `crate: crate crate …`
//! with every crate of the workspace that it may depend on (dev-dependencies aside). The check
//! is exact: an edge that is not drawn fails, and so does a drawn edge that is not there.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, bail};
use cargo_metadata::{DependencyKind, MetadataCommand};

type Edges = BTreeMap<String, BTreeSet<String>>;

/// Crates without IO, clock and chance, and what they may use from outside of the workspace.
const PURE: [&str; 4] = ["model", "election", "planner", "resp"];
const PURE_OUTSIDE: [&str; 4] = ["bytes", "memchr", "serde", "thiserror"];

pub(crate) fn check() -> anyhow::Result<()> {
    let metadata = MetadataCommand::new().no_deps().exec().context("reading cargo metadata")?;
    let root = metadata.workspace_root.as_std_path();
    let drawing =
        std::fs::read_to_string(root.join("ARCHITECTURE.md")).context("reading ARCHITECTURE.md")?;
    let drawn = parse(&drawing)?;

    let short = |name: &str| name.strip_prefix("larder-").unwrap_or(name).to_owned();
    let members: BTreeSet<String> = metadata.packages.iter().map(|p| p.name.to_string()).collect();
    let mut real = Edges::new();
    let mut wrong = Vec::new();
    for package in &metadata.packages {
        let name = short(&package.name);
        let edges = real.entry(name.clone()).or_default();
        for dependency in &package.dependencies {
            if dependency.kind != DependencyKind::Normal {
                continue;
            }
            if members.contains(&dependency.name) {
                edges.insert(short(&dependency.name));
            } else if PURE.contains(&name.as_str())
                && !PURE_OUTSIDE.contains(&dependency.name.as_str())
            {
                wrong.push(format!("{name} is pure and must not use {}", dependency.name));
            }
        }
    }
    for name in real.keys().chain(drawn.keys()).collect::<BTreeSet<_>>() {
        let nothing = BTreeSet::new();
        let (real, drawn) = (real.get(name), drawn.get(name).unwrap_or(&nothing));
        let Some(real) = real else {
            wrong.push(format!("{name} is drawn and does not exist"));
            continue;
        };
        wrong.extend(real.difference(drawn).map(|to| format!("{name} -> {to} is not drawn")));
        wrong.extend(drawn.difference(real).map(|to| format!("{name} -> {to} is drawn, not real")));
    }
    if !wrong.is_empty() {
        bail!("crates and ARCHITECTURE.md differ:\n  {}", wrong.join("\n  "));
    }
    Ok(())
}

fn parse(text: &str) -> anyhow::Result<Edges> {
    let (_, block) = text.split_once("```layers\n").context("no ```layers block")?;
    let (block, _) = block.split_once("```").context("the ```layers block does not end")?;
    let mut edges = Edges::new();
    for line in block.lines().filter(|line| !line.trim().is_empty()) {
        let (name, list) = line.split_once(':').with_context(|| format!("no colon in `{line}`"))?;
        let list = list.split_whitespace().map(str::to_owned).collect();
        edges.insert(name.trim().to_owned(), list);
    }
    Ok(edges)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_drawing_is_read_line_by_line() {
        let edges = parse("text\n```layers\na: b c\nb:\n```\nmore").unwrap();
        assert_eq!(edges["a"], BTreeSet::from(["b".to_owned(), "c".to_owned()]));
        assert!(edges["b"].is_empty());
        assert!(parse("nothing").is_err());
    }
}
