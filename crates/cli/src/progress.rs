//! Progress of an operation for a person who waits: a bar on a terminal, nothing elsewhere.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use larder_api_types::{Operation, OperationStep};

/// The bar has thousandths, because progress is a share between 0 and 1.
const WHOLE: u64 = 1000;

pub(crate) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    pub(crate) fn new(on_terminal: bool) -> Self {
        if !on_terminal {
            return Self { bar: ProgressBar::hidden() };
        }
        let bar = ProgressBar::with_draw_target(Some(WHOLE), ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {bar:24} {percent:>3}% {msg}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(120));
        Self { bar }
    }

    pub(crate) fn show(&self, operation: &Operation) {
        let share = operation.progress.clamp(0.0, 1.0) * WHOLE as f64;
        self.bar.set_position(share.round() as u64);
        self.bar.set_message(message(operation));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// What is being done, or what is waited for.
fn message(operation: &Operation) -> String {
    let current = operation
        .steps
        .iter()
        .find(|step| matches!(step.state.as_str(), "running" | "waiting" | "failed"));
    match current {
        Some(OperationStep { name, message, .. }) if message.is_empty() => name.clone(),
        Some(OperationStep { name, message, .. }) => format!("{name}: {message}"),
        None => format!("{} {}", operation.kind, operation.state),
    }
}
