//! Sessions kept, read and told as deltas, against those worked out from the rows, tick by tick.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, TimeUnit, TimestampMicrosecondType};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::durable::{Buckets, Saved};
use super::session_changes::{SessionChanges, joined};
use super::session_store::{SessionLayout, SessionStore};
use super::slice_store::{Grid, StoreLayout, StoreRows};
use super::state::Measure;
use super::window_view::{Group, Shown, WindowView, Within};
use crate::exec::id_set::IdSet;
use crate::exec::text::print;
use crate::planner::stream_plan::{Call, Emit, Function, LONGEST_US, Session};

/// Key, time, value, weight.
type Row = (i64, i64, i64, i64);
/// (key, start, end) → (count, sum, max).
type Expected = BTreeMap<(i64, i64, i64), Sums>;
type Sums = (i64, i64, i64);

struct Case {
    session: Session,
    store: SessionStore,
    changes: SessionChanges,
    view: WindowView,
    told: BTreeMap<(i64, i64, i64, i64, i64, i64), i64>,
    rows: Vec<Row>,
    /// What the last tick told, in delta notation.
    last: String,
    saves: Vec<Saved>,
}

fn layout(session: Session, retracts: bool) -> Arc<StoreLayout> {
    let int = |name: &str| Field::new(name, DataType::Int64, true);
    let input = Schema::new(vec![int("k"), int("v")]);
    let value = || vec![Arc::new(Column::new("v", 1)) as Arc<dyn PhysicalExpr>];
    let call = |function, args| Call { function, args, filter: None, distinct: false, output: Arc::new(int("x")) };
    let calls = [call(Function::Count, Vec::new()), call(Function::Sum, value()), call(Function::Max, value())];
    Arc::new(StoreLayout {
        keys: vec![Arc::new(int("k"))],
        grid: Some(Grid::MICROSECONDS),
        measures: calls.iter().map(|c| Measure::new(c, &input, retracts).unwrap()).collect(),
        sessions: Some(SessionLayout { session, by_time: retracts || session.max_us.is_some() }),
    })
}

impl Case {
    fn new(session: Session, retracts: bool, emit: Emit) -> Case {
        let mut store = SessionStore::new(layout(session, retracts)).unwrap();
        store.track_changes();
        let time = DataType::Timestamp(TimeUnit::Microsecond, None);
        let mut fields = vec![Field::new("k", DataType::Int64, true)];
        fields.extend(["window_start", "window_end"].map(|name| Field::new(name, time.clone(), true)));
        fields.extend(["n", "s", "m"].map(|name| Field::new(name, DataType::Int64, true)));
        let view = WindowView {
            window: None,
            group: vec![Group::Key(0), Group::WindowStart, Group::WindowEnd],
            measures: vec![0, 1, 2],
            schema: Arc::new(Schema::new(fields)),
            emit,
            shows_empty: false,
            overflows: Arc::default(),
        };
        let changes = SessionChanges::new(view.clone()).unwrap();
        Case {
            session,
            store,
            changes,
            view,
            told: BTreeMap::new(),
            rows: Vec::new(),
            last: String::new(),
            saves: Vec::new(),
        }
    }

    /// Rows, then everything before `final_until_us` is final.
    fn tick(&mut self, rows: &[Row], final_until_us: Option<i64>) {
        let values: ArrayRef = Arc::new(rows.iter().map(|r| r.2).collect::<Int64Array>());
        let batch = StoreRows {
            rows: rows.len(),
            slices: rows.iter().map(|r| r.1).collect(),
            keys: vec![Arc::new(rows.iter().map(|r| r.0).collect::<Int64Array>())],
            args: vec![Vec::new(), vec![values.clone()], vec![values]],
            filters: vec![None, None, None],
            weights: rows.iter().any(|r| r.3 != 1).then(|| rows.iter().map(|r| r.3).collect()),
        };
        self.store.apply(&batch).unwrap();
        self.rows.extend(rows);
        self.store.settle().unwrap();
        let dirty = self.store.take_dirty();
        let mut delta = self.changes.step(&mut self.store, &dirty).unwrap();
        if let Some(us) = final_until_us {
            let closed = self.store.close(us).unwrap();
            delta = joined(delta, self.changes.close(&mut self.store, &closed).unwrap()).unwrap();
        }
        self.last = print(&delta);
        for row in 0..delta.num_rows() {
            let ((key, start, end), (n, s, m)) = line(&delta.rows, row);
            *self.told.entry((key, start, end, n, s, m)).or_default() += delta.weight(row);
        }
        self.told.retain(|_, weight| *weight != 0);
    }

    fn save(&mut self, whole: bool) {
        if self.store.unsaved.is_none() {
            self.store.track_saves(0..=255);
        }
        let saved = self.store.save(whole).unwrap();
        assert!(saved.whole || !self.saves.is_empty());
        assert!(self.store.save(false).unwrap().is_empty(), "nothing has changed");
        self.saves.push(saved);
    }

    fn load(&mut self, parts: &[Vec<Saved>], buckets: Buckets) {
        self.store = SessionStore::load(self.store.layout.clone(), parts, buckets.clone()).unwrap();
        // What is tracked already goes on.
        self.store.track_saves(buckets);
        self.store.track_changes();
        self.changes = SessionChanges::new(self.view.clone()).unwrap();
        self.changes.resume(&mut self.store).unwrap();
    }

    fn expected(&self) -> Expected {
        let mut net: BTreeMap<(i64, i64, i64), i64> = BTreeMap::new();
        self.rows.iter().for_each(|&(key, time, value, weight)| *net.entry((key, time, value)).or_default() += weight);
        net.retain(|_, weight| *weight != 0);
        // Ascending by key and time.
        let mut sessions: Vec<(i64, i64, i64, Sums)> = Vec::new();
        for (&(key, time, value), &weight) in &net {
            let open = sessions
                .last_mut()
                .filter(|(k, start, last, _)| *k == key && time < self.session.end_us(*start, *last));
            let (_, _, last, sums) = match open {
                Some(open) => open,
                None => {
                    sessions.push((key, time, time, (0, 0, i64::MIN)));
                    sessions.last_mut().unwrap()
                }
            };
            *last = time;
            *sums = (sums.0 + weight, sums.1 + value * weight, sums.2.max(value));
        }
        let keyed = |(key, start, last, sums)| ((key, start, self.session.end_us(start, last)), sums);
        sessions.into_iter().map(keyed).collect()
    }

    fn read(&mut self, shown: &Shown, within: &Within, only: Option<&IdSet>) -> Expected {
        let snapshot = self.store.snapshot().unwrap();
        let mut read = Expected::new();
        for batch in snapshot.batches(&self.view) {
            for (rows, columns) in snapshot.read(batch, &self.view, shown, within, only, &[0, 1, 2, 3, 4, 5]).unwrap() {
                let batch = RecordBatch::try_new(self.view.schema.clone(), columns).unwrap();
                assert_eq!(rows, batch.num_rows());
                for row in 0..rows {
                    let (at, sums) = line(&batch, row);
                    assert!(read.insert(at, sums).is_none(), "a session twice");
                }
            }
        }
        read
    }

    fn check(&mut self, final_until_us: Option<i64>, seed: u64) {
        let mut expected = self.expected();
        let oldest =
            expected.keys().filter(|(_, _, end)| final_until_us.is_some_and(|f| *end > f)).map(|(_, start, _)| *start);
        if let Some(us) = final_until_us {
            let oldest = oldest.min().map_or(us, |start| start.min(us));
            assert_eq!(self.store.oldest_open_us(us), oldest, "seed {seed}: the oldest session that is not final");
        }
        if self.view.emit == Emit::OnWindowClose {
            expected.retain(|(_, _, end), _| final_until_us.is_some_and(|f| *end <= f));
        }
        let what = (self.session, self.view.emit);
        let read = self.read(&Shown::default(), &Within::default(), None);
        assert_eq!(read, expected, "seed {seed}: what is read, {what:?}");
        assert!(self.told.values().all(|weight| *weight == 1), "seed {seed}: {:?}", self.told);
        let told: Expected = self.told.keys().map(|&(k, start, end, n, s, m)| ((k, start, end), (n, s, m))).collect();
        assert_eq!(told, expected, "seed {seed}: what the deltas add up to, {what:?}");
        let mut begun = SessionChanges::new(self.view.clone()).unwrap();
        let all = begun.begin(&mut self.store, &Shown::default()).unwrap();
        let all: Expected = (0..all.num_rows()).map(|row| line(&all.rows, row)).collect();
        assert_eq!(all, expected, "seed {seed}: what a consumer that begins here is told, {what:?}");
    }
}

fn line(batch: &RecordBatch, row: usize) -> ((i64, i64, i64), (i64, i64, i64)) {
    let int = |i: usize| batch.column(i).as_primitive::<Int64Type>().value(row);
    let time = |i: usize| batch.column(i).as_primitive::<TimestampMicrosecondType>().value(row);
    ((int(0), time(1), time(2)), (int(3), int(4), int(5)))
}

#[test]
fn sessions_equal_those_worked_out_from_the_rows() {
    for seed in 0..600 {
        let mut random = StdRng::seed_from_u64(seed);
        let gap_us = random.random_range(1..12);
        let max_us = random.random_bool(0.4).then(|| gap_us + random.random_range(0..30));
        let retracts = random.random_bool(0.5);
        let emit = if random.random_bool(0.3) { Emit::OnWindowClose } else { Emit::OnUpdate };
        let mut case = Case::new(Session { gap_us, max_us }, retracts, emit);
        let closes = emit == Emit::OnWindowClose || random.random_bool(0.6);
        let mut final_until: Option<i64> = None;
        for _ in 0..random.random_range(1..12) {
            let least = final_until.unwrap_or(-40);
            let row = |random: &mut StdRng| {
                (random.random_range(0..3), least + random.random_range(0..60), random.random_range(-5..5), 1)
            };
            let mut rows: Vec<Row> = (0..random.random_range(0..14)).map(|_| row(&mut random)).collect();
            if retracts {
                for (key, time, value, _) in case.rows.clone().into_iter().filter(|r| r.3 > 0 && r.1 >= least) {
                    let same = |r: &&Row| (r.0, r.1, r.2) == (key, time, value);
                    let net: i64 = case.rows.iter().chain(&rows).filter(same).map(|r| r.3).sum();
                    if net > 0 && random.random_bool(0.3) {
                        rows.push((key, time, value, -1));
                    }
                }
            }
            if closes && random.random_bool(0.7) {
                final_until = Some(least + random.random_range(0..30));
            }
            case.tick(&rows, final_until);
            case.check(final_until, seed);
        }
    }
}

/// Random ticks of a store that is saved and loaded now and then, and of one that is not, by one owner and by several: they
/// tell the same, show the same, and forget the same.
#[test]
fn sessions_that_were_saved_go_on_as_they_were() {
    let mut increments = 0;
    for seed in 0..150 {
        let mut random = StdRng::seed_from_u64(seed);
        let gap_us = random.random_range(1..12);
        let max_us = random.random_bool(0.4).then(|| gap_us + random.random_range(0..30));
        let retracts = random.random_bool(0.5);
        let emit = if random.random_bool(0.3) { Emit::OnWindowClose } else { Emit::OnUpdate };
        let new = || Case::new(Session { gap_us, max_us }, retracts, emit);
        let (mut straight, mut cut) = (new(), new());
        let keeps = random.random_bool(0.5).then_some(40);
        let mut shown = Shown::default();
        let mut least = -40;
        for _ in 0..random.random_range(2..20) {
            let row = |random: &mut StdRng| {
                (random.random_range(0..9), least + random.random_range(0..60), random.random_range(-5..5), 1)
            };
            let mut rows: Vec<Row> = (0..random.random_range(0..14)).map(|_| row(&mut random)).collect();
            if retracts {
                let open = straight.rows.iter().filter(|r| r.3 > 0 && r.1 >= least).copied().collect::<Vec<_>>();
                for (key, time, value, _) in open {
                    let same = |r: &&Row| (r.0, r.1, r.2) == (key, time, value);
                    let net: i64 = straight.rows.iter().chain(&rows).filter(same).map(|r| r.3).sum();
                    if net > 0 && random.random_bool(0.3) {
                        rows.push((key, time, value, -1));
                    }
                }
            }
            if random.random_bool(0.7) {
                least += random.random_range(0..30);
                shown = Shown { horizon_us: keeps.map(|us| least - us), final_until_us: Some(least) };
            }
            for case in [&mut straight, &mut cut] {
                case.tick(&rows, shown.final_until_us);
                if let Some(us) = shown.horizon_us {
                    assert!(case.store.forget(us.min(least)).unwrap().is_none());
                }
            }
            assert_eq!(straight.last, cut.last, "seed {seed}");
            if random.random_bool(0.5) {
                cut.save(random.random_bool(0.1));
            }
            let oldest = [&mut straight, &mut cut].map(|case| case.store.oldest_open_us(least));
            assert_eq!(oldest[0], oldest[1], "seed {seed}");
            let saved_now = cut.store.unsaved.as_ref().is_some_and(|u| u.atoms.is_empty() && u.closed.is_empty());
            if !cut.saves.is_empty() && saved_now && random.random_bool(0.6) {
                let parts = [cut.saves.clone()];
                match random.random_bool(0.5) {
                    true => cut.load(&parts, 0..=255),
                    // By three owners, and by one again.
                    false => {
                        let split = [0..=70, 71..=180, 181..=255u8].map(|buckets| {
                            let mut part = new();
                            part.load(&parts, buckets);
                            part.save(false);
                            assert!(part.saves[0].whole, "ids are other ones");
                            part.saves
                        });
                        cut.load(&split, 0..=255);
                        cut.saves.clear();
                        cut.save(false);
                        assert!(cut.saves[0].whole, "ids are other ones");
                    }
                }
            }
            let within = Within::default();
            let read = [&mut straight, &mut cut].map(|case| case.read(&shown, &within, None));
            assert_eq!(read[0], read[1], "seed {seed}: what is read");
        }
        increments += cut.saves.iter().filter(|saved| !saved.whole && !saved.sections.is_empty()).count();
    }
    assert!(increments > 150, "{increments}");
}

#[test]
fn keys_that_are_renumbered_are_saved_anew_and_counts_go_to_one_owner() {
    let mut case = Case::new(Session { gap_us: 10, max_us: None }, false, Emit::OnUpdate);
    let mut wholes = 0;
    for n in 0..300i64 {
        let mut rows: Vec<Row> = (0..100).map(|i| (n * 100 + i, n * 100 + i, 1, 1)).collect();
        rows.push((1, i64::MAX, 1, 1));
        case.told.clear();
        case.tick(&rows, Some(n * 100));
        if let Some(renumbered) = case.store.forget(n * 100 - 1000).unwrap() {
            case.changes.renumber(&renumbered);
        }
        if n % 20 == 0 {
            case.save(false);
            wholes += usize::from(case.saves.last().unwrap().whole);
        }
        if n % 60 == 0 {
            case.load(&[case.saves.clone()], 0..=255);
        }
    }
    assert!((2..8).contains(&wholes), "{wholes} of 15 saves are whole");
    assert_eq!(case.store.left_out(), 300);
    let shown = Shown { horizon_us: Some(28_900), final_until_us: Some(29_900) };
    let read = case.read(&shown, &Within::default(), None);
    assert!(read.keys().all(|(_, _, end)| *end > 28_900) && read.len() == 1109, "{}", read.len());
    case.save(true);
    let parts = [case.saves.clone()];
    let left_out = [0..=9u8, 10..=255].map(|buckets| {
        case.load(&parts, buckets);
        case.store.left_out()
    });
    assert_eq!(left_out, [300, 0]);
}

#[test]
fn what_are_no_sessions_is_refused() {
    let mut case = Case::new(Session { gap_us: 10, max_us: None }, false, Emit::OnUpdate);
    case.tick(&[(1, 0, 1, 1), (2, 50, 1, 1)], Some(20));
    case.save(true);
    let good = case.saves[0].clone();
    let layout = case.store.layout.clone();
    let load = |change: &dyn Fn(&mut Saved)| {
        let mut saved = good.clone();
        change(&mut saved);
        match SessionStore::load(layout.clone(), &[vec![saved]], 0..=255) {
            Ok(_) => "loaded".to_string(),
            Err(error @ crate::exec::ExecError::Saved { .. }) => error.to_string(),
            Err(error) => panic!("{error:?}"),
        }
    };
    let section = |saved: &Saved, name: &str| saved.sections.iter().position(|s| s.name == name).unwrap();
    let mut tries = vec![load(&|_| ()), load(&|saved| saved.whole = false)];
    for name in ["keys", "atoms", "closed"] {
        tries.push(load(&|saved| drop(saved.sections.remove(section(saved, name)))));
        tries.push(load(&|saved| {
            let at = section(saved, name);
            let last = saved.sections[at].rows.num_columns() - 1;
            saved.sections[at].rows.remove_column(last);
        }));
        tries.push(load(&|saved| {
            let at = section(saved, name);
            saved.sections[at].rows.remove_column(0);
        }));
    }
    tries.push(load(&|saved| saved.notes = serde_json::json!(7)));
    tries.push(load(&|saved| saved.sections[0].name = "sessions".into()));
    insta::assert_snapshot!(tries.join("\n"), @r#"
    loaded
    a saved state cannot be read: there is no whole one to begin with
    a saved state cannot be read: sections of sessions do not have the rows that their notes name
    a saved state cannot be read: section keys: it has not the columns [Int64]
    a saved state cannot be read: section keys: it has not the columns [Int64]
    a saved state cannot be read: sections of sessions do not have the rows that their notes name
    a saved state cannot be read: section atoms: it has not the columns [Int64, Struct([Field { name: "sum", data_type: Int64 }, Field { name: "count", data_type: Int64 }, Field { name: "carry", data_type: Int8 }]), Int64]
    a saved state cannot be read: section atoms: it has not the columns [Int64, Struct([Field { name: "sum", data_type: Int64 }, Field { name: "count", data_type: Int64 }, Field { name: "carry", data_type: Int8 }]), Int64]
    a saved state cannot be read: sections of sessions do not have the rows that their notes name
    a saved state cannot be read: section closed: it has not the columns [Int64, Int64, Int64]
    a saved state cannot be read: section closed: it has not the columns [Int64, Int64, Int64]
    a saved state cannot be read: notes: invalid type: integer `7`, expected struct Notes
    a saved state cannot be read: there is a section sessions besides keys, atoms, gone, closed
    "#);
}

fn sessions(gap_us: i64, max_us: Option<i64>, retracts: bool, ticks: &[(&[Row], Option<i64>)]) -> String {
    let mut case = Case::new(Session { gap_us, max_us }, retracts, Emit::OnUpdate);
    let told = ticks.iter().map(|(rows, final_until_us)| {
        case.tick(rows, *final_until_us);
        case.last.clone()
    });
    told.collect::<Vec<_>>().join("\n--\n")
}

const S: i64 = 1_000_000;

#[test]
fn a_late_row_merges_two_sessions_and_its_retraction_splits_them() {
    insta::assert_snapshot!(sessions(10 * S, None, true, &[
        (&[(1, 0, 1, 1), (1, 12 * S, 2, 1)], None),
        (&[(1, 5 * S, 9, 1)], None),
        (&[(1, 5 * S, 9, -1)], None),
        (&[(1, 12 * S, 2, -1)], None),
    ]), @r"
    + 1 00:00:00 00:00:10 1 1 1
    + 1 00:00:12 00:00:22 1 2 2
    --
    - 1 00:00:00 00:00:10 1 1 1
    + 1 00:00:00 00:00:22 3 12 9
    - 1 00:00:12 00:00:22 1 2 2
    --
    + 1 00:00:00 00:00:10 1 1 1
    - 1 00:00:00 00:00:22 3 12 9
    + 1 00:00:12 00:00:22 1 2 2
    --
    - 1 00:00:12 00:00:22 1 2 2
    ");
}

#[test]
fn a_row_at_the_end_begins_another_and_the_longest_is_cut() {
    insta::assert_snapshot!(sessions(10 * S, Some(15 * S), false, &[
        (&[(1, 0, 1, 1), (1, 10 * S, 2, 1)], None),
        (&[(1, 9 * S, 3, 1), (1, 14 * S, 4, 1), (1, 15 * S, 5, 1)], None),
        (&[(1, -S, 6, 1)], None),
    ]), @r"
    + 1 00:00:00 00:00:10 1 1 1
    + 1 00:00:10 00:00:20 1 2 2
    --
    - 1 00:00:00 00:00:10 1 1 1
    + 1 00:00:00 00:00:15 4 10 4
    - 1 00:00:10 00:00:20 1 2 2
    + 1 00:00:15 00:00:25 1 5 5
    --
    + 1 -1 00:00:14 4 12 6
    - 1 00:00:00 00:00:15 4 10 4
    + 1 00:00:14 00:00:25 2 9 5
    - 1 00:00:15 00:00:25 1 5 5
    ");
}

#[test]
fn final_sessions_are_compact_and_forgotten_with_their_keys() {
    let mut case = Case::new(Session { gap_us: 10, max_us: None }, false, Emit::OnUpdate);
    let shown = |us: i64| Shown { horizon_us: Some(us - 1000), final_until_us: Some(us) };
    let mut most = (0, 0);
    for n in 0..400i64 {
        let rows: Vec<Row> = (0..100).map(|i| (n * 100 + i, n * 100 + i, 1, 1)).collect();
        case.told.clear();
        case.tick(&rows, Some(n * 100));
        if let Some(renumbered) = case.store.forget(shown(n * 100).horizon_us.unwrap()).unwrap() {
            case.changes.renumber(&renumbered);
        }
        if n > 200 {
            most = (most.0.max(case.store.bytes()), most.1.max(case.store.num_keys()));
        }
    }
    // Of 40 000 sessions some 1 100 are kept, and keys of no more than twice what a chunk holds.
    assert!(case.store.rows() < 3000 && most.1 < 20_000, "{} rows, {most:?}", case.store.rows());
    let read = case.read(&shown(39_900), &Within::default(), None);
    assert!(read.keys().all(|(_, _, end)| *end > 38_900) && read.len() == 1109, "{}", read.len());
    let within = Within { starts: 39_000..39_010, ..Within::default() };
    assert_eq!(case.read(&shown(39_900), &within, None).len(), 10);
}

#[test]
fn rows_at_the_end_of_time_are_in_no_session() {
    let mut case = Case::new(Session { gap_us: 10, max_us: None }, false, Emit::OnUpdate);
    let (first, last) = (i64::MIN + 2 * LONGEST_US, i64::MAX - 2 * LONGEST_US);
    case.tick(
        &[(1, last + 1, 1, 1), (1, last, 2, 1), (1, first, 3, 1), (1, first + 5, 4, 1), (1, first - 1, 5, 1)],
        None,
    );
    assert_eq!(case.store.left_out(), 2);
    let read = case.read(&Shown::default(), &Within::default(), None);
    assert_eq!(
        read.into_iter().collect::<Vec<_>>(),
        [((1, first, first + 15), (2, 7, 4)), ((1, last, last + 10), (1, 2, 2))]
    );
}
