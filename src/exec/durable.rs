//! What a part of the state gives to be kept, and takes to begin again after a restart.
//!
//! A part that lasts has two methods. `save(whole)` gives what has changed since the last `save`, or all of it; it may give all
//! of it unasked. It is called between two ticks, copies what it gives, and counts it as kept from then on: whoever asked keeps
//! trying until it is written. `load` puts what was saved into a part that was just made: first one that is whole, then those
//! that came after, in their order. A part of which one worker owns some buckets takes only what belongs to these, so that
//! another number of workers may have saved it.

use std::ops::RangeInclusive;

use arrow::array::RecordBatch;
use serde_json::Value;

use super::ExecError;

/// Some state in columns, and what is too small for columns.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Saved {
    /// All of the state; else what has changed since the last.
    pub whole: bool,
    pub sections: Vec<Section>,
    pub notes: Value,
}

/// Rows under a name; several sections may have the same.
#[derive(Debug, Clone, PartialEq)]
pub struct Section {
    pub name: String,
    pub rows: RecordBatch,
}

/// The buckets of a worker.
pub type Buckets = RangeInclusive<u8>;

impl Saved {
    pub fn is_empty(&self) -> bool {
        !self.whole && self.notes.is_null() && self.sections.iter().all(|section| section.rows.num_rows() == 0)
    }

    /// The batches of all sections of a name, in their order.
    pub fn rows<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a RecordBatch> {
        self.sections.iter().filter(move |section| section.name == name).map(|section| &section.rows)
    }

    pub fn push(&mut self, name: impl Into<String>, rows: RecordBatch) {
        self.sections.push(Section { name: name.into(), rows });
    }

    /// What `serde` makes of the notes; an error is a file of another version, or a wrong one.
    pub fn notes<T: serde::de::DeserializeOwned>(&self) -> Result<T, ExecError> {
        serde_json::from_value(self.notes.clone()).map_err(|e| ExecError::Saved { what: format!("notes: {e}") })
    }
}
