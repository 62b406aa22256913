//! Where the server is, who we are: environment over the user's config file.

use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use larder_client::{Client, ClientError};
use larder_model::Secret;
use serde::{Deserialize, Serialize};

use crate::exit::{CliError, ConfigError};

/// Where Larder listens unless told otherwise.
pub const DEFAULT_SERVER: &str = "http://127.0.0.1:7300";
const DEFAULT_PROJECT: &str = "default";

/// What the command line takes from its environment. A value, so that tests need not touch the
/// process's own.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// `LARDER_SERVER`
    pub server: Option<String>,
    /// `LARDER_TOKEN`
    pub token: Option<Secret>,
    /// `LARDER_PROJECT`
    pub project: Option<String>,
    /// `LARDER_CONFIG`, or the place below the user's config folder; `None` without a home.
    pub config_file: Option<PathBuf>,
}

impl Environment {
    /// The process's own environment. Empty variables count as not set.
    pub fn from_process() -> Self {
        let get = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let folder = get("XDG_CONFIG_HOME")
            .map(PathBuf::from)
            .or_else(|| get("HOME").map(|home| PathBuf::from(home).join(".config")));
        Self {
            server: get("LARDER_SERVER"),
            // Files and command substitutions end with a newline, which no token has.
            token: get("LARDER_TOKEN").map(|token| Secret::new(token.trim().to_owned())),
            project: get("LARDER_PROJECT"),
            config_file: get("LARDER_CONFIG")
                .map(PathBuf::from)
                .or_else(|| folder.map(|folder| folder.join("larder/config.json"))),
        }
    }
}

/// The config file: JSON, mode 0600, because it holds a token.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct ConfigFile {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) server: Option<String>,
    #[serde(with = "token_in_file", skip_serializing_if = "Option::is_none")]
    pub(crate) token: Option<Secret>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) project: Option<String>,
}

mod token_in_file {
    use larder_model::Secret;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(
        token: &Option<Secret>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        token.as_ref().map(Secret::expose).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Secret>, D::Error> {
        Ok(Option::<String>::deserialize(deserializer)?.map(Secret::new))
    }
}

impl ConfigFile {
    /// A file that is not there is an empty one.
    pub(crate) fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let Some(path) = path else { return Ok(Self::default()) };
        let failed = |reason: String| ConfigError { path: path.to_owned(), reason };
        match std::fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| {
                // Line and column only: the text around may be the token.
                failed(format!("not valid JSON (line {}, column {})", e.line(), e.column()))
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(failed(error.to_string())),
        }
    }

    /// Writes beside the file, then renames over it: nobody ever reads half of it.
    pub(crate) fn save(&self, path: Option<&Path>) -> Result<(), CliError> {
        let Some(path) = path else {
            return Err(CliError::Usage(
                "there is no home folder to keep the login in: set LARDER_CONFIG".into(),
            ));
        };
        let failed =
            |e: std::io::Error| ConfigError { path: path.to_owned(), reason: e.to_string() };
        let mut text = serde_json::to_vec_pretty(self).map_err(|e| failed(e.into()))?;
        text.push(b'\n');
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder)
                .map_err(failed)?;
        }
        let mut beside = path.as_os_str().to_owned();
        beside.push(format!(".{}", std::process::id()));
        let beside = PathBuf::from(beside);
        let written = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&beside)
            .and_then(|mut file| {
                file.write_all(&text)?;
                file.sync_all()
            })
            .and_then(|()| std::fs::rename(&beside, path));
        if written.is_err() {
            // Best effort: what matters is the error that follows.
            let _ = std::fs::remove_file(&beside);
        }
        Ok(written.map_err(failed)?)
    }
}

/// Environment and file, merged.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    pub(crate) environment: Environment,
    /// A broken file stands in the way only of what it would have been asked for.
    pub(crate) file: Result<ConfigFile, ConfigError>,
}

impl Context {
    pub(crate) fn load(environment: Environment) -> Result<Self, CliError> {
        let file = match ConfigFile::load(environment.config_file.as_deref()) {
            // Where to go and who we are is known without it.
            Err(error) if environment.server.is_some() && environment.token.is_some() => Err(error),
            file => Ok(file?),
        };
        Ok(Self { environment, file })
    }

    pub(crate) fn server(&self) -> &str {
        let file = || self.file.as_ref().ok().and_then(|file| file.server.as_deref());
        self.environment.server.as_deref().or_else(file).unwrap_or(DEFAULT_SERVER)
    }

    /// The token to send. The file's belongs to the file's server and goes to no other.
    pub(crate) fn token(&self) -> Option<Secret> {
        if self.environment.token.is_some() {
            return self.environment.token.clone();
        }
        let file = self.file.as_ref().ok()?;
        let home = file.server.as_deref().unwrap_or(DEFAULT_SERVER);
        let same = home.trim_end_matches('/') == self.server().trim_end_matches('/');
        file.token.clone().filter(|_| same)
    }

    /// The project that `--project`, the environment or the file names.
    ///
    /// # Errors
    /// When only the file can say it and it cannot be read: a name would be looked up in another
    /// project than the user's.
    pub(crate) fn project(&self, option: Option<&str>) -> Result<String, CliError> {
        if let Some(project) = option.or(self.environment.project.as_deref()) {
            return Ok(project.to_owned());
        }
        let file = self.file.as_ref().map_err(|error| ConfigError {
            path: error.path.clone(),
            reason: format!("{}; repair it, or name the project with --project", error.reason),
        })?;
        Ok(file.project.as_deref().unwrap_or(DEFAULT_PROJECT).to_owned())
    }

    pub(crate) fn client(&self) -> Result<Client, ClientError> {
        Client::new(self.server(), self.token())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn environment_wins_over_the_file_and_a_token_stays_with_its_server() {
        let file = ConfigFile {
            server: Some("http://a:1".into()),
            token: Some(Secret::new("t")),
            project: Some("p".into()),
        };
        let mut context = Context { environment: Environment::default(), file: Ok(file) };
        assert_eq!(context.server(), "http://a:1");
        assert!(context.token().is_some());
        assert_eq!(context.project(None).unwrap(), "p");
        assert_eq!(context.project(Some("q")).unwrap(), "q");
        context.environment.server = Some("http://a:1/".into());
        assert!(context.token().is_some());
        context.environment.server = Some("http://b:1".into());
        assert!(context.token().is_none(), "another server must not get this token");
        context.environment.token = Some(Secret::new("u"));
        assert_eq!(context.token(), Some(Secret::new("u")));
    }

    #[test]
    fn file_is_private_and_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/config.json");
        let file = ConfigFile { token: Some(Secret::new("hunter2")), ..ConfigFile::default() };
        file.save(Some(&path)).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(ConfigFile::load(Some(&path)).unwrap(), file);
        assert!(!format!("{file:?}").contains("hunter2"));
    }

    #[test]
    fn broken_file_stands_in_the_way_only_of_what_it_alone_could_say() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        std::fs::write(&path, "not json").unwrap();
        let mut environment = Environment {
            server: Some("http://a:1".into()),
            config_file: Some(path),
            ..Environment::default()
        };
        assert!(Context::load(environment.clone()).is_err());
        environment.token = Some(Secret::new("t"));
        let mut context = Context::load(environment).unwrap();
        assert_eq!((context.server(), context.token()), ("http://a:1", Some(Secret::new("t"))));
        assert_eq!(context.project(Some("q")).unwrap(), "q");
        let error = context.project(None).unwrap_err().to_string();
        assert!(error.contains("config.json") && error.contains("--project"), "{error}");
        context.environment.project = Some("p".into());
        assert_eq!(context.project(None).unwrap(), "p");
    }

    #[test]
    fn broken_file_is_named_and_not_repeated() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        std::fs::write(&path, "{\"token\": hunter2").unwrap();
        let error = ConfigFile::load(Some(&path)).unwrap_err().to_string();
        assert!(error.contains("config.json") && !error.contains("hunter2"), "{error}");
    }
}
