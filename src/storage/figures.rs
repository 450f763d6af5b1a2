//! What a storage has done so far.

use std::sync::atomic::{AtomicU64, Ordering};

/// Since `open`, what failed left out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Written {
    /// Data files.
    pub files: u64,
    pub manifests: u64,
    pub log_groups: u64,
    pub log_records: u64,
    /// In all of these.
    pub written_bytes: u64,
    /// Local folders only: how often the operating system was told to write through.
    pub syncs: u64,
    /// Sections read.
    pub reads: u64,
    pub read_bytes: u64,
    /// Files, manifests and log groups that were swept.
    pub deleted: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counts {
    pub files: AtomicU64,
    pub manifests: AtomicU64,
    pub log_groups: AtomicU64,
    pub log_records: AtomicU64,
    pub written_bytes: AtomicU64,
    pub reads: AtomicU64,
    pub read_bytes: AtomicU64,
    pub deleted: AtomicU64,
}

pub(super) fn add(count: &AtomicU64, n: usize) {
    count.fetch_add(n as u64, Ordering::Relaxed);
}

impl Counts {
    pub fn get(&self, syncs: u64) -> Written {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Written {
            files: get(&self.files),
            manifests: get(&self.manifests),
            log_groups: get(&self.log_groups),
            log_records: get(&self.log_records),
            written_bytes: get(&self.written_bytes),
            syncs,
            reads: get(&self.reads),
            read_bytes: get(&self.read_bytes),
            deleted: get(&self.deleted),
        }
    }
}
