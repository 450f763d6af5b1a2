//! What state may take of memory, and what happens when it takes more.

use std::sync::Arc;

use super::coordinator::Coordinator;
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
/// Without a limit, closed slices in files take at most so much.
const DEFAULT_CACHE_BYTES: usize = 1 << 30;

pub(super) struct Memory {
    /// For all state together; none for no limit.
    pub limit_bytes: Option<usize>,
    pub cache: Arc<SliceCache>,
    /// Why nothing is read: state has come to its limit.
    pub full: Option<String>,
    /// As of the last look.
    pub state_bytes: usize,
    /// What workers have been told that they may read in a tick.
    tick_bytes: usize,
}

impl Memory {
    pub fn new(limit_bytes: Option<usize>) -> Memory {
        let cache = Arc::new(SliceCache::new(limit_bytes.map_or(DEFAULT_CACHE_BYTES, |limit| limit / 2)));
        Memory { limit_bytes, cache, full: None, state_bytes: 0, tick_bytes: MAX_TICK_BYTES }
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
        let most = target.saturating_sub(state) / STATE_OF_A_BYTE / self.workers;
        // In few steps, so that little is said of it.
        let most = most.max(LEAST_TICK_BYTES).next_power_of_two().min(MAX_TICK_BYTES);
        if most != self.memory.tick_bytes {
            self.memory.tick_bytes = most;
            self.broadcast(|| Command::TickBytes { most });
        }
        let is_full = state > target || self.memory.full.is_some() && state > target / 20 * 19;
        self.memory.full = is_full.then(|| {
            format!(
                "nothing is read: state takes {} MiB of memory_limit, {} MiB; raise it, drop views, or give them a retention",
                state >> 20,
                limit >> 20
            )
        });
        self.mind_reading();
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
