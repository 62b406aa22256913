//! Parameters and their changes.

use larder_api_types::{Parameter, ParameterHistory};

use super::{NONE, finish, or_none, table, time};
use crate::console::Console;

pub(crate) fn parameters(console: &Console, rows: &[Parameter]) -> String {
    let mut header = vec!["NAME", "VALUE", "DEFAULT", "UNIT", "APPLIES", "TAKES"];
    if console.is_wide() {
        header.extend(["GROUP", "MEANING"]);
    }
    let mut table = table(console, &header);
    for row in rows {
        // An asterisk: somebody has set it.
        let mark = if row.set { "*" } else { "" };
        let value = row.value.as_deref().map_or_else(|| "auto".to_owned(), quoted);
        let default = row.default.as_deref().map_or_else(|| "auto".to_owned(), quoted);
        let mut cells = vec![
            row.name.clone(),
            format!("{value}{mark}"),
            default,
            row.unit.clone(),
            row.applies.clone(),
            row.takes.clone(),
        ];
        if console.is_wide() {
            cells.extend([row.group.clone(), row.meaning.clone()]);
        }
        table.add_row(cells);
    }
    finish(table)
}

fn quoted(value: &str) -> String {
    if value.is_empty() { "\"\"".to_owned() } else { value.to_owned() }
}

pub(crate) fn parameter_history(console: &Console, rows: &[ParameterHistory]) -> String {
    let header = ["TIME", "BY", "STATE", "CHANGES", "ERROR"];
    let mut table = table(console, &header);
    for row in rows {
        let side =
            |value: &Option<String>| value.as_deref().map_or_else(|| "default".to_owned(), quoted);
        let changes: Vec<String> = (row.changes.iter())
            .map(|it| format!("{}: {} -> {}", it.name, side(&it.from), side(&it.to)))
            .collect();
        let changes = if changes.is_empty() { NONE.to_owned() } else { changes.join("; ") };
        table.add_row([
            time(&row.requested_at),
            row.requested_by.clone(),
            row.state.clone(),
            changes,
            or_none(row.error.clone()),
        ]);
    }
    finish(table)
}
