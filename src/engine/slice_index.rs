//! Which file each closed slice lies in.
//!
//! A file of slices lists them in its last section, so a manifest names files and not slices. What a list says counts unless
//!
//! - a file with a higher number lists the same slice: it was packed with others, or made anew;
//! - the part has begun anew since, and the number is below its [`KeptSlices::first_file`];
//! - the part has forgotten the slice ([`KeptSlices::first_kept`]), or is no more.
//!
//! The sections of a list are called as the parts whose slices follow each other in the file; their columns are `node` UInt32,
//! `level` UInt32, `slice` Int64, `rows` UInt64, `in_memory` UInt64 (bytes of the batch), `bytes` UInt64 and `checksum` UInt64 of the
//! slice's section. Sections lie without gaps before the list, in its order.
//!
//! A pane is kept as a slice of a higher level, by the first slice in it that has rows; with that slice it is forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, UInt32Array, UInt64Array};
use arrow::datatypes::{Int64Type, UInt32Type, UInt64Type};
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::checkpoint::PartFiles;
use super::checkpointer::try_read;
use super::former_format::SliceEntry;
use crate::exec::ExecError;
use crate::exec::closed_slice::SliceFile;
use crate::exec::durable::Saved;
use crate::exec::panes_in_files::{LEVELS, PaneEntry};
use crate::exec::store_saved::ClosedEntry;
use crate::storage::{SectionRef, Storage, StorageError, decode, encode};

/// For a file that lists nothing.
const UNLISTED: u64 = u64::MAX;
/// So many files of slices of about one size become one.
const PACK_FILES: usize = 16;
/// A larger file of slices is left as it is: those that are put together are held in memory.
const PACKED_BYTES: u64 = 16 << 20;
/// A slice is tried to be read so often.
const READS: u32 = 5;

/// A file of slices, as a manifest names it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SlicesFile {
    /// Files that are written later have higher numbers.
    pub number: u64,
    /// The list.
    pub list: SectionRef,
}

/// Which slices of a part count.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptSlices {
    /// In files with lower numbers none.
    pub first_file: u64,
    /// By node: slices before this are forgotten.
    pub first_kept: Vec<(u32, i64)>,
}

/// A slice or a pane of a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SliceKey {
    /// Of a tail; 0 for a store.
    pub node: u32,
    /// 0: a slice.
    pub level: u32,
    /// The number, of a pane that of the first slice in it that has rows.
    pub slice: i64,
}

impl SliceKey {
    pub fn of(node: u32, slice: i64) -> SliceKey {
        SliceKey { node, level: 0, slice }
    }
}

/// A slice that is to be written.
pub(super) struct SliceToWrite {
    pub part: String,
    pub key: SliceKey,
    pub rows: u64,
    /// Bytes of its batch.
    pub in_memory: u64,
    pub section: Bytes,
}

#[derive(Default)]
pub(super) struct SliceIndex {
    parts: BTreeMap<String, PartSlices>,
    /// By number.
    files: BTreeMap<u64, Listed>,
    next: u64,
    /// Files by number whose lists could not be read.
    unread: Vec<(u64, StorageError)>,
    /// Some slices are in no list yet.
    has_unlisted: bool,
    /// Slices that no part has any more, while somebody may still read them.
    leaving: Vec<Arc<SliceAt>>,
}

#[derive(Default)]
struct PartSlices {
    first_file: u64,
    first_kept: BTreeMap<u32, i64>,
    slices: BTreeMap<SliceKey, Slice>,
}

struct Slice {
    rows: u64,
    in_memory: u64,
    at: Arc<SliceAt>,
}

impl Slice {
    /// To be written once more, as it is.
    fn copy(&self, part: &str, key: SliceKey) -> Result<SliceToWrite, StorageError> {
        let place = self.at.place();
        let section = place.file.storage.read(&place.section())?;
        Ok(SliceToWrite { part: part.to_string(), key, rows: self.rows, in_memory: self.in_memory, section })
    }
}

/// How much of a file counts.
struct Listed {
    list: SectionRef,
    slices: usize,
    bytes: u64,
}

/// A slice in a file, which may move to another.
pub(super) struct SliceAt {
    place: Mutex<Place>,
}

#[derive(Clone)]
struct Place {
    file: Arc<FileName>,
    offset: u64,
    bytes: u64,
    checksum: u64,
}

struct FileName {
    storage: Storage,
    number: u64,
    name: String,
}

impl Place {
    fn section(&self) -> SectionRef {
        let Place { file, offset, bytes, checksum } = self;
        SectionRef { file: file.name.clone(), offset: *offset, bytes: *bytes, checksum: *checksum }
    }
}

impl SliceAt {
    fn place(&self) -> Place {
        self.place.lock().clone()
    }
}

impl std::fmt::Debug for SliceAt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.place().section().fmt(f)
    }
}

impl SliceFile for SliceAt {
    fn read(&self) -> Result<Saved, ExecError> {
        let mut tries = 1;
        loop {
            let place = self.place();
            match try_read(&place.file.storage, &place.section()) {
                // It has moved meanwhile.
                Err(_) if !Arc::ptr_eq(&self.place().file, &place.file) => {}
                // Where a view's changes are followed, an error ends the view: clouds have been asked for some seconds by now.
                Err(error) if error.is_retryable() && tries < READS => tries += 1,
                outcome => {
                    return outcome.map_err(|error| {
                        tracing::warn!(%error, "a slice or a pane cannot be read");
                        ExecError::Storage { what: error.to_string() }
                    });
                }
            }
        }
    }
}

impl SliceIndex {
    /// As a manifest has it. Cost: the lists are read, no slice is. Errors: those of [`Storage::read`]; a list that does not fit its
    /// file. If they may be damaged, [`SliceIndex::check`] tells of which parts they are.
    pub fn load(
        storage: &Storage,
        parts: &BTreeMap<String, PartFiles>,
        files: &[SlicesFile],
        may_be_damaged: bool,
    ) -> Result<SliceIndex, StorageError> {
        let mut index = SliceIndex::default();
        for (name, kept) in parts.iter().filter_map(|(name, files)| Some((name, files.slices.as_ref()?))) {
            let first_kept = kept.first_kept.iter().copied().collect();
            let part = PartSlices { first_file: kept.first_file, first_kept, slices: BTreeMap::new() };
            index.parts.insert(name.clone(), part);
        }
        let mut files: Vec<&SlicesFile> = files.iter().collect();
        files.sort_unstable_by_key(|file| std::cmp::Reverse(file.number));
        index.next = files.first().map_or(0, |file| file.number + 1);
        for file in files {
            match index.load_file(storage, file) {
                Err(error) if may_be_damaged && error.is_damage() => index.unread.push((file.number, error)),
                outcome => outcome?,
            }
        }
        let first_files = index.parts.values().map(|part| part.first_file).max();
        index.next = index.next.max(first_files.unwrap_or(0));
        Ok(index)
    }

    /// Those with higher numbers have been loaded.
    fn load_file(&mut self, storage: &Storage, file: &SlicesFile) -> Result<(), StorageError> {
        let corrupt = |reason: &str| StorageError::Corrupt {
            file: file.list.file.clone(),
            place: " (the list of its slices)".into(),
            reason: reason.into(),
        };
        let list = decode(&storage.read(&file.list)?)?;
        let name = FileName { storage: storage.clone(), number: file.number, name: file.list.file.clone() };
        let name = Arc::new(name);
        let mut lines = Vec::new();
        for section in &list.sections {
            let columns = Columns::of(&section.rows).ok_or_else(|| corrupt("its columns are others"))?;
            lines.extend((0..section.rows.num_rows()).map(|row| (&section.name, columns.line(row))));
        }
        let mut listed = Listed { list: file.list.clone(), slices: 0, bytes: 0 };
        let mut offset = file.list.offset;
        for (part, line) in lines.into_iter().rev() {
            offset = offset.checked_sub(line.bytes).ok_or_else(|| corrupt("its slices are larger than the file"))?;
            let Some(part) = self.parts.get_mut(part) else { continue };
            if file.number < part.first_file || part.is_forgotten(line.key) || part.slices.contains_key(&line.key) {
                continue;
            }
            listed.slices += 1;
            listed.bytes += line.bytes;
            let place = Place { file: name.clone(), offset, bytes: line.bytes, checksum: line.checksum };
            let at = Arc::new(SliceAt { place: Mutex::new(place) });
            part.slices.insert(line.key, Slice { rows: line.rows, in_memory: line.in_memory, at });
        }
        if listed.slices > 0 {
            self.files.insert(file.number, listed);
        }
        Ok(())
    }

    /// Slices of parts that are known, which lie in files without lists: they are read from there until [`SliceIndex::list_all`].
    pub fn add_unlisted(&mut self, storage: &Storage, unlisted: &BTreeMap<String, Vec<SliceEntry>>) {
        for (name, entries) in unlisted {
            let Some(part) = self.parts.get_mut(name) else { continue };
            self.has_unlisted = true;
            for SliceEntry { node, slice, rows, bytes, at } in entries.iter().cloned() {
                let file = Arc::new(FileName { storage: storage.clone(), number: UNLISTED, name: at.file });
                let place = Place { file, offset: at.offset, bytes: at.bytes, checksum: at.checksum };
                let at = Arc::new(SliceAt { place: Mutex::new(place) });
                part.slices.insert(SliceKey::of(node, slice), Slice { rows, in_memory: bytes, at });
            }
        }
    }

    /// Moves slices that are in no list into files of about so many bytes that list them. What was moved before an error stays so.
    pub fn list_all(&mut self, storage: &Storage, file_bytes: u64) -> Result<(), StorageError> {
        while self.has_unlisted {
            let (mut group, mut bytes) = (Vec::new(), 0);
            for (part, key, slice) in self.lying_in(|file| file == UNLISTED) {
                group.push(slice.copy(part, key)?);
                bytes += slice.at.place().bytes;
                if bytes >= file_bytes {
                    break;
                }
            }
            match group.is_empty() {
                true => self.has_unlisted = false,
                false => drop(self.write(storage, &group)?),
            }
        }
        Ok(())
    }

    /// Those whose file is one of these.
    fn lying_in(&self, is_one: impl Fn(u64) -> bool) -> impl Iterator<Item = (&str, SliceKey, &Slice)> {
        let all = self.parts.iter().flat_map(|(name, part)| part.slices.iter().map(move |(&key, s)| (&**name, key, s)));
        all.filter(move |(.., slice)| is_one(slice.at.place.lock().file.number))
    }

    /// What a store is given of a part's node.
    pub fn entries(&self, part: &str, node: u32) -> Vec<ClosedEntry> {
        self.of_level(part, node, 0).collect()
    }

    /// Reads all slices of a part; of panes there is no need.
    pub fn check(&self, part: &str) -> Result<(), StorageError> {
        let Some(known) = self.parts.get(part) else { return Ok(()) };
        // Of which parts its slices were is told by its list alone.
        match self.unread.iter().find(|(number, _)| *number >= known.first_file) {
            Some((_, error)) => Err(error.clone()),
            None => known.slices.iter().filter(|(key, _)| key.level == 0).try_for_each(|(_, slice)| {
                let place = slice.at.place();
                try_read(&place.file.storage, &place.section()).map(drop)
            }),
        }
    }

    /// Its panes.
    pub fn panes(&self, part: &str, node: u32) -> Vec<PaneEntry> {
        let of = |level| self.of_level(part, node, level).map(move |entry| PaneEntry { level, entry });
        (1..=LEVELS).flat_map(of).collect()
    }

    fn of_level(&self, part: &str, node: u32, level: u32) -> impl Iterator<Item = ClosedEntry> {
        let slices = self.parts.get(part).map(|part| part.slices.range(range(node, level, i64::MAX)));
        slices.into_iter().flatten().map(|(key, known)| ClosedEntry {
            slice: key.slice,
            rows: known.rows as usize,
            bytes: known.in_memory as usize,
            file: known.at.clone() as Arc<dyn SliceFile>,
        })
    }

    /// What a manifest says of a part's slices.
    pub fn kept(&self, part: &str) -> Option<KeptSlices> {
        let part = self.parts.get(part)?;
        let first_kept = part.first_kept.iter().map(|(&node, &first)| (node, first)).collect();
        Some(KeptSlices { first_file: part.first_file, first_kept })
    }

    /// The files that a manifest names for them.
    pub fn files(&self) -> Vec<SlicesFile> {
        self.files.iter().map(|(&number, file)| SlicesFile { number, list: file.list.clone() }).collect()
    }

    /// Of slices that have left, while somebody may read them.
    pub fn leaving_files(&mut self) -> BTreeSet<String> {
        self.leaving.retain(|at| Arc::strong_count(at) > 1);
        self.leaving.iter().map(|at| at.place().file.name.clone()).collect()
    }

    /// Forgets parts that are no more.
    pub fn retain(&mut self, live: &BTreeSet<String>) {
        let gone: Vec<String> = self.parts.keys().filter(|name| !live.contains(*name)).cloned().collect();
        for name in gone {
            let part = self.parts.remove(&name).unwrap_or_default();
            part.slices.into_values().for_each(|slice| self.leaves(slice));
        }
    }

    pub fn forget(&mut self, part: &str, node: u32, first_kept: i64) {
        let Some(known) = self.parts.get_mut(part) else { return };
        let first = known.first_kept.entry(node).or_insert(i64::MIN);
        if *first >= first_kept {
            return;
        }
        *first = first_kept;
        let of = |level| known.slices.range(range(node, level, first_kept)).map(|(key, _)| *key);
        let keys: Vec<SliceKey> = (0..=LEVELS).flat_map(of).collect();
        let gone: Vec<Slice> = keys.iter().filter_map(|key| known.slices.remove(key)).collect();
        gone.into_iter().for_each(|slice| self.leaves(slice));
    }

    /// A part that is saved whole has these slices, by node, and no others, and has forgotten what lies before `first_kept`. Those in
    /// `written` come anew. Returns slices that must be written once more, with `written`, as what their files say will not count any
    /// more. Errors: those of reading them; nothing has changed then.
    pub fn begin_anew(
        &mut self,
        name: &str,
        there: &BTreeSet<(u32, i64)>,
        written: &BTreeSet<(u32, i64)>,
        first_kept: &[(u32, i64)],
        panes_stay: bool,
    ) -> Result<Vec<SliceToWrite>, StorageError> {
        let next = self.next;
        let new = || PartSlices { first_file: next, ..PartSlices::default() };
        let part = self.parts.entry(name.to_string()).or_insert_with(new);
        let first_kept: BTreeMap<u32, i64> = first_kept.iter().copied().collect();
        let first = |node: &u32| first_kept.get(node).copied().unwrap_or(i64::MIN);
        // What was forgotten is in lists still.
        let remembers = part.first_kept.iter().any(|(node, before)| first(node) < *before);
        let stays = |&SliceKey { node, level, slice }: &SliceKey| match level {
            0 => there.contains(&(node, slice)) && !written.contains(&(node, slice)),
            _ => panes_stay && slice >= first(&node),
        };
        if !remembers && part.slices.keys().all(|key| stays(key) || key.slice < first(&key.node)) {
            return Ok(Vec::new());
        }
        let copies = part.slices.iter().filter(|(key, _)| stays(key)).map(|(&key, slice)| slice.copy(name, key));
        let copies = copies.collect::<Result<Vec<_>, StorageError>>()?;
        let (stay, go): (BTreeMap<_, _>, BTreeMap<_, _>) =
            std::mem::take(&mut part.slices).into_iter().partition(|(key, _)| stays(key));
        *part = PartSlices { first_file: next, first_kept, slices: stay };
        go.into_values().for_each(|slice| self.leaves(slice));
        Ok(copies)
    }

    /// Writes slices into one file. Returns where they are; those that are known move there.
    pub fn write(&mut self, storage: &Storage, slices: &[SliceToWrite]) -> Result<Written, StorageError> {
        let number = self.next;
        let lines = slices.iter().map(|slice| (slice.part.as_str(), Line::of(slice)));
        let list = list(&lines.collect::<Vec<_>>())?;
        let sections: Vec<Bytes> = slices.iter().map(|slice| slice.section.clone()).chain([list]).collect();
        let mut places = storage.write(&sections)?;
        let list = places.pop().expect("a place for each section");
        let written = sections.iter().map(|section| section.len() as u64).sum();
        self.next += 1;
        let file = Arc::new(FileName { storage: storage.clone(), number, name: list.file.clone() });
        self.files.insert(number, Listed { list, slices: 0, bytes: 0 });
        let mut at = Vec::with_capacity(slices.len());
        for (slice, section) in slices.iter().zip(places) {
            let place =
                Place { file: file.clone(), offset: section.offset, bytes: section.bytes, checksum: section.checksum };
            let part = self
                .parts
                .entry(slice.part.clone())
                .or_insert_with(|| PartSlices { first_file: number, ..PartSlices::default() });
            if part.is_forgotten(slice.key) {
                // It is in the file for nobody.
                at.push(Arc::new(SliceAt { place: Mutex::new(place) }));
                continue;
            }
            let known = part.slices.get(&slice.key).map(|known| known.at.clone());
            let there = known.unwrap_or_else(|| Arc::new(SliceAt { place: Mutex::new(place.clone()) }));
            part.slices.insert(slice.key, Slice { rows: slice.rows, in_memory: slice.in_memory, at: there.clone() });
            let before = std::mem::replace(&mut *there.place.lock(), place.clone());
            if before.file.number != number {
                self.uncount(&before);
            }
            let listed = self.files.get_mut(&number).expect("it was put in above");
            listed.slices += 1;
            listed.bytes += place.bytes;
            at.push(there);
        }
        if self.files.get(&number).is_some_and(|file| file.slices == 0) {
            self.files.remove(&number);
            storage.discard(&file.name);
        }
        Ok(Written { at, bytes: written })
    }

    /// Puts small files together.
    pub fn pack(&mut self, storage: &Storage) -> Result<(), StorageError> {
        let mut by_size: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
        for (&number, file) in self.files.iter().filter(|(_, file)| file.bytes < PACKED_BYTES) {
            by_size.entry(file.bytes.max(1).ilog2() / PACK_FILES.ilog2()).or_default().push(number);
        }
        for files in by_size.into_values().filter(|files| files.len() >= PACK_FILES) {
            let files: BTreeSet<u64> = files.into_iter().take(PACK_FILES).collect();
            let slices = self.lying_in(|file| files.contains(&file));
            let slices = slices.map(|(part, key, slice)| slice.copy(part, key)).collect::<Result<Vec<_>, _>>()?;
            self.write(storage, &slices)?;
        }
        Ok(())
    }

    fn leaves(&mut self, slice: Slice) {
        let place = slice.at.place();
        self.uncount(&place);
        self.leaving.push(slice.at);
    }

    fn uncount(&mut self, place: &Place) {
        let number = place.file.number;
        let Some(file) = self.files.get_mut(&number) else { return };
        file.slices -= 1;
        file.bytes -= place.bytes;
        if file.slices == 0 {
            self.files.remove(&number);
        }
    }
}

/// What [`SliceIndex::write`] has done.
pub(super) struct Written {
    /// Of each slice.
    pub at: Vec<Arc<SliceAt>>,
    pub bytes: u64,
}

impl PartSlices {
    fn is_forgotten(&self, key: SliceKey) -> bool {
        self.first_kept.get(&key.node).is_some_and(|first| key.slice < *first)
    }
}

/// Those of one level before a slice.
fn range(node: u32, level: u32, before: i64) -> Range<SliceKey> {
    SliceKey { node, level, slice: i64::MIN }..SliceKey { node, level, slice: before }
}

/// What a list says of a slice.
#[derive(Debug, Clone, Copy)]
struct Line {
    key: SliceKey,
    rows: u64,
    in_memory: u64,
    bytes: u64,
    checksum: u64,
}

impl Line {
    fn of(slice: &SliceToWrite) -> Line {
        Line {
            key: slice.key,
            rows: slice.rows,
            in_memory: slice.in_memory,
            bytes: slice.section.len() as u64,
            checksum: SectionRef::checksum_of(&slice.section),
        }
    }
}

/// The columns of a section of a list.
struct Columns<'a> {
    nodes: &'a [u32],
    levels: &'a [u32],
    slices: &'a [i64],
    /// Rows, bytes in memory, bytes, checksums.
    figures: [&'a [u64]; 4],
}

const COLUMNS: [&str; 7] = ["node", "level", "slice", "rows", "in_memory", "bytes", "checksum"];

impl<'a> Columns<'a> {
    fn of(rows: &'a RecordBatch) -> Option<Columns<'a>> {
        let [nodes, levels, slices, figures @ ..] = rows.columns() else { return None };
        let figure = |i: usize| Some(&**figures.get(i)?.as_primitive_opt::<UInt64Type>()?.values());
        Some(Columns {
            nodes: nodes.as_primitive_opt::<UInt32Type>()?.values(),
            levels: levels.as_primitive_opt::<UInt32Type>()?.values(),
            slices: slices.as_primitive_opt::<Int64Type>()?.values(),
            figures: [figure(0)?, figure(1)?, figure(2)?, figure(3)?],
        })
    }

    fn line(&self, row: usize) -> Line {
        let [rows, in_memory, bytes, checksum] = self.figures.map(|column| column[row]);
        let key = SliceKey { node: self.nodes[row], level: self.levels[row], slice: self.slices[row] };
        Line { key, rows, in_memory, bytes, checksum }
    }
}

/// The bytes of a list: a section for each run of slices of one part.
fn list(lines: &[(&str, Line)]) -> Result<Bytes, StorageError> {
    let wrong = |error: arrow::error::ArrowError| StorageError::Invariant(format!("a list of slices: {error}"));
    let mut saved = Saved { whole: true, ..Saved::default() };
    for run in lines.chunk_by(|a, b| a.0 == b.0) {
        let figure = |of: fn(&Line) -> u64| {
            Arc::new(run.iter().map(|(_, line)| Some(of(line))).collect::<UInt64Array>()) as ArrayRef
        };
        let columns: [ArrayRef; 7] = [
            Arc::new(UInt32Array::from_iter_values(run.iter().map(|(_, line)| line.key.node))),
            Arc::new(UInt32Array::from_iter_values(run.iter().map(|(_, line)| line.key.level))),
            Arc::new(Int64Array::from_iter_values(run.iter().map(|(_, line)| line.key.slice))),
            figure(|line| line.rows),
            figure(|line| line.in_memory),
            figure(|line| line.bytes),
            figure(|line| line.checksum),
        ];
        saved.push(run[0].0, RecordBatch::try_from_iter(COLUMNS.into_iter().zip(columns)).map_err(wrong)?);
    }
    encode(&saved)
}

#[cfg(test)]
#[path = "slice_index_tests.rs"]
mod tests;
