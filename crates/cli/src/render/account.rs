//! Accounts.

use larder_api_types::Account;

use super::{NONE, finish, table, time};
use crate::console::Console;

pub(crate) fn accounts(console: &Console, rows: &[Account]) -> String {
    let mut table = table(console, &["NAME", "ROLE", "RULES", "CHANGED"]);
    for row in rows {
        let rules = if row.rules.is_empty() { NONE } else { &row.rules };
        table.add_row([
            row.name.clone(),
            row.role.clone(),
            rules.to_owned(),
            time(&row.changed_at),
        ]);
    }
    finish(table)
}
