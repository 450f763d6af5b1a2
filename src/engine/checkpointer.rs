//! The thread that writes checkpoints: what parts gave goes into files, then a manifest names them.
//!
//! What parts gave counts as kept for them, so a checkpoint is tried until it is written; the next begins when it is. Files that no
//! manifest names are swept afterwards. Slices lie in files of their own ([`super::slice_index`]). Between two checkpoints panes are made
//! of them, a few at a time, which the next manifest names; if there is nothing to be checkpointed, one that says else the same.
//! Such a one also names what was just created, as that holds nothing yet that does not follow from what is kept.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use bytes::Bytes;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};

use super::checkpoint::{Body, Checkpoint, PartFiles, PartSave, SourceBody};
use super::clock::{self, Stopwatch};
use super::slice_index::{SliceIndex, SliceKey, SliceToWrite};
use super::table_log::LogEnd;
use crate::catalog::CatalogText;
use crate::exec::ExecError;
use crate::exec::durable::Saved;
use crate::exec::panes_in_files::PaneToKeep;
use crate::storage::{SectionRef, Storage, StorageError, decode, encode};

/// Larger parts get a file of their own, so that the small ones' files can go soon.
const OWN_FILE_BYTES: usize = 256 << 10;
/// A file of slices is closed when it has come to this size.
const SLICES_FILE_BYTES: usize = 64 << 20;
/// A part is saved whole again once its increments are this many, or together larger than the whole and this.
const MOST_INCREMENTS: usize = 16;
const INCREMENTS_BYTES: u64 = 1 << 20;
/// Panes are made until it has taken so long, and then for so many times as long none is; fewer once there was no checkpoint for a
/// while.
const PANES_AT_ONCE: Duration = Duration::from_millis(20);
const PANES_REST: u32 = 30;
const PANES_REST_IDLE: u32 = 1;
const IDLE: Duration = Duration::from_secs(15);
/// Who changes the catalog waits for a checkpoint, and may do so several times in a row: files are tidied up after such a pause, or when
/// there was none for so long.
const TIDY_PAUSE: Duration = Duration::from_millis(200);
const UNTIDY: Duration = Duration::from_secs(5);
/// After a failure the pause doubles up to this.
const MOST_PAUSE: Duration = Duration::from_secs(10);
/// For the log, before a checkpoint counts as failing.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

pub(super) enum Job {
    Checkpoint(Box<Holding>),
    Creations(Box<Creations>),
}

/// What was created since the last checkpoint: the next manifest names it and says else what the last one says.
pub(super) struct Creations {
    pub tick: (u64, u64),
    pub catalog: CatalogText,
    /// Of those the last manifest does not know.
    pub sources: Vec<SourceBody>,
}

/// A checkpoint to be written.
pub(super) struct Holding {
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
    /// [`Creations`] of this tick.
    Created {
        tick: (u64, u64),
    },
    /// It is tried again, unless another process has taken over or a call made no sense: then the thread has ended.
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

pub(super) fn try_read(storage: &Storage, at: &SectionRef) -> Result<Saved, StorageError> {
    storage.read(at).and_then(|bytes| decode(&bytes))
}

/// The thread; it ends once its jobs are done and nobody can send another, or after the last [`Said::Failed`].
pub(super) struct Checkpointer {
    jobs: Sender<Job>,
    stop: Sender<()>,
    thread: Option<JoinHandle<()>>,
}

struct Writer {
    storage: Storage,
    /// A manifest names no record that is not there.
    log: LogEnd,
    /// What parts have saved: one that is whole, then increments.
    parts: BTreeMap<String, Vec<SectionRef>>,
    slices: SliceIndex,
    /// To be made: part, node, and pane.
    panes: VecDeque<(String, u32, PaneToKeep)>,
    /// No manifest names the newest ones.
    has_unnamed_panes: bool,
    /// What the last manifest says beside the files.
    last: Option<(Body, u64)>,
    since_manifest: Stopwatch,
    since_job: Stopwatch,
    /// Since the first checkpoint after the last [`Writer::tidy_up`].
    untidy: Option<Stopwatch>,
    /// How long nothing is to be checkpointed before panes get a manifest for themselves.
    idle: Duration,
}

impl Checkpointer {
    /// `parts` as the manifest has them, with the index that stores were given their slices from.
    pub fn start(
        storage: Storage,
        log: LogEnd,
        parts: BTreeMap<String, PartFiles>,
        slices: SliceIndex,
        first_pause: Duration,
        say: impl Fn(Said) -> bool + Send + 'static,
    ) -> std::io::Result<Checkpointer> {
        let (jobs, asked) = unbounded();
        let (stop, stopped) = unbounded();
        let parts = parts.into_iter().map(|(name, files)| (name, files.saved)).collect();
        let writer = Writer::new(storage, log, parts, slices);
        let run = move || run(writer, &asked, &stopped, first_pause, &say);
        let thread = thread::Builder::new().name("checkpointer".into()).spawn(run)?;
        Ok(Checkpointer { jobs, stop, thread: Some(thread) })
    }

    /// At most one checkpoint at a time.
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
    let (mut rest, mut rested) = (Duration::ZERO, Stopwatch::start());
    loop {
        let has_more = !writer.panes.is_empty() || writer.has_unnamed_panes;
        let job = match (writer.untidy.is_none(), has_more) {
            (false, _) => jobs.recv_timeout(TIDY_PAUSE),
            (true, true) => jobs.recv_timeout(rest.saturating_sub(rested.elapsed())),
            (true, false) => jobs.recv().map_err(RecvTimeoutError::from),
        };
        let job = match job {
            Ok(job) => job,
            Err(RecvTimeoutError::Timeout) if writer.untidy.is_some() => {
                writer.tidy_up();
                continue;
            }
            Err(RecvTimeoutError::Timeout) => {
                rest = writer.keep_panes();
                rested = Stopwatch::start();
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let until_done = Retries { stop, first_pause, say };
        match job {
            Job::Checkpoint(job) => {
                let tick = job.body.tick;
                // Closed slices and parts that are written once need not be written again.
                let mut attempt = Attempt::new(*job);
                if !until_done.run(tick, |tries| Ok(Said::Committed(writer.write(&mut attempt, tries)?))) {
                    return;
                }
                writer.take_panes(attempt.job);
                writer.since_job = Stopwatch::start();
            }
            Job::Creations(made) => {
                let tick = made.tick;
                if !until_done.run(tick, |_| writer.name(&made).map(|()| Said::Created { tick })) {
                    return;
                }
            }
        }
        if writer.untidy.get_or_insert_with(Stopwatch::start).elapsed() > UNTIDY {
            writer.tidy_up();
        }
    }
}

/// What is to be written is tried until it is.
struct Retries<'a> {
    stop: &'a Receiver<()>,
    first_pause: Duration,
    say: &'a dyn Fn(Said) -> bool,
}

impl Retries<'_> {
    /// False if the thread is to end. `attempt` is given which try it is, from 1.
    fn run(&self, tick: (u64, u64), mut attempt: impl FnMut(u32) -> Result<Said, StorageError>) -> bool {
        let mut pause = self.first_pause;
        for tries in 1.. {
            match attempt(tries) {
                Ok(said) => return (self.say)(said),
                Err(error) => {
                    // What is not there, or damaged, may be put back.
                    let for_good = matches!(error, StorageError::Fenced { .. } | StorageError::Invariant(_));
                    if !(self.say)(Said::Failed { tick, error, tries }) || for_good {
                        return false;
                    }
                }
            }
            match self.stop.recv_timeout(pause) {
                Err(RecvTimeoutError::Timeout) => pause = (pause * 2).min(MOST_PAUSE),
                _ => return false,
            }
        }
        false
    }
}

/// A job with what has been done of it.
struct Attempt {
    job: Holding,
    /// Encoded, by part.
    encoded: Option<Vec<(usize, Bytes)>>,
    saved: BTreeMap<usize, SectionRef>,
    /// The writer counts what parts have saved as theirs.
    taken_over: bool,
    /// Parts whose slices the index has been told of.
    indexed: usize,
    /// Slices in files that are written once more.
    copies: Vec<SliceToWrite>,
    /// The next closed slice: the part, and the place in its list.
    next_slice: (usize, usize),
    files: u64,
    bytes: u64,
    took: Duration,
}

impl Attempt {
    fn new(job: Holding) -> Attempt {
        Attempt {
            job,
            encoded: None,
            saved: BTreeMap::new(),
            taken_over: false,
            indexed: 0,
            copies: Vec::new(),
            next_slice: (0, 0),
            files: 0,
            bytes: 0,
            took: Duration::ZERO,
        }
    }
}

impl Writer {
    fn new(storage: Storage, log: LogEnd, parts: BTreeMap<String, Vec<SectionRef>>, slices: SliceIndex) -> Writer {
        Writer {
            storage,
            log,
            parts,
            slices,
            panes: VecDeque::new(),
            has_unnamed_panes: false,
            last: None,
            since_manifest: Stopwatch::start(),
            since_job: Stopwatch::start(),
            untidy: None,
            idle: IDLE,
        }
    }

    fn write(&mut self, attempt: &mut Attempt, tries: u32) -> Result<Committed, StorageError> {
        let watch = Stopwatch::start();
        let outcome = self.try_write(attempt);
        attempt.took += watch.elapsed();
        let number = outcome?;
        let grown = self.parts.iter().filter(|(_, saved)| grows(saved)).map(|(name, _)| name.clone()).collect();
        Ok(Committed {
            number,
            tick: attempt.job.body.tick,
            at_us: clock::now_us(),
            took: attempt.took,
            bytes: attempt.bytes,
            files: attempt.files,
            grown,
            tries,
        })
    }

    /// What has been written counts as the writer's at once: it is tried until a manifest names it.
    fn try_write(&mut self, attempt: &mut Attempt) -> Result<u64, StorageError> {
        self.write_parts(attempt)?;
        self.index_slices(attempt)?;
        self.write_slices(attempt)?;
        let (body, log_through) = (attempt.job.body.clone(), attempt.job.log_through);
        if !self.log.wait_for(log_through, LONGEST_WAIT) {
            return Err(StorageError::Unavailable {
                doing: "waiting for the log of tables".into(),
                reason: "it is not written yet".into(),
            });
        }
        self.commit(body, log_through)
    }

    /// A manifest with a new catalog.
    fn name(&mut self, made: &Creations) -> Result<(), StorageError> {
        let nothing = || StorageError::Invariant("there is no checkpoint to which something could be added".into());
        let (mut body, log_through) = self.last.clone().ok_or_else(nothing)?;
        body.catalog = made.catalog.clone();
        for source in &made.sources {
            if !body.sources.iter().any(|known| known.oid == source.oid) {
                body.sources.push(source.clone());
            }
        }
        self.commit(body, log_through).map(drop)
    }

    fn commit(&mut self, body: Body, log_through: u64) -> Result<u64, StorageError> {
        let slice_files = self.slices.files();
        let parts = self
            .parts
            .iter()
            .map(|(name, saved)| (name.clone(), PartFiles { saved: saved.clone(), slices: self.slices.kept(name) }));
        let checkpoint = Checkpoint { body, parts: parts.collect(), slice_files, unlisted: BTreeMap::new() };
        let mut files = self.slices.leaving_files();
        files.extend(checkpoint.parts.values().flat_map(|part| &part.saved).map(|at| at.file.clone()));
        files.extend(checkpoint.slice_files.iter().map(|file| file.list.file.clone()));
        let manifest = serde_json::to_value(&checkpoint)
            .map_err(|error| StorageError::Invariant(format!("a manifest: {error}")))?;
        let number = self.storage.commit(manifest, files, log_through, clock::now_us())?;
        self.has_unnamed_panes = false;
        self.last = Some((checkpoint.body, log_through));
        self.since_manifest = Stopwatch::start();
        Ok(number)
    }

    fn write_parts(&mut self, attempt: &mut Attempt) -> Result<(), StorageError> {
        if attempt.taken_over {
            return Ok(());
        }
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
            let sections: Vec<Bytes> = group.iter().map(|(_, bytes)| bytes.clone()).collect();
            let at = self.storage.write(&sections)?;
            attempt.files += 1;
            attempt.bytes += sections.iter().map(|section| section.len() as u64).sum::<u64>();
            attempt.saved.extend(group.iter().map(|(i, _)| *i).zip(at));
        }
        self.parts.retain(|name, _| attempt.job.live.contains(name));
        for (i, part) in attempt.job.parts.iter().enumerate() {
            let saved = self.parts.entry(part.name.clone()).or_default();
            if part.saved.whole {
                saved.clear();
            }
            saved.extend(attempt.saved.remove(&i));
        }
        (attempt.taken_over, attempt.encoded) = (true, None);
        Ok(())
    }

    /// Tells the index what parts have forgotten, and which of them begin anew.
    fn index_slices(&mut self, attempt: &mut Attempt) -> Result<(), StorageError> {
        self.slices.retain(&attempt.job.live);
        while let Some(part) = attempt.job.parts.get(attempt.indexed) {
            if let Some(there) = &part.slices {
                let written: BTreeSet<(u32, i64)> =
                    part.closed.iter().map(|(node, slice)| (*node, slice.slice)).collect();
                let panes_stay = !part.renumbered;
                let copies = self.slices.begin_anew(&part.name, there, &written, &part.first_kept, panes_stay)?;
                attempt.copies.extend(copies);
            }
            for &(node, first) in &part.first_kept {
                self.slices.forget(&part.name, node, first);
            }
            attempt.indexed += 1;
        }
        self.slices.list_all(&self.storage, SLICES_FILE_BYTES as u64)
    }

    fn write_slices(&mut self, attempt: &mut Attempt) -> Result<(), StorageError> {
        if !attempt.copies.is_empty() {
            attempt.bytes += self.slices.write(&self.storage, &attempt.copies)?.bytes;
            attempt.files += 1;
            attempt.copies.clear();
        }
        while attempt.next_slice.0 < attempt.job.parts.len() {
            let (mut group, mut closed, mut size) = (Vec::new(), Vec::new(), 0);
            let (mut of_part, mut next) = attempt.next_slice;
            while size < SLICES_FILE_BYTES
                && let Some(part) = attempt.job.parts.get(of_part)
            {
                let Some((node, slice)) = part.closed.get(next) else {
                    (of_part, next) = (of_part + 1, 0);
                    continue;
                };
                let saved = slice.to_save().map_err(|error| match error {
                    // It is read first, from where another worker had put it.
                    ExecError::Storage { what } => {
                        StorageError::Unavailable { doing: format!("reading slice {}", slice.slice), reason: what }
                    }
                    error => StorageError::Invariant(format!("a slice: {error}")),
                })?;
                let section = encode(&saved)?;
                size += section.len();
                let (rows, in_memory) = (slice.rows() as u64, slice.bytes() as u64);
                let key = SliceKey::of(*node, slice.slice);
                group.push(SliceToWrite { part: part.name.clone(), key, rows, in_memory, section });
                closed.push(slice.clone());
                next += 1;
            }
            if !group.is_empty() {
                let written = self.slices.write(&self.storage, &group)?;
                closed.iter().zip(written.at).for_each(|(slice, at)| slice.keep_in(at));
                attempt.files += 1;
                attempt.bytes += written.bytes;
            }
            attempt.next_slice = (of_part, next);
        }
        Ok(())
    }

    /// Panes that are to be made now; those of parts that have begun anew or are no more are not.
    fn take_panes(&mut self, job: Holding) {
        let anew: BTreeSet<&String> = job.parts.iter().filter(|part| part.renumbered).map(|part| &part.name).collect();
        self.panes.retain(|(part, ..)| job.live.contains(part) && !anew.contains(part));
        for part in job.parts {
            self.panes.extend(part.panes.into_iter().map(|(node, pane)| (part.name.clone(), node, pane)));
        }
    }

    /// Makes some panes and puts them into a file. Returns how long to rest.
    fn keep_panes(&mut self) -> Duration {
        if self.has_unnamed_panes
            && self.since_manifest.elapsed() >= self.idle
            && let Some((body, log_through)) = self.last.clone()
            && let Err(error) = self.commit(body, log_through)
        {
            // A storage that fails is the next checkpoint's to tell.
            tracing::warn!(%error, "no manifest names the newest panes");
            return MOST_PAUSE;
        }
        let watch = Stopwatch::start();
        let (mut group, mut made, mut size) = (Vec::new(), Vec::new(), 0);
        while size < SLICES_FILE_BYTES
            && watch.elapsed() < PANES_AT_ONCE
            && let Some((part, node, pane)) = self.panes.pop_front()
        {
            let (slice, saved) = match pane.save() {
                Ok(Some(of_pane)) => of_pane,
                Ok(None) => continue,
                // Its slices are there without it.
                Err(error) => {
                    tracing::warn!(%error, part, "a pane could not be made");
                    continue;
                }
            };
            match encode(&saved) {
                Ok(section) => {
                    size += section.len();
                    let key = SliceKey { node, level: pane.level(), slice: slice.slice };
                    let (rows, in_memory) = (slice.rows() as u64, slice.bytes() as u64);
                    group.push(SliceToWrite { part: part.clone(), key, rows, in_memory, section });
                    made.push((slice, (part, node, pane)));
                }
                Err(error) => tracing::warn!(%error, part, "a pane could not be put into a file"),
            }
        }
        if !group.is_empty() {
            match self.slices.write(&self.storage, &group) {
                Ok(written) => {
                    made.iter().zip(written.at).for_each(|((slice, _), at)| slice.keep_in(at));
                    self.has_unnamed_panes = true;
                }
                Err(error) => {
                    tracing::warn!(%error, panes = made.len(), "panes could not be written");
                    made.into_iter().rev().for_each(|(_, pane)| self.panes.push_front(pane));
                    return MOST_PAUSE;
                }
            }
        }
        match self.panes.is_empty() {
            // Until a manifest is due for them alone.
            true => self.idle,
            false if self.since_job.elapsed() > self.idle => watch.elapsed() * PANES_REST_IDLE,
            false => watch.elapsed() * PANES_REST,
        }
    }

    /// After a checkpoint: sweeps, and puts small files of slices together. Failures are tried again after the next.
    fn tidy_up(&mut self) {
        self.untidy = None;
        if let Err(error) = self.storage.sweep() {
            tracing::warn!(%error, "files that nobody needs could not be removed");
        }
        // The next manifest names the new files.
        if let Err(error) = self.slices.pack(&self.storage) {
            tracing::warn!(%error, "files of slices could not be put together");
        }
    }
}

/// Have the increments outgrown what they stand on?
fn grows(saved: &[SectionRef]) -> bool {
    let Some((whole, increments)) = saved.split_first() else { return false };
    let bytes: u64 = increments.iter().map(|at| at.bytes).sum();
    increments.len() >= MOST_INCREMENTS || bytes > whole.bytes.max(INCREMENTS_BYTES)
}

#[cfg(test)]
#[path = "checkpointer_tests.rs"]
mod tests;
