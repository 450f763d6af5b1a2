//! For tests: a place for blobs that fails and crashes as a seed says, and an order for the calls of several processes.
//!
//! ```text
//! let disk = SimDisk::new(Kind::Local, seed);
//! disk.set_faults(Faults { before: 0.1, after: 0.1, ..Faults::default() });
//! disk.crash_in(17);                                          // at the 17th call from here
//! Storage::open_with(disk.process(), writer, now_us)          // until everything answers "has crashed"
//! disk.crash();                                               // what was not synced may be gone
//! Storage::open_with(disk.process(), writer + 1, now_us)      // the next process
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::thread;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{Blob, Blobs, Put, StorageError};

/// How a put becomes visible and durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A folder: names are durable once their folder is synced, and one process has the lock.
    Local,
    /// A bucket: what was put is durable, perhaps later than the answer says.
    Bucket,
}

/// Probabilities, by call.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// The call fails and had no effect.
    pub before: f64,
    /// A put or a delete fails and had its effect; in a folder, the name is not durable.
    pub after: f64,
    /// Buckets only: a put fails and has its effect some calls later.
    pub late: f64,
    /// A call takes up to so many steps of [`SimDisk::steps`] more than one, in each of which other threads may run.
    pub delay: u64,
}

/// How often other threads may run in a step of a delay.
const YIELDS: u64 = 100;

/// What outlives processes. Clones are one.
#[derive(Clone)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
    crashed: Arc<Condvar>,
}

struct State {
    kind: Kind,
    random: StdRng,
    faults: Faults,
    steps: u64,
    blobs: BTreeMap<String, Entry>,
    late: Vec<Late>,
    /// Processes below this number have crashed.
    alive_from: u64,
    processes: u64,
    locked_by: Option<u64>,
    crash_in: Option<u64>,
    crashes: u64,
    crashed: Arc<Condvar>,
    refuses_puts: Option<StorageError>,
    tear_manifest: bool,
}

struct Entry {
    bytes: Bytes,
    /// The name is; the bytes are before they get one.
    durable: bool,
}

struct Late {
    due: u64,
    name: String,
    bytes: Bytes,
    create_only: bool,
}

impl SimDisk {
    pub fn new(kind: Kind, seed: u64) -> SimDisk {
        let crashed = Arc::new(Condvar::new());
        let state = State {
            kind,
            random: StdRng::seed_from_u64(seed),
            faults: Faults::default(),
            steps: 0,
            blobs: BTreeMap::new(),
            late: Vec::new(),
            alive_from: 0,
            processes: 0,
            locked_by: None,
            crash_in: None,
            crashes: 0,
            crashed: crashed.clone(),
            refuses_puts: None,
            tear_manifest: false,
        };
        SimDisk { state: Arc::new(Mutex::new(state)), crashed }
    }

    pub fn set_faults(&self, faults: Faults) {
        self.state.lock().faults = faults;
    }

    /// Every put fails like this, without an effect, until told otherwise.
    pub fn refuse_puts(&self, error: Option<StorageError>) {
        self.state.lock().refuses_puts = error;
    }

    /// What a new process sees.
    pub fn process(&self) -> Arc<dyn Blobs> {
        Arc::new(self.next_process(None))
    }

    /// What a new process sees whose calls wait for their turn.
    pub fn process_in_turns(&self, turn: Turn) -> Arc<dyn Blobs> {
        Arc::new(self.next_process(Some(turn)))
    }

    fn next_process(&self, turn: Option<Turn>) -> SimBlobs {
        let mut state = self.state.lock();
        state.processes += 1;
        SimBlobs { disk: self.clone(), process: state.processes, turn }
    }

    /// Ends all processes: every call of theirs fails from now on. Names that were not durable may be gone.
    pub fn crash(&self) {
        self.state.lock().crash();
    }

    /// [`crash`](SimDisk::crash) in the middle of the `calls`th call from now on (1 is the next).
    pub fn crash_in(&self, calls: u64) {
        self.state.lock().crash_in = Some(calls);
    }

    /// How often all processes were ended.
    pub fn crashes(&self) -> u64 {
        self.state.lock().crashes
    }

    /// Blocks until [`crashes`](SimDisk::crashes) is more than that.
    pub fn wait_for_crash_after(&self, crashes: u64) {
        self.crashed.wait_while(&mut self.state.lock(), |state| state.crashes <= crashes);
    }

    /// If the next crash comes in the middle of putting a manifest, it is there, but cut: what no file system should do.
    pub fn tear_manifest(&self) {
        self.state.lock().tear_manifest = true;
    }

    /// Virtual time: calls and their delays.
    pub fn steps(&self) -> u64 {
        self.state.lock().steps
    }

    /// Changes a blob behind everybody's back; false if it is not there.
    pub fn damage(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) -> bool {
        match self.state.lock().blobs.get_mut(name) {
            Some(entry) => {
                let mut bytes = entry.bytes.to_vec();
                change(&mut bytes);
                entry.bytes = bytes.into();
                true
            }
            None => false,
        }
    }

    /// The names of all blobs that are there.
    pub fn names(&self) -> Vec<String> {
        self.state.lock().blobs.keys().cloned().collect()
    }
}

impl State {
    fn crash(&mut self) {
        self.alive_from = self.processes + 1;
        self.locked_by = None;
        self.crash_in = None;
        self.crashes += 1;
        self.crashed.notify_all();
        let random = &mut self.random;
        self.blobs.retain(|_, entry| entry.durable || random.random_bool(0.5));
        // What has survived is on the disk.
        self.blobs.values_mut().for_each(|entry| entry.durable = true);
        self.late.retain(|_| random.random_bool(0.5));
    }

    /// Begins a call of a process. True if it crashes in the middle.
    fn begin(&mut self, process: u64, doing: &str) -> Result<bool, StorageError> {
        let delay = self.faults.delay;
        self.steps += 1 + self.random.random_range(0..=delay);
        let (due, late) = std::mem::take(&mut self.late).into_iter().partition(|late| late.due <= self.steps);
        self.late = late;
        let due: Vec<Late> = due;
        for Late { name, bytes, create_only, .. } in due {
            if !create_only || !self.blobs.contains_key(&name) {
                self.blobs.insert(name, Entry { bytes, durable: true });
            }
        }
        if process < self.alive_from {
            return Err(unavailable(doing, "the simulated process has crashed"));
        }
        if let Some(calls) = &mut self.crash_in {
            *calls = calls.saturating_sub(1);
            if *calls == 0 {
                return Ok(true);
            }
        }
        if self.chance(self.faults.before) {
            return Err(match self.random.random_range(0..4) {
                0 => StorageError::Full { doing: doing.into(), reason: "simulated".into() },
                1 => StorageError::Denied { doing: doing.into(), reason: "simulated".into() },
                _ => unavailable(doing, "simulated"),
            });
        }
        Ok(false)
    }

    fn chance(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.random.random_bool(probability)
    }

    fn put(&mut self, process: u64, name: &str, bytes: Bytes, create_only: bool) -> Result<Put, StorageError> {
        let doing = format!("writing {name}");
        if self.begin(process, &doing)? {
            if self.tear_manifest && name.starts_with("manifest/") && !self.blobs.contains_key(name) {
                self.tear_manifest = false;
                let cut = self.random.random_range(0..bytes.len());
                self.blobs.insert(name.to_string(), Entry { bytes: bytes.slice(..cut), durable: true });
            } else if self.random.random_bool(0.5) {
                self.take_effect(name, bytes, create_only, self.kind == Kind::Bucket);
            } else if self.kind == Kind::Local {
                let cut = self.random.random_range(0..=bytes.len());
                let name = format!("tmp/{}", self.steps);
                self.blobs.insert(name, Entry { bytes: bytes.slice(..cut), durable: true });
            }
            self.crash();
            return Err(unavailable(&doing, "the simulated process has crashed"));
        }
        if let Some(error) = &self.refuses_puts {
            return Err(error.clone());
        }
        if self.kind == Kind::Bucket && self.chance(self.faults.late) {
            let due = self.steps + self.random.random_range(1..20);
            self.late.push(Late { due, name: name.to_string(), bytes, create_only });
            return Err(unavailable(&doing, "simulated: no answer yet"));
        }
        if self.chance(self.faults.after) {
            self.take_effect(name, bytes, create_only, self.kind == Kind::Bucket);
            return Err(unavailable(&doing, "simulated: the answer was lost"));
        }
        let put = self.take_effect(name, bytes, create_only, true);
        // The folder was synced.
        let folder = name.split_once('/').map_or("", |(folder, _)| folder);
        for (other, entry) in &mut self.blobs {
            entry.durable |= other.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'));
        }
        Ok(put)
    }

    fn take_effect(&mut self, name: &str, bytes: Bytes, create_only: bool, durable: bool) -> Put {
        if create_only && self.blobs.contains_key(name) {
            return Put::Taken;
        }
        self.blobs.insert(name.to_string(), Entry { bytes, durable });
        Put::Done
    }
}

fn unavailable(doing: &str, reason: &str) -> StorageError {
    StorageError::Unavailable { doing: doing.to_string(), reason: reason.to_string() }
}

/// The disk as one process sees it.
struct SimBlobs {
    disk: SimDisk,
    process: u64,
    turn: Option<Turn>,
}

impl SimBlobs {
    /// Before a call.
    fn wait(&self) {
        if let Some(turn) = &self.turn {
            turn.wait();
        }
        let steps = {
            let mut state = self.disk.state.lock();
            let delay = state.faults.delay;
            if delay == 0 { 0 } else { state.random.random_range(0..=delay) }
        };
        (0..steps * YIELDS).for_each(|_| thread::yield_now());
    }

    /// A call without an effect.
    fn look<T>(&self, doing: &str, look: impl FnOnce(&State) -> T) -> Result<T, StorageError> {
        self.wait();
        let mut state = self.disk.state.lock();
        if state.begin(self.process, doing)? {
            state.crash();
            return Err(unavailable(doing, "the simulated process has crashed"));
        }
        Ok(look(&state))
    }
}

impl Drop for SimBlobs {
    fn drop(&mut self) {
        let mut state = self.disk.state.lock();
        if state.locked_by == Some(self.process) {
            state.locked_by = None;
        }
    }
}

impl Blobs for SimBlobs {
    fn location(&self) -> String {
        "the simulated disk".to_string()
    }

    fn lock(&self) -> Result<(), StorageError> {
        self.look("locking", |_| ())?;
        let mut state = self.disk.state.lock();
        if state.kind == Kind::Local {
            if state.locked_by.is_some_and(|holder| holder != self.process) {
                return Err(StorageError::Locked { location: self.location(), pid: None });
            }
            state.locked_by = Some(self.process);
            state.blobs.retain(|name, _| !name.starts_with("tmp/"));
        }
        Ok(())
    }

    fn put(&self, name: &str, chunks: &[Bytes], create_only: bool) -> Result<Put, StorageError> {
        self.wait();
        self.disk.state.lock().put(self.process, name, chunks.concat().into(), create_only)
    }

    fn get(&self, name: &str, range: Option<Range<u64>>) -> Result<Bytes, StorageError> {
        let found =
            self.look(&format!("reading {name}"), |state| state.blobs.get(name).map(|entry| entry.bytes.clone()))?;
        let bytes = found.ok_or_else(|| StorageError::NotFound { name: name.to_string() })?;
        let range = range.unwrap_or(0..bytes.len() as u64);
        if range.end > bytes.len() as u64 || range.start > range.end {
            return Err(StorageError::corrupt(name, format!("it has {} bytes", bytes.len())));
        }
        Ok(bytes.slice(range.start as usize..range.end as usize))
    }

    fn list(&self, folder: &str) -> Result<Vec<Blob>, StorageError> {
        self.look(&format!("listing {folder}"), |state| {
            let within = |name: &str| name.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'));
            let blobs = state.blobs.iter().filter(|(name, _)| within(name));
            blobs.map(|(name, entry)| Blob { name: name.clone(), bytes: entry.bytes.len() as u64 }).collect()
        })
    }

    fn top(&self) -> Result<Vec<String>, StorageError> {
        let folders = self.look("listing", |state| {
            let folders = state.blobs.keys().map(|name| name.split_once('/').map_or(&name[..], |(folder, _)| folder));
            folders.map(str::to_string).collect::<BTreeSet<_>>()
        })?;
        Ok(folders.into_iter().collect())
    }

    fn delete(&self, names: &[String]) -> Result<(), StorageError> {
        for name in names {
            self.look(&format!("deleting {name}"), |_| ())?;
            let mut state = self.disk.state.lock();
            state.blobs.remove(name);
            let after = state.faults.after;
            if state.chance(after) {
                return Err(unavailable(&format!("deleting {name}"), "simulated: the answer was lost"));
            }
        }
        Ok(())
    }
}

/// Lets the calls of several threads happen one at a time, in an order that is chosen. A thread that waits for another by any
/// other means than its turn stops them all.
pub struct Turns {
    state: Mutex<TurnState>,
    changed: Condvar,
}

struct TurnState {
    waiting: BTreeSet<usize>,
    running: BTreeSet<usize>,
    granted: Option<usize>,
}

/// The turns of one thread.
#[derive(Clone)]
pub struct Turn {
    turns: Arc<Turns>,
    thread: usize,
}

impl Turn {
    fn wait(&self) {
        let mut state = self.turns.state.lock();
        state.waiting.insert(self.thread);
        self.turns.changed.notify_all();
        while state.granted != Some(self.thread) {
            self.turns.changed.wait(&mut state);
        }
        state.granted = None;
        state.waiting.remove(&self.thread);
    }
}

impl Turns {
    /// Runs the threads to their ends. Whenever all of them wait, `choose` says which of so many goes on.
    pub fn run<T: Send>(
        threads: Vec<Box<dyn FnOnce(Turn) -> T + Send + '_>>,
        mut choose: impl FnMut(usize) -> usize,
    ) -> Vec<T> {
        let running = (0..threads.len()).collect();
        let state = TurnState { waiting: BTreeSet::new(), running, granted: None };
        let turns = Arc::new(Turns { state: Mutex::new(state), changed: Condvar::new() });
        thread::scope(|scope| {
            let mut handles = Vec::new();
            for (thread, body) in threads.into_iter().enumerate() {
                let turn = Turn { turns: turns.clone(), thread };
                handles.push(scope.spawn(move || {
                    let _end = End(turn.clone());
                    body(turn)
                }));
            }
            turns.schedule(&mut choose);
            handles.into_iter().map(|handle| handle.join().expect("a thread ends without a panic")).collect()
        })
    }

    fn schedule(&self, choose: &mut impl FnMut(usize) -> usize) {
        let mut state = self.state.lock();
        loop {
            while state.granted.is_some() || state.waiting != state.running {
                self.changed.wait(&mut state);
            }
            let count = state.waiting.len();
            if count == 0 {
                return;
            }
            state.granted = state.waiting.iter().nth(choose(count) % count).copied();
            self.changed.notify_all();
        }
    }
}

/// Says that a thread has ended, by a panic too.
struct End(Turn);

impl Drop for End {
    fn drop(&mut self) {
        self.0.turns.state.lock().running.remove(&self.0.thread);
        self.0.turns.changed.notify_all();
    }
}
