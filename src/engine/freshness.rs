//! How old what views show may be: the newest moment up to which all that stood in a topic has been read.

use std::collections::VecDeque;

/// The ends of a topic's partitions at the looks that the reader has not reached yet.
#[derive(Debug, Default)]
pub(super) struct Freshness {
    /// When the question was asked, in microseconds, and the ends; the oldest first.
    looks: VecDeque<(i64, Vec<(i32, i64)>)>,
    read_as_of_us: Option<i64>,
}

/// Beyond so many every other one is forgotten. What is said then is somewhat too old, never too new.
const MOST_LOOKS: usize = 256;

impl Freshness {
    pub fn look(&mut self, asked_us: i64, ends: Vec<(i32, i64)>) {
        if self.looks.len() >= MOST_LOOKS {
            let mut keep = false;
            self.looks.retain(|_| {
                keep = !keep;
                keep
            });
        }
        self.looks.push_back((asked_us, ends));
    }

    /// Reading has come further; `has_reached` tells whether it has come to these ends.
    pub fn note(&mut self, has_reached: impl Fn(&[(i32, i64)]) -> bool) {
        let reached = self.looks.iter().take_while(|(_, ends)| has_reached(ends)).count();
        if let Some((asked_us, _)) = self.looks.drain(..reached).next_back() {
            self.read_as_of_us = Some(asked_us);
        }
    }

    /// All that stood in the topic at that moment has been read. `None`: that was never known.
    pub fn read_as_of_us(&self) -> Option<i64> {
        self.read_as_of_us
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reading has come to this offset of the one partition.
    fn read_to(freshness: &mut Freshness, position: i64) -> Option<i64> {
        freshness.note(|ends| ends.iter().all(|(_, end)| position >= *end));
        freshness.read_as_of_us()
    }

    #[test]
    fn it_is_as_of_the_newest_look_whose_ends_are_reached() {
        let mut freshness = Freshness::default();
        assert_eq!(read_to(&mut freshness, 100), None, "nobody has looked");
        for (at, end) in [(10, 5), (20, 5), (30, 8), (40, 9)] {
            freshness.look(at, vec![(0, end)]);
        }
        assert_eq!(read_to(&mut freshness, 4), None);
        assert_eq!(read_to(&mut freshness, 5), Some(20));
        assert_eq!(read_to(&mut freshness, 7), Some(20));
        assert_eq!(read_to(&mut freshness, 9), Some(40));
        assert_eq!(read_to(&mut freshness, 20), Some(40), "nobody has looked since");
    }

    #[test]
    fn who_is_far_behind_is_known_to_be_at_least_as_fresh() {
        let mut freshness = Freshness::default();
        (0..10_000).for_each(|at| freshness.look(at, vec![(0, at)]));
        assert!(freshness.looks.len() <= MOST_LOOKS);
        let mut last = None;
        for position in (0..10_000).step_by(37) {
            let as_of = read_to(&mut freshness, position);
            assert!(as_of >= last && as_of <= Some(position), "{as_of:?} at {position}");
            last = as_of;
        }
        assert_eq!(read_to(&mut freshness, 9_999), Some(9_999));
    }
}
