//! Checks that need Rust: `cargo xtask layers | tidy`.

mod layers;
mod tidy;

use std::process::ExitCode;

fn main() -> ExitCode {
    let task = std::env::args().nth(1).unwrap_or_default();
    let result = match task.as_str() {
        "layers" => layers::check(),
        "tidy" => tidy::check(),
        _ => Err(anyhow::anyhow!("usage: cargo xtask layers | tidy")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "a tool for developers")]
            {
                eprintln!("{error:#}");
            }
            ExitCode::FAILURE
        }
    }
}
