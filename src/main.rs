//! The command line: options from arguments, `RIVERRUN_*` variables and a TOML file, in this order.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use riverrun::demo::{self, Board, Demo, DemoOptions, Meter};
use riverrun::engine::{Engine, EngineError, EngineOptions};
use riverrun::server::{Server, ServerOptions};
use riverrun::sql::interval_us;
use riverrun::storage::{self, Copied, StorageError};
use serde::Deserialize;
use tokio::signal::unix::{SignalKind, signal};
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
    /// Serve, with a broker in the process, a generator of ad events and the views of queries/; nothing is kept on disk.
    Demo(DemoArgs),
    /// Copy the state to an empty place, while a server may run on it.
    Backup(Backup),
    /// Put a backup in an empty place.
    Restore(Restore),
}

#[derive(Debug, Args)]
struct Backup {
    /// Where the state is: a folder, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix
    #[arg(long, value_name = "DIR|URL", env = "RIVERRUN_DATA_DIR")]
    data_dir: String,
    /// Where the copy goes, in the same form
    #[arg(long, value_name = "DIR|URL")]
    to: String,
}

#[derive(Debug, Args)]
struct Restore {
    /// Where the backup is: a folder, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix
    #[arg(long, value_name = "DIR|URL")]
    from: String,
    /// Where the state goes, in the same form
    #[arg(long, value_name = "DIR|URL", env = "RIVERRUN_DATA_DIR")]
    data_dir: String,
}

#[derive(Debug, Default, Args)]
struct Serve {
    /// Where state is kept: a folder, or s3://, gs:// or az:// with a bucket and a prefix [default: riverrun-data]
    #[arg(long, value_name = "DIR|URL", env = "RIVERRUN_DATA_DIR", conflicts_with = "in_memory")]
    data_dir: Option<String>,
    /// Keep nothing: all is gone when the process ends
    #[arg(long)]
    in_memory: bool,
    /// Begin though files are damaged: views whose state cannot be read are made anew from sources and tables, the newest manifest
    /// gives way to the one before it, and lists of rows that did not count begin empty. All that is kept is read first
    #[arg(long, conflicts_with = "in_memory")]
    rebuild_damaged: bool,
    /// A TOML file with these options, written with underscores; what is given here or in RIVERRUN_* variables wins.
    #[arg(long, value_name = "FILE", env = "RIVERRUN_CONFIG")]
    config: Option<PathBuf>,
    #[command(flatten)]
    options: Options,
}

#[derive(Debug, Args)]
struct DemoArgs {
    #[command(flatten)]
    options: Options,
    /// A Kafka broker to use instead of the one in the process; topics that are missing are made
    #[arg(long, value_name = "HOST:PORT")]
    kafka: Option<String>,
    /// Ad events; page views come at a tenth of this
    #[arg(long, value_name = "N", default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1..))]
    events_per_second: u64,
    /// Distinct ads
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    ads: u64,
    /// Other seeds make other events
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Make no more than so many ad events; the server goes on
    #[arg(long, value_name = "N")]
    events: Option<u64>,
    /// End after so long
    #[arg(long, value_name = "N")]
    seconds: Option<u64>,
}

#[derive(Debug, Default, Clone, PartialEq, Args, Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    /// Where Postgres clients connect; a loopback address [default: 127.0.0.1:5454]
    #[arg(long, value_name = "ADDRESS:PORT", env = "RIVERRUN_LISTEN")]
    listen: Option<SocketAddr>,
    /// Where /healthz, /readyz and /metrics are answered; a loopback address [default: nowhere]
    #[arg(long, value_name = "ADDRESS:PORT", env = "RIVERRUN_HTTP")]
    http: Option<SocketAddr>,
    /// Threads that read, decode and aggregate [default: one per core]
    #[arg(long, value_name = "N", env = "RIVERRUN_WORKERS")]
    workers: Option<usize>,
    /// The longest time between two checkpoints, such as '10 s' [default: 10 s]
    #[arg(long, value_name = "INTERVAL", env = "RIVERRUN_CHECKPOINT_INTERVAL")]
    checkpoint_interval: Option<String>,
    /// What state may take of memory, in MiB: reading rests before it takes more [default: no limit]
    #[arg(long, value_name = "MIB", env = "RIVERRUN_MEMORY_LIMIT_MIB")]
    memory_limit_mib: Option<usize>,
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
            checkpoint_interval: self.checkpoint_interval.or(others.checkpoint_interval),
            memory_limit_mib: self.memory_limit_mib.or(others.memory_limit_mib),
            max_connections: self.max_connections.or(others.max_connections),
            query_memory_mib: self.query_memory_mib.or(others.query_memory_mib),
        }
    }

    fn engine(&self, data: Option<String>) -> Result<EngineOptions> {
        let default = EngineOptions::default();
        let at_least_one = [
            ("--memory-limit-mib", self.memory_limit_mib),
            ("--max-connections", self.max_connections),
            ("--query-memory-mib", self.query_memory_mib),
        ];
        if let Some((option, _)) = at_least_one.iter().find(|(_, value)| *value == Some(0)) {
            anyhow::bail!("{option} is 0: with that nothing works; leave it out for the default");
        }
        let checkpoint_interval = match self.checkpoint_interval.as_deref().map(interval_us).transpose() {
            Ok(None) => default.checkpoint_interval,
            Ok(Some(us)) => match u64::try_from(us) {
                Ok(us) if us >= 100_000 => Duration::from_micros(us),
                _ => anyhow::bail!("--checkpoint-interval is less than 100 ms"),
            },
            Err(error) => anyhow::bail!("--checkpoint-interval: {error}"),
        };
        Ok(EngineOptions {
            workers: self.workers.unwrap_or(default.workers),
            data,
            checkpoint_interval,
            memory_limit_bytes: self.memory_limit_mib.map(|mib| mib.saturating_mul(1 << 20)),
            ..default
        })
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

/// What a configuration file may say.
#[derive(Debug, Default)]
struct FileOptions {
    data_dir: Option<String>,
    options: Options,
}

impl FileOptions {
    fn read(path: &Path) -> Result<FileOptions> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        FileOptions::parse(&text).with_context(|| format!("{} is not valid", path.display()))
    }

    fn parse(text: &str) -> Result<FileOptions> {
        let mut table: toml::Table = text.parse()?;
        let data_dir = table.remove("data_dir").map(toml::Value::try_into).transpose().context("data_dir")?;
        Ok(FileOptions { data_dir, options: table.try_into()? })
    }
}

/// Where `serve` keeps state unless it is told.
const DATA_DIR: &str = "riverrun-data";

/// What can be done about a damaged file.
const MEND: &str = "what is kept is damaged. Restore a backup (`riverrun restore`), or start once with --rebuild-damaged, which makes \
                    views whose state cannot be read anew from their sources, as far as the topics reach back";
const MEND_BY_BACKUP: &str =
    "what is kept is damaged, and this does not follow from the topics: restore a backup (`riverrun restore`)";

/// The stack of a thread that runs statements. The parser bounds how deep a statement may be; what works on the deepest one,
/// in a debug build, needs about half of this.
const STACK_BYTES: usize = 16 << 20;

/// What the kernel sends a process that writes past its limit for the size of a file, on all systems that this one is built for.
const SIGXFSZ: i32 = 25;

/// How long the end of the process waits for connections to Kafka to end.
const LONGEST_CLOSING: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // As anyhow would, but for the backtrace: where in the program it was is of no use to who starts it.
            eprintln!("Error: {error}");
            if error.chain().len() > 1 {
                eprintln!("\nCaused by:");
            }
            error.chain().skip(1).for_each(|cause| eprintln!("    {cause}"));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let cli = Cli::parse();
    let level = match cli.command {
        // Each try of a request to a bucket would be told; what comes of it is told by the engine.
        Command::Serve(_) => "info,object_store=warn",
        Command::Backup(_) | Command::Restore(_) => "warn",
        // What the demo has to say is on the screen.
        Command::Demo(_) => "error",
    };
    let filter = EnvFilter::try_from_env("RIVERRUN_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    // Planning a deeply nested statement takes more stack than a thread has by default.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .thread_stack_size(STACK_BYTES)
        .enable_all()
        .build()
        .context("cannot start threads")?;
    {
        let _in_runtime = runtime.enter();
        // The signal would end the process; where it is handled the write fails, and a full disk is said to be full.
        let _handled = signal(SignalKind::from_raw(SIGXFSZ)).context("cannot listen for SIGXFSZ")?;
    }
    let outcome = match cli.command {
        Command::Serve(serve) => {
            let file = serve.config.as_deref().map(FileOptions::read).transpose()?.unwrap_or_default();
            let data = serve.data_dir.or(file.data_dir).unwrap_or_else(|| DATA_DIR.to_string());
            let data = (!serve.in_memory).then_some(data);
            runtime.block_on(self::serve(serve.options.or(file.options), data, serve.rebuild_damaged))
        }
        Command::Demo(demo) => runtime.block_on(self::demo(demo)),
        Command::Backup(Backup { data_dir, to }) => copied(storage::backup(&data_dir, &to), &to),
        Command::Restore(Restore { from, data_dir }) => copied(storage::restore(&from, &data_dir), &data_dir),
    };
    // A call to a broker that does not answer is not waited for.
    runtime.shutdown_timeout(Duration::from_secs(1));
    if !riverrun::connector::wait_until_closed(LONGEST_CLOSING) {
        tracing::warn!("a connection to Kafka does not end; it goes with the process");
    }
    outcome
}

/// Says what a copy holds.
fn copied(outcome: Result<Copied, StorageError>, to: &str) -> Result<()> {
    let Copied { manifest, committed_at_us, files, log_records, bytes, fallback } = outcome?;
    if let Some(fallback) = fallback {
        eprintln!("warning: {fallback}");
    }
    let at = chrono::DateTime::from_timestamp_micros(committed_at_us).unwrap_or_default();
    println!(
        "copied to {to}: the state of {} (manifest {manifest}, {files} files), {log_records} records after it, {bytes} bytes",
        at.to_rfc3339_opts(chrono::SecondsFormat::Secs, true)
    );
    Ok(())
}

async fn start(options: &Options, engine: EngineOptions) -> Result<(Engine, Server)> {
    let rebuilds = engine.rebuild_damaged;
    let engine = Engine::start(engine).map_err(|error| {
        let damaged = matches!(&error, EngineError::Kept(error) if error.is_damage());
        let error = anyhow::Error::from(error).context("the engine does not start");
        match (damaged, rebuilds) {
            (false, _) => error,
            (true, false) => error.context(MEND),
            (true, true) => error.context(MEND_BY_BACKUP),
        }
    })?;
    match Server::start(engine.clone(), options.server()).await {
        Ok(server) => Ok((engine, server)),
        Err(error) => {
            engine.stop().await;
            Err(error.into())
        }
    }
}

async fn serve(options: Options, data: Option<String>, rebuild_damaged: bool) -> Result<()> {
    let place = data.clone();
    let (engine, server) = start(&options, EngineOptions { rebuild_damaged, ..options.engine(data)? }).await?;
    match place {
        Some(place) => tracing::info!(data = place, "what it holds outlives the process"),
        None => tracing::warn!("nothing is kept: all is gone when the process ends"),
    }
    let address = server.address();
    tracing::info!(%address, "ready: psql -h {} -p {}", address.ip(), address.port());
    if let Some(http) = server.http_address() {
        tracing::info!(address = %http, "answering /healthz, /readyz and /metrics");
    }
    let ended = tokio::select! {
        interrupt = interrupted() => interrupt.map(|()| None)?,
        reason = engine.ended() => Some(reason.unwrap_or_else(|| "it was told to stop".into())),
    };
    tracing::info!("stopping");
    // What the last checkpoint holds is told to who waits for that, before all are sent away.
    engine.stop().await;
    server.stop().await;
    // What came last may not have been kept.
    match ended.or(engine.ended().await) {
        Some(reason) => anyhow::bail!("the engine has ended: {reason}"),
        None => Ok(()),
    }
}

async fn demo(args: DemoArgs) -> Result<()> {
    let (engine, server) = start(&args.options, args.options.engine(None)?).await?;
    let mut end = std::pin::pin!(async {
        match args.seconds.map(Duration::from_secs) {
            Some(seconds) => tokio::time::timeout(seconds, interrupted()).await.unwrap_or(Ok(())),
            None => interrupted().await,
        }
    });
    let outcome = show_demo(&args, &engine, server.address(), &mut end).await;
    // Once more, and it ends at once.
    tokio::spawn(async {
        if interrupted().await.is_ok() {
            std::process::exit(130);
        }
    });
    server.stop().await;
    engine.stop().await;
    outcome
}

/// The demo from its first topic to `end`.
async fn show_demo(
    args: &DemoArgs,
    engine: &Engine,
    address: SocketAddr,
    mut end: impl Future<Output = Result<()>> + Unpin,
) -> Result<()> {
    let DemoArgs { events_per_second, ads, seed, events, .. } = *args;
    let options = DemoOptions { kafka: args.kafka.clone(), events_per_second, ads, seed, events };
    let demo = tokio::select! {
        ended = &mut end => return ended,
        demo = Demo::start(engine.clone(), &options) => demo.context("the demo does not start")?,
    };
    let broker = args.kafka.as_deref().unwrap_or("a broker in this process");
    let about = format!("{events_per_second} events/s of {ads} ads through {broker}");
    let board = Board { address, about };
    let mut ended = Ok(());
    let shown = demo::show(&demo, &mut Meter::start(engine), &board, async { ended = end.await }).await;
    demo.stop().await;
    shown.context("cannot write to standard output")?;
    ended
}

/// Returns at SIGINT or SIGTERM.
async fn interrupted() -> Result<()> {
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
        let given = |arguments: &[&str]| match Cli::parse_from(["riverrun", "serve"].iter().chain(arguments)).command {
            Command::Serve(serve) => serve.options,
            Command::Demo(demo) => demo.options,
            other => panic!("{other:?} has no such options"),
        };
        let file: Options = toml::from_str("listen = '127.0.0.1:1'\nworkers = 3").expect("valid options");
        let options = given(&["--listen", "127.0.0.1:2"]).or(file);
        assert_eq!(options.server().listen, SocketAddr::from(([127, 0, 0, 1], 2)));
        assert_eq!(options.engine(None).expect("valid options").workers, 3);
        let file = FileOptions::parse("data_dir = '/x'\nworkers = 2").expect("valid options");
        assert_eq!((file.data_dir.as_deref(), file.options.workers), (Some("/x"), Some(2)));
        assert!(FileOptions::parse("data_dri = '/x'").is_err());
    }
}
