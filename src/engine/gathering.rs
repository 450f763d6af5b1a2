//! What the workers say at the end of a tick, taken in by the coordinator; and what it tells of those that say nothing.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::alter::Change;
use super::clock::{self, Stopwatch};
use super::coordinator::Coordinator;
use super::dataflow::{TickData, fail};
use super::decoding::Consumer;
use super::orders::Report;
use super::stats::Stats;

/// A tick that takes longer to end is told, and again when that has doubled.
const PATIENCE: Duration = Duration::from_secs(10);

enum Heard<'a, R> {
    Word(R),
    /// Nothing of these workers for so long.
    Silence(&'a BTreeSet<usize>, Duration),
    /// All have said theirs in the end.
    WordAfterSilence(Duration),
}

/// Hears one word of each worker. False if they are gone.
fn hear_all<R>(
    words: &Receiver<R>,
    workers: usize,
    mut patience: Duration,
    worker_of: impl Fn(&R) -> usize,
    mut hear: impl FnMut(Heard<R>),
) -> bool {
    let mut silent: BTreeSet<usize> = (0..workers).collect();
    let (since, mut told) = (Stopwatch::start(), false);
    while !silent.is_empty() {
        match words.recv_timeout(patience.saturating_sub(since.elapsed())) {
            Ok(word) => {
                silent.remove(&worker_of(&word));
                hear(Heard::Word(word));
            }
            Err(RecvTimeoutError::Timeout) => {
                hear(Heard::Silence(&silent, since.elapsed()));
                (patience, told) = (patience * 2, true);
            }
            Err(RecvTimeoutError::Disconnected) => return false,
        }
    }
    if told {
        hear(Heard::WordAfterSilence(since.elapsed()));
    }
    true
}

impl Coordinator {
    /// Waits for what every worker says of the tick. False if they are gone.
    pub(super) fn gather(&mut self, data: &mut TickData) -> bool {
        let reports = self.reports.clone();
        hear_all(
            &reports,
            self.workers,
            PATIENCE,
            |report| report.worker,
            |heard| match heard {
                Heard::Word(report) => self.absorb(report, data),
                Heard::Silence(silent, elapsed) => self.tell_stalled(silent, elapsed),
                Heard::WordAfterSilence(elapsed) => {
                    tracing::warn!(tick = self.tick, after_s = elapsed.as_secs(), "the tick goes on");
                }
            },
        )
    }

    /// Until the tick ends nothing else is published, and the figures are those of the last one.
    fn tell_stalled(&self, silent: &BTreeSet<usize>, elapsed: Duration) {
        let silent: Vec<String> = silent.iter().map(usize::to_string).collect();
        let (tick, s, workers) = (self.tick, elapsed.as_secs(), silent.join(", "));
        let reason =
            format!("tick {tick} has not ended for {s} s: no word of workers {workers}; no view moves meanwhile");
        tracing::error!("{reason}");
        let mut stats = self.stats.write();
        *stats = Arc::new(Stats { stalled: Some((reason, s)), ..(**stats).clone() });
    }

    /// Takes in what a worker says.
    fn absorb(&mut self, report: Report, data: &mut TickData) {
        debug_assert_eq!(report.tick, self.tick, "workers report the tick that was ended");
        if let Some(keeping) = &mut self.keeping {
            keeping.note_busy(report.worker, report.busy);
        }
        data.saved.extend(report.saved);
        self.fenced = self.fenced.take().or(report.fatal);
        for (edge, delta) in report.edges {
            data.edges.entry(edge).or_default().push(delta);
        }
        for (pass, delta) in report.passes {
            data.passes.entry(pass).or_default().push(delta);
        }
        for (store, snapshot) in report.snapshots {
            data.snapshots.entry(store).or_default().push((report.worker, snapshot));
        }
        for (store, snapshot) in report.sessions {
            data.sessions.entry(store).or_default().push(snapshot);
        }
        for (store, start_us) in report.oldest_sessions {
            data.oldest_sessions.entry(store).or_default().push(start_us);
        }
        for (source, time) in report.times {
            self.times.insert(source, time);
        }
        for said in report.sources {
            let Some(source) = self.sources.get_mut(&said.source) else { continue };
            for partition in said.partitions {
                source.partitions.insert(partition.partition, partition);
            }
            source.ids.insert(report.worker, said.ids);
            source.troubles.insert(report.worker, said.trouble);
            source.unseen_by.insert(report.worker, said.unseen_columns);
            for (consumer, partitions) in said.backfills {
                source.backfills.entry(consumer).or_default().extend(partitions);
            }
            let at_us = clock::now_us();
            source.changes.extend(said.altered.into_iter().map(|altered| Change { at_us, altered }));
            for (consumer, from_us) in said.incomplete {
                let known = match consumer {
                    Consumer::Store(store) => self.stores.get_mut(&store).map(|s| &mut s.complete_from_us),
                    Consumer::Pass(pass) => {
                        let view = self.views.values_mut().find(|v| v.passes.contains(&pass));
                        view.map(|v| &mut v.complete_from_us)
                    }
                };
                if let Some(known) = known {
                    *known = (*known).max(Some(from_us));
                }
            }
        }
        for store in report.stores.into_iter().flatten() {
            if let Some(known) = self.stores.get_mut(&store.store) {
                known.reports.insert(report.worker, store);
            }
        }
        for (pass, shortfall) in report.passes_short {
            if let Some(view) = self.views.values_mut().find(|v| v.passes.contains(&pass)) {
                view.passes_short.insert((report.worker, pass), shortfall);
            }
        }
        let super::verdicts::Verdicts { duplicates, kept_after_all, late, dead, late_into } = report.verdicts;
        self.kept.add(clock::now_us(), late, dead);
        self.kept.add_duplicates(clock::now_us(), duplicates, &kept_after_all);
        for (table, rows) in late_into {
            self.keep_late_rows(table, rows, data);
        }
        for (consumer, reason) in report.failures {
            self.fail_consumer(consumer, &reason);
        }
    }

    fn fail_consumer(&mut self, consumer: Consumer, reason: &str) {
        for view in self.views.values_mut() {
            let hit = match consumer {
                Consumer::Store(store) => view.feeds.iter().any(|f| f.store == store),
                Consumer::Pass(pass) => view.passes.contains(&pass),
            };
            if hit {
                fail(view, reason);
            }
        }
    }

    /// Keeps rows of tables that came too late.
    pub fn keep(&self, now_us: i64, late: Vec<super::verdicts::LateRow>) {
        self.kept.add(now_us, late, Vec::new());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_that_say_nothing_are_told() {
        let (say, words) = crossbeam_channel::unbounded();
        say.send(2).expect("heard");
        say.send(0).expect("heard");
        let mut heard = Vec::new();
        let patience = Duration::from_millis(1);
        let all = hear_all(
            &words,
            3,
            patience,
            |word| *word,
            |what| match what {
                Heard::Word(worker) => heard.push(format!("{worker}")),
                Heard::Silence(silent, elapsed) => {
                    heard.push(format!("{silent:?} {}", elapsed >= patience));
                    if heard.len() == 4 {
                        say.send(1).expect("heard");
                    }
                }
                Heard::WordAfterSilence(elapsed) => heard.push(format!("at last {}", elapsed >= 2 * patience)),
            },
        );
        assert!(all);
        assert_eq!(heard, ["2", "0", "{1} true", "{1} true", "1", "at last true"]);
        drop(say);
        assert!(!hear_all(&words, 1, patience, |word| *word, |_| {}), "nobody is there");
    }
}
