//! The law of acceptance: whether a row counts is decided once, from its own partition's log alone.
//!
//! A partition's watermark is the largest `event time - delay` of its accepted rows. A row is late if its event time lies
//! more than the allowed lateness below the watermark as it stood before the row, or below the floor: what was final when
//! somebody changed the bounds or took the watermark back. What is not in the log is recorded as [`Facts`], so that a second
//! reader of the same offsets comes to the same verdicts: that a partition had been idle when a row came, the clock by which
//! a row comes from the future, and what `ALTER SOURCE` changed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The bounds of a source, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bounds {
    /// `WATERMARK FOR ts AS ts - delay`; `None`: the source has no watermark, every row is accepted.
    pub delay_us: Option<i64>,
    pub allowed_lateness_us: i64,
    pub max_future_us: i64,
    pub idle_timeout_us: i64,
    /// Once every partition is idle, the source's watermark moves on at the pace of the clock.
    pub idle_advance: bool,
}

impl Default for Bounds {
    /// SEMANTICS 1.6: no lateness, an hour into the future, ten seconds until idle.
    fn default() -> Self {
        Bounds {
            delay_us: None,
            allowed_lateness_us: 0,
            max_future_us: 3_600_000_000,
            idle_timeout_us: 10_000_000,
            idle_advance: false,
        }
    }
}

/// Why a row does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LateReason {
    Late,
    Future,
    NullTime,
}

impl LateReason {
    /// By the name that [`LateReason::as_str`] gives.
    pub fn of(name: &str) -> Option<Self> {
        [LateReason::Late, LateReason::Future, LateReason::NullTime].into_iter().find(|reason| reason.as_str() == name)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            LateReason::Late => "late",
            LateReason::Future => "future",
            LateReason::NullTime => "null_time",
        }
    }
}

/// How the law stands from an offset on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    pub bounds: Bounds,
    /// Rows of earlier event times are late whatever the watermark says: windows up to there are final.
    pub floor_us: Option<i64>,
    pub watermark_us: Option<i64>,
}

/// What one partition's verdicts depended on that is not in its log, by offset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "FactsForm", into = "FactsForm")]
pub struct Facts {
    /// How reading began, and what `ALTER SOURCE` changed: before the row at this offset. Never empty.
    terms: BTreeMap<i64, Terms>,
    /// Before the row at this offset the watermark was raised to the source's.
    raised_us: BTreeMap<i64, i64>,
    /// Rows from the future by the clock of their arrival: from an offset to the one behind the last.
    future: BTreeMap<i64, i64>,
}

/// As they are kept: pairs of an offset and what holds there.
#[derive(Serialize, Deserialize)]
struct FactsForm {
    terms: Vec<(i64, Terms)>,
    raised_us: Vec<(i64, i64)>,
    future: Vec<(i64, i64)>,
}

impl From<Facts> for FactsForm {
    fn from(facts: Facts) -> Self {
        FactsForm {
            terms: facts.terms.into_iter().collect(),
            raised_us: facts.raised_us.into_iter().collect(),
            future: facts.future.into_iter().collect(),
        }
    }
}

impl TryFrom<FactsForm> for Facts {
    type Error = &'static str;

    fn try_from(form: FactsForm) -> Result<Self, Self::Error> {
        if form.terms.is_empty() {
            return Err("facts without terms");
        }
        Ok(Facts {
            terms: form.terms.into_iter().collect(),
            raised_us: form.raised_us.into_iter().collect(),
            future: form.future.into_iter().collect(),
        })
    }
}

impl Facts {
    fn begin(offset: i64, terms: Terms) -> Self {
        Facts { terms: [(offset, terms)].into(), raised_us: BTreeMap::new(), future: BTreeMap::new() }
    }

    /// By offset, ascending.
    pub fn terms(&self) -> impl Iterator<Item = (i64, Terms)> {
        self.terms.iter().map(|(&offset, &terms)| (offset, terms))
    }

    /// By offset, ascending.
    pub fn raised_us(&self) -> impl Iterator<Item = (i64, i64)> {
        self.raised_us.iter().map(|(&offset, &us)| (offset, us))
    }

    pub fn is_future(&self, offset: i64) -> bool {
        self.future.range(..=offset).next_back().is_some_and(|(_, &end)| offset < end)
    }

    /// Rows of one partition with a wrong clock come one after the other: they are one fact.
    fn add_future(&mut self, offset: i64) {
        match self.future.last_entry() {
            Some(mut last) if *last.get() == offset => *last.get_mut() = offset + 1,
            _ => {
                self.future.insert(offset, offset + 1);
            }
        }
    }

    /// Forgets what concerns offsets that the log no longer has.
    pub fn trim(&mut self, first: i64) {
        if let Some((&holding, _)) = self.terms.range(..=first).next_back() {
            self.terms = self.terms.split_off(&holding);
        }
        if self.raised_us.first_key_value().is_some_and(|(&offset, _)| offset < first) {
            self.raised_us = self.raised_us.split_off(&first);
        }
        if self.future.first_key_value().is_some_and(|(_, &end)| end <= first) {
            self.future.retain(|_, end| *end > first);
        }
    }
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

/// The law's state for one partition. All of it is kept over a restart: what the first row after it finds is a fact of the
/// state, not of the pause.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionLaw {
    terms: Terms,
    /// The watermark as rows make it that did not lie ahead of the clock of their arrival.
    plausible_us: Option<i64>,
    /// The partition is new or has been idle, and no row has come since: the first one finds the watermark raised,
    away: bool,
    /// to this, the source's.
    raise_to_us: Option<i64>,
    facts: Facts,
    /// For a second reader, which looks facts up and makes none: what is before this offset has been applied.
    replayed_to: Option<i64>,
}

impl PartitionLaw {
    /// For the rows from `offset` on.
    pub fn new(offset: i64, terms: Terms) -> Self {
        PartitionLaw {
            terms,
            plausible_us: None,
            away: true,
            raise_to_us: None,
            facts: Facts::begin(offset, terms),
            replayed_to: None,
        }
    }

    /// A reader that comes to the verdicts of an earlier one, from the first row on.
    pub fn replaying(facts: Facts) -> Self {
        let (&offset, &terms) = facts.terms.first_key_value().expect("there is always one");
        PartitionLaw { facts, replayed_to: Some(offset), ..PartitionLaw::new(offset, terms) }
    }

    /// Like [`PartitionLaw::replaying`], from a row on before which the watermark was this.
    pub fn resuming(facts: Facts, offset: i64, watermark_us: Option<i64>) -> Self {
        let holding = facts.terms.range(..=offset).next_back().or(facts.terms.first_key_value());
        let terms = Terms { watermark_us, ..*holding.expect("there is always one").1 };
        PartitionLaw { facts, replayed_to: Some(offset), ..PartitionLaw::new(offset, terms) }
    }

    pub fn watermark_us(&self) -> Option<i64> {
        self.terms.watermark_us
    }

    pub fn terms(&self) -> Terms {
        self.terms
    }

    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// See [`Facts::trim`].
    pub fn trim(&mut self, first: i64) {
        self.facts.trim(first);
    }

    /// The source stands at this watermark by now; `idle`: without waiting for this partition. It need not be idle any more
    /// when it delivers a row, since its end may be seen to move on before, or a record without a verdict of ours may come.
    pub fn source_stands_at(&mut self, watermark_us: Option<i64>, idle: bool) {
        self.away |= idle;
        self.raise_to_us = watermark_us.filter(|_| self.away);
    }

    /// From the row at `offset` on other bounds hold. `floor_us` is what is final by now, and stays so.
    pub fn alter(&mut self, offset: i64, bounds: Bounds, floor_us: Option<i64>) {
        self.terms.bounds = bounds;
        self.terms.floor_us = self.terms.floor_us.max(floor_us);
        self.facts.terms.insert(offset, self.terms);
    }

    /// From the row at `offset` on the watermark is at most `to_us`, by default what the accepted rows say that did not lie
    /// ahead of the clock of their arrival; never below what is final. True if it was further on.
    pub fn take_back(&mut self, offset: i64, to_us: Option<i64>, floor_us: Option<i64>) -> bool {
        self.terms.floor_us = self.terms.floor_us.max(floor_us);
        self.raise_to_us = None;
        let to_us = to_us.or(self.plausible_us).max(self.terms.floor_us);
        let further = self.terms.watermark_us > to_us;
        if further {
            self.terms.watermark_us = to_us;
            self.plausible_us = self.plausible_us.min(to_us);
        }
        self.facts.terms.insert(offset, self.terms);
        further
    }

    /// Reading goes on at another place of the log, or of another log of the same name: its facts begin there.
    pub fn restart(&mut self, offset: i64, floor_us: Option<i64>) {
        self.terms.floor_us = self.terms.floor_us.max(floor_us);
        self.facts = Facts::begin(offset, self.terms);
        self.away = true;
    }

    /// The verdict on the partition's next row. `Err` gives the reason and the watermark it was held against.
    pub fn judge(&mut self, row: Row) -> Result<(), (LateReason, Option<i64>)> {
        let Some(delay_us) = self.terms.bounds.delay_us else { return Ok(()) };
        match self.replayed_to {
            Some(from) => self.apply_facts(from, row.offset),
            None => self.raise(row.offset),
        }
        let Some(time_us) = row.event_time_us else {
            return Err((LateReason::NullTime, self.watermark_us()));
        };
        if self.is_from_the_future(&row, time_us) {
            return Err((LateReason::Future, self.watermark_us()));
        }
        let Terms { bounds, floor_us, watermark_us } = self.terms;
        let least_us = watermark_us.map(|w| w.saturating_sub(bounds.allowed_lateness_us)).max(floor_us);
        if least_us.is_some_and(|least| time_us < least) {
            return Err((LateReason::Late, watermark_us));
        }
        let reached_us = Some(time_us.saturating_sub(delay_us));
        self.terms.watermark_us = watermark_us.max(reached_us);
        if time_us <= row.arrival_us {
            self.plausible_us = self.plausible_us.max(reached_us);
        }
        Ok(())
    }

    fn raise(&mut self, offset: i64) {
        self.away = false;
        // A raise that changes nothing is no fact.
        if let Some(raise_to_us) = self.raise_to_us.take()
            && self.terms.watermark_us < Some(raise_to_us)
        {
            self.facts.raised_us.insert(offset, raise_to_us);
            self.terms.watermark_us = Some(raise_to_us);
        }
    }

    /// Brings a second reader from `from` to behind the facts of `offset`.
    fn apply_facts(&mut self, from: i64, offset: i64) {
        if from > offset {
            return;
        }
        let mut since = from;
        // Terms say how all stood: what was raised before is in them.
        if let Some((&at, &terms)) = self.facts.terms.range(from..=offset).next_back() {
            (self.terms, since) = (terms, at);
        }
        let raised_us = self.facts.raised_us.range(since..=offset).map(|(_, &us)| us).max();
        self.terms.watermark_us = self.terms.watermark_us.max(raised_us);
        self.replayed_to = Some(offset + 1);
    }

    fn is_from_the_future(&mut self, row: &Row, time_us: i64) -> bool {
        if self.replayed_to.is_some() && !row.arrival_in_log {
            return self.facts.is_future(row.offset);
        }
        let future = time_us > row.arrival_us.saturating_add(self.terms.bounds.max_future_us);
        if future && !row.arrival_in_log {
            self.facts.add_future(row.offset);
        }
        future
    }
}

/// Event-time progress of one partition at the end of a tick.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartitionProgress {
    pub partition: i32,
    pub watermark_us: Option<i64>,
    /// How long it has stood at its end, if it is idle.
    pub idle_us: Option<i64>,
}

/// A source's event time. From the same progress every worker comes to the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceTime {
    /// The minimum over the partitions that are not idle; with every partition idle it stays, or moves on by the clock, and if
    /// there is none yet, it is the minimum over those that have one. It goes back only when it is taken back.
    pub watermark_us: Option<i64>,
    /// No row of an earlier event time is accepted any more, and who relies on that may be told. Never goes back.
    pub final_until_us: Option<i64>,
    /// No row of an earlier event time is accepted any more, unless a crash takes back what was known of idle partitions.
    #[serde(default)]
    pub settled_us: Option<i64>,
    /// How long every partition had stood at its end, when all were idle. Not kept: after a restart that is measured anew, and
    /// the time between does not count.
    #[serde(skip)]
    idle_us: Option<i64>,
    taken_back: bool,
}

/// When what is settled is final.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finality {
    AtOnce,
    /// When a checkpoint holds it: the last one held this.
    Kept(Option<i64>),
}

impl SourceTime {
    /// Of a table: what lies before its watermark is final at once.
    pub fn of_table(watermark_us: i64) -> Self {
        let at = Some(watermark_us);
        SourceTime { watermark_us: at, final_until_us: at, settled_us: at, ..SourceTime::default() }
    }

    /// From here on the watermark is what partitions say by then, but not before what is final.
    pub fn take_back(&mut self) {
        self.taken_back = true;
        self.idle_us = None;
    }

    /// The law has been altered; nothing but what is final stands in its way.
    pub fn unsettle(&mut self) {
        self.settled_us = self.final_until_us;
    }

    /// The watermark less what is settled and not final yet: what retention goes by, as it must not forget what is still to be
    /// shown as final.
    pub fn shown_until_us(&self) -> Option<i64> {
        match (self.settled_us, self.final_until_us) {
            (Some(settled_us), Some(final_us)) => Some(self.watermark_us?.saturating_sub(settled_us - final_us)),
            (Some(_), None) => None,
            (None, _) => self.watermark_us,
        }
    }

    /// One tick.
    pub fn advance(
        &mut self,
        bounds: &Bounds,
        finality: Finality,
        partitions: impl IntoIterator<Item = PartitionProgress>,
    ) {
        let (mut least_us, mut idle_us) = (None, None::<i64>);
        let (mut nearest_us, mut furthest_us) = (None, None::<i64>);
        let mut any_busy = false;
        for p in partitions {
            furthest_us = furthest_us.max(p.watermark_us);
            nearest_us = [nearest_us, p.watermark_us].into_iter().flatten().min();
            match p.idle_us {
                Some(us) => idle_us = Some(idle_us.map_or(us, |least| least.min(us))),
                None if any_busy => least_us = std::cmp::min(least_us, p.watermark_us),
                None => (any_busy, least_us) = (true, p.watermark_us),
            }
        }
        let before_us = if std::mem::take(&mut self.taken_back) { self.final_until_us } else { self.watermark_us };
        let idle_us = idle_us.filter(|_| !any_busy);
        let now_us = match (idle_us, self.idle_us) {
            (None, _) => least_us,
            (Some(idle), before) if bounds.idle_advance => {
                let passed_us = before.filter(|before| *before <= idle).map_or(idle, |before| idle - before);
                before_us.max(furthest_us).map(|us| us.saturating_add(passed_us))
            }
            (Some(_), _) if before_us < self.watermark_us => furthest_us.min(self.watermark_us),
            // Those without any hold nobody back.
            (Some(_), _) if before_us.is_none() => nearest_us,
            (Some(_), _) => None,
        };
        self.idle_us = idle_us;
        self.watermark_us = before_us.max(now_us);
        let settled_us = self.watermark_us.map(|w| w.saturating_sub(bounds.allowed_lateness_us));
        self.settled_us = self.settled_us.max(self.final_until_us).max(settled_us);
        let final_us = match finality {
            Finality::AtOnce => self.settled_us,
            Finality::Kept(kept_us) => self.settled_us.min(kept_us),
        };
        self.final_until_us = self.final_until_us.max(final_us);
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    const BOUNDS: Bounds = Bounds {
        delay_us: Some(10),
        allowed_lateness_us: 5,
        max_future_us: 1000,
        idle_timeout_us: 100,
        idle_advance: false,
    };

    fn fresh() -> PartitionLaw {
        PartitionLaw::new(0, Terms { bounds: BOUNDS, floor_us: None, watermark_us: None })
    }

    /// Judges `(event time, arrival)` rows at offsets 0, 1, ... and prints one verdict and watermark a row.
    fn check(law: &mut PartitionLaw, first_offset: i64, rows: &[(Option<i64>, i64)]) -> String {
        let mut out = Vec::new();
        for (i, &(event_time_us, arrival_us)) in rows.iter().enumerate() {
            let row = Row { offset: first_offset + i as i64, event_time_us, arrival_us, arrival_in_log: false };
            let verdict = match law.judge(row) {
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
        insta::assert_snapshot!(check(&mut fresh(), 0, &rows), @r"
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
        let mut first = fresh();
        let mut seen = check(&mut first, 0, &[(Some(100), 0)]);
        first.source_stands_at(Some(300), true);
        seen += "\n";
        // Late only because the partition had been idle; from the future only by the clock of its arrival.
        seen += &check(&mut first, 1, &[(Some(294), 0), (Some(5000), 0), (Some(400), 0)]);
        let mut second = PartitionLaw::replaying(first.facts().clone());
        let rows = [(Some(100), 9000), (Some(294), 9000), (Some(5000), 9000), (Some(400), 9000)];
        assert_eq!(check(&mut second, 0, &rows), seen);
        assert!(seen.contains("late") && seen.contains("future"));
    }

    #[test]
    fn who_was_away_is_raised_by_the_next_row_idle_still_or_not() {
        let mut law = fresh();
        law.source_stands_at(Some(50), false);
        let mut seen = check(&mut law, 0, &[(Some(40), 0), (Some(100), 0)]);
        law.source_stands_at(Some(200), true);
        // Its end is seen to move on before the record comes.
        law.source_stands_at(Some(300), false);
        seen += "\n";
        seen += &check(&mut law, 2, &[(Some(294), 0), (Some(305), 0)]);
        law.source_stands_at(Some(400), false);
        seen += "\n";
        seen += &check(&mut law, 4, &[(Some(300), 0)]);
        insta::assert_snapshot!(seen, @r"
        late(Some(50)) Some(50)
        accepted Some(90)
        late(Some(300)) Some(300)
        accepted Some(300)
        accepted Some(300)
        ");
    }

    #[test]
    fn more_lateness_opens_nothing_that_is_final() {
        let mut law = fresh();
        let mut seen = check(&mut law, 0, &[(Some(200), 0)]);
        // 185 and below are final.
        law.alter(1, Bounds { allowed_lateness_us: 100, ..BOUNDS }, Some(185));
        seen += "\n";
        seen += &check(&mut law, 1, &[(Some(186), 0), (Some(184), 0), (Some(400), 0), (Some(291), 0), (Some(289), 0)]);
        insta::assert_snapshot!(seen, @r"
        accepted Some(190)
        accepted Some(190)
        late(Some(190)) Some(190)
        accepted Some(390)
        accepted Some(390)
        late(Some(390)) Some(390)
        ");
        let mut second = PartitionLaw::replaying(law.facts().clone());
        let rows = [200, 186, 184, 400, 291, 289].map(|us| (Some(us), 0));
        assert_eq!(check(&mut second, 0, &rows), seen);
    }

    #[test]
    fn a_watermark_taken_back_stands_where_plausible_rows_left_it() {
        let mut law = fresh();
        // The third row lies ahead of the clock, within the bound.
        let mut seen = check(&mut law, 0, &[(Some(100), 100), (Some(120), 120), (Some(900), 130), (Some(140), 140)]);
        assert!(law.take_back(4, None, Some(112)));
        assert!(!law.take_back(4, Some(500), Some(112)), "it stands before that");
        seen += "\n";
        seen += &check(&mut law, 4, &[(Some(141), 141), (Some(111), 142)]);
        insta::assert_snapshot!(seen, @r"
        accepted Some(90)
        accepted Some(110)
        accepted Some(890)
        late(Some(890)) Some(890)
        accepted Some(131)
        late(Some(131)) Some(131)
        ");
        let rows = [100, 120, 900, 140, 141, 111].map(|us| (Some(us), 0));
        let mut second = PartitionLaw::replaying(law.facts().clone());
        assert_eq!(check(&mut second, 0, &rows), seen);
        // From the middle: with the watermark as it was there.
        let mut third = PartitionLaw::resuming(law.facts().clone(), 3, Some(890));
        assert!(seen.ends_with(&check(&mut third, 3, &rows[3..])));
        // Nothing lies below what is final.
        assert!(law.take_back(6, Some(0), Some(120)));
        assert_eq!(law.watermark_us(), Some(120));
    }

    #[test]
    fn facts_are_forgotten_with_their_offsets() {
        let mut law = fresh();
        check(&mut law, 0, &[(Some(100), 0), (Some(5000), 0), (Some(5000), 0)]);
        law.source_stands_at(Some(300), true);
        check(&mut law, 3, &[(Some(5000), 0), (Some(400), 0)]);
        law.alter(5, Bounds { max_future_us: 9000, ..BOUNDS }, None);
        check(&mut law, 5, &[(Some(5000), 0)]);
        assert_eq!(law.facts().future, [(1, 4)].into(), "one range");
        let whole = law.facts().clone();
        law.trim(3);
        assert_eq!(
            (law.facts().is_future(3), law.facts().raised_us().count(), law.facts().terms().count()),
            (true, 1, 2)
        );
        assert_eq!(whole.terms().count(), 2);
        law.trim(5);
        assert_eq!(
            (law.facts().is_future(3), law.facts().raised_us().count(), law.facts().terms().count()),
            (false, 0, 1)
        );
        // The place of reading moves: what holds now is all that there is to know.
        law.restart(0, Some(77));
        let now =
            Terms { bounds: Bounds { max_future_us: 9000, ..BOUNDS }, floor_us: Some(77), watermark_us: Some(4990) };
        assert_eq!(law.facts().terms().collect::<Vec<_>>(), [(0, now)]);
    }

    /// Random rows, pauses, alterations and resets: a law that is saved and loaded anywhere goes on as the one that was not.
    #[test]
    fn a_law_that_was_saved_goes_on_as_it_was() {
        for seed in 0..200 {
            let mut random = StdRng::seed_from_u64(seed);
            let mut straight = fresh();
            let mut cut = straight.clone();
            let (mut clock, mut offset) = (0, 0);
            for _ in 0..80 {
                if random.random_bool(0.2) {
                    let saved = serde_json::to_string(&cut).unwrap();
                    cut = serde_json::from_str(&saved).unwrap();
                    assert_eq!(cut, straight, "seed {seed}");
                }
                clock += random.random_range(0..30);
                offset += random.random_range(1..4);
                match random.random_range(0..20) {
                    0 | 1 => {
                        let (us, idle) = (random.random_range(-50..50) + clock, random.random_bool(0.5));
                        for law in [&mut straight, &mut cut] {
                            law.source_stands_at(Some(us), idle);
                        }
                    }
                    2 => {
                        let bounds = Bounds { allowed_lateness_us: random.random_range(0..60), ..BOUNDS };
                        let floor_us = Some(clock - 100);
                        for law in [&mut straight, &mut cut] {
                            law.alter(offset, bounds, floor_us);
                        }
                    }
                    3 => {
                        let to_us = random.random_bool(0.5).then(|| clock - 40);
                        let back = [&mut straight, &mut cut].map(|law| law.take_back(offset, to_us, None));
                        assert_eq!(back[0], back[1], "seed {seed}");
                    }
                    4 => {
                        let first = offset - random.random_range(0..20);
                        for law in [&mut straight, &mut cut] {
                            law.trim(first);
                        }
                    }
                    5 if random.random_bool(0.2) => {
                        for law in [&mut straight, &mut cut] {
                            law.restart(offset, Some(clock - 90));
                        }
                    }
                    _ => {
                        let ahead = [-80..40, 900..1100][usize::from(random.random_bool(0.1))].clone();
                        let row = Row {
                            offset,
                            event_time_us: random.random_bool(0.95).then(|| clock + random.random_range(ahead)),
                            arrival_us: clock,
                            arrival_in_log: random.random_bool(0.3),
                        };
                        let verdicts = [&mut straight, &mut cut].map(|law| law.judge(row));
                        assert_eq!(verdicts[0], verdicts[1], "seed {seed}, offset {offset}");
                    }
                }
                assert_eq!(straight.watermark_us(), cut.watermark_us(), "seed {seed}, offset {offset}");
                assert_eq!(straight.facts(), cut.facts(), "seed {seed}, offset {offset}");
            }
        }
    }

    #[test]
    fn facts_without_terms_are_refused() {
        let mut saved = serde_json::to_value(fresh()).unwrap();
        saved["facts"]["terms"] = serde_json::json!([]);
        let error = serde_json::from_value::<PartitionLaw>(saved).unwrap_err();
        assert_eq!(error.to_string(), "facts without terms");
    }

    #[test]
    fn a_source_s_time_is_kept_and_idle_time_is_measured_anew() {
        let bounds = Bounds { idle_advance: true, ..BOUNDS };
        let mut time = SourceTime::default();
        tick(&mut time, &bounds, &[(Some(1000), None)]);
        tick(&mut time, &bounds, &[(Some(1000), Some(300))]);
        let mut loaded: SourceTime = serde_json::from_str(&serde_json::to_string(&time).unwrap()).unwrap();
        assert_eq!((loaded.watermark_us, loaded.final_until_us), (Some(1300), Some(1295)));
        assert_eq!(tick(&mut loaded, &bounds, &[(Some(1000), Some(310))]), Some(1610), "310 since it began");
        time.take_back();
        let mut loaded: SourceTime = serde_json::from_str(&serde_json::to_string(&time).unwrap()).unwrap();
        assert_eq!(tick(&mut loaded, &bounds, &[(Some(1296), None)]), Some(1296), "asked for, not yet done");
    }

    /// One tick of a source whose partitions stand at these watermarks, idle for so long.
    fn tick(time: &mut SourceTime, bounds: &Bounds, partitions: &[(Option<i64>, Option<i64>)]) -> Option<i64> {
        let progress = |&(watermark_us, idle_us)| PartitionProgress { partition: 0, watermark_us, idle_us };
        time.advance(bounds, Finality::AtOnce, partitions.iter().map(progress));
        time.watermark_us
    }

    #[test]
    fn the_source_waits_for_the_slowest_partition_that_is_not_idle() {
        let check = |partitions: &[_]| tick(&mut SourceTime::default(), &BOUNDS, partitions);
        assert_eq!(check(&[(Some(5), None), (None, None)]), None);
        assert_eq!(check(&[(None, None), (Some(5), None)]), None);
        assert_eq!(check(&[(Some(5), None), (None, Some(100))]), Some(5));
        let mut time = SourceTime::default();
        tick(&mut time, &BOUNDS, &[(Some(7), None)]);
        assert_eq!(tick(&mut time, &BOUNDS, &[(Some(5), None)]), Some(7), "never back");
        assert_eq!(tick(&mut time, &BOUNDS, &[(Some(9), Some(100))]), Some(7), "with all idle it stays");
        assert_eq!(time.final_until_us, Some(2));
    }

    /// A topic that nobody writes to any more, one of its partitions empty: all are idle at the same look.
    #[test]
    fn who_has_no_rows_holds_nobody_back_when_all_are_idle_at_once() {
        let idle = |watermarks: &[Option<i64>]| watermarks.iter().map(|&us| (us, Some(100))).collect::<Vec<_>>();
        let mut time = SourceTime::default();
        assert_eq!(tick(&mut time, &BOUNDS, &[(Some(9), None), (Some(5), None), (None, None)]), None);
        assert_eq!(tick(&mut time, &BOUNDS, &idle(&[Some(9), Some(5), None])), Some(5), "the fewest rows are late");
        assert_eq!(time.final_until_us, Some(0));
        assert_eq!(tick(&mut time, &BOUNDS, &idle(&[Some(9), Some(5), None])), Some(5), "and there it stays");
        assert_eq!(tick(&mut time, &BOUNDS, &idle(&[Some(9), Some(5), Some(2)])), Some(5));
        assert_eq!(tick(&mut time, &BOUNDS, &[(Some(9), Some(100)), (Some(7), None), (None, Some(100))]), Some(7));
        assert_eq!(tick(&mut SourceTime::default(), &BOUNDS, &idle(&[None, None])), None);
        // A partition that still may have rows is waited for, idle or not the others.
        assert_eq!(tick(&mut SourceTime::default(), &BOUNDS, &[(Some(9), Some(100)), (None, None)]), None);
        let advancing = Bounds { idle_advance: true, ..BOUNDS };
        let mut time = SourceTime::default();
        assert_eq!(tick(&mut time, &advancing, &idle(&[Some(9), Some(5), None])), Some(109), "on from the furthest");
    }

    #[test]
    fn with_all_idle_it_moves_on_by_the_clock_if_it_may() {
        let bounds = Bounds { idle_advance: true, ..BOUNDS };
        let mut time = SourceTime::default();
        assert_eq!(tick(&mut time, &bounds, &[(Some(1000), None), (Some(500), Some(200))]), Some(1000));
        assert_eq!(tick(&mut time, &bounds, &[(Some(1200), Some(100)), (Some(500), Some(400))]), Some(1300));
        assert_eq!(tick(&mut time, &bounds, &[(Some(1200), Some(150)), (Some(500), Some(450))]), Some(1350));
        assert_eq!(tick(&mut time, &bounds, &[(Some(1200), Some(150)), (Some(500), Some(450))]), Some(1350), "no news");
        // A record without an event time: the partition is busy for a while, and then the clock has gone on.
        assert_eq!(tick(&mut time, &bounds, &[(Some(1200), None), (Some(500), Some(500))]), Some(1350));
        assert_eq!(tick(&mut time, &bounds, &[(Some(1200), Some(120)), (Some(500), Some(640))]), Some(1470));
        // A row further on.
        assert_eq!(tick(&mut time, &bounds, &[(Some(2000), None), (Some(500), Some(700))]), Some(2000));
        assert_eq!(tick(&mut SourceTime::default(), &bounds, &[(None, Some(100))]), None, "nothing to move on from");
    }

    #[test]
    fn taken_back_it_is_what_partitions_say_but_not_before_what_is_final() {
        let mut time = SourceTime::default();
        tick(&mut time, &BOUNDS, &[(Some(1000), None), (Some(900), None)]);
        time.take_back();
        assert_eq!(tick(&mut time, &BOUNDS, &[(Some(898), None), (Some(899), None)]), Some(898));
        time.take_back();
        assert_eq!(tick(&mut time, &BOUNDS, &[(Some(3), None)]), Some(895));
        assert_eq!(time.final_until_us, Some(895));
        tick(&mut time, &BOUNDS, &[(Some(1000), None)]);
        time.take_back();
        assert_eq!(tick(&mut time, &BOUNDS, &[(Some(997), Some(200)), (None, Some(100))]), Some(997), "all idle");
        assert_eq!(tick(&mut time, &BOUNDS, &[(Some(999), Some(200)), (None, Some(100))]), Some(997), "it was once");
    }
}
