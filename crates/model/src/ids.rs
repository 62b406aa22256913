//! Identifiers and names. Never bare strings outside of this crate's constructors.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A name or an id that breaks the rules of its kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a valid {kind}: {rule}")]
pub struct InvalidName {
    pub kind: &'static str,
    pub text: String,
    pub rule: &'static str,
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $check:ident, $rule:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// # Errors
            /// [`InvalidName`] with the rule that the text breaks.
            pub fn new(text: impl Into<String>) -> Result<Self, InvalidName> {
                let text = text.into();
                if $check(&text) {
                    Ok(Self(text))
                } else {
                    Err(InvalidName { kind: $kind, text, rule: $rule })
                }
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;
            fn from_str(text: &str) -> Result<Self, InvalidName> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;
            fn try_from(text: String) -> Result<Self, InvalidName> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

/// Lower-case letters, digits and inner hyphens: safe in file names, host names and labels.
fn is_slug(text: &str, max: usize) -> bool {
    !text.is_empty()
        && text.len() <= max
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

fn is_id(text: &str) -> bool {
    is_slug(text, 40)
}

fn is_name(text: &str) -> bool {
    is_slug(text, 63)
}

fn is_engine(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 63
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.')
}

const SLUG: &str = "use lower-case letters, digits and inner hyphens, at most 63 characters";
const DOTTED: &str = "use lower-case letters, digits, dots and hyphens, at most 63 characters";
const ID: &str = "ids are lower-case letters, digits and inner hyphens, at most 40 characters";

name_type!(
    /// The random id of an instance, for ever its own.
    InstanceId, "instance id", is_id, ID
);
name_type!(
    /// The random id of a node. Says nothing of role or shard.
    NodeId, "node id", is_id, ID
);
name_type!(
    /// The random id of an operation.
    OperationId, "operation id", is_id, ID
);
name_type!(
    /// What a user calls an instance; unique in its project.
    InstanceName, "instance name", is_name, SLUG
);
name_type!(
    /// The project that owns an instance.
    ProjectName, "project name", is_name, SLUG
);
name_type!(
    /// A machine or Kubernetes node on which nodes run.
    WorkerName, "worker name", is_engine, DOTTED
);
name_type!(
    /// A failure domain of workers (`topology.kubernetes.io/zone`).
    ZoneName, "zone name", is_engine, DOTTED
);
name_type!(
    /// An engine of the catalogue: `redis-7.0`, `valkey-8.0`.
    EngineName, "engine name", is_engine, DOTTED
);

/// Where new ids come from: random in production, seeded in tests, so that pure code stays pure.
pub trait IdSource {
    /// 64 fresh bits.
    fn next_u64(&mut self) -> u64;

    /// An id of 12 characters (60 bits) with a prefix that says what it names.
    fn id_text(&mut self, prefix: char) -> String {
        const ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
        let mut bits = self.next_u64();
        let mut text = String::with_capacity(14);
        text.push(prefix);
        text.push('-');
        for _ in 0..12 {
            text.push(char::from(ALPHABET[(bits & 31) as usize]));
            bits >>= 5;
        }
        text
    }

    fn node_id(&mut self) -> NodeId {
        NodeId(self.id_text('n'))
    }

    fn instance_id(&mut self) -> InstanceId {
        InstanceId(self.id_text('i'))
    }

    fn operation_id(&mut self) -> OperationId {
        OperationId(self.id_text('o'))
    }
}

/// Repeatable ids for tests and for the simulator (SplitMix64).
#[derive(Clone, Debug)]
pub struct SeededIds(pub u64);

impl IdSource for SeededIds {
    fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
