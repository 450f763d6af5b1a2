//! A slice that nothing changes any more, in memory or in files.

use std::any::Any;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Weak};

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, UInt32Array};
use arrow::compute::take;
use arrow::datatypes::{Field, Int64Type, Schema, UInt32Type};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::ExecError;
use super::durable::Saved;
use super::rows::batch_of;
use super::slice_batch::{SliceBatch, merge_batches};
use super::slice_cache::{Shelf, SliceCache};
use super::slice_store::StoreLayout;

/// Where a closed slice lies. It must be there for as long as somebody holds this.
pub trait SliceFile: Any + Send + Sync + fmt::Debug {
    /// What [`ClosedSlice::to_save`] gave. Errors: [`ExecError::Storage`] if it cannot be read now, [`ExecError::Saved`] if it is
    /// damaged.
    fn read(&self) -> Result<Saved, ExecError>;
}

/// New ids of a file's ids; [`GONE`] for those whose rows are left out.
pub type Renumbering = Arc<Vec<u32>>;

/// The new id of a key that is not there any more, or not here.
pub const GONE: u32 = u32::MAX;

/// A closed slice: its batch is in memory, or is read when somebody needs it, and stays as long as the cache has room.
pub struct ClosedSlice {
    pub slice: i64,
    layout: Arc<StoreLayout>,
    /// All ids are below this.
    num_keys: usize,
    rows: AtomicUsize,
    bytes: AtomicUsize,
    /// What it was before it closed.
    origin: Weak<SliceBatch>,
    /// Files of different keys; none, and the batch is pinned.
    sources: Mutex<Vec<Source>>,
    shelf: Arc<Shelf>,
    /// Held by who reads the files, so that they are read once.
    reading: Mutex<()>,
}

/// A file, and how the ids in it are called now.
#[derive(Clone)]
pub(super) struct Source {
    pub file: Arc<dyn SliceFile>,
    pub renumbering: Option<Renumbering>,
}

/// What the closed slices of a store have in common.
#[derive(Clone)]
pub(super) struct Shared {
    pub layout: Arc<StoreLayout>,
    pub cache: Arc<SliceCache>,
    /// Bytes of those that are in memory.
    pub tally: Arc<AtomicUsize>,
}

/// The notes of a slice's file.
#[derive(Serialize, Deserialize)]
struct Notes {
    slice: i64,
}

const ROWS: &str = "rows";

impl ClosedSlice {
    /// It is in no file yet.
    pub(super) fn in_memory(shared: &Shared, batch: Arc<SliceBatch>, num_keys: usize) -> ClosedSlice {
        ClosedSlice {
            slice: batch.slice,
            layout: shared.layout.clone(),
            num_keys,
            rows: AtomicUsize::new(batch.ids.len()),
            bytes: AtomicUsize::new(batch.bytes),
            origin: Arc::downgrade(&batch),
            sources: Mutex::default(),
            shelf: Shelf::with(shared.cache.clone(), shared.tally.clone(), Some(batch), true),
            reading: Mutex::default(),
        }
    }

    /// It can be had again, and is in no file: it may go at any time.
    pub(super) fn cached(shared: &Shared, batch: Arc<SliceBatch>, num_keys: usize) -> ClosedSlice {
        let (slice, rows, bytes) = (batch.slice, batch.ids.len(), batch.bytes);
        let none = ClosedSlice::in_files(shared, slice, rows, bytes, Vec::new(), num_keys);
        none.shelf.put(batch);
        none
    }

    /// It is in these files, at least one. `rows` and `bytes` are estimates where ids are renumbered.
    pub(super) fn in_files(
        shared: &Shared,
        slice: i64,
        rows: usize,
        bytes: usize,
        sources: Vec<Source>,
        num_keys: usize,
    ) -> ClosedSlice {
        ClosedSlice {
            slice,
            layout: shared.layout.clone(),
            num_keys,
            rows: AtomicUsize::new(rows),
            bytes: AtomicUsize::new(bytes),
            origin: Weak::new(),
            sources: Mutex::new(sources),
            shelf: Shelf::with(shared.cache.clone(), shared.tally.clone(), None, false),
            reading: Mutex::default(),
        }
    }

    /// The same with other ids, of a file that is still to be written. `compose` gives the new ids of what a file, with its
    /// renumbering if it has one, calls its ids.
    pub(super) fn renumbered(
        &self,
        shared: &Shared,
        renumbering: &[u32],
        num_keys: usize,
        mut compose: impl FnMut(Option<&Renumbering>) -> Renumbering,
    ) -> ClosedSlice {
        let mut sources = self.sources.lock().clone();
        for source in &mut sources {
            source.renumbering = Some(compose(source.renumbering.as_ref()));
        }
        let batch = self.shelf.get().map(|old| {
            let ids = old.ids.iter().map(|&id| renumbering[id as usize]).collect();
            Arc::new(SliceBatch::new(old.slice, ids, old.counts.clone(), old.states.clone()))
        });
        let pinned = sources.is_empty();
        ClosedSlice {
            slice: self.slice,
            layout: shared.layout.clone(),
            num_keys,
            rows: AtomicUsize::new(self.rows()),
            bytes: AtomicUsize::new(self.bytes()),
            origin: Weak::new(),
            sources: Mutex::new(sources),
            shelf: Shelf::with(shared.cache.clone(), shared.tally.clone(), batch, pinned),
            reading: Mutex::default(),
        }
    }

    pub fn rows(&self) -> usize {
        self.rows.load(Relaxed)
    }

    /// What it takes in memory, if it is there.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Relaxed)
    }

    pub fn is_in_memory(&self) -> bool {
        !self.shelf.is_empty()
    }

    /// Not read from a file.
    pub(super) fn in_memory_now(&self) -> Option<Arc<SliceBatch>> {
        self.shelf.get()
    }

    /// Whether [`ClosedSlice::batch`] gives it, as far as is known.
    pub(super) fn is_there(&self) -> bool {
        self.is_in_memory() || !self.sources.lock().is_empty()
    }

    /// Has it at hand, which is what it was before.
    pub(super) fn put(&self, batch: Arc<SliceBatch>) {
        self.shelf.put(batch);
    }

    /// Whether it is this open slice, closed.
    pub fn is(&self, open: &Arc<SliceBatch>) -> bool {
        std::ptr::eq(self.origin.as_ptr(), Arc::as_ptr(open))
    }

    /// Its rows. Cost: if they are not in memory, its files are read, once however many ask. Errors: those of
    /// [`SliceFile::read`]; the next call tries again.
    pub fn batch(&self) -> Result<Arc<SliceBatch>, ExecError> {
        if let Some(batch) = self.shelf.get() {
            return Ok(batch);
        }
        let _reading = self.reading.lock();
        if let Some(batch) = self.shelf.get() {
            return Ok(batch);
        }
        let sources = self.sources.lock().clone();
        if sources.is_empty() {
            return Err(ExecError::Invariant(format!("slice {} is neither in memory nor in a file", self.slice)));
        }
        let parts = sources.iter().map(|source| self.read(source).map(Arc::new)).collect::<Result<Vec<_>, _>>()?;
        let batch = match parts.as_slice() {
            [one] => one.clone(),
            several => merge_batches(&self.layout, several, self.num_keys)?,
        };
        self.rows.store(batch.ids.len(), Relaxed);
        self.bytes.store(batch.bytes, Relaxed);
        self.shelf.put(batch.clone());
        Ok(batch)
    }

    /// It is in this file from now on, as [`ClosedSlice::to_save`] gave it; a file that it was in before is let go of.
    pub fn keep_in(&self, file: Arc<dyn SliceFile>) {
        *self.sources.lock() = vec![Source { file, renumbering: None }];
        self.shelf.unpin();
    }

    /// Where it was put by [`ClosedSlice::keep_in`], or was loaded from as it is.
    pub fn file(&self) -> Option<Arc<dyn SliceFile>> {
        match self.sources.lock().as_slice() {
            [Source { file, renumbering: None }] => Some(file.clone()),
            _ => None,
        }
    }

    /// What belongs into its file: a section of rows (`delta` UInt32, the distance to the id before; `count` Int64; `m0`, ... the
    /// states). It is read if it is not in memory.
    pub fn to_save(&self) -> Result<Saved, ExecError> {
        self.saved(&*self.batch()?)
    }

    pub(super) fn saved(&self, batch: &SliceBatch) -> Result<Saved, ExecError> {
        let deltas = deltas(&batch.ids);
        let columns: Vec<ArrayRef> =
            [Arc::new(UInt32Array::from(deltas)) as ArrayRef, Arc::new(Int64Array::from(batch.counts.clone()))]
                .into_iter()
                .chain(batch.states.iter().cloned())
                .collect();
        let fields = [Field::new("delta", columns[0].data_type().clone(), false)]
            .into_iter()
            .chain([Field::new("count", columns[1].data_type().clone(), false)])
            .chain(state_fields(&self.layout));
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        let notes = serde_json::json!(Notes { slice: self.slice });
        let mut saved = Saved { whole: true, sections: Vec::new(), notes };
        saved.push(ROWS, batch_of(&schema, columns, batch.ids.len())?);
        Ok(saved)
    }

    fn read(&self, source: &Source) -> Result<SliceBatch, ExecError> {
        let wrong = |what: &str| ExecError::Saved { what: format!("slice {}: {what}", self.slice) };
        let saved = source.file.read()?;
        if saved.notes::<Notes>()?.slice != self.slice {
            return Err(wrong("the file holds another slice"));
        }
        let mut sections = saved.rows(ROWS);
        let (Some(rows), None) = (sections.next(), sections.next()) else { return Err(wrong("one section of rows")) };
        let columns = rows.columns();
        if columns.len() != 2 + self.layout.measures.len() {
            return Err(wrong("another number of states"));
        }
        let deltas = columns[0].as_primitive_opt::<UInt32Type>().ok_or_else(|| wrong("ids of another type"))?;
        let counts = columns[1].as_primitive_opt::<Int64Type>().ok_or_else(|| wrong("counts of another type"))?;
        let states = states_of(&self.layout, &columns[2..]).map_err(|what| wrong(&what))?;
        let mut ids = ids(deltas.values()).ok_or_else(|| wrong("ids do not ascend"))?;
        let Some(renumbering) = &source.renumbering else {
            if ids.last().is_some_and(|&id| id as usize >= self.num_keys) {
                return Err(wrong("an id without a key"));
            }
            return Ok(SliceBatch::new(self.slice, ids, counts.values().to_vec(), states));
        };
        for id in &mut ids {
            *id = *renumbering.get(*id as usize).ok_or_else(|| wrong("an id without a key"))?;
        }
        if ids.is_sorted() && ids.last() != Some(&GONE) {
            return Ok(SliceBatch::new(self.slice, ids, counts.values().to_vec(), states));
        }
        // Keys are numbered anew in their order, so that those that are left ascend.
        let order: Vec<u32> = (0..ids.len() as u32).filter(|&row| ids[row as usize] != GONE).collect();
        if !order.is_sorted_by_key(|&row| ids[row as usize]) {
            return Err(wrong("ids that are numbered anew do not ascend"));
        }
        let order = UInt32Array::from(order);
        let values = |row: &u32| counts.value(*row as usize);
        Ok(SliceBatch::new(
            self.slice,
            order.values().iter().map(|&row| ids[row as usize]).collect(),
            order.values().iter().map(values).collect(),
            states.iter().map(|column| take(column, &order, None)).collect::<Result<_, _>>()?,
        ))
    }
}

impl fmt::Debug for ClosedSlice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClosedSlice({}, {} rows, in memory: {})", self.slice, self.rows(), self.is_in_memory())
    }
}

/// The distance of each to the one before.
pub(super) fn deltas(ids: &[u32]) -> Vec<u32> {
    let mut before = 0;
    ids.iter().map(|&id| id - std::mem::replace(&mut before, id)).collect()
}

/// What [`deltas`] were made of, if that ascends.
pub(super) fn ids(deltas: &[u32]) -> Option<Vec<u32>> {
    let mut id = 0u32;
    let mut ids = Vec::with_capacity(deltas.len());
    for (row, &delta) in deltas.iter().enumerate() {
        if delta == 0 && row > 0 {
            return None;
        }
        id = id.checked_add(delta)?;
        ids.push(id);
    }
    Some(ids)
}

/// The columns of states, `m0`, ...
pub(super) fn state_fields(layout: &StoreLayout) -> impl Iterator<Item = Field> {
    layout.measures.iter().enumerate().map(|(i, m)| Field::new(format!("m{i}"), m.state_type().clone(), true))
}

/// The states in columns that were saved, if they are those of the layout.
pub(super) fn states_of(layout: &StoreLayout, columns: &[ArrayRef]) -> Result<Vec<ArrayRef>, String> {
    for (measure, column) in layout.measures.iter().zip(columns) {
        if measure.state_type() != column.data_type() {
            return Err(format!("{} is kept as {}, not {}", measure.key(), measure.state_type(), column.data_type()));
        }
    }
    columns.iter().map(owned).collect::<Result<_, _>>().map_err(|e| e.to_string())
}

/// A column that holds no more memory than it needs: what is decoded may be a piece of the whole file.
fn owned(column: &ArrayRef) -> Result<ArrayRef, arrow::error::ArrowError> {
    let needed = column.to_data().get_slice_memory_size()?;
    if column.get_array_memory_size() <= 2 * needed + 4096 {
        return Ok(column.clone());
    }
    let all: UInt32Array = (0..column.len() as u32).collect();
    take(column, &all, None)
}
