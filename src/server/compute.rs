//! The threads that queries compute on.

use std::future::Future;
use std::io;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinHandle;

use super::error::PgError;
use super::sqlstate as code;

/// The parser bounds how deep a statement may be; what works on the deepest one, in a debug build, needs about half of this.
const STACK_BYTES: usize = 16 << 20;

/// Threads of their own for queries: a join or a constant expression may compute for minutes between two points where it
/// can be stopped, and while it holds a thread that polls connections nobody is answered and no cancel request is heard.
#[derive(Debug)]
pub struct Compute {
    handle: Handle,
    /// Present until dropped: from within another runtime it must not be waited for.
    runtime: Option<Runtime>,
}

impl Compute {
    /// More threads than cores, so that short queries get their turn beside long ones.
    pub fn start() -> io::Result<Compute> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let runtime = Builder::new_multi_thread()
            .worker_threads((4 * cores).max(8))
            .thread_name("query")
            .thread_stack_size(STACK_BYTES)
            .enable_all()
            .build()?;
        Ok(Compute { handle: runtime.handle().clone(), runtime: Some(runtime) })
    }

    pub fn place(&self) -> Place {
        Place(self.handle.clone())
    }
}

impl Drop for Compute {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Where to have work done.
#[derive(Debug, Clone)]
pub struct Place(Handle);

impl Place {
    /// The work's result; a panic in it is an error of its statement. Work that is no longer waited for ends at its next
    /// pause.
    pub async fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> Result<T, PgError> {
        let mut task = Task(self.0.spawn(work));
        let broken = |error| PgError::new(code::INTERNAL_ERROR, format!("the query broke down: {error}"));
        (&mut task.0).await.map_err(broken)
    }
}

/// Ends when dropped.
struct Task<T>(JoinHandle<T>);

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On one thread: if the work held it, what the work waits for would never come.
    #[tokio::test]
    async fn work_that_blocks_holds_up_nobody_else() {
        let compute = Compute::start().expect("threads");
        let (say, heard) = std::sync::mpsc::channel();
        let place = compute.place();
        let work = place.run(async move { heard.recv() });
        let other = async { say.send(7) };
        let (work, other) = tokio::join!(work, other);
        assert_eq!((work.ok(), other), (Some(Ok(7)), Ok(())));
    }

    #[tokio::test]
    async fn work_that_panics_is_an_error_of_its_statement() {
        let compute = Compute::start().expect("threads");
        let broken = compute.place().run(async { std::hint::black_box(Vec::<i32>::new())[0] }).await;
        assert_eq!(broken.err().map(|error| error.code), Some(code::INTERNAL_ERROR));
    }
}
