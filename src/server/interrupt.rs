//! How a running statement is stopped from outside: by a cancel request, by its time limit, or by the server's end.

use std::future::Future;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::error::PgError;
use super::sqlstate as code;
use crate::engine::Stopwatch;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// No statement runs; a cancel request means nothing.
    Idle,
    Running,
    Cancelled,
    /// The server stops; final.
    Terminated,
}

/// One session's switch. The session runs its statements under it, anyone may throw it.
#[derive(Debug)]
pub struct Interrupt {
    state: watch::Sender<State>,
    /// How long the statement has been running, and how long it may.
    limit: Mutex<Option<(Stopwatch, Duration)>>,
}

impl Default for Interrupt {
    fn default() -> Self {
        Interrupt { state: watch::Sender::new(State::Idle), limit: Mutex::new(None) }
    }
}

impl Interrupt {
    /// A statement begins, with a limit to its time.
    pub fn start(&self, timeout: Option<Duration>) {
        *self.limit.lock() = timeout.map(|timeout| (Stopwatch::start(), timeout));
        self.state.send_if_modified(|state| replace(state, State::Idle, State::Running));
    }

    /// The running statement may take as long as it likes.
    pub fn without_limit(&self) {
        *self.limit.lock() = None;
    }

    /// No statement runs any more.
    pub fn finish(&self) {
        *self.limit.lock() = None;
        self.state.send_if_modified(|state| {
            replace(state, State::Running, State::Idle) || replace(state, State::Cancelled, State::Idle)
        });
    }

    /// Stops the running statement, if there is one.
    pub fn cancel(&self) {
        self.state.send_if_modified(|state| replace(state, State::Running, State::Cancelled));
    }

    /// Stops the session: what runs, and whatever would follow.
    pub fn terminate(&self) {
        self.state.send_replace(State::Terminated);
    }

    /// Returns when the session has been stopped.
    pub async fn terminated(&self) -> PgError {
        // The sender is `self`, so the channel is open.
        let mut state = self.state.subscribe();
        let _open = state.wait_for(|state| *state == State::Terminated).await;
        terminated()
    }

    /// The work's result, unless it is stopped first. Dropping the work must be harmless.
    pub async fn guard<T>(&self, work: impl Future<Output = Result<T, PgError>>) -> Result<T, PgError> {
        let mut state = self.state.subscribe();
        let stopped = async {
            match state.wait_for(|state| matches!(state, State::Cancelled | State::Terminated)).await.as_deref() {
                Ok(State::Terminated) => terminated(),
                _ => PgError::new(code::QUERY_CANCELED, "canceling statement due to user request"),
            }
        };
        let limit = *self.limit.lock();
        let late = async {
            let never = std::future::pending::<()>();
            match limit {
                Some((running, limit)) => {
                    let _elapsed = tokio::time::timeout(limit.saturating_sub(running.elapsed()), never).await;
                }
                None => never.await,
            }
        };
        tokio::select! {
            biased;
            error = stopped => Err(error),
            () = late => Err(PgError::new(code::QUERY_CANCELED, "canceling statement due to statement timeout")),
            result = work => result,
        }
    }
}

fn terminated() -> PgError {
    PgError::new(code::ADMIN_SHUTDOWN, "terminating connection due to administrator command").fatal()
}

fn replace(state: &mut State, from: State, to: State) -> bool {
    let changes = *state == from;
    if changes {
        *state = to;
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn outcome(interrupt: &Interrupt) -> &'static str {
        let work = async { Ok(()) };
        interrupt.guard(work).await.err().map_or("done", |error| error.code)
    }

    #[tokio::test]
    async fn a_cancel_stops_what_runs_and_nothing_else() {
        let interrupt = Interrupt::default();
        interrupt.cancel();
        interrupt.start(None);
        assert_eq!(outcome(&interrupt).await, "done");
        interrupt.cancel();
        assert_eq!(outcome(&interrupt).await, "57014");
        interrupt.finish();
        interrupt.start(None);
        assert_eq!(outcome(&interrupt).await, "done");
        interrupt.terminate();
        interrupt.finish();
        interrupt.start(None);
        assert_eq!(outcome(&interrupt).await, "57P01");
        assert_eq!(interrupt.terminated().await.code, "57P01");
    }

    #[tokio::test]
    async fn a_statement_has_its_time() {
        let interrupt = Interrupt::default();
        interrupt.start(Some(Duration::ZERO));
        assert_eq!(interrupt.guard(std::future::pending::<Result<(), _>>()).await.err().map(|e| e.code), Some("57014"));
    }
}
