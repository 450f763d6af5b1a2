//! How far event time had come when an EMIT EVERY view emitted last: what those downstream go by.

use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::ExecError;
use super::horizon::{Horizon, OldestSession};
use super::saved_columns::wrong;
use super::tail::Times;

/// The event times of one EMIT EVERY view, shared by whoever steps it, which moves them on at each emission, and by the
/// [`Horizon`]s of its columns.
#[derive(Debug, Clone, Default)]
pub struct EmittedTimes(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    /// Each horizon once, as it is now, with how it stood.
    marks: Vec<(Horizon, EmittedMarks)>,
    /// The same of sessions.
    sessions: Vec<(OldestSession, OldestSession)>,
}

/// Microseconds; `None` before the first emission, and of sources that had none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marks {
    pub watermark_us: Option<i64>,
    pub final_until_us: Option<i64>,
}

/// Those of one horizon.
#[derive(Debug, Clone, Default)]
pub struct EmittedMarks(Arc<Mutex<Marks>>);

/// What is to be kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedTimes {
    marks: Vec<Marks>,
    oldest_us: Vec<i64>,
}

impl EmittedTimes {
    /// The horizon as it stood at the last emission, now and whenever it is looked at.
    pub fn of(&self, horizon: &Horizon) -> Horizon {
        match horizon {
            Horizon::WindowStart(inner, window) => Horizon::WindowStart(Box::new(self.of(inner)), *window),
            Horizon::WindowEnd(inner, window) => Horizon::WindowEnd(Box::new(self.of(inner)), *window),
            Horizon::SessionStart(inner, oldest) => {
                Horizon::SessionStart(Box::new(self.of(inner)), self.oldest(oldest))
            }
            live => Horizon::Emitted(Box::new(live.clone()), self.marks(live)),
        }
    }

    fn marks(&self, live: &Horizon) -> EmittedMarks {
        let known = &mut self.0.lock().marks;
        if let Some((_, marks)) = known.iter().find(|(of, _)| of == live) {
            return marks.clone();
        }
        known.push((live.clone(), EmittedMarks::default()));
        known[known.len() - 1].1.clone()
    }

    fn oldest(&self, live: &OldestSession) -> OldestSession {
        let known = &mut self.0.lock().sessions;
        if let Some((_, held)) = known.iter().find(|(of, _)| of == live) {
            return held.clone();
        }
        known.push((live.clone(), OldestSession::default()));
        known[known.len() - 1].1.clone()
    }

    /// An emission: how it is now is how it stood from here on.
    pub fn advance(&self, times: &dyn Times) {
        let known = self.0.lock();
        for (live, marks) in &known.marks {
            *marks.0.lock() = marks_of(live, times);
        }
        for (live, held) in &known.sessions {
            held.set(live.start_us());
        }
    }

    /// Would an emission change nothing?
    pub fn stand(&self, times: &dyn Times) -> bool {
        let known = self.0.lock();
        known.marks.iter().all(|(live, marks)| marks_of(live, times) == marks.get())
            && known.sessions.iter().all(|(live, held)| live.start_us() == held.start_us())
    }

    pub fn save(&self) -> SavedTimes {
        let known = self.0.lock();
        SavedTimes {
            marks: known.marks.iter().map(|(_, marks)| marks.get()).collect(),
            oldest_us: known.sessions.iter().map(|(_, held)| held.start_us()).collect(),
        }
    }

    /// Errors: [`ExecError::Saved`] if it was saved of another plan.
    pub fn load(&self, saved: &SavedTimes) -> Result<(), ExecError> {
        let known = self.0.lock();
        if (known.marks.len(), known.sessions.len()) != (saved.marks.len(), saved.oldest_us.len()) {
            return Err(wrong("the event times of an emission are of other columns"));
        }
        for ((_, marks), was) in known.marks.iter().zip(&saved.marks) {
            *marks.0.lock() = *was;
        }
        for ((_, held), was_us) in known.sessions.iter().zip(&saved.oldest_us) {
            held.set(*was_us);
        }
        Ok(())
    }
}

impl EmittedMarks {
    pub fn get(&self) -> Marks {
        *self.0.lock()
    }
}

impl PartialEq for EmittedMarks {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for EmittedMarks {}

fn marks_of(live: &Horizon, times: &dyn Times) -> Marks {
    Marks { watermark_us: live.watermark_us(times), final_until_us: live.final_until_us(times) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::horizon::tests::At;
    use crate::planner::stream_plan::Window;

    fn at(watermark_us: i64) -> At {
        At { watermark_us: Some(watermark_us), final_until_us: Some(watermark_us - 10) }
    }

    /// The marks of a horizon while the source stands elsewhere.
    fn check(horizon: &Horizon) -> (Option<i64>, Option<i64>) {
        (horizon.watermark_us(&at(1000)), horizon.final_until_us(&at(1000)))
    }

    #[test]
    fn bounds_of_windows_move_at_emissions_alone() {
        let source = Horizon::Source(1);
        let window = Window::hop(20, 20, 0);
        let times = EmittedTimes::default();
        let end = times.of(&Horizon::WindowEnd(Box::new(source.clone()), window));
        let start = times.of(&Horizon::WindowStart(Box::new(source), window));
        assert!(end.names_the_window_of(&start), "they follow the same marks");
        assert_eq!(check(&end), (None, None));
        times.advance(&at(45));
        assert_eq!((check(&end), check(&start)), ((Some(60), Some(40)), (Some(40), Some(20))));
        assert!(times.stand(&at(45)) && !times.stand(&at(46)));
        assert_eq!(end.watermark_us(&At { watermark_us: None, final_until_us: None }), None, "history is to come");
    }

    #[test]
    fn an_emission_upon_another_is_later_than_it() {
        let (inner, outer) = (EmittedTimes::default(), EmittedTimes::default());
        let below = inner.of(&Horizon::Source(1));
        let above = outer.of(&below);
        inner.advance(&at(10));
        outer.advance(&at(20));
        inner.advance(&at(30));
        assert_eq!((check(&below), check(&above)), ((Some(30), Some(20)), (Some(10), Some(0))));
    }

    #[test]
    fn sessions_are_kept_and_taken_up() {
        let oldest = OldestSession::default();
        let make = || {
            let times = EmittedTimes::default();
            let start = times.of(&Horizon::SessionStart(Box::new(Horizon::Source(1)), oldest.clone()));
            (times, start)
        };
        let (times, start) = make();
        oldest.set(7);
        times.advance(&at(50));
        oldest.set(40);
        assert_eq!(check(&start), (Some(7), Some(7)));
        let (again, start) = make();
        assert_eq!(check(&start), (None, None));
        again.load(&times.save()).unwrap();
        assert_eq!(check(&start), (Some(7), Some(7)));
        assert!(EmittedTimes::default().load(&times.save()).is_err());
    }
}
