//! The rows of a table or of a view, kept up to date by deltas and read as immutable snapshots.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::row::{Row, Rows};
use hashbrown::{HashMap, HashTable};
use serde::{Deserialize, Serialize};

use super::durable::Saved;
use super::rows::{Net, RowCodec, batch_of, describe_row, gather_rows, take_rows};
use super::saved_columns::{only_sections, since_whole, weighted_rows, weighted_section, wrong};
use super::unsaved::Unsaved;
use super::{Delta, ExecError};

/// Rows go into segments of at most this many, so that a change copies at most one segment's weights.
const SEGMENT_ROWS: usize = 32_768;
/// This many segments of one size (powers of it) become one of the next.
const FAN_IN: usize = 8;

/// Rows with weights, in columns.
///
/// Rows stand in immutable batches, *segments*; what changes is only how often each row counts. A row taken away gets
/// weight 0 where it is, a new row goes into a new segment, and segments of like size, or half empty, are rewritten together.
/// So a delta costs some 100 ns a row and the rewriting a small multiple of that, whatever the size of the whole, and a
/// snapshot shares every segment: it copies the weights (8 bytes a row) of those that were touched since the one before.
///
/// Memory a row, besides its columns: its bytes as a key, some 20 bytes of index, 8 of weight in touched segments; an
/// append-only arrangement has none of these.
pub struct Arrangement {
    schema: SchemaRef,
    index: Option<Index>,
    segments: Vec<Option<Segment>>,
    free: Vec<u32>,
    rows: usize,
    snapshot: Option<Arc<Snapshot>>,
    unsaved: Option<Unsaved>,
}

/// How many rows there are once a save has been taken in.
#[derive(Serialize, Deserialize)]
struct Notes {
    rows: u64,
}

/// Where a row stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct At {
    segment: u32,
    row: u32,
}

struct Index {
    /// What a row is found by: the primary key, or all columns.
    key: RowCodec,
    whole: RowCodec,
    unique: bool,
    /// Hashes stand beside places so that growing touches no row.
    table: HashTable<(u64, At)>,
    hasher: ahash::RandomState,
}

struct Segment {
    batch: RecordBatch,
    /// The rows' keys; none where nothing is ever looked up.
    keys: Option<Rows>,
    /// None while every row counts once.
    weights: Option<Arc<Vec<i64>>>,
    /// Rows whose weight is not 0.
    live: usize,
}

/// What a delta does to an arrangement, found possible.
#[derive(Default)]
struct Edits {
    weights: Vec<(u64, At, i64)>,
    /// Row of the delta, weight.
    added: Vec<(u32, i64)>,
}

impl Arrangement {
    /// Any row any number of times. Fails for a column type without an order.
    pub fn multiset(schema: SchemaRef) -> Result<Self, ExecError> {
        let columns = (0..schema.fields().len()).collect();
        Self::indexed(schema, columns, false)
    }

    /// At most one row for each value of the key columns.
    pub fn keyed(schema: SchemaRef, key: Vec<usize>) -> Result<Self, ExecError> {
        Self::indexed(schema, key, true)
    }

    /// Rows that are never taken back: a list.
    pub fn append_only(schema: SchemaRef) -> Self {
        Arrangement {
            schema,
            index: None,
            segments: Vec::new(),
            free: Vec::new(),
            rows: 0,
            snapshot: None,
            unsaved: None,
        }
    }

    fn indexed(schema: SchemaRef, key: Vec<usize>, unique: bool) -> Result<Self, ExecError> {
        let index = Index {
            key: RowCodec::of(&schema, key)?,
            whole: RowCodec::whole(&schema)?,
            unique,
            table: HashTable::new(),
            hasher: ahash::RandomState::new(),
        };
        Ok(Arrangement { index: Some(index), ..Self::append_only(schema) })
    }

    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Rows, each as often as it counts.
    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn bytes(&self) -> usize {
        let index = self.index.as_ref().map_or(0, |index| index.table.capacity() * size_of::<(u64, At)>());
        index + self.segments.iter().flatten().map(Segment::bytes).sum::<usize>()
    }

    /// Adds the delta, all of it or, with an error, nothing. The errors are broken invariants: a row taken away more often
    /// than it is there, two rows of one key.
    pub fn apply(&mut self, delta: &Delta) -> Result<(), ExecError> {
        if delta.is_empty() {
            return Ok(());
        }
        let (edits, keys) = match &self.index {
            None => (Self::appended(delta)?, None),
            Some(index) => {
                let net = Net::of(&index.whole, delta)?;
                if index.unique {
                    let keys = index.key.encode(&delta.rows)?;
                    (self.edits_by_key(index, delta, &net, &keys)?, Some(keys))
                } else {
                    (self.edits_by_row(index, delta, &net)?, Some(net.rows))
                }
            }
        };
        if edits.weights.is_empty() && edits.added.is_empty() {
            return Ok(());
        }
        self.snapshot = None;
        for (hash, at, weight) in edits.weights {
            self.set_weight(hash, at, weight);
        }
        for added in edits.added.chunks(SEGMENT_ROWS) {
            let whole = added.len() == delta.num_rows();
            let picked = || added.iter().map(|&(row, _)| row).collect();
            let batch = if whole { delta.rows.clone() } else { take_rows(&delta.rows, picked())? };
            let batch = batch_of(&self.schema, batch.columns().to_vec(), batch.num_rows())?;
            let weights = added.iter().map(|&(_, weight)| weight).collect();
            let keys = keys.as_ref().map(|keys| added.iter().map(|&(row, _)| keys.row(row as usize)));
            self.add_segment(batch, weights, keys);
        }
        if let Some(unsaved) = &mut self.unsaved {
            unsaved.add(delta, self.rows)?;
        }
        self.tidy()
    }

    /// From now on [`Arrangement::save`] gives what has changed.
    pub fn track_saves(&mut self) {
        self.unsaved.get_or_insert_with(|| Unsaved::new(true, self.index.is_none()));
    }

    /// See [`super::durable`]: the net delta since the last call, or all rows with their weights.
    pub fn save(&mut self, whole: bool) -> Result<Saved, ExecError> {
        let changed = self.unsaved.as_mut().map(|unsaved| unsaved.take(whole, &self.schema)).transpose()?.flatten();
        let mut saved = Saved { whole: changed.is_none(), ..Saved::default() };
        let deltas = match changed {
            Some(delta) if delta.is_empty() => Vec::new(),
            Some(delta) => vec![delta],
            None => self.segments.iter().flatten().map(Segment::rows).collect::<Result<_, _>>()?,
        };
        for delta in &deltas {
            saved.push("rows", weighted_section(delta)?);
        }
        if !saved.is_empty() {
            saved.notes = serde_json::json!(Notes { rows: self.rows as u64 });
        }
        self.unsaved.iter_mut().for_each(Unsaved::given);
        Ok(saved)
    }

    /// Puts what was saved into an arrangement that was just made, and tracks what changes from there on.
    pub fn load(&mut self, saves: &[Saved]) -> Result<(), ExecError> {
        for saved in since_whole(saves)?.iter().filter(|saved| !saved.is_empty()) {
            only_sections(saved, &["rows"])?;
            for rows in saved.rows("rows") {
                let delta = weighted_rows("rows", rows, &self.schema)?;
                self.apply(&delta).map_err(|error| wrong(format!("section rows: {error}")))?;
            }
            let Notes { rows } = saved.notes()?;
            if rows != self.rows as u64 {
                return Err(wrong(format!("{rows} rows were saved, {} are there", self.rows)));
            }
        }
        self.unsaved = Some(Unsaved::new(false, self.index.is_none()));
        Ok(())
    }

    /// For each key (the columns of the index in its order) where its row stands.
    pub fn find(&self, keys: &Rows) -> Vec<Option<At>> {
        let find =
            |index: &Index| keys.iter().map(|key| self.find_one(index, index.hash(key.data()), key.data())).collect();
        self.index.as_ref().map(find).unwrap_or_else(|| vec![None; keys.num_rows()])
    }

    /// What rows are found by; None if append-only.
    pub fn key(&self) -> Option<&RowCodec> {
        self.index.as_ref().map(|index| &index.key)
    }

    /// How often the row counts.
    pub fn weight(&self, at: At) -> i64 {
        self.segment(at).weight(at.row as usize)
    }

    /// The rows at these places, in their order.
    pub fn fetch(&self, places: &[At]) -> Result<RecordBatch, ArrowError> {
        let mut batches: Vec<&RecordBatch> = Vec::new();
        let mut position: HashMap<u32, usize> = HashMap::new();
        let mut picked = Vec::with_capacity(places.len());
        for at in places {
            let batch = *position.entry(at.segment).or_insert_with(|| {
                batches.push(&self.segment(*at).batch);
                batches.len() - 1
            });
            picked.push((batch, at.row as usize));
        }
        gather_rows(&self.schema, &batches, &picked)
    }

    /// The rows as they are now. Without a change since the last call it is the same one.
    pub fn snapshot(&mut self) -> Arc<Snapshot> {
        let fresh = || {
            let part = |segment: &Segment| (segment.batch.clone(), segment.weights.clone());
            let parts = self.segments.iter().flatten().map(part).collect();
            Arc::new(Snapshot { schema: Arc::clone(&self.schema), parts, rows: self.rows })
        };
        Arc::clone(self.snapshot.get_or_insert_with(fresh))
    }

    fn appended(delta: &Delta) -> Result<Edits, ExecError> {
        let added: Vec<(u32, i64)> = (0..delta.num_rows()).map(|row| (row as u32, delta.weight(row))).collect();
        match added.iter().find(|&&(_, weight)| weight < 0) {
            Some(&(row, weight)) => Err(negative(delta, row, weight)),
            None => {
                Ok(Edits { weights: Vec::new(), added: added.into_iter().filter(|&(_, weight)| weight > 0).collect() })
            }
        }
    }

    fn edits_by_row(&self, index: &Index, delta: &Delta, net: &Net) -> Result<Edits, ExecError> {
        let mut edits = Edits::default();
        for &(row, change) in &net.entries {
            let hash = index.hash(net.bytes(row));
            let found = self.find_one(index, hash, net.bytes(row));
            let weight = found.map_or(0, |at| self.weight(at)) + change;
            match found {
                _ if weight < 0 => {
                    return Err(negative(delta, row, weight));
                }
                Some(at) => edits.weights.push((hash, at, weight)),
                None => edits.added.push((row, weight)),
            }
        }
        Ok(edits)
    }

    fn edits_by_key(&self, index: &Index, delta: &Delta, net: &Net, keys: &Rows) -> Result<Edits, ExecError> {
        let mut edits = Edits::default();
        let removed: Vec<(u32, i64)> = net.entries.iter().copied().filter(|&(_, change)| change < 0).collect();
        for &(row, change) in &removed {
            let key = keys.row(row as usize).data();
            let hash = index.hash(key);
            let at =
                self.find_one(index, hash, key).filter(|_| change == -1).ok_or_else(|| negative(delta, row, change))?;
            edits.weights.push((hash, at, 0));
        }
        let places: Vec<At> = edits.weights.iter().map(|&(_, at, _)| at).collect();
        let held = index.whole.encode(&self.fetch(&places)?)?;
        if let Some((&(row, change), _)) =
            removed.iter().zip(held.iter()).find(|((row, _), held)| net.bytes(*row) != held.data())
        {
            return Err(negative(delta, row, change));
        }

        let mut taken: HashMap<&[u8], bool> =
            removed.iter().map(|&(row, _)| (keys.row(row as usize).data(), false)).collect();
        for &(row, change) in net.entries.iter().filter(|&&(_, change)| change > 0) {
            let key = keys.row(row as usize).data();
            let held = || self.find_one(index, index.hash(key), key).is_some();
            let twice = *taken.entry(key).or_insert_with(held);
            if twice || change != 1 {
                return Err(ExecError::DuplicateKey { key: index.key.describe(&delta.rows, row as usize) });
            }
            taken.insert(key, true);
            edits.added.push((row, change));
        }
        Ok(edits)
    }

    fn segment(&self, at: At) -> &Segment {
        self.segments[at.segment as usize].as_ref().expect("places are those of segments that exist")
    }

    fn find_one(&self, index: &Index, hash: u64, key: &[u8]) -> Option<At> {
        let same = |&(h, at): &(u64, At)| h == hash && self.segment(at).key(at.row as usize) == key;
        index.table.find(hash, same).map(|&(_, at)| at)
    }

    fn set_weight(&mut self, hash: u64, at: At, weight: i64) {
        let segment = self.segments[at.segment as usize].as_mut().expect("places are those of segments that exist");
        let rows = segment.batch.num_rows();
        let weights = Arc::make_mut(segment.weights.get_or_insert_with(|| Arc::new(vec![1; rows])));
        let before = std::mem::replace(&mut weights[at.row as usize], weight);
        self.rows = (self.rows as i64 + weight - before) as usize;
        if weight == 0 {
            segment.live -= 1;
            let index = self.index.as_mut().expect("only an indexed row changes its weight");
            if let Ok(entry) = index.table.find_entry(hash, |&(_, place)| place == at) {
                entry.remove();
            }
        }
    }

    /// New rows, all of weight above 0.
    fn add_segment<'a>(&mut self, batch: RecordBatch, weights: Vec<i64>, keys: Option<impl Iterator<Item = Row<'a>>>) {
        self.rows += weights.iter().sum::<i64>() as usize;
        let live = batch.num_rows();
        let weights = weights.iter().any(|&weight| weight != 1).then(|| Arc::new(weights));
        let id = self.free.pop().unwrap_or_else(|| {
            self.segments.push(None);
            self.segments.len() as u32 - 1
        });
        let keys = self.index.as_mut().zip(keys).map(|(index, keys)| {
            let mut own = index.key.empty(live);
            for (row, key) in keys.enumerate() {
                let hash = index.hash(key.data());
                index.table.insert_unique(hash, (hash, At { segment: id, row: row as u32 }), |&(h, _)| h);
                own.push(index.key.parse(key.data()));
            }
            own
        });
        self.segments[id as usize] = Some(Segment { batch, keys, weights, live });
    }

    /// Drops empty segments and rewrites where too many are of one size or where most rows of one are dead.
    fn tidy(&mut self) -> Result<(), ExecError> {
        let mut smaller_than = FAN_IN;
        let mut at_least = 0;
        while smaller_than <= SEGMENT_ROWS {
            let of_size = |segment: &Segment| (at_least..smaller_than).contains(&segment.live);
            let ids = self.ids(of_size);
            if ids.len() >= FAN_IN {
                self.rewrite(&ids)?;
            }
            (at_least, smaller_than) = (smaller_than, smaller_than * FAN_IN);
        }
        for id in self.ids(|segment| segment.live * 2 < segment.batch.num_rows()) {
            self.rewrite(&[id])?;
        }
        Ok(())
    }

    fn ids(&self, wanted: impl Fn(&Segment) -> bool) -> Vec<u32> {
        let ids = self.segments.iter().enumerate();
        ids.filter(|(_, segment)| segment.as_ref().is_some_and(&wanted)).map(|(id, _)| id as u32).collect()
    }

    /// Puts the live rows of these segments into new ones.
    fn rewrite(&mut self, ids: &[u32]) -> Result<(), ExecError> {
        let old: Vec<Segment> = ids.iter().filter_map(|&id| self.segments[id as usize].take()).collect();
        self.free.extend(ids);
        let batches: Vec<&RecordBatch> = old.iter().map(|segment| &segment.batch).collect();
        let mut live = Vec::with_capacity(old.iter().map(|segment| segment.live).sum());
        for (i, segment) in old.iter().enumerate() {
            live.extend((0..segment.batch.num_rows()).filter(|&row| segment.weight(row) != 0).map(|row| (i, row)));
        }
        if let Some(index) = &mut self.index {
            for &(i, row) in &live {
                let (hash, at) = (index.hash(old[i].key(row)), At { segment: ids[i], row: row as u32 });
                if let Ok(entry) = index.table.find_entry(hash, |&(_, place)| place == at) {
                    entry.remove();
                }
            }
        }
        self.rows -= live.iter().map(|&(i, row)| old[i].weight(row)).sum::<i64>() as usize;
        for picked in live.chunks(SEGMENT_ROWS) {
            let batch = gather_rows(&self.schema, &batches, picked)?;
            let weights = picked.iter().map(|&(i, row)| old[i].weight(row)).collect();
            let key = |&(i, row): &(usize, usize)| old[i].keys.as_ref().map(|keys| keys.row(row));
            let keys = self.index.is_some().then(|| picked.iter().filter_map(key));
            self.add_segment(batch, weights, keys);
        }
        Ok(())
    }
}

fn negative(delta: &Delta, row: u32, weight: i64) -> ExecError {
    ExecError::NegativeWeight { row: describe_row(delta.rows.columns(), row as usize), weight }
}

impl Index {
    fn hash(&self, key: &[u8]) -> u64 {
        self.hasher.hash_one(key)
    }
}

impl Segment {
    fn weight(&self, row: usize) -> i64 {
        self.weights.as_ref().map_or(1, |weights| weights[row])
    }

    fn key(&self, row: usize) -> &[u8] {
        self.keys.as_ref().expect("an indexed segment has keys").row(row).data()
    }

    /// Those that count.
    fn rows(&self) -> Result<Delta, ArrowError> {
        let Some(weights) = &self.weights else { return Ok(Delta::inserts(self.batch.clone())) };
        let live: Vec<u32> = (0..weights.len() as u32).filter(|&row| weights[row as usize] != 0).collect();
        let weights = live.iter().map(|&row| weights[row as usize]).collect();
        Ok(Delta::weighted(take_rows(&self.batch, live)?, weights))
    }

    fn bytes(&self) -> usize {
        self.batch.get_array_memory_size()
            + self.keys.as_ref().map_or(0, Rows::size)
            + self.weights.as_ref().map_or(0, |weights| weights.capacity() * size_of::<i64>())
    }
}

/// The rows of an [`Arrangement`] at one moment. Shared by readers; dropping it frees what newer ones do not share.
#[derive(Debug)]
pub struct Snapshot {
    schema: SchemaRef,
    parts: Vec<(RecordBatch, Option<Arc<Vec<i64>>>)>,
    rows: usize,
}

impl Snapshot {
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    pub fn num_rows(&self) -> usize {
        self.rows
    }

    /// How many batches [`Snapshot::part`] has to give, each of at most some 30 000 distinct rows.
    pub fn num_parts(&self) -> usize {
        self.parts.len()
    }

    /// The rows of one part, each as often as it counts, with the columns at `projection` or all. Copies only where rows of
    /// the part were taken away or count more than once, and then only these columns.
    pub fn part(&self, i: usize, projection: Option<&[usize]>) -> Result<RecordBatch, ArrowError> {
        let (batch, weights) = &self.parts[i];
        let batch = projection.map_or_else(|| Ok(batch.clone()), |columns| batch.project(columns))?;
        let Some(weights) = weights else {
            return Ok(batch);
        };
        let mut counted = Vec::with_capacity(weights.len());
        for (row, &weight) in weights.iter().enumerate() {
            counted.extend(std::iter::repeat_n(row as u32, weight as usize));
        }
        take_rows(&batch, counted)
    }

    /// All rows, in no particular order.
    pub fn batches(&self, projection: Option<&[usize]>) -> Result<Vec<RecordBatch>, ArrowError> {
        (0..self.parts.len()).map(|i| self.part(i, projection)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::exec::text::{parse, print_rows};

    /// Applies ticks over (BIGINT, VARCHAR), then shows the rows, or the first error and the rows as they were left.
    fn check(make: impl Fn(SchemaRef) -> Arrangement, ticks: &[&str]) -> String {
        let mut rows = make(parse("i s").rows.schema());
        let apply = |tick: &&str| rows.apply(&parse(&format!("i s\n{}", tick.replace(", ", "\n"))));
        let error = ticks.iter().map(apply).find_map(Result::err).map_or(String::new(), |error| format!("{error}\n"));
        let snapshot = rows.snapshot();
        assert_eq!(snapshot.num_rows(), rows.rows());
        format!("{error}{}", print_rows(rows.schema(), &snapshot.batches(None).unwrap()))
    }

    fn multiset(schema: SchemaRef) -> Arrangement {
        Arrangement::multiset(schema).unwrap()
    }

    fn keyed(schema: SchemaRef) -> Arrangement {
        Arrangement::keyed(schema, vec![0]).unwrap()
    }

    #[test]
    fn weights_add_up_within_a_tick_and_over_ticks() {
        insta::assert_snapshot!(check(multiset, &["- 1 a, +3 1 a, + 2 .", "-2 1 a, + 2 ., + 3 c", "+ 1 b, - 3 c"]), @r"
        + 1 b
        +2 2 .
        ");
    }

    #[test]
    fn a_row_is_not_taken_back_more_often_than_it_is_there() {
        insta::assert_snapshot!(check(multiset, &["+ 1 a", "+ 2 b, -2 1 a"]), @r"
        row (1, a) was taken back more often than it was added (weight -1)
        + 1 a
        ");
        insta::assert_snapshot!(check(keyed, &["+ 1 a", "+ 2 b, - 1 x"]), @r"
        row (1, x) was taken back more often than it was added (weight -1)
        + 1 a
        ");
        insta::assert_snapshot!(check(Arrangement::append_only, &["+ 1 a, +2 2 b", "+ 2 b, - 1 a"]), @r"
        row (1, a) was taken back more often than it was added (weight -1)
        + 1 a
        +2 2 b
        ");
    }

    #[test]
    fn a_key_has_one_row() {
        insta::assert_snapshot!(check(keyed, &["+ 1 a, + 2 b", "+ 1 c, - 1 a, - 2 b", "+ 2 d", "+ 3 e, + 2 e"]), @r"
        key (c0)=(2) already exists
        + 1 c
        + 2 d
        ");
        insta::assert_snapshot!(check(keyed, &["+ 1 a, + 1 b"]), @"key (c0)=(1) already exists");
    }

    #[test]
    fn rows_are_found_by_key_and_fetched_in_order() {
        let mut rows = keyed(parse("i s").rows.schema());
        rows.apply(&parse("i s\n+ 1 a\n+ 2 b")).unwrap();
        rows.apply(&parse("i s\n+ 3 c\n- 1 a")).unwrap();
        let keys = rows.key().unwrap().encode(&parse("i s\n+ 3 .\n+ 1 .\n+ 2 .").rows).unwrap();
        let found = rows.find(&keys);
        assert_eq!(found.iter().map(Option::is_some).collect::<Vec<_>>(), [true, false, true]);
        let fetched = rows.fetch(&found.into_iter().flatten().collect::<Vec<_>>()).unwrap();
        assert_eq!(fetched, parse("i s\n+ 3 c\n+ 2 b").rows);
    }

    #[test]
    fn a_snapshot_stays_as_it_was_and_is_shared_while_nothing_changes() {
        let mut rows = multiset(parse("i s").rows.schema());
        rows.apply(&parse("i s\n+ 1 a\n+ 2 b")).unwrap();
        let before = rows.snapshot();
        rows.apply(&parse("i s\n+ 3 c\n- 3 c")).unwrap();
        assert!(Arc::ptr_eq(&before, &rows.snapshot()));
        rows.apply(&parse("i s\n- 1 a")).unwrap();
        assert_eq!(print_rows(rows.schema(), &before.batches(None).unwrap()), "+ 1 a\n+ 2 b");
        assert_eq!(rows.snapshot().batches(Some(&[1])).unwrap().iter().map(RecordBatch::num_rows).sum::<usize>(), 1);
    }

    #[test]
    fn a_large_delta_is_cut_so_that_a_change_copies_little() {
        let n = 2 * SEGMENT_ROWS as i64 + 10;
        let schema = parse("i").rows.schema();
        let ids: arrow::array::ArrayRef = Arc::new(arrow::array::Int64Array::from_iter_values(0..n));
        let mut rows = multiset(schema.clone());
        rows.apply(&Delta::inserts(RecordBatch::try_new(schema, vec![ids]).unwrap())).unwrap();
        rows.apply(&parse("i\n- 5\n+ -5")).unwrap();
        let snapshot = rows.snapshot();
        assert_eq!((snapshot.num_parts(), snapshot.num_rows() as i64), (4, n));
        let copied: Vec<bool> = snapshot.parts.iter().map(|(_, weights)| weights.is_some()).collect();
        assert_eq!(copied, [true, false, false, false]);
    }

    /// Random ticks; saved now and then, and loaded from what was saved.
    #[test]
    fn what_was_saved_comes_back() {
        let makes = [multiset as fn(SchemaRef) -> Arrangement, keyed, Arrangement::append_only];
        for (seed, make) in (0..8).flat_map(|seed| makes.map(|make| (seed, make))) {
            let mut random = StdRng::seed_from_u64(seed);
            let new = || make(parse("i s").rows.schema());
            let (mut straight, mut cut) = (new(), new());
            let list = straight.key().is_none();
            cut.track_saves();
            let (mut saves, mut held): (Vec<Saved>, BTreeMap<i64, i64>) = (Vec::new(), BTreeMap::new());
            let many = [5, 500][(seed % 2) as usize];
            for tick in 0..40 {
                let mut lines = vec!["i s".to_string()];
                for _ in 0..random.random_range(0..many) {
                    let key = random.random_range(0..300);
                    match held.insert(key, tick) {
                        Some(old) if old == tick => {}
                        Some(old) if !list => lines.push(format!("- {key} {old}\n+ {key} {tick}")),
                        _ => lines.push(format!("+ {key} {tick}")),
                    }
                }
                let delta = parse(&lines.join("\n"));
                straight.apply(&delta).unwrap();
                cut.apply(&delta).unwrap();
                if random.random_bool(0.4) {
                    let saved = cut.save(random.random_bool(0.1)).unwrap();
                    assert!(cut.save(false).unwrap().is_empty(), "nothing has changed");
                    saves.push(saved);
                    if random.random_bool(0.5) {
                        cut = new();
                        cut.load(&saves).unwrap();
                    }
                }
                let shown = [&mut straight, &mut cut].map(|rows| {
                    let snapshot = rows.snapshot();
                    (rows.rows(), print_rows(rows.schema(), &snapshot.batches(None).unwrap()))
                });
                assert_eq!(shown[0], shown[1], "seed {seed}, tick {tick}");
            }
            let increments = saves.iter().filter(|saved| !saved.whole && !saved.is_empty()).count();
            assert!(increments > 0 && saves[0].whole, "seed {seed}: {increments}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut rows = keyed(parse("i s").rows.schema());
        rows.apply(&parse("i s\n+ 1 a\n+ 2 b")).unwrap();
        rows.track_saves();
        let whole = rows.save(false).unwrap();
        rows.apply(&parse("i s\n- 1 a")).unwrap();
        let change = rows.save(false).unwrap();
        let load = |saves: &[&Saved]| {
            let saves: Vec<Saved> = saves.iter().map(|&saved| saved.clone()).collect();
            match keyed(parse("i s").rows.schema()).load(&saves) {
                Ok(()) => "loaded".to_string(),
                Err(error @ ExecError::Saved { .. }) => error.to_string(),
                Err(error) => panic!("{error:?}"),
            }
        };
        let mut empty = whole.clone();
        empty.sections.clear();
        let mut renamed = whole.clone();
        renamed.sections[0].name = "row".into();
        let mut cut = whole.clone();
        cut.sections[0].rows.remove_column(2);
        let mut unweighted = whole.clone();
        unweighted.sections[0].rows.remove_column(0);
        let mut unnoted = whole.clone();
        unnoted.notes = serde_json::Value::Null;
        let tries = [
            load(&[&whole, &change]),
            load(&[]),
            load(&[&change]),
            load(&[&whole, &change, &change]),
            load(&[&empty]),
            load(&[&renamed]),
            load(&[&cut]),
            load(&[&unweighted]),
            load(&[&unnoted]),
        ];
        insta::assert_snapshot!(tries.join("\n"), @r"
        loaded
        a saved state cannot be read: there is no whole one to begin with
        a saved state cannot be read: there is no whole one to begin with
        a saved state cannot be read: section rows: row (1, a) was taken back more often than it was added (weight -1)
        a saved state cannot be read: 2 rows were saved, 0 are there
        a saved state cannot be read: there is a section row besides rows
        a saved state cannot be read: section rows: it has not the columns [Int64, Utf8]
        a saved state cannot be read: section rows: column weight is missing or of another type
        a saved state cannot be read: notes: invalid type: null, expected struct Notes
        ");
    }

    /// Thousands of small ticks leave few segments, few dead rows, and the right rows.
    #[test]
    fn rewriting_keeps_segments_few() {
        for (seed, make) in [(1, multiset as fn(SchemaRef) -> Arrangement), (2, keyed)] {
            let mut random = StdRng::seed_from_u64(seed);
            let mut rows = make(parse("i s").rows.schema());
            let mut expected: BTreeMap<i64, i64> = BTreeMap::new();
            for tick in 0..1500 {
                let mut lines = vec!["i s".to_string()];
                for _ in 0..random.random_range(1..6) {
                    let key = random.random_range(0..400);
                    match expected.insert(key, tick) {
                        Some(old) if old == tick => {}
                        Some(old) => lines.push(format!("- {key} {old}\n+ {key} {tick}")),
                        None => lines.push(format!("+ {key} {tick}")),
                    }
                }
                rows.apply(&parse(&lines.join("\n"))).unwrap();
            }
            assert_eq!(rows.rows(), expected.len());
            let stored: usize = rows.segments.iter().flatten().map(|segment| segment.batch.num_rows()).sum();
            assert!(stored <= 2 * expected.len(), "{stored} rows stored");
            assert!(rows.segments.iter().flatten().count() <= 4 * FAN_IN);
            let shown: Vec<String> = expected.iter().map(|(key, value)| format!("+ {key} {value}")).collect();
            let snapshot = rows.snapshot();
            assert_eq!(print_rows(rows.schema(), &snapshot.batches(None).unwrap()), shown.join("\n"));
        }
    }
}
