//! Ends what belongs to librdkafka beside whoever used it: that waits for brokers and threads of the library, and nobody who reads
//! another topic, or the same one anew, waits for that. It may be for ever: a fetch that is answered with "offset out of range" while
//! its partition goes away leaves a thread of librdkafka 2.12 waiting for a lock that it holds itself.

use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

static UNDER_WAY: Mutex<usize> = Mutex::new(0);
static ENDED: Condvar = Condvar::new();

/// Counts one that is being closed, until it is dropped.
struct Closing;

impl Closing {
    fn begin() -> Closing {
        *UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        Closing
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        *UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        ENDED.notify_all();
    }
}

/// Drops it on a thread of its own; on this one if there can be none.
pub(super) fn drop_aside<T: Send + 'static>(what: T) {
    let closing = Closing::begin();
    let started = thread::Builder::new().name("kafka-close".into()).spawn(move || {
        drop(what);
        drop(closing);
    });
    if let Err(error) = started {
        tracing::debug!(%error, "closed without a thread");
    }
}

/// Waits until all that was given to [`drop_aside`] is gone. False if that takes longer.
pub fn wait_until_closed(timeout: Duration) -> bool {
    let under_way = UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner);
    let waited = ENDED.wait_timeout_while(under_way, timeout, |under_way| *under_way > 0);
    let (under_way, _) = waited.unwrap_or_else(PoisonError::into_inner);
    *under_way == 0
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use super::*;

    struct SlowToGo(Receiver<()>);

    impl Drop for SlowToGo {
        fn drop(&mut self) {
            self.0.recv().expect("a word to go");
        }
    }

    #[test]
    fn nobody_waits_for_what_is_slow_to_go() {
        let (go, told) = channel();
        drop_aside(SlowToGo(told));
        assert!(!wait_until_closed(Duration::ZERO));
        go.send(()).expect("it waits");
        assert!(wait_until_closed(Duration::from_secs(60)));
    }
}
