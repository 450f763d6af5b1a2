//! The options of `FORMAT PLAIN ENCODE JSON (...)`.

use std::collections::BTreeMap;

use super::time::{EpochUnit, TimestampMode};
use crate::connector::error::{ConnectorError, nearest};

/// `ENCODE JSON (...)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct JsonOptions {
    pub timestamps: TimestampMode,
}

impl JsonOptions {
    /// The options of `ENCODE JSON (...)`; RisingWave's `guess_number_unit` is our `guess`.
    pub fn parse(options: &BTreeMap<String, String>) -> Result<JsonOptions, ConnectorError> {
        const MODE: &str = "timestamptz.handling.mode";
        let mut parsed = JsonOptions::default();
        for (key, value) in options {
            if key != MODE {
                return Err(ConnectorError::UnknownOption { option: key.clone(), nearest: nearest(key, [MODE]) });
            }
            parsed.timestamps = match value.to_ascii_lowercase().as_str() {
                "guess" | "guess_number_unit" => TimestampMode::Guess,
                "seconds" => TimestampMode::Unit(EpochUnit::Seconds),
                "milli" => TimestampMode::Unit(EpochUnit::Millis),
                "micro" => TimestampMode::Unit(EpochUnit::Micros),
                "nano" => TimestampMode::Unit(EpochUnit::Nanos),
                "utc_string" => TimestampMode::UtcString,
                "utc_without_suffix" => TimestampMode::UtcWithoutSuffix,
                _ => {
                    return Err(ConnectorError::InvalidOption {
                        option: key.clone(),
                        reason: format!(
                            "'{value}' is none of guess, seconds, milli, micro, nano, utc_string, utc_without_suffix"
                        ),
                    });
                }
            };
        }
        Ok(parsed)
    }
}
