//! A source's reader over a computed log, with a clock that the test holds.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, TimeUnit};

use super::*;
use crate::engine::verdicts::Counts;
use crate::exec::flow::{Pass, SourceRows};

/// Ten rows a second from 1970-01-01T00:00:00 on, fifty of them, in one partition.
fn reader(bounds: Bounds) -> SourceReader {
    let zone = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    let spec = ColumnSpec { name: "ts".into(), data_type: zone.clone(), not_null: false, include: None };
    let mut options: BTreeMap<String, String> = [("connector", "datagen"), ("datagen.rows.total", "50")]
        .map(|(key, value)| (key.to_string(), value.to_string()))
        .into();
    SourceOptions::fix_start(&mut options, 0);
    let columns = vec![spec];
    let schema = Arc::new(Schema::new(vec![Field::new("ts", zone, true)]));
    let setup = SourceSetup {
        source: 1,
        options: SourceOptions::parse(&options, &columns).expect("options"),
        decode: JsonOptions::default(),
        columns,
        schema: schema.clone(),
        time_column: Some(0),
        bounds,
        late_into: None,
        deduplicate: None,
    };
    let mut reader = SourceReader::new(setup, false);
    reader.add_partitions(&[(0, 0)], None);
    let rows = SourceRows { source: 1, filters: Vec::new(), columns: Vec::new() };
    reader.attach(Attached::Pass(1, Arc::new(Pass { rows, schema: Arc::new(Schema::empty()) }))).expect("attached");
    reader
}

fn idle_us(reader: &mut SourceReader, now_us: i64) -> Option<i64> {
    reader.progress(1, now_us).partitions[0].idle_us
}

#[test]
fn a_partition_is_idle_as_far_as_the_topic_has_told_of_its_end() {
    let mut reader = reader(Bounds { delay_us: Some(0), idle_timeout_us: 100, ..Bounds::default() });
    while reader.read(1000, &mut Vec::new()) > 0 {}
    assert_eq!(idle_us(&mut reader, 5000), None, "its end is not known");
    reader.set_ends(&[(0, 50)], &[(0, 0)], 6000);
    assert_eq!(idle_us(&mut reader, 9000), None, "nobody has told since");
    reader.set_ends(&[(0, 50)], &[(0, 0)], 6099);
    assert_eq!(idle_us(&mut reader, 9000), None);
    reader.set_ends(&[(0, 50)], &[(0, 0)], 6100);
    assert_eq!(idle_us(&mut reader, 9000), Some(100));
    reader.set_ends(&[(0, 51)], &[(0, 0)], 6200);
    assert_eq!(idle_us(&mut reader, 9000), None, "there is more");
}

#[test]
fn nobody_reads_for_nobody() {
    let mut reader = reader(Bounds { delay_us: Some(0), ..Bounds::default() });
    assert!(reader.read(1000, &mut Vec::new()) > 0);
    reader.detach(Consumer::Pass(1));
    assert!(reader.reader.is_none() && reader.read(1000, &mut Vec::new()) == 0);
    let report = reader.report(1, &mut Verdicts::default());
    assert_eq!((report.partitions[0].position, report.partitions[0].counts.accepted), (50, 50));
}

#[test]
fn reading_goes_on_elsewhere_with_the_counts_there_were() {
    let mut reader = reader(Bounds { delay_us: Some(0), ..Bounds::default() });
    while reader.read(1000, &mut Vec::new()) > 0 {}
    let lost = ConnectorError::OffsetLost { partition: 0, offset: 50, reason: "gone".into() };
    reader.lose(0, &lost);
    // A view that comes now finds no history there.
    let rows = SourceRows { source: 1, filters: Vec::new(), columns: Vec::new() };
    let pass = Pass { rows, schema: Arc::new(Schema::empty()) };
    reader.attach(Attached::Pass(2, Arc::new(pass))).expect("attached");
    let report = reader.report(1, &mut Verdicts::default());
    assert_eq!(report.partitions[0].error, Some(lost.to_string()));
    // The last row was at 4.9 s.
    assert_eq!(report.incomplete, [(Consumer::Pass(2), 4_900_001)]);
    // Reading begun again does not touch it.
    reader.detach(Consumer::Pass(1));
    reader.detach(Consumer::Pass(2));
    let rows = SourceRows { source: 1, filters: Vec::new(), columns: Vec::new() };
    reader.attach(Attached::Pass(3, Arc::new(Pass { rows, schema: Arc::new(Schema::empty()) }))).expect("attached");
    assert_eq!(reader.reader.as_ref().map(|r| r.position(0)), Some(None));
    reader.alter(SourceChange::Restart(vec![(0, 40)]), Some(4_500_000));
    assert!(reader.read(2000, &mut Vec::new()) > 0);
    let report = reader.report(1, &mut Verdicts::default());
    let Counts { read, accepted, late, .. } = report.partitions[0].counts;
    // Those before 4.9 s are late now: the watermark stands there.
    assert_eq!((report.partitions[0].position, read, accepted, late), (50, 60, 51, 9));
    assert_eq!(report.partitions[0].error, None);
}

#[test]
fn a_topic_in_doubt_is_not_read_before_it_has_been_seen() {
    let mut reader = reader(Bounds { delay_us: Some(0), ..Bounds::default() });
    let before = Stopwatch::start();
    reader.doubt_topic();
    assert_eq!(reader.read(1000, &mut Vec::new()), 0);
    // A look that began before may have found what is gone since.
    reader.topic_seen(before);
    assert_eq!(reader.read(1000, &mut Vec::new()), 0);
    reader.topic_seen(Stopwatch::start());
    assert!(reader.read(1000, &mut Vec::new()) > 0);
}

#[test]
fn what_may_be_of_another_topic_is_told() {
    let mut reader = reader(Bounds { delay_us: Some(0), ..Bounds::default() });
    reader.set_ends(&[(0, 40)], &[(0, 0)], 1000);
    while reader.read(1000, &mut Vec::new()) > 0 {}
    reader.lose_topic();
    let error = reader.report(1, &mut Verdicts::default()).partitions[0].error.clone().expect("it has lost its place");
    assert!(error.ends_with("; the last 10 records read may be of the new one already"), "{error}");
    assert_eq!(reader.read(1000, &mut Vec::new()), 0);
}
