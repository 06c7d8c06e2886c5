//! `culvert-relay`: see `--help`.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use culvert_relay::{Args, Server, raise_file_limit};
use tokio::signal::unix::{SignalKind, signal};

/// TLS says much about connections that strangers break off.
const QUIET: &str = "rustls=warn";

#[tokio::main]
async fn main() -> ExitCode {
    match run(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // There is nowhere left to report that stderr is closed.
            let _ = writeln!(std::io::stderr(), "culvert-relay: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> anyhow::Result<()> {
    args.log.start(QUIET);
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let server = Server::start(args.into_config(raise_file_limit())).await?;
    let (address, key) = (server.address(), server.public_key());
    let metrics = server.metrics_address().map(tracing::field::display);
    tracing::info!(%address, %key, stun = ?server.stun_addresses(), metrics, "listening");
    tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    tracing::info!("stopping");
    server.shutdown().await;
    Ok(())
}
