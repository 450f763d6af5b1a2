//! The Postgres protocol: listening, letting clients in, cancel requests. The sole user of pgwire.

mod connection;
mod transport;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use pgwire::messages::startup::{Authentication, BackendKeyData, NegotiateProtocolVersion, SecretKey, Startup};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::error::PgError;
use super::interrupt::Interrupt;
use super::session::{Client, Session, Shared};
use super::sqlstate as code;
use connection::{Connection, put_error};
use transport::{Opening, ReadError, Transport};

/// How long a client has to say who it is.
const STARTUP_TIMEOUT: Duration = Duration::from_secs(60);
/// How long running statements have to come to an end when the server stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// The protocol 3.0, as its start-up message writes it.
const PROTOCOL_3_0: i32 = 3 << 16;

/// Who is connected, and how each can be cancelled.
#[derive(Default)]
struct Registry {
    by_pid: Mutex<HashMap<i32, (i32, Arc<Interrupt>)>>,
    next_pid: AtomicI32,
    connected: AtomicUsize,
}

/// Stands for one client in the [`Registry`].
struct Registered {
    registry: Arc<Registry>,
    pid: i32,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.registry.by_pid.lock().remove(&self.pid);
        self.registry.connected.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Registry {
    /// Makes place for one more client, with a process id and a secret for its cancel requests.
    fn register(self: &Arc<Self>, most: usize, interrupt: Arc<Interrupt>) -> Result<(Registered, i32), PgError> {
        if self.connected.fetch_add(1, Ordering::Relaxed) >= most {
            self.connected.fetch_sub(1, Ordering::Relaxed);
            return Err(PgError::new(code::TOO_MANY_CONNECTIONS, "sorry, too many clients already").fatal());
        }
        let secret = rand::random();
        let mut by_pid = self.by_pid.lock();
        // The counter comes round after two thousand million clients; then numbers in use are passed over.
        let pid = loop {
            let pid = self.next_pid.fetch_add(1, Ordering::Relaxed) & i32::MAX;
            if pid != 0 && !by_pid.contains_key(&pid) {
                break pid;
            }
        };
        by_pid.insert(pid, (secret, interrupt));
        Ok((Registered { registry: Arc::clone(self), pid }, secret))
    }

    fn cancel(&self, pid: i32, secret: i32) {
        if let Some((known, interrupt)) = self.by_pid.lock().get(&pid)
            && *known == secret
        {
            interrupt.cancel();
        }
    }

    fn terminate_all(&self) {
        for (_, interrupt) in self.by_pid.lock().values() {
            interrupt.terminate();
        }
    }
}

/// Accepts clients until `stop` says so; returns when the last of them is gone.
pub async fn serve(
    listener: TcpListener,
    shared: Arc<Shared>,
    max_connections: usize,
    mut stop: watch::Receiver<bool>,
) {
    let registry = Arc::new(Registry::default());
    let server = listener.local_addr().ok();
    let mut clients = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    let (shared, registry) = (Arc::clone(&shared), Arc::clone(&registry));
                    clients.spawn(async move {
                        let place = Place { shared, registry, max_connections, server, peer };
                        place.open(stream).await;
                    });
                }
                Err(error) => {
                    // Most often the process has no file descriptor left: some client must go first.
                    tracing::warn!(%error, "cannot accept a connection");
                    super::accept_again_later().await;
                }
            },
            Some(ended) = clients.join_next(), if !clients.is_empty() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "a connection broke down");
                }
            }
            () = super::stopped(&mut stop) => break,
        }
    }
    drop(listener);
    registry.terminate_all();
    let drained = async { while clients.join_next().await.is_some() {} };
    if tokio::time::timeout(STOP_TIMEOUT, drained).await.is_err() {
        tracing::warn!(clients = clients.len(), "clients did not leave in time");
        clients.shutdown().await;
    }
}

/// Where a client comes in.
struct Place {
    shared: Arc<Shared>,
    registry: Arc<Registry>,
    max_connections: usize,
    server: Option<SocketAddr>,
    peer: SocketAddr,
}

impl Place {
    async fn open(self, stream: TcpStream) {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY was refused");
        }
        let mut transport = Transport::new(stream);
        let startup = match tokio::time::timeout(STARTUP_TIMEOUT, self.startup(&mut transport)).await {
            Ok(Ok(Some(startup))) => startup,
            Ok(Err(ReadError::Protocol(error))) => return refuse(transport, &error).await,
            // A cancel request, a client that left, or one that never spoke.
            Ok(Ok(None) | Err(_)) | Err(_) => return,
        };
        let interrupt = Arc::new(Interrupt::default());
        let (registered, secret) = match self.registry.register(self.max_connections, Arc::clone(&interrupt)) {
            Ok(place) => place,
            Err(error) => return refuse(transport, &error).await,
        };
        match self.session(&startup, registered.pid, interrupt) {
            Ok(session) => {
                let unknown: Vec<String> =
                    startup.parameters.keys().filter(|name| name.starts_with("_pq_.")).cloned().collect();
                if startup.protocol_number_minor > 0 || !unknown.is_empty() {
                    transport.put(&NegotiateProtocolVersion::new(PROTOCOL_3_0, unknown));
                }
                transport.put(&Authentication::Ok);
                transport.put(&BackendKeyData::new(registered.pid, SecretKey::I32(secret)));
                Connection::new(transport, session).run().await;
            }
            Err(error) => refuse(transport, &error.fatal()).await,
        }
    }

    /// The start-up message; `None` if the connection was for a cancel request.
    async fn startup(&self, transport: &mut Transport) -> Result<Option<Startup>, ReadError> {
        loop {
            match transport.read_opening().await? {
                Opening::Startup(startup) => return Ok(Some(startup)),
                Opening::Cancel { pid, secret } => {
                    self.registry.cancel(pid, secret);
                    return Ok(None);
                }
                // There is none; the client goes on in the clear or leaves.
                Opening::Encryption => {
                    transport.put_byte(b'N');
                    transport.flush().await?;
                }
            }
        }
    }

    fn session(&self, startup: &Startup, pid: i32, interrupt: Arc<Interrupt>) -> Result<Session, PgError> {
        let parameter = |name: &str| startup.parameters.get(name).map(String::as_str).filter(|value| !value.is_empty());
        let Some(user) = parameter("user") else {
            let message = "no PostgreSQL user name specified in startup packet";
            return Err(PgError::new(code::INVALID_AUTHORIZATION, message));
        };
        if parameter("replication").is_some_and(|value| super::decode::bool_of(value) != Some(false)) {
            return Err(PgError::unsupported("replication connections are not supported"));
        }
        let given = startup.parameters.iter().filter(|(name, _)| {
            !matches!(name.as_str(), "user" | "database" | "options" | "replication") && !name.starts_with("_pq_.")
        });
        let mut options: Vec<(String, String)> = given.map(|(name, value)| (name.clone(), value.clone())).collect();
        // As in Postgres, what stands in `options` yields to what is named by itself.
        options.splice(0..0, command_line(parameter("options").unwrap_or_default())?);
        let client = Client { pid, peer: Some(self.peer), server: self.server };
        Session::new(Arc::clone(&self.shared), client, interrupt, user, parameter("database"), &options)
    }
}

async fn refuse(mut transport: Transport, error: &PgError) {
    put_error(&mut transport, error);
    // Whether the client still reads is its own affair.
    let _late = tokio::time::timeout(STOP_TIMEOUT, transport.flush()).await;
    let _gone = transport.shutdown().await;
}

/// `-c name=value --name=value`, as clients pass settings in `options`; a backslash keeps the next character.
fn command_line(options: &str) -> Result<Vec<(String, String)>, PgError> {
    let mut words = vec![String::new()];
    let mut chars = options.chars();
    while let Some(c) = chars.next() {
        let word = words.last_mut().expect("it begins with one word");
        match c {
            '\\' => word.extend(chars.next()),
            c if c.is_whitespace() => words.push(String::new()),
            c => word.push(c),
        }
    }
    let mut settings = Vec::new();
    let mut words = words.into_iter().filter(|word| !word.is_empty());
    while let Some(word) = words.next() {
        let assignment = match (word.strip_prefix("--"), word.strip_prefix("-c")) {
            (Some(long), _) => long.to_string(),
            (None, Some("")) => words.next().unwrap_or_default(),
            (None, Some(rest)) => rest.to_string(),
            (None, None) => String::new(),
        };
        let Some((name, value)) = assignment.split_once('=') else {
            let message = format!("invalid command-line argument for server process: {word}");
            return Err(PgError::new(code::SYNTAX_ERROR, message));
        };
        settings.push((name.replace('-', "_"), value.to_string()));
    }
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_as_a_command_line() {
        let pairs =
            |list: &[(&str, &str)]| list.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect::<Vec<_>>();
        let read = command_line("-c statement_timeout=5s -cTimeZone=UTC --application-name=a\\ b");
        let expected = pairs(&[("statement_timeout", "5s"), ("TimeZone", "UTC"), ("application_name", "a b")]);
        assert_eq!(read, Ok(expected));
        assert_eq!(command_line("-x").map_err(|error| error.code), Err("42601"));
    }
}
