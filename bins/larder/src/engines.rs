//! The catalogue of engines: found on this machine at start, or added by a person.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use larder_model::{Refusal, Timestamp};
use larder_node::probe::{EngineProbe, probe};
use larder_store::{EngineRow, Store};

/// Names under which server binaries go.
const BINARIES: [&str; 2] = ["redis-server", "valkey-server"];

/// Probes every server binary on PATH and in `dirs` (and one folder below each) that the
/// catalogue does not know yet, and adds it. The first binary of an engine name wins.
///
/// # Errors
/// When the catalogue cannot be read or written. A binary that is no engine is only logged.
pub(crate) async fn discover(
    store: &Store,
    dirs: &[PathBuf],
    now: Timestamp,
) -> anyhow::Result<()> {
    let known: BTreeSet<PathBuf> =
        store.engine_list().await?.into_iter().map(|engine| engine.path).collect();
    let mut names: BTreeSet<String> =
        store.engine_list().await?.into_iter().map(|engine| engine.name.to_string()).collect();
    for binary in candidates(dirs) {
        if known.contains(&binary) {
            continue;
        }
        match probe(&binary).await {
            Ok(found) if names.contains(found.name.as_str()) => {
                tracing::debug!(engine = %found.name, path = %binary.display(), "engine known from another path");
            }
            Ok(found) => {
                tracing::info!(engine = %found.name, version = %found.version, path = %binary.display(), "engine found");
                names.insert(found.name.to_string());
                store.engine_upsert(&row(found, now, true)).await?;
            }
            Err(refusal) => {
                tracing::info!(path = %binary.display(), %refusal, "not usable as an engine");
            }
        }
    }
    Ok(())
}

/// What the catalogue keeps of a probed binary.
pub(crate) fn row(found: EngineProbe, now: Timestamp, builtin: bool) -> EngineRow {
    let capabilities = serde_json::json!({
        "arch": found.arch,
        "bits": found.bits,
        "malloc": found.malloc,
        "tls": found.tls,
        "directives": found.directives,
    });
    EngineRow {
        name: found.name,
        version: found.version,
        flavour: found.flavour.as_str().to_owned(),
        path: found.path,
        sha256: None,
        capabilities,
        added_at: now,
        builtin,
    }
}

/// A binary that a person names.
pub(crate) async fn probe_for_catalogue(path: &Path, now: Timestamp) -> Result<EngineRow, Refusal> {
    Ok(row(probe(path).await?, now, false))
}

/// Existing files, each once, in the order in which they are to be preferred.
fn candidates(dirs: &[PathBuf]) -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let below = dirs.iter().flat_map(|dir| {
        let mut folders: Vec<PathBuf> = std::fs::read_dir(dir)
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.is_dir())
            .collect();
        folders.sort();
        folders
    });
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for dir in on_path.into_iter().chain(dirs.iter().cloned()).chain(below) {
        for name in BINARIES {
            let file = dir.join(name);
            // The same file by two ways (/bin, /usr/bin) is one engine.
            let Ok(real) =
                file.parent().map_or(Ok(file.clone()), |p| p.canonicalize().map(|p| p.join(name)))
            else {
                continue;
            };
            if real.is_file() && seen.insert(real.clone()) {
                found.push(real);
            }
        }
    }
    found
}
