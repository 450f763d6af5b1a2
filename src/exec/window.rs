//! Which windows and slices a moment belongs to. All times are microseconds since the epoch, before it too.

use crate::planner::stream_plan::Window;

/// The largest moment at or before `ts_us` that is `phase_us` modulo `width_us`: where the slice or window of this width
/// begins. Rounds down on both sides of the epoch. Within one width of the end of time it is the end of time.
pub fn floor_to(ts_us: i64, width_us: i64, phase_us: i64) -> i64 {
    ts_us.saturating_sub(past_floor(ts_us, width_us, phase_us))
}

/// How far `ts_us` lies behind its floor: in `0 .. width_us`, computed without overflow.
fn past_floor(ts_us: i64, width_us: i64, phase_us: i64) -> i64 {
    let past = ts_us.rem_euclid(width_us) - phase_us.rem_euclid(width_us);
    if past < 0 { past + width_us } else { past }
}

/// The ends of the windows that contain `ts_us`, oldest first: those with `start <= ts_us < end`, each named by its end
/// ([`Window::start_of`]). None if one of them would begin or end outside the range of a timestamp; none either for a moment
/// in the gap between windows, where the slide is longer than the size.
pub fn windows_of(ts_us: i64, window: Window) -> Windows {
    let Window { size_us, slide_us, offset_us, cumulates } = window;
    let none = Windows { next_us: 0, slide_us, left: 0 };
    let past = past_floor(ts_us, slide_us, offset_us);
    if cumulates {
        let start = ts_us.checked_sub(past_floor(ts_us, size_us, offset_us));
        let first = ts_us.checked_sub(past).and_then(|step| step.checked_add(slide_us));
        return match (first, start.and_then(|start| start.checked_add(size_us))) {
            (Some(next_us), Some(last)) => {
                Windows { next_us, slide_us, left: ((last - next_us) / slide_us) as usize + 1 }
            }
            _ => none,
        };
    }
    if past >= size_us {
        return none;
    }
    let older = (size_us - past - 1) / slide_us;
    let newest = ts_us.checked_sub(past).filter(|start| start.checked_add(size_us).is_some());
    let oldest = newest.and_then(|newest| newest.checked_sub(older.checked_mul(slide_us)?));
    match oldest {
        Some(start_us) => Windows { next_us: start_us + size_us, slide_us, left: older as usize + 1 },
        None => none,
    }
}

/// See [`windows_of`].
#[derive(Debug, Clone)]
pub struct Windows {
    next_us: i64,
    slide_us: i64,
    left: usize,
}

impl Windows {
    /// The one window of what has no windows.
    pub fn once(end_us: i64) -> Self {
        Windows { next_us: end_us, slide_us: 1, left: 1 }
    }

    /// Leaves out those that end at or before `end_us`.
    pub fn skip_past(&mut self, end_us: i64) {
        if self.left == 0 || end_us < self.next_us {
            return;
        }
        // At most `left` times a slide: within the range of the ends themselves.
        let past = (i128::from(end_us) - i128::from(self.next_us)) / i128::from(self.slide_us) + 1;
        let skipped = past.min(self.left as i128) as usize;
        self.left -= skipped;
        self.next_us = self.next_us.wrapping_add(self.slide_us.wrapping_mul(skipped as i64));
    }
}

impl Iterator for Windows {
    type Item = i64;

    fn next(&mut self) -> Option<i64> {
        self.left = self.left.checked_sub(1)?;
        let end = self.next_us;
        // The last step may leave the range; nobody looks at it then.
        self.next_us = self.next_us.wrapping_add(self.slide_us);
        Some(end)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Windows {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::slice_store::Grid;
    use crate::planner::stream_plan::{LONGEST_US, stands_in_windows};
    use proptest::prelude::*;

    fn check(ts_us: i64, (slide_us, size_us, offset_us): (i64, i64, i64), starts: &[i64]) {
        let window = Window::hop(size_us, slide_us, offset_us);
        let found: Vec<i64> = windows_of(ts_us, window).map(|end| window.start_of(end)).collect();
        assert_eq!(found, starts, "windows of {ts_us}");
    }

    #[test]
    fn starts_are_half_open_aligned_and_floored_before_the_epoch() {
        check(0, (10, 10, 0), &[0]);
        check(9, (10, 10, 0), &[0]);
        check(10, (10, 10, 0), &[10]);
        check(-1, (10, 10, 0), &[-10]);
        check(-10, (10, 10, 0), &[-10]);
        check(25, (10, 30, 0), &[0, 10, 20]);
        check(25, (10, 25, 0), &[10, 20]);
        check(24, (10, 25, 0), &[0, 10, 20]);
        check(5, (10, 30, 0), &[-20, -10, 0]);
        check(25, (10, 10, 3), &[23]);
        check(25, (10, 10, -7), &[23]);
        check(2, (10, 10, 13), &[-7]);
    }

    #[test]
    fn between_windows_there_is_none() {
        check(15, (20, 10, 0), &[]);
        check(9, (20, 10, 0), &[0]);
    }

    #[test]
    fn windows_that_leave_the_range_of_time_are_none() {
        check(i64::MIN, (10, 10, 0), &[]);
        check(i64::MAX, (10, 10, 0), &[]);
        check(i64::MIN, (1, 1, 0), &[i64::MIN]);
        assert_eq!(floor_to(i64::MIN, 1000, 0), i64::MIN);
    }

    #[test]
    fn windows_can_be_skipped() {
        let window = Window::hop(30, 10, 0);
        for past in -30..40 {
            let mut windows = windows_of(25, window);
            windows.skip_past(past);
            assert_eq!(windows.collect::<Vec<_>>(), [30, 40, 50].into_iter().filter(|s| *s > past).collect::<Vec<_>>());
        }
    }

    proptest! {
        /// A row is in exactly the windows that contain it: every end tried one by one.
        #[test]
        fn exactly_the_windows_that_contain_it(
            ts in -500i64..500, slide in 1i64..40, size in 1i64..90, offset in -100i64..100, cumulates: bool,
        ) {
            let size_us = if cumulates { slide * (size % 9 + 1) } else { size };
            let window = Window { cumulates, ..Window::hop(size_us, slide, offset) };
            let naive: Vec<i64> = (-1000i64..1000)
                .filter(|end| {
                    let start = match cumulates {
                        // The size divides the distance of the start from the offset, and less than the end's.
                        true => (-1500..*end).rev().find(|s| (s - offset).rem_euclid(size_us) == 0).unwrap(),
                        false => end - size_us,
                    };
                    (end - size_us - offset).rem_euclid(slide) == 0 && start <= ts && ts < *end
                })
                .collect();
            prop_assert_eq!(windows_of(ts, window).collect::<Vec<_>>(), naive.clone());
            prop_assert_eq!(window.ends(ts).collect::<Vec<_>>(), naive);
        }

        /// Also where time ends: what stands in windows stands in all of them, and so does the slice it is kept in.
        #[test]
        fn wherever_one_stands_all_windows_fit(
            near in 0i64..1_000_000, size in 1..=LONGEST_US, times in 1i64..60, offset in any::<i64>(), of in 0..4,
        ) {
            let ts = if of % 2 == 0 { i64::MIN + 2 * LONGEST_US + near } else { i64::MAX - 2 * LONGEST_US - near };
            prop_assert!(stands_in_windows(ts) && !stands_in_windows(i64::MIN + near) && !stands_in_windows(i64::MAX - near));
            let slide = (size / times).max(1);
            let window = match of / 2 {
                0 => Window::hop(size, slide, offset.rem_euclid(slide)),
                _ => Window { cumulates: true, ..Window::hop(size / slide * slide, slide, offset.rem_euclid(size / slide * slide)) },
            };
            let ends: Vec<i64> = windows_of(ts, window).collect();
            prop_assert_eq!(&window.ends(ts).collect::<Vec<_>>(), &ends);
            prop_assert!(ends.iter().all(|&end| (window.start_of(end)..end).contains(&ts)));
            prop_assert!(!ends.is_empty());
            let width_us = window.slice_us();
            let grid = Grid { width_us, phase_us: window.offset_us % width_us };
            prop_assert_eq!(windows_of(grid.start_us(grid.slice_of(ts)), window).collect::<Vec<_>>(), ends);
        }

        #[test]
        fn the_floor_is_aligned_and_at_most_one_width_back(
            ts in any::<i64>(), width in 1i64..1_000_000_000, phase in any::<i64>(),
        ) {
            prop_assume!(ts > i64::MIN + width);
            let floor = floor_to(ts, width, phase);
            prop_assert!(floor <= ts && ts - floor < width);
            prop_assert_eq!((i128::from(floor) - i128::from(phase)).rem_euclid(i128::from(width)), 0);
        }
    }
}
