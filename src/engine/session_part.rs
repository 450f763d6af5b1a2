//! A worker's part of the sessions straight over a source: those of the keys in its buckets.

use std::collections::HashMap;
use std::sync::Arc;

use super::orders::{EdgeId, StoreReport};
use super::worker::least;
use crate::catalog::Oid;
use crate::exec::durable::{Buckets, Saved};
use crate::exec::exchange::{Batch, StoreId};
use crate::exec::feed::Shortfall;
use crate::exec::horizon::Horizon;
use crate::exec::law::SourceTime;
use crate::exec::panes_in_files::KeptPanes;
use crate::exec::session_batch::forgotten_until;
use crate::exec::session_changes::{SessionChanges, joined};
use crate::exec::session_store::SessionStore;
use crate::exec::slice_store::StoreLayout;
use crate::exec::tail::shown;
use crate::exec::window_view::WindowView;
use crate::exec::{Delta, ExecError};

pub(super) struct SessionPart {
    pub source: Oid,
    pub store: SessionStore,
    edges: Vec<SessionEdge>,
    /// Still being given its history.
    pub held: bool,
    pub keep_us: Option<i64>,
    pub floor_us: Option<i64>,
    pub failed: bool,
    /// The tick in which rows last came.
    pub generation: u64,
    /// The start of the oldest session that is not final, once there is a watermark.
    pub oldest_us: Option<i64>,
}

struct SessionEdge {
    id: EdgeId,
    changes: SessionChanges,
    is_new: bool,
    tells_all: bool,
}

impl SessionPart {
    pub fn new(source: Oid, layout: Arc<StoreLayout>) -> Result<Self, ExecError> {
        let store = SessionStore::new(layout)?;
        Ok(SessionPart {
            source,
            store,
            edges: Vec::new(),
            held: true,
            keep_us: None,
            floor_us: None,
            failed: false,
            generation: 0,
            oldest_us: None,
        })
    }

    pub fn add_edge(&mut self, id: EdgeId, view: WindowView, tells_all: bool) -> Result<(), ExecError> {
        self.store.track_changes();
        self.edges.push(SessionEdge { id, changes: SessionChanges::new(view)?, is_new: true, tells_all });
        Ok(())
    }

    pub fn drop_edge(&mut self, id: EdgeId) {
        self.edges.retain(|edge| edge.id != id);
    }

    /// Rows from the exchange. Sessions are not aggregated in advance, so that no states come.
    pub fn accept(&mut self, batch: &Batch) -> Result<(), ExecError> {
        match batch {
            Batch::Raw(rows) => self.store.apply(rows),
            Batch::Partial(_) => Err(ExecError::Invariant("partial states came for sessions".into())),
        }
    }

    /// The end of a tick, once its rows have come.
    pub fn step(&mut self, times: &HashMap<Oid, SourceTime>, out: &mut Vec<(EdgeId, Delta)>) -> Result<(), ExecError> {
        let held = HashMap::new();
        let times = if self.held { &held } else { times };
        let mut shown = shown(Some(&Horizon::Source(self.source)), times, self.keep_us);
        shown.horizon_us = least(shown.horizon_us, self.floor_us);
        self.store.settle()?;
        let dirty = self.store.take_dirty();
        let mut deltas = Vec::with_capacity(self.edges.len());
        for edge in &mut self.edges {
            deltas.push(if edge.is_new {
                edge.is_new = false;
                let all = edge.changes.begin(&mut self.store, &shown)?;
                if edge.tells_all { all } else { Delta::empty(all.rows.schema()) }
            } else {
                edge.changes.step(&mut self.store, &dirty)?
            });
        }
        if let Some(final_until_us) = shown.final_until_us {
            let closed = self.store.close(final_until_us)?;
            for (edge, delta) in self.edges.iter_mut().zip(&mut deltas) {
                let shown_once = edge.changes.close(&mut self.store, &closed)?;
                *delta = joined(delta.clone(), shown_once)?;
            }
            self.oldest_us = Some(self.store.oldest_open_us(final_until_us));
        }
        if let Some(horizon_us) = forgotten_until(&shown)
            && let Some(renumbered) = self.store.forget(horizon_us)?
        {
            self.edges.iter_mut().for_each(|edge| edge.changes.renumber(&renumbered));
        }
        out.extend(self.edges.iter().map(|edge| edge.id).zip(deltas).filter(|(_, delta)| !delta.is_empty()));
        Ok(())
    }

    pub fn report(&self, store: StoreId, mut shortfall: Shortfall) -> StoreReport {
        shortfall.left_out += self.store.left_out();
        StoreReport {
            store,
            generation: self.generation,
            slices: Vec::new(),
            panes: KeptPanes::default(),
            sessions: self.store.spans(),
            keys: self.store.num_keys(),
            bytes: self.store.bytes() + self.edges.iter().map(|edge| edge.changes.bytes()).sum::<usize>(),
            forgotten_rows: 0,
            first_kept: None,
            shortfall,
        }
    }
}

impl SessionPart {
    /// See [`SessionStore::track_saves`].
    pub fn track_saves(&mut self, buckets: Buckets) {
        self.store.track_saves(buckets);
    }

    /// See [`SessionStore::save`]. Edges are not kept: they are made again by [`SessionPart::resume_edge`].
    pub fn save(&mut self, whole: bool) -> Result<Saved, ExecError> {
        self.store.save(whole)
    }

    /// The part of whoever owns these buckets, as of a tick with these times.
    pub fn load(
        source: Oid,
        layout: Arc<StoreLayout>,
        parts: &[Vec<Saved>],
        buckets: Buckets,
        held: bool,
        times: &HashMap<Oid, SourceTime>,
    ) -> Result<Self, ExecError> {
        let mut store = SessionStore::load(layout, parts, buckets)?;
        let final_until_us = times.get(&source).and_then(|time| time.final_until_us).filter(|_| !held);
        let oldest_us = final_until_us.map(|us| store.oldest_open_us(us));
        Ok(SessionPart {
            source,
            store,
            edges: Vec::new(),
            held,
            keep_us: None,
            floor_us: None,
            failed: false,
            generation: 0,
            oldest_us,
        })
    }

    /// An edge that had been told all that is there when it was saved. To be made before more rows come.
    pub fn resume_edge(&mut self, id: EdgeId, view: WindowView) -> Result<(), ExecError> {
        self.store.track_changes();
        let mut changes = SessionChanges::new(view)?;
        changes.resume(&mut self.store)?;
        self.edges.push(SessionEdge { id, changes, is_new: false, tells_all: false });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::Int64Array;
    use arrow::datatypes::{DataType, Field, Schema, TimeUnit};

    use super::*;
    use crate::exec::session_store::SessionLayout;
    use crate::exec::slice_store::{Grid, StoreRows};
    use crate::exec::text::print;
    use crate::exec::window_view::Group;
    use crate::planner::stream_plan::{Emit, Session};

    const SOURCE: Oid = 7;
    const EDGE: EdgeId = 3;

    fn layout() -> Arc<StoreLayout> {
        let session = Session { gap_us: 10_000_000, max_us: None };
        Arc::new(StoreLayout {
            keys: vec![Arc::new(Field::new("k", DataType::Int64, true))],
            grid: Some(Grid::MICROSECONDS),
            measures: Vec::new(),
            sessions: Some(SessionLayout { session, by_time: false }),
        })
    }

    fn view() -> WindowView {
        let time = |name: &str| Field::new(name, DataType::Timestamp(TimeUnit::Microsecond, None), true);
        let fields = vec![Field::new("k", DataType::Int64, true), time("window_start"), time("window_end")];
        WindowView {
            window: None,
            group: vec![Group::Key(0), Group::WindowStart, Group::WindowEnd],
            measures: Vec::new(),
            schema: Arc::new(Schema::new(fields)),
            emit: Emit::OnUpdate,
            shows_empty: false,
            overflows: Arc::default(),
        }
    }

    /// Rows (key, second), then a tick in which everything before a second is final: what the edge tells.
    fn tick(part: &mut SessionPart, rows: &[(i64, i64)], final_s: i64) -> String {
        let batch = StoreRows {
            rows: rows.len(),
            slices: rows.iter().map(|row| row.1 * 1_000_000).collect(),
            keys: vec![Arc::new(rows.iter().map(|row| row.0).collect::<Int64Array>())],
            args: Vec::new(),
            filters: Vec::new(),
            weights: None,
        };
        part.accept(&Batch::Raw(batch)).unwrap();
        let mut out = Vec::new();
        part.step(&times(final_s), &mut out).unwrap();
        out.iter().map(|(_, delta)| print(delta).replace('\n', ", ")).collect()
    }

    fn times(final_s: i64) -> HashMap<Oid, SourceTime> {
        [(SOURCE, SourceTime::of_table(final_s * 1_000_000))].into()
    }

    #[test]
    fn a_part_that_was_saved_tells_what_comes_after_and_nothing_twice() {
        let mut part = SessionPart::new(SOURCE, layout()).unwrap();
        part.held = false;
        part.add_edge(EDGE, view(), true).unwrap();
        part.track_saves(0..=255);
        let mut told = vec![tick(&mut part, &[(1, 20), (2, 25)], 5)];
        let mut saves = vec![part.save(false).unwrap()];
        told.push(tick(&mut part, &[(2, 30), (3, 38)], 30));
        saves.push(part.save(false).unwrap());
        assert!(saves[0].whole && !saves[1].whole);
        let mut part = SessionPart::load(SOURCE, layout(), &[saves], 0..=255, false, &times(30)).unwrap();
        assert_eq!(part.oldest_us, Some(25_000_000));
        part.resume_edge(EDGE, view()).unwrap();
        told.push(tick(&mut part, &[(3, 40)], 30));
        insta::assert_snapshot!(told.join("\n"), @r"
        + 1 00:00:20 00:00:30, + 2 00:00:25 00:00:35
        - 2 00:00:25 00:00:35, + 2 00:00:25 00:00:40, + 3 00:00:38 00:00:48
        - 3 00:00:38 00:00:48, + 3 00:00:38 00:00:50
        ");
    }
}
