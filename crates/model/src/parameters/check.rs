//! Whether values go together, before any of them is applied.

use std::collections::BTreeMap;

use super::Parameter;
use crate::architecture::NodeMode;
use crate::error::{Code, Refusal};
use crate::ids::EngineName;
use crate::size::ByteSize;

/// The instance that the values are for.
#[derive(Clone, Copy, Debug)]
pub struct ParameterContext<'a> {
    pub engine: &'a EngineName,
    pub mode: NodeMode,
    pub maxmemory: ByteSize,
    /// Nodes of each shard.
    pub replicas: u32,
}

/// One value under the parameter's own name and written in its one way.
///
/// # Errors
/// `unknown-parameter` or `parameter-invalid`, of the field by the name that was given.
pub fn canonical(
    name: &str,
    value: &str,
    context: &ParameterContext<'_>,
) -> Result<(&'static Parameter, String), Refusal> {
    let refuse = |code, detail: String| Refusal::new(code, detail).field(name);
    let known = Parameter::find(name);
    let Some(parameter) = known.filter(|it| it.is_in(context.engine, context.mode)) else {
        let why = match (known, OWNED.contains(&name)) {
            (Some(_), _) => format!("instances on {} of this kind do not have it", context.engine),
            (None, true) => "it is Larder's own to set".to_owned(),
            (None, false) => "there is no such parameter".to_owned(),
        };
        let detail = format!("`{name}` cannot be set: {why}; `larder parameter list` has them all");
        return Err(refuse(Code::UnknownParameter, detail));
    };
    match parameter.kind.normal(value) {
        Ok(normal) => Ok((parameter, normal)),
        Err(error) => Err(refuse(Code::ParameterInvalid, format!("{name}: {error}"))),
    }
}

/// What a user might look for, and Larder sets.
const OWNED: [&str; 12] = [
    "maxmemory",
    "port",
    "dir",
    "dbfilename",
    "requirepass",
    "masterauth",
    "masteruser",
    "replicaof",
    "cluster-enabled",
    "aclfile",
    "bind",
    "appenddirname",
];

/// Whether the values of an instance go together. `values` are canonical, and all that are set.
///
/// # Errors
/// `parameter-invalid`, of the field at fault.
pub fn check_all(
    values: &BTreeMap<String, String>,
    context: &ParameterContext<'_>,
) -> Result<(), Refusal> {
    let value = |name: &str| {
        let default = Parameter::find(name).and_then(|it| it.default);
        values.get(name).map(String::as_str).or(default)
    };
    let number = |name: &str| value(name).and_then(|text| text.parse::<i64>().ok()).unwrap_or(0);
    let refuse = |name: &str, why: String| {
        Err(Refusal::new(Code::ParameterInvalid, format!("{name}: {why}")).field(name))
    };
    if number("repl-timeout") <= number("repl-ping-replica-period") {
        let why = format!(
            "{} s is not more than repl-ping-replica-period ({} s): a replica would be given up \
             between two signs of life",
            number("repl-timeout"),
            number("repl-ping-replica-period")
        );
        return refuse("repl-timeout", why);
    }
    let replicas = i64::from(context.replicas.saturating_sub(1));
    if number("min-replicas-to-write") > replicas {
        let why = format!(
            "{} replicas are wanted for every write and each shard has {replicas}: no write would be \
             taken",
            number("min-replicas-to-write")
        );
        return refuse("min-replicas-to-write", why);
    }
    let backlog = values.get("repl-backlog-size").and_then(|text| text.parse().ok()).unwrap_or(0);
    if backlog > context.maxmemory.bytes() / 2 {
        let why = format!(
            "{} is more than half of the {} that a node has for data",
            ByteSize(backlog),
            context.maxmemory
        );
        return refuse("repl-backlog-size", why);
    }
    for (low, high) in [
        ("active-defrag-threshold-lower", "active-defrag-threshold-upper"),
        ("active-defrag-cycle-min", "active-defrag-cycle-max"),
    ] {
        if number(low) > number(high) {
            return refuse(low, format!("{} is more than {high} ({})", number(low), number(high)));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(values: &[(&str, &str)]) -> Result<(), Code> {
        let engine = EngineName::new("redis-7.0").expect("valid");
        let context = ParameterContext {
            engine: &engine,
            mode: NodeMode::Leased,
            maxmemory: ByteSize::mib(100),
            replicas: 2,
        };
        let mut all = BTreeMap::new();
        for (name, value) in values {
            let (parameter, value) = canonical(name, value, &context).map_err(|r| r.code)?;
            all.insert(parameter.name.to_owned(), value);
        }
        check_all(&all, &context).map_err(|refusal| refusal.code)
    }

    #[test]
    fn values_that_do_not_go_together_are_refused_before_anything_is_applied() {
        assert_eq!(checked(&[]), Ok(()));
        assert_eq!(checked(&[("hash-max-listpack-entries", "10")]), Ok(()));
        assert_eq!(checked(&[("min-replicas-to-write", "1")]), Ok(()));
        for wrong in [
            &[("min-replicas-to-write", "2")][..],
            &[("repl-timeout", "10")],
            &[("repl-backlog-size", "64mb")],
            &[("active-defrag-cycle-min", "30")],
            &[("hz", "501")],
            &[("save", "1")],
        ] {
            assert_eq!(checked(wrong), Err(Code::ParameterInvalid), "{wrong:?}");
        }
        for unknown in ["maxmemory", "no-such-thing", "cluster-node-timeout"] {
            assert_eq!(checked(&[(unknown, "1")]), Err(Code::UnknownParameter), "{unknown}");
        }
    }
}
