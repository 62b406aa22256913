//! How many rows of a history are asked for.

use larder_api_types::LIMIT_MAX;

use crate::args::LimitOption;
use crate::console::Console;
use crate::exit::CliError;

/// What fits a screen or two.
const TABLE: u32 = 100;

/// The rows to ask for, and whether it was the user who said so.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limit {
    pub(crate) rows: u32,
    asked: bool,
}

impl Limit {
    /// A table shows the newest rows, JSON is whole.
    pub(crate) fn of(option: LimitOption, console: &Console) -> Result<Self, CliError> {
        Self::or(option, if console.is_json() { LIMIT_MAX } else { TABLE })
    }

    /// Everything, unless the user wants less.
    pub(crate) fn whole(option: LimitOption) -> Result<Self, CliError> {
        Self::or(option, LIMIT_MAX)
    }

    fn or(option: LimitOption, default: u32) -> Result<Self, CliError> {
        match option.limit {
            None => Ok(Self { rows: default, asked: false }),
            Some(0) => Err(CliError::Usage("--limit 0 lists nothing: ask for 1 or more".into())),
            Some(rows) => Ok(Self { rows, asked: true }),
        }
    }

    /// Says that there may be more than was shown.
    pub(crate) fn say_if_cut(self, console: &mut Console, shown: usize) {
        let answered = self.rows.min(LIMIT_MAX);
        if shown < answered as usize || (self.asked && self.rows == answered) {
            return;
        }
        if answered == LIMIT_MAX {
            console.say(&format!("the newest {shown}: one answer holds no more"));
        } else {
            console.say(&format!("the newest {shown}; --limit N shows more"));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::args::Format;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn said(limit: Limit, shown: usize) -> String {
        let sink = Sink::default();
        let mut console =
            Console { stderr: Box::new(sink.clone()), ..Console::from_process(Format::Table) };
        limit.say_if_cut(&mut console, shown);
        let said = sink.0.lock().unwrap();
        String::from_utf8(said.clone()).unwrap()
    }

    #[test]
    fn a_list_that_may_be_cut_says_so_unless_it_was_asked_to_be() {
        let of = |limit, default| Limit::or(LimitOption { limit }, default).unwrap();
        let max = LIMIT_MAX as usize;
        assert_eq!(said(of(None, TABLE), 99), "");
        assert_eq!(said(of(None, TABLE), 100), "the newest 100; --limit N shows more\n");
        assert_eq!(said(of(Some(7), TABLE), 7), "");
        assert_eq!(said(of(None, LIMIT_MAX), max - 1), "");
        let most = "the newest 100000: one answer holds no more\n";
        assert_eq!(said(of(None, LIMIT_MAX), max), most);
        assert_eq!(said(of(Some(LIMIT_MAX + 1), TABLE), max), most);
        assert_eq!(said(of(Some(LIMIT_MAX), TABLE), max), "");
    }
}
