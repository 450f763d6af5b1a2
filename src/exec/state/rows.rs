//! Which rows of a batch count, and how often.

use arrow::array::{Array, ArrayRef, BooleanArray};
use arrow::buffer::BooleanBuffer;

/// The rows of one update: those that the filter lets pass and whose arguments are all present, each with its weight.
pub(super) struct Rows<'a> {
    slots: &'a [u32],
    /// `None` if every row counts.
    mask: Option<BooleanBuffer>,
    weights: Option<&'a [i64]>,
}

impl<'a> Rows<'a> {
    pub fn new(
        slots: &'a [u32],
        args: &[ArrayRef],
        filter: Option<&BooleanArray>,
        weights: Option<&'a [i64]>,
    ) -> Rows<'a> {
        let mut mask = filter.map(truths);
        for arg in args {
            if let Some(nulls) = arg.logical_nulls().filter(|n| n.null_count() > 0) {
                mask = Some(match mask {
                    Some(m) => &m & nulls.inner(),
                    None => nulls.into_inner(),
                });
            }
        }
        Rows { slots, mask, weights }
    }

    /// Calls `f(row, slot, weight)` for each row that counts. Rows of weight 0 come too.
    #[inline(always)]
    pub fn for_each(&self, mut f: impl FnMut(usize, usize, i64)) {
        match (&self.mask, self.weights) {
            (None, None) => {
                for (row, &slot) in self.slots.iter().enumerate() {
                    f(row, slot as usize, 1);
                }
            }
            (None, Some(weights)) => {
                for (row, (&slot, &weight)) in self.slots.iter().zip(weights).enumerate() {
                    f(row, slot as usize, weight);
                }
            }
            (Some(mask), None) => {
                for row in mask.set_indices() {
                    f(row, self.slots[row] as usize, 1);
                }
            }
            (Some(mask), Some(weights)) => {
                for row in mask.set_indices() {
                    f(row, self.slots[row] as usize, weights[row]);
                }
            }
        }
    }
}

/// True where the filter is true, not NULL.
fn truths(filter: &BooleanArray) -> BooleanBuffer {
    match filter.nulls() {
        Some(nulls) => filter.values() & nulls.inner(),
        None => filter.values().clone(),
    }
}
