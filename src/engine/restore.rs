//! Taking up what a manifest holds: the catalog is planned anew from its texts, parts are given what they saved, and views go on where
//! they stood. A view whose state cannot be taken up is made anew from its sources, as CREATE would.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::EngineOptions;
use super::checkpoint::{Body, Checkpoint, FORMAT, PartitionNotes, SavedSource, SavedStore, ViewBody};
use super::checkpointer::Checkpointer;
use super::coordinator::Coordinator;
use super::damage::Files;
use super::dataflow::Store;
use super::error::EngineError;
use super::former_format;
use super::keeping::Keeping;
use super::orders::Command;
use super::request::{Asked, NewSource, Request};
use super::slice_index::SliceIndex;
use super::source_setup;
use super::stats::PartitionStats;
use super::table::Table;
use super::table_log::{TableLog, changes_of};
use super::worker::attached_feed;
use crate::catalog::{Catalog, NameContext, Object, ObjectKind, ObjectText, Oid, PUBLIC};
use crate::exec::arrangement::Arrangement;
use crate::exec::durable::Saved;
use crate::exec::exchange::StoreId;
use crate::exec::flow::{Feed, Flow};
use crate::exec::store_saved::SavedPart;
use crate::exec::tail::Tail;
use crate::exec::tail_saves::InFiles;
use crate::planner::{self, Plans, stream_plan::StreamPlan};
use crate::sql;
use crate::storage::{Manifest, Opened};

/// A catalog with the dataflows of its materialized views.
pub(super) struct Planned {
    pub catalog: Catalog,
    pub plans: Plans,
    /// Of views that are no more, while stores made for them are read.
    ghosts: BTreeMap<Oid, (Arc<Object>, StreamPlan)>,
}

/// Plans a catalog's texts again.
pub(super) fn plan_again(body: &Body) -> Result<Planned, EngineError> {
    let mut planned =
        Planned { catalog: Catalog::of_text(&body.catalog), plans: Plans::default(), ghosts: BTreeMap::new() };
    for text in &body.catalog.objects {
        let (object, plan) = plan_one(text, &planned.catalog, &planned.plans)?;
        planned.catalog = planned.catalog.with_restored(object)?;
        planned.plans.extend(plan.map(|plan| (text.oid, Arc::new(plan))));
    }
    let (mut catalog, mut plans) = (planned.catalog.clone(), planned.plans.clone());
    for text in &body.catalog.ghosts {
        match plan_one(text, &catalog, &plans) {
            Ok((object, Some(plan))) => {
                catalog = catalog.with_restored(object.clone())?;
                plans.insert(text.oid, Arc::new(plan.clone()));
                planned.ghosts.insert(text.oid, (Arc::new(object), plan));
            }
            Ok((object, None)) => catalog = catalog.with_restored(object)?,
            Err(error) => tracing::warn!(view = text.name, %error, "a dropped view's store cannot be taken up"),
        }
    }
    Ok(planned)
}

fn plan_one(text: &ObjectText, catalog: &Catalog, plans: &Plans) -> Result<(Object, Option<StreamPlan>), EngineError> {
    let failed = |error: EngineError| EngineError::Restore {
        message: format!("\"{}\" cannot be made again from its definition: {error}", text.name),
    };
    // Definitions name what is not in `public` by its schema.
    let names = NameContext { database: text.database.clone(), search_path: vec![PUBLIC.into()], user: String::new() };
    let statement = sql::parse(&text.sql).map_err(|error| failed(error.into()))?;
    let [statement] = statement.as_slice() else {
        return Err(failed(EngineError::Restore { message: "it is not one statement".into() }));
    };
    let definition = planner::define(&statement.statement, &Arc::new(catalog.clone()), &names);
    let definition = definition.map_err(|error| failed(error.into()))?;
    let object = Object { oid: text.oid, ..definition.object };
    if object.depends_on != text.depends_on {
        return Err(failed(EngineError::Restore { message: "its names mean other objects now".into() }));
    }
    let plan = definition.plan.map(|plan| planner::onto_slices(plan, plans)).transpose();
    Ok((object, plan.map_err(|error| failed(error.into()))?))
}

/// What a manifest holds; nothing for the first of new data.
pub(super) fn checkpoint_of(manifest: &Manifest) -> Result<Option<Checkpoint>, EngineError> {
    let Some(format) = manifest.body.get("body").and_then(|body| body.get("format")) else { return Ok(None) };
    if format.as_u64().is_none_or(|format| format > u64::from(FORMAT)) {
        let message =
            format!("the data is of format {format}; this version reads up to {FORMAT}: start a newer version");
        return Err(EngineError::Restore { message });
    }
    let checkpoint = match format.as_u64() {
        Some(1) => former_format::checkpoint(manifest.body.clone()),
        _ => serde_json::from_value(manifest.body.clone()),
    };
    checkpoint.map(Some).map_err(|error| EngineError::Restore {
        message: format!("manifest {} cannot be understood: {error}", manifest.number),
    })
}

impl Coordinator {
    /// Goes on with what is kept, before anything is read. Returns the dataflows of materialized views.
    pub(super) fn take_up(
        &mut self,
        opened: Opened,
        checkpoint: Option<Checkpoint>,
        options: &EngineOptions,
    ) -> Result<Plans, EngineError> {
        let Opened { storage, manifest, log, .. } = opened;
        self.lasts = true;
        self.broadcast(|| Command::Pause { reading: false });
        let retry_pause = options.retry_pause;
        let (mut plans, mut parts, mut slices) = (Plans::default(), BTreeMap::new(), SliceIndex::default());
        if let Some(checkpoint) = checkpoint {
            let planned = plan_again(&checkpoint.body)?;
            let mut files = Files::of(&storage, &checkpoint, options.rebuild_damaged)?;
            self.restoring = true;
            self.restore(&mut files, &checkpoint.body, &planned)?;
            self.restoring = false;
            (plans, parts, slices) = (planned.plans, files.parts, files.slices);
        }
        let thread = |e: std::io::Error| EngineError::NotReady {
            message: format!("a thread cannot be started: {e}"),
            hint: "Raise the limit of threads for this process.".into(),
        };
        let (said, logged) = (self.say.clone(), self.say.clone());
        let log_through = manifest.as_ref().map_or(0, |manifest| manifest.log_through);
        let last_record = log.last().map_or(log_through, |(number, _)| *number);
        let say = move |word| logged.send(Request::Logged(word)).is_ok();
        let table_log = TableLog::start(storage.clone(), last_record, retry_pause, say).map_err(thread)?;
        let say = move |word| said.send(Request::Said(word)).is_ok();
        let checkpointer =
            Checkpointer::start(storage.clone(), table_log.end(), parts, slices, retry_pause, say).map_err(thread)?;
        // In a tick in which nothing is read, change streams begin where they stood, and what statements did is done again.
        let mut asked = Asked::default();
        for (number, record) in &log {
            let changes = changes_of(record)?;
            self.write(changes, &mut asked.data).map_err(|error| EngineError::Restore {
                message: format!("record {number} of the log of tables cannot be applied: {error}"),
            })?;
        }
        if !self.end_tick(asked) {
            return Err(EngineError::Stopped);
        }
        if let Some(reason) = self.fenced.take() {
            return Err(EngineError::Restore { message: reason });
        }
        self.keeping = Some(Keeping::new(
            storage,
            checkpointer,
            table_log,
            options.checkpoint_interval,
            self.workers,
            last_record + 1,
        ));
        self.broadcast(|| Command::Pause { reading: true });
        Ok(plans)
    }

    /// Sends the workers what they had and takes up tables and views. Reading has not begun.
    fn restore(&mut self, files: &mut Files<'_>, body: &Body, planned: &Planned) -> Result<(), EngineError> {
        self.catalog = Arc::new(planned.catalog.clone());
        self.now_us = self.now_us.max(body.now_us);
        self.next_id = body.next_id;
        for text in &body.catalog.objects {
            let Some(object) = planned.catalog.get(text.oid) else { continue };
            match &object.kind {
                ObjectKind::Source(_) => self.restore_source(&object, body, files)?,
                ObjectKind::Table(_) => {
                    let saved = files.saved(&format!("table/{}", object.oid))?;
                    let mut table = match body.tables.iter().find(|table| table.oid == object.oid) {
                        Some(table) => Table::restored(object.clone(), &saved, table)?,
                        None => Table::new(object.clone())?,
                    };
                    table.state.track_saves();
                    self.tables.insert(object.oid, table);
                }
                ObjectKind::View { .. } | ObjectKind::MaterializedView(_) => {}
            }
        }
        self.step_tables();
        self.restore_views(body, planned, files)?;
        let mut kept = Vec::new();
        for (name, what) in files.below("kept/") {
            let what = format_args!("the list of rows that did not count ({what})");
            kept.extend(files.unless_damaged(what, files.saved(name))?.map(|saved| (name.to_string(), saved)));
        }
        Ok(self.kept.load(&kept)?)
    }

    fn restore_source(&mut self, object: &Arc<Object>, body: &Body, files: &Files<'_>) -> Result<(), EngineError> {
        let ObjectKind::Source(definition) = &object.kind else { return Ok(()) };
        let (setup, connector) = source_setup(object, definition, &self.catalog)?;
        let oid = object.oid;
        let Some(known) = body.sources.iter().find(|source| source.oid == oid) else {
            self.add_source(object.clone(), NewSource { setup, connector, starts: BTreeMap::new(), topic_id: None })?;
            return Ok(());
        };
        let starts = known.starts.iter().copied().collect();
        let topic_id = known.topic_id.clone();
        self.add_source(object.clone(), NewSource { setup: setup.clone(), connector, starts, topic_id })?;
        let mut saved = SavedSource::default();
        let mut floor_us = None;
        for &partition in &known.partitions {
            let name = format!("source/{oid}/{partition}");
            // Each is saved whole every time.
            let Some(last) = files.saved(&name)?.pop() else { continue };
            let notes: PartitionNotes = last.notes()?;
            floor_us = floor_us.max(notes.floor_us);
            let ids = files.saved(&format!("ids/{oid}/p{partition}"))?;
            saved.ids.insert(partition, ids);
            saved.duplicates.insert(partition, files.saved(&format!("duplicates/{oid}/{partition}"))?);
            saved.partitions.insert(partition, notes);
        }
        if setup.across_partitions().is_some() {
            for worker in 0..body.workers {
                saved.across.push(files.saved(&format!("ids/{oid}/w{worker}"))?);
            }
        }
        let source = self.sources.get_mut(&oid).expect("it was added above");
        source.gaps = known.gaps.clone();
        source.changes = known.changes.clone();
        source.late_into_trouble = known.late_into_trouble.clone();
        for (&partition, notes) in &saved.partitions {
            source.assigned.insert(partition, partition.unsigned_abs() as usize % self.workers);
            let stats = PartitionStats {
                partition,
                position: notes.position,
                end: None,
                counts: notes.counts,
                watermark_us: notes.law.watermark_us(),
                idle: false,
                error: notes.error.clone(),
            };
            source.partitions.insert(partition, stats);
        }
        self.times.insert(oid, known.time);
        if known.begun {
            source.begun = true;
            self.broadcast(|| Command::AddSource(Box::new(setup.clone())));
            let saved = Arc::new(saved);
            let (time, topic_known) = (known.time, known.topic_id.is_some());
            self.broadcast(|| Command::RestoreSource {
                source: oid,
                time,
                floor_us,
                topic_known,
                saved: saved.clone(),
            });
        }
        Ok(())
    }

    fn restore_views(&mut self, body: &Body, planned: &Planned, files: &mut Files<'_>) -> Result<(), EngineError> {
        let mut oids: BTreeSet<Oid> = planned.plans.keys().copied().collect();
        oids.extend(planned.ghosts.keys());
        let mut anew = Vec::new();
        for oid in oids {
            let known = planned.catalog.get(oid).zip(planned.plans.get(&oid).cloned());
            let ghost = planned.ghosts.get(&oid).map(|(object, plan)| (object.clone(), Arc::new(plan.clone())));
            let Some((object, plan)) = known.clone().or(ghost) else { continue };
            let flow = Flow::of(&plan, self)?;
            self.restore_stores(&object, &flow.feeds, body, planned, files)?;
            if known.is_none() {
                continue;
            }
            let view = body.views.iter().find(|view| view.oid == oid);
            let view = view.filter(|view| self.can_take_up(view, &flow));
            let (rows, name) = (format!("rows/{oid}"), format!("tail/{oid}"));
            let read = || Ok((files.saved(&rows)?, files.saved_with_slices(&name)?));
            let saved = match view {
                Some(_) => files.unless_damaged(format_args!("view \"{}\"", object.name), read())?,
                None => None,
            };
            match view.zip(saved) {
                Some((view, (saved, tail))) => {
                    let mut in_files = InFiles::default();
                    for node in 0..flow.tail.len() {
                        let closed = files.slices.entries(&name, node as u32);
                        in_files.closed.extend(closed.into_iter().map(|entry| (node, entry)));
                        let panes = files.slices.panes(&name, node as u32);
                        in_files.panes.extend(panes.into_iter().map(|pane| (node, pane)));
                    }
                    let took = TookUp { body: view.clone(), rows: saved, tail, in_files };
                    self.add_view(object, (*plan).clone(), Some(took))?;
                }
                None => {
                    files.forget(&[rows, name]);
                    anew.push((object, plan));
                }
            }
        }
        // Stores that nobody reads, as who read them is made anew.
        let unread: Vec<StoreId> =
            self.stores.iter().filter(|(_, store)| store.users.is_empty()).map(|(&id, _)| id).collect();
        for id in unread {
            if let Some(store) = self.stores.remove(&id) {
                self.broadcast(|| Command::DropStore { source: store.source, store: id });
            }
        }
        for (object, plan) in anew {
            tracing::info!(view = object.name, "reads its history again");
            self.add_view(object, (*plan).clone(), None)?;
        }
        Ok(())
    }

    /// Everything that it stands on is there again.
    fn can_take_up(&self, view: &ViewBody, flow: &Flow) -> bool {
        let stores = view.stores.len() == flow.feeds.len()
            && view
                .stores
                .iter()
                .zip(&flow.feeds)
                .all(|(id, feed)| self.stores.get(id).is_some_and(|store| feed.derived_from(&store.feed).is_ok()));
        let object = self.catalog.get(view.oid);
        let below = object.iter().flat_map(|object| &object.depends_on);
        let mut views = below.filter(|oid| {
            self.catalog.get(**oid).is_some_and(|object| matches!(object.kind, ObjectKind::MaterializedView(_)))
        });
        view.whole && stores && views.all(|oid| self.views.contains_key(oid))
    }

    /// Makes the stores that were made for this view.
    fn restore_stores(
        &mut self,
        object: &Arc<Object>,
        feeds: &[Feed],
        body: &Body,
        planned: &Planned,
        files: &Files<'_>,
    ) -> Result<(), EngineError> {
        for known in body.stores.iter().filter(|store| store.made_by.0 == object.oid) {
            let Some(feed) = feeds.get(known.made_by.1).filter(|feed| feed.source == known.source) else { continue };
            let fingerprint = feed.layout.fingerprint();
            if fingerprint != known.fingerprint {
                tracing::warn!(
                    store = known.id,
                    was = known.fingerprint,
                    is = fingerprint,
                    "a store's form has changed"
                );
                continue;
            }
            let prefix = format!("store/{}/", known.id);
            let saved = files.below(&prefix).count();
            if saved != body.workers {
                tracing::warn!(store = known.id, parts = saved, "a store was not saved by every worker");
                continue;
            }
            let parts = (0..body.workers).map(|worker| {
                let name = format!("{prefix}{worker}");
                let (closed, panes) = (files.slices.entries(&name, 0), files.slices.panes(&name, 0));
                Ok(SavedPart { saved: files.saved_with_slices(&name)?, closed, panes })
            });
            let what = format_args!("a store of view \"{}\"", object.name);
            let Some(parts) = files.unless_damaged(what, parts.collect())? else { continue };
            let saved = Arc::new(SavedStore { parts });
            let (store, source, layout) = (known.id, known.source, feed.layout.clone());
            self.broadcast(|| Command::AddStore { store, source, layout: layout.clone(), saved: Some(saved.clone()) });
            let attached = attached_feed(store, feed);
            self.broadcast(|| Command::Attach { source, attached: attached.clone(), has_history: true });
            let below = planned_under(object, planned);
            let store = Store {
                source,
                feed: Arc::new(feed.clone()),
                users: BTreeMap::new(),
                held: false,
                released_in: 0,
                made_in: 0,
                reports: BTreeMap::new(),
                complete_from_us: known.complete_from_us,
                floor_us: known.floor_us,
                made_by: (below, known.made_by.1),
                short_before: known.shortfall.clone(),
            };
            let floor_us = known.floor_us;
            self.broadcast(|| Command::Floor { store: known.id, floor_us });
            self.stores.insert(known.id, store);
        }
        Ok(())
    }
}

/// What a view had when it was kept.
pub(super) struct TookUp {
    pub body: ViewBody,
    pub rows: Vec<Saved>,
    pub tail: Vec<Saved>,
    pub in_files: InFiles,
}

impl TookUp {
    pub fn tail(&self, coordinator: &Coordinator, flow: &Flow, plan: &StreamPlan) -> Result<Tail, EngineError> {
        let (cache, times, now_us) = (&coordinator.memory.cache, &coordinator.times, coordinator.now_us);
        Ok(Tail::load(flow, &self.tail, self.in_files.clone(), times, now_us, plan.retention_us, cache)?)
    }

    pub fn fill(&self, arrangement: &mut Arrangement) -> Result<(), EngineError> {
        Ok(arrangement.load(&self.rows)?)
    }
}

/// A view with the views that it is over, those first.
fn planned_under(object: &Arc<Object>, planned: &Planned) -> Vec<Arc<Object>> {
    let find = |oid: Oid| {
        let ghost = planned.ghosts.get(&oid).map(|(object, _)| object.clone());
        planned.catalog.get(oid).or(ghost)
    };
    with_views_below(object, &find)
}

/// A view with all views below it, each after what it is over.
pub(super) fn with_views_below(object: &Arc<Object>, find: &dyn Fn(Oid) -> Option<Arc<Object>>) -> Vec<Arc<Object>> {
    let mut all: BTreeMap<Oid, Arc<Object>> = BTreeMap::new();
    let mut left = vec![object.clone()];
    while let Some(object) = left.pop() {
        if matches!(object.kind, ObjectKind::MaterializedView(_) | ObjectKind::View { .. }) {
            left.extend(object.depends_on.iter().filter_map(|&oid| find(oid)));
            all.insert(object.oid, object);
        }
    }
    all.into_values().collect()
}
