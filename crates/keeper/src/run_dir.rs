//! The short folder of unix sockets: where it is, and that it is there and ours.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use larder_model::local::{DataDir, RunDir};
use rustix::fs::{Access, access};
use rustix::process::geteuid;

use crate::files;

/// Paths of unix sockets end at 107 bytes (`sun_path`, unix(7)); the longest name in the folder
/// is `a-<40 characters>.sock`.
const LONGEST: usize = 107 - "/a-.sock".len() - 40;

/// Every such folder is called so.
const PREFIX: &str = "larder-";

/// The run folder of a data directory: the one named in `DATA/run-dir`, else a new one whose name
/// is written there. It is made again when it vanished, as it does with a reboot.
///
/// # Errors
/// When no place is short enough, writable and ours.
pub fn ensure(data: &Path) -> io::Result<RunDir> {
    let file = DataDir(data.to_owned()).run_dir_file();
    if let Some(named) = read_name(&file)? {
        make(&named)?;
        return Ok(RunDir(named));
    }
    let data = fs::canonicalize(data)?;
    let mut last_error = None;
    for candidate in candidates(&data) {
        if candidate.as_os_str().len() > LONGEST {
            continue;
        }
        match make(&candidate) {
            Ok(()) => {
                if write_name(&file, &candidate)? {
                    return Ok(RunDir(candidate));
                }
                // Keeper and `serve` start together, and the other one was faster.
                if let Some(named) = read_name(&file)? {
                    if named != candidate {
                        let _ = fs::remove_dir(&candidate);
                    }
                    make(&named)?;
                    return Ok(RunDir(named));
                }
            }
            Err(error) => last_error = Some(error),
        }
    }
    Err(last_error.unwrap_or_else(|| io::Error::other("no place for the folder of sockets")))
}

/// Removes the folder that is named in `DATA/run-dir`, with the sockets in it. [`ensure`] makes it
/// again. One that is gone is none; one that [`ensure`] would not have named so is left alone.
///
/// # Errors
/// When the name cannot be read, or the folder is a link, somebody else's, or cannot be removed.
pub fn remove(data: &Path) -> io::Result<()> {
    let Some(named) = read_name(&DataDir(data.to_owned()).run_dir_file())? else { return Ok(()) };
    // The file of the name may be anything by now.
    let name = named.file_name().unwrap_or_default().to_string_lossy();
    if !named.is_absolute() || !name.starts_with(PREFIX) {
        let text = format!("{} is no folder of Larder's sockets", named.display());
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    match check_ours(&named).and_then(|_| fs::remove_dir_all(&named)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn read_name(file: &Path) -> io::Result<Option<PathBuf>> {
    match fs::read_to_string(file) {
        Ok(text) => {
            let name = text.trim();
            Ok((!name.is_empty()).then(|| PathBuf::from(name)))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes the name unless there is one; answers whether it wrote.
fn write_name(file: &Path, name: &Path) -> io::Result<bool> {
    let own = file.with_file_name(format!(".run-dir.{}", std::process::id()));
    files::write_text(&own, &format!("{}\n", name.display()))?;
    let linked = fs::hard_link(&own, file);
    files::remove_if_exists(&own)?;
    match linked {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

fn candidates(data: &Path) -> Vec<PathBuf> {
    let hash = short_hash(data);
    let uid = geteuid();
    let mut candidates = Vec::new();
    if uid.is_root() && access("/run", Access::WRITE_OK).is_ok() {
        candidates.push(PathBuf::from(format!("/run/{PREFIX}{hash}")));
    }
    if let Some(runtime) = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()) {
        candidates.push(PathBuf::from(runtime).join(format!("{PREFIX}{hash}")));
    }
    // Anybody may make folders in /tmp, also under the name that we would like to have.
    candidates.extend((0..4).map(|n| {
        let end = ["", "-b", "-c", "-d"][n];
        PathBuf::from(format!("/tmp/{PREFIX}{}-{hash}{end}", uid.as_raw()))
    }));
    candidates
}

/// FNV-1a, folded to 32 bits: tells the data directories of one machine apart, no more.
fn short_hash(data: &Path) -> String {
    let hash = data.as_os_str().as_encoded_bytes().iter().fold(0xcbf2_9ce4_8422_2325, |hash, b| {
        (hash ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{:08x}", (hash ^ (hash >> 32)) & 0xffff_ffff)
}

/// Makes the folder, or makes sure that the one that is there is ours alone.
fn make(path: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    if check_ours(path)?.permissions().mode() & 0o077 != 0 {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// A folder, not a link to one, and of our user.
fn check_ours(path: &Path) -> io::Result<fs::Metadata> {
    let metadata = fs::symlink_metadata(path)?;
    if !metadata.is_dir() || metadata.uid() != geteuid().as_raw() {
        let text = format!("{} belongs to somebody else", path.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    Ok(metadata)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_process_finds_the_same_folder_also_after_it_vanished() {
        let data = tempfile::tempdir().expect("temp dir");
        let first = ensure(data.path()).expect("first");
        fs::remove_dir(&first.0).expect("remove");
        let second = ensure(data.path()).expect("second");
        assert_eq!(first, second);
        let mode = fs::metadata(&second.0).expect("metadata").permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        fs::remove_dir(&second.0).expect("clean up");
    }

    #[test]
    fn two_that_start_together_agree() {
        let data = tempfile::tempdir().expect("temp dir");
        let file = data.path().join("run-dir");
        assert!(write_name(&file, Path::new("/one")).expect("first"));
        assert!(!write_name(&file, Path::new("/two")).expect("second"));
        assert_eq!(read_name(&file).expect("read"), Some(PathBuf::from("/one")));
    }

    #[test]
    fn a_folder_that_others_can_enter_is_closed() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("run");
        fs::create_dir(&path).expect("make");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("open up");
        make(&path).expect("ours");
        let mode = fs::metadata(&path).expect("metadata").permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }

    #[test]
    fn only_a_folder_of_sockets_that_is_ours_is_removed() {
        let data = tempfile::tempdir().expect("temp dir");
        remove(data.path()).expect("none was ever made");
        let made = ensure(data.path()).expect("made").0;
        fs::write(made.join("a-1.sock"), "").expect("written");
        remove(data.path()).expect("removed");
        assert!(!made.exists());
        remove(data.path()).expect("gone already");

        let name = data.path().join("run-dir");
        let (others, link) = (data.path().join("precious"), data.path().join("larder-1"));
        fs::create_dir(&others).expect("make");
        std::os::unix::fs::symlink(&others, &link).expect("link");
        for named in [&others, &link] {
            fs::write(&name, format!("{}\n", named.display())).expect("name");
            assert!(remove(data.path()).is_err());
            assert!(others.exists() && link.exists());
        }
    }

    #[test]
    fn a_link_is_not_taken_for_the_folder() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("run");
        std::os::unix::fs::symlink(dir.path(), &path).expect("link");
        assert!(make(&path).is_err());
    }
}
