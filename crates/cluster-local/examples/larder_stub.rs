//! A `larder` for the tests of this crate: a real keeper, and agents and relays that do no more
//! than answer on their sockets.

use std::path::Path;
use std::process::ExitCode;

use larder_keeper::files;
use larder_model::local::{AgentBoot, RelayBoot, RelayListenerStatus, RelayStatus, RunDir};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [role, _, dir] = arguments.as_slice() else { return ExitCode::from(64) };
    let dir = Path::new(dir);
    let done = match role.as_str() {
        "keeper" => larder_keeper::run(dir).await.map_err(|error| error.to_string()),
        "agent" => agent(dir).await,
        "proxy" => relay(dir).await,
        _ => return ExitCode::from(64),
    };
    if done.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn agent(dir: &Path) -> Result<(), String> {
    let boot: AgentBoot = read(&dir.join("agent.json"))?;
    files::make_private_dir(&boot.volume).map_err(|error| error.to_string())?;
    std::fs::write(boot.volume.join("data"), "data").map_err(|error| error.to_string())?;
    answer(&RunDir(boot.run_dir).agent_socket(&boot.config.node), || Ok("{}".to_owned())).await
}

async fn relay(dir: &Path) -> Result<(), String> {
    let file = dir.join("relay.json");
    let boot: RelayBoot = read(&file)?;
    let socket = RunDir(boot.run_dir).relay_socket(&boot.instance);
    answer(&socket, || {
        let boot: RelayBoot = read(&file)?;
        let listeners = boot.listeners.into_iter().map(|listener| RelayListenerStatus {
            kind: listener.kind,
            address: listener.address,
            answers: true,
            leads_to: boot.members.iter().map(|member| member.node.clone()).collect(),
            connections: 0,
        });
        let status = RelayStatus {
            instance: boot.instance,
            generation: boot.generation,
            route_epoch: None,
            listeners: listeners.collect(),
        };
        serde_json::to_string(&status).map_err(|error| error.to_string())
    })
    .await
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, String> {
    files::read_json(path)
        .map_err(|error| error.to_string())?
        .ok_or_else(|| format!("{} is missing", path.display()))
}

async fn answer(socket: &Path, body: impl Fn() -> Result<String, String>) -> Result<(), String> {
    files::remove_if_exists(socket).map_err(|error| error.to_string())?;
    let listener = UnixListener::bind(socket).map_err(|error| error.to_string())?;
    loop {
        let (mut stream, _) = listener.accept().await.map_err(|error| error.to_string())?;
        let _ = stream.read(&mut [0; 1024]).await;
        let body = body()?;
        let length = body.len();
        let text = format!("HTTP/1.0 200 OK\r\ncontent-length: {length}\r\n\r\n{body}");
        let _ = stream.write_all(text.as_bytes()).await;
    }
}
