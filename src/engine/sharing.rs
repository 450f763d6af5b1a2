//! Which store a view reads, and how EXPLAIN tells of it.

use std::fmt::Write;
use std::sync::Arc;

use arrow::datatypes::Schema;

use super::coordinator::Coordinator;
use super::dataflow::{FeedUse, Store, View};
use super::error::EngineError;
use super::figures::store_name;
use crate::catalog::Oid;
use crate::exec::derive::{Derived, Misfit};
use crate::exec::exchange::StoreId;
use crate::exec::flow::{Feed, Flow, Output, floor_us};
use crate::exec::regroup::{Held, Regrouping};
use crate::exec::slice_store::StoreLayout;
use crate::planner::stream_plan::{Micros, StoreChoice, StreamPlan};
use crate::planner::{explain, expr_text};

/// EXPLAIN names at most so many stores that do not do.
const MOST_MISFITS: usize = 5;

/// What a feed can be read from.
pub(super) struct Choice {
    pub found: Option<(StoreId, Derived)>,
    /// Stores that come close, with what is in the way.
    pub misfits: Vec<(StoreId, InTheWay)>,
}

pub(super) enum InTheWay {
    Misfit(Misfit),
    /// Its groups are finer, and following them tick by tick costs too much to do it unasked.
    Finer,
    /// The view asks for a store of its own.
    Unwanted,
    /// Rows that the feed needs have gone: no temporal filter of a view wanted them any more.
    LetGo,
}

impl Coordinator {
    /// The store that the feed is best read from. One that holds its history already comes before one that still reads it, equal
    /// groups before finer ones, the store of a view that the plan is over before others, and then the one with fewer keys.
    ///
    /// Finer groups do where the view is read in place: a read then costs what has changed since the last. Where an operator
    /// wants the view's changes at every tick, they do only if the view is over a view of that store (whose history it is to
    /// have), or asks for it.
    pub(super) fn choose(&self, feed: &Feed, plan: &StreamPlan, in_place: bool) -> Choice {
        let takes_finer = in_place || !plan.over.is_empty() || plan.store == StoreChoice::Shared;
        let (mut fitting, mut misfits) = (Vec::new(), Vec::new());
        for (&id, store) in &self.stores {
            match feed.derived_from(&store.feed) {
                Err(Misfit::Apart) => {}
                Err(misfit) => misfits.push((id, InTheWay::Misfit(misfit))),
                Ok(_) if plan.store == StoreChoice::Own => misfits.push((id, InTheWay::Unwanted)),
                Ok(Derived::Regrouped(_)) if !takes_finer => misfits.push((id, InTheWay::Finer)),
                Ok(derived) => {
                    let is_finer = matches!(derived, Derived::Regrouped(_));
                    let is_over = plan.over.iter().any(|(oid, _)| store.users.contains_key(oid));
                    // What the filters of a view below have let go is not wanted of it either.
                    if !is_over && self.has_let_go(store, feed) {
                        misfits.push((id, InTheWay::LetGo));
                        continue;
                    }
                    let keys: usize = store.reports.values().map(|report| report.keys).sum();
                    fitting.push(((!self.is_whole(id), is_finer, !is_over, keys, id), derived));
                }
            }
        }
        let found = fitting.into_iter().min_by_key(|(rank, _)| *rank).map(|((.., id), derived)| (id, derived));
        Choice { found, misfits }
    }

    /// Is some of what the feed's own temporal filters want gone from the store?
    fn has_let_go(&self, store: &Store, feed: &Feed) -> bool {
        let size_us = feed.view.window.map_or(0, |window| window.size_us);
        let wants_us = floor_us(&feed.floors, self.now_us, &self.times).map(|us| us.saturating_sub(size_us));
        store.floor_us.is_some_and(|gone_us| wants_us.is_none_or(|wants_us| wants_us < gone_us))
    }

    /// Does a view that is current read the store?
    pub(super) fn is_whole(&self, store: StoreId) -> bool {
        let users = self.stores.get(&store).into_iter().flat_map(|store| store.users.keys());
        users.filter_map(|oid| self.views.get(oid)).any(|view| view.current)
    }

    /// What CREATE says of a store that a view joins.
    pub(super) fn joined(&self, id: StoreId, derived: &Derived) -> String {
        let Some(store) = self.stores.get(&id) else { return String::new() };
        let with = self.readers(store, None).join(", ");
        match derived {
            Derived::Same(_) => format!("shares {} with {with}", store_name(id)),
            Derived::Regrouped(by) => {
                let rows = match store.rows_a_slice() {
                    0 => String::new(),
                    rows => format!(", about {rows} rows a slice"),
                };
                format!(
                    "shares {} with {with}: reads make its groups of the store's keys [{}]{rows}; WITH (store = 'own') keeps \
                     it apart",
                    store_name(id),
                    names(&by.fine),
                )
            }
        }
    }

    /// Why a view that asks for a shared store cannot have one.
    pub(super) fn not_shared(&self, feed: &Feed, choice: &Choice) -> EngineError {
        let source = self.source_schema(feed);
        let why: Vec<String> = choice
            .misfits
            .iter()
            .map(|(id, why)| format!("{} {}", store_name(*id), in_words(why, feed, &source)))
            .collect();
        EngineError::Invalid {
            message: match why.as_slice() {
                [] => "there is no store of this source and these windows to share".into(),
                why => format!("there is no store to share: {}", why.join("; ")),
            },
            hint: "Leave store = 'shared' out to make one.".into(),
        }
    }

    /// Names of the views that read a store, in quotes, but for one.
    fn readers(&self, store: &Store, but: Option<Oid>) -> Vec<String> {
        let others = store.users.keys().filter(|oid| Some(**oid) != but);
        others.filter_map(|oid| Some(format!("\"{}\"", self.views.get(oid)?.object.name))).collect()
    }

    fn source_schema(&self, feed: &Feed) -> Arc<Schema> {
        self.sources.get(&feed.source).map_or_else(|| Arc::new(Schema::empty()), |s| s.object.columns.clone())
    }

    /// The plan of a view, and the stores it reads or would read.
    pub(super) fn explain_plan(&self, plan: &StreamPlan) -> Result<Vec<String>, EngineError> {
        let flow = Flow::of(plan, self)?;
        self.check(&flow, plan)?;
        let mut lines = plan_lines(plan);
        for (i, feed) in flow.feeds.iter().enumerate() {
            let in_place = matches!(flow.output, Output::Feed { feed, .. } if feed == i);
            let choice = self.choose(feed, plan, in_place);
            match &choice.found {
                Some((id, derived)) => {
                    lines.push(format!("Store: would join {}", self.store_line(*id, None)));
                    lines.extend(self.regrouping_line(*id, derived));
                }
                None if plan.store == StoreChoice::Shared => return Err(self.not_shared(feed, &choice)),
                None => lines.push(format!("Store: would make its own: {}", layout_line(&feed.layout))),
            }
            let source = self.source_schema(feed);
            let close = choice.misfits.iter().filter(|_| choice.found.is_none());
            for (id, why) in close.take(MOST_MISFITS) {
                lines.push(format!("  {} {}", store_name(*id), in_words(why, feed, &source)));
            }
        }
        Ok(lines)
    }

    /// [`Coordinator::explain_plan`] of a view that runs.
    pub(super) fn explain_running(&self, view: &View) -> Vec<String> {
        let mut lines = plan_lines(&view.plan);
        for (i, used) in view.feeds.iter().enumerate() {
            let derived = match &used.regrouped {
                Some(regrouped) => Derived::Regrouped(regrouped.by.clone()),
                None => Derived::Same(used.view.clone()),
            };
            lines.push(format!("Store: {}", self.store_line(used.store, Some(view.object.oid))));
            lines.extend(self.regrouping_line(used.store, &derived));
            if used.is_followed() {
                let how = if view.waits { "worked out at each emission" } else { "followed tick by tick" };
                lines.push(format!("  changes are {how}"));
            }
            // What else reads this very view.
            let reads_it = |other: &&View| other.upstream().any(|oid| oid == view.object.oid);
            let below: Vec<String> =
                self.views.values().filter(reads_it).map(|other| format!("\"{}\"", other.object.name)).collect();
            if i == 0 && !below.is_empty() {
                lines.push(format!("Changes: go to {}", below.join(", ")));
            }
        }
        lines
    }

    /// A store, and who reads it.
    fn store_line(&self, id: StoreId, view: Option<Oid>) -> String {
        let Some(store) = self.stores.get(&id) else { return store_name(id) };
        let mut line = format!("{}, {}", store_name(id), layout_line(&store.feed.layout));
        let readers = self.readers(store, view);
        let _ = match (readers.as_slice(), view) {
            ([], _) => Ok(()),
            (readers, Some(_)) => write!(line, ", read by {} too", readers.join(", ")),
            (readers, None) => write!(line, ", read by {}", readers.join(", ")),
        };
        line
    }

    /// How a view's groups come from those of a store, unless they are the same.
    fn regrouping_line(&self, id: StoreId, derived: &Derived) -> Option<String> {
        let (Derived::Regrouped(by), Some(store)) = (derived, self.stores.get(&id)) else { return None };
        Some(format!("  {}, of about {} rows a slice", in_groups(by), store.rows_a_slice()))
    }
}

impl Store {
    /// Rows of an average slice, over all workers.
    fn rows_a_slice(&self) -> usize {
        let mut rows_by_slice = std::collections::BTreeMap::new();
        for &(slice, rows, _, _) in self.reports.values().flat_map(|report| &report.slices) {
            *rows_by_slice.entry(slice).or_insert(0) += rows;
        }
        rows_by_slice.values().sum::<usize>().checked_div(rows_by_slice.len()).unwrap_or(0)
    }
}

impl FeedUse {
    pub(super) fn is_followed(&self) -> bool {
        self.edge.is_some() || self.regrouped.as_ref().is_some_and(|regrouped| regrouped.edge.is_some())
    }
}

fn plan_lines(plan: &StreamPlan) -> Vec<String> {
    explain(plan).lines().map(str::to_string).collect()
}

fn names(layout: &StoreLayout) -> String {
    layout.keys.iter().map(|key| key.name().as_str()).collect::<Vec<_>>().join(", ")
}

fn layout_line(layout: &StoreLayout) -> String {
    let calls: Vec<&str> = layout.measures.iter().map(|measure| measure.output().name().as_str()).collect();
    let slices = match (layout.sessions, layout.grid) {
        (Some(sessions), _) => sessions.session.to_string(),
        (None, None) => "no windows".to_string(),
        (None, Some(grid)) if grid.phase_us == 0 => format!("slice={}", Micros(grid.width_us)),
        (None, Some(grid)) => format!("slice={}, offset={}", Micros(grid.width_us), Micros(grid.phase_us)),
    };
    format!("{slices}, keys=[{}], calls=[{}]", names(layout), calls.join(", "))
}

/// What groups are made of, in words.
fn in_groups(by: &Regrouping) -> String {
    let fine = Schema::new(by.fine.keys.to_vec());
    let keys: Vec<String> = by.keys.iter().map(|key| expr_text(key, &fine)).collect();
    let mut line = format!("groups are made at each read: group=[{}]", keys.join(", "));
    if !by.filters.is_empty() {
        let filters: Vec<String> = by.filters.iter().map(|filter| expr_text(filter, &fine)).collect();
        let _ = write!(line, ", where {}", filters.join(" AND "));
    }
    let calls = by.measures.iter().zip(&by.layout.measures).map(|(origin, measure)| {
        let from = match origin.held {
            Held::Rows => "rows".to_string(),
            Held::Measure(i) => by.fine.measures[i].output().name().clone(),
        };
        let when = origin.when.as_ref().map(|when| format!(" where {}", expr_text(when, &fine))).unwrap_or_default();
        let (from, shown) = (format!("{from}{when}"), measure.output().name());
        if from == *shown { from } else { format!("{shown} from {from}") }
    });
    let _ = write!(line, ", calls=[{}]", calls.collect::<Vec<_>>().join(", "));
    line
}

fn in_words(why: &InTheWay, feed: &Feed, source: &Schema) -> String {
    let misfit = match why {
        InTheWay::Misfit(misfit) => misfit,
        InTheWay::Finer => {
            return "holds it by finer keys, which is too much to follow tick by tick unasked; WITH (store = 'shared') \
                    does"
                .into();
        }
        InTheWay::Unwanted => return "would do, but WITH (store = 'own') is asked for".into(),
        InTheWay::LetGo => {
            return "does not do: it has let go of rows that the conditions on time of its views leave behind".into();
        }
    };
    match misfit {
        Misfit::Apart => "has another source or time".into(),
        Misfit::Grid(grid) => match feed.layout.grid {
            Some(mine) if mine.width_us % grid.width_us == 0 => {
                format!("does not do: its slices of {} begin at another offset", Micros(grid.width_us))
            }
            _ => format!("does not do: its slices of {} do not make up the windows", Micros(grid.width_us)),
        },
        Misfit::LeavesOut(filter) => format!("does not do: it holds only rows where {}", expr_text(filter, source)),
        Misfit::Filter(filter) => {
            format!("does not do: its keys do not tell where {}", expr_text(filter, source))
        }
        Misfit::Key(key) => format!("does not do: {} is not among its keys", expr_text(key, source)),
        Misfit::Call(call) => {
            let name = feed.layout.measures.get(*call).map_or("", |measure| measure.output().name().as_str());
            format!("does not do: it does not hold {name}")
        }
    }
}
