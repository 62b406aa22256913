//! How many rows of a history are asked for.

use crate::args::LimitOption;
use crate::console::Console;

/// What fits a screen or two.
const TABLE: u32 = 100;
/// The most that the API gives in one answer.
const ALL: u32 = 100_000;

/// The rows to ask for, and whether it was the user who said so.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limit {
    pub(crate) rows: u32,
    asked: bool,
}

impl Limit {
    /// A table shows the newest rows, JSON is whole.
    pub(crate) fn of(option: LimitOption, console: &Console) -> Self {
        if console.is_json() {
            return Self::whole(option);
        }
        Self { rows: option.limit.unwrap_or(TABLE), asked: option.limit.is_some() }
    }

    /// Everything, unless the user wants less.
    pub(crate) fn whole(option: LimitOption) -> Self {
        Self { rows: option.limit.unwrap_or(ALL), asked: option.limit.is_some() }
    }

    /// Says that there may be more than was shown.
    pub(crate) fn say_if_cut(self, console: &mut Console, shown: usize) {
        if !self.asked && u32::try_from(shown).is_ok_and(|shown| shown == self.rows) {
            console.say(&format!("the newest {shown}; --limit N shows more"));
        }
    }
}
