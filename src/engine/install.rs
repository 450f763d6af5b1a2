//! Sources and views come and go: what that means for workers, stores and tails.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::coordinator::Coordinator;
use super::dataflow::{FeedUse, RegroupedEdge, RegroupedUse, Source, Store, View};
use super::emissions::window_end;
use super::error::EngineError;
use super::figures::store_name;
use super::freshness::Freshness;
use super::orders::{Begins, Command};
use super::request::{NewSource, Request};
use super::restore::{TookUp, with_views_below};
use super::topic::TopicWatch;
use super::worker::{attached_feed, attached_pass};
use crate::catalog::{Object, ObjectKind, Oid};
use crate::exec::ExecError;
use crate::exec::arrangement::Arrangement;
use crate::exec::derive::Derived;
use crate::exec::exchange::StoreId;
use crate::exec::feed::Shortfall;
use crate::exec::flow::{Feed, Flow, Input, Objects, Output};
use crate::exec::horizon::Horizon;
use crate::exec::regroup::Regrouped;
use crate::exec::regroup_changes::RegroupedChanges;
use crate::exec::tail::Tail;
use crate::planner::stream_plan::{Aggregate, Emit, Op, ScanKind, StoreChoice, StreamPlan, Window};

/// SEMANTICS 3.4: rows of windows are not copied more often than this.
const MOST_COPIES: i64 = 1000;

impl Objects for Coordinator {
    fn horizons(&self, oid: Oid) -> Vec<Option<Horizon>> {
        if let Some(view) = self.views.get(&oid) {
            return view.flow.horizons.clone();
        }
        let object = match (self.sources.get(&oid), self.tables.get(&oid)) {
            (Some(source), _) => &source.object,
            (None, Some(table)) => &table.object,
            (None, None) => return Vec::new(),
        };
        let time_column = match &object.kind {
            ObjectKind::Source(source) => source.watermark.as_ref().map(|w| w.column),
            ObjectKind::Table(table) => table.watermark.as_ref().map(|w| w.column),
            ObjectKind::View { .. } | ObjectKind::MaterializedView(_) => None,
        };
        (0..object.columns.fields().len()).map(|i| (Some(i) == time_column).then_some(Horizon::Source(oid))).collect()
    }

    fn watermark(&self, oid: Oid) -> Option<Horizon> {
        let own = self.views.get(&oid).map(|view| view.flow.shown_horizons.clone());
        let horizons = own.unwrap_or_else(|| self.horizons(oid));
        horizons.iter().flatten().next().map(|horizon| horizon.base().clone())
    }
}

impl Coordinator {
    fn fresh_id(&mut self) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        id
    }

    pub(super) fn add_source(&mut self, object: Arc<Object>, new: NewSource) -> Result<Vec<String>, EngineError> {
        let source = Source {
            setup: new.setup,
            connector: new.connector,
            starts: new.starts,
            topic_id: new.topic_id,
            made_anew: false,
            watch: None,
            begun: false,
            assigned: BTreeMap::new(),
            partitions: BTreeMap::new(),
            troubles: BTreeMap::new(),
            topic_trouble: None,
            unseen_by: BTreeMap::new(),
            ids: BTreeMap::new(),
            backfills: Default::default(),
            ends: Vec::new(),
            freshness: Freshness::default(),
            gaps: Vec::new(),
            changes: Vec::new(),
            late_into_trouble: None,
            object,
        };
        self.sources.insert(source.object.oid, source);
        Ok(Vec::new())
    }

    /// Has a source read, now that somebody wants its rows.
    fn begin_source(&mut self, oid: Oid) -> Result<(), EngineError> {
        let Some(source) = self.sources.get_mut(&oid) else { return Ok(()) };
        if source.watch.is_none() {
            let say = self.say.clone();
            // Where something has been read already it is not to be begun anew by itself.
            let starts_of = source.topic_id.clone().filter(|_| !source.begun);
            let (options, starts) = (source.setup.options.clone(), source.starts.clone());
            let watch =
                TopicWatch::start(oid, options, starts, starts_of, move |seen| say.send(Request::Topic(seen)).is_ok());
            source.watch = Some(watch.map_err(|e| EngineError::NotReady {
                message: format!("no thread can be started to watch the topic: {e}"),
                hint: "Raise the limit of threads for this process.".into(),
            })?);
        } else if let Some(watch) = &source.watch {
            watch.ask();
        }
        if !source.begun {
            source.begun = true;
            let setup = source.setup.clone();
            self.broadcast(|| Command::AddSource(Box::new(setup.clone())));
        }
        Ok(())
    }

    /// A view that begins, or goes on with what it had.
    pub(super) fn add_view(
        &mut self,
        object: Arc<Object>,
        plan: StreamPlan,
        took_up: Option<TookUp>,
    ) -> Result<Vec<String>, EngineError> {
        let flow = Flow::of(&plan, self)?;
        let mut notices = self.check(&flow, &plan)?;
        let keeps_every_window = took_up.is_none() && keeps_every_window(&plan);
        if plan.store == StoreChoice::Shared && took_up.is_none() {
            for feed in &flow.feeds {
                let choice = self.choose(feed, &plan, true);
                if choice.found.is_none() {
                    return Err(self.not_shared(feed, &choice));
                }
            }
        }
        for (feed, oldest_us) in flow.feeds.iter().zip(took_up.iter().flat_map(|took_up| &took_up.body.oldest_us)) {
            if let (Some(oldest), Some(us)) = (&feed.oldest, oldest_us) {
                oldest.set(*us);
            }
        }
        let mut tail = match &took_up {
            Some(took_up) => took_up.tail(self, &flow, &plan)?,
            None => Tail::new(&flow)?,
        };
        let mut arrangement = match flow.output {
            Output::Rows(_) if plan.output().append_only => Some(Arrangement::append_only(flow.schema.clone())),
            Output::Rows(_) => Some(Arrangement::multiset(flow.schema.clone())?),
            Output::Feed { .. } | Output::Aggregate { .. } => None,
        };
        if let (Some(took_up), Some(arrangement)) = (&took_up, &mut arrangement) {
            took_up.fill(arrangement)?;
        }
        if self.lasts {
            tail.track_saves();
            arrangement.iter_mut().for_each(Arrangement::track_saves);
        }
        for source in flow.feeds.iter().map(|f| f.source).chain(flow.passes.iter().map(|p| p.rows.source)) {
            self.begin_source(source)?;
        }
        // By source: the ends to be reached, once they are known. A store that is whole already has none to reach.
        let mut targets: BTreeMap<Oid, Option<Vec<(i32, i64)>>> =
            flow.passes.iter().map(|pass| (pass.rows.source, None)).collect();
        let waits = super::emissions::waits(&flow);
        let mut feeds = Vec::new();
        for (i, feed) in flow.feeds.iter().enumerate() {
            let read_in_place = matches!(flow.output, Output::Feed { feed, .. } if feed == i);
            let keep_us = self.wished_us(feed, &plan, read_in_place);
            let mut use_of = match &took_up {
                Some(took_up) => self.take_up_store(object.oid, feed, took_up.body.stores[i], keep_us)?,
                None => self.store_for(&object, i, feed, &plan, read_in_place, keep_us, &mut notices)?,
            };
            if self.is_whole(use_of.store) {
                targets.entry(feed.source).or_insert_with(|| Some(Vec::new()));
            } else {
                targets.insert(feed.source, None);
            }
            if !read_in_place {
                // What it has been told is in what it took up.
                let begins = if took_up.is_some() { Begins::Resumed } else { Begins::WithAll };
                self.add_edge(&mut use_of, plan.retention_us, begins, waits)?;
            }
            feeds.push(use_of);
        }
        let mut passes = Vec::new();
        for pass in &flow.passes {
            let id = self.fresh_id();
            let has_history = took_up.is_some();
            let source = pass.rows.source;
            self.broadcast(|| Command::Attach { source, attached: attached_pass(id, pass), has_history });
            passes.push(id);
        }
        for input in flow.tail.iter().flat_map(|n| &n.inputs) {
            if let Input::Object(upstream) = input {
                self.want_changes(*upstream)?;
                if took_up.is_some() {
                    // What it shows by now has been told.
                    self.begin_changes(*upstream)?;
                }
            }
        }
        if let Some(took_up) = &took_up {
            targets = took_up.body.targets.iter().cloned().collect();
        }
        if took_up.is_none() && targets.values().any(Option::is_none) {
            notices.push(format!(
                "materialized view \"{name}\" is reading history; WAIT FOR {name} returns when it is current",
                name = object.name
            ));
        }
        let oid = object.oid;
        let view = View {
            object,
            plan,
            flow,
            tail,
            arrangement,
            feeds,
            passes,
            passes_short: BTreeMap::new(),
            complete_from_us: None,
            made_in: self.tick,
            targets,
            current: false,
            began: None,
            failed: None,
            waits,
            is_asked: false,
            forgotten_us: None,
            short_before: Shortfall::default(),
            step_us: 0,
            rows_out: 0,
        };
        let view = match took_up {
            None => view,
            Some(TookUp { body, .. }) => View {
                complete_from_us: body.complete_from_us,
                made_in: 0,
                current: body.current,
                rows_out: body.rows_out,
                short_before: body.shortfall,
                ..view
            },
        };
        self.views.insert(oid, view);
        if keeps_every_window {
            notices
                .push("keeps every window until it is dropped; WITH (retention = '30 days') forgets older ones".into());
        }
        Ok(notices)
    }

    /// What a view can be refused for only now that its parts are known.
    pub(super) fn check(&self, flow: &Flow, plan: &StreamPlan) -> Result<Vec<String>, EngineError> {
        let windowed = match &flow.output {
            Output::Feed { feed, .. } => flow.feeds[*feed].layout.grid.is_some(),
            Output::Aggregate { node, .. } => flow.tail[*node]
                .aggregate
                .as_ref()
                .is_some_and(|(a, horizon)| a.layout.grid.is_some() && horizon.is_some()),
            Output::Rows(_) => window_end(plan)
                .is_some_and(|(column, _)| plan.every_us().is_some() && flow.shown_horizons[column].is_some()),
        };
        if plan.retention_us.is_some() && !windowed {
            return Err(EngineError::Invalid {
                message: "retention needs a view that ends in a GROUP BY of windows over a time with a watermark"
                    .into(),
                hint:
                    "Leave retention out, or group by window_start and window_end of HOP, TUMBLE, CUMULATE or SESSION."
                        .into(),
            });
        }
        if plan.store != StoreChoice::Auto && flow.feeds.is_empty() {
            return Err(EngineError::Invalid {
                message: format!("store is for a view that groups rows of a source in slices: {}", no_slices(plan)),
                hint: "Leave store out: what the view holds is its own.".into(),
            });
        }
        let mut notices = Vec::new();
        for node in &plan.nodes {
            if let Op::AssignWindows { window, .. } = &node.op {
                notices.extend(copies(*window, "each row")?);
            }
        }
        for (i, feed) in flow.feeds.iter().enumerate() {
            let in_place = matches!(flow.output, Output::Feed { feed, .. } if feed == i);
            let Some(window) = feed.view.window else { continue };
            if plan.every_us().is_some() {
                // Its changes are worked out at emissions alone.
                let stands =
                    |times| format!("each group stands in {times} windows, and EMIT EVERY keeps the rows it shows");
                notices.extend(times_in(window).filter(|_| window_end(plan).is_some()).map(stands));
            } else if plan.emit == Emit::OnUpdate && !in_place && !plan.over.is_empty() {
                let names: Vec<String> = plan.over.iter().map(|(_, name)| format!("\"{name}\"")).collect();
                notices.extend(copies(window, &format!("each row of {}", names.join(", ")))?);
            }
        }
        for input in flow.tail.iter().flat_map(|n| &n.inputs) {
            let Input::Object(oid) = input else { continue };
            let Some(view) = self.views.get(oid) else { continue };
            let window = match &view.flow.output {
                Output::Feed { feed, .. } => view.flow.feeds[*feed].view.window,
                Output::Aggregate { node, .. } => {
                    view.flow.tail[*node].aggregate.as_ref().and_then(|(a, _)| a.view.window)
                }
                Output::Rows(_) => None,
            };
            if let (Some(window), Emit::OnUpdate) = (window, view.plan.emit) {
                notices.extend(copies(window, &format!("each row of \"{}\"", view.object.name))?);
            }
        }
        notices.dedup();
        Ok(notices)
    }

    /// What a store must keep for a feed, by event time behind the watermark; `None`: all.
    fn wished_us(&self, feed: &Feed, plan: &StreamPlan, read_in_place: bool) -> Option<i64> {
        let size_us = match feed.oldest {
            Some(_) => Some(0),
            None => feed.view.window.map(|window| window.size_us),
        };
        // What is followed over another view is needed until it is final: history is the other view's business.
        if !read_in_place && !plan.over.is_empty() {
            let source = self.sources.get(&feed.source);
            return size_us?.checked_add(source.map_or(0, |s| s.setup.bounds.allowed_lateness_us));
        }
        Some(plan.retention_us?.saturating_add(size_us?))
    }

    /// A store that holds what the feed needs, or a new one.
    #[allow(clippy::too_many_arguments, reason = "what CREATE knows of one feed")]
    fn store_for(
        &mut self,
        object: &Arc<Object>,
        index: usize,
        feed: &Feed,
        plan: &StreamPlan,
        read_in_place: bool,
        keep_us: Option<i64>,
        notices: &mut Vec<String>,
    ) -> Result<FeedUse, EngineError> {
        let (id, view, regrouped) = match self.choose(feed, plan, read_in_place).found {
            Some((id, derived)) => {
                notices.push(self.joined(id, &derived));
                match derived {
                    Derived::Same(view) => (id, view, None),
                    Derived::Regrouped(by) => {
                        let reader = Arc::new(Mutex::new(Regrouped::new(by.clone())?));
                        (id, feed.view.clone(), Some(RegroupedUse { by, reader, edge: None }))
                    }
                }
            }
            None => {
                let id = self.fresh_id();
                let layout = feed.layout.clone();
                let source = feed.source;
                self.broadcast(|| Command::AddStore { store: id, source, layout: layout.clone(), saved: None });
                let attached = attached_feed(id, feed);
                self.broadcast(|| Command::Attach { source, attached: attached.clone(), has_history: false });
                let store = Store {
                    source,
                    feed: Arc::new(feed.clone()),
                    users: BTreeMap::new(),
                    held: true,
                    released_in: 0,
                    made_in: self.tick,
                    reports: BTreeMap::new(),
                    complete_from_us: None,
                    floor_us: None,
                    made_by: (with_views_below(object, &|oid| self.catalog.get(oid)), index),
                    short_before: Shortfall::default(),
                };
                self.stores.insert(id, store);
                notices.push(format!("keeps its state in {}", store_name(id)));
                (id, feed.view.clone(), None)
            }
        };
        self.wish(id, object.oid, keep_us);
        Ok(FeedUse { store: id, view, edge: None, regrouped, floor_us: None })
    }

    /// The store that the feed had when it was kept.
    fn take_up_store(
        &mut self,
        view_oid: Oid,
        feed: &Feed,
        id: StoreId,
        keep_us: Option<i64>,
    ) -> Result<FeedUse, EngineError> {
        let gone = || ExecError::Saved { what: format!("{} of a view", store_name(id)) };
        let store = self.stores.get(&id).ok_or_else(gone)?;
        let (view, regrouped) = match feed.derived_from(&store.feed).map_err(|_| gone())? {
            Derived::Same(view) => (view, None),
            Derived::Regrouped(by) => {
                let reader = Arc::new(Mutex::new(Regrouped::new(by.clone())?));
                (feed.view.clone(), Some(RegroupedUse { by, reader, edge: None }))
            }
        };
        self.wish(id, view_oid, keep_us);
        Ok(FeedUse { store: id, view, edge: None, regrouped, floor_us: None })
    }

    /// What a view wants the store to keep.
    fn wish(&mut self, id: StoreId, view_oid: Oid, keep_us: Option<i64>) {
        let store = self.stores.get_mut(&id).expect("found or made by the caller");
        // A view may use one store twice; the longer wish holds.
        let wish = match store.users.get(&view_oid) {
            Some(None) => None,
            Some(Some(before)) => keep_us.map(|k| k.max(*before)),
            None => keep_us,
        };
        store.users.insert(view_oid, wish);
        self.tell_keep(id);
    }

    /// A store keeps what its most demanding view wants.
    fn tell_keep(&self, id: StoreId) {
        let Some(store) = self.stores.get(&id) else { return };
        let keep_us = store.users.values().copied().collect::<Option<Vec<i64>>>().and_then(|all| all.into_iter().max());
        self.broadcast(|| Command::Keep { store: id, keep_us });
    }

    fn add_edge(
        &mut self,
        feed: &mut FeedUse,
        retention_us: Option<i64>,
        begins: Begins,
        waits: bool,
    ) -> Result<(), EngineError> {
        if let Some(used) = &mut feed.regrouped {
            let changes = RegroupedChanges::new(feed.view.clone())?;
            let regrouped = Regrouped::new(used.by.clone())?;
            used.edge = Some(RegroupedEdge { regrouped, changes, skips_first: begins != Begins::WithAll });
            return Ok(());
        }
        let edge = self.fresh_id();
        feed.edge = Some(edge);
        let (store, view) = (feed.store, feed.view.clone());
        self.broadcast(|| Command::AddEdge { edge, store, view: view.clone(), retention_us, begins, waits });
        Ok(())
    }

    /// A view's changes are wanted by another.
    pub(super) fn want_changes(&mut self, oid: Oid) -> Result<(), EngineError> {
        let Some(mut view) = self.views.remove(&oid) else { return Ok(()) };
        let mut added = Ok(());
        if let Output::Feed { feed, .. } = view.flow.output
            && !view.feeds[feed].is_followed()
        {
            // Whoever begins now is given the content; the stream says what comes after.
            let begins = if self.restoring { Begins::Resumed } else { Begins::WithNothing };
            added = self.add_edge(&mut view.feeds[feed], view.plan.retention_us, begins, false);
        }
        self.views.insert(oid, view);
        added
    }

    pub(super) fn remove(&mut self, oid: Oid) {
        self.end_subscriptions(oid);
        if let Some(view) = self.views.remove(&oid) {
            for feed in &view.feeds {
                if let Some(edge) = feed.edge {
                    self.broadcast(|| Command::DropEdge { edge, store: feed.store });
                }
                let Some(store) = self.stores.get_mut(&feed.store) else { continue };
                store.users.remove(&oid);
                if store.users.is_empty() {
                    let source = store.source;
                    self.stores.remove(&feed.store);
                    self.broadcast(|| Command::DropStore { source, store: feed.store });
                } else {
                    self.tell_keep(feed.store);
                }
            }
            for (&pass, plan) in view.passes.iter().zip(&view.flow.passes) {
                self.broadcast(|| Command::DropPass { source: plan.rows.source, pass });
            }
            for source in view.targets.keys() {
                let read = self.views.values().any(|v| v.targets.contains_key(source));
                if let (false, Some(source)) = (read, self.sources.get_mut(source)) {
                    source.watch = None;
                }
            }
            self.unwanted_changes(view.upstream());
        }
        if self.sources.remove(&oid).is_some() {
            self.broadcast(|| Command::DropSource { source: oid });
        }
        self.tables.remove(&oid);
        self.times.remove(&oid);
        self.kept.forget(oid);
    }

    /// Nobody may want the changes of these any more.
    pub(super) fn unwanted_changes(&mut self, upstream: impl Iterator<Item = Oid>) {
        for oid in upstream {
            if self.views.values().any(|v| v.upstream().any(|up| up == oid)) || self.is_subscribed(oid) {
                continue;
            }
            let Some(view) = self.views.get_mut(&oid) else { continue };
            let feed = match view.flow.output {
                Output::Feed { feed, .. } => feed,
                Output::Aggregate { node, .. } => {
                    view.tail.end_changes(node);
                    continue;
                }
                Output::Rows(_) => continue,
            };
            if let Some(used) = &mut view.feeds[feed].regrouped {
                used.edge = None;
            }
            if let Some(edge) = view.feeds[feed].edge.take() {
                let store = view.feeds[feed].store;
                self.broadcast(|| Command::DropEdge { edge, store });
            }
        }
    }
}

/// In how many windows a moment is, if in more than one.
fn times_in(window: Window) -> Option<i64> {
    Some(window.windows_per_row()).filter(|&times| times > 1)
}

/// The notice that rows are copied, or the refusal.
fn copies(window: Window, what: &str) -> Result<Option<String>, EngineError> {
    let times = window.windows_per_row();
    if times > MOST_COPIES {
        return Err(EngineError::Invalid {
            message: format!("{what} would be copied into {times} windows; {MOST_COPIES} is the most"),
            hint: "Group by the windows themselves, use a larger slide, or EMIT ON WINDOW CLOSE or EMIT EVERY in the inner \
                   view."
                .into(),
        });
    }
    Ok(times_in(window).map(|times| format!("{what} stands in {times} windows and is copied into each")))
}

/// Why a view has nothing in slices.
fn no_slices(plan: &StreamPlan) -> &'static str {
    let any = |is: fn(&Op) -> bool| plan.nodes.iter().any(|node| is(&node.op));
    if !any(|op| matches!(op, Op::Scan { kind: ScanKind::Source, .. })) {
        "this one reads no source"
    } else if !any(|op| matches!(op, Op::Aggregate(_) | Op::Sessions(_))) {
        "this one does not group"
    } else if any(|op| matches!(op, Op::AssignWindows { window, .. } if window.cumulates)) {
        "its groups do not name one window each, as windows of CUMULATE share their start"
    } else if any(|op| matches!(op, Op::AssignWindows { .. })) {
        "its groups do not name one window each"
    } else {
        "what it groups are not the rows of a source as they come"
    }
}

/// Nothing bounds what the view's windows take.
fn keeps_every_window(plan: &StreamPlan) -> bool {
    let has = |is: fn(&Op) -> bool| plan.nodes.iter().any(|node| is(&node.op));
    let windows = |op: &Op| matches!(op, Op::Aggregate(Aggregate { window: Some(_), .. }) | Op::Sessions(_));
    plan.retention_us.is_none() && has(windows) && !has(|op| matches!(op, Op::TemporalFilter { .. }))
}
