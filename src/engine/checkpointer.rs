//! The thread that writes checkpoints: what parts gave goes into files, then a manifest names them.
//!
//! What parts gave counts as kept for them, so a checkpoint is tried until it is written; the next begins when it is. Files that no
//! manifest names are swept afterwards. Slices lie in files of their own; many small files of slices become one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use bytes::Bytes;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use parking_lot::Mutex;

use super::checkpoint::{Body, Checkpoint, PartFiles, PartSave, SliceEntry};
use super::clock::{self, Stopwatch};
use super::table_log::LogEnd;
use crate::exec::ExecError;
use crate::exec::closed_slice::{ClosedSlice, SliceFile};
use crate::exec::durable::Saved;
use crate::storage::{SectionRef, Storage, StorageError, decode, encode};

/// Larger parts get a file of their own, so that the small ones' files can go soon.
const OWN_FILE_BYTES: usize = 256 << 10;
/// A file of slices is closed when it has come to this size.
const SLICES_FILE_BYTES: usize = 64 << 20;
/// A part is saved whole again once its increments are this many, or together larger than the whole and this.
const MOST_INCREMENTS: usize = 16;
const INCREMENTS_BYTES: u64 = 1 << 20;
/// So many files of slices of about one size become one.
const PACK_FILES: usize = 16;
/// A larger file of slices is left as it is.
const PACKED_BYTES: u64 = 256 << 20;
/// After a failure the pause doubles up to this.
const MOST_PAUSE: Duration = Duration::from_secs(10);
/// A slice is tried to be read so often.
const READS: u32 = 5;
/// For the log, before a checkpoint counts as failing.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// A checkpoint to be written.
pub(super) struct Job {
    pub body: Body,
    /// What changed.
    pub parts: Vec<PartSave>,
    /// Every part that there is.
    pub live: BTreeSet<String>,
    /// Log records that the parts hold already.
    pub log_through: u64,
}

/// What the checkpointer says.
#[derive(Debug)]
pub(super) enum Said {
    Committed(Committed),
    /// It will be tried again if that may help ([`StorageError::is_retryable`]); else the thread has ended.
    Failed {
        tick: (u64, u64),
        error: StorageError,
        tries: u32,
    },
}

#[derive(Debug, Clone)]
pub(super) struct Committed {
    pub number: u64,
    pub tick: (u64, u64),
    pub at_us: i64,
    pub took: Duration,
    pub bytes: u64,
    pub files: u64,
    /// Parts to be saved whole the next time.
    pub grown: BTreeSet<String>,
    pub tries: u32,
}

/// A slice in a file, which may move to another.
#[derive(Debug)]
pub(super) struct SliceAt {
    storage: Storage,
    at: Mutex<SectionRef>,
}

impl SliceAt {
    pub fn new(storage: Storage, at: SectionRef) -> Arc<SliceAt> {
        Arc::new(SliceAt { storage, at: Mutex::new(at) })
    }
}

impl SliceFile for SliceAt {
    fn read(&self) -> Result<Saved, ExecError> {
        let mut tries = 1;
        loop {
            let at = self.at.lock().clone();
            match try_read(&self.storage, &at) {
                // It has moved meanwhile.
                Err(_) if *self.at.lock() != at => {}
                // Where a view's changes are followed, an error ends the view: clouds have been asked for some seconds by now.
                Err(error) if error.is_retryable() && tries < READS => tries += 1,
                outcome => return outcome.map_err(unreadable),
            }
        }
    }
}

pub(super) fn read(storage: &Storage, at: &SectionRef) -> Result<Saved, ExecError> {
    try_read(storage, at).map_err(unreadable)
}

fn try_read(storage: &Storage, at: &SectionRef) -> Result<Saved, StorageError> {
    storage.read(at).and_then(|bytes| decode(&bytes))
}

fn unreadable(error: StorageError) -> ExecError {
    ExecError::Storage { what: error.to_string() }
}

/// The thread; it ends once its jobs are done and nobody can send another, or at a failure that no retry can mend.
pub(super) struct Checkpointer {
    jobs: Sender<Job>,
    stop: Sender<()>,
    thread: Option<JoinHandle<()>>,
}

struct Writer {
    storage: Storage,
    /// A manifest names no record that is not there.
    log: LogEnd,
    parts: BTreeMap<String, Part>,
    /// Slices that no part names any more, while somebody may still read them.
    leaving: Vec<Arc<SliceAt>>,
}

#[derive(Default)]
struct Part {
    saved: Vec<SectionRef>,
    slices: BTreeMap<(u32, i64), Slice>,
}

struct Slice {
    rows: u64,
    bytes: u64,
    at: Arc<SliceAt>,
}

impl Checkpointer {
    /// `parts` as the manifest has them, with the places of slices that stores were given already.
    pub fn start(
        storage: Storage,
        log: LogEnd,
        parts: BTreeMap<String, PartFiles>,
        slices: &BTreeMap<SectionRef, Arc<SliceAt>>,
        first_pause: Duration,
        say: impl Fn(Said) -> bool + Send + 'static,
    ) -> std::io::Result<Checkpointer> {
        let (jobs, asked) = unbounded();
        let (stop, stopped) = unbounded();
        let known = |entry: &SliceEntry| match slices.get(&entry.at) {
            Some(at) => at.clone(),
            None => SliceAt::new(storage.clone(), entry.at.clone()),
        };
        let parts = parts.into_iter().map(|(name, files)| {
            let slices = files.slices.iter().map(|entry| {
                ((entry.node, entry.slice), Slice { rows: entry.rows, bytes: entry.bytes, at: known(entry) })
            });
            let slices = slices.collect();
            (name, Part { saved: files.saved, slices })
        });
        let writer = Writer { parts: parts.collect(), leaving: Vec::new(), log, storage: storage.clone() };
        let run = move || run(writer, &asked, &stopped, first_pause, &say);
        let thread = thread::Builder::new().name("checkpointer".into()).spawn(run)?;
        Ok(Checkpointer { jobs, stop, thread: Some(thread) })
    }

    /// At most one at a time.
    pub fn begin(&self, job: Job) {
        // A thread that has ended has said why.
        let _ = self.jobs.send(job);
    }

    /// Gives up what cannot be written and waits for the end of what is being written.
    pub fn stop(mut self) {
        let _ = self.stop.send(());
        drop(self.jobs);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the checkpointer panicked");
        }
    }
}

fn run(
    mut writer: Writer,
    jobs: &Receiver<Job>,
    stop: &Receiver<()>,
    first_pause: Duration,
    say: &dyn Fn(Said) -> bool,
) {
    while let Ok(job) = jobs.recv() {
        let tick = job.body.tick;
        let mut pause = first_pause;
        let mut tries = 1;
        // Closed slices and parts that are written once need not be written again.
        let mut attempt = Attempt::new(job);
        loop {
            match writer.write(&mut attempt) {
                Ok(mut committed) => {
                    committed.tries = tries;
                    if !say(Said::Committed(committed)) {
                        return;
                    }
                    break;
                }
                Err(error) => {
                    let for_good = !error.is_retryable();
                    if !say(Said::Failed { tick, error, tries }) || for_good {
                        return;
                    }
                }
            }
            tries += 1;
            match stop.recv_timeout(pause) {
                Err(RecvTimeoutError::Timeout) => pause = (pause * 2).min(MOST_PAUSE),
                _ => return,
            }
        }
        writer.tidy_up();
    }
}

/// A job with what has been written of it.
struct Attempt {
    job: Job,
    /// Encoded, by part.
    encoded: Option<Vec<(usize, Bytes)>>,
    saved: BTreeMap<usize, SectionRef>,
    /// By part and place in its list.
    slices: BTreeMap<(usize, usize), SectionRef>,
    files: u64,
    bytes: u64,
    took: Duration,
}

impl Attempt {
    fn new(job: Job) -> Attempt {
        Attempt {
            job,
            encoded: None,
            saved: BTreeMap::new(),
            slices: BTreeMap::new(),
            files: 0,
            bytes: 0,
            took: Duration::ZERO,
        }
    }
}

impl Writer {
    fn write(&mut self, attempt: &mut Attempt) -> Result<Committed, StorageError> {
        let watch = Stopwatch::start();
        let outcome = self.try_write(attempt);
        attempt.took += watch.elapsed();
        let number = outcome?;
        let grown = self.take_over(attempt);
        Ok(Committed {
            number,
            tick: attempt.job.body.tick,
            at_us: clock::now_us(),
            took: attempt.took,
            bytes: attempt.bytes,
            files: attempt.files,
            grown,
            tries: 1,
        })
    }

    fn try_write(&mut self, attempt: &mut Attempt) -> Result<u64, StorageError> {
        if attempt.encoded.is_none() {
            let parts = attempt.job.parts.iter().enumerate().filter(|(_, part)| !part.saved.is_empty());
            let encoded = parts.map(|(i, part)| Ok((i, encode(&part.saved)?))).collect::<Result<_, StorageError>>()?;
            attempt.encoded = Some(encoded);
        }
        let encoded = attempt.encoded.clone().unwrap_or_default();
        let (large, small): (Vec<_>, Vec<_>) = encoded
            .into_iter()
            .filter(|(i, _)| !attempt.saved.contains_key(i))
            .partition(|(_, bytes)| bytes.len() > OWN_FILE_BYTES);
        for group in large.chunks(1).chain(std::iter::once(small.as_slice())).filter(|group| !group.is_empty()) {
            let bytes: Vec<Bytes> = group.iter().map(|(_, bytes)| bytes.clone()).collect();
            let at = self.write_file(&bytes, &mut attempt.files, &mut attempt.bytes)?;
            attempt.saved.extend(group.iter().map(|(i, _)| *i).zip(at));
        }
        self.write_slices(attempt)?;
        let checkpoint = Checkpoint { body: attempt.job.body.clone(), parts: self.next_parts(attempt) };
        let files: BTreeSet<String> = {
            let parts = checkpoint.parts.values();
            let named = parts.flat_map(|p| p.saved.iter().chain(p.slices.iter().map(|s| &s.at)));
            named.map(|at| at.file.clone()).chain(self.leaving_files()).collect()
        };
        let body = serde_json::to_value(&checkpoint)
            .map_err(|error| StorageError::Invariant(format!("a manifest: {error}")))?;
        if !self.log.wait_for(attempt.job.log_through, LONGEST_WAIT) {
            return Err(StorageError::Unavailable {
                doing: "waiting for the log of tables".into(),
                reason: "it is not written yet".into(),
            });
        }
        self.storage.commit(body, files, attempt.job.log_through, clock::now_us())
    }

    fn write_file(
        &self,
        sections: &[Bytes],
        files: &mut u64,
        bytes: &mut u64,
    ) -> Result<Vec<SectionRef>, StorageError> {
        let at = self.storage.write(sections)?;
        *files += 1;
        *bytes += sections.iter().map(|section| section.len() as u64).sum::<u64>();
        Ok(at)
    }

    fn write_slices(&self, attempt: &mut Attempt) -> Result<(), StorageError> {
        let (mut places, mut sections, mut size) = (Vec::new(), Vec::new(), 0);
        let parts = attempt.job.parts.iter().enumerate();
        let all: Vec<((usize, usize), Arc<ClosedSlice>)> = parts
            .flat_map(|(i, part)| part.closed.iter().enumerate().map(move |(j, (_, slice))| ((i, j), slice.clone())))
            .filter(|(place, _)| !attempt.slices.contains_key(place))
            .collect();
        let mut all = all.into_iter().peekable();
        while let Some((place, slice)) = all.next() {
            let saved = slice.to_save().map_err(|error| match error {
                // It is read first, from where another worker had put it.
                ExecError::Storage { what } => {
                    StorageError::Unavailable { doing: format!("reading slice {}", slice.slice), reason: what }
                }
                error => StorageError::Invariant(format!("a slice: {error}")),
            })?;
            let section = encode(&saved)?;
            size += section.len();
            places.push(place);
            sections.push(section);
            if size >= SLICES_FILE_BYTES || all.peek().is_none() {
                let at = self.write_file(&sections, &mut attempt.files, &mut attempt.bytes)?;
                attempt.slices.extend(places.drain(..).zip(at));
                sections.clear();
                size = 0;
            }
        }
        Ok(())
    }

    /// The parts as they are once the attempt has succeeded.
    fn next_parts(&self, attempt: &Attempt) -> BTreeMap<String, PartFiles> {
        let live = &attempt.job.live;
        let mut parts: BTreeMap<String, PartFiles> = self
            .parts
            .iter()
            .filter(|(name, _)| live.contains(*name))
            .map(|(name, p)| (name.clone(), p.files()))
            .collect();
        for (i, part) in attempt.job.parts.iter().enumerate() {
            let files = parts.entry(part.name.clone()).or_default();
            if part.saved.whole {
                files.saved.clear();
            }
            if let Some(there) = &part.slices {
                files.slices.retain(|entry| there.contains(&(entry.node, entry.slice)));
            }
            files.saved.extend(attempt.saved.get(&i).cloned());
            for (j, (node, slice)) in part.closed.iter().enumerate() {
                files.slices.retain(|entry| (entry.node, entry.slice) != (*node, slice.slice));
                let at = attempt.slices[&(i, j)].clone();
                let (rows, bytes) = (slice.rows() as u64, slice.bytes() as u64);
                files.slices.push(SliceEntry { node: *node, slice: slice.slice, rows, bytes, at });
            }
            for (node, first) in &part.first_kept {
                files.slices.retain(|entry| entry.node != *node || entry.slice >= *first);
            }
        }
        parts
    }

    fn leaving_files(&self) -> impl Iterator<Item = String> {
        let held = self.leaving.iter().filter(|at| Arc::strong_count(at) > 1);
        held.map(|at| at.at.lock().file.clone())
    }

    /// The attempt has succeeded. Returns the parts that are better saved whole the next time.
    fn take_over(&mut self, attempt: &mut Attempt) -> BTreeSet<String> {
        self.leaving.retain(|at| Arc::strong_count(at) > 1);
        let next = self.next_parts(attempt);
        let mut given: BTreeMap<SectionRef, Arc<ClosedSlice>> = BTreeMap::new();
        for (&(i, j), at) in &attempt.slices {
            given.insert(at.clone(), attempt.job.parts[i].closed[j].1.clone());
        }
        let mut parts = BTreeMap::new();
        let mut grown = BTreeSet::new();
        for (name, files) in next {
            let mut before = self.parts.remove(&name).unwrap_or_default();
            let mut slices = BTreeMap::new();
            for entry in files.slices {
                let at = match before.slices.remove(&(entry.node, entry.slice)) {
                    Some(known) if *known.at.at.lock() == entry.at => known.at,
                    gone => {
                        self.leaving.extend(gone.map(|slice| slice.at));
                        SliceAt::new(self.storage.clone(), entry.at.clone())
                    }
                };
                if let Some(slice) = given.get(&entry.at) {
                    slice.keep_in(at.clone());
                }
                slices.insert((entry.node, entry.slice), Slice { rows: entry.rows, bytes: entry.bytes, at });
            }
            self.leaving.extend(before.slices.into_values().map(|slice| slice.at));
            if grows(&files.saved) {
                grown.insert(name.clone());
            }
            parts.insert(name, Part { saved: files.saved, slices });
        }
        // Parts that have gone.
        let gone = std::mem::replace(&mut self.parts, parts);
        self.leaving.extend(gone.into_values().flat_map(|part| part.slices.into_values().map(|slice| slice.at)));
        grown
    }

    /// After a checkpoint: sweeps, and puts small files of slices together. Failures are tried again after the next.
    fn tidy_up(&mut self) {
        if let Err(error) = self.storage.sweep() {
            tracing::warn!(%error, "files that nobody needs could not be removed");
        }
        if let Err(error) = self.pack() {
            tracing::warn!(%error, "files of slices could not be put together");
        }
    }

    /// The next manifest names the new files.
    fn pack(&mut self) -> Result<(), StorageError> {
        let mut by_file: BTreeMap<String, Vec<Arc<SliceAt>>> = BTreeMap::new();
        for slice in self.parts.values().flat_map(|part| part.slices.values()) {
            by_file.entry(slice.at.at.lock().file.clone()).or_default().push(slice.at.clone());
        }
        let mut by_size: BTreeMap<u32, Vec<Vec<Arc<SliceAt>>>> = BTreeMap::new();
        for slices in by_file.into_values() {
            let bytes: u64 = slices.iter().map(|slice| slice.at.lock().bytes).sum();
            if bytes < PACKED_BYTES {
                by_size.entry(bytes.max(1).ilog2() / PACK_FILES.ilog2()).or_default().push(slices);
            }
        }
        for files in by_size.into_values().filter(|files| files.len() >= PACK_FILES) {
            let slices: Vec<Arc<SliceAt>> = files.into_iter().take(PACK_FILES).flatten().collect();
            let from: Vec<SectionRef> = slices.iter().map(|slice| slice.at.lock().clone()).collect();
            let sections = from.iter().map(|at| self.storage.read(at)).collect::<Result<Vec<_>, _>>()?;
            let to = self.storage.write(&sections)?;
            for (slice, at) in slices.iter().zip(to) {
                *slice.at.lock() = at;
            }
        }
        Ok(())
    }
}

impl Part {
    fn files(&self) -> PartFiles {
        let slices = self.slices.iter().map(|(&(node, slice), s)| SliceEntry {
            node,
            slice,
            rows: s.rows,
            bytes: s.bytes,
            at: s.at.at.lock().clone(),
        });
        PartFiles { saved: self.saved.clone(), slices: slices.collect() }
    }
}

/// Have the increments outgrown what they stand on?
fn grows(saved: &[SectionRef]) -> bool {
    let Some((whole, increments)) = saved.split_first() else { return false };
    let bytes: u64 = increments.iter().map(|at| at.bytes).sum();
    increments.len() >= MOST_INCREMENTS || bytes > whole.bytes.max(INCREMENTS_BYTES)
}
