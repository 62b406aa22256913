//! The roles of which a machine has many, recognised without the command line's whole tree.

use std::ffi::OsString;
use std::path::Path;

/// A role of a long-lived process, started by the keeper, by `serve` or as a pod.
///
/// Building and asking clap's tree of all commands costs such a process, which never needs it
/// again, pages that stay resident for as long as it lives. So the command lines that Larder itself
/// writes are matched literally; every other spelling goes through clap and means the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lean<'a> {
    Agent { dir: &'a Path },
    AgentInPod,
    Proxy { dir: &'a Path },
    Keeper { data: &'a Path },
}

impl<'a> Lean<'a> {
    /// The role of `arguments`, which are those of the process without its name.
    pub(crate) fn of(arguments: &'a [OsString]) -> Option<Self> {
        let (role, option, path) = match arguments {
            [role, option, path] => (role, option, path),
            [role, option] if role == "agent" && option == "--pod" => {
                return Some(Self::AgentInPod);
            }
            _ => return None,
        };
        let path = Path::new(path);
        match (role.to_str()?, option.to_str()?) {
            ("agent", "--dir") => Some(Self::Agent { dir: path }),
            ("proxy", "--dir") => Some(Self::Proxy { dir: path }),
            ("keeper", "--data") => Some(Self::Keeper { data: path }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn arguments(line: &[&str]) -> Vec<OsString> {
        line.iter().map(OsString::from).collect()
    }

    #[test]
    fn command_lines_that_larder_writes_are_recognised() {
        let line = arguments(&["agent", "--dir", "/d/n"]);
        assert_eq!(Lean::of(&line), Some(Lean::Agent { dir: Path::new("/d/n") }));
        assert_eq!(Lean::of(&arguments(&["agent", "--pod"])), Some(Lean::AgentInPod));
        let line = arguments(&["proxy", "--dir", "/d/relay"]);
        assert_eq!(Lean::of(&line), Some(Lean::Proxy { dir: Path::new("/d/relay") }));
        let line = arguments(&["keeper", "--data", "/d"]);
        assert_eq!(Lean::of(&line), Some(Lean::Keeper { data: Path::new("/d") }));
    }

    #[test]
    fn everything_else_is_left_to_clap() {
        for line in [
            &["agent"][..],
            &["agent", "--help"],
            &["proxy", "--pod"],
            &["agent", "--data", "/d"],
            &["agent", "--dir=/d"],
            &["keeper", "--data", "/d", "--stop"],
            &["instance", "list", "--all"],
        ] {
            assert_eq!(Lean::of(&arguments(line)), None, "{line:?}");
        }
    }

    #[test]
    fn clap_knows_what_is_recognised_here() {
        for line in [
            &["larder", "agent", "--dir", "/d"][..],
            &["larder", "agent", "--pod"],
            &["larder", "proxy", "--dir", "/d"],
            &["larder", "keeper", "--data", "/d"],
        ] {
            assert!(crate::Larder::command().try_get_matches_from(line).is_ok(), "{line:?}");
        }
    }
}
