//! Random definitions of views over `r` and over each other, as SQL: windows of any kind, size and offset, keys, calls, filters,
//! HAVING, EMIT ON WINDOW CLOSE and EVERY. A definition knows what a simpler one would be, for shrinking.

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

#[derive(Debug, Clone)]
pub struct View {
    /// The number of the view that it is over; over `r` if none.
    pub over: Option<usize>,
    /// None over a view whose windows are kept as keys.
    windows: Option<Windows>,
    start: bool,
    end: bool,
    keys: Vec<Named>,
    calls: Vec<Call>,
    filter: Option<String>,
    having: Option<String>,
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

impl View {
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
            start: true,
            end: true,
            windows: None,
            keys,
            calls,
            filter: None,
            having: None,
            emit: false,
            every: false,
            store: None,
        };
        match random.random_range(0..10) {
            0 | 1 => view.end = false,
            2 | 3 => view.start = false,
            // Every row once for each window that covers it.
            4 if random.random_bool(0.3) && windows.function != "SESSION" => (view.start, view.end) = (false, false),
            _ => {}
        }
        view.windows = Some(windows);
        view.filter = random.random_bool(0.3).then(|| condition(random, &conditions)).flatten();
        view.having = random.random_bool(0.2).then(|| HAVING.choose(random).expect("some").to_string());
        view.emit = stream.kind != Kind::Table && view.end && random.random_bool(0.3);
        // Windows that cumulate and are grouped by their start are rows of several windows, which no store holds.
        let whole = view.end || view.start && view.windows.as_ref().is_some_and(|w| w.function != "CUMULATE");
        if stream.keeps_stores() && whole {
            view.store = *[None, None, None, Some("own"), Some("shared")].choose(random).expect("some");
        }
        view.every = !view.emit && random.random_bool(0.15);
        view
    }

    /// One over this, the view number `over`.
    pub fn random_over(&self, over: usize, random: &mut StdRng, stream: &Stream) -> View {
        let columns: Vec<Named> = self.columns();
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
            start: if kept { self.start && random.random_bool(0.7) } else { true },
            end: if kept { self.end && random.random_bool(0.7) } else { true },
            windows,
            keys,
            calls,
            filter: random.random_bool(0.25).then(|| condition(random, &conditions)).flatten(),
            having: random.random_bool(0.15).then(|| "count(*) > 1".into()),
            emit: false,
            every: false,
            store: None,
        };
        // Up to when sessions are final no function says.
        let ends_together = view.windows.as_ref().is_some_and(|windows| windows.function != "SESSION");
        view.emit = stream.kind != Kind::Table && ends_together && random.random_bool(0.25);
        view.every = !view.emit && random.random_bool(0.15);
        view
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
        if let Some(filter) = &self.filter {
            sql += &format!(" WHERE {filter}");
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
        let with = self.store.map_or(String::new(), |store| format!(" WITH (store = '{store}')"));
        let emit = match (self.emit, self.every) {
            (true, _) => " EMIT ON WINDOW CLOSE",
            (false, true) => " EMIT EVERY INTERVAL '200 milliseconds'",
            (false, false) => "",
        };
        format!("CREATE MATERIALIZED VIEW v{number}{with} AS {}{emit}", self.query())
    }

    pub fn in_any_store(&self) -> View {
        View { store: None, ..self.clone() }
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
