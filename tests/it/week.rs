//! A week of events in seconds: what a store with a retention keeps, and what a tick touches, stay the same from day to day.
//!
//! A tick is ten seconds of event time. Keys come and go: each lives for some hours, so that in a week many times more are seen
//! than are in use at once.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, TimeUnit};
use riverrun::exec::slice_store::{Grid, SliceStore, StoreLayout, StoreRows};
use riverrun::exec::state::Measure;
use riverrun::exec::window_view::{Changes, Group, Shown, WindowView, Within};
use riverrun::planner::stream_plan::{Call, Emit, Function, Window};

const SECOND_US: i64 = 1_000_000;
const TICK_US: i64 = 10 * SECOND_US;
const TICKS_A_DAY: i64 = 8640;
const RETENTION_US: i64 = 2 * 3600 * SECOND_US;
const ROWS_A_TICK: i64 = 20;

fn view(window: Window) -> WindowView {
    let time = DataType::Timestamp(TimeUnit::Microsecond, None);
    let fields = [("k", DataType::Int64), ("window_end", time), ("n", DataType::Int64)]
        .map(|(name, t)| Field::new(name, t, true));
    WindowView {
        window: Some(window),
        group: vec![Group::Key(0), Group::WindowEnd],
        measures: vec![0],
        schema: Arc::new(Schema::new(fields.to_vec())),
        emit: Emit::OnUpdate,
        shows_empty: false,
        overflows: Default::default(),
    }
}

fn store() -> SliceStore {
    let output = Arc::new(Field::new("n", DataType::Int64, true));
    let count = Call { function: Function::Count, args: Vec::new(), filter: None, distinct: false, output };
    SliceStore::new(Arc::new(StoreLayout {
        keys: vec![Arc::new(Field::new("k", DataType::Int64, true))],
        grid: Some(Grid { width_us: TICK_US, phase_us: 0 }),
        measures: vec![Measure::new(&count, &Schema::empty(), false).expect("a count")],
        sessions: None,
    }))
    .expect("a store")
}

/// What is kept at the end of a day, and what its ticks touched.
#[derive(Debug)]
struct Day {
    bytes: usize,
    slices: usize,
    keys: usize,
    remembered: usize,
    changed_rows: usize,
    read_rows: i64,
}

#[test]
fn memory_and_work_of_a_tick_stay_the_same_for_a_week() {
    let hour = Window::hop(3600 * SECOND_US, TICK_US, 0);
    let mut store = store();
    store.track_changes();
    let mut minutes = Changes::new(view(Window::hop(60 * SECOND_US, 60 * SECOND_US, 0))).expect("changes");
    let hours = view(hour);
    let mut days: Vec<Day> = Vec::new();
    let (mut changed_rows, mut read_rows) = (0, 0);
    for tick in 0..7 * TICKS_A_DAY {
        // New keys all the time: some 17 000 a day, of which 2 500 are alive.
        let keys: ArrayRef = Arc::new((0..ROWS_A_TICK).map(|row| tick * 2 + row * 47 % 1000).collect::<Int64Array>());
        let rows = StoreRows {
            rows: ROWS_A_TICK as usize,
            slices: (0..ROWS_A_TICK).map(|row| tick - row % 2).collect(),
            keys: vec![keys],
            args: vec![Vec::new()],
            filters: vec![None],
            weights: None,
        };
        store.apply(&rows).expect("rows of open slices");
        let final_until_us = (tick - 1) * TICK_US;
        let shown = Shown { horizon_us: Some(final_until_us - RETENTION_US), final_until_us: Some(final_until_us) };
        let dirty = store.take_dirty();
        changed_rows += minutes.step(&mut store, &dirty, &shown).expect("changes").num_rows();
        store.close(final_until_us).expect("final slices");
        if let Some(renumbered) = store.forget(final_until_us - RETENTION_US).expect("old slices") {
            minutes.renumber(&renumbered);
        }
        if tick % 60 == 59 {
            let snapshot = store.snapshot().expect("a snapshot");
            let end_us = tick * TICK_US;
            let mut cursor = hours.cursor(snapshot, None, &[0, 2]);
            for (_, columns) in hours.read(&mut cursor, end_us, None, &[0, 2]).expect("the last hour") {
                read_rows += columns[1].as_primitive::<Int64Type>().values().iter().sum::<i64>();
            }
        }
        if (tick + 1) % TICKS_A_DAY == 0 {
            days.push(Day {
                bytes: store.bytes(),
                slices: store.slices().count(),
                keys: store.num_keys(),
                remembered: minutes.rows(),
                changed_rows: std::mem::take(&mut changed_rows),
                read_rows: std::mem::take(&mut read_rows),
            });
        }
    }
    // Each window of an hour has the rows of 360 ticks, whatever day it is; the first day has fewer hours before it.
    let last = &days[6];
    assert_eq!(last.read_rows, TICKS_A_DAY / 60 * 360 * ROWS_A_TICK);
    assert_eq!(last.slices as i64, RETENTION_US / TICK_US + 2);
    for day in &days[1..] {
        assert_eq!((day.slices, day.read_rows), (last.slices, last.read_rows), "{days:#?}");
        assert_eq!((day.remembered, day.changed_rows), (last.remembered, last.changed_rows), "{days:#?}");
        // Keys that nobody names go once they are half of all, and no fewer than 16 384.
        assert!(day.keys <= 16_384 && day.bytes <= 2 * days[0].bytes, "{days:#?}");
    }
    // Windows that are forgotten are not shown.
    let snapshot = store.snapshot().expect("a snapshot");
    let shown = Shown::default();
    let ends = hours.windows(&snapshot, &shown, &Within::default());
    assert!(ends.len() as i64 <= RETENTION_US / TICK_US + 2, "{}", ends.len());
}
