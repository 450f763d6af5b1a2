//! Reads checkpoints of format 1, whose manifest names every slice instead of files that list them.
//!
//! | format | since | the manifest |
//! |---|---|---|
//! | 1 | 0.1.0 | `slices` of a part are its slices; a view does not say how old its oldest session is |
//! | 2 | | `slices` of a part say which of those count that `slice_files` list |
//!
//! Their slices get into files with lists at the first checkpoint.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use super::checkpoint::Checkpoint;
use crate::storage::SectionRef;

/// A slice that is in no list.
#[derive(Debug, Clone, Deserialize)]
pub struct SliceEntry {
    /// Of a tail; 0 for a store.
    pub node: u32,
    pub slice: i64,
    pub rows: u64,
    /// In memory.
    pub bytes: u64,
    pub at: SectionRef,
}

/// The checkpoint in a manifest's body of format 1.
pub(super) fn checkpoint(mut body: Value) -> Result<Checkpoint, serde_json::Error> {
    let mut unlisted = BTreeMap::new();
    for (name, files) in body["parts"].as_object_mut().into_iter().flatten() {
        let slices: Vec<SliceEntry> = serde_json::from_value(files["slices"].take())?;
        if !slices.is_empty() {
            files["slices"] = json!({ "first_file": 0, "first_kept": [] });
            unlisted.insert(name.clone(), slices);
        }
    }
    body["slice_files"] = json!([]);
    for view in body["body"]["views"].as_array_mut().into_iter().flatten() {
        view["oldest_us"] = json!([]);
    }
    Ok(Checkpoint { unlisted, ..serde_json::from_value(body)? })
}
