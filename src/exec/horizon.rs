//! How far a column of times has come, as a function of the sources under it.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use super::emitted_times::{EmittedMarks, Marks};
use super::tail::Times;
use crate::planner::stream_plan::Oid;
use crate::planner::stream_plan::Window;

/// The time below which nothing changes in a column any more. Evaluated with a source's watermark it says what is closed,
/// with its `final_until` what is final.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Horizon {
    /// The event time of a source, or of a table with a WATERMARK.
    Source(Oid),
    /// `window_start` of windows over a column: the start of the oldest window that is not closed.
    WindowStart(Box<Horizon>, Window),
    /// `window_end`: the end of that window.
    WindowEnd(Box<Horizon>, Window),
    /// `window_start` of sessions over a column: the start of the oldest session that is not final, by whatever time it is
    /// evaluated.
    SessionStart(Box<Horizon>, OldestSession),
    /// Of several inputs.
    Least(Vec<Horizon>),
    /// As it stood at the last emission of an EMIT EVERY view. Only that of what is no bound of a window is kept.
    Emitted(Box<Horizon>, EmittedMarks),
}

/// By which of the times of a source a horizon is evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    Watermark,
    FinalUntil,
    /// What retention goes by.
    ShownUntil,
}

/// The start of the oldest session of one aggregation that is not final. Whoever steps the aggregation sets it, in each tick
/// before anything downstream is stepped.
#[derive(Debug, Clone)]
pub struct OldestSession(Arc<AtomicI64>);

impl Default for OldestSession {
    /// Nothing is final yet.
    fn default() -> Self {
        OldestSession(Arc::new(AtomicI64::new(i64::MIN)))
    }
}

impl OldestSession {
    pub fn set(&self, start_us: i64) {
        self.0.store(start_us, Ordering::Relaxed);
    }

    pub fn start_us(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl PartialEq for OldestSession {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for OldestSession {}

impl Horizon {
    /// Of several; equal ones count once.
    pub fn least(all: Vec<Horizon>) -> Horizon {
        let mut distinct: Vec<Horizon> = Vec::new();
        for one in all {
            if !distinct.contains(&one) {
                distinct.push(one);
            }
        }
        if distinct.len() == 1 { distinct.remove(0) } else { Horizon::Least(distinct) }
    }

    /// What is closed by now. `None` while a source has no watermark.
    pub fn watermark_us(&self, times: &dyn Times) -> Option<i64> {
        self.evaluate(Mark::Watermark, times)
    }

    /// What is final by now. `None` while nothing of a source is.
    pub fn final_until_us(&self, times: &dyn Times) -> Option<i64> {
        self.evaluate(Mark::FinalUntil, times)
    }

    /// What retention goes by: see [`Times::shown_until_us`].
    pub fn shown_until_us(&self, times: &dyn Times) -> Option<i64> {
        self.evaluate(Mark::ShownUntil, times)
    }

    fn evaluate(&self, mark: Mark, times: &dyn Times) -> Option<i64> {
        match (self, mark) {
            (Horizon::Source(oid), Mark::Watermark) => times.watermark_us(*oid),
            (Horizon::Source(oid), Mark::FinalUntil) => times.final_until_us(*oid),
            (Horizon::Source(oid), Mark::ShownUntil) => times.shown_until_us(*oid),
            (Horizon::WindowStart(inner, window), _) => {
                Some(window.start_of(oldest_open_end(*window, inner.evaluate(mark, times)?)))
            }
            (Horizon::WindowEnd(inner, window), _) => Some(oldest_open_end(*window, inner.evaluate(mark, times)?)),
            (Horizon::SessionStart(inner, oldest), _) => Some(inner.evaluate(mark, times)?.min(oldest.start_us())),
            (Horizon::Least(all), _) => {
                all.iter().map(|one| one.evaluate(mark, times)).collect::<Option<Vec<_>>>()?.into_iter().min()
            }
            (Horizon::Emitted(live, marks), _) => {
                // Who is told of no time now, because history is still to come, has none.
                live.evaluate(mark, times)?;
                let Marks { watermark_us, final_until_us } = marks.get();
                if mark == Mark::FinalUntil { final_until_us } else { watermark_us }
            }
        }
    }

    /// What lies under the windows of a column.
    pub fn base(&self) -> &Horizon {
        match self {
            Horizon::WindowStart(inner, _) | Horizon::WindowEnd(inner, _) | Horizon::SessionStart(inner, _) => {
                inner.base()
            }
            base => base,
        }
    }

    /// Do rows that are equal in this column have the same value in the other one too? The bounds of a window name each other,
    /// but that windows which cumulate share a start.
    pub fn names_the_window_of(&self, other: &Horizon) -> bool {
        match (self, other) {
            (Horizon::WindowStart(a, x), Horizon::WindowEnd(b, y)) => a == b && x == y && !x.cumulates,
            (Horizon::WindowEnd(a, x), Horizon::WindowStart(b, y)) => a == b && x == y,
            (a, b) => a == b,
        }
    }

    pub fn sources(&self) -> Vec<Oid> {
        match self {
            Horizon::Source(oid) => vec![*oid],
            Horizon::WindowStart(inner, _)
            | Horizon::WindowEnd(inner, _)
            | Horizon::SessionStart(inner, _)
            | Horizon::Emitted(inner, _) => inner.sources(),
            Horizon::Least(all) => all.iter().flat_map(Horizon::sources).collect(),
        }
    }
}

/// The end of the oldest window that time `now_us` has not passed: the smallest end above it.
pub fn oldest_open_end(window: Window, now_us: i64) -> i64 {
    newest_closed_end(window, now_us).saturating_add(window.slide_us)
}

/// The end of the newest window that time `now_us` has passed: the largest end at or below it.
pub fn newest_closed_end(window: Window, now_us: i64) -> i64 {
    let phase = window.offset_us.saturating_add(window.size_us);
    now_us.saturating_sub(now_us.saturating_sub(phase).rem_euclid(window.slide_us))
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Of every source.
    pub struct At {
        pub watermark_us: Option<i64>,
        pub final_until_us: Option<i64>,
    }

    impl Times for At {
        fn watermark_us(&self, _: Oid) -> Option<i64> {
            self.watermark_us
        }

        fn final_until_us(&self, _: Oid) -> Option<i64> {
            self.final_until_us
        }
    }

    #[test]
    fn ends_lie_on_the_slide_whatever_the_size() {
        let window = Window::hop(25, 10, 3);
        // Windows end at 8 (mod 10).
        for (now, closed) in [(8, 8), (17, 8), (18, 18), (-2, -2), (-3, -12)] {
            assert_eq!((newest_closed_end(window, now), oldest_open_end(window, now)), (closed, closed + 10));
        }
    }

    #[test]
    fn the_bounds_of_a_window_name_each_other() {
        let window = |size_us| Window::hop(size_us, 10, 0);
        let start = |size| Horizon::WindowStart(Box::new(Horizon::Source(1)), window(size));
        let end = |size| Horizon::WindowEnd(Box::new(Horizon::Source(1)), window(size));
        assert!(start(20).names_the_window_of(&end(20)) && end(20).names_the_window_of(&end(20)));
        assert!(!start(20).names_the_window_of(&end(30)) && !end(20).names_the_window_of(&Horizon::Source(1)));
    }

    #[test]
    fn a_rollup_is_final_only_with_the_windows_under_it() {
        let minute = Window::hop(60, 60, 0);
        let start = Horizon::WindowStart(Box::new(Horizon::Source(1)), minute);
        let at = |now_us| At { watermark_us: now_us, final_until_us: now_us };
        assert_eq!(start.watermark_us(&at(Some(119))), Some(60));
        assert_eq!(start.final_until_us(&at(Some(120))), Some(120));
        assert_eq!(start.watermark_us(&at(None)), None);
    }
}
