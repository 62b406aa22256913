//! The catalogue of engines: found on this machine at start, or added by a person.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use larder_model::{EngineName, Refusal, Timestamp};
use larder_node::probe::{EngineProbe, fingerprint, probe};
use larder_store::{EngineRow, Store, StoreError};

/// Where the capabilities of an engine say which file was probed.
const FILE: &str = "file";

/// Names under which server binaries go.
const BINARIES: [&str; 2] = ["redis-server", "valkey-server"];

/// Looks again at every binary of the catalogue whose file is another one than was probed: an
/// upgrade in place leaves the path as it is. Instances keep running, and run on the new version
/// when their servers are started next.
///
/// # Errors
/// When the catalogue cannot be read or written. A binary that is gone or does not work for the
/// moment keeps its entry.
pub(crate) async fn refresh(store: &Store) -> anyhow::Result<()> {
    for known in store.engine_list().await? {
        let Some(file) = fingerprint(&known.path) else { continue };
        if known.capabilities.get(FILE).and_then(serde_json::Value::as_str) == Some(&file) {
            continue;
        }
        let found = match look(&known.path, known.added_at, known.builtin).await {
            Ok(found) => found,
            Err(refusal) => {
                tracing::warn!(engine = %known.name, %refusal, "changed, and not usable as an engine now");
                continue;
            }
        };
        if found.version != known.version {
            tracing::info!(engine = %known.name, from = known.version, to = found.version, path = %known.path.display(), "engine was upgraded");
        }
        let elsewhere = match store.engine_get(&found.name).await {
            Ok(other) => other.name != known.name && other.path != found.path,
            Err(error) if error.is_not_found() => false,
            Err(error) => return Err(error.into()),
        };
        if !elsewhere {
            store.engine_upsert(&found).await?;
        }
        renamed(store, &found).await?;
    }
    Ok(())
}

/// The binary at this path has another name now (7.0 became 7.2): entries of its former names go.
/// One that instances use stays, with the version that they get when they start next. Answers
/// which ones went.
///
/// # Errors
/// When the catalogue cannot be read or written.
pub(crate) async fn renamed(
    store: &Store,
    found: &EngineRow,
) -> Result<Vec<EngineName>, StoreError> {
    let mut gone = Vec::new();
    for former in store.engine_list().await? {
        if former.path != found.path || former.name == found.name {
            continue;
        }
        match store.engine_remove(&former.name).await {
            Ok(()) => gone.push(former.name),
            Err(StoreError::Conflict(_)) => {
                tracing::warn!(engine = %former.name, version = found.version, path = %found.path.display(), "engine was replaced by another version while instances use it");
                let kept = EngineRow {
                    name: former.name,
                    added_at: former.added_at,
                    builtin: former.builtin,
                    ..found.clone()
                };
                store.engine_upsert(&kept).await?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(gone)
}

/// Probes a binary for the catalogue.
async fn look(path: &Path, now: Timestamp, builtin: bool) -> Result<EngineRow, Refusal> {
    // Before the probe: a file that is replaced meanwhile is probed again next time.
    let file = fingerprint(path);
    let mut row = row(probe(path).await?, now, builtin);
    if let Some(capabilities) = row.capabilities.as_object_mut() {
        capabilities.insert(FILE.to_owned(), file.into());
    }
    Ok(row)
}

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
        match look(&binary, now, true).await {
            Ok(found) if names.contains(found.name.as_str()) => {
                tracing::debug!(engine = %found.name, path = %binary.display(), "engine known from another path");
            }
            Ok(found) => {
                tracing::info!(engine = %found.name, version = %found.version, path = %binary.display(), "engine found");
                names.insert(found.name.to_string());
                store.engine_upsert(&found).await?;
            }
            Err(refusal) => {
                tracing::info!(path = %binary.display(), %refusal, "not usable as an engine");
            }
        }
    }
    Ok(())
}

/// What the catalogue keeps of a probed binary.
fn row(found: EngineProbe, now: Timestamp, builtin: bool) -> EngineRow {
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
    look(path, now, false).await
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

#[cfg(test)]
mod tests {
    use super::*;

    use std::collections::BTreeMap;
    use std::sync::Arc;

    use larder_api::EngineProbe as _;
    use larder_cluster_local::EngineLookup as _;
    use larder_model::local::NodeSecrets;
    use larder_model::{
        Architecture, ByteSize, IdSource as _, InstanceName, InstanceSpec, Operation,
        OperationKind, OperationState, ProjectName, Secret, SeededIds,
    };
    use larder_reconcile::SystemClock;
    use larder_store::{Record, RecordOutcome};

    use crate::parts::{Engines, Prober};

    const NOW: Timestamp = Timestamp(1_000);

    async fn catalogue() -> (tempfile::TempDir, Store, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("larder.db");
        let store = Store::open(&database, &folder.path().join("secret.key")).await.unwrap();
        let binary = folder.path().join("redis-server");
        std::fs::copy("/usr/bin/redis-server", &binary).unwrap();
        (folder, store, binary)
    }

    async fn instance_on(store: &Store, engine: &EngineName) {
        let mut ids = SeededIds(1);
        let spec = InstanceSpec {
            parameters: std::collections::BTreeMap::new(),
            parameters_revision: 0,
            parameters_refused: None,
            revision: 0,
            expose: None,
            id: ids.instance_id(),
            name: InstanceName::new("one").unwrap(),
            project: ProjectName::new("default").unwrap(),
            description: String::new(),
            tags: BTreeMap::new(),
            architecture: Architecture::Standalone,
            engine: engine.clone(),
            memory: ByteSize::mib(128),
            shards: 1,
            replicas: 1,
            chained: false,
            container_cluster: "local".to_owned(),
            storage_class: larder_model::STANDARD_STORAGE_CLASS.into(),
        };
        let secrets =
            NodeSecrets::new(Secret::new("one"), Secret::new("two"), Secret::new("three"));
        let operation = Operation {
            id: ids.operation_id(),
            instance: spec.id.clone(),
            instance_name: spec.name.to_string(),
            kind: OperationKind::Create,
            state: OperationState::Queued,
            steps: Vec::new(),
            requested_by: "test".to_owned(),
            requested_from: "test".to_owned(),
            created_at: NOW,
            finished_at: None,
            error: None,
        };
        let record = Record {
            at: NOW,
            user: "test".to_owned(),
            from: "test".to_owned(),
            action: "instance-create".to_owned(),
            object: "instance one".to_owned(),
            instance: Some("one".to_owned()),
            detail: serde_json::Value::Null,
            outcome: RecordOutcome::Accepted,
        };
        store.instance_create(&spec, &secrets, &operation, &record).await.unwrap();
    }

    #[tokio::test]
    async fn an_engine_that_was_upgraded_in_place_is_known_by_its_new_version() {
        let (_folder, store, binary) = catalogue().await;
        let real = look(&binary, NOW, true).await.unwrap();
        store.engine_upsert(&EngineRow { version: "0.0.1".into(), ..real.clone() }).await.unwrap();
        refresh(&store).await.unwrap();
        let version = || async { store.engine_get(&real.name).await.unwrap().version };
        assert_eq!(version().await, "0.0.1", "the file that was probed is not probed again");
        let copy = binary.with_extension("new");
        std::fs::copy(&binary, &copy).unwrap();
        std::fs::rename(&copy, &binary).unwrap();
        refresh(&store).await.unwrap();
        assert_eq!(version().await, real.version);
        std::fs::remove_file(&binary).unwrap();
        refresh(&store).await.unwrap();
        assert_eq!(version().await, real.version, "a missing file keeps its entry");
    }

    /// An entry of the same binary from when it had another version.
    fn former(real: &EngineRow, name: &str) -> EngineRow {
        EngineRow {
            name: EngineName::new(name).unwrap(),
            version: "0.0.1".into(),
            capabilities: serde_json::json!({}),
            ..real.clone()
        }
    }

    /// Two former entries of the binary: an instance runs on the second.
    async fn with_former(store: &Store, real: &EngineRow) -> (EngineRow, EngineRow) {
        let (unused, used) = (former(real, "redis-0.1"), former(real, "redis-0.2"));
        for row in [&unused, &used] {
            store.engine_upsert(row).await.unwrap();
        }
        instance_on(store, &used.name).await;
        (unused, used)
    }

    #[tokio::test]
    async fn a_probe_changes_nothing_and_only_an_engine_that_was_added_replaces_its_former_name() {
        let (_folder, store, binary) = catalogue().await;
        let real = look(&binary, NOW, true).await.unwrap();
        let (unused, used) = with_former(&store, &real).await;
        let before = store.engine_list().await.unwrap();
        let engines = Arc::new(Engines::load(&store).await.unwrap());
        let prober = Prober::new(engines.clone(), store.clone(), Arc::new(SystemClock));

        let found = prober.probe(&binary).await.unwrap();
        assert_eq!(store.engine_list().await.unwrap(), before, "it may still be refused");
        assert_eq!(engines.server_binary(&unused.name), Some(binary.clone()));

        store.engine_upsert(&found).await.unwrap();
        assert_eq!(prober.added(&found).await.unwrap(), std::slice::from_ref(&unused.name));
        assert!(store.engine_get(&unused.name).await.is_err());
        assert_eq!(engines.server_binary(&unused.name), None);
        assert_eq!(engines.server_binary(&found.name), Some(binary.clone()));
        let kept = store.engine_get(&used.name).await.unwrap();
        assert_eq!(kept.version, real.version);
        assert_eq!((kept.builtin, kept.added_at), (true, NOW), "who added it is as it was");
    }

    #[tokio::test]
    async fn the_former_name_of_an_upgraded_engine_goes_unless_an_instance_uses_it() {
        let (_folder, store, binary) = catalogue().await;
        let real = look(&binary, NOW, true).await.unwrap();
        let (unused, used) = with_former(&store, &real).await;
        refresh(&store).await.unwrap();
        assert!(store.engine_get(&unused.name).await.is_err());
        assert_eq!(store.engine_get(&used.name).await.unwrap().version, real.version);
        assert_eq!(store.engine_get(&real.name).await.unwrap().version, real.version);
    }
}
