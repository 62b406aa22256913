//! Events and records, also as comma-separated values.

use larder_api_types::{Event, Record};

use super::{finish, or_none, table, time};
use crate::console::Console;

pub(crate) fn events(console: &Console, rows: &[Event]) -> String {
    let mut header = vec!["TIME (UTC)", "SEVERITY", "INSTANCE", "REASON", "MESSAGE"];
    if console.is_wide() {
        header.splice(3..3, ["NODE", "KIND", "SEQ"]);
    }
    let mut table = table(console, &header);
    for row in rows {
        let mut cells = vec![
            time(&row.at),
            row.severity.clone(),
            or_none(row.instance.clone()),
            row.reason.clone(),
            if console.is_wide() { row.message.clone() } else { message(row) },
        ];
        if console.is_wide() {
            let more = [or_none(row.node.clone()), row.kind.clone(), row.seq.to_string()];
            cells.splice(3..3, more);
        }
        table.add_row(cells);
    }
    finish(table)
}

/// What a node says is told with its name before it: it does not name itself.
fn message(event: &Event) -> String {
    match &event.node {
        Some(node) => format!("{node}: {}", event.message),
        None => event.message.clone(),
    }
}

/// The header of a list that grows: its columns have a fixed width, because nobody knows what
/// comes.
pub(crate) fn event_header() -> String {
    row("TIME (UTC)", "SEVERITY", "INSTANCE", "REASON", "MESSAGE")
}

pub(crate) fn event_row(event: &Event) -> String {
    let instance = event.instance.as_deref().unwrap_or(super::NONE);
    row(&time(&event.at), &event.severity, instance, &event.reason, &message(event))
}

fn row(time: &str, severity: &str, instance: &str, reason: &str, message: &str) -> String {
    format!("{time:<19}  {severity:<8}  {instance:<14}  {reason:<18}  {message}")
}

pub(crate) fn records(console: &Console, rows: &[Record]) -> String {
    let mut header = vec!["TIME (UTC)", "USER", "FROM", "ACTION", "OBJECT", "OUTCOME"];
    if console.is_wide() {
        header.extend(["INSTANCE", "DETAIL"]);
    }
    let mut table = table(console, &header);
    for row in rows {
        let mut cells = vec![
            time(&row.at),
            row.user.clone(),
            row.from.clone(),
            row.action.clone(),
            row.object.clone(),
            row.outcome.clone(),
        ];
        if console.is_wide() {
            cells.extend([or_none(row.instance.clone()), row.detail.to_string()]);
        }
        table.add_row(cells);
    }
    finish(table)
}

/// RFC 4180, with a header line.
pub(crate) fn records_csv(rows: &[Record]) -> String {
    let mut text = String::from("at,user,from,action,object,instance,outcome,detail\r\n");
    for row in rows {
        let cells = [
            row.at.as_str(),
            &row.user,
            &row.from,
            &row.action,
            &row.object,
            row.instance.as_deref().unwrap_or_default(),
            &row.outcome,
            &row.detail.to_string(),
        ];
        let cells: Vec<_> = cells.into_iter().map(csv_cell).collect();
        text.push_str(&cells.join(","));
        text.push_str("\r\n");
    }
    text
}

fn csv_cell(text: &str) -> String {
    // A spreadsheet would run these as formulas, and a failed login's user name is anybody's text.
    let formula = text.starts_with(['=', '+', '-', '@', '\t', '\r']);
    let text = if formula { format!("'{text}") } else { text.to_owned() };
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csv_cells_are_quoted_and_never_formulas() {
        for (text, cell) in [
            ("plain", "plain"),
            ("a,b", "\"a,b\""),
            ("say \"x\"", "\"say \"\"x\"\"\""),
            ("=cmd()", "'=cmd()"),
            ("two\nlines", "\"two\nlines\""),
        ] {
            assert_eq!(csv_cell(text), cell);
        }
    }
}
