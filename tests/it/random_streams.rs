//! Random streams of rows `r`: changes of a table, rows of an append-only table, or records of a topic; and the law of what
//! is accepted of them, worked out a second time from the partitions' logs, as simply as it can be written.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BooleanArray, Date32Array, Decimal128Array, Float64Array, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray, new_null_array,
};
use arrow::datatypes::SchemaRef;
use chrono::DateTime;
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use crate::random_views::interval;

const DAY_US: i64 = 86_400_000_000;

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// INSERT, UPDATE, DELETE.
    Table,
    AppendOnly,
    Source,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum TimeType {
    TimestampTz,
    Timestamp,
    Date,
}

#[derive(Debug, Clone)]
pub struct Row {
    pub partition: usize,
    k: Option<&'static str>,
    g: Option<i64>,
    v: Option<i64>,
    /// NUMERIC(12, 3), in thousandths.
    d: Option<i64>,
    f: Option<f64>,
    b: Option<bool>,
    pub time_us: Option<i64>,
    id: Option<i64>,
    /// No such row but something else is in the log.
    spoilt: Option<Spoilt>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Spoilt {
    Tombstone,
    Dead(&'static str),
}

const DEAD: [&str; 4] = ["", "{\"k\":", r#"{"k":"a","v":"many"}"#, r#"{"k":"a","v":1,"v":2}"#];

/// No clock stands so far ahead while tests are run.
const FUTURE_US: i64 = 4_102_444_800_000_000;

#[derive(Debug, Clone)]
pub enum Step {
    Rows(Vec<Row>),
    Change(String),
}

#[derive(Debug, Clone)]
pub struct Stream {
    pub kind: Kind,
    time: TimeType,
    /// About what lies between two rows.
    pub unit_ms: i64,
    delay_ms: i64,
    lateness_ms: i64,
    /// Within how long an id counts once; and whether equal ids share a partition.
    deduplicate: Option<(i64, bool)>,
    /// Whether partitions fall idle between steps, so that what is accepted depends on when.
    pub idle: bool,
    /// Whether views may forget.
    pub forgets: bool,
    pub partitions: usize,
    pub steps: Vec<Step>,
}

impl Stream {
    pub fn random(random: &mut StdRng) -> Stream {
        let kind = *[Kind::Table, Kind::AppendOnly, Kind::Source].choose(random).expect("some");
        let mut time =
            *[TimeType::TimestampTz, TimeType::TimestampTz, TimeType::Timestamp].choose(random).expect("some");
        // A watermark is over a time, not a day.
        if kind == Kind::Table && random.random_bool(0.25) {
            time = TimeType::Date;
        }
        let unit_ms = match time {
            TimeType::Date => 86_400_000,
            _ => *[1, 20, 1000, 1000, 10_000, 60_000, 3_600_000, 86_400_000].choose(random).expect("some"),
        };
        let partitions = if kind == Kind::Source { random.random_range(1..4) } else { 1 };
        let mut stream = Stream {
            kind,
            time,
            unit_ms,
            delay_ms: random.random_range(0..8) * unit_ms,
            lateness_ms: if kind == Kind::Source { random.random_range(0..20) * unit_ms } else { 0 },
            deduplicate: (kind == Kind::Source && random.random_bool(0.4))
                .then(|| (random.random_range(1..40) * unit_ms, random.random_bool(0.3))),
            idle: kind == Kind::Source && partitions > 1 && random.random_bool(0.25),
            forgets: kind != Kind::Table && random.random_bool(0.25),
            partitions,
            steps: Vec::new(),
        };
        let start_ms = match random.random_range(0..4) {
            0 => -40 * unit_ms,
            1 => -1_000_000_000_000 + random.random_range(0..unit_ms),
            _ => 1_577_836_800_000,
        };
        let skews: Vec<i64> = (0..partitions).map(|_| random.random_range(0..12) * unit_ms).collect();
        // One partition may have most of the rows, another hardly any.
        let busiest = random.random_range(0..partitions);
        let fine = random.random_bool(0.3);
        let mut made: Vec<Row> = Vec::new();
        for _ in 0..random.random_range(3..6) {
            if kind == Kind::Table && !made.is_empty() && random.random_bool(0.45) {
                stream.steps.push(Step::Change(stream.change(random, &made)));
                continue;
            }
            let mut rows = Vec::new();
            for _ in 0..random.random_range(1..45) {
                let partition = if random.random_bool(0.5) { busiest } else { random.random_range(0..partitions) };
                let mut row = stream.row(random, start_ms, made.len() as i64, skews[partition], fine);
                let recent = &made[made.len().saturating_sub(25)..];
                if let Some(copied) = recent.choose(random).filter(|_| random.random_bool(0.25)) {
                    match random.random_range(0..3) {
                        0 => row.id = copied.id,
                        1 => row = Row { time_us: row.time_us, ..copied.clone() },
                        _ => row = copied.clone(),
                    }
                }
                row.partition = match (row.id, stream.deduplicate) {
                    (Some(id), Some((_, true))) => id as usize % partitions,
                    _ => partition,
                };
                made.push(row.clone());
                rows.push(row);
            }
            stream.steps.push(Step::Rows(rows));
        }
        stream
    }

    fn row(&self, random: &mut StdRng, start_ms: i64, n: i64, skew_ms: i64, fine: bool) -> Row {
        let some = |random: &mut StdRng| !random.random_bool(0.1);
        let late_ms = match random.random_range(0..5) {
            0 => random.random_range(0..=2 * (self.delay_ms + self.lateness_ms) + 3 * self.unit_ms),
            _ => 0,
        };
        let time_ms = start_ms + (n / 2 + random.random_range(0..9)) * self.unit_ms - skew_ms - late_ms;
        let fraction_us = if fine { random.random_range(-3..3) } else { 0 };
        let time_us = time_ms * 1000 + fraction_us;
        let time_us = match random.random_range(0..60) {
            0 if self.kind == Kind::Source => FUTURE_US + n,
            _ if self.time == TimeType::Date => time_us.div_euclid(DAY_US) * DAY_US,
            _ => time_us,
        };
        let spoilt = match random.random_range(0..80) {
            0 if self.kind == Kind::Source => Some(Spoilt::Tombstone),
            1 if self.kind == Kind::Source => DEAD.choose(random).map(|text| Spoilt::Dead(text)),
            _ => None,
        };
        let v = match random.random_range(0..60) {
            0 => i64::MAX,
            1 => i64::MIN + 1,
            _ => random.random_range(-9..9),
        };
        Row {
            partition: 0,
            k: [Some("a"), Some("b"), Some("c"), Some("Ä"), None][random.random_range(0..5)],
            g: some(random).then(|| random.random_range(0..4)),
            v: some(random).then_some(v),
            d: some(random).then(|| random.random_range(-5000..5000)),
            f: some(random).then(|| random.random_range(-50..50) as f64 / 7.0),
            b: some(random).then(|| random.random_bool(0.5)),
            time_us: (!random.random_bool(0.03)).then_some(time_us),
            id: some(random).then_some(n),
            spoilt,
        }
    }

    fn change(&self, random: &mut StdRng, made: &[Row]) -> String {
        let time = made.choose(random).expect("some").time_us;
        let which = match random.random_range(0..6) {
            0 => format!("v % 3 = {}", random.random_range(0..3)),
            1 => "k IS NULL".into(),
            2 => format!("g = {}", random.random_range(0..4)),
            3 if time.is_some() => format!("ts < {}", self.literal(time)),
            4 => format!("f > {}", random.random_range(-5..5)),
            _ => format!("k = '{}'", ["a", "b", "c"].choose(random).expect("some")),
        };
        let set = match random.random_range(0..8) {
            0..3 => return format!("DELETE FROM r WHERE {which}"),
            3 => format!("v = {}, k = 'b'", random.random_range(-9..9)),
            4 => "d = -d, f = f + 0.5".into(),
            5 => "g = NULL, b = NOT b".into(),
            6 if self.time != TimeType::Date => {
                format!("ts = ts + {}", interval(random.random_range(-20..20) * self.unit_ms))
            }
            _ => format!("ts = {}", self.literal(time)),
        };
        format!("UPDATE r SET {set} WHERE {which}")
    }

    pub fn create(&self, topic: &str, servers: &str) -> String {
        let time = match self.time {
            TimeType::TimestampTz => "TIMESTAMPTZ",
            TimeType::Timestamp => "TIMESTAMP",
            TimeType::Date => "DATE",
        };
        let mut columns = format!(
            "k VARCHAR, g BIGINT, v BIGINT, d NUMERIC(12, 3), f DOUBLE PRECISION, b BOOLEAN, ts {time}, id BIGINT"
        );
        if self.kind != Kind::Table {
            columns += &format!(", WATERMARK FOR ts AS ts - {}", interval(self.delay_ms));
        }
        if let Some((within_ms, _)) = self.deduplicate {
            columns += &format!(", DEDUPLICATE BY (id) WITHIN {}", interval(within_ms));
        }
        match self.kind {
            Kind::Table => format!("CREATE TABLE r ({columns})"),
            Kind::AppendOnly => format!("CREATE TABLE r ({columns}) APPEND ONLY"),
            Kind::Source => format!(
                "CREATE SOURCE r ({columns}) WITH (connector = 'kafka', topic = '{topic}', \
                 properties.bootstrap.server = '{servers}', allowed_lateness = '{} milliseconds', \
                 idle_timeout = '{}'{}) FORMAT PLAIN ENCODE JSON",
                self.lateness_ms,
                if self.idle { "1 millisecond" } else { "1 day" },
                self.deduplicate.map_or(String::new(), |(_, same)| format!(", deduplicate.same_partition = {same}"))
            ),
        }
    }

    pub fn insert(&self, rows: &[Row]) -> String {
        let text = |text: Option<String>| text.unwrap_or("NULL".into());
        let values = rows.iter().map(|row| {
            format!(
                "({}, {}, {}, {}, {}, {}, {}, {})",
                text(row.k.map(|k| format!("'{k}'"))),
                text(row.g.map(|g| g.to_string())),
                text(row.v.map(|v| v.to_string())),
                text(row.d.map(thousandths)),
                text(row.f.map(|f| format!("'{f:?}'::double precision"))),
                text(row.b.map(|b| b.to_string())),
                self.literal(row.time_us),
                text(row.id.map(|id| id.to_string())),
            )
        });
        format!("INSERT INTO r VALUES {}", values.collect::<Vec<_>>().join(", "))
    }

    /// None for a tombstone.
    pub fn json(&self, row: &Row) -> Option<String> {
        let text = |text: Option<String>| text.unwrap_or("null".into());
        match row.spoilt {
            Some(Spoilt::Tombstone) => return None,
            Some(Spoilt::Dead(text)) => return Some(text.into()),
            None => {}
        }
        Some(format!(
            r#"{{"k":{},"g":{},"v":{},"d":{},"f":{},"b":{},"ts":{},"id":{}}}"#,
            text(row.k.map(|k| format!("\"{k}\""))),
            text(row.g.map(|g| g.to_string())),
            text(row.v.map(|v| v.to_string())),
            text(row.d.map(thousandths)),
            text(row.f.map(|f| format!("{f:?}"))),
            text(row.b.map(|b| b.to_string())),
            text(row.time_us.map(|us| format!("\"{}\"", self.moment(us)))),
            text(row.id.map(|id| id.to_string())),
        ))
    }

    fn moment(&self, us: i64) -> String {
        let moment = DateTime::from_timestamp_micros(us).expect("a moment in range");
        match self.time {
            TimeType::TimestampTz => moment.format("%Y-%m-%dT%H:%M:%S%.6fZ").to_string(),
            TimeType::Timestamp => moment.format("%Y-%m-%d %H:%M:%S%.6f").to_string(),
            TimeType::Date => moment.format("%Y-%m-%d").to_string(),
        }
    }

    fn literal(&self, us: Option<i64>) -> String {
        let Some(us) = us else { return "NULL".into() };
        let name = ["TIMESTAMPTZ", "TIMESTAMP", "DATE"][self.time as usize];
        format!("{name} '{}'", self.moment(us))
    }

    /// A moment as a literal of the type of `window_end`; without one, NULL.
    pub fn bound(&self, us: Option<i64>) -> String {
        match self.time {
            TimeType::TimestampTz => self.literal(us),
            _ => Stream { time: TimeType::Timestamp, ..self.clone() }.literal(us),
        }
    }

    /// Whether views hold their rows in stores.
    pub fn keeps_stores(&self) -> bool {
        self.kind == Kind::Source
    }

    pub fn with_steps(&self, steps: Vec<Step>) -> Stream {
        Stream { steps, ..self.clone() }
    }

    pub fn sent(&self, steps: usize) -> usize {
        let rows = |step: &Step| if let Step::Rows(rows) = step { rows.len() } else { 0 };
        self.steps[..steps].iter().map(rows).sum()
    }

    /// SEMANTICS 2.1, 2.5 and 2.8, of the first so many steps: the accepted rows, duplicates among them; those that count; and
    /// the time below which nothing changes any more.
    pub fn judged(&self, steps: usize) -> Judged {
        let (delay_us, lateness_us) = (self.delay_ms * 1000, self.lateness_ms * 1000);
        let mut watermarks: Vec<Option<i64>> = vec![None; self.partitions];
        let mut offsets = vec![0; self.partitions];
        let mut accepted: Vec<(i64, Row)> = Vec::new();
        let (mut dead, mut skipped) = (0, 0);
        for step in &self.steps[..steps] {
            let Step::Rows(rows) = step else { continue };
            let before = watermarks.clone();
            for row in rows {
                offsets[row.partition] += 1;
                match row.spoilt {
                    Some(Spoilt::Dead(_)) => dead += 1,
                    Some(Spoilt::Tombstone) => skipped += 1,
                    None => {}
                }
                let Some(time_us) = row.time_us.filter(|us| row.spoilt.is_none() && *us < FUTURE_US) else { continue };
                // A statement's rows are judged by what was there before it.
                let of = if self.kind == Kind::AppendOnly { &before } else { &watermarks };
                if of[row.partition].is_none_or(|watermark| time_us >= watermark - lateness_us) {
                    watermarks[row.partition] = watermarks[row.partition].max(Some(time_us - delay_us));
                    accepted.push((offsets[row.partition], row.clone()));
                }
            }
        }
        let watermark: Option<i64> = watermarks.into_iter().min().flatten();
        let counting = match self.deduplicate {
            None => accepted.iter().map(|(_, row)| row.clone()).collect(),
            Some((within_ms, same_partition)) => without_copies(accepted.clone(), within_ms * 1000, same_partition),
        };
        Judged { accepted: accepted.len(), dead, skipped, counting, watermark_us: watermark, lateness_us }
    }

    /// The same logs in other steps, the partitions interleaved otherwise; of a table whose rows are judged by statements, the
    /// accepted rows in one.
    pub fn recut(&self, random: &mut StdRng) -> Stream {
        let mut steps = match self.kind {
            Kind::Table => return self.clone(),
            Kind::AppendOnly => vec![Step::Rows(self.judged(self.steps.len()).counting)],
            Kind::Source => {
                let mut logs: BTreeMap<usize, std::collections::VecDeque<Row>> = BTreeMap::new();
                for step in &self.steps {
                    let Step::Rows(rows) = step else { continue };
                    rows.iter().for_each(|row| logs.entry(row.partition).or_default().push_back(row.clone()));
                }
                let mut steps = Vec::new();
                while !logs.is_empty() {
                    let mut rows = Vec::new();
                    for _ in 0..random.random_range(1..90) {
                        let partitions: Vec<usize> = logs.keys().copied().collect();
                        let Some(partition) = partitions.choose(random) else { break };
                        let log = logs.get_mut(partition).expect("it is listed");
                        rows.extend((0..random.random_range(1..30)).map_while(|_| log.pop_front()));
                        if log.is_empty() {
                            logs.remove(partition);
                        }
                    }
                    steps.push(Step::Rows(rows));
                }
                steps
            }
        };
        steps.retain(|step| !matches!(step, Step::Rows(rows) if rows.is_empty()));
        Stream { steps, ..self.clone() }
    }
}

pub struct Judged {
    pub accepted: usize,
    pub dead: usize,
    pub skipped: usize,
    pub counting: Vec<Row>,
    pub watermark_us: Option<i64>,
    pub lateness_us: i64,
}

impl Judged {
    pub fn final_until_us(&self) -> Option<i64> {
        self.watermark_us.map(|watermark| watermark - self.lateness_us)
    }
}

fn without_copies(mut accepted: Vec<(i64, Row)>, within_us: i64, same_partition: bool) -> Vec<Row> {
    if !same_partition {
        accepted.sort_by_key(|(offset, row)| (row.time_us, row.partition, *offset));
    }
    let mut kept: Vec<Row> = Vec::new();
    for (_, row) in accepted {
        let repeats = |k: &Row| {
            let apart_us = row.time_us.expect("accepted") - k.time_us.expect("accepted");
            // Where ids share a partition, its log decides, and a copy may be earlier than what it repeats.
            let apart_us = if same_partition { apart_us.abs() } else { apart_us };
            row.id.is_some() && k.id == row.id && apart_us < within_us
        };
        if !kept.iter().any(repeats) {
            kept.push(row);
        }
    }
    kept
}

fn thousandths(d: i64) -> String {
    format!("{}{}.{:03}", if d < 0 { "-" } else { "" }, d.abs() / 1000, d.abs() % 1000)
}

/// The rows as the object holds them; columns of its own that nobody looks at are NULL.
pub fn batch(rows: &[Row], schema: &SchemaRef) -> RecordBatch {
    let micros = || rows.iter().map(|row| row.time_us).collect::<TimestampMicrosecondArray>();
    let days = |us: i64| us.div_euclid(DAY_US) as i32;
    let mut columns: Vec<ArrayRef> = vec![
        Arc::new(rows.iter().map(|row| row.k).collect::<StringArray>()),
        Arc::new(rows.iter().map(|row| row.g).collect::<Int64Array>()),
        Arc::new(rows.iter().map(|row| row.v).collect::<Int64Array>()),
        Arc::new(
            rows.iter()
                .map(|row| row.d.map(i128::from))
                .collect::<Decimal128Array>()
                .with_precision_and_scale(12, 3)
                .expect("NUMERIC(12, 3)"),
        ),
        Arc::new(rows.iter().map(|row| row.f).collect::<Float64Array>()),
        Arc::new(rows.iter().map(|row| row.b).collect::<BooleanArray>()),
        match schema.field(6).data_type() {
            arrow::datatypes::DataType::Date32 => {
                Arc::new(rows.iter().map(|row| row.time_us.map(days)).collect::<Date32Array>())
            }
            arrow::datatypes::DataType::Timestamp(_, None) => Arc::new(micros()),
            _ => Arc::new(micros().with_timezone("UTC")),
        },
        Arc::new(rows.iter().map(|row| row.id).collect::<Int64Array>()),
    ];
    let further = schema.fields().iter().skip(columns.len());
    columns.extend(further.map(|field| new_null_array(field.data_type(), rows.len())));
    assert!(columns.iter().all(|column| column.len() == rows.len()));
    RecordBatch::try_new(schema.clone(), columns).expect("the object's columns")
}
