//! Operations.

use larder_api_types::Operation;

use super::{finish, or_none, plain, table, time, time_or_none};
use crate::console::Console;

pub(crate) fn operations(console: &Console, rows: &[Operation]) -> String {
    let mut header = vec!["ID", "INSTANCE", "KIND", "STATE", "DONE", "CREATED"];
    if console.is_wide() {
        header.extend(["FINISHED", "BY", "FROM", "ERROR"]);
    }
    let mut table = table(console, &header);
    for row in rows {
        let mut cells = vec![
            row.id.clone(),
            row.instance.clone(),
            row.kind.clone(),
            row.state.clone(),
            percent(row.progress),
            time(&row.created_at),
        ];
        if console.is_wide() {
            cells.extend([
                time_or_none(row.finished_at.as_ref()),
                row.requested_by.clone(),
                row.requested_from.clone(),
                or_none(row.error.as_ref()),
            ]);
        }
        table.add_row(cells);
    }
    finish(table)
}

/// One operation with its steps.
pub(crate) fn operation(console: &Console, one: &Operation) -> String {
    let mut head = plain(console);
    let mut line = |name: &str, value: String| {
        head.add_row([name.to_owned(), value]);
    };
    line("Operation", one.id.clone());
    line("Instance", one.instance.clone());
    line("Kind", one.kind.clone());
    line("State", format!("{} ({})", one.state, percent(one.progress)));
    line(
        "Asked",
        format!("{} by {} from {}", time(&one.created_at), one.requested_by, one.requested_from),
    );
    if let Some(finished) = &one.finished_at {
        line("Finished", time(finished));
    }
    if let Some(error) = &one.error {
        line("Error", error.to_string());
    }
    let mut text = finish(head);
    if !one.steps.is_empty() {
        let mut steps = table(console, &["STEP", "STATE", "DONE", "MESSAGE"]);
        for step in &one.steps {
            steps.add_row([
                step.name.clone(),
                step.state.clone(),
                or_none(step.progress.map(percent)),
                step.message.clone(),
            ]);
        }
        text.push_str("\n\n");
        text.push_str(&finish(steps));
    }
    text
}

fn percent(share: f64) -> String {
    format!("{:.0}%", share * 100.0)
}
