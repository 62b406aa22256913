//! The engines that tests may use besides the system's own, unpacked by `scripts/engines.sh`.

use std::path::PathBuf;

use anyhow::{Context, Result};

/// The engine of stories that are told of any: `LARDER_TEST_ENGINE`, or `redis-7.0`.
pub fn engine() -> String {
    std::env::var("LARDER_TEST_ENGINE").unwrap_or_else(|_| "redis-7.0".to_owned())
}

/// `LARDER_TEST_ENGINES`, or `engines` in the target folder that this test was built into.
pub fn folder() -> PathBuf {
    if let Some(folder) = std::env::var_os("LARDER_TEST_ENGINES") {
        return PathBuf::from(folder);
    }
    let beside = std::env::current_exe()
        .ok()
        .and_then(|exe| exe.ancestors().map(|a| a.join("engines")).find(|folder| folder.is_dir()));
    beside.unwrap_or_else(|| PathBuf::from("target/engines"))
}

/// Folders that hold a server binary each, sorted.
pub fn folders() -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder()) else { return Vec::new() };
    let mut found: Vec<PathBuf> = entries
        .filter_map(Result::ok)
        .map(|e| e.path())
        .filter(|p| binary_in(p).is_some())
        .collect();
    found.sort();
    found
}

fn binary_in(folder: &std::path::Path) -> Option<PathBuf> {
    ["redis-server", "valkey-server"].into_iter().map(|n| folder.join(n)).find(|p| p.is_file())
}

/// The server binary of an engine such as `redis-6.2`.
///
/// # Errors
/// It is not there: `make engines` unpacks it.
pub fn binary(engine: &str) -> Result<PathBuf> {
    let folder = folder().join(engine);
    binary_in(&folder)
        .with_context(|| format!("no server in {}: run `make engines`", folder.display()))
}
