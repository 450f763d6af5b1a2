//! A worker alone, a tick at a time.

use std::collections::BTreeMap;

use arrow::array::{RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use crossbeam_channel::unbounded;
use datafusion::physical_expr::expressions::Column;

use super::super::reader::SourceSetup;
use super::*;
use crate::connector::{ColumnSpec, JsonOptions, SourceOptions};
use crate::exec::dedup::{AcceptedRows, Deduplicate};
use crate::exec::law::Bounds;
use crate::exec::session_store::SessionLayout;
use crate::exec::slice_store::Grid;
use crate::exec::text::print;
use crate::exec::window_view::Group;
use crate::planner::stream_plan::{Emit, Session, Window};

const SOURCE: Oid = 1;
const SLICES: StoreId = 2;
const SESSIONS: StoreId = 3;
const SECOND_US: i64 = 1_000_000;

fn time(name: &str) -> Field {
    Field::new(name, DataType::Timestamp(TimeUnit::Microsecond, None), true)
}

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("id", DataType::Utf8, true), time("ts")]))
}

/// One that deduplicates by id, within a minute and across partitions.
fn setup() -> SourceSetup {
    let column = |field: &Arc<Field>| {
        let (name, data_type) = (field.name().clone(), field.data_type().clone());
        ColumnSpec { name, data_type, not_null: false, include: None }
    };
    let columns: Vec<ColumnSpec> = schema().fields().iter().map(column).collect();
    let mut options: BTreeMap<String, String> = [("connector".to_string(), "datagen".to_string())].into();
    SourceOptions::fix_start(&mut options, 0);
    SourceSetup {
        source: SOURCE,
        options: SourceOptions::parse(&options, &columns).expect("options"),
        decode: JsonOptions::default(),
        columns,
        schema: schema(),
        time_column: Some(1),
        bounds: Bounds { delay_us: Some(0), ..Bounds::default() },
        late_into: None,
        deduplicate: Some(Deduplicate { columns: vec![0], interval_us: 60 * SECOND_US, same_partition: false }),
    }
}

/// `window_start` of slices of ten seconds, or of sessions with such a gap.
fn feed(sessions: bool) -> Feed {
    let gap = Session { gap_us: 10 * SECOND_US, max_us: None };
    let layout = StoreLayout {
        keys: Vec::new(),
        grid: Some(if sessions { Grid::MICROSECONDS } else { Grid { width_us: 10 * SECOND_US, phase_us: 0 } }),
        measures: Vec::new(),
        sessions: sessions.then_some(SessionLayout { session: gap, by_time: true }),
    };
    let view = WindowView {
        window: (!sessions).then(|| Window::hop(10 * SECOND_US, 10 * SECOND_US, 0)),
        group: vec![Group::WindowStart],
        measures: Vec::new(),
        schema: Arc::new(Schema::new(vec![time("window_start")])),
        emit: Emit::OnUpdate,
        shows_empty: false,
        overflows: Arc::default(),
    };
    Feed {
        source: SOURCE,
        filters: Vec::new(),
        time: Some(Arc::new(Column::new("ts", 1))),
        keys: Vec::new(),
        args: Vec::new(),
        call_filters: Vec::new(),
        layout: Arc::new(layout),
        view,
        oldest: None,
        floors: Vec::new(),
    }
}

/// In partition 0.
fn rows(ids_and_seconds: &[(&str, i64)]) -> AcceptedRows {
    let ids: StringArray = ids_and_seconds.iter().map(|row| Some(row.0)).collect();
    let times: TimestampMicrosecondArray = ids_and_seconds.iter().map(|row| Some(row.1 * SECOND_US)).collect();
    AcceptedRows {
        rows: RecordBatch::try_new(schema(), vec![Arc::new(ids), Arc::new(times)]).unwrap(),
        partitions: vec![0; ids_and_seconds.len()],
        offsets: (0..ids_and_seconds.len() as i64).collect(),
    }
}

#[test]
fn what_a_store_is_given_at_its_beginning_is_in_the_content_or_among_the_changes() {
    let (_commands, receive) = unbounded();
    let (reports, reported) = unbounded();
    let (own, incoming) = unbounded();
    let seat = Seat { index: 0, workers: 1, epoch: 1, cache: Arc::default(), lasts: false };
    let mut worker = Worker::new(seat, receive, reports, incoming, Box::new(Channels { owners: vec![own] }));
    let end_tick = |worker: &mut Worker, tick: u64| {
        assert!(worker.end_tick(tick, &[SLICES, SESSIONS], false, &[], None));
        let report = reported.recv().unwrap();
        assert!(report.failures.is_empty(), "{:?}", report.failures);
        let slices: usize = report.snapshots.iter().map(|(_, snapshot)| snapshot.open.len()).sum();
        let sessions: usize = report.sessions.iter().map(|(_, snapshot)| snapshot.open.len()).sum();
        let changes = report.edges.iter().map(|(edge, delta)| format!("{edge}: {}", print(delta).replace('\n', ", ")));
        let changes: Vec<String> = changes.collect();
        format!("slices {slices}, sessions {sessions}, told [{}]", changes.join("; "))
    };

    assert!(worker.handle(Command::AddSource(Box::new(setup()))));
    let reader = worker.sources.get_mut(&SOURCE).unwrap();
    reader.accepted.push(rows(&[("a", 1), ("b", 2), ("c", 35), ("a", 36)]));
    let mut told = vec![end_tick(&mut worker, 1)];
    // Two views that begin when the source has been read, and others over them, which begin with the content of that tick.
    for (store, feed) in [(SLICES, feed(false)), (SESSIONS, feed(true))] {
        let (layout, view, edge) = (feed.layout.clone(), feed.view.clone(), 10 * store);
        worker.handle(Command::AddStore { store, source: SOURCE, layout, saved: None });
        let attached = attached_feed(store, &feed);
        worker.handle(Command::Attach { source: SOURCE, attached, has_history: false });
        let begins = Begins::WithNothing;
        worker.handle(Command::AddEdge { edge, store, view, retention_us: None, begins, waits: false });
    }
    told.extend((2..5).map(|tick| end_tick(&mut worker, tick)));
    insta::assert_snapshot!(told.join("\n"), @r"
    slices 0, sessions 0, told []
    slices 0, sessions 0, told []
    slices 2, sessions 2, told [20: + 00:00:00, + 00:00:30; 30: + 00:00:01, + 00:00:35]
    slices 2, sessions 2, told []
    ");
}

#[test]
fn what_was_kept_before_the_law_was_altered_makes_nothing_final_after_it() {
    let (_commands, receive) = unbounded();
    let (reports, _reported) = unbounded();
    let (own, incoming) = unbounded();
    let seat = Seat { index: 0, workers: 1, epoch: 1, cache: Arc::default(), lasts: true };
    let mut worker = Worker::new(seat, receive, reports, incoming, Box::new(Channels { owners: vec![own] }));
    worker.handle(Command::AddSource(Box::new(setup())));
    let mut time = SourceTime::default();
    (time.watermark_us, time.settled_us, time.final_until_us) = (Some(500), Some(500), Some(100));
    worker.times.insert(SOURCE, time);
    let kept = |worker: &mut Worker, tick: u64, until_us: i64| {
        worker.handle(Command::Kept { tick, settled: Arc::new(vec![(SOURCE, until_us)]) });
        worker.kept_until.get(&SOURCE).copied()
    };
    assert_eq!(kept(&mut worker, 3, 500), Some(500));
    worker.tick = 5;
    worker.handle(Command::AlterSource { source: SOURCE, change: SourceChange::Watermark { to_us: Some(200) } });
    assert_eq!(worker.times[&SOURCE].settled_us, Some(100), "only what is final stays so");
    assert_eq!(worker.kept_until.get(&SOURCE), None);
    // Of a checkpoint that was under way.
    assert_eq!(kept(&mut worker, 4, 500), None);
    assert_eq!(kept(&mut worker, 5, 150), Some(150));
}
