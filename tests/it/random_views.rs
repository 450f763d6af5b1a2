//! Random definitions of views over `r` and over each other, as SQL: windows of any kind, size and offset, or none, keys, calls,
//! filters, temporal ones among them, HAVING, EMIT ON WINDOW CLOSE, EMIT EVERY, retention, Top-N, DISTINCT, what `row_number` leaves, unions. A
//! definition knows what a simpler one would be, for shrinking.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use crate::random_streams::{Kind, Stream};

/// What may be done with a column.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Class {
    Integer,
    Numeric,
    Float,
    Text,
    Boolean,
    Time,
}
use Class::*;

#[derive(Debug, Clone)]
struct Named {
    sql: String,
    class: Class,
}

#[derive(Debug, Clone)]
struct Call {
    sql: String,
    filter: Option<String>,
    class: Class,
}

#[derive(Debug, Clone)]
struct Windows {
    function: &'static str,
    time: String,
    /// Slide and size, step and size, gap and maximum, as the function takes them.
    lengths_ms: Vec<i64>,
    offset_ms: Option<i64>,
    flink: bool,
}

/// What a view over `r` takes of it.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Input {
    All,
    /// The first row of each id.
    First,
    /// Rows of two conditions, which may overlap.
    Union,
}

#[derive(Debug, Clone)]
enum Shape {
    Aggregate,
    /// The rows of a view in an order of all their columns: the first so many, or as many of each of the values of a column.
    Top {
        columns: Vec<String>,
        descends: bool,
        each: Option<String>,
        n: usize,
    },
    Distinct {
        columns: Vec<String>,
    },
}

#[derive(Debug, Clone)]
pub struct View {
    /// The number of the view that it is over; over `r` if none.
    pub over: Option<usize>,
    shape: Shape,
    input: Input,
    /// None over a view whose windows are kept as keys, and over rows that are grouped without.
    windows: Option<Windows>,
    start: bool,
    end: bool,
    keys: Vec<Named>,
    calls: Vec<Call>,
    filter: Option<String>,
    having: Option<String>,
    /// A condition that depends on the watermark.
    temporal: Option<String>,
    retention_ms: Option<i64>,
    pub emit: bool,
    /// EMIT EVERY.
    pub every: bool,
    pub store: Option<&'static str>,
}

pub fn interval(ms: i64) -> String {
    let units =
        [(86_400_000, "days"), (3_600_000, "hours"), (60_000, "minutes"), (1000, "seconds"), (1, "milliseconds")];
    let (length, unit) = units.into_iter().find(|(length, _)| ms % length == 0).expect("one divides all");
    format!("INTERVAL '{} {unit}'", ms / length)
}

impl Windows {
    fn from(&self, input: &str) -> String {
        let mut arguments = match self.flink {
            true => format!("TABLE {input}, DESCRIPTOR({})", self.time),
            false => format!("{input}, {}", self.time),
        };
        for ms in self.lengths_ms.iter().chain(&self.offset_ms) {
            arguments += &format!(", {}", interval(*ms));
        }
        let call = format!("{}({arguments})", self.function);
        if self.flink { format!("TABLE({call})") } else { call }
    }

    fn random(random: &mut StdRng, time: String, unit_ms: i64) -> Windows {
        let unit = *[1, 1, 2, 3, 5, 7, 10, 12, 20].choose(random).expect("some") * unit_ms;
        let function = *["TUMBLE", "HOP", "HOP", "CUMULATE", "SESSION"].choose(random).expect("some");
        let (a, b) = (random.random_range(1..8), random.random_range(1..8));
        let lengths_ms = match function {
            "TUMBLE" => vec![a * unit],
            // Slides that divide the size, that do not, and longer ones, which leave gaps.
            "HOP" if random.random_bool(0.5) => vec![a * unit, a * b * unit],
            "HOP" if random.random_bool(0.7) => vec![a.min(b) * unit, a.max(b) * unit],
            "HOP" => vec![a.max(b) * unit, a.min(b) * unit],
            "CUMULATE" => vec![a * unit, a * b * unit],
            _ if random.random_bool(0.6) => vec![unit.max(a * unit / 2)],
            _ => vec![a * unit, a * unit + b * unit / 2],
        };
        let offset_ms = (function != "SESSION" && random.random_bool(0.35)).then(|| match random.random_range(0..4) {
            0 => -lengths_ms[0] / 2 - 1,
            1 => random.random_range(-40..40) * unit_ms,
            2 => random.random_range(-100_000_000..100_000_000),
            // The grid of a view without an offset, and so of its store.
            _ => lengths_ms[0] * random.random_range(-3..4),
        });
        Windows { function, time, lengths_ms, offset_ms, flink: random.random_bool(0.1) }
    }
}

fn columns_of_r() -> Vec<Named> {
    let named = |(sql, class): (&str, Class)| Named { sql: sql.into(), class };
    [("k", Text), ("g", Integer), ("v", Integer), ("d", Numeric), ("f", Float), ("b", Boolean)].map(named).into()
}

const KEYS: &[(&str, Class)] = &[
    ("k", Text),
    ("k", Text),
    ("g", Integer),
    ("b", Boolean),
    ("d", Numeric),
    ("upper(k)", Text),
    ("v % 3", Integer),
    ("coalesce(k, 'none')", Text),
    ("g IS NULL", Boolean),
    ("CASE WHEN v > 0 THEN 'up' ELSE k END", Text),
    ("f > 0", Boolean),
];

const CONDITIONS: &[&str] = &[
    "v > 0",
    "v % 2 = 0",
    "k = 'a'",
    "k IN ('a', 'c')",
    "k IS NULL",
    "k <> 'b'",
    "g IS NOT NULL",
    "g = 1",
    "b",
    "NOT b",
    "d >= 0",
    "f < 1",
    "v > 100 AND v < -100",
];

const HAVING: &[&str] =
    &["count(*) > 1", "sum(v) > 0", "max(v) IS NOT NULL", "min(d) < 0", "count(DISTINCT k) > 1", "avg(g) >= 1"];

fn condition(random: &mut StdRng, of: &[String]) -> Option<String> {
    let one = of.choose(random)?.clone();
    let other = of.choose(random)?;
    Some(match random.random_range(0..6) {
        0 => format!("({one} OR {other})"),
        1 => format!("({one}) AND ({other})"),
        2 => format!("({one}) IS NOT TRUE"),
        _ => one,
    })
}

fn call(random: &mut StdRng, columns: &[Named], conditions: &[String]) -> Call {
    let column = columns.choose(random).expect("some");
    let (x, class) = (&column.sql, column.class);
    let summed = if class == Float { Float } else { Numeric };
    let (sql, class) = match (random.random_range(0..10), class) {
        (0, _) => ("count(*)".into(), Integer),
        (1, _) => (format!("count({x})"), Integer),
        (2, Integer | Numeric | Text | Time) => (format!("count(DISTINCT {x})"), Integer),
        (3 | 4, Integer | Numeric | Float | Text | Time) => (format!("min({x})"), class),
        (5, Integer | Numeric | Float | Text | Time) => (format!("max({x})"), class),
        (6, Integer | Numeric | Float) => (format!("avg({x})"), summed),
        (7, Integer) => {
            let function = ["bit_and", "bit_or", "bit_xor"].choose(random).expect("some");
            (format!("{function}({x})"), Integer)
        }
        (_, Integer | Numeric | Float) => (format!("sum({x})"), summed),
        (_, Boolean) => {
            let function = ["bool_and", "bool_or"].choose(random).expect("some");
            (format!("{function}({x})"), Boolean)
        }
        _ => (format!("max({x})"), class),
    };
    let filter = random.random_bool(0.3).then(|| condition(random, conditions)).flatten();
    Call { sql, filter, class }
}

fn temporal(random: &mut StdRng, windows: bool, unit_ms: i64) -> String {
    let behind = interval(random.random_range(0..30) * unit_ms);
    let time = if windows { ["ts", "window_start", "window_end"][random.random_range(0..3)] } else { "ts" };
    match random.random_range(0..6) {
        0 => format!("{time} <= watermark('r')"),
        1 => format!("{time} >= date_trunc('hour', watermark('r'))"),
        2 => {
            let from = interval((30 + random.random_range(0..30)) * unit_ms);
            format!("{time} > watermark('r') - {from} AND {time} <= watermark('r') - {behind}")
        }
        _ => format!("{time} > watermark('r') - {behind}"),
    }
}

impl View {
    /// All rows of `r`.
    pub const ALL: &str = "CREATE MATERIALIZED VIEW accepted AS SELECT * FROM r";

    pub fn random(random: &mut StdRng, stream: &Stream) -> View {
        let windows = Windows::random(random, "ts".into(), stream.unit_ms);
        let conditions: Vec<String> = CONDITIONS.iter().map(|c| c.to_string()).collect();
        let mut keys: Vec<Named> = Vec::new();
        for _ in 0..random.random_range(0..4) {
            let (sql, class) = *KEYS.choose(random).expect("some");
            if keys.iter().all(|key| key.sql != sql) {
                keys.push(Named { sql: sql.into(), class });
            }
        }
        let mut columns = columns_of_r();
        columns.push(Named { sql: "ts".into(), class: Time });
        let calls = (0..random.random_range(1..5)).map(|_| call(random, &columns, &conditions)).collect();
        let mut view = View {
            over: None,
            shape: Shape::Aggregate,
            input: match random.random_range(0..12) {
                0 => Input::First,
                1 => Input::Union,
                _ => Input::All,
            },
            start: true,
            end: true,
            windows: None,
            keys,
            calls,
            filter: None,
            having: None,
            temporal: None,
            retention_ms: None,
            emit: false,
            every: false,
            store: None,
        };
        view.filter = random.random_bool(0.3).then(|| condition(random, &conditions)).flatten();
        view.having = random.random_bool(0.2).then(|| HAVING.choose(random).expect("some").to_string());
        if stream.kind != Kind::Table && random.random_bool(0.12) {
            view.temporal = Some(temporal(random, false, stream.unit_ms));
        }
        if random.random_bool(0.1) {
            (view.start, view.end) = (false, false);
            return view;
        }
        match random.random_range(0..10) {
            // What is forgotten is told by the bounds.
            _ if stream.forgets => {}
            0 | 1 => view.end = false,
            2 | 3 => view.start = false,
            // Every row once for each window that covers it.
            4 if random.random_bool(0.3) && windows.function != "SESSION" => (view.start, view.end) = (false, false),
            _ => {}
        }
        if view.temporal.is_some() && view.input == Input::All && view.start && view.end {
            view.temporal = Some(temporal(random, true, stream.unit_ms));
        }
        let flink = windows.flink && view.input == Input::All;
        view.windows = Some(Windows { flink, ..windows });
        let closes = stream.kind != Kind::Table && view.end && view.temporal.is_none() && view.input != Input::First;
        view.emit = closes && random.random_bool(0.3);
        if closes && stream.forgets && view.input == Input::All && random.random_bool(0.5) {
            view.retention_ms = Some(random.random_range(1..40) * stream.unit_ms);
        }
        // Windows that cumulate and are grouped by their start are rows of several windows, which no store holds.
        let whole = view.end || view.start && view.windows.as_ref().is_some_and(|w| w.function != "CUMULATE");
        if stream.keeps_stores() && whole && view.input == Input::All && view.temporal.is_none() {
            view.store = *[None, None, None, Some("own"), Some("shared")].choose(random).expect("some");
        }
        view.every = !view.emit && random.random_bool(0.15);
        view
    }

    /// One over this, the view number `over`.
    pub fn random_over(&self, over: usize, random: &mut StdRng, stream: &Stream) -> View {
        let columns: Vec<Named> = self.columns();
        if random.random_bool(0.25)
            && let Some(shape) = self.random_shape(random)
        {
            return View {
                over: Some(over),
                shape,
                input: Input::All,
                windows: None,
                start: false,
                end: false,
                keys: Vec::new(),
                calls: Vec::new(),
                filter: None,
                having: None,
                temporal: None,
                retention_ms: None,
                emit: false,
                every: false,
                store: None,
            };
        }
        let of = |classes: &[Class]| columns.iter().filter(|c| classes.contains(&c.class)).cloned().collect::<Vec<_>>();
        let mut conditions: Vec<String> = of(&[Integer, Numeric]).iter().map(|c| format!("{} > 1", c.sql)).collect();
        conditions.extend(of(&[Text]).iter().map(|c| format!("{} = 'a'", c.sql)));
        conditions.extend(columns.iter().map(|c| format!("{} IS NOT NULL", c.sql)));
        let bounds: Vec<&str> = [(self.start, "window_start"), (self.end, "window_end")]
            .into_iter()
            .filter_map(|(there, name)| there.then_some(name))
            .collect();
        let windows = match bounds.choose(random) {
            Some(time) if random.random_bool(0.6) => Some(Windows::random(random, time.to_string(), stream.unit_ms)),
            _ => None,
        };
        let kept = windows.is_none();
        let mut keys = of(&[Integer, Numeric, Text, Boolean]);
        keys.retain(|key| key.sql.starts_with('k') && random.random_bool(0.5));
        let calls = (0..random.random_range(1..4)).map(|_| call(random, &columns, &conditions)).collect();
        let mut view = View {
            over: Some(over),
            shape: Shape::Aggregate,
            input: Input::All,
            start: if kept { self.start && random.random_bool(0.7) } else { true },
            end: if kept { self.end && random.random_bool(0.7) } else { true },
            windows,
            keys,
            calls,
            filter: random.random_bool(0.25).then(|| condition(random, &conditions)).flatten(),
            having: random.random_bool(0.15).then(|| "count(*) > 1".into()),
            temporal: None,
            retention_ms: None,
            emit: false,
            every: false,
            store: None,
        };
        // Up to when sessions are final no function says.
        let ends_together = view.windows.as_ref().is_some_and(|windows| windows.function != "SESSION");
        let closes = self.temporal.is_none() && self.input != Input::First && stream.kind != Kind::Table;
        view.emit = closes && ends_together && random.random_bool(0.25);
        let below = self.windows.as_ref().is_some_and(|windows| windows.function != "SESSION");
        if closes && below && kept && view.end {
            view.emit = random.random_bool(0.8);
        }
        view.every = !view.emit && random.random_bool(0.15);
        view
    }

    /// Of its columns without floats, whose order depends on how they were added up.
    fn random_shape(&self, random: &mut StdRng) -> Option<Shape> {
        let mut columns: Vec<String> =
            self.columns().into_iter().filter(|column| column.class != Float).map(|column| column.sql).collect();
        let bounds = [(self.start, "window_start"), (self.end, "window_end")];
        columns.extend(bounds.into_iter().filter(|(there, _)| *there).map(|(_, name)| name.to_string()));
        if random.random_bool(0.3) {
            columns.retain(|_| random.random_bool(0.5));
            return (!columns.is_empty()).then_some(Shape::Distinct { columns });
        }
        let at = random.random_range(0..columns.len().max(1));
        columns.rotate_left(at);
        let each = if random.random_bool(0.5) { columns.choose(random).cloned() } else { None };
        let (descends, n) = (random.random_bool(0.5), random.random_range(1..6));
        (!columns.is_empty()).then_some(Shape::Top { columns, descends, each, n })
    }

    /// Whether others may stand on it and be compared with what it shows.
    pub fn may_be_beneath(&self) -> bool {
        self.over.is_none() && self.retention_ms.is_none()
    }

    pub fn is_temporal(&self) -> bool {
        self.temporal.is_some()
    }

    pub fn shows_bounds(&self) -> bool {
        self.start && self.end
    }

    /// Which windows it shows of all by event time: up to when they must be final, and after when they must end.
    pub fn shown(&self, watermark_us: Option<i64>, final_until_us: Option<i64>) -> Option<(bool, Option<i64>)> {
        if !self.emit && self.retention_ms.is_none() {
            return None;
        }
        let forgotten_us = self.retention_ms.zip(watermark_us).map(|(kept_ms, now_us)| now_us - kept_ms * 1000);
        let sessions = self.windows.as_ref().is_some_and(|windows| windows.function == "SESSION");
        // Sessions go once they are final.
        let forgotten_us = match sessions {
            true => forgotten_us.zip(final_until_us).map(|(forgotten_us, final_us)| forgotten_us.min(final_us)),
            false => forgotten_us,
        };
        Some((self.emit, forgotten_us))
    }

    /// Its columns but those of its windows.
    fn columns(&self) -> Vec<Named> {
        let keys = self.keys.iter().enumerate().map(|(i, key)| Named { sql: format!("k{i}"), class: key.class });
        let calls = self.calls.iter().enumerate().map(|(i, call)| Named { sql: format!("a{i}"), class: call.class });
        keys.chain(calls).collect()
    }

    /// Its query, before EMIT.
    pub fn query(&self) -> String {
        let input = self.over.map_or("r".into(), |over| format!("v{over}"));
        match &self.shape {
            Shape::Aggregate => {}
            Shape::Distinct { columns } => return format!("SELECT DISTINCT {} FROM {input}", columns.join(", ")),
            Shape::Top { columns, descends, each, n } => {
                let direction = if *descends { "DESC NULLS LAST" } else { "ASC NULLS FIRST" };
                let (first, rest) = columns.split_first().expect("one at least");
                let order = [&[format!("{first} {direction}")], rest].concat().join(", ");
                let columns = columns.join(", ");
                return match each {
                    None => format!("SELECT {columns} FROM {input} ORDER BY {order} LIMIT {n}"),
                    Some(each) => format!(
                        "SELECT {columns} FROM (SELECT *, row_number() OVER (PARTITION BY {each} ORDER BY {order}) AS place \
                         FROM {input}) WHERE place <= {n}"
                    ),
                };
            }
        }
        let input = match self.input {
            Input::All => input,
            Input::First => {
                "(SELECT * FROM (SELECT *, row_number() OVER (PARTITION BY id ORDER BY ts, v, g, d, k, b, f) AS place \
                 FROM r) WHERE place = 1)"
                    .into()
            }
            Input::Union => "(SELECT k, g, v, d, f, b, ts FROM r WHERE v > -3 UNION ALL \
                 SELECT k, g, v, d, f, b, ts FROM r WHERE k = 'a')"
                .into(),
        };
        let bounds = [(self.start, "window_start"), (self.end, "window_end")];
        let bounds = bounds.into_iter().filter(|(there, _)| *there).map(|(_, name)| name.to_string());
        let keys = self.keys.iter().enumerate().map(|(i, key)| format!("{} AS k{i}", key.sql));
        let calls = self.calls.iter().enumerate().map(|(i, call)| match &call.filter {
            Some(filter) => format!("{} FILTER (WHERE {filter}) AS a{i}", call.sql),
            None => format!("{} AS a{i}", call.sql),
        });
        let outputs: Vec<String> = keys.chain(bounds.clone()).chain(calls).collect();
        let groups: Vec<String> = self.keys.iter().map(|key| key.sql.clone()).chain(bounds).collect();
        let from = self.windows.as_ref().map_or(input.clone(), |windows| windows.from(&input));
        let mut sql = format!("SELECT {} FROM {from}", outputs.join(", "));
        let conditions: Vec<String> = self.filter.iter().chain(&self.temporal).cloned().collect();
        match &conditions[..] {
            [] => {}
            [one] => sql += &format!(" WHERE {one}"),
            all => sql += &format!(" WHERE ({})", all.join(") AND (")),
        }
        if !groups.is_empty() {
            sql += &format!(" GROUP BY {}", groups.join(", "));
        }
        if let Some(having) = &self.having {
            sql += &format!(" HAVING {having}");
        }
        sql
    }

    pub fn create(&self, number: usize) -> String {
        let options = [
            self.store.map(|store| format!("store = '{store}'")),
            self.retention_ms.map(|ms| format!("retention = '{ms} milliseconds'")),
        ];
        let options: Vec<String> = options.into_iter().flatten().collect();
        let with = if options.is_empty() { String::new() } else { format!(" WITH ({})", options.join(", ")) };
        let emit = match (self.emit, self.every) {
            (true, _) => " EMIT ON WINDOW CLOSE",
            (false, true) => " EMIT EVERY INTERVAL '200 milliseconds'",
            (false, false) => "",
        };
        format!("CREATE MATERIALIZED VIEW v{number}{with} AS {}{emit}", self.query())
    }

    pub fn over_another(&self, over: Option<usize>) -> View {
        View { over, ..self.clone() }
    }

    pub fn in_any_store(&self) -> View {
        View { store: None, ..self.clone() }
    }

    pub fn without_emit(&self) -> View {
        View { emit: false, ..self.clone() }
    }

    /// It is final as windows of the view beneath are.
    pub fn closes_below(&self) -> bool {
        self.emit && self.over.is_some() && self.windows.is_none()
    }

    /// Definitions with one thing less.
    pub fn simpler(&self) -> Vec<View> {
        let mut views = Vec::new();
        let mut push = |alter: &dyn Fn(&mut View)| {
            let mut view = self.clone();
            alter(&mut view);
            views.push(view);
        };
        for i in (0..self.calls.len()).rev() {
            if self.calls.len() > 1 {
                push(&|view| drop(view.calls.remove(i)));
            }
            if self.calls[i].filter.is_some() {
                push(&|view| view.calls[i].filter = None);
            }
            if self.over.is_none() && self.calls[i].sql != "count(*)" {
                push(&|view| view.calls[i] = Call { sql: "count(*)".into(), filter: None, class: Integer });
            }
        }
        for i in (0..self.keys.len()).rev() {
            push(&|view| drop(view.keys.remove(i)));
        }
        if self.filter.is_some() {
            push(&|view| view.filter = None);
        }
        if self.having.is_some() {
            push(&|view| view.having = None);
        }
        if self.emit {
            push(&|view| view.emit = false);
        }
        if self.every {
            push(&|view| view.every = false);
        }
        if self.temporal.is_some() {
            push(&|view| view.temporal = None);
        }
        if self.retention_ms.is_some() {
            push(&|view| view.retention_ms = None);
        }
        if self.input != Input::All {
            push(&|view| view.input = Input::All);
        }
        if let Shape::Top { columns, descends, each, n } = &self.shape {
            if each.is_some() {
                push(&|view| {
                    view.shape = Shape::Top { columns: columns.clone(), descends: *descends, each: None, n: *n };
                });
            }
            if *n > 1 {
                push(&|view| {
                    view.shape = Shape::Top { columns: columns.clone(), descends: *descends, each: each.clone(), n: 1 };
                });
            }
        }
        if self.store.is_some() {
            push(&|view| view.store = None);
        }
        let Some(windows) = &self.windows else { return views };
        let mut push_windows = |windows: Windows| views.push(View { windows: Some(windows), ..self.clone() });
        if windows.flink {
            push_windows(Windows { flink: false, ..windows.clone() });
        }
        if windows.offset_ms.is_some() {
            push_windows(Windows { offset_ms: None, ..windows.clone() });
        }
        if windows.function != "TUMBLE" {
            let size = windows.lengths_ms[windows.lengths_ms.len() - 1];
            push_windows(Windows { function: "TUMBLE", lengths_ms: vec![size], ..windows.clone() });
        }
        for i in 0..windows.lengths_ms.len() {
            for rounder in [1000, 60_000, 3_600_000, 86_400_000] {
                let mut round = windows.clone();
                round.lengths_ms[i] = rounder;
                if windows.lengths_ms[i] % rounder != 0 {
                    push_windows(round);
                }
            }
        }
        views
    }
}
