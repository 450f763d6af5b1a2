//! The law of acceptance: whether a row counts is decided once, from its own partition's log alone.
//!
//! A partition's watermark is the largest `event time - delay` of its accepted rows. A row is late if its event time lies
//! more than the allowed lateness below the watermark as it stood before the row. Two things are not in the log: that a
//! partition had been idle when a row came, and the clock by which a row comes from the future. Both are recorded as
//! [`Fact`]s, so that a second reader of the same offsets comes to the same verdicts.

use std::collections::BTreeMap;

/// The bounds of a source, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// `WATERMARK FOR ts AS ts - delay`; `None`: the source has no watermark, every row is accepted.
    pub delay_us: Option<i64>,
    pub allowed_lateness_us: i64,
    pub max_future_us: i64,
    pub idle_timeout_us: i64,
}

impl Default for Bounds {
    /// SEMANTICS 1.6: no lateness, an hour into the future, ten seconds until idle.
    fn default() -> Self {
        Bounds { delay_us: None, allowed_lateness_us: 0, max_future_us: 3_600_000_000, idle_timeout_us: 10_000_000 }
    }
}

/// Why a row does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LateReason {
    Late,
    Future,
    NullTime,
}

impl LateReason {
    pub fn as_str(self) -> &'static str {
        match self {
            LateReason::Late => "late",
            LateReason::Future => "future",
            LateReason::NullTime => "null_time",
        }
    }
}

/// What a verdict depended on that is not in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Fact {
    /// Before this offset the partition's watermark was raised to the source's.
    pub raised_us: Option<i64>,
    /// The row at this offset came from the future by the clock of its arrival.
    pub future: bool,
}

/// One row as the law sees it.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    pub offset: i64,
    pub event_time_us: Option<i64>,
    /// When the record arrived: the engine's clock, or the record's own timestamp for LogAppendTime.
    pub arrival_us: i64,
    /// True if `arrival_us` is in the log (LogAppendTime), so that no fact is needed.
    pub arrival_in_log: bool,
}

/// The law's state for one partition.
#[derive(Debug, Clone, Default)]
pub struct PartitionLaw {
    watermark_us: Option<i64>,
    /// Set while the partition is idle or new: what its watermark is raised to when a row comes.
    raise_to_us: Option<i64>,
    facts: BTreeMap<i64, Fact>,
    /// True for a second reader: facts are looked up, none is made.
    replays: bool,
}

impl PartitionLaw {
    /// A reader that comes to the verdicts of an earlier one.
    pub fn replaying(facts: BTreeMap<i64, Fact>) -> Self {
        PartitionLaw { facts, replays: true, ..Default::default() }
    }

    /// Like [`PartitionLaw::replaying`], from a row on before which the watermark was this.
    pub fn resuming(facts: BTreeMap<i64, Fact>, watermark_us: Option<i64>) -> Self {
        PartitionLaw { watermark_us, ..PartitionLaw::replaying(facts) }
    }

    pub fn watermark_us(&self) -> Option<i64> {
        self.watermark_us
    }

    pub fn facts(&self) -> &BTreeMap<i64, Fact> {
        &self.facts
    }

    /// Says that the partition is idle (or new) while the source stands at this watermark.
    pub fn raise_when_it_returns(&mut self, source_watermark_us: Option<i64>) {
        self.raise_to_us = source_watermark_us;
    }

    /// The verdict on the partition's next row. `Err` gives the reason and the watermark it was held against.
    pub fn judge(&mut self, bounds: &Bounds, row: Row) -> Result<(), (LateReason, Option<i64>)> {
        let Some(delay_us) = bounds.delay_us else { return Ok(()) };
        if let Some(raise_to_us) = self.raise(row.offset) {
            self.watermark_us = Some(self.watermark_us.map_or(raise_to_us, |w| w.max(raise_to_us)));
        }
        let Some(time_us) = row.event_time_us else {
            return Err((LateReason::NullTime, self.watermark_us));
        };
        if self.is_from_the_future(bounds, &row, time_us) {
            return Err((LateReason::Future, self.watermark_us));
        }
        if let Some(watermark_us) = self.watermark_us
            && time_us < watermark_us.saturating_sub(bounds.allowed_lateness_us)
        {
            return Err((LateReason::Late, self.watermark_us));
        }
        let reached_us = time_us.saturating_sub(delay_us);
        if self.watermark_us.is_none_or(|w| reached_us > w) {
            self.watermark_us = Some(reached_us);
        }
        Ok(())
    }

    fn raise(&mut self, offset: i64) -> Option<i64> {
        if self.replays {
            return self.facts.get(&offset).and_then(|fact| fact.raised_us);
        }
        let raise_to_us = self.raise_to_us.take()?;
        // A raise that changes nothing is no fact.
        if self.watermark_us.is_some_and(|w| w >= raise_to_us) {
            return None;
        }
        self.facts.entry(offset).or_default().raised_us = Some(raise_to_us);
        Some(raise_to_us)
    }

    fn is_from_the_future(&mut self, bounds: &Bounds, row: &Row, time_us: i64) -> bool {
        if self.replays && !row.arrival_in_log {
            return self.facts.get(&row.offset).is_some_and(|fact| fact.future);
        }
        let future = time_us > row.arrival_us.saturating_add(bounds.max_future_us);
        if future && !row.arrival_in_log {
            self.facts.entry(row.offset).or_default().future = true;
        }
        future
    }
}

/// Event-time progress of one partition at the end of a tick.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartitionProgress {
    pub partition: i32,
    pub watermark_us: Option<i64>,
    pub idle: bool,
}

/// A source's watermark: the minimum over its partitions that are not idle, never going back. With every partition idle
/// it stays.
pub fn source_watermark(
    before_us: Option<i64>,
    partitions: impl IntoIterator<Item = PartitionProgress>,
) -> Option<i64> {
    let mut least: Option<Option<i64>> = None;
    for p in partitions {
        if p.idle {
            continue;
        }
        least = Some(match (least, p.watermark_us) {
            (None, w) => w,
            (Some(Some(a)), Some(b)) => Some(a.min(b)),
            _ => None,
        });
    }
    match (before_us, least.flatten()) {
        (Some(before), Some(now)) => Some(before.max(now)),
        (before, now) => before.or(now),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds =
        Bounds { delay_us: Some(10), allowed_lateness_us: 5, max_future_us: 1000, idle_timeout_us: 100 };

    /// Judges `(event time, arrival)` rows at offsets 0, 1, ... and prints one verdict and watermark a row.
    fn check(law: &mut PartitionLaw, first_offset: i64, rows: &[(Option<i64>, i64)]) -> String {
        let mut out = Vec::new();
        for (i, &(event_time_us, arrival_us)) in rows.iter().enumerate() {
            let row = Row { offset: first_offset + i as i64, event_time_us, arrival_us, arrival_in_log: false };
            let verdict = match law.judge(&BOUNDS, row) {
                Ok(()) => "accepted".to_string(),
                Err((reason, against)) => format!("{}({against:?})", reason.as_str()),
            };
            out.push(format!("{verdict} {:?}", law.watermark_us()));
        }
        out.join("\n")
    }

    #[test]
    fn rows_are_held_against_the_watermark_before_them() {
        let rows = [(Some(100), 0), (Some(85), 0), (Some(84), 0), (None, 0), (Some(2000), 0), (Some(120), 0)];
        insta::assert_snapshot!(check(&mut PartitionLaw::default(), 0, &rows), @r"
        accepted Some(90)
        accepted Some(90)
        late(Some(90)) Some(90)
        null_time(Some(90)) Some(90)
        future(Some(90)) Some(90)
        accepted Some(110)
        ");
    }

    #[test]
    fn a_second_reader_comes_to_the_same_verdicts() {
        let mut first = PartitionLaw::default();
        let mut seen = check(&mut first, 0, &[(Some(100), 0)]);
        first.raise_when_it_returns(Some(300));
        seen += "\n";
        // Late only because the partition had been idle; from the future only by the clock of its arrival.
        seen += &check(&mut first, 1, &[(Some(294), 0), (Some(5000), 0), (Some(400), 0)]);
        let mut second = PartitionLaw::replaying(first.facts().clone());
        let rows = [(Some(100), 9000), (Some(294), 9000), (Some(5000), 9000), (Some(400), 9000)];
        assert_eq!(check(&mut second, 0, &rows), seen);
        assert!(seen.contains("late") && seen.contains("future"));
    }

    #[test]
    fn the_source_waits_for_the_slowest_partition_that_is_not_idle() {
        let p = |watermark_us, idle| PartitionProgress { partition: 0, watermark_us, idle };
        assert_eq!(source_watermark(None, [p(Some(5), false), p(None, false)]), None);
        assert_eq!(source_watermark(None, [p(Some(5), false), p(None, true)]), Some(5));
        assert_eq!(source_watermark(Some(7), [p(Some(5), false)]), Some(7));
        assert_eq!(source_watermark(Some(7), [p(Some(9), true)]), Some(7));
    }
}
