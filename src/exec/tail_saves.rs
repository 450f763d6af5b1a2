//! A tail kept over a restart: the state of its nodes, each as it is saved by itself, under names that begin with the node's.
//!
//! What a node has told those downstream is no state of its own but for a few words: it follows from what the node holds and
//! from the times of the tick in which that was saved.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::ExecError;
use super::closed_slice::ClosedSlice;
use super::durable::{Buckets, Saved, Section};
use super::feed::Shortfall;
use super::flow::{Flow, floor_us};
use super::operator::Durable;
use super::panes_in_files::{PaneEntry, PaneToKeep};
use super::saved_columns::{since_whole, wrong};
use super::session_changes::SessionChanges;
use super::session_store::SessionStore;
use super::slice_cache::SliceCache;
use super::slice_store::SliceStore;
use super::store_saved::{ClosedEntry, SavedPart};
use super::tail::{Stage, Tail, Times, shown};
use super::window_view::{Changes, Shown, Told};

/// What [`Tail::save`] gives.
#[derive(Debug)]
pub struct TailSaved {
    pub saved: Saved,
    /// By node: see [`super::store_saved::StoreSaved::closed`].
    pub closed: Vec<(usize, Arc<ClosedSlice>)>,
    /// By node: see [`super::store_saved::StoreSaved::panes`].
    pub panes: Vec<(usize, PaneToKeep)>,
    /// Of some node, [`super::store_saved::StoreSaved::renumbered`].
    pub renumbered: bool,
}

/// What of a tail's nodes lies in files of slices, each with its node.
#[derive(Debug, Clone, Default)]
pub struct InFiles {
    pub closed: Vec<(usize, ClosedEntry)>,
    pub panes: Vec<(usize, PaneEntry)>,
}

/// A node's counts, and what it has told.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Said {
    #[serde(default)]
    shortfall: Shortfall,
    /// Values that were shown as NULL because they do not fit their type, and the first of them.
    overflows: (u64, Option<String>),
    /// Of an aggregation that somebody follows.
    told: Option<Told>,
}

#[derive(Serialize, Deserialize)]
struct Notes {
    /// How many nodes there are.
    of: usize,
    /// Those of which there is something to say.
    nodes: Vec<NodeNotes>,
}

#[derive(Serialize, Deserialize)]
struct NodeNotes {
    node: usize,
    /// Of the node's own [`Saved`].
    whole: bool,
    notes: Value,
    sections: usize,
    said: Said,
}

const EVERY_BUCKET: Buckets = 0..=u8::MAX;

impl Tail {
    /// From now on [`Tail::save`] can be asked.
    pub fn track_saves(&mut self) {
        // One that was loaded goes on from what was saved.
        if self.said.is_some() {
            return;
        }
        for (_, stage) in &mut self.nodes {
            match stage {
                Stage::Operator(operator) => {
                    if let Some(durable) = operator.durable() {
                        durable.track_saves();
                    }
                }
                Stage::Aggregate(stage) => stage.store.track_saves(EVERY_BUCKET),
                Stage::Sessions(stage) => stage.store.track_saves(EVERY_BUCKET),
                Stage::TemporalFilter(filter, _) => filter.track_saves(),
                Stage::EmitEvery(every) => every.track_saves(),
            }
        }
    }

    /// What has changed since the last `save`, or all. After an error the next gives all.
    pub fn save(&mut self, whole: bool) -> Result<TailSaved, ExecError> {
        let before = self.said.take();
        let whole = whole || before.is_none();
        let saved = Saved { whole, ..Saved::default() };
        let mut out = TailSaved { saved, closed: Vec::new(), panes: Vec::new(), renumbered: false };
        let mut notes = Notes { of: self.nodes.len(), nodes: Vec::new() };
        let mut all_said = Vec::with_capacity(self.nodes.len());
        for node in 0..self.nodes.len() {
            let said = self.said_of(node);
            let saved = match &mut self.nodes[node].1 {
                Stage::Operator(operator) => operator.durable().map(|durable| durable.save(whole)).transpose()?,
                Stage::Aggregate(stage) => {
                    let saved = stage.store.save(whole)?;
                    out.closed.extend(saved.closed.into_iter().map(|slice| (node, slice)));
                    out.panes.extend(saved.panes.into_iter().map(|pane| (node, pane)));
                    out.renumbered |= saved.renumbered;
                    Some(saved.saved)
                }
                Stage::Sessions(stage) => Some(stage.store.save(whole)?),
                Stage::TemporalFilter(filter, _) => Some(filter.save(whole)?),
                Stage::EmitEvery(every) => Some(every.save(whole)?),
            };
            let saved = saved.unwrap_or_default();
            let sections = saved.sections.len();
            if whole || !saved.is_empty() || before.as_ref().is_some_and(|before| before[node] != said) {
                let named = |section: Section| Section { name: format!("{node}/{}", section.name), ..section };
                out.saved.sections.extend(saved.sections.into_iter().map(named));
                notes.nodes.push(NodeNotes {
                    node,
                    whole: saved.whole,
                    notes: saved.notes,
                    sections,
                    said: said.clone(),
                });
            }
            all_said.push(said);
        }
        if whole || !notes.nodes.is_empty() {
            out.saved.notes = serde_json::json!(notes);
        }
        self.said = Some(all_said);
        Ok(out)
    }

    fn said_of(&self, node: usize) -> Said {
        let (of, stage) = &self.nodes[node];
        let told = match stage {
            Stage::Aggregate(stage) => stage.changes.as_ref().map(Changes::told),
            Stage::Sessions(stage) => stage.changes.as_ref().map(|_| Told::default()),
            Stage::Operator(_) | Stage::TemporalFilter(..) | Stage::EmitEvery(_) => None,
        };
        let overflows = of.aggregate.as_ref().map(|(aggregate, _)| aggregate.view.overflows.get()).unwrap_or_default();
        Said { shortfall: self.shortfall_of(node), overflows, told }
    }

    /// The tail of a flow as it was saved, at a tick with these times, at `now_us` by the clock: stepped with what came after,
    /// it gives what the other would have given. The sessions of
    /// feeds that the flow reads must have said by then which is their oldest. [`Tail::track_saves`] is done. Errors:
    /// [`ExecError::Saved`].
    pub fn load(
        flow: &Flow,
        saves: &[Saved],
        in_files: InFiles,
        times: &dyn Times,
        now_us: i64,
        retention_us: Option<i64>,
        cache: &Arc<SliceCache>,
    ) -> Result<Tail, ExecError> {
        let mut tail = Tail::with_cache(flow, cache)?;
        let (mut parts, said) = by_node(since_whole(saves)?, tail.nodes.len())?;
        for (node, entry) in in_files.closed {
            parts.get_mut(node).ok_or_else(|| wrong(format!("a slice of node {node}")))?.closed.push(entry);
        }
        for (node, pane) in in_files.panes {
            parts.get_mut(node).ok_or_else(|| wrong(format!("a pane of node {node}")))?.panes.push(pane);
        }
        for (i, ((node, stage), part)) in tail.nodes.iter_mut().zip(parts).enumerate() {
            let floors = node.aggregate.as_ref().map_or(&[][..], |(aggregate, _)| &aggregate.floors);
            let floor_us = floor_us(floors, now_us, times);
            let shown = |horizon: Option<&_>| shown(horizon, times, retention_us).above(floor_us);
            match stage {
                Stage::Operator(operator) => match operator.durable() {
                    Some(durable) => durable.load(&part.saved)?,
                    None if part.saved.iter().any(|saved| !saved.sections.is_empty()) => {
                        return Err(wrong(format!("node {i} keeps nothing, and something was saved")));
                    }
                    None => {}
                },
                Stage::Aggregate(stage) => {
                    let layout = stage.store.layout().clone();
                    stage.store = SliceStore::load(layout, vec![part], EVERY_BUCKET, cache.clone())?;
                    let shown = shown(stage.horizon.as_ref());
                    stage.changes = said[i].told.map(|told| stage.resume(&shown, told)).transpose()?;
                }
                Stage::Sessions(stage) => {
                    stage.store = SessionStore::load(stage.store.layout.clone(), &[part.saved], EVERY_BUCKET)?;
                    stage.changes = None;
                    if said[i].told.is_some() {
                        let mut changes = SessionChanges::new(stage.view.clone())?;
                        stage.store.track_changes();
                        changes.resume(&mut stage.store)?;
                        stage.changes = Some(changes);
                    }
                    if let Some(final_until_us) = shown(stage.horizon.as_ref()).final_until_us {
                        stage.oldest.set(stage.store.oldest_open_us(final_until_us));
                    }
                }
                Stage::TemporalFilter(filter, _) => filter.load(&part.saved)?,
                Stage::EmitEvery(every) => every.load(&part.saved)?,
            }
            if let Some((aggregate, _)) = &node.aggregate {
                let (count, sample) = said[i].overflows.clone();
                aggregate.view.overflows.restore(count, sample);
            }
        }
        tail.before = said.iter().map(|said| said.shortfall.clone()).collect();
        tail.said = Some(said);
        Ok(tail)
    }
}

impl Tail {
    /// By node that keeps slices: those before this are forgotten.
    pub fn first_kept(&self) -> Vec<(u32, i64)> {
        self.stores().filter_map(|(node, store)| Some((node, store.first_kept()?))).collect()
    }

    /// (node, slice) of every slice that is closed.
    pub fn closed_slices(&self) -> BTreeSet<(u32, i64)> {
        let closed = |(node, store): (u32, &SliceStore)| {
            let slices = store.slices().filter(|(.., closed)| *closed);
            slices.map(|(slice, ..)| (node, slice)).collect::<Vec<_>>()
        };
        self.stores().flat_map(closed).collect()
    }

    fn stores(&self) -> impl Iterator<Item = (u32, &SliceStore)> {
        self.nodes.iter().enumerate().filter_map(|(node, (_, stage))| match stage {
            Stage::Aggregate(stage) => Some((node as u32, &stage.store)),
            _ => None,
        })
    }
}

impl super::tail::AggregateStage {
    fn resume(&mut self, shown: &Shown, told: Told) -> Result<Changes, ExecError> {
        let mut changes = Changes::new(self.view.clone())?;
        self.store.track_changes();
        self.store.take_dirty();
        changes.resume(&mut self.store, shown, told)?;
        Ok(changes)
    }
}

/// What each node has saved, and said last.
fn by_node(saves: &[Saved], nodes: usize) -> Result<(Vec<SavedPart>, Vec<Said>), ExecError> {
    let mut parts: Vec<SavedPart> = (0..nodes).map(|_| SavedPart::default()).collect();
    let mut said = vec![Said::default(); nodes];
    for saved in saves.iter().filter(|saved| !saved.is_empty()) {
        let notes: Notes = saved.notes()?;
        if notes.of != nodes {
            return Err(wrong(format!("a tail of {} nodes, which has {nodes} now", notes.of)));
        }
        // How many sections of each are still to come.
        let mut given: Vec<Option<usize>> = vec![None; nodes];
        for of in notes.nodes {
            let (Some(part), false) = (parts.get_mut(of.node), saved.whole && !of.whole && of.notes != Value::Null)
            else {
                return Err(wrong(format!("notes of node {}", of.node)));
            };
            given[of.node] = Some(of.sections);
            part.saved.push(Saved { whole: of.whole, sections: Vec::new(), notes: of.notes });
            said[of.node] = of.said;
        }
        for section in &saved.sections {
            let place = section.name.split_once('/').and_then(|(node, name)| Some((node.parse::<usize>().ok()?, name)));
            let (node, name) = place
                .filter(|(node, _)| matches!(given.get(*node), Some(Some(more)) if *more > 0))
                .ok_or_else(|| wrong(format!("section {} is of no node", section.name)))?;
            given[node] = given[node].map(|more| more - 1);
            let of_node = parts[node].saved.last_mut().expect("it has just been given one");
            of_node.sections.push(Section { name: name.to_string(), rows: section.rows.clone() });
        }
        if given.iter().any(|given| given.is_some_and(|more| more > 0)) {
            return Err(wrong("a section of a node of the tail is missing"));
        }
        if saved.whole && given.contains(&None) {
            return Err(wrong("not every node of the tail was saved"));
        }
    }
    Ok((parts, said))
}
