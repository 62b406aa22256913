//! What values a parameter takes, and their one way of being written.

use std::fmt;

/// The values of a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `yes` or `no`.
    YesNo,
    /// A whole number, both ends included.
    Integer { least: i64, most: i64 },
    /// A number of bytes, both ends included: `1048576`, `1mb`, `1MiB`.
    Bytes { least: u64, most: u64 },
    /// One of these.
    Word(&'static [&'static str]),
    /// Pairs of seconds and changes, or nothing.
    Save,
    /// `class hard soft seconds` for some of the classes `normal`, `replica` and `pubsub`.
    Buffers,
}

/// A value that a parameter does not take. The text says what it takes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{value}` is not {wanted}")]
pub struct InvalidValue {
    pub value: String,
    pub wanted: String,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::YesNo => f.write_str("yes or no"),
            Self::Integer { least, most } => write!(f, "a whole number from {least} to {most}"),
            Self::Bytes { least, most } => {
                write!(f, "a number of bytes from {least} to {most}, such as 64mb")
            }
            Self::Word(words) => write!(f, "one of {}", words.join(", ")),
            Self::Save => f.write_str("pairs of seconds and changes such as `3600 1 300 100`, or nothing"),
            Self::Buffers => f.write_str(
                "`CLASS HARD SOFT SECONDS` of one or more of the classes normal, replica and pubsub, \
                 such as `pubsub 32mb 8mb 60`",
            ),
        }
    }
}

/// Of a replica's stream less would cut the replica off whenever much is written.
const REPLICA_LEAST: u64 = 64 << 20;

impl Kind {
    /// A word for tables and scripts.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::YesNo => "boolean",
            Self::Integer { .. } => "integer",
            Self::Bytes { .. } => "bytes",
            Self::Word(_) => "choice",
            Self::Save => "save-points",
            Self::Buffers => "buffer-limits",
        }
    }

    /// The value as the servers say it: two that mean the same are the same text.
    ///
    /// # Errors
    /// [`InvalidValue`].
    pub fn normal(&self, value: &str) -> Result<String, InvalidValue> {
        let value = value.trim();
        let normal = match self {
            Self::YesNo => ["yes", "no"].into_iter().find(|w| *w == value).map(str::to_owned),
            Self::Integer { least, most } => {
                let number = value.parse::<i64>().ok();
                number.filter(|n| (least..=most).contains(&n)).map(|n| n.to_string())
            }
            Self::Bytes { least, most } => {
                bytes(value).filter(|n| (least..=most).contains(&n)).map(|n| n.to_string())
            }
            Self::Word(words) => words.iter().find(|w| **w == value).map(|w| (*w).to_owned()),
            Self::Save => save(value),
            Self::Buffers => buffers(value),
        };
        normal.ok_or_else(|| InvalidValue { value: shown(value), wanted: self.to_string() })
    }

    /// Values at both ends of what it takes, and one beyond: for tests of servers.
    pub fn samples(&self) -> (Vec<String>, String) {
        let beyond = |most: i128| (most + 1).to_string();
        match self {
            Self::YesNo => (vec!["yes".into(), "no".into()], "maybe".into()),
            Self::Integer { least, most } => {
                (vec![least.to_string(), most.to_string()], beyond((*most).into()))
            }
            Self::Bytes { least, most } => {
                (vec![least.to_string(), most.to_string()], beyond((*most).into()))
            }
            Self::Word(words) => {
                (words.iter().map(|w| (*w).to_owned()).collect(), "no-such-word".into())
            }
            Self::Save => (vec![String::new(), "3600 1 300 100".into()], "3600".into()),
            Self::Buffers => (
                vec!["normal 1048576 524288 10".into(), "pubsub 0 0 0".into()],
                "everybody 1 1 1".into(),
            ),
        }
    }
}

fn shown(value: &str) -> String {
    value.chars().take(64).collect()
}

/// As the servers read sizes (`memtoull`, util.c): `k` is 1000, `kb` 1024; here also `KiB`.
fn bytes(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok()?;
    let factor = match text[digits..].to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" => 1_000,
        "kb" | "kib" => 1 << 10,
        "m" => 1_000_000,
        "mb" | "mib" => 1 << 20,
        "g" => 1_000_000_000,
        "gb" | "gib" => 1 << 30,
        _ => return None,
    };
    number.checked_mul(factor)
}

fn save(text: &str) -> Option<String> {
    let numbers: Option<Vec<u32>> =
        text.split_ascii_whitespace().map(|word| word.parse().ok().filter(|n| *n > 0)).collect();
    let numbers =
        numbers.filter(|numbers| numbers.len().is_multiple_of(2) && numbers.len() <= 16)?;
    Some(numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(" "))
}

/// Without the classes that are at their default; `slave` is the same as `replica`.
fn buffers(text: &str) -> Option<String> {
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    if words.is_empty() || !words.len().is_multiple_of(4) {
        return None;
    }
    let mut limits = BUFFERS.map(|(class, hard, soft, seconds)| (class, hard, soft, seconds));
    for part in words.chunks_exact(4) {
        let class = if part[0] == "slave" { "replica" } else { part[0] };
        let limit = limits.iter_mut().find(|limit| limit.0 == class)?;
        let most = u64::from(u32::MAX);
        (limit.1, limit.2) =
            (bytes(part[1]).filter(|n| *n <= most)?, bytes(part[2]).filter(|n| *n <= most)?);
        limit.3 = part[3].parse().ok().filter(|n: &u32| *n <= 86_400)?;
        let is_cut = |bytes: u64| class == "replica" && bytes > 0 && bytes < REPLICA_LEAST;
        if is_cut(limit.1) || is_cut(limit.2) {
            return None;
        }
    }
    let all = limits.map(|(class, hard, soft, seconds)| format!("{class} {hard} {soft} {seconds}"));
    Some(all.join(" "))
}

/// The servers' own defaults (config.c).
const BUFFERS: [(&str, u64, u64, u32); 3] = [
    ("normal", 0, 0, 0),
    ("replica", 268_435_456, 67_108_864, 60),
    ("pubsub", 33_554_432, 8_388_608, 60),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_mean_the_same_are_written_the_same() {
        let size = Kind::Bytes { least: 1, most: 1 << 40 };
        for (text, normal) in
            [("64mb", "67108864"), ("64MiB", "67108864"), ("1k", "1000"), ("7", "7")]
        {
            assert_eq!(size.normal(text).as_deref(), Ok(normal), "{text}");
        }
        assert!(size.normal("40gb x").is_err() && size.normal("-1").is_err());
        assert_eq!(Kind::Save.normal(" 900  1 ").as_deref(), Ok("900 1"));
        assert_eq!(Kind::Save.normal("").as_deref(), Ok(""));
        assert!(Kind::Save.normal("900").is_err());
        let buffers = Kind::Buffers.normal("slave 128mb 64mb 60").expect("valid");
        assert!(
            buffers.contains("replica 134217728 67108864 60") && buffers.contains("normal 0 0 0")
        );
        assert!(Kind::Buffers.normal("replica 1mb 1mb 60").is_err(), "cuts replicas off");
    }
}
