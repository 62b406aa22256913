//! Reading the folder of desired processes.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use larder_model::local::ProcessSpec;

use crate::files;
use crate::paths::KeeperPaths;

/// What tells that a file was replaced: files are renamed into place, so each has its own inode.
type Version = (u64, i64, i64, u64);

/// The folder as it was last read. Files that did not change are not read again.
#[derive(Debug, Default)]
pub(crate) struct DesiredFolder {
    seen: HashMap<String, (Version, Option<Arc<ProcessSpec>>)>,
}

impl DesiredFolder {
    /// Reads what changed and answers every process that is wished for, by name. A file that
    /// cannot be understood is reported once; the last good wish of that name stays in force:
    /// the one that was read before, else what `remembered` has of it.
    ///
    /// # Errors
    /// When the folder cannot be listed; nothing is known then.
    pub(crate) fn read(
        &mut self,
        folder: &Path,
        remembered: impl Fn(&str) -> Option<ProcessSpec>,
    ) -> io::Result<HashMap<String, Arc<ProcessSpec>>> {
        let mut present = HashMap::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let Some(name) = name_of(&entry) else { continue };
            let Ok(metadata) = entry.metadata() else { continue };
            let version =
                (metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), metadata.size());
            let seen = self.seen.remove(&name);
            let spec = match seen {
                Some((same, spec)) if same == version => spec,
                seen => match read_spec(&entry.path(), &name) {
                    Ok(Some(spec)) => Some(Arc::new(spec)),
                    Ok(None) => continue,
                    Err(error) => {
                        let last = seen.and_then(|(_, spec)| spec);
                        let last = last.or_else(|| {
                            remembered(&name).filter(|spec| spec.name == name).map(Arc::new)
                        });
                        tracing::error!(
                            path = %entry.path().display(), %error, kept = last.is_some(),
                            "wish for a process cannot be read, its last good wish stays in force"
                        );
                        last
                    }
                },
            };
            present.insert(name, (version, spec));
        }
        self.seen = present;
        Ok(self
            .seen
            .iter()
            .filter_map(|(name, (_, spec))| Some((name.clone(), Arc::clone(spec.as_ref()?))))
            .collect())
    }
}

/// Every wish that the keeper would act on, in no order. Damaged ones are passed over; the log
/// names them.
///
/// # Errors
/// When the folder cannot be listed, as when there is none.
pub fn wishes(paths: &KeeperPaths) -> io::Result<Vec<ProcessSpec>> {
    let mut wishes = Vec::new();
    for entry in fs::read_dir(paths.desired_dir())? {
        let entry = entry?;
        let Some(name) = name_of(&entry) else { continue };
        match read_spec(&entry.path(), &name) {
            Ok(wish) => wishes.extend(wish),
            Err(error) => {
                tracing::warn!(path = %entry.path().display(), %error, "wish cannot be read");
            }
        }
    }
    Ok(wishes)
}

/// Which process the file is for; `None` for what is no wish, such as one that is being written.
fn name_of(entry: &fs::DirEntry) -> Option<String> {
    let file_name = entry.file_name();
    let name = file_name.to_str()?.strip_suffix(".json")?;
    (!name.starts_with('.')).then(|| name.to_owned())
}

fn read_spec(path: &Path, name: &str) -> io::Result<Option<ProcessSpec>> {
    let Some(spec) = files::read_json::<ProcessSpec>(path)? else { return Ok(None) };
    let wrong = if spec.name != name {
        "the name inside is not that of the file"
    } else if spec.argv.is_empty() {
        "the command line is empty"
    } else {
        return Ok(Some(spec));
    };
    Err(io::Error::new(io::ErrorKind::InvalidData, wrong))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(name: &str, program: &str) -> String {
        format!(
            r#"{{"name":"{name}","instance":"i-1","argv":["{program}"],"log":"/dev/null",
                "ping_socket":null,"guard":null,"removed":false}}"#
        )
    }

    #[test]
    fn a_broken_file_is_skipped_and_the_last_good_wish_stays() {
        let dir = tempfile::tempdir().expect("temp dir");
        let mut folder = DesiredFolder::default();
        fs::write(dir.path().join("a.json"), json("a", "sleep")).expect("write");
        fs::write(dir.path().join("b.json"), "{").expect("write");
        fs::write(dir.path().join("c.json"), json("other", "sleep")).expect("write");
        fs::write(dir.path().join(".d.json.tmp"), "{").expect("write");
        let forgetful = |_: &str| None;
        let read = folder.read(dir.path(), forgetful).expect("list");
        assert_eq!(read.keys().collect::<Vec<_>>(), ["a"]);

        fs::write(dir.path().join("a.json"), "{ torn").expect("write");
        let read = folder.read(dir.path(), forgetful).expect("list");
        assert_eq!(read["a"].argv, ["sleep"]);

        fs::remove_file(dir.path().join("a.json")).expect("remove");
        assert!(folder.read(dir.path(), forgetful).expect("list").is_empty());
    }

    #[test]
    fn a_file_that_was_never_good_falls_back_on_what_is_remembered() {
        let dir = tempfile::tempdir().expect("temp dir");
        fs::write(dir.path().join("a.json"), "garbage").expect("write");
        let spec: ProcessSpec = serde_json::from_str(&json("a", "sleep")).expect("spec");
        let read = DesiredFolder::default()
            .read(dir.path(), |name| (name == "a").then(|| spec.clone()))
            .expect("list");
        assert_eq!(read["a"].argv, ["sleep"]);
        let other = ProcessSpec { name: "b".to_owned(), ..spec };
        let read =
            DesiredFolder::default().read(dir.path(), |_| Some(other.clone())).expect("list");
        assert!(read.is_empty(), "the wish of another process was taken");
    }
}
