//! Watches a source's topic: which partitions there are and where they end. Calls to brokers may block, so each source that is
//! read has a thread for them.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::clock::{Stopwatch, now_us};
use crate::catalog::Oid;
use crate::connector::{ConnectorError, Metadata, PartitionOffset, SourceOptions, Watermarks};

/// New partitions and ends are looked for this often.
const EVERY: Duration = Duration::from_secs(1);
/// How long one question to the brokers may take.
pub const ASK_TIMEOUT: Duration = Duration::from_secs(5);
/// After a failure the pause doubles up to this.
const MOST_PAUSE: Duration = Duration::from_secs(5);

/// What is known of a topic.
#[derive(Debug, Clone)]
pub struct Topic {
    /// Another topic of the same name has another; `None` if the brokers know none.
    pub id: Option<String>,
    /// Every partition with where reading begins, in order.
    pub starts: Vec<(i32, i64)>,
    /// The ends as of the question.
    pub ends: Vec<(i32, i64)>,
    /// The first offsets that can still be read, as of the question.
    pub lows: Vec<(i32, i64)>,
}

/// What a watcher says.
pub struct Seen {
    pub source: Oid,
    /// When the brokers were asked.
    pub asked_us: i64,
    /// Since then.
    pub asked: Stopwatch,
    pub topic: Result<Topic, ConnectorError>,
}

/// The thread; dropping it ends the thread after its present question.
pub struct TopicWatch {
    asks: Sender<()>,
}

impl TopicWatch {
    /// `starts` are offsets fixed at CREATE SOURCE; partitions not among them begin at their first record. So do all if the topic is
    /// not the one that `starts_of` names, if it names one.
    pub fn start(
        source: Oid,
        options: SourceOptions,
        starts: BTreeMap<i32, i64>,
        starts_of: Option<String>,
        say: impl Fn(Seen) -> bool + Send + 'static,
    ) -> std::io::Result<TopicWatch> {
        let (asks, asked) = bounded(1);
        thread::Builder::new()
            .name(format!("topic-{source}"))
            .spawn(move || watch(source, &options, starts, starts_of, &asked, &say))?;
        Ok(TopicWatch { asks })
    }

    /// Asks now instead of in a while.
    pub fn ask(&self) {
        // Full: a question is waiting already.
        let _ = self.asks.try_send(());
    }
}

fn watch(
    source: Oid,
    options: &SourceOptions,
    mut starts: BTreeMap<i32, i64>,
    mut starts_of: Option<String>,
    asks: &Receiver<()>,
    say: &dyn Fn(Seen) -> bool,
) {
    let mut metadata: Option<Metadata> = None;
    let mut pause = EVERY;
    loop {
        let (asked_us, asked) = (now_us(), Stopwatch::start());
        let topic = look(options, &mut metadata, &mut starts, &mut starts_of);
        pause = match &topic {
            // Somebody may make it anew.
            Ok(_) | Err(ConnectorError::TopicMissing { .. }) => EVERY,
            Err(_) => (pause * 2).min(MOST_PAUSE),
        };
        if !say(Seen { source, asked_us, asked, topic }) {
            return;
        }
        match asks.recv_timeout(pause) {
            Ok(()) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn look(
    options: &SourceOptions,
    metadata: &mut Option<Metadata>,
    starts: &mut BTreeMap<i32, i64>,
    starts_of: &mut Option<String>,
) -> Result<Topic, ConnectorError> {
    let metadata = match metadata {
        Some(metadata) => metadata,
        None => metadata.insert(options.metadata()?),
    };
    let partitions = metadata.partitions(ASK_TIMEOUT)?;
    // Before the offsets: what is made anew in between is noticed the next time.
    let id = metadata.topic_id(ASK_TIMEOUT)?;
    if is_another(starts_of.as_deref(), id.as_deref()) {
        starts.clear();
        *starts_of = id.clone();
    }
    let watermarks = metadata.watermarks(&partitions, ASK_TIMEOUT)?;
    for Watermarks { partition, low, .. } in &watermarks {
        starts.entry(*partition).or_insert(*low);
    }
    Ok(Topic {
        id,
        starts: partitions.iter().filter_map(|p| Some((*p, *starts.get(p)?))).collect(),
        ends: watermarks.iter().map(|w| (w.partition, w.high)).collect(),
        lows: watermarks.iter().map(|w| (w.partition, w.low)).collect(),
    })
}

/// Are these the ids of two topics?
pub fn is_another(known: Option<&str>, id: Option<&str>) -> bool {
    known.zip(id).is_some_and(|(known, id)| known != id)
}

/// The topic's id, if it has one, and its partitions with their first offsets and ends, asked once. Blocks.
pub fn spans(options: &SourceOptions) -> Result<(Option<String>, Vec<Watermarks>), ConnectorError> {
    let metadata = options.metadata()?;
    let partitions = metadata.partitions(ASK_TIMEOUT)?;
    let id = metadata.topic_id(ASK_TIMEOUT)?;
    Ok((id, metadata.watermarks(&partitions, ASK_TIMEOUT)?))
}

/// Where a source begins, and in which topic.
pub type Beginning = (Option<String>, BTreeMap<i32, i64>);

/// Where a source begins by its options, for one that must be fixed when it is created. Blocks.
pub fn fixed_starts(options: &SourceOptions) -> Result<Beginning, ConnectorError> {
    let metadata = options.metadata()?;
    let partitions = metadata.partitions(ASK_TIMEOUT)?;
    let id = metadata.topic_id(ASK_TIMEOUT)?;
    let starts = metadata.start_offsets(&partitions, ASK_TIMEOUT)?;
    Ok((id, starts.into_iter().map(|PartitionOffset { partition, offset }| (partition, offset)).collect()))
}

/// Like [`fixed_starts`] for a source that begins at the first record: also the check that the topic is there.
pub fn starts_if_reachable(options: &SourceOptions) -> Result<Beginning, ConnectorError> {
    let topic = look_once(options, &BTreeMap::new())?;
    Ok((topic.id, topic.starts.into_iter().collect()))
}

/// Like [`look_once`] for who reads the log anew, and whether the log is known to be compacted. Blocks.
pub fn look_at_log(options: &SourceOptions) -> Result<(Topic, bool), ConnectorError> {
    let mut metadata = None;
    let topic = look(options, &mut metadata, &mut BTreeMap::new(), &mut None)?;
    let compacted = metadata.map_or(Ok(None), |metadata| metadata.is_compacted(ASK_TIMEOUT))?;
    Ok((topic, compacted == Some(true)))
}

/// Partitions, starts and ends now, asked once. Blocks.
pub fn look_once(options: &SourceOptions, starts: &BTreeMap<i32, i64>) -> Result<Topic, ConnectorError> {
    look(options, &mut None, &mut starts.clone(), &mut None)
}
