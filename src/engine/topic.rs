//! Watches a source's topic: which partitions there are and where they end. Calls to brokers may block, so each source that is
//! read has a thread for them.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::clock::now_us;
use crate::catalog::Oid;
use crate::connector::{ConnectorError, Metadata, PartitionOffset, SourceOptions, Watermarks};

/// New partitions and ends are looked for this often.
const EVERY: Duration = Duration::from_secs(1);
/// How long one question to the brokers may take.
pub const ASK_TIMEOUT: Duration = Duration::from_secs(5);
/// After a failure the pause doubles up to this.
const MOST_PAUSE: Duration = Duration::from_secs(15);

/// What is known of a topic.
#[derive(Debug, Clone)]
pub struct Topic {
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
    pub topic: Result<Topic, ConnectorError>,
}

/// The thread; dropping it ends the thread after its present question.
pub struct TopicWatch {
    asks: Sender<()>,
}

impl TopicWatch {
    /// `starts` are offsets fixed at CREATE SOURCE; partitions not among them begin at their first record.
    pub fn start(
        source: Oid,
        options: SourceOptions,
        starts: BTreeMap<i32, i64>,
        say: impl Fn(Seen) -> bool + Send + 'static,
    ) -> std::io::Result<TopicWatch> {
        let (asks, asked) = bounded(1);
        thread::Builder::new()
            .name(format!("topic-{source}"))
            .spawn(move || watch(source, &options, starts, &asked, &say))?;
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
    asked: &Receiver<()>,
    say: &dyn Fn(Seen) -> bool,
) {
    let mut metadata: Option<Metadata> = None;
    let mut pause = EVERY;
    loop {
        let asked_us = now_us();
        let topic = look(options, &mut metadata, &mut starts);
        pause = match &topic {
            Ok(_) => EVERY,
            Err(_) => (pause * 2).min(MOST_PAUSE),
        };
        if !say(Seen { source, asked_us, topic }) {
            return;
        }
        match asked.recv_timeout(pause) {
            Ok(()) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn look(
    options: &SourceOptions,
    metadata: &mut Option<Metadata>,
    starts: &mut BTreeMap<i32, i64>,
) -> Result<Topic, ConnectorError> {
    let metadata = match metadata {
        Some(metadata) => metadata,
        None => metadata.insert(options.metadata()?),
    };
    let partitions = metadata.partitions(ASK_TIMEOUT)?;
    let watermarks = metadata.watermarks(&partitions, ASK_TIMEOUT)?;
    for Watermarks { partition, low, .. } in &watermarks {
        starts.entry(*partition).or_insert(*low);
    }
    Ok(Topic {
        starts: partitions.iter().filter_map(|p| Some((*p, *starts.get(p)?))).collect(),
        ends: watermarks.iter().map(|w| (w.partition, w.high)).collect(),
        lows: watermarks.iter().map(|w| (w.partition, w.low)).collect(),
    })
}

/// The partitions with their first offsets and ends, asked once. Blocks.
pub fn spans(options: &SourceOptions) -> Result<Vec<Watermarks>, ConnectorError> {
    let metadata = options.metadata()?;
    metadata.watermarks(&metadata.partitions(ASK_TIMEOUT)?, ASK_TIMEOUT)
}

/// Where a source begins by its options, for one that must be fixed when it is created. Blocks.
pub fn fixed_starts(options: &SourceOptions) -> Result<BTreeMap<i32, i64>, ConnectorError> {
    let metadata = options.metadata()?;
    let partitions = metadata.partitions(ASK_TIMEOUT)?;
    let starts = metadata.start_offsets(&partitions, ASK_TIMEOUT)?;
    Ok(starts.into_iter().map(|PartitionOffset { partition, offset }| (partition, offset)).collect())
}

/// Like [`fixed_starts`] for a source that begins at the first record: also the check that the topic is there.
pub fn starts_if_reachable(options: &SourceOptions) -> Result<BTreeMap<i32, i64>, ConnectorError> {
    let topic = look_once(options, &BTreeMap::new())?;
    Ok(topic.starts.into_iter().collect())
}

/// Partitions, starts and ends now, asked once. Blocks.
pub fn look_once(options: &SourceOptions, starts: &BTreeMap<i32, i64>) -> Result<Topic, ConnectorError> {
    look(options, &mut None, &mut starts.clone())
}
