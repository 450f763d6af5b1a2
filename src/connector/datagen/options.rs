//! The options of the generator, checked against the declared columns.

use std::collections::BTreeMap;

use super::field::Field;
use crate::connector::error::{ConnectorError, nearest};
use crate::connector::json::ColumnSpec;

/// A computed log.
#[derive(Debug, Clone, PartialEq)]
pub struct DatagenOptions {
    pub rows_per_second: u64,
    /// Over all partitions.
    pub rows_total: Option<u64>,
    pub partitions: i32,
    /// The time of row 0.
    pub start_ms: i64,
    pub(super) fields: Vec<Field>,
}

pub(super) const START: &str = "datagen.start.timestamp.millis";
const KNOWN: [&str; 6] =
    ["connector", "datagen.rows.per.second", "datagen.rows.total", "datagen.split.num", "datagen.seed", START];

impl DatagenOptions {
    /// Gives the log the beginning `now_ms` if it has none. To be done once, at CREATE SOURCE: the option is then part of
    /// the source.
    pub fn fix_start(options: &mut BTreeMap<String, String>, now_ms: i64) {
        options.entry(START.to_string()).or_insert_with(|| now_ms.to_string());
    }

    pub fn parse(options: &BTreeMap<String, String>, columns: &[ColumnSpec]) -> Result<DatagenOptions, ConnectorError> {
        let mut of_fields: BTreeMap<&str, BTreeMap<&str, &str>> = BTreeMap::new();
        for (key, value) in options {
            if KNOWN.contains(&key.as_str()) {
                continue;
            }
            let unknown = || ConnectorError::UnknownOption { option: key.clone(), nearest: nearest(key, KNOWN) };
            // A column's name may contain dots, an option's name does not.
            let (column, option) = key.strip_prefix("fields.").and_then(|k| k.rsplit_once('.')).ok_or_else(unknown)?;
            let payload = || columns.iter().filter(|c| c.include.is_none()).map(|c| c.name.as_str());
            if !payload().any(|name| name == column) {
                let nearest = nearest(column, payload()).map(|name| format!("fields.{name}.{option}"));
                return Err(ConnectorError::UnknownOption { option: key.clone(), nearest });
            }
            of_fields.entry(column).or_default().insert(option, value);
        }
        let number = |key: &str, default: Option<u64>, range: std::ops::RangeInclusive<u64>| {
            let Some(text) = options.get(key) else { return Ok(default) };
            match text.trim().parse::<u64>() {
                Ok(value) if range.contains(&value) => Ok(Some(value)),
                _ => Err(ConnectorError::InvalidOption {
                    option: key.to_string(),
                    reason: format!("'{text}' is not a number from {} to {}", range.start(), range.end()),
                }),
            }
        };
        let seed = number("datagen.seed", Some(0), 0..=u64::MAX)?.unwrap_or_default();
        let start_ms = number(START, None, 0..=253_402_300_799_999)?.ok_or_else(|| ConnectorError::MissingOption {
            option: START.into(),
            hint: "give the time of the first row in milliseconds since the epoch".into(),
        })?;
        let fields = columns
            .iter()
            .filter(|column| column.include.is_none())
            .map(|column| Field::parse(column, of_fields.remove(column.name.as_str()).unwrap_or_default(), seed))
            .collect::<Result<_, _>>()?;
        Ok(DatagenOptions {
            rows_per_second: number("datagen.rows.per.second", Some(10), 1..=10_000_000)?.unwrap_or(10),
            rows_total: number("datagen.rows.total", None, 0..=i64::MAX as u64)?,
            partitions: number("datagen.split.num", Some(1), 1..=1024)?.unwrap_or(1) as i32,
            start_ms: start_ms as i64,
            fields,
        })
    }

    /// The number of the row at an offset.
    pub(super) fn row(&self, partition: i32, offset: i64) -> u64 {
        (offset as u64).saturating_mul(self.partitions as u64).saturating_add(partition as u64)
    }

    /// When a row comes into being, in microseconds since the epoch.
    pub(super) fn time_us(&self, row: u64) -> i64 {
        let since = u128::from(row) * 1_000_000 / u128::from(self.rows_per_second);
        self.start_ms.saturating_mul(1000).saturating_add(i64::try_from(since).unwrap_or(i64::MAX))
    }

    /// How many rows a partition holds at `now_ms`.
    pub(super) fn end(&self, partition: i32, now_ms: i64) -> i64 {
        let Ok(since_ms) = u64::try_from(now_ms - self.start_ms) else { return 0 };
        // Row g is there once since >= g / rate: g = 0 ..= since * rate.
        let due = u128::from(since_ms) * u128::from(self.rows_per_second) / 1000 + 1;
        let due = due.min(u128::from(self.rows_total.unwrap_or(u64::MAX)));
        let before = due.saturating_sub(partition as u128);
        i64::try_from(before.div_ceil(self.partitions as u128)).unwrap_or(i64::MAX)
    }
}
