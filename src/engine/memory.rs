//! What state may take of memory, and what happens when it takes more.

use std::sync::Arc;

use super::coordinator::Coordinator;
use super::dataflow::View;
use super::orders::Command;
use super::stats::MemoryStats;
use super::worker::MAX_TICK_BYTES;
use crate::exec::arrangement::Arrangement;
use crate::exec::slice_cache::SliceCache;

/// Closed slices that are in files may always take so much.
const LEAST_CACHE_BYTES: usize = 64 << 20;
/// A byte that is read takes at most about so many of state.
const STATE_OF_A_BYTE: usize = 4;
/// Near the limit a worker still reads so much in a tick.
const LEAST_TICK_BYTES: usize = 256 << 10;
/// History rests before all reading does, so that views that are current stay so while another one's history is too large. These are
/// of what makes all reading rest.
const HISTORY_EIGHTHS: usize = 7;
/// A hash table that doubles goes past both bounds at once. Then reading goes on until state has grown by this part of the limit.
const BEYOND_HISTORY: usize = 16;
/// Workers know so many ticks later at most that history rests.
const UNTIL_HISTORY_RESTS: u64 = 3;
/// Without a limit, closed slices in files take at most so much.
const DEFAULT_CACHE_BYTES: usize = 1 << 30;

pub(super) struct Memory {
    /// For all state together; none for no limit.
    pub limit_bytes: Option<usize>,
    pub cache: Arc<SliceCache>,
    /// Why nothing is read: state has come to its limit.
    pub full: Option<String>,
    /// Why no history is read: state has come near its limit.
    pub near_full: Option<String>,
    /// What state took when there was history that began to rest, and the tick.
    with_history: Option<(usize, u64)>,
    /// As of the last look.
    pub state_bytes: usize,
    /// What workers have been told that they may read in a tick, in all and of history.
    tick_bytes: (usize, usize),
}

impl Memory {
    pub fn new(limit_bytes: Option<usize>) -> Memory {
        let cache = Arc::new(SliceCache::new(limit_bytes.map_or(DEFAULT_CACHE_BYTES, |limit| limit / 2)));
        Memory {
            limit_bytes,
            cache,
            full: None,
            near_full: None,
            with_history: None,
            state_bytes: 0,
            tick_bytes: (MAX_TICK_BYTES, MAX_TICK_BYTES),
        }
    }
}

impl Memory {
    /// Then every tick is looked at: in a few of them more may come in than the limit leaves.
    pub fn is_limited(&self) -> bool {
        self.limit_bytes.is_some()
    }

    pub fn stats(&self) -> MemoryStats {
        MemoryStats {
            state_bytes: self.state_bytes as u64,
            cached_bytes: self.cache.bytes() as u64,
            limit_bytes: self.limit_bytes.map(|bytes| bytes as u64),
        }
    }
}

impl Coordinator {
    /// Gives closed slices in files what other state leaves of the limit, and has less read in a tick the less that is; once it is
    /// nothing, reading rests.
    pub(super) fn mind_memory(&mut self) {
        let cached = self.memory.cache.bytes();
        let state = self.state_bytes().saturating_sub(cached);
        self.memory.state_bytes = state;
        let Some(limit) = self.memory.limit_bytes else { return };
        let target = limit / 10 * 9;
        self.memory.cache.set_limit_bytes(target.saturating_sub(state).max(LEAST_CACHE_BYTES.min(limit / 10)));
        let most = |target: usize| {
            let most = target.saturating_sub(state) / STATE_OF_A_BYTE / self.workers;
            // In few steps, so that little is said of it.
            most.max(LEAST_TICK_BYTES).next_power_of_two().min(MAX_TICK_BYTES)
        };
        // It begins to rest above the target, and goes on below a twentieth less.
        let is_above = |target: usize, rests: bool| state > target || rests && state > target / 20 * 19;
        let for_history = target / 8 * HISTORY_EIGHTHS;
        let rests = is_above(for_history, self.memory.near_full.is_some());
        let has_history = || self.sources.values().any(|source| !source.backfills.is_empty());
        self.memory.with_history = match self.memory.with_history.filter(|_| rests) {
            None if rests && self.memory.near_full.is_none() && has_history() => Some((state, self.tick)),
            Some((before, since)) if self.tick <= since + UNTIL_HISTORY_RESTS => Some((before.max(state), since)),
            unchanged => unchanged,
        };
        let beyond = self.memory.with_history.map_or(0, |(state, _)| state + limit / BEYOND_HISTORY);
        let for_all = target.max(beyond);
        let tick_bytes = (most(for_all), if rests { 0 } else { most(for_history) });
        let is_full = is_above(for_all, self.memory.full.is_some());
        if tick_bytes != self.memory.tick_bytes {
            self.memory.tick_bytes = tick_bytes;
            let (most, most_history) = tick_bytes;
            self.broadcast(|| Command::TickBytes { most, most_history });
        }
        self.memory.near_full = rests.then(|| {
            format!(
                "history is not read: state takes {} MiB of memory_limit, {} MiB, and what is left is for current views; raise it, drop \
                 views, or give them a retention",
                state >> 20,
                limit >> 20
            )
        });
        self.memory.full = is_full.then(|| {
            format!(
                "nothing is read: state takes {} MiB of memory_limit, {} MiB; raise it, drop views, or give them a retention",
                state >> 20,
                limit >> 20
            )
        });
        self.mind_reading();
    }

    /// Why a view's history is not read, if it is so.
    pub(super) fn history_rests(&self, view: &View) -> Option<String> {
        let mut consumers = self.sources.values().flat_map(|source| source.backfills.keys());
        let near_full =
            || self.memory.near_full.clone().filter(|_| consumers.any(|consumer| super::jobs::feeds(view, consumer)));
        self.rests.clone().or_else(near_full)
    }

    /// Of stores, tables, views and ids, as far as they say.
    fn state_bytes(&self) -> usize {
        let stores = self.stores.values().flat_map(|store| store.reports.values()).map(|report| report.bytes);
        let tables = self.tables.values().map(|table| table.state.bytes());
        let views = self.views.values().map(|view| {
            let tail: usize = view.tail.state().iter().map(|(_, _, bytes)| bytes).sum();
            tail + view.arrangement.as_ref().map_or(0, Arrangement::bytes)
        });
        let ids = self.sources.values().flat_map(|source| source.ids.values()).map(|ids| ids.bytes as usize);
        stores.chain(tables).chain(views).chain(ids).sum()
    }
}
