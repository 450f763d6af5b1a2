//! The generator by its options, and the laws of a computed log.

use std::sync::Arc;

use arrow::datatypes::{DataType, TimeUnit};
use proptest::prelude::*;

use super::*;
use crate::connector::{ColumnSpec, JsonDecoder, JsonOptions, PartitionOffset, Records};

fn columns() -> Vec<ColumnSpec> {
    [
        ("b", DataType::Boolean),
        ("i", DataType::Int32),
        ("n", DataType::Decimal128(10, 2)),
        ("f", DataType::Float64),
        ("s", DataType::Utf8),
        ("x", DataType::Binary),
        ("d", DataType::Date32),
        ("ts", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))),
    ]
    .map(|(name, data_type)| ColumnSpec { name: name.into(), data_type, not_null: true, include: None })
    .to_vec()
}

/// Options as `key=value` lines; row 0 is at 1 700 000 000 s.
fn options(lines: &str) -> Result<DatagenOptions, String> {
    let mut options = [("connector".to_string(), "datagen".to_string())].into();
    DatagenOptions::fix_start(&mut options, 1_700_000_000_000);
    options.extend(lines.lines().map(|line| {
        let (key, value) = line.trim().split_once('=').expect("key=value");
        (key.to_string(), value.to_string())
    }));
    DatagenOptions::parse(&options, &columns()).map_err(|error| error.to_string())
}

/// The first rows of partition 0.
fn rows(lines: &str, count: i64) -> String {
    let options = Arc::new(options(lines).expect("valid options"));
    let mut reader = Reader::new(&options);
    reader.assign(&[PartitionOffset { partition: 0, offset: 0 }]).expect("it is there");
    let mut records = Records::default();
    reader.poll_at(&mut records, usize::MAX, 1_800_000_000_000.min(options.start_ms + 100_000));
    let text = |i| String::from_utf8_lossy(records.value(i as usize).expect("a value")).into_owned() + "\n";
    (0..count).map(text).collect()
}

#[test]
fn fields_by_their_options() {
    insta::assert_snapshot!(rows("", 2), @"");
    insta::assert_snapshot!(
        rows(
            "fields.i.kind=sequence
             fields.i.start=5
             fields.i.end=6
             fields.n.min=-0.05
             fields.n.max=0.05
             fields.f.kind=sequence
             fields.f.end=2.5
             fields.s.values=click, impression
             fields.x.length=2
             fields.d.max_past=3d
             fields.ts.max_past=2h 30min
             datagen.rows.per.second=2
             datagen.seed=7",
            4
        ),
        @"");
    insta::assert_snapshot!(rows("fields.i.kind=zipf\nfields.i.min=1\nfields.s.kind=zipf\nfields.s.values=a,b,c\nfields.s.exponent=2", 3), @"");
}

#[test]
fn refuses() {
    let refused = |lines: &str| options(lines).expect_err("refused");
    insta::assert_snapshot!(refused("datagen.rows.per.minute=1"), @"");
    insta::assert_snapshot!(refused("datagen.rows.per.second=0"), @"");
    insta::assert_snapshot!(refused("fields.z.kind=random"), @"");
    insta::assert_snapshot!(refused("fields.i.kind=normal"), @"");
    insta::assert_snapshot!(refused("fields.b.kind=zipf"), @"");
    insta::assert_snapshot!(refused("fields.i.length=3"), @"");
    insta::assert_snapshot!(refused("fields.i.mim=3"), @"");
    insta::assert_snapshot!(refused("fields.i.max=3000000000"), @"");
    insta::assert_snapshot!(refused("fields.i.min=5\nfields.i.max=4"), @"");
    insta::assert_snapshot!(refused("fields.ts.max_past=soon"), @"");
    insta::assert_snapshot!(refused("fields.s.kind=zipf"), @"");
}

#[test]
fn rows_come_with_time_and_end() {
    let options =
        options("datagen.rows.per.second=10\ndatagen.split.num=2\ndatagen.rows.total=5").expect("valid options");
    let ends = |ms: i64| [options.end(0, options.start_ms + ms), options.end(1, options.start_ms + ms)];
    assert_eq!(ends(-1), [0, 0]);
    assert_eq!(ends(0), [1, 0]);
    assert_eq!(ends(99), [1, 0]);
    assert_eq!(ends(100), [1, 1]);
    assert_eq!(ends(200), [2, 1]);
    assert_eq!(ends(1_000_000), [3, 2]);
    assert_eq!((options.time_us(0), options.time_us(3)), (1_700_000_000_000_000, 1_700_000_000_300_000));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(50))]
    /// Read in pieces of any size, from any offset, paused or not, in any number of partitions: the same log; and all of it
    /// fits the declared columns.
    #[test]
    fn the_log_is_the_same_however_it_is_read(
        splits in 1i32..4,
        from in 0i64..20,
        pieces in prop::collection::vec((1usize..3000, 0i64..5_000), 1..10),
    ) {
        let options = Arc::new(options(&format!("datagen.split.num={splits}\ndatagen.rows.per.second=30")).expect("valid options"));
        let assigned: Vec<PartitionOffset> = (0..splits).map(|partition| PartitionOffset { partition, offset: from }).collect();
        let mut whole = Reader::new(&options);
        whole.assign(&assigned).expect("it is there");
        let mut reader = Reader::new(&options);
        reader.assign(&assigned).expect("it is there");
        let mut records = Records::default();
        let mut now_ms = options.start_ms;
        for (max_bytes, passed) in pieces {
            now_ms += passed;
            let bytes = records.bytes.len();
            reader.poll_at(&mut records, bytes + max_bytes, now_ms);
        }
        reader.poll_at(&mut records, usize::MAX, now_ms);
        let mut expected = Records::default();
        whole.poll_at(&mut expected, usize::MAX, now_ms);
        let sorted = |records: &Records| {
            let mut all: Vec<_> = (0..records.len())
                .map(|i| (records.records[i].partition, records.records[i].offset, records.value(i).expect("a value").to_vec()))
                .collect();
            all.sort();
            all
        };
        prop_assert_eq!(sorted(&records), sorted(&expected));
        for partition in 0..splits {
            prop_assert_eq!(reader.position(partition), Some(options.end(partition, now_ms).max(from)));
        }
        let all: Vec<usize> = (0..columns().len()).collect();
        let mut decoder = JsonDecoder::new(&columns(), &all, JsonOptions::default()).expect("types we read");
        prop_assert_eq!(decoder.decode(&records, 0..records.len()).dead, vec![]);
    }
}
