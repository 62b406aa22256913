//! A `larder` that can do no more than `keeper --data DATA`, for the keeper's own tests.

use std::path::Path;
use std::process::ExitCode;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [role, flag, data] = arguments.as_slice() else { return ExitCode::from(64) };
    if (role.as_str(), flag.as_str()) != ("keeper", "--data") {
        return ExitCode::from(64);
    }
    match larder_keeper::run(Path::new(data)).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
