//! Keys into 256 buckets, the unit of ownership, of the exchange and of files. The function is frozen: files and other
//! processes depend on it.
//!
//! A value hashes by its canonical bytes, so that a key hashes the same whatever type of its family carries it:
//!
//! | type | bytes hashed by XXH64, seed 0 |
//! |---|---|
//! | integers, BOOLEAN (0, 1), DATE, TIME, TIMESTAMP[TZ] | the number as 8 bytes, little-endian, sign-extended |
//! | REAL, DOUBLE | the bits of the 8-byte float; every NaN is `0x7ff8000000000000`, -0.0 is 0.0 |
//! | NUMERIC | the unscaled number as 16 bytes, little-endian |
//! | INTERVAL | its length as 16 bytes, in nanoseconds, a month being 30 days |
//! | VARCHAR, BYTEA | the bytes |
//!
//! NULL hashes to [`NULL`], and so does what has no form yet (arrays, structs): right, if uneven. The hash of a key is that of
//! its first column, joined with each further one in order: `h = xxh64(rotate_left(h, 5) ^ column)`. The bucket is the top
//! byte; hash tables use the low bits.

use arrow::array::{
    Array, ArrayAccessor, ArrayRef, ArrowPrimitiveType, AsArray, BooleanArray, FixedSizeBinaryArray, PrimitiveArray,
};
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, DurationMicrosecondType, Float32Type, Float64Type, Int8Type, Int16Type,
    Int32Type, Int64Type, IntervalMonthDayNanoType, IntervalUnit, Time64MicrosecondType, TimeUnit,
    TimestampMicrosecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};

use super::hash::{xxh64, xxh64_u64};

pub const BUCKETS: usize = 256;

/// Where the key without columns lives: that of an aggregate without GROUP BY.
pub const EMPTY_KEY: u8 = 0;

/// The hash of NULL: that of the text `NULL`.
pub const NULL: u64 = 0x1e54_a686_41c6_db68;

#[inline]
pub fn bucket(hash: u64) -> u8 {
    (hash >> 56) as u8
}

/// The bucket of each of `rows` keys, given by columns.
pub fn buckets(keys: &[ArrayRef], rows: usize) -> Vec<u8> {
    hashes(keys, rows).map_or_else(|| vec![EMPTY_KEY; rows], |hashes| hashes.into_iter().map(bucket).collect())
}

/// The hash of each key; None for keys without columns.
pub fn hashes(keys: &[ArrayRef], rows: usize) -> Option<Vec<u64>> {
    let (first, more) = keys.split_first()?;
    let mut hashes = Vec::with_capacity(rows);
    hash_column(first, |_, hash| hashes.push(hash));
    for column in more {
        hash_column(column, |row, hash| hashes[row] = join(hashes[row], hash));
    }
    Some(hashes)
}

#[inline]
fn join(key: u64, column: u64) -> u64 {
    xxh64_u64(key.rotate_left(5) ^ column)
}

/// Calls `put` for each row in order.
fn hash_column(column: &ArrayRef, put: impl FnMut(usize, u64)) {
    match column.data_type() {
        DataType::Int64 => integers::<Int64Type>(column, |v| v, put),
        DataType::Int32 => integers::<Int32Type>(column, i64::from, put),
        DataType::Int16 => integers::<Int16Type>(column, i64::from, put),
        DataType::Int8 => integers::<Int8Type>(column, i64::from, put),
        DataType::UInt64 => integers::<UInt64Type>(column, |v| v as i64, put),
        DataType::UInt32 => integers::<UInt32Type>(column, i64::from, put),
        DataType::UInt16 => integers::<UInt16Type>(column, i64::from, put),
        DataType::UInt8 => integers::<UInt8Type>(column, i64::from, put),
        DataType::Date32 => integers::<Date32Type>(column, i64::from, put),
        DataType::Time64(TimeUnit::Microsecond) => integers::<Time64MicrosecondType>(column, |v| v, put),
        DataType::Timestamp(TimeUnit::Microsecond, _) => integers::<TimestampMicrosecondType>(column, |v| v, put),
        DataType::Duration(TimeUnit::Microsecond) => integers::<DurationMicrosecondType>(column, |v| v, put),
        DataType::Float64 => primitives::<Float64Type>(column, float, put),
        DataType::Float32 => primitives::<Float32Type>(column, |v| float(f64::from(v)), put),
        DataType::Decimal128(_, _) => primitives::<Decimal128Type>(column, |v| xxh64(&v.to_le_bytes()), put),
        DataType::Interval(IntervalUnit::MonthDayNano) => primitives::<IntervalMonthDayNanoType>(
            column,
            |v| {
                let days = i128::from(v.months) * 30 + i128::from(v.days);
                xxh64(&(days * 86_400_000_000_000 + i128::from(v.nanoseconds)).to_le_bytes())
            },
            put,
        ),
        DataType::Boolean => each::<&BooleanArray>(column.as_boolean(), |v| xxh64_u64(u64::from(v)), put),
        DataType::Utf8 => each(column.as_string::<i32>(), |v| xxh64(v.as_bytes()), put),
        DataType::LargeUtf8 => each(column.as_string::<i64>(), |v| xxh64(v.as_bytes()), put),
        DataType::Utf8View => each(column.as_string_view(), |v| xxh64(v.as_bytes()), put),
        DataType::Binary => each(column.as_binary::<i32>(), xxh64, put),
        DataType::LargeBinary => each(column.as_binary::<i64>(), xxh64, put),
        DataType::BinaryView => each(column.as_binary_view(), xxh64, put),
        DataType::FixedSizeBinary(_) => each::<&FixedSizeBinaryArray>(column.as_fixed_size_binary(), xxh64, put),
        _ => {
            let mut put = put;
            (0..column.len()).for_each(|row| put(row, NULL));
        }
    }
}

fn integers<T: ArrowPrimitiveType>(column: &ArrayRef, widen: impl Fn(T::Native) -> i64, put: impl FnMut(usize, u64)) {
    primitives::<T>(column, |value| xxh64_u64(widen(value) as u64), put);
}

fn primitives<T: ArrowPrimitiveType>(column: &ArrayRef, hash: impl Fn(T::Native) -> u64, put: impl FnMut(usize, u64)) {
    each::<&PrimitiveArray<T>>(column.as_primitive::<T>(), hash, put);
}

fn each<A: ArrayAccessor>(column: A, hash: impl Fn(A::Item) -> u64, mut put: impl FnMut(usize, u64)) {
    match column.nulls().filter(|nulls| nulls.null_count() > 0) {
        None => (0..column.len()).for_each(|row| put(row, hash(column.value(row)))),
        Some(nulls) => {
            for (row, there) in nulls.iter().enumerate() {
                put(row, if there { hash(column.value(row)) } else { NULL });
            }
        }
    }
}

#[inline]
fn float(value: f64) -> u64 {
    xxh64_u64(if value.is_nan() {
        0x7ff8_0000_0000_0000
    } else if value == 0.0 {
        0
    } else {
        value.to_bits()
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{
        BinaryArray, Float32Array, Float64Array, Int16Array, Int32Array, Int64Array, IntervalMonthDayNanoArray,
        StringArray, TimestampMicrosecondArray, UInt64Array,
    };
    use arrow::datatypes::IntervalMonthDayNanoType;

    use super::*;
    use crate::exec::text::parse;

    /// Golden: a change here would lose every file ever written.
    fn check(text: &str) -> String {
        let delta = parse(text);
        let hashes = hashes(delta.rows.columns(), delta.num_rows()).unwrap();
        let buckets = buckets(delta.rows.columns(), delta.num_rows());
        assert!(hashes.iter().zip(&buckets).all(|(&hash, &b)| bucket(hash) == b));
        hashes.iter().map(|hash| format!("{hash:016x}")).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_function_is_frozen() {
        insta::assert_snapshot!(check("i\n+ 0\n+ 1\n+ -1\n+ 9223372036854775807\n+ ."), @r"
        34c96acdcadb1bbb
        9f29cb17a2a49995
        85d136adb773c6c9
        ff70cc60366e770c
        1e54a68641c6db68
        ");
        insta::assert_snapshot!(check("s\n+ \"\"\n+ a\n+ click\n+ \"a country with a name of more than 32 bytes\""), @r"
        ef46db3751d8e999
        d24ec4f1a98c6e5b
        9e5cd60f43241ca4
        b395d26cc84778ff
        ");
        insta::assert_snapshot!(check("f b d t D\n+ 1.5 t 1.5 00:00:01 1\n+ . . . . ."), @r"
        c272fce81ac0d241
        1d8f6651e67a6938
        ");
        insta::assert_snapshot!(check("i s\n+ 1 DE\n+ . DE\n+ 1 ."), @r"
        9921c6d1e479b6da
        3681c0e403d0a69f
        78ea8301e9b9a393
        ");
        assert_eq!(buckets(&[], 2), [EMPTY_KEY; 2]);
        assert_eq!(NULL, xxh64(b"NULL"));
    }

    fn one(column: impl Array + 'static) -> u64 {
        hashes(&[Arc::new(column)], 1).unwrap()[0]
    }

    #[test]
    fn equal_values_hash_alike_in_every_type_of_a_family() {
        let seven = one(Int64Array::from(vec![7]));
        assert_eq!(one(Int32Array::from(vec![7])), seven);
        assert_eq!(one(Int16Array::from(vec![7])), seven);
        assert_eq!(one(UInt64Array::from(vec![7])), seven);
        assert_eq!(one(TimestampMicrosecondArray::from(vec![7]).with_timezone("UTC")), seven);
        assert_eq!(one(Float32Array::from(vec![0.25])), one(Float64Array::from(vec![0.25])));
        assert_eq!(one(Float64Array::from(vec![-0.0])), one(Float64Array::from(vec![0.0])));
        assert_eq!(one(Float64Array::from(vec![-f64::NAN])), one(Float32Array::from(vec![f32::NAN])));
        assert_eq!(one(BinaryArray::from(vec![&b"x"[..]])), one(StringArray::from(vec!["x"])));
        let interval =
            |months, days| IntervalMonthDayNanoArray::from(vec![IntervalMonthDayNanoType::make_value(months, days, 0)]);
        assert_eq!(one(interval(1, 0)), one(interval(0, 30)));
    }

    #[test]
    fn columns_are_told_apart_and_buckets_are_filled_evenly() {
        let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(0..100_000));
        let swapped: ArrayRef = Arc::new(Int64Array::from_iter_values((0..100_000).rev()));
        let (ab, ba) = (&[ids.clone(), swapped.clone()], &[swapped, ids.clone()]);
        let same =
            hashes(ab, 100_000).unwrap().iter().zip(hashes(ba, 100_000).unwrap()).filter(|(a, b)| *a == b).count();
        assert_eq!(same, 0);
        let mut filled = [0; BUCKETS];
        buckets(&[ids], 100_000).into_iter().for_each(|bucket| filled[bucket as usize] += 1);
        assert!(filled.iter().all(|n| (300..480).contains(n)), "{filled:?}");
    }
}
