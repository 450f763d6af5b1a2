//! What a checkpoint holds: the body of a manifest, and the parts of the state that its files keep.
//!
//! A *part* is what one owner saves for itself, under a name: `source/16384/0` (a partition), `store/3/1` (a store's buckets of one
//! worker), `ids/16384/1`, `table/16390`, `rows/16400` and `tail/16400` (a view's), `kept/16384/late`. Its files are one that is whole, and
//! increments on top of it; closed slices have their own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::alter::{Change, Gap};
use super::former_format::SliceEntry;
use super::slice_index::{KeptSlices, SlicesFile};
use super::verdicts::Counts;
use crate::catalog::{CatalogText, Oid};
use crate::exec::closed_slice::ClosedSlice;
use crate::exec::durable::Saved;
use crate::exec::exchange::StoreId;
use crate::exec::feed::Shortfall;
use crate::exec::law::SourceTime;
use crate::exec::panes_in_files::PaneToKeep;
use crate::exec::store_saved::SavedPart;
use crate::storage::SectionRef;

/// Of [`Body`]. Older ones are read ([`super::former_format`]), one that is newer is refused.
pub const FORMAT: u32 = 2;

/// Everything but the parts.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Body {
    pub format: u32,
    /// (epoch, n) of the tick that it holds.
    pub tick: (u64, u64),
    /// What `now()` was in views.
    pub now_us: i64,
    pub catalog: CatalogText,
    pub workers: usize,
    /// For stores, edges and passes.
    pub next_id: u64,
    pub sources: Vec<SourceBody>,
    pub stores: Vec<StoreBody>,
    pub views: Vec<ViewBody>,
    pub tables: Vec<TableBody>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SourceBody {
    pub oid: Oid,
    /// By partition, where it was told to begin.
    pub starts: Vec<(i32, i64)>,
    /// Of the topic whose offsets these are.
    #[serde(default)]
    pub topic_id: Option<String>,
    /// Somebody reads it, or has read it.
    pub begun: bool,
    /// Partitions that are read.
    pub partitions: Vec<i32>,
    pub time: SourceTime,
    pub gaps: Vec<Gap>,
    pub changes: Vec<Change>,
    pub late_into_trouble: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StoreBody {
    pub id: StoreId,
    pub source: Oid,
    /// The view for which it was made, and which of its feeds.
    pub made_by: (Oid, usize),
    pub fingerprint: String,
    pub complete_from_us: Option<i64>,
    pub floor_us: Option<i64>,
    pub shortfall: Shortfall,
}

/// By partition.
pub type Ends = Vec<(i32, i64)>;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ViewBody {
    pub oid: Oid,
    /// The store of each feed.
    pub stores: Vec<StoreId>,
    /// Of each feed of sessions, the start of the oldest that is not final.
    pub oldest_us: Vec<Option<i64>>,
    /// The state of the whole flow can be taken up again; else it is made anew from its sources.
    pub whole: bool,
    pub current: bool,
    /// By source: the ends to be reached.
    pub targets: Vec<(Oid, Option<Ends>)>,
    pub complete_from_us: Option<i64>,
    pub rows_out: u64,
    /// Of the passes.
    pub shortfall: Shortfall,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TableBody {
    pub oid: Oid,
    pub watermark_us: Option<i64>,
    pub rows_seen: i64,
}

/// How one partition of a source stands.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PartitionNotes {
    pub start: i64,
    pub position: i64,
    pub counts: Counts,
    pub law: crate::exec::law::PartitionLaw,
    pub marks: super::backfill::Marks,
    pub error: Option<String>,
    pub complete_from_us: Option<i64>,
    /// The worker's, of the whole source.
    pub floor_us: Option<i64>,
}

/// Which parts are to be saved whole; the others may be, and are the first time.
#[derive(Debug, Default)]
pub struct SaveOrder {
    /// Parts whose increments have grown.
    pub grown: BTreeSet<String>,
}

impl SaveOrder {
    pub fn whole(&self, part: &str) -> bool {
        self.grown.contains(part)
    }
}

/// What one part gives for a checkpoint.
#[derive(Debug)]
pub struct PartSave {
    pub name: String,
    pub saved: Saved,
    /// Slices that have no file yet, by the node of a tail.
    pub closed: Vec<(u32, Arc<ClosedSlice>)>,
    /// By node: slices before this are forgotten.
    pub first_kept: Vec<(u32, i64)>,
    /// With all that is whole: the slices that there are, by node. Those in files that are not in `closed` stay there.
    pub slices: Option<BTreeSet<(u32, i64)>>,
    /// Nothing that was saved of it before is of use any more.
    pub renumbered: bool,
    /// Panes to be put into files when there is time, by node.
    pub panes: Vec<(u32, PaneToKeep)>,
}

impl PartSave {
    pub fn new(name: String, saved: Saved) -> PartSave {
        PartSave {
            name,
            saved,
            closed: Vec::new(),
            first_kept: Vec::new(),
            slices: None,
            renumbered: false,
            panes: Vec::new(),
        }
    }
}

/// Where a part's state is.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct PartFiles {
    /// One that is whole, then increments in their order.
    pub saved: Vec<SectionRef>,
    /// Of a part that has slices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slices: Option<KeptSlices>,
}

/// A manifest's body as it is written.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Checkpoint {
    pub body: Body,
    pub parts: BTreeMap<String, PartFiles>,
    /// The files of the slices of all parts.
    pub slice_files: Vec<SlicesFile>,
    /// By part, slices of a former format, which no file lists.
    #[serde(skip)]
    pub unlisted: BTreeMap<String, Vec<SliceEntry>>,
}

/// A source's partitions as they were saved, by partition.
#[derive(Debug, Default)]
pub struct SavedSource {
    pub partitions: BTreeMap<i32, PartitionNotes>,
    /// Ids of each partition, of a source that is deduplicated within partitions.
    pub ids: BTreeMap<i32, Vec<Saved>>,
    /// Offsets of each partition.
    pub duplicates: BTreeMap<i32, Vec<Saved>>,
    /// Ids of each worker that there was.
    pub across: Vec<Vec<Saved>>,
}

/// A store as it was saved, by the workers that there were.
#[derive(Debug)]
pub struct SavedStore {
    pub parts: Vec<SavedPart>,
}
