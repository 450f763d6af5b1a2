//! Which worker owns which buckets, and rows split among the owners.

use std::ops::RangeInclusive;

use arrow::array::{Array, ArrayRef, BooleanArray, UInt32Array};
use arrow::compute::take;

use crate::exec::ExecError;
use crate::exec::bucket;
use crate::exec::slice_store::{PartialRows, StoreRows};

/// The buckets that `owner` of `owners` has.
pub(super) fn buckets_of(owner: usize, owners: usize) -> RangeInclusive<u8> {
    let first = (owner * 256).div_ceil(owners);
    let next = ((owner + 1) * 256).div_ceil(owners);
    first as u8..=(next - 1) as u8
}

/// Of the owners that there were before, those that had some of these buckets.
pub(super) fn owners_before(buckets: &RangeInclusive<u8>, owners: usize) -> RangeInclusive<usize> {
    owner_of(*buckets.start(), owners)..=owner_of(*buckets.end(), owners)
}

fn owner_of(bucket: u8, owners: usize) -> usize {
    bucket as usize * owners / 256
}

/// Does this worker own the key of an aggregation without keys?
pub(super) fn holds_empty_key(worker: usize, workers: usize) -> bool {
    owner_of(bucket::EMPTY_KEY, workers) == worker
}

/// Row numbers by owner; `None` where an owner has none.
pub(super) fn by_owner(keys: &[ArrayRef], rows: usize, owners: usize) -> Vec<(usize, Option<UInt32Array>)> {
    let mut selected: Vec<Vec<u32>> = vec![Vec::with_capacity(rows / owners + 1); owners];
    for (row, bucket) in bucket::buckets(keys, rows).into_iter().enumerate() {
        selected[owner_of(bucket, owners)].push(row as u32);
    }
    selected.into_iter().enumerate().map(|(o, s)| (o, (!s.is_empty()).then(|| UInt32Array::from(s)))).collect()
}

fn take_all(columns: &[ArrayRef], rows: &UInt32Array) -> Result<Vec<ArrayRef>, ExecError> {
    Ok(columns.iter().map(|c| take(c, rows, None)).collect::<Result<_, _>>()?)
}

fn pick(values: &[i64], rows: &UInt32Array) -> Vec<i64> {
    rows.values().iter().map(|&row| values[row as usize]).collect()
}

/// Some rows of what goes to a store.
pub(super) fn select_raw(rows: &StoreRows, selected: &UInt32Array) -> Result<StoreRows, ExecError> {
    let filter = |filter: &BooleanArray| -> Result<BooleanArray, ExecError> {
        let taken = take(filter, selected, None)?;
        Ok(taken.as_any().downcast_ref::<BooleanArray>().expect("take keeps the type").clone())
    };
    Ok(StoreRows {
        rows: selected.len(),
        slices: pick(&rows.slices, selected),
        keys: take_all(&rows.keys, selected)?,
        args: rows.args.iter().map(|args| take_all(args, selected)).collect::<Result<_, _>>()?,
        filters: rows.filters.iter().map(|f| f.as_ref().map(filter).transpose()).collect::<Result<_, _>>()?,
        weights: rows.weights.as_ref().map(|w| pick(w, selected)),
    })
}

/// Some groups of what goes to a store.
pub(super) fn select_partial(rows: &PartialRows, selected: &UInt32Array) -> Result<PartialRows, ExecError> {
    Ok(PartialRows {
        slices: pick(&rows.slices, selected),
        keys: take_all(&rows.keys, selected)?,
        counts: pick(&rows.counts, selected),
        states: take_all(&rows.states, selected)?,
    })
}
