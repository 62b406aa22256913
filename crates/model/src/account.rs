//! Users of an instance's servers besides `default`: who they are and what they may do.
//!
//! Rules are those of Redis' ACL files, and later ones win (redis.io, "ACL", "How ACLs work").

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Code, Refusal};
use crate::secret::{Secret, secret_in_file};

/// What no tenant may do, whatever their rules say, because it would take a server out of Larder's
/// hands or show Larder's own password (`CONFIG GET masterauth`). Whole commands, and harmless
/// subcommands given back: Redis 6.2 cannot deny subcommands, and Redis 7.0 does not start when one that
/// is named does not exist.
pub const DENIED: [&str; 13] = [
    "shutdown",
    "replicaof",
    "slaveof",
    "failover",
    "sync",
    "psync",
    "replconf",
    "debug",
    "module",
    "save",
    "config",
    "acl",
    "cluster",
];

/// What of [`DENIED`] every user may do.
const HARMLESS: [&str; 14] = [
    "acl|whoami",
    "acl|cat",
    "acl|genpass",
    "cluster|slots",
    "cluster|nodes",
    "cluster|info",
    "cluster|myid",
    "cluster|keyslot",
    "cluster|countkeysinslot",
    "cluster|getkeysinslot",
    "cluster|replicas",
    "cluster|slaves",
    "cluster|count-failure-reports",
    "config|resetstat",
];

/// What clients do of themselves when they connect. To Redis 6.2 all of `CLIENT` is `@admin`.
const OF_CONNECTIONS: [&str; 8] = [
    "client|id",
    "client|info",
    "client|getname",
    "client|setname",
    "client|reply",
    "client|tracking",
    "client|trackinginfo",
    "client|caching",
];

/// What of [`DENIED`] every user of Redis 7 and Valkey may do besides.
const HARMLESS_SINCE_7: [&str; 2] = ["cluster|shards", "cluster|links"];

/// Accounts of one instance, at most.
pub const ACCOUNTS: usize = 32;
const RULES_BYTES: usize = 2_048;

/// What an account may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AccountRole {
    /// Reads and writes all keys, but does not manage a server.
    ReadWrite,
    /// Reads all keys.
    ReadOnly,
    /// All that the instance's own password is good for.
    Administrator,
    /// By rules of its own.
    Custom,
}

impl AccountRole {
    pub const ALL: [Self; 4] = [Self::ReadWrite, Self::ReadOnly, Self::Administrator, Self::Custom];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::ReadWrite => "read-write",
            Self::ReadOnly => "read-only",
            Self::Administrator => "administrator",
            Self::Custom => "custom",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == text)
    }
}

impl fmt::Display for AccountRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One account, as servers are told of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    pub name: String,
    pub role: AccountRole,
    /// Of a custom account; empty otherwise.
    #[serde(default)]
    pub rules: String,
    /// SHA-256 of the password, 64 hex digits.
    #[serde(with = "secret_in_file")]
    pub password_sha256: Secret,
}

impl Account {
    /// The rules as a file and `ACL SETUSER` know them, without name and password. `since_7`: the server
    /// is a Redis 7 or later, or a Valkey.
    pub fn acl(&self, since_7: bool) -> String {
        acl_of(self.role, &self.rules, since_7)
    }
}

/// [`Account::acl`] of this role with these rules of its own.
pub fn acl_of(role: AccountRole, rules: &str, since_7: bool) -> String {
    let own = match role {
        AccountRole::Administrator => "~* &* +@all".to_owned(),
        AccountRole::ReadWrite => "~* &* +@all -@admin".to_owned(),
        AccountRole::ReadOnly => {
            let sharded = if since_7 { " -spublish" } else { "" };
            format!("~* &* +@all -@admin -@write -publish{sharded}")
        }
        AccountRole::Custom => rules.split_ascii_whitespace().collect::<Vec<_>>().join(" "),
    };
    let denied = DENIED.map(|command| format!("-{command}")).join(" ");
    // Statistics are everybody's: who may only read does not reset them.
    let manages = role == AccountRole::Administrator;
    let connects = matches!(role, AccountRole::ReadWrite | AccountRole::ReadOnly);
    let harmless = HARMLESS
        .iter()
        .chain(OF_CONNECTIONS.iter().filter(|_| connects))
        .chain(HARMLESS_SINCE_7.iter().filter(|_| since_7))
        .filter(|command| manages || !command.starts_with("config"))
        .map(|command| format!("+{command}"))
        .collect::<Vec<_>>()
        .join(" ");
    format!("{own} {denied} {harmless}").trim_start().to_owned()
}

/// Whether an account may have this name: it has to fit in an ACL file, and `default` and all names that
/// begin with `larder` are taken.
///
/// # Errors
/// `invalid-name`, of the field `name`.
pub fn check_account_name(name: &str) -> Result<(), Refusal> {
    let refuse = |why: &str| {
        let detail = format!("`{name}` cannot be an account's name: {why}");
        Err(Refusal::new(Code::InvalidName, detail).field("name"))
    };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if !(1..=32).contains(&name.len())
        || !name.bytes().all(plain)
        || !name.starts_with(|first: char| first.is_ascii_alphabetic())
    {
        return refuse("use a letter, then letters, digits, `-`, `_` and `.`, at most 32");
    }
    if name == "default" {
        return refuse("it is the user of the instance's own password");
    }
    if name.to_ascii_lowercase().starts_with("larder") {
        return refuse("names that begin so are Larder's own");
    }
    Ok(())
}

/// Whether these can be the rules of a custom account, as far as can be said without asking a server:
/// what commands and categories there are, only the engine knows.
///
/// # Errors
/// `rules-refused`, of the field `rules`, with the rule at fault.
pub fn check_rules(rules: &str) -> Result<(), Refusal> {
    let refuse = |detail: String| Err(Refusal::new(Code::RulesRefused, detail).field("rules"));
    if rules.len() > RULES_BYTES {
        return refuse(format!("the rules are longer than {RULES_BYTES} bytes"));
    }
    if rules.split_ascii_whitespace().next().is_none() {
        return refuse("a custom account needs rules, such as `~app:* +@read`".to_owned());
    }
    if let Some(wrong) = rules.chars().find(|c| c.is_control() && !c.is_ascii_whitespace()) {
        return refuse(format!("the rules hold the character {:?}", wrong));
    }
    const WORDS: [&str; 6] =
        ["allkeys", "resetkeys", "allchannels", "resetchannels", "allcommands", "nocommands"];
    for rule in rules.split_ascii_whitespace() {
        let lower = rule.to_ascii_lowercase();
        let is_kind = lower.starts_with(['+', '-', '~', '&', '%']);
        if lower.starts_with('(') {
            return refuse(format!(
                "`{rule}`: selectors are not taken, because what is denied to every account would \
                 not hold in them; make two accounts instead"
            ));
        }
        if !is_kind && !WORDS.contains(&lower.as_str()) {
            return refuse(format!(
                "`{rule}` is not a rule for commands, keys or channels: state and passwords are \
                 Larder's to set"
            ));
        }
        let Some(command) = lower.strip_prefix('+') else { continue };
        let whole = command.split('|').next().unwrap_or(command);
        let given = HARMLESS.iter().chain(&HARMLESS_SINCE_7).any(|it| *it == command);
        if DENIED.contains(&whole) && !given {
            return refuse(format!(
                "`{rule}`: `{whole}` is denied to every account, because it would take servers out \
                 of Larder's hands; what to use instead is in docs/accounts.md"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_denied_comes_after_what_an_account_may() {
        for role in AccountRole::ALL {
            let acl = acl_of(role, "~app:*  +@all", true);
            let at = |rule: &str| acl.find(rule).unwrap_or_else(|| panic!("{rule} in {acl}"));
            assert!(at("+@all") < at("-config"), "{acl}");
            assert!(at("-cluster ") < at("+cluster|slots"), "{acl}");
            assert_eq!(acl.contains("+config|resetstat"), role == AccountRole::Administrator);
        }
        assert!(acl_of(AccountRole::Custom, "~app:*  +get", false).starts_with("~app:* +get -"));
        assert!(!acl_of(AccountRole::ReadOnly, "", false).contains("spublish"), "6.2 has none");
    }

    #[test]
    fn names_that_servers_or_larder_use_are_refused() {
        for name in ["app", "App_1", "a.b-c", "larde"] {
            assert_eq!(check_account_name(name), Ok(()), "{name}");
        }
        let long = "a".repeat(33);
        for name in ["", "1a", "a b", "default", "larder", "Larder-x", "a>b", "ä", &long] {
            let refusal = check_account_name(name).expect_err(name);
            assert_eq!((refusal.code, refusal.field.as_deref()), (Code::InvalidName, Some("name")));
        }
    }

    #[test]
    fn rules_may_neither_log_in_nor_bring_back_what_is_denied() {
        for rules in
            ["~app:* +@read", "allkeys +get -set %R~x:*", "+cluster|slots ~*", "+@all -@write ~*"]
        {
            assert_eq!(check_rules(rules), Ok(()), "{rules}");
        }
        let long = "+get ".repeat(600);
        for rules in [
            "",
            "  ",
            "on",
            ">secret",
            "#00",
            "nopass",
            "reset",
            "(+get ~x)",
            "+config|get ~*",
            "+CONFIG",
            "+acl|setuser",
            "+shutdown",
            "+cluster|failover",
            "+a\u{7}",
            &long,
        ] {
            let refusal = check_rules(rules).expect_err(rules);
            assert_eq!(refusal.code, Code::RulesRefused, "{rules}");
        }
    }
}
