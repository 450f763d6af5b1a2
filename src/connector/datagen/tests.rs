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
    insta::assert_snapshot!(rows("", 2), @r#"
        {"b":true,"i":419,"n":643.70,"f":121.10024398972396,"s":"hwkCU9Kcz2","x":"\\x7082f05b1d1867e959c8","d":"2023-11-14","ts":"2023-11-14T22:13:20.000000Z"}
        {"b":false,"i":101,"n":304.07,"f":638.9662349826854,"s":"mpmWyzc16C","x":"\\x715c9182530ba62a52ee","d":"2023-11-14","ts":"2023-11-14T22:13:20.100000Z"}
        "#);
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
        @r#"
        {"b":true,"i":5,"n":-0.01,"f":0.000000,"s":"click","x":"\\x7635","d":"2023-11-12","ts":"2023-11-14T19:59:56.023086Z"}
        {"b":true,"i":6,"n":-0.02,"f":1.000000,"s":"click","x":"\\x202f","d":"2023-11-14","ts":"2023-11-14T20:00:43.181890Z"}
        {"b":false,"i":5,"n":-0.02,"f":2.000000,"s":"impression","x":"\\x6163","d":"2023-11-14","ts":"2023-11-14T19:56:42.045062Z"}
        {"b":false,"i":6,"n":0.01,"f":0.000000,"s":"click","x":"\\x8b82","d":"2023-11-12","ts":"2023-11-14T20:00:22.774069Z"}
        "#);
    insta::assert_snapshot!(rows("fields.i.kind=zipf\nfields.i.min=1\nfields.s.kind=zipf\nfields.s.values=a,b,c\nfields.s.exponent=2", 3), @r#"
        {"b":true,"i":43,"n":643.70,"f":121.10024398972396,"s":"a","x":"\\x7082f05b1d1867e959c8","d":"2023-11-14","ts":"2023-11-14T22:13:20.000000Z"}
        {"b":false,"i":469,"n":304.07,"f":638.9662349826854,"s":"a","x":"\\x715c9182530ba62a52ee","d":"2023-11-14","ts":"2023-11-14T22:13:20.100000Z"}
        {"b":true,"i":6,"n":847.43,"f":460.2691027986843,"s":"a","x":"\\xc3985947aa6ac8570769","d":"2023-11-14","ts":"2023-11-14T22:13:20.200000Z"}
        "#);
}

#[test]
fn refuses() {
    let refused = |lines: &str| options(lines).expect_err("refused");
    insta::assert_snapshot!(refused("datagen.rows.per.minute=1"), @"unknown option datagen.rows.per.minute: did you mean datagen.rows.per.second?");
    insta::assert_snapshot!(refused("datagen.rows.per.second=0"), @"option datagen.rows.per.second: '0' is not a number from 1 to 10000000");
    insta::assert_snapshot!(refused("fields.z.kind=random"), @"unknown option fields.z.kind");
    insta::assert_snapshot!(refused("fields.i.kind=normal"), @"option fields.i.kind: 'normal' is none of random, sequence, zipf");
    insta::assert_snapshot!(refused("fields.b.kind=zipf"), @"option fields.b.kind: 'zipf' does not go with the type of this column");
    insta::assert_snapshot!(refused("fields.i.length=3"), @"unknown option fields.i.length");
    insta::assert_snapshot!(refused("fields.i.mim=3"), @"unknown option fields.i.mim: did you mean fields.i.min?");
    insta::assert_snapshot!(refused("fields.i.max=3000000000"), @"option fields.i.max: '3000000000' is not a number that the column can hold");
    insta::assert_snapshot!(refused("fields.i.min=5\nfields.i.max=4"), @"option fields.i.max: it is below the lower bound");
    insta::assert_snapshot!(refused("fields.ts.max_past=soon"), @"option fields.ts.max_past: 'soon' is not a duration such as '90s' or '2h 30min'");
    insta::assert_snapshot!(refused("fields.s.kind=zipf"), @"option fields.s.kind: zipf for text needs values = 'a,b,c'");
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
