//! Decoded records → verdicts: what a source's own reader does to a batch.

use std::collections::BTreeMap;

use arrow::array::{Array, BooleanArray, BooleanBufferBuilder, Int64Array, RecordBatch};
use arrow::compute::filter_record_batch;

use super::backfill::Mark;
use super::decoding::Decoding;
use super::partition::Partition;
use super::reader::SourceSetup;
use super::verdicts::{DeadLetter, LateRow, Verdicts};
use crate::connector::{Decoded, Records};
use crate::exec::dedup::Place;
use crate::exec::feed::micros;
use crate::exec::law::Row;

/// The event time from which on nothing is lost that a partition accepted before its watermark was this.
pub(super) fn complete_behind(setup: &SourceSetup, watermark_us: Option<i64>) -> Option<i64> {
    // No accepted row has a later event time than made the watermark.
    let newest_us = watermark_us.zip(setup.bounds.delay_us).map(|(w, delay)| w.saturating_add(delay));
    newest_us.map(|us| us.saturating_add(1))
}

/// Rows that the law has accepted, as they were decoded, and where they stand.
pub(super) struct Accepted {
    pub rows: RecordBatch,
    /// Columns of the source that are there, ascending.
    pub present: Vec<usize>,
    /// Of each row, if the source is deduplicated.
    pub places: Vec<Place>,
}

/// Gives every record its verdict by the law, counts it, and keeps what does not count.
pub(super) fn judge(
    setup: &SourceSetup,
    decoding: &mut Decoding,
    records: &Records,
    partitions: &mut BTreeMap<i32, Partition>,
    now_us: i64,
    verdicts: &mut Verdicts,
) -> Accepted {
    let decoded = decoding.decoder.decode(records, 0..records.len());
    count_records(records, partitions);
    for dead in &decoded.dead {
        let record = &records.records[dead.record as usize];
        if let Some(partition) = partitions.get_mut(&record.partition) {
            partition.counts.dead += 1;
        }
        verdicts.dead.push(DeadLetter {
            source: setup.source,
            partition: record.partition,
            offset: record.offset,
            timestamp_ms: record.timestamp_ms,
            payload: records.value(dead.record as usize).unwrap_or_default().to_vec(),
            reason: dead.reason.clone(),
        });
    }
    for &record in &decoded.skipped {
        if let Some(partition) = partitions.get_mut(&records.records[record as usize].partition) {
            partition.counts.skipped += 1;
        }
    }
    let times = event_times(setup, &decoding.present, &decoded);
    let mut keep = BooleanBufferBuilder::new(decoded.rows.len());
    let (mut late, mut late_rows) = (Vec::new(), Vec::new());
    let mut places = Vec::new();
    let mut row = 0;
    while row < decoded.rows.len() {
        let of = records.records[decoded.rows[row] as usize].partition;
        // Records come in runs of one partition.
        let Some(state) = partitions.get_mut(&of) else {
            keep.append(false);
            row += 1;
            continue;
        };
        let first = &records.records[decoded.rows[row] as usize];
        state.marks.add(Mark { offset: first.offset, watermark_us: state.law.watermark_us() });
        while row < decoded.rows.len() {
            let index = decoded.rows[row] as usize;
            let record = &records.records[index];
            if record.partition != of {
                break;
            }
            let event_time_us = times.as_ref().and_then(|t| t.is_valid(row).then(|| t.value(row)));
            let arrival_us = if record.log_append_time { record.timestamp_ms.saturating_mul(1000) } else { now_us };
            let seen = Row { offset: record.offset, event_time_us, arrival_us, arrival_in_log: record.log_append_time };
            match state.law.judge(seen) {
                Ok(()) => {
                    state.counts.accepted += 1;
                    keep.append(true);
                    if setup.deduplicate.is_some() {
                        places.push(Place { partition: of, offset: record.offset });
                    }
                }
                Err((reason, watermark_us)) => {
                    state.counts.late += 1;
                    keep.append(false);
                    late_rows.push(row as u32);
                    late.push(LateRow {
                        source: setup.source,
                        partition: of,
                        offset: record.offset,
                        event_time_us,
                        watermark_us,
                        payload: records.value(index).unwrap_or_default().to_vec(),
                        reason,
                    });
                }
            }
            row += 1;
        }
    }
    if let Some(into) = setup.late_into.as_ref().filter(|_| !late.is_empty()) {
        verdicts.late_into.push((into.table, into.rows(&decoded.batch, &decoding.present, late_rows, &late)));
    }
    verdicts.late.append(&mut late);
    Accepted { rows: kept(decoded.batch, keep), present: decoding.present.clone(), places }
}

fn count_records(records: &Records, partitions: &mut BTreeMap<i32, Partition>) {
    for run in records.records.chunk_by(|a, b| a.partition == b.partition) {
        if let Some(state) = partitions.get_mut(&run[0].partition) {
            state.counts.read += run.len() as u64;
            state.position = state.position.max(run[run.len() - 1].offset + 1);
            state.idle_us = None;
            state.at_end_since_us = None;
        }
    }
}

/// Event times of the decoded rows in microseconds; `None` for a source without a watermark.
pub(super) fn event_times(setup: &SourceSetup, present: &[usize], decoded: &Decoded) -> Option<Int64Array> {
    let at = present.binary_search(&setup.time_column?).expect("the time column is always built");
    Some(micros(decoded.batch.column(at)).expect("the planner checked that the column is a time"))
}

pub(super) fn kept(batch: RecordBatch, mut keep: BooleanBufferBuilder) -> RecordBatch {
    let mask = BooleanArray::new(keep.finish(), None);
    if mask.true_count() == batch.num_rows() {
        return batch;
    }
    filter_record_batch(&batch, &mask).expect("one bit per row")
}
