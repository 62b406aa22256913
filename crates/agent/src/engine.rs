//! What the server binary is, as far as its configuration depends on it.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use larder_model::EngineName;
use larder_node::ServerInfo;
use serde::{Deserialize, Serialize};
use tokio::process::Command;

/// The two families of servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Flavour {
    Redis,
    Valkey,
}

/// Flavour and version; what a version knows is asked here and nowhere else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Engine {
    pub(crate) flavour: Flavour,
    pub(crate) major: u32,
    pub(crate) minor: u32,
}

impl Engine {
    /// Runs `BINARY --version`, which both families answer at once without touching anything.
    ///
    /// # Errors
    /// Why the binary cannot be used, in words for a person.
    pub(crate) async fn probe(binary: &Path) -> Result<Self, String> {
        let shown = binary.display();
        let mut command = Command::new(binary);
        command.arg("--version").kill_on_drop(true);
        let output = tokio::time::timeout(Duration::from_secs(5), command.output())
            .await
            .map_err(|_| format!("{shown} --version does not answer within 5 s"))?
            .map_err(|error| format!("starting {shown}: {error}"))?;
        let text = String::from_utf8_lossy(&output.stdout);
        Self::from_version_line(&text)
            .ok_or_else(|| format!("{shown} does not say that it is a Redis or Valkey server"))
    }

    /// `Redis server v=7.0.15 sha=…`, `Valkey server v=9.1.2 sha=…`.
    fn from_version_line(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        let flavour = match words.next()? {
            "Redis" => Flavour::Redis,
            "Valkey" => Flavour::Valkey,
            _ => return None,
        };
        let version = words.find_map(|word| word.strip_prefix("v="))?;
        Self::from_version(flavour, version)
    }

    /// From a name of the catalogue, when the binary cannot be asked: `redis-7.0`.
    pub(crate) fn from_name(name: &EngineName) -> Option<Self> {
        let (flavour, version) = name.as_str().split_once('-')?;
        let flavour = match flavour {
            "redis" => Flavour::Redis,
            "valkey" => Flavour::Valkey,
            _ => return None,
        };
        Self::from_version(flavour, version)
    }

    /// What a running server says of itself, whatever lies at its binary's path by now.
    pub(crate) fn of(info: &ServerInfo) -> Option<Self> {
        let flavour = match info.flavour {
            larder_node::Flavour::Redis => Flavour::Redis,
            larder_node::Flavour::Valkey => Flavour::Valkey,
        };
        Self::from_version(flavour, &info.engine_version)
    }

    /// Whether this engine is made to read what `writer` has written: a later version of the same
    /// family. Another family may be, but what it cannot read says nothing of the files.
    pub(crate) fn is_to_read(self, writer: Self) -> bool {
        self.flavour == writer.flavour && (self.major, self.minor) >= (writer.major, writer.minor)
    }

    fn from_version(flavour: Flavour, version: &str) -> Option<Self> {
        let mut parts = version.split('.');
        let major = parts.next()?.parse().ok()?;
        let minor = parts.next().and_then(|text| text.parse().ok()).unwrap_or(0);
        Some(Self { flavour, major, minor })
    }

    /// Redis 7.0 brought subcommands of their own in ACLs, `CLUSTER SHARDS` and
    /// `CLUSTER LINKS`. Valkey begins at 7.2.
    pub(crate) fn is_seven_or_later(self) -> bool {
        self.major >= 7
    }

    /// `CLUSTER MIGRATESLOTS`, since Valkey 9.0.
    pub(crate) fn moves_slots(self) -> bool {
        self.flavour == Flavour::Valkey && self.major >= 9
    }

    /// Replicas acknowledge `CLUSTER SETSLOT` before their primary carries it out, since Valkey 8.0.
    pub(crate) fn acknowledges_marks(self) -> bool {
        self.flavour == Flavour::Valkey && self.major >= 8
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flavour = match self.flavour {
            Flavour::Redis => "redis",
            Flavour::Valkey => "valkey",
        };
        write!(f, "{flavour} {}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_lines_of_all_families_are_read() {
        for (line, flavour, major, minor) in [
            (
                "Redis server v=6.2.5 sha=00000000:0 malloc=jemalloc-5.1.0 bits=64",
                Flavour::Redis,
                6,
                2,
            ),
            ("Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0", Flavour::Redis, 7, 0),
            ("Valkey server v=9.1.2 sha=00000000:0 malloc=libc", Flavour::Valkey, 9, 1),
        ] {
            assert_eq!(Engine::from_version_line(line), Some(Engine { flavour, major, minor }));
        }
        assert_eq!(Engine::from_version_line("bash 5.2"), None);
    }

    #[test]
    fn catalogue_names_are_read() {
        let name = EngineName::new("valkey-8.0").expect("valid");
        let engine = Engine::from_name(&name).expect("known family");
        assert_eq!((engine.flavour, engine.major, engine.minor), (Flavour::Valkey, 8, 0));
    }

    #[test]
    fn only_a_later_engine_of_the_same_family_is_to_read_what_one_has_written() {
        let engine = |name: &str| {
            Engine::from_name(&EngineName::new(name).expect("valid")).expect("known family")
        };
        assert!(engine("redis-7.0").is_to_read(engine("redis-6.2")));
        assert!(engine("valkey-9.1").is_to_read(engine("valkey-9.1")));
        assert!(!engine("redis-6.2").is_to_read(engine("redis-7.0")));
        assert!(!engine("redis-7.0").is_to_read(engine("valkey-9.1")));
    }
}
