use super::id_table::{IdTable, PARTS};
use crate::exec::ExecError;

/// The rule where equal ids share a partition: a row is a duplicate if a kept row of its id that came before it in the log lies
/// less than the interval away in event time, before or after. So a verdict is for good when the row is read.
///
/// - State: each kept row's id, time and offset, until rows that are late by then could alone repeat it, and at most an eighth of the
///   interval longer.
/// - Cost: a look-up a row.
pub struct WithinPartition {
    interval_us: i64,
    ids: IdTable<First>,
    more: Vec<More>,
    free: Vec<u32>,
    swept: Option<i64>,
    next_part: u8,
}

/// A kept row of an id, and where others of the same id are, which are rare.
#[derive(Debug, Clone, Copy)]
struct First {
    time_us: i64,
    offset: i64,
    more: u32,
}

#[derive(Debug, Clone, Copy)]
struct More {
    time_us: i64,
    offset: i64,
    next: u32,
}

const NONE: u32 = u32::MAX;

impl WithinPartition {
    pub fn new(interval_us: i64) -> Self {
        let (ids, more, free) = (IdTable::new(), Vec::new(), Vec::new());
        WithinPartition { interval_us, ids, more, free, swept: None, next_part: 0 }
    }

    /// The verdict on the next accepted row of the log: the offset of the kept row that it repeats.
    pub fn judge(&mut self, key: &[u8], time_us: i64, offset: i64) -> Result<Option<i64>, ExecError> {
        let before = self.ids.len();
        let id = self.ids.find_or_insert(key, First { time_us, offset, more: NONE })?;
        if self.ids.len() > before {
            return Ok(None);
        }
        let near = |other_us: i64| time_us.abs_diff(other_us) < self.interval_us.unsigned_abs();
        let first = self.ids.get_mut(id).expect("just found");
        if near(first.time_us) {
            return Ok(Some(first.offset));
        }
        let mut at = first.more;
        while at != NONE {
            let more = self.more[at as usize];
            if near(more.time_us) {
                return Ok(Some(more.offset));
            }
            at = more.next;
        }
        // The newest is first: the next copy most likely repeats that.
        let older = More { time_us: first.time_us, offset: first.offset, next: first.more };
        let at = match self.free.pop() {
            Some(at) => {
                self.more[at as usize] = older;
                at
            }
            None => {
                self.more.push(older);
                (self.more.len() - 1) as u32
            }
        };
        *first = First { time_us, offset, more: at };
        Ok(None)
    }

    /// No row of an earlier time than this is accepted any more.
    pub fn settle(&mut self, until_us: i64) {
        let interval_us = self.interval_us;
        let expired = |time_us: i64| time_us.saturating_add(interval_us) <= until_us;
        for part in parts_due(&mut self.swept, &mut self.next_part, until_us, interval_us) {
            let (more, free) = (&mut self.more, &mut self.free);
            self.ids.sweep(part, |first| {
                let mut at = first.more;
                let mut live = !expired(first.time_us);
                while at != NONE {
                    live |= !expired(more[at as usize].time_us);
                    at = more[at as usize].next;
                }
                if !live {
                    at = first.more;
                    while at != NONE {
                        free.push(at);
                        at = more[at as usize].next;
                    }
                }
                live
            });
        }
        if self.free.len() == self.more.len() {
            self.more.clear();
            self.free.clear();
        }
    }

    /// Kept rows that are remembered, by id.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn bytes(&self) -> usize {
        self.ids.bytes() + self.more.capacity() * size_of::<More>() + self.free.capacity() * size_of::<u32>()
    }
}

/// The parts of a table to look for expired ids in, now that time has come to `until_us`: each once in an eighth of the interval.
pub(super) fn parts_due(
    swept: &mut Option<i64>,
    next_part: &mut u8,
    until_us: i64,
    interval_us: i64,
) -> impl Iterator<Item = u8> + use<> {
    let since = *swept.get_or_insert(until_us);
    let step = (interval_us / (8 * PARTS as i64)).max(1);
    let due = (until_us.saturating_sub(since) / step).clamp(0, PARTS as i64);
    let first = *next_part;
    if due == PARTS as i64 {
        *swept = Some(until_us);
    } else {
        *swept = Some(since.saturating_add(due * step));
        *next_part = first.wrapping_add(due as u8);
    }
    (0..due).map(move |n| first.wrapping_add(n as u8))
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    /// Rows `(id, time)` at offsets 0, 1, ...: what each repeats.
    fn check(interval_us: i64, rows: &[(&str, i64)]) -> Vec<Option<i64>> {
        let mut ids = WithinPartition::new(interval_us);
        rows.iter().zip(0..).map(|((id, time), offset)| ids.judge(id.as_bytes(), *time, offset).unwrap()).collect()
    }

    #[test]
    fn what_comes_first_in_the_log_is_kept() {
        let rows = [("a", 100), ("b", 100), ("a", 159), ("a", 160), ("a", 41), ("a", 40), ("a", 219), ("a", 220)];
        assert_eq!(check(60, &rows), [None, None, Some(0), None, Some(0), None, Some(3), None]);
    }

    /// Against a list of all that was kept; the state holds no more than what can still matter.
    #[test]
    fn ids_are_forgotten_no_sooner_than_they_may() {
        const INTERVAL: i64 = 8_000;
        for seed in 0..20 {
            let mut random = StdRng::seed_from_u64(seed);
            let mut ids = WithinPartition::new(INTERVAL);
            let mut kept: Vec<(u32, i64, i64)> = Vec::new();
            let mut now = 0;
            for offset in 0..20_000 {
                now += random.random_range(0..10);
                let until = now - 2_000;
                let (id, time): (u32, i64) = (random.random_range(0..200), random.random_range(until..=now));
                let plain = kept.iter().rfind(|k| k.0 == id && (k.1 - time).abs() < INTERVAL).map(|k| k.2);
                let verdict = ids.judge(&id.to_be_bytes(), time, offset).unwrap();
                assert_eq!(verdict.is_some(), plain.is_some(), "seed {seed}, offset {offset}");
                if plain.is_none() {
                    kept.push((id, time, offset));
                    kept.retain(|k| k.1 + INTERVAL > until);
                }
                ids.settle(until);
            }
            ids.settle(now + 2 * INTERVAL);
            ids.settle(now + 4 * INTERVAL);
            assert!(ids.is_empty() && ids.more.is_empty(), "seed {seed}: {} ids", ids.len());
        }
    }
}
