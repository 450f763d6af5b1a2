//! Every row of the tables in the module's documentation, and what must hold for all bytes.

use arrow::array::ArrayRef;
use arrow::datatypes::TimeUnit;
use arrow::util::display::array_value_to_string;
use proptest::prelude::*;

use super::*;
use crate::connector::records::{RecordMeta, Records};

const BIGINT: DataType = DataType::Int64;
const VARCHAR: DataType = DataType::Utf8;
const TIMESTAMP: DataType = DataType::Timestamp(TimeUnit::Microsecond, None);

fn timestamptz() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

fn column(name: &str, data_type: DataType) -> ColumnSpec {
    ColumnSpec { name: name.into(), data_type, not_null: false, include: None }
}

fn records<'a>(values: impl IntoIterator<Item = Option<&'a [u8]>>) -> Records {
    let mut records = Records::default();
    for (offset, value) in values.into_iter().enumerate() {
        let meta = RecordMeta { partition: 1, offset: offset as i64, timestamp_ms: 7, log_append_time: false };
        records.push(meta, Some(b"key"), value);
    }
    records
}

fn decode_one(decoder: &mut JsonDecoder, record: &[u8]) -> Decoded {
    decoder.decode(&records([Some(record)]), 0..1)
}

fn shown(decoded: &Decoded) -> String {
    let cell = |row, column: &ArrayRef| match column.is_null(row) {
        true => "NULL".to_string(),
        false => array_value_to_string(column, row).expect("a value"),
    };
    match (&decoded.dead[..], &decoded.skipped[..], decoded.rows.len()) {
        ([dead], [], 0) => format!("dead: {}", dead.reason),
        ([], [_], 0) => "skipped".into(),
        ([], [], 1) => decoded.batch.columns().iter().map(|c| cell(0, c)).collect::<Vec<_>>().join(", "),
        other => panic!("one record has one verdict: {other:?}"),
    }
}

/// The value of column `c` of this type for a field `c` with this JSON value, or why it is dead. The verdict must be the
/// same when the column is not built.
fn check_mode(data_type: &DataType, timestamps: TimestampMode, json: &str) -> String {
    let columns = [column("c", data_type.clone())];
    let record = format!("{{\"c\": {json}}}");
    let mut build = JsonDecoder::new(&columns, &[0], JsonOptions { timestamps }).expect("a type we read");
    let mut only_check = JsonDecoder::new(&columns, &[], JsonOptions { timestamps }).expect("a type we read");
    let decoded = decode_one(&mut build, record.as_bytes());
    let checked = decode_one(&mut only_check, record.as_bytes());
    assert_eq!(decoded.dead, checked.dead, "{json}");
    assert_eq!(decoded.batch.num_rows(), checked.batch.num_rows());
    shown(&decoded)
}

fn check(data_type: &DataType, json: &str) -> String {
    check_mode(data_type, TimestampMode::Guess, json)
}

/// A table with one line per JSON value.
fn table(data_type: &DataType, values: &[&str]) -> String {
    values.iter().map(|json| format!("{json} => {}", check(data_type, json)).trim_end().to_string() + "\n").collect()
}

#[test]
fn booleans() {
    insta::assert_snapshot!(table(&DataType::Boolean, &["true", "false", "null", "1", "\"true\"", "{}", "[]"]), @r#"
        true => true
        false => false
        null => NULL
        1 => dead: column c: expected BOOLEAN, found number 1
        "true" => dead: column c: expected BOOLEAN, found string "true"
        {} => dead: column c: expected BOOLEAN, found an object
        [] => dead: column c: expected BOOLEAN, found an array
        "#);
}

#[test]
fn integers() {
    insta::assert_snapshot!(table(&DataType::Int16, &["32767", "-32768", "32768", "-32769", "1e3", "1e5"]), @r"
        32767 => 32767
        -32768 => -32768
        32768 => dead: column c: 32768 is out of range for SMALLINT
        -32769 => dead: column c: -32769 is out of range for SMALLINT
        1e3 => 1000
        1e5 => dead: column c: 1e5 is out of range for SMALLINT
        ");
    insta::assert_snapshot!(table(&DataType::Int32, &["2147483647", "-2147483648", "2147483648", "\"12\""]), @r#"
        2147483647 => 2147483647
        -2147483648 => -2147483648
        2147483648 => dead: column c: 2147483648 is out of range for INT
        "12" => 12
        "#);
    insta::assert_snapshot!(
        table(&BIGINT, &[
            "0", "-0", "12", "\"12\"", "\"-12\"", "\" 12\"", "\"\"", "\"twelve\"", "\"1\\u0032\"", "1.0", "1e3", "12.50e1", "1.5", "\"1.0\"",
            "9223372036854775807", "9223372036854775808", "-9223372036854775808", "-9223372036854775809", "1e19", "1e-3",
            "123456789012345678901234567890123456789012345678901234567890", "true", "{\"a\": 1}", "[1]", "null",
        ]), @r#"
        0 => 0
        -0 => 0
        12 => 12
        "12" => 12
        "-12" => -12
        " 12" => dead: column c: expected BIGINT, found string " 12"
        "" => dead: column c: expected BIGINT, found string ""
        "twelve" => dead: column c: expected BIGINT, found string "twelve"
        "1\u0032" => 12
        1.0 => 1
        1e3 => 1000
        12.50e1 => 125
        1.5 => dead: column c: 1.5 has more fractional digits than BIGINT holds
        "1.0" => 1
        9223372036854775807 => 9223372036854775807
        9223372036854775808 => dead: column c: 9223372036854775808 is out of range for BIGINT
        -9223372036854775808 => -9223372036854775808
        -9223372036854775809 => dead: column c: -9223372036854775809 is out of range for BIGINT
        1e19 => dead: column c: 1e19 is out of range for BIGINT
        1e-3 => dead: column c: 1e-3 has more fractional digits than BIGINT holds
        123456789012345678901234567890123456789012345678901234567890 => dead: column c: 123456789012345678901234567890123456789012345678901234567890 is out of range for BIGINT
        true => dead: column c: expected BIGINT, found boolean true
        {"a": 1} => dead: column c: expected BIGINT, found an object
        [1] => dead: column c: expected BIGINT, found an array
        null => NULL
        "#);
}

#[test]
fn floats() {
    insta::assert_snapshot!(table(&DataType::Float32, &["1.5", "16777217", "1e39", "\"2.5\""]), @r#"
        1.5 => 1.5
        16777217 => 16777216.0
        1e39 => dead: column c: 1e39 is out of range for REAL
        "2.5" => 2.5
        "#);
    insta::assert_snapshot!(
        table(&DataType::Float64, &["1", "0.1", "-1.5e300", "12345678901234567890", "1e400", "1e-400", "\"0.5\"", "\"NaN\"", "false", "NaN", "Infinity"]),
        @r#"
        1 => 1.0
        0.1 => 0.1
        -1.5e300 => -1.5e300
        12345678901234567890 => 1.2345678901234567e19
        1e400 => dead: column c: 1e400 is out of range for DOUBLE PRECISION
        1e-400 => 0.0
        "0.5" => 0.5
        "NaN" => dead: column c: expected DOUBLE PRECISION, found string "NaN"
        false => dead: column c: expected DOUBLE PRECISION, found boolean false
        NaN => dead: invalid JSON at byte 6: expected a value near NaN}
        Infinity => dead: invalid JSON at byte 6: expected a value near Infinity}
        "#);
}

#[test]
fn numerics() {
    insta::assert_snapshot!(
        table(&DataType::Decimal128(10, 2), &[
            "1", "0.1", "1.23", "1.230", "1.234", "\"99999999.99\"", "100000000", "1e7", "1e8", "123e-2", "-0.01", "\"1,5\"", "true",
        ]), @r#"
        1 => 1.00
        0.1 => 0.10
        1.23 => 1.23
        1.230 => 1.23
        1.234 => dead: column c: 1.234 has more fractional digits than NUMERIC(10,2) holds
        "99999999.99" => 99999999.99
        100000000 => dead: column c: 100000000 is out of range for NUMERIC(10,2)
        1e7 => 10000000.00
        1e8 => dead: column c: 1e8 is out of range for NUMERIC(10,2)
        123e-2 => 1.23
        -0.01 => -0.01
        "1,5" => dead: column c: expected NUMERIC(10,2), found string "1,5"
        true => dead: column c: expected NUMERIC(10,2), found boolean true
        "#);
    insta::assert_snapshot!(
        table(&DataType::Decimal128(38, 10), &["1234567890123456789012345678.0123456789", "12345678901234567890123456789"]),
        @r"
        1234567890123456789012345678.0123456789 => 1234567890123456789012345678.0123456789
        12345678901234567890123456789 => dead: column c: 12345678901234567890123456789 is out of range for NUMERIC(38,10)
        ");
}

#[test]
fn strings() {
    insta::assert_snapshot!(
        table(&VARCHAR, &[
            "\"\"", "\"plain\"", "\"a\\\"b\\\\c\\n\\u00e9\\ud83d\\ude00\"", "\"größe\"", "12", "1.50", "-1e5", "true", "{}", "[1]", "\"\\ud800\"",
            "\"\\u0000\"",
        ]), @r#"
        "" =>
        "plain" => plain
        "a\"b\\c\n\u00e9\ud83d\ude00" => a"b\c
        é😀
        "größe" => größe
        12 => 12
        1.50 => 1.50
        -1e5 => -1e5
        true => dead: column c: expected VARCHAR, found boolean true
        {} => dead: column c: expected VARCHAR, found an object
        [1] => dead: column c: expected VARCHAR, found an array
        "\ud800" => dead: column c: expected VARCHAR, found string "\ud800": half of a surrogate pair is no character
        "\u0000" => dead: column c: expected VARCHAR, found string "\u0000": \u0000 cannot be stored
        "#);
    insta::assert_snapshot!(table(&DataType::Binary, &["\"\\\\x6869\"", "\"\\\\x\"", "\"\\\\x6\"", "\"6869\"", "5"]), @r#"
        "\\x6869" => 6869
        "\\x" =>
        "\\x6" => dead: column c: expected BYTEA, found string "\\x6": it is not \x and an even number of hexadecimal digits
        "6869" => dead: column c: expected BYTEA, found string "6869": it is not \x and an even number of hexadecimal digits
        5 => dead: column c: expected BYTEA, found number 5
        "#);
}

#[test]
fn dates_and_times() {
    insta::assert_snapshot!(
        table(&DataType::Date32, &["\"2024-02-29\"", "\"2023-02-29\"", "\"2024-2-9\"", "\"2024-02-29T00:00:00\"", "19782"]),
        @r#"
        "2024-02-29" => 2024-02-29
        "2023-02-29" => dead: column c: expected DATE, found string "2023-02-29": there is no such date
        "2024-2-9" => dead: column c: expected DATE, found string "2024-2-9": it is not YYYY-MM-DD
        "2024-02-29T00:00:00" => dead: column c: expected DATE, found string "2024-02-29T00:00:00": it is not YYYY-MM-DD
        19782 => dead: column c: expected DATE, found number 19782
        "#);
    insta::assert_snapshot!(table(&DataType::Time64(TimeUnit::Microsecond), &["\"23:59:59.5\"", "\"07:30\"", "\"24:00:00\"", "1"]), @r#"
        "23:59:59.5" => 23:59:59.500
        "07:30" => 07:30:00
        "24:00:00" => dead: column c: expected TIME, found string "24:00:00": there is no such time of day
        1 => dead: column c: expected TIME, found number 1
        "#);
    insta::assert_snapshot!(
        table(&timestamptz(), &[
            "\"2024-03-01T10:00:00Z\"", "\"2024-03-01 10:00:00\"", "\"2024-03-01 10:00:00.123456789+02\"", "\"2024-03-01T10:00:00-0530\"",
            "\"2024-03-01T10:00:00+05:30\"", "\"2024-03-01\"", "\"2024-02-30 10:00:00\"", "\"2024-03-01T25:00:00Z\"", "\"yesterday\"",
            "1709287200", "1709287200.5", "1709287200000", "1709287200000000", "1709287200000000000", "\"1709287200\"", "-1", "1e30", "true", "null",
        ]), @r#"
        "2024-03-01T10:00:00Z" => 2024-03-01T10:00:00Z
        "2024-03-01 10:00:00" => 2024-03-01T10:00:00Z
        "2024-03-01 10:00:00.123456789+02" => 2024-03-01T08:00:00.123456Z
        "2024-03-01T10:00:00-0530" => 2024-03-01T15:30:00Z
        "2024-03-01T10:00:00+05:30" => 2024-03-01T04:30:00Z
        "2024-03-01" => 2024-03-01T00:00:00Z
        "2024-02-30 10:00:00" => dead: column c: expected TIMESTAMPTZ, found string "2024-02-30 10:00:00": there is no such date
        "2024-03-01T25:00:00Z" => dead: column c: expected TIMESTAMPTZ, found string "2024-03-01T25:00:00Z": there is no such time of day
        "yesterday" => dead: column c: expected TIMESTAMPTZ, found string "yesterday": it is not YYYY-MM-DD
        1709287200 => 2024-03-01T10:00:00Z
        1709287200.5 => 2024-03-01T10:00:00.500Z
        1709287200000 => 2024-03-01T10:00:00Z
        1709287200000000 => 2024-03-01T10:00:00Z
        1709287200000000000 => 2024-03-01T10:00:00Z
        "1709287200" => dead: column c: expected TIMESTAMPTZ, found string "1709287200": it is not YYYY-MM-DD
        -1 => 1969-12-31T23:59:59Z
        1e30 => dead: column c: expected TIMESTAMPTZ, found number 1e30: it is outside the years 1 to 9999
        true => dead: column c: expected TIMESTAMPTZ, found boolean true
        null => NULL
        "#);
    insta::assert_snapshot!(table(&TIMESTAMP, &["\"2024-03-01T10:00:00+02:00\"", "\"2024-03-01 10:00:00\"", "1709287200000"]), @r#"
        "2024-03-01T10:00:00+02:00" => 2024-03-01T08:00:00
        "2024-03-01 10:00:00" => 2024-03-01T10:00:00
        1709287200000 => 2024-03-01T10:00:00
        "#);
}

#[test]
fn timestamp_modes() {
    let modes = ["guess", "guess_number_unit", "seconds", "milli", "micro", "nano", "utc_string", "utc_without_suffix"];
    let lines: String = modes
        .iter()
        .map(|mode| {
            let option = [("timestamptz.handling.mode".to_string(), mode.to_string())].into();
            let mode_parsed = JsonOptions::parse(&option).expect("a mode").timestamps;
            let values = ["1709287200", "\"1970-01-01T00:00:01\"", "\"1970-01-01T00:00:01Z\""];
            let shown = values.map(|json| check_mode(&timestamptz(), mode_parsed, json));
            format!("{mode}: {}\n", shown.join(" | "))
        })
        .collect();
    insta::assert_snapshot!(lines, @r#"
        guess: 2024-03-01T10:00:00Z | 1970-01-01T00:00:01Z | 1970-01-01T00:00:01Z
        guess_number_unit: 2024-03-01T10:00:00Z | 1970-01-01T00:00:01Z | 1970-01-01T00:00:01Z
        seconds: 2024-03-01T10:00:00Z | 1970-01-01T00:00:01Z | 1970-01-01T00:00:01Z
        milli: 1970-01-20T18:48:07.200Z | 1970-01-01T00:00:01Z | 1970-01-01T00:00:01Z
        micro: 1970-01-01T00:28:29.287200Z | 1970-01-01T00:00:01Z | 1970-01-01T00:00:01Z
        nano: 1970-01-01T00:00:01.709287Z | 1970-01-01T00:00:01Z | 1970-01-01T00:00:01Z
        utc_string: dead: column c: expected TIMESTAMPTZ, found number 1709287200: timestamptz.handling.mode allows text only | dead: column c: expected TIMESTAMPTZ, found string "1970-01-01T00:00:01": timestamptz.handling.mode = 'utc_string' needs a zone | 1970-01-01T00:00:01Z
        utc_without_suffix: dead: column c: expected TIMESTAMPTZ, found number 1709287200: timestamptz.handling.mode allows text only | 1970-01-01T00:00:01Z | dead: column c: expected TIMESTAMPTZ, found string "1970-01-01T00:00:01Z": timestamptz.handling.mode = 'utc_without_suffix' allows no zone
        "#);
    let refused = |key: &str, value: &str| {
        JsonOptions::parse(&[(key.to_string(), value.to_string())].into()).expect_err("refused").to_string()
    };
    insta::assert_snapshot!(refused("timestamptz.handling.mode", "hours"), @"option timestamptz.handling.mode: 'hours' is none of guess, seconds, milli, micro, nano, utc_string, utc_without_suffix");
    insta::assert_snapshot!(refused("timestamptz.handling", "milli"), @"unknown option timestamptz.handling: did you mean timestamptz.handling.mode?");
}

/// The verdict on whole records, for columns id BIGINT NOT NULL, name VARCHAR.
#[test]
fn records_as_a_whole() {
    let mut columns = [column("id", BIGINT), column("name", VARCHAR)];
    columns[0].not_null = true;
    let check = |record: &[u8]| {
        let mut decoder = JsonDecoder::new(&columns, &[0, 1], JsonOptions::default()).expect("types we read");
        let first = shown(&decode_one(&mut decoder, record));
        let again = shown(&decode_one(&mut decoder, record));
        assert_eq!(first, again, "a decoder that has seen the record comes to the same verdict");
        first
    };
    let nested =
        |depth: usize| format!("{{\"id\": 1, \"x\": {}{}}}", "[".repeat(depth), "]".repeat(depth)).into_bytes();
    let cases: [&[u8]; 39] = [
        b"{\"id\": 1, \"name\": \"a\"}",
        b" \t\r\n{ \"id\" : 1 , \"name\" : \"a\" } \n",
        b"{\"name\":\"a\",\"id\":1}",
        b"{\"id\":1}",
        b"{\"id\":1,\"name\":null}",
        b"{\"name\":\"a\"}",
        b"{\"id\":null}",
        b"{}",
        b"",
        b"   ",
        b"{\"id\":1",
        b"{\"id\":1,\"name\":\"a",
        b"{\"id\":1,}",
        b"{\"id\":1 \"name\":\"a\"}",
        b"{\"id\" 1}",
        b"{id:1}",
        b"{\"id\":1}}",
        b"{\"id\":1}{\"id\":2}",
        b"[{\"id\":1}]",
        b"\"text\"",
        b"12",
        b"null",
        b"nothing",
        b"{\"id\":1,\"name\":\"\xff\"}",
        b"{\"id\":1,\"other\":\"\xc3\"}",
        b"{\"id\":1,\"name\":\"a\nb\"}",
        b"{\"id\":1,\"name\":\"\\x\"}",
        b"{\"id\":01}",
        b"{\"id\":1,\"x\":tru}",
        b"{\"id\":1,\"id\":1}",
        b"{\"id\":1,\"x\":1,\"x\":2}",
        b"{\"ID\":1,\"Name\":\"a\"}",
        b"{\"ID\":1,\"Id\":2}",
        b"{\"ID\":\"no\",\"id\":2}",
        b"{\"id\":2,\"ID\":[\"no\"],\"NAME\":\"b\",\"name\":\"c\"}",
        b"{\"ID\":\"no\"}",
        b"{\"i\\u0064\":1,\"\\ud800\":2}",
        b"{\"id\":\"a value that is long enough to be cut somewhere in the middle of it, which is here\"}",
        b"{\"id\":1,\"x\":{\"id\":[2,{\"name\":[]}]},\"name\":\"b\"}",
    ];
    let lines: String = cases.iter().map(|r| format!("{} => {}\n", r.escape_ascii(), check(r))).collect();
    insta::assert_snapshot!(lines, @r#"
        {\"id\": 1, \"name\": \"a\"} => 1, a
         \t\r\n{ \"id\" : 1 , \"name\" : \"a\" } \n => 1, a
        {\"name\":\"a\",\"id\":1} => 1, a
        {\"id\":1} => 1, NULL
        {\"id\":1,\"name\":null} => 1, NULL
        {\"name\":\"a\"} => dead: column id: it is missing, and the column is NOT NULL
        {\"id\":null} => dead: column id: it is null, and the column is NOT NULL
        {} => dead: column id: it is missing, and the column is NOT NULL
         => dead: empty value
            => dead: empty value
        {\"id\":1 => dead: invalid JSON at byte 7: it ends too early
        {\"id\":1,\"name\":\"a => dead: invalid JSON at byte 17: it ends too early
        {\"id\":1,} => dead: invalid JSON at byte 8: expected the name of a field near }
        {\"id\":1 \"name\":\"a\"} => dead: invalid JSON at byte 8: expected ',' or '}' near "name":"a"}
        {\"id\" 1} => dead: invalid JSON at byte 6: expected ':' near 1}
        {id:1} => dead: invalid JSON at byte 1: expected the name of a field near id:1}
        {\"id\":1}} => dead: invalid JSON at byte 8: something follows the object near }
        {\"id\":1}{\"id\":2} => dead: invalid JSON at byte 8: something follows the object near {"id":2}
        [{\"id\":1}] => dead: expected an object, found an array
        \"text\" => dead: expected an object, found string "text"
        12 => dead: expected an object, found number 12
        null => dead: expected an object, found null
        nothing => dead: invalid JSON at byte 0: expected an object near nothing
        {\"id\":1,\"name\":\"\xff\"} => dead: invalid UTF-8 at byte 16
        {\"id\":1,\"other\":\"\xc3\"} => dead: invalid UTF-8 at byte 17
        {\"id\":1,\"name\":\"a\nb\"} => dead: invalid JSON at byte 17: a control character in a string must be escaped near 
        b"}
        {\"id\":1,\"name\":\"\\x\"} => dead: invalid JSON at byte 17: no such escape in a string near x"}
        {\"id\":01} => dead: invalid JSON at byte 6: a number must not begin with 0 near 01}
        {\"id\":1,\"x\":tru} => dead: invalid JSON at byte 12: expected a value near tru}
        {\"id\":1,\"id\":1} => dead: column id: the field is there twice
        {\"id\":1,\"x\":1,\"x\":2} => 1, NULL
        {\"ID\":1,\"Name\":\"a\"} => 1, a
        {\"ID\":1,\"Id\":2} => dead: column id: the field is there twice
        {\"ID\":\"no\",\"id\":2} => 2, NULL
        {\"id\":2,\"ID\":[\"no\"],\"NAME\":\"b\",\"name\":\"c\"} => 2, c
        {\"ID\":\"no\"} => dead: column id: expected BIGINT, found string "no"
        {\"i\\u0064\":1,\"\\ud800\":2} => 1, NULL
        {\"id\":\"a value that is long enough to be cut somewhere in the middle of it, which is here\"} => dead: column id: expected BIGINT, found string "a value that is long enough to be cut somewhere in the midd...
        {\"id\":1,\"x\":{\"id\":[2,{\"name\":[]}]},\"name\":\"b\"} => 1, b
        "#);
    // A byte order mark is no JSON.
    assert!(check(b"\xef\xbb\xbf{\"id\":1}").starts_with("dead: invalid JSON at byte 0: expected an object"));
    assert_eq!(check(&nested(127)), "1, NULL");
    let too_deep = check(&nested(128));
    assert!(
        too_deep.starts_with("dead: invalid JSON at byte 142: objects and arrays are nested deeper than 128 levels"),
        "{too_deep}"
    );
    assert!(check(&nested(2_000)).starts_with("dead: "));
    let long = format!("{{\"id\":1,\"name\":\"{}\",\"x\":\"{}\"}}", "n".repeat(1 << 20), "x".repeat(1 << 20));
    assert_eq!(check(long.as_bytes()).len(), "1, ".len() + (1 << 20));
}

#[test]
fn names_that_differ_in_case_only() {
    let columns = [column("a", BIGINT), column("A", BIGINT), column("größe", BIGINT)];
    let mut decoder = JsonDecoder::new(&columns, &[0, 1, 2], JsonOptions::default()).expect("types we read");
    let mut check = |record: &str| shown(&decode_one(&mut decoder, record.as_bytes()));
    assert_eq!(check(r#"{"a": 1, "A": 2, "GRÖSSE": 3}"#), "1, 2, NULL");
    assert_eq!(check(r#"{"GRÖßE": 3}"#), "NULL, NULL, 3");
}

#[test]
fn tombstones_includes_and_rows() {
    let mut columns = [
        column("p", DataType::Int32),
        column("o", BIGINT),
        column("t", timestamptz()),
        column("k", VARCHAR),
        column("v", BIGINT),
    ];
    let kinds = [IncludeKind::Partition, IncludeKind::Offset, IncludeKind::Timestamp, IncludeKind::Key];
    for (column, kind) in columns.iter_mut().zip(kinds) {
        column.include = Some(kind);
    }
    let mut records = records([
        Some(&b"{\"v\":10,\"p\":99}"[..]),
        None,
        Some(b"{\"v\":[]}"),
        Some(b"{\"v\":13}"),
        Some(b"{\"v\":14}"),
    ]);
    records.records[3].timestamp_ms = -1;
    records.records[3].key = None;
    let key = records.records[4].key.expect("it has one");
    records.bytes[key.start as usize] = 0xff;
    // Wanted in another order, and two of them not at all.
    let mut decoder = JsonDecoder::new(&columns, &[4, 1, 2, 3, 0], JsonOptions::default()).expect("types we read");
    let decoded = decoder.decode(&records, 0..5);
    assert_eq!((&decoded.rows[..], &decoded.skipped[..]), (&[0, 3][..], &[1][..]));
    insta::assert_debug_snapshot!(decoded.dead, @r#"
        [
            Dead {
                record: 2,
                reason: "column v: expected BIGINT, found an array",
            },
            Dead {
                record: 4,
                reason: "column k: the key has invalid UTF-8 at byte 0",
            },
        ]
        "#);
    insta::assert_snapshot!(arrow::util::pretty::pretty_format_batches(&[decoded.batch]).expect("a table"), @r"
        +----+---+--------------------------+-----+---+
        | v  | o | t                        | k   | p |
        +----+---+--------------------------+-----+---+
        | 10 | 0 | 1970-01-01T00:00:00.007Z | key | 1 |
        | 13 | 3 |                          |     | 1 |
        +----+---+--------------------------+-----+---+
        ");
    let mut unbuilt = JsonDecoder::new(&columns, &[], JsonOptions::default()).expect("types we read");
    let verdicts = unbuilt.decode(&records, 0..5);
    assert_eq!((verdicts.rows, verdicts.dead), (decoded.rows, decoded.dead));
}

#[test]
fn refuses_types_it_cannot_read() {
    let refused =
        |column: ColumnSpec| JsonDecoder::new(&[column], &[], JsonOptions::default()).expect_err("refused").to_string();
    insta::assert_snapshot!(refused(column("c", DataType::Interval(arrow::datatypes::IntervalUnit::MonthDayNano))), @"column c of type Interval(MonthDayNano) cannot be read from JSON: use VARCHAR for a string, or leave the column out");
    insta::assert_snapshot!(refused(ColumnSpec { include: Some(IncludeKind::Offset), ..column("c", VARCHAR) }), @"column c of type Utf8 cannot be read from JSON: INCLUDE partition is INT, offset BIGINT, timestamp TIMESTAMPTZ, key VARCHAR or BYTEA");
}

#[test]
fn columns_that_never_come() {
    let columns = [column("id", BIGINT), column("misspelt", VARCHAR)];
    let mut decoder = JsonDecoder::new(&columns, &[0], JsonOptions::default()).expect("types we read");
    let records = records(std::iter::repeat_n(Some(&b"{\"id\":1}"[..]), 1000));
    decoder.decode(&records, 0..999);
    assert_eq!(decoder.unseen_columns(), Vec::<String>::new());
    decoder.decode(&records, 999..1000);
    assert_eq!(decoder.unseen_columns(), ["misspelt"]);
}

fn all_types() -> Vec<ColumnSpec> {
    [
        DataType::Boolean,
        DataType::Int16,
        DataType::Int32,
        BIGINT,
        DataType::Float32,
        DataType::Float64,
        DataType::Decimal128(12, 3),
        VARCHAR,
        DataType::Binary,
        DataType::Date32,
        DataType::Time64(TimeUnit::Microsecond),
        TIMESTAMP,
        timestamptz(),
    ]
    .into_iter()
    .enumerate()
    .map(|(i, data_type)| column(&format!("c{i}"), data_type))
    .collect()
}

/// Objects with fields of every type, many of them not fitting, and bytes that are no JSON.
fn record() -> impl Strategy<Value = Vec<u8>> {
    let values = [
        "true",
        "null",
        "1",
        "-3.25",
        "1e2",
        "70000",
        "\"12\"",
        "\"text\"",
        "\"\\u00e9\\n\"",
        "\"é\"",
        "\"2024-03-01\"",
        "\"10:00:00\"",
        "\"2024-03-01T10:00:00Z\"",
        "\"\\\\x00ff\"",
        "1709287200000",
        "{\"a\":[1]}",
        "[]",
        "tru",
        "\"",
    ];
    let names = [
        "c0", "c1", "c2", "c3", "C3", "c4", "c5", "c6", "c7", "C7", "c8", "c9", "c10", "c11", "c12", "other",
        "c\\u0037",
    ];
    let field = (prop::sample::select(names.to_vec()), prop::sample::select(values.to_vec()));
    let object = prop::collection::vec(field, 0..5).prop_map(|fields| {
        let fields: Vec<String> = fields.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
        format!("{{{}}}", fields.join(",")).into_bytes()
    });
    prop_oneof![
        8 => object.clone(),
        1 => object.prop_map(|mut bytes| { let half = bytes.len() / 2; bytes.truncate(half); bytes }),
        1 => prop::collection::vec(any::<u8>(), 0..30),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    /// Whatever the bytes, and wherever batches are cut: the same rows and verdicts, whichever columns are built.
    #[test]
    fn verdicts_depend_on_the_record_alone(
        values in prop::collection::vec(prop::option::weighted(0.95, record()), 1..20),
        cut in 0usize..20,
        wanted in prop::sample::subsequence((0..13usize).collect::<Vec<_>>(), 0..13),
    ) {
        let columns = all_types();
        let records = records(values.iter().map(|v| v.as_deref()));
        let cut = cut.min(records.len());
        let all: Vec<usize> = (0..columns.len()).collect();
        let decoder = |wanted: &[usize]| JsonDecoder::new(&columns, wanted, JsonOptions::default()).expect("types we read");
        let whole = decoder(&all).decode(&records, 0..records.len());
        whole.batch.column(7).to_data().validate_full().expect("strings are UTF-8");

        let mut in_two = decoder(&all);
        let (first, second) = (in_two.decode(&records, 0..cut), in_two.decode(&records, cut..records.len()));
        let joined = arrow::compute::concat_batches(whole.batch.schema_ref(), [&first.batch, &second.batch]).expect("one schema");
        prop_assert_eq!(&joined, &whole.batch);
        prop_assert_eq!([first.rows, second.rows].concat(), whole.rows.clone());
        prop_assert_eq!([first.dead, second.dead].concat(), whole.dead.clone());
        prop_assert_eq!([first.skipped, second.skipped].concat(), whole.skipped.clone());

        let some = decoder(&wanted).decode(&records, 0..records.len());
        prop_assert_eq!(some.batch, whole.batch.project(&wanted).expect("columns"));
        prop_assert_eq!(some.rows, whole.rows.clone());
        prop_assert_eq!(some.dead, whole.dead.clone());

        // What we accept, serde_json accepts too.
        for row in &whole.rows {
            let value = records.value(*row as usize).expect("a row has a value");
            prop_assert!(serde_json::from_slice::<serde::de::IgnoredAny>(value).is_ok());
        }
    }
}
