//! What did not count: late rows, dead letters and duplicates, as long as they are listed.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::checkpoint::SaveOrder;
use super::kept_rows::KeptRow;
use super::reconciliations::Reconciliations;
use super::verdicts::{DeadLetter, DuplicateRow, LateRow};
use crate::catalog::Oid;
use crate::exec::ExecError;
use crate::exec::dedup::Place;
use crate::exec::durable::Saved;
use crate::exec::saved_columns::{since_whole, wrong};

/// Late rows and dead letters of a source stay this long and no longer (SEMANTICS 1.6).
const KEPT_US: i64 = 7 * 86_400_000_000;
/// Or as long as they take no more memory than this.
const KEPT_BYTES: usize = 1 << 30;

const CORRECTIONS: &str = "kept/corrections";

/// What did not count, in chunks that readers share; and what was found wrong.
#[derive(Debug, Default)]
pub struct Kept {
    late: Mutex<List<LateRow>>,
    dead: Mutex<List<DeadLetter>>,
    duplicates: Mutex<List<DuplicateRow>>,
    pub reconciliations: Reconciliations,
    corrections: Mutex<Vec<Correction>>,
}

/// Slices that were replaced.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Correction {
    pub at_us: i64,
    pub tick: (u64, u64),
    /// The view that was found wrong, and how many of its rows.
    pub schema: String,
    pub view: String,
    pub rows: u64,
    /// The event times of the slices; `None` without windows.
    pub from_us: Option<i64>,
    pub to_us: Option<i64>,
    /// All views of the store.
    pub changed: Vec<String>,
    /// Those of them that had shown the windows for good.
    pub finals: Vec<String>,
}

/// Rows of one kind, by source.
#[derive(Debug)]
struct List<T> {
    rings: BTreeMap<Oid, Ring<T>>,
    /// What was saved does not hold any more.
    changed: bool,
}

#[derive(Debug)]
struct Ring<T> {
    chunks: VecDeque<Chunk<T>>,
    bytes: usize,
    /// Chunks at the end that have not been saved.
    unsaved: usize,
}

#[derive(Debug)]
struct Chunk<T> {
    arrived_us: i64,
    bytes: usize,
    rows: Arc<Vec<T>>,
}

/// What is kept of a record.
pub(super) trait Listed: KeptRow + Clone {
    const PART: &'static str;
    fn source(&self) -> Oid;
    fn bytes(&self) -> usize;
}

impl Listed for LateRow {
    const PART: &'static str = "kept/late";

    fn source(&self) -> Oid {
        self.source
    }

    fn bytes(&self) -> usize {
        self.payload.len() + size_of::<LateRow>()
    }
}

impl Listed for DeadLetter {
    const PART: &'static str = "kept/dead";

    fn source(&self) -> Oid {
        self.source
    }

    fn bytes(&self) -> usize {
        self.payload.len() + self.reason.len() + size_of::<DeadLetter>()
    }
}

impl Listed for DuplicateRow {
    const PART: &'static str = "kept/duplicates";

    fn source(&self) -> Oid {
        self.source
    }

    fn bytes(&self) -> usize {
        self.of.id.len() + size_of::<DuplicateRow>()
    }
}

impl<T> Default for List<T> {
    /// Nothing of it has been saved.
    fn default() -> Self {
        List { rings: BTreeMap::new(), changed: true }
    }
}

impl<T> Default for Ring<T> {
    fn default() -> Self {
        Ring { chunks: VecDeque::new(), bytes: 0, unsaved: 0 }
    }
}

impl<T: Listed> Ring<T> {
    fn push(&mut self, now_us: i64, rows: Vec<T>) {
        if !rows.is_empty() {
            let bytes = rows.iter().map(T::bytes).sum();
            self.bytes += bytes;
            self.chunks.push_back(Chunk { arrived_us: now_us, bytes, rows: Arc::new(rows) });
            self.unsaved += 1;
        }
        while let Some(first) = self.chunks.front() {
            if self.bytes <= KEPT_BYTES && now_us.saturating_sub(first.arrived_us) <= KEPT_US {
                break;
            }
            self.bytes -= first.bytes;
            self.chunks.pop_front();
        }
        self.unsaved = self.unsaved.min(self.chunks.len());
    }

    /// Takes rows off, the newest first: those that change come soon after they were listed. True if one had been saved.
    fn take_off(&mut self, mut left: usize, mut goes: impl FnMut(&T) -> bool) -> bool {
        let mut saved = false;
        for (place, chunk) in self.chunks.iter_mut().rev().enumerate() {
            if left == 0 {
                break;
            }
            let gone: Vec<usize> = (0..chunk.rows.len()).filter(|&row| goes(&chunk.rows[row])).collect();
            let freed: usize = gone.iter().map(|&row| chunk.rows[row].bytes()).sum();
            for &row in gone.iter().rev() {
                Arc::make_mut(&mut chunk.rows).remove(row);
            }
            left -= gone.len();
            chunk.bytes -= freed;
            self.bytes -= freed;
            saved |= !gone.is_empty() && place >= self.unsaved;
        }
        saved
    }
}

impl<T: Listed> List<T> {
    fn add(&mut self, now_us: i64, rows: Vec<T>) {
        let mut by_source: BTreeMap<Oid, Vec<T>> = BTreeMap::new();
        for row in rows {
            by_source.entry(row.source()).or_default().push(row);
        }
        for (source, rows) in by_source {
            self.rings.entry(source).or_default().push(now_us, rows);
        }
    }

    fn forget(&mut self, source: Oid) {
        self.changed |= self.rings.remove(&source).is_some();
    }

    fn save(&mut self, whole: bool) -> Result<Saved, ExecError> {
        let whole = std::mem::take(&mut self.changed) || whole;
        let mut saved = Saved { whole, ..Saved::default() };
        for ring in self.rings.values_mut() {
            let skipped = if whole { 0 } else { ring.chunks.len() - ring.unsaved };
            let batches: Vec<RecordBatch> =
                ring.chunks.iter().skip(skipped).map(Chunk::columns).collect::<Result<_, _>>()?;
            if let Some(first) = batches.first() {
                saved.push("rows", concat_batches(&first.schema(), &batches)?);
            }
            ring.unsaved = 0;
        }
        if whole && saved.sections.is_empty() {
            saved.notes = json!({});
        }
        Ok(saved)
    }

    fn load(&mut self, saves: &[Saved]) -> Result<(), ExecError> {
        for rows in since_whole(saves)?.iter().flat_map(|saved| saved.rows("rows")) {
            let last = rows.num_columns().checked_sub(1).ok_or_else(|| wrong(T::PART))?;
            let arrived = rows.column(last).as_primitive_opt::<Int64Type>().ok_or_else(|| wrong(T::PART))?.clone();
            let columns: Vec<usize> = (0..last).collect();
            let mut rows = T::rows(&rows.project(&columns)?)?.into_iter();
            for run in arrived.values().chunk_by(|a, b| a == b) {
                self.add(run[0], rows.by_ref().take(run.len()).collect());
            }
        }
        self.rings.values_mut().for_each(|ring| ring.unsaved = 0);
        self.changed = false;
        Ok(())
    }
}

impl<T: Listed> Chunk<T> {
    /// The rows, and behind them when they came.
    fn columns(&self) -> Result<RecordBatch, ExecError> {
        let rows = T::columns(&self.rows)?;
        let mut fields: Vec<_> = rows.schema().fields().iter().cloned().collect();
        fields.push(Arc::new(Field::new("arrived_us", DataType::Int64, false)));
        let arrived: ArrayRef = Arc::new(Int64Array::from_value(self.arrived_us, rows.num_rows()));
        let columns = rows.columns().iter().cloned().chain([arrived]).collect();
        Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
    }
}

impl Kept {
    pub fn add(&self, now_us: i64, late: Vec<LateRow>, dead: Vec<DeadLetter>) {
        self.late.lock().add(now_us, late);
        self.dead.lock().add(now_us, dead);
    }

    /// What a source or table that is dropped has left.
    pub fn forget(&self, oid: Oid) {
        self.late.lock().forget(oid);
        self.dead.lock().forget(oid);
        self.duplicates.lock().forget(oid);
    }

    /// Lists duplicates, and takes those off the list that are none any more.
    pub fn add_duplicates(&self, now_us: i64, duplicates: Vec<DuplicateRow>, kept_after_all: &[(Oid, Place)]) {
        let mut by_source: BTreeMap<Oid, HashSet<Place>> = BTreeMap::new();
        for &(source, place) in kept_after_all {
            by_source.entry(source).or_default().insert(place);
        }
        let mut list = self.duplicates.lock();
        for (source, mut places) in by_source {
            let ring = list.rings.get_mut(&source);
            let saved = ring.is_some_and(|ring| ring.take_off(places.len(), |row| places.remove(&row.place)));
            list.changed |= saved;
        }
        list.add(now_us, duplicates);
    }

    pub fn note_correction(&self, correction: Correction) {
        self.corrections.lock().push(correction);
    }

    pub fn corrections(&self) -> Vec<Correction> {
        self.corrections.lock().clone()
    }

    /// Every chunk with when it arrived, by source.
    pub fn late(&self) -> Vec<(i64, Arc<Vec<LateRow>>)> {
        all(&self.late)
    }

    pub fn dead(&self) -> Vec<(i64, Arc<Vec<DeadLetter>>)> {
        all(&self.dead)
    }

    pub fn duplicates(&self) -> Vec<(i64, Arc<Vec<DuplicateRow>>)> {
        all(&self.duplicates)
    }

    /// By part.
    pub fn save(&self, order: &SaveOrder) -> Result<Vec<(String, Saved)>, ExecError> {
        let notes = serde_json::to_value(self.corrections()).map_err(|error| wrong(error.to_string()))?;
        let corrections = (CORRECTIONS.to_string(), Saved { whole: true, notes, ..Saved::default() });
        Ok(vec![saved(&self.late, order)?, saved(&self.dead, order)?, saved(&self.duplicates, order)?, corrections])
    }

    /// What [`Kept::save`] gave, by part.
    pub fn load(&self, parts: &[(String, Vec<Saved>)]) -> Result<(), ExecError> {
        for (part, saves) in parts.iter().filter(|(_, saves)| !saves.is_empty()) {
            match part.as_str() {
                LateRow::PART => self.late.lock().load(saves)?,
                DeadLetter::PART => self.dead.lock().load(saves)?,
                DuplicateRow::PART => self.duplicates.lock().load(saves)?,
                CORRECTIONS => *self.corrections.lock() = saves[saves.len() - 1].notes()?,
                other => return Err(wrong(format!("part {other}"))),
            }
        }
        Ok(())
    }
}

fn all<T>(list: &Mutex<List<T>>) -> Vec<(i64, Arc<Vec<T>>)> {
    let list = list.lock();
    list.rings.values().flat_map(|ring| &ring.chunks).map(|chunk| (chunk.arrived_us, chunk.rows.clone())).collect()
}

fn saved<T: Listed>(list: &Mutex<List<T>>, order: &SaveOrder) -> Result<(String, Saved), ExecError> {
    Ok((T::PART.to_string(), list.lock().save(order.whole(T::PART))?))
}
