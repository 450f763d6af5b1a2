//! Records that do not count, as columns: the form in which they are kept over a restart.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BinaryArray, Int32Array, Int64Array, RecordBatch, StringArray, TimestampMillisecondArray,
    UInt32Array,
};
use arrow::datatypes::{Int32Type, Int64Type, TimestampMillisecondType, UInt32Type};

use super::verdicts::{DeadLetter, DuplicateRow, LateRow};
use crate::exec::ExecError;
use crate::exec::dedup::{DuplicateOf, Place};
use crate::exec::law::LateReason;
use crate::exec::saved_columns::{SavedColumns, section, wrong};

/// A row of `riverrun.late_rows` and its like.
pub trait KeptRow: Sized {
    fn columns(rows: &[Self]) -> Result<RecordBatch, ExecError>;

    /// What [`KeptRow::columns`] made; anything else is [`ExecError::Saved`].
    fn rows(columns: &RecordBatch) -> Result<Vec<Self>, ExecError>;
}

fn ints(values: impl Iterator<Item = i64>) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(values))
}

impl KeptRow for LateRow {
    fn columns(rows: &[Self]) -> Result<RecordBatch, ExecError> {
        section(vec![
            ("source", Arc::new(UInt32Array::from_iter_values(rows.iter().map(|row| row.source)))),
            ("partition", Arc::new(Int32Array::from_iter_values(rows.iter().map(|row| row.partition)))),
            ("offset", ints(rows.iter().map(|row| row.offset))),
            ("event_time_us", Arc::new(rows.iter().map(|row| row.event_time_us).collect::<Int64Array>())),
            ("watermark_us", Arc::new(rows.iter().map(|row| row.watermark_us).collect::<Int64Array>())),
            ("payload", Arc::new(BinaryArray::from_iter_values(rows.iter().map(|row| &row.payload)))),
            ("reason", Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.reason.as_str())))),
        ])
    }

    fn rows(columns: &RecordBatch) -> Result<Vec<Self>, ExecError> {
        let columns = SavedColumns::of("late_rows", columns);
        let (source, partition) = (columns.values::<UInt32Type>("source")?, columns.values::<Int32Type>("partition")?);
        let offset = columns.values::<Int64Type>("offset")?;
        let event_time_us = columns.nullable::<Int64Type>("event_time_us")?;
        let watermark_us = columns.nullable::<Int64Type>("watermark_us")?;
        let (payload, reason) = (columns.bytes("payload")?, columns.text("reason")?);
        let row = |row: usize| {
            Ok(LateRow {
                source: source[row],
                partition: partition[row],
                offset: offset[row],
                event_time_us: event_time_us.is_valid(row).then(|| event_time_us.value(row)),
                watermark_us: watermark_us.is_valid(row).then(|| watermark_us.value(row)),
                payload: payload.value(row).to_vec(),
                reason: LateReason::of(reason.value(row))
                    .ok_or_else(|| wrong(format!("no row is late because of \"{}\"", reason.value(row))))?,
            })
        };
        (0..columns.num_rows()).map(row).collect()
    }
}

impl KeptRow for DeadLetter {
    fn columns(rows: &[Self]) -> Result<RecordBatch, ExecError> {
        let times = TimestampMillisecondArray::from_iter_values(rows.iter().map(|row| row.timestamp_ms));
        section(vec![
            ("source", Arc::new(UInt32Array::from_iter_values(rows.iter().map(|row| row.source)))),
            ("partition", Arc::new(Int32Array::from_iter_values(rows.iter().map(|row| row.partition)))),
            ("offset", ints(rows.iter().map(|row| row.offset))),
            ("timestamp", Arc::new(times)),
            ("payload", Arc::new(BinaryArray::from_iter_values(rows.iter().map(|row| &row.payload)))),
            ("reason", Arc::new(StringArray::from_iter_values(rows.iter().map(|row| &row.reason)))),
        ])
    }

    fn rows(columns: &RecordBatch) -> Result<Vec<Self>, ExecError> {
        let columns = SavedColumns::of("dead_letters", columns);
        let (source, partition) = (columns.values::<UInt32Type>("source")?, columns.values::<Int32Type>("partition")?);
        let offset = columns.values::<Int64Type>("offset")?;
        let timestamp_ms = columns.values::<TimestampMillisecondType>("timestamp")?;
        let (payload, reason) = (columns.bytes("payload")?, columns.text("reason")?);
        let row = |row: usize| DeadLetter {
            source: source[row],
            partition: partition[row],
            offset: offset[row],
            timestamp_ms: timestamp_ms[row],
            payload: payload.value(row).to_vec(),
            reason: reason.value(row).to_string(),
        };
        Ok((0..columns.num_rows()).map(row).collect())
    }
}

impl KeptRow for DuplicateRow {
    fn columns(rows: &[Self]) -> Result<RecordBatch, ExecError> {
        let partitions = |of: fn(&DuplicateRow) -> Place| -> ArrayRef {
            Arc::new(Int32Array::from_iter_values(rows.iter().map(|row| of(row).partition)))
        };
        section(vec![
            ("source", Arc::new(UInt32Array::from_iter_values(rows.iter().map(|row| row.source)))),
            ("partition", partitions(|row| row.place)),
            ("offset", ints(rows.iter().map(|row| row.place.offset))),
            ("id", Arc::new(StringArray::from_iter_values(rows.iter().map(|row| &row.of.id)))),
            ("event_time_us", ints(rows.iter().map(|row| row.of.event_time_us))),
            ("kept_partition", partitions(|row| row.of.kept)),
            ("kept_offset", ints(rows.iter().map(|row| row.of.kept.offset))),
        ])
    }

    fn rows(columns: &RecordBatch) -> Result<Vec<Self>, ExecError> {
        let columns = SavedColumns::of("duplicates", columns);
        let source = columns.values::<UInt32Type>("source")?;
        let places = |partition: &str, offset: &str| -> Result<Vec<Place>, ExecError> {
            let (partitions, offsets) = (columns.values::<Int32Type>(partition)?, columns.values::<Int64Type>(offset)?);
            Ok(partitions.iter().zip(offsets).map(|(&partition, &offset)| Place { partition, offset }).collect())
        };
        let (place, kept) = (places("partition", "offset")?, places("kept_partition", "kept_offset")?);
        let (id, event_time_us) = (columns.text("id")?, columns.values::<Int64Type>("event_time_us")?);
        let row = |row: usize| {
            let of = DuplicateOf { id: id.value(row).to_string(), event_time_us: event_time_us[row], kept: kept[row] };
            DuplicateRow { source: source[row], place: place[row], of }
        };
        Ok((0..columns.num_rows()).map(row).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use super::*;

    fn check<T: KeptRow + PartialEq + Debug>(rows: Vec<T>) {
        let columns = T::columns(&rows).unwrap();
        assert_eq!(T::rows(&columns).unwrap(), rows);
        assert!(T::rows(&T::columns(&[]).unwrap()).unwrap().is_empty());
        for column in 0..columns.num_columns() {
            let mut without = columns.clone();
            without.remove_column(column);
            assert!(matches!(T::rows(&without), Err(ExecError::Saved { .. })), "without column {column}");
        }
    }

    #[test]
    fn rows_come_back_and_a_missing_column_is_told() {
        let late = |reason, event_time_us| LateRow {
            source: 7,
            partition: 3,
            offset: 1 << 40,
            event_time_us,
            watermark_us: event_time_us.map(|us| us + 1),
            payload: vec![0xff, 0, b'{'],
            reason,
        };
        check(vec![
            late(LateReason::Late, Some(-5)),
            late(LateReason::NullTime, None),
            late(LateReason::Future, Some(9)),
        ]);
        let dead = |timestamp_ms, reason: &str| DeadLetter {
            source: 1,
            partition: 0,
            offset: 5,
            timestamp_ms,
            payload: b"\xc3\x28".to_vec(),
            reason: reason.into(),
        };
        check(vec![dead(-1, ""), dead(1_700_000_000_000, "a field is twice")]);
        let place = |offset| Place { partition: 2, offset };
        let of = DuplicateOf { id: "(ä, 1)".into(), event_time_us: 12, kept: place(4) };
        check(vec![DuplicateRow { source: 9, place: place(8), of }]);
    }

    #[test]
    fn an_unknown_reason_is_told() {
        let row = LateRow {
            source: 7,
            partition: 3,
            offset: 0,
            event_time_us: None,
            watermark_us: None,
            payload: vec![],
            reason: LateReason::Late,
        };
        let columns = LateRow::columns(&[row]).unwrap();
        let mut arrays = columns.columns().to_vec();
        arrays[6] = Arc::new(StringArray::from(vec!["because"]));
        let other = RecordBatch::try_new(columns.schema(), arrays).unwrap();
        insta::assert_snapshot!(LateRow::rows(&other).unwrap_err(), @r#"a saved state cannot be read: no row is late because of "because""#);
    }
}
