//! Aggregates that do not fit their type: shown as NULL, and counted here.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::datatypes::{DataType, Field};

/// Counts values that a reader or a view above was shown as NULL because they do not fit their type. All parts of one view
/// share one.
#[derive(Debug, Default)]
pub struct Overflows {
    count: AtomicU64,
    sample: OnceLock<String>,
}

impl Overflows {
    /// The count, and what the first of them was.
    pub fn get(&self) -> (u64, Option<String>) {
        (self.count.load(Ordering::Relaxed), self.sample.get().cloned())
    }

    /// Goes on with what was counted before a restart.
    pub fn restore(&self, count: u64, sample: Option<String>) {
        self.count.store(count, Ordering::Relaxed);
        if let Some(sample) = sample {
            self.sample.get_or_init(|| sample);
        }
    }

    pub fn add(&self, count: usize, field: &Field) {
        if count > 0 {
            self.count.fetch_add(count as u64, Ordering::Relaxed);
            self.sample.get_or_init(|| {
                let name = match field.data_type() {
                    DataType::Decimal128(precision, scale) => format!("NUMERIC({precision},{scale})"),
                    DataType::Int64 => "BIGINT".to_string(),
                    other => other.to_string(),
                };
                format!("a value of {} does not fit {name}", field.name())
            });
        }
    }
}
