//! The clock: the one place where the engine learns what time it is.
#![allow(clippy::disallowed_methods, reason = "this module is what the ban points to")]

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Microseconds since the epoch by the wall clock; 0 for a clock set before it.
pub fn now_us() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_micros()).unwrap_or(i64::MAX))
}

/// The clock of ticks.
#[derive(Debug, Clone, Default)]
pub enum TickClock {
    #[default]
    System,
    /// Of a test: microseconds since the epoch.
    Hand(Arc<AtomicI64>),
}

impl TickClock {
    pub fn now_us(&self) -> i64 {
        match self {
            TickClock::System => now_us(),
            TickClock::Hand(us) => us.load(Ordering::Relaxed),
        }
    }

    /// The time of a tick, as the last one's was `before_us` and so much has passed since. It never goes back: after the clock was set
    /// back it goes on half as fast until the clock has caught up.
    pub fn next_us(&self, before_us: i64, passed: Duration) -> i64 {
        let now_us = self.now_us();
        if now_us >= before_us {
            return now_us;
        }
        before_us.saturating_add(i64::try_from(passed.as_micros() / 2).unwrap_or(i64::MAX))
    }
}

/// Measures durations by the monotonic clock. One that was started later is greater.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    pub fn start() -> Self {
        Stopwatch(Instant::now())
    }

    pub fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}
