//! Deleting what nothing names any more.

use std::collections::BTreeSet;

use super::figures::add;
use super::log::{Spot, wholly_before};
use super::{Manifest, Storage, StorageError};

/// What a sweep deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    pub files: usize,
    pub manifests: usize,
    pub log_groups: usize,
    pub bytes: u64,
}

impl Storage {
    /// Deletes all manifests but the last two, the files that neither of them names, and the groups of the log whose records
    /// both of them contain. Seals of the log stay. Files of this process that no manifest has named yet stay too.
    pub fn sweep(&self) -> Result<Swept, StorageError> {
        let inner = &*self.inner;
        inner.check()?;
        // What is written after these lists is in none of them, and so is not deleted.
        let data = inner.blobs.list("data")?;
        let log = inner.blobs.list("log")?;
        let manifests = inner.blobs.list("manifest")?;
        let (keep, oldest, through) = {
            let mut head = inner.head.lock();
            // A commit of ours whose answer was lost names files that are to be kept; another's says that we are fenced.
            while manifests.iter().any(|blob| blob.name > Manifest::name(head.last.number)) {
                let name = Manifest::name(head.last.number + 1);
                match inner.blobs.get(&name, None) {
                    Ok(found) => inner.adopt(&mut head, &name, &found)?,
                    // Swept by another.
                    Err(StorageError::NotFound { .. }) => inner.check_newest(head.last.number)?,
                    Err(error) => return Err(error),
                }
            }
            let two: Vec<&Manifest> = std::iter::once(&head.last).chain(&head.before).collect();
            let mut keep: BTreeSet<String> = two.iter().flat_map(|manifest| manifest.files.iter().cloned()).collect();
            keep.extend(inner.files.lock().unnamed.iter().cloned());
            let oldest = two.iter().map(|manifest| manifest.number).min();
            let through = two.iter().map(|manifest| manifest.log_through).min();
            (keep, oldest.unwrap_or(0), through.unwrap_or(0))
        };

        let mut swept = Swept::default();
        let mut doomed = Vec::new();
        for blob in data {
            let generation =
                blob.name.strip_prefix("data/").and_then(|name| name.split('-').next()?.parse::<u64>().ok());
            // A file of a later generation is none of our business.
            if generation.is_some_and(|generation| generation <= inner.generation) && !keep.contains(&blob.name) {
                swept.files += 1;
                swept.bytes += blob.bytes;
                doomed.push(blob.name);
            }
        }
        for blob in manifests {
            if Manifest::number_in(&blob.name).is_some_and(|number| number < oldest) {
                swept.manifests += 1;
                swept.bytes += blob.bytes;
                doomed.push(blob.name);
            }
        }
        let spots = Spot::all(&log);
        let before = &spots[..wholly_before(&spots, through)];
        for (i, spot) in before.iter().enumerate() {
            // A seal ends where it begins, and so does no group of records.
            if spots[i + 1].first > spot.first {
                swept.log_groups += 1;
                swept.bytes += log.iter().find(|blob| blob.name == spot.name).map_or(0, |blob| blob.bytes);
                doomed.push(spot.name.clone());
            }
        }
        inner.blobs.delete(&doomed)?;
        add(&inner.counts.deleted, doomed.len());
        Ok(swept)
    }
}
