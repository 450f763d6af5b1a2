//! The command line: options from arguments, `RIVERRUN_*` variables and a TOML file, in this order.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use riverrun::engine::{Engine, EngineOptions};
use riverrun::server::{Server, ServerOptions};
use serde::Deserialize;
use tracing_subscriber::EnvFilter;

/// A streaming SQL engine: Kafka topics in, Postgres clients out.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve Postgres clients until interrupted.
    Serve(Serve),
}

#[derive(Debug, Default, Args)]
struct Serve {
    /// A TOML file with these options, written with underscores; what is given here or in RIVERRUN_* variables wins.
    #[arg(long, value_name = "FILE", env = "RIVERRUN_CONFIG")]
    config: Option<PathBuf>,
    #[command(flatten)]
    options: Options,
}

#[derive(Debug, Default, Clone, PartialEq, Args, Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    /// Where Postgres clients connect; a loopback address [default: 127.0.0.1:5454]
    #[arg(long, value_name = "ADDRESS:PORT", env = "RIVERRUN_LISTEN")]
    listen: Option<SocketAddr>,
    /// Where /healthz and /metrics are answered; a loopback address [default: nowhere]
    #[arg(long, value_name = "ADDRESS:PORT", env = "RIVERRUN_HTTP")]
    http: Option<SocketAddr>,
    /// Threads that read, decode and aggregate [default: one per core]
    #[arg(long, value_name = "N", env = "RIVERRUN_WORKERS")]
    workers: Option<usize>,
    /// The most clients at once [default: 100]
    #[arg(long, value_name = "N", env = "RIVERRUN_MAX_CONNECTIONS")]
    max_connections: Option<usize>,
    /// What all running queries together may hold in sorts, groups and joins, in MiB [default: 512]
    #[arg(long, value_name = "MIB", env = "RIVERRUN_QUERY_MEMORY_MIB")]
    query_memory_mib: Option<usize>,
}

impl Options {
    /// These, and where they say nothing the others.
    fn or(self, others: Options) -> Options {
        Options {
            listen: self.listen.or(others.listen),
            http: self.http.or(others.http),
            workers: self.workers.or(others.workers),
            max_connections: self.max_connections.or(others.max_connections),
            query_memory_mib: self.query_memory_mib.or(others.query_memory_mib),
        }
    }

    fn from_file(path: &Path) -> Result<Options> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("{} is not valid", path.display()))
    }

    fn engine(&self) -> EngineOptions {
        let default = EngineOptions::default();
        EngineOptions { workers: self.workers.unwrap_or(default.workers) }
    }

    fn server(&self) -> ServerOptions {
        let default = ServerOptions::default();
        ServerOptions {
            listen: self.listen.unwrap_or(default.listen),
            http: self.http.or(default.http),
            max_connections: self.max_connections.unwrap_or(default.max_connections),
            query_memory_bytes: self
                .query_memory_mib
                .map_or(default.query_memory_bytes, |mib| mib.saturating_mul(1 << 20)),
        }
    }
}

const STACK_BYTES: usize = 16 << 20;

fn main() -> Result<()> {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_env("RIVERRUN_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    // Planning a deeply nested statement takes more stack than a thread has by default.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .thread_stack_size(STACK_BYTES)
        .enable_all()
        .build()
        .context("cannot start threads")?;
    match cli.command {
        Command::Serve(serve) => {
            let options = match &serve.config {
                Some(path) => serve.options.or(Options::from_file(path)?),
                None => serve.options,
            };
            runtime.block_on(self::serve(options))
        }
    }
}

async fn serve(options: Options) -> Result<()> {
    let engine = Engine::start(options.engine()).context("the engine does not start")?;
    let server = match Server::start(engine.clone(), options.server()).await {
        Ok(server) => server,
        Err(error) => {
            engine.stop().await;
            return Err(error.into());
        }
    };
    let address = server.address();
    tracing::info!(%address, "ready: psql -h {} -p {}", address.ip(), address.port());
    if let Some(http) = server.http_address() {
        tracing::info!(address = %http, "answering /healthz and /metrics");
    }
    interrupted().await?;
    tracing::info!("stopping");
    server.stop().await;
    engine.stop().await;
    Ok(())
}

/// Returns at SIGINT or SIGTERM.
async fn interrupted() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    tokio::select! {
        interrupt = tokio::signal::ctrl_c() => interrupt.context("cannot listen for SIGINT")?,
        _ = terminate.recv() => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_wins_over_the_file() {
        let given = |arguments: &[&str]| {
            let Command::Serve(serve) = Cli::parse_from(["riverrun", "serve"].iter().chain(arguments)).command;
            serve.options
        };
        let file: Options = toml::from_str("listen = '127.0.0.1:1'\nworkers = 3").expect("valid options");
        let options = given(&["--listen", "127.0.0.1:2"]).or(file);
        assert_eq!(options.server().listen, SocketAddr::from(([127, 0, 0, 1], 2)));
        assert_eq!(options.engine().workers, 3);
        assert!(toml::from_str::<Options>("data_dir = '/x'").is_err());
    }
}
