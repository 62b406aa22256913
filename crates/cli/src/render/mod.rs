//! Tables for people. JSON needs none of this: it is what the API answered.

mod account;
mod catalogue;
mod event;
mod instance;
mod operation;
mod parameter;

pub(crate) use account::accounts;
pub(crate) use catalogue::{
    container_clusters, engines, projects, session, status, tokens, who, workers,
};
pub(crate) use event::{event_header, event_row, events, records, records_csv};
pub(crate) use instance::{instance, instances, nodes};
pub(crate) use operation::{operation, operations};
pub(crate) use parameter::{parameter_history, parameters};

use comfy_table::presets::NOTHING;
use comfy_table::{ColumnConstraint, ContentArrangement, Table};

use crate::console::Console;

/// An empty table with a header, without lines around: readable and easy to cut.
pub(crate) fn table(console: &Console, header: &[&str]) -> Table {
    let mut table = plain(console);
    table.set_header(header.iter().copied());
    trim(&mut table);
    table
}

/// A table without a header.
pub(crate) fn plain(console: &Console) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING);
    // Only on a terminal is there a width to fit into; in a pipe a row stays one line.
    table.set_content_arrangement(if console.stdout_is_terminal {
        ContentArrangement::Dynamic
    } else {
        ContentArrangement::Disabled
    });
    table
}

/// Two spaces between columns, none before the first.
fn trim(table: &mut Table) {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
}

pub(crate) fn finish(mut table: Table) -> String {
    trim(&mut table);
    fold_last(&mut table);
    table.trim_fmt()
}

/// A last column narrower than this is not worth folding a text into.
const FOLD: u16 = 24;

/// Only the last column, the one with sentences, is folded to a terminal's width: ids, times and
/// words stay whole. Where that leaves it no room, lines run on and the terminal breaks them.
fn fold_last(table: &mut Table) {
    let Some(width) = table.width() else { return };
    let widths = table.column_max_content_widths();
    let Some((_, others)) = widths.split_last() else { return };
    let taken = others.iter().fold(0_u16, |sum, width| sum.saturating_add(width + 2));
    let whole = width.saturating_sub(taken) < FOLD;
    if whole {
        table.set_content_arrangement(ContentArrangement::Disabled);
        return;
    }
    let others = others.len();
    for column in table.column_iter_mut().take(others) {
        column.set_constraint(ColumnConstraint::ContentWidth);
    }
}

/// What stands where nothing is known.
pub(crate) const NONE: &str = "-";

pub(crate) fn or_none<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| NONE.to_owned(), |value| value.to_string())
}

/// `2026-11-22T13:12:17.123Z` as `2026-11-22 13:12:17`, in UTC as it came.
pub(crate) fn time(text: &str) -> String {
    match text.parse::<jiff::Timestamp>() {
        Ok(time) => time.strftime("%F %T").to_string(),
        Err(_) => text.to_owned(),
    }
}

pub(crate) fn time_or_none(text: Option<&String>) -> String {
    or_none(text.map(|text| time(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on_a_terminal_of(width: u16, cells: [&str; 3]) -> String {
        let mut table = Table::new();
        table.load_style(NOTHING);
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
        table.add_row(cells);
        finish(table)
    }

    #[test]
    fn a_terminal_folds_the_last_column_and_keeps_words_of_the_others_whole() {
        let cells = ["replicas-out-of-range", "2026-11-22 14:21:12", "a sentence of some words"];
        let text = on_a_terminal_of(70, cells);
        assert!(text.lines().count() == 1 && text.contains(cells[2]), "{text}");
        let longer = format!("{0} {0} {0}", cells[2]);
        let text = on_a_terminal_of(70, [cells[0], cells[1], &longer]);
        assert!(text.contains(cells[0]) && text.contains(cells[1]), "{text}");
        assert!(text.lines().count() > 1 && text.lines().all(|line| line.len() <= 70), "{text}");
        let text = on_a_terminal_of(50, cells);
        assert_eq!(text.lines().count(), 1, "no room to fold into: {text}");
    }
}
