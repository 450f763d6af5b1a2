//! `DEDUPLICATE BY`: random logs with copies within and across partitions, within and beyond the interval, late ones, and ones that
//! sort before what they repeat. Views, counts and lists are held against a second implementation of the rule, as simple as it can
//! be written, over the partitions' logs; read piece by piece, at once, by other numbers of workers, and as history.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use riverrun::connector::{EmbeddedBroker, Producer};

use crate::db::Db;
use crate::oracle::{DERIVED, FINE, NaiveLaw, QUERIES, Row, START_US, over_rows, seeds};

const SECOND_US: i64 = 1_000_000;

#[derive(Debug, Clone)]
pub struct Record {
    partition: i32,
    offset: i64,
    id: Option<u32>,
    row: Row,
}

/// The rows that count: SEMANTICS 2.8, and where ids share a partition the order of its log.
fn kept(accepted: &[Record], interval_us: i64, same_partition: bool) -> Vec<Record> {
    let mut sorted = accepted.to_vec();
    if !same_partition {
        sorted.sort_by_key(|r| (r.row.2, r.partition, r.offset));
    }
    let mut kept: Vec<Record> = Vec::new();
    for record in sorted {
        let repeats = |k: &Record| {
            let near = match same_partition {
                true => k.partition == record.partition && (record.row.2 - k.row.2).abs() < interval_us,
                false => record.row.2 - k.row.2 < interval_us,
            };
            record.id.is_some() && k.id == record.id && near
        };
        if !kept.iter().any(repeats) {
            kept.push(record);
        }
    }
    kept
}

/// Partitions' logs, and what is made of them.
pub struct Log {
    pub partitions: i32,
    /// Whether the source looks at ids.
    pub deduplicates: bool,
    same_partition: bool,
    interval_us: i64,
    pub lateness_us: i64,
    /// What has ever been final.
    final_us: Option<i64>,
    laws: BTreeMap<i32, NaiveLaw>,
    records: Vec<Record>,
    accepted: Vec<Record>,
}

impl Log {
    pub fn new(random: &mut StdRng) -> Log {
        Log {
            partitions: random.random_range(1..4),
            deduplicates: true,
            same_partition: random.random_bool(0.3),
            interval_us: [2, 25, 120].choose(random).expect("some") * SECOND_US,
            lateness_us: 20 * SECOND_US,
            final_us: None,
            laws: BTreeMap::new(),
            records: Vec::new(),
            accepted: Vec::new(),
        }
    }

    /// The next record of the stream: new, or a copy of a recent one, mostly exact.
    fn record(&mut self, random: &mut StdRng) -> Record {
        let n = self.records.len() as i64;
        let late_us = if random.random_bool(0.2) { random.random_range(0..100) * SECOND_US } else { 0 };
        let now_us = START_US + n * 2 * SECOND_US + random.random_range(0..9) * SECOND_US;
        let k = [Some("a"), Some("b"), Some("c"), None][random.random_range(0..4)];
        let v = (!random.random_bool(0.1)).then(|| random.random_range(-9..9));
        let fresh = Record { partition: 0, offset: 0, id: Some(n as u32), row: (k, v, now_us - late_us) };
        let recent = &self.records[self.records.len().saturating_sub(25)..];
        let mut record = match recent.choose(random).filter(|_| random.random_bool(0.6)) {
            None => fresh,
            Some(copied) => match random.random_range(0..4) {
                0 => Record { id: copied.id, ..fresh },
                1 => Record { row: (k, v, copied.row.2), ..copied.clone() },
                2 => Record { row: (copied.row.0, copied.row.1, now_us - late_us), ..copied.clone() },
                _ => copied.clone(),
            },
        };
        if random.random_bool(0.05) {
            record.id = None;
        }
        record.partition = match record.id.filter(|_| self.same_partition) {
            Some(id) => id as i32 % self.partitions,
            None => random.random_range(0..self.partitions),
        };
        record.offset = self.records.iter().filter(|r| r.partition == record.partition).count() as i64;
        if self.law(record.partition).accepts(record.row.2) {
            self.accepted.push(record.clone());
        }
        self.records.push(record.clone());
        record
    }

    /// Some more records, in the logs when it returns.
    pub fn send(&mut self, producer: &Producer, topic: &str, random: &mut StdRng) {
        for _ in 0..random.random_range(1..60) {
            let record = self.record(random);
            let sent = producer.send(topic, Some(record.partition), None, Some(json(&record).as_bytes()), 0);
            sent.expect("a record sent");
        }
        producer.flush(Duration::from_secs(30)).expect("everything delivered");
    }

    fn law(&mut self, partition: i32) -> &mut NaiveLaw {
        let (lateness_us, floor_us) = (self.lateness_us, self.final_us);
        self.laws.entry(partition).or_insert_with(|| NaiveLaw { lateness_us, floor_us, ..NaiveLaw::default() })
    }

    fn kept(&self) -> Vec<Record> {
        match self.deduplicates {
            true => kept(&self.accepted, self.interval_us, self.same_partition),
            false => self.accepted.clone(),
        }
    }

    /// Those that count.
    pub fn rows(&self) -> Vec<Row> {
        self.kept().into_iter().map(|record| record.row).collect()
    }

    /// How many records there are, and how many of them are in time, duplicates included.
    pub fn counts(&self) -> (usize, usize) {
        (self.records.len(), self.accepted.len())
    }

    /// No partition's next record counts if it is before this.
    fn final_until_us(&self) -> Option<i64> {
        let watermarks: Option<Vec<i64>> = (0..self.partitions).map(|p| self.laws.get(&p)?.watermark_us).collect();
        let now_us = watermarks.and_then(|all| Some(all.into_iter().min()? - self.lateness_us));
        self.final_us.max(now_us)
    }

    pub fn furthest_us(&self) -> Option<i64> {
        self.laws.values().filter_map(|law| law.watermark_us).max()
    }

    /// `ALTER SOURCE ... SET (allowed_lateness)`, once all has been read.
    pub fn set_lateness(&mut self, lateness_us: i64) {
        self.final_us = self.final_until_us();
        self.lateness_us = lateness_us;
        for partition in 0..self.partitions {
            let floor_us = self.final_us;
            let law = self.law(partition);
            (law.lateness_us, law.floor_us) = (lateness_us, floor_us);
        }
    }

    /// `ALTER SOURCE ... RESET WATERMARK TO`, once all has been read.
    pub fn take_back(&mut self, to_us: i64) {
        self.final_us = self.final_until_us();
        let floor_us = self.final_us;
        for partition in 0..self.partitions {
            let law = self.law(partition);
            law.floor_us = floor_us;
            law.watermark_us = law.watermark_us.min(Some(to_us).max(floor_us));
        }
    }

    pub fn create(&self, topic: &str, servers: &str) -> String {
        let (mut by_id, mut promise) = (String::new(), String::new());
        if self.deduplicates {
            by_id = format!(", DEDUPLICATE BY (id) WITHIN INTERVAL '{} seconds'", self.interval_us / SECOND_US);
            promise = format!(", deduplicate.same_partition = {}", self.same_partition);
        }
        format!(
            "CREATE SOURCE r (k VARCHAR, v BIGINT, ts TIMESTAMPTZ, id VARCHAR,
               WATERMARK FOR ts AS ts - INTERVAL '10 seconds'{by_id})
             WITH (connector = 'kafka', topic = '{topic}', properties.bootstrap.server = '{servers}',
               allowed_lateness = '20 seconds', idle_timeout = '1 day'{promise})
             FORMAT PLAIN ENCODE JSON"
        )
    }
}

fn json(record: &Record) -> String {
    let (k, v, time_us) = record.row;
    format!(
        r#"{{"k":{},"v":{},"ts":{},"id":{}}}"#,
        k.map_or("null".into(), |k| format!("{k:?}")),
        v.map_or("null".into(), |v| v.to_string()),
        time_us / 1000,
        record.id.map_or("null".into(), |id| format!("\"id-{id}\""))
    )
}

async fn create_views(db: &Db, suffix: &str) {
    for (i, query) in queries() {
        db.run(&format!("CREATE MATERIALIZED VIEW v{i}{suffix} AS {query}")).await;
    }
    db.run(&format!("CREATE MATERIALIZED VIEW closed{suffix} AS {CLOSED} EMIT ON WINDOW CLOSE")).await;
}

/// Some of them are derived from the store of another.
fn queries() -> impl Iterator<Item = (usize, &'static str)> {
    QUERIES.iter().chain(&FINE).chain(&DERIVED).copied().enumerate()
}

const CLOSED: &str = "SELECT k, window_end, count(*) AS n, sum(v) AS s, max(v) AS hi FROM TUMBLE(r, ts, INTERVAL '20 seconds') \
    GROUP BY k, window_end";

/// Everything that the database says of the log so far.
async fn check(db: &Db, log: &Log, suffix: &str, case: &str) {
    db.run("WAIT FOR r").await;
    let kept = log.kept();
    let rows: Vec<Row> = kept.iter().map(|record| record.row).collect();
    for (i, query) in queries() {
        let view = db.rows(&format!("SELECT * FROM v{i}{suffix}")).await;
        assert_eq!(view, over_rows(db, query, &rows).await, "{case}: v{i}{suffix}\n{query}");
    }
    // What is shown once is final, and all that is final is shown.
    let closed = match log.final_until_us() {
        Some(us) => {
            let query = format!("SELECT * FROM ({CLOSED}) WHERE window_end <= to_timestamp_micros({us})");
            over_rows(db, &query, &rows).await
        }
        None => Vec::new(),
    };
    assert_eq!(db.rows(&format!("SELECT * FROM closed{suffix}")).await, closed, "{case}: closed{suffix}");

    let is_kept: BTreeSet<(i32, i64)> = kept.iter().map(|r| (r.partition, r.offset)).collect();
    let mut listed = Vec::new();
    let mut counts: BTreeMap<i32, (u64, u64, u64, u64)> = BTreeMap::new();
    for record in &log.records {
        counts.entry(record.partition).or_default().0 += 1;
    }
    for record in &log.accepted {
        let (_, accepted, late, duplicate) = counts.get_mut(&record.partition).expect("counted above");
        *late += 1;
        match is_kept.contains(&(record.partition, record.offset)) {
            true => *accepted += 1,
            false => {
                *duplicate += 1;
                let id = record.id.expect("it has an id, as it is a duplicate");
                listed.push(format!("{}|{}|id-{id}", record.partition, record.offset));
            }
        }
    }
    let counts: Vec<String> =
        counts.iter().map(|(p, (read, a, law, d))| format!("{p}|{read}|{a}|{}|{d}", read - law)).collect();
    let said = "SELECT partition, read, accepted, late, duplicate FROM riverrun.source_partitions WHERE read > 0";
    assert_eq!(db.rows(said).await, counts, "{case}: counts");
    listed.sort();
    assert_eq!(
        db.rows("SELECT partition, \"offset\", id FROM riverrun.duplicates").await,
        listed,
        "{case}: duplicates"
    );
    // A duplicate names a row of its own id.
    let of: BTreeMap<(i32, i64), Option<u32>> = log.records.iter().map(|r| ((r.partition, r.offset), r.id)).collect();
    for line in db.rows("SELECT partition, \"offset\", kept_partition, kept_offset FROM riverrun.duplicates").await {
        let n: Vec<i64> = line.split('|').map(|n| n.parse().expect("a number")).collect();
        assert_eq!(of[&(n[0] as i32, n[1])], of[&(n[2] as i32, n[3])], "{case}: {line}");
        assert_ne!((n[0], n[1]), (n[2], n[3]), "{case}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_duplicate_counts_once_whatever_the_batches_and_the_partitions() {
    let broker = EmbeddedBroker::start().expect("a broker");
    let producer = Producer::new(&broker.servers(), &[]).expect("a producer");
    for seed in seeds(0..4) {
        let mut random = StdRng::seed_from_u64(seed);
        let mut log = Log::new(&mut random);
        let case = format!(
            "seed {seed}, {} partitions, interval {}s, same_partition {}",
            log.partitions,
            log.interval_us / SECOND_US,
            log.same_partition
        );
        let topic = format!("d{seed}");
        broker.create_topic(&topic, log.partitions).expect("a topic");
        let db = Db::start(random.random_range(1..4));
        db.run(&log.create(&topic, &broker.servers())).await;
        let (first, second) = (random.random_range(0..3), random.random_range(2..5));
        let mut made: Vec<&str> = Vec::new();
        for step in 0..5 {
            if step == first {
                create_views(&db, "").await;
                made.push("");
            }
            if step == second {
                create_views(&db, "_later").await;
                made.push("_later");
            }
            for _ in 0..random.random_range(1..50) {
                let record = log.record(&mut random);
                let sent = producer.send(&topic, Some(record.partition), None, Some(json(&record).as_bytes()), 0);
                sent.expect("a record sent");
            }
            producer.flush(Duration::from_secs(30)).expect("everything delivered");
            for suffix in &made {
                check(&db, &log, suffix, &format!("{case}, step {step}")).await;
            }
        }
        // The same log, read at once by another number of workers, comes to the same.
        let other = Db::start(random.random_range(1..4));
        other.run(&log.create(&topic, &broker.servers())).await;
        create_views(&other, "").await;
        check(&other, &log, "", &format!("{case}, at once")).await;
        // One view to have it read, and the others over its history.
        let third = Db::start(2);
        third.run(&log.create(&topic, &broker.servers())).await;
        third.run("CREATE MATERIALIZED VIEW n AS SELECT count(*) AS n FROM r; WAIT FOR r").await;
        create_views(&third, "").await;
        check(&third, &log, "", &format!("{case}, as history")).await;
        for db in [db, other, third] {
            db.stop().await;
        }
    }
}
