//! The front door: sessions that speak SQL, and the wire they are reached by.
//!
//! The way of one statement, say `SELECT ... FROM ad_1m WHERE ...` by the extended protocol:
//!
//! 1. [`wire`] cuts a Parse message out of the connection's bytes and hands its text to the [`session`].
//! 2. `prepared` plans the text over the catalog alone: the parameters' types and the result's columns.
//! 3. Bind: `decode` turns the parameters' bytes into values of those types.
//! 4. Execute: `reading` asks the engine for one tick's version of the objects named, plans anew over it, and starts DataFusion. What
//!    comes back is a stream (`rows`); nothing is computed far ahead of the reader.
//! 5. `encode` turns each batch into the bytes of Postgres' types, row by row; [`wire`] sends them as the client reads.
//!
//! Changes go through `writing` and wait in `transaction` for their COMMIT. Every error, from whatever room, becomes a Postgres
//! error in `sqlstate` and nowhere else. Queries run on the threads of `compute`; `interrupt` is how a running statement is stopped.

mod compute;
mod copy;
mod copy_in;
mod decode;
mod encode;
mod error;
mod http;
mod interrupt;
mod numeric;
mod overlay;
mod pg_type;
mod prepared;
mod reading;
mod reconciling;
mod rows;
mod session;
mod settings;
mod show;
mod sqlstate;
mod subscribe;
mod text;
mod transaction;
mod wire;
mod writing;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::engine::{Engine, now_us};
use crate::planner::Runtime;
use compute::Compute;
use session::Shared;

/// How the server listens.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Where Postgres clients connect; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where `/healthz` and `/metrics` are; none for nowhere.
    pub http: Option<SocketAddr>,
    /// The most clients at once.
    pub max_connections: usize,
    /// What all running queries together may hold in sorts, groups and joins.
    pub query_memory_bytes: usize,
}

impl Default for ServerOptions {
    fn default() -> Self {
        ServerOptions {
            listen: SocketAddr::from(([127, 0, 0, 1], 5454)),
            http: None,
            max_connections: 100,
            query_memory_bytes: 512 << 20,
        }
    }
}

/// Why a server does not start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error(
        "{0} is not a loopback address: there are no passwords yet, so anybody who can reach it would get in; \
         listen on 127.0.0.1 or [::1] and let others in by ssh or a proxy that asks who they are"
    )]
    NotLoopback(SocketAddr),
    #[error("cannot listen on {address}: {error}")]
    Listen { address: SocketAddr, error: io::Error },
    #[error("cannot set up queries: {0}")]
    Queries(#[from] datafusion::error::DataFusionError),
    #[error("cannot start threads for queries: {0}")]
    Threads(io::Error),
}

/// A running server over an engine, which it does not stop.
pub struct Server {
    address: SocketAddr,
    http_address: Option<SocketAddr>,
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Server {
    /// Listens and serves until [`Server::stop`].
    pub async fn start(engine: Engine, options: ServerOptions) -> Result<Server, ServerError> {
        let (listener, address) = listen(options.listen).await?;
        let (stop, stopped) = watch::channel(false);
        let mut tasks = Vec::new();
        let mut http_address = None;
        if let Some(http) = options.http {
            let (listener, address) = listen(http).await?;
            http_address = Some(address);
            tasks.push(tokio::spawn(http::serve(listener, engine.clone(), stopped.clone())));
        }
        let shared = Arc::new(Shared {
            engine,
            runtime: Runtime::new(options.query_memory_bytes)?,
            query_memory_bytes: options.query_memory_bytes,
            compute: Compute::start().map_err(ServerError::Threads)?,
            started_us: now_us(),
            changing: tokio::sync::Mutex::new(()),
        });
        tasks.push(tokio::spawn(wire::serve(listener, shared, options.max_connections, stopped)));
        Ok(Server { address, http_address, stop, tasks })
    }

    /// Where it listens, the port chosen.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn http_address(&self) -> Option<SocketAddr> {
        self.http_address
    }

    /// Sends every client away (57P01); returns when they are gone.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        for task in self.tasks {
            if let Err(error) = task.await {
                tracing::error!(%error, "a listener broke down");
            }
        }
    }
}

/// Returns when the server is told to stop.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // A sender that is gone means the same.
    let _told = stop.wait_for(|stop| *stop).await;
}

/// Waits after an error of `accept`.
#[expect(clippy::disallowed_methods, reason = "nothing tells when the process may open files again")]
async fn accept_again_later() {
    tokio::time::sleep(Duration::from_millis(100)).await;
}

async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), ServerError> {
    if !address.ip().is_loopback() {
        return Err(ServerError::NotLoopback(address));
    }
    let failed = |error| ServerError::Listen { address, error };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}
