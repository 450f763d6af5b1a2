use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, TimestampMicrosecondArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, SchemaRef, TimeUnit, TimestampMicrosecondType};

use super::Operator;
use crate::exec::rows::{batch_of, take_rows};
use crate::exec::window::windows_of;
use crate::exec::{Delta, ExecError};
use crate::planner::stream_plan::{Window, stands_in_windows, window_type};

/// Copies each row into every window that covers its time.
///
/// - Input: one, with a time column of Timestamp(us) or Date32 (midnight). Output: its columns, then `window_start` and
///   `window_end`, both of the type [`window_type`] gives.
/// - State: none. Cost: a copy of the row per window, so size / slide of them: only for what cannot be kept in slices.
/// - Deletions are copied into the same windows, with their weight.
/// - A row whose time is NULL is in no window; it is left out and counted, as is one too far away ([`stands_in_windows`]). A row
///   between windows (slide longer than size) is left out as the query says.
pub struct AssignWindows {
    time_column: usize,
    window: Window,
    time_type: DataType,
    schema: SchemaRef,
    left_out: u64,
}

impl AssignWindows {
    /// `schema` is the output's. Fails if the time column has another type.
    pub fn new(time_column: usize, window: Window, schema: SchemaRef) -> Result<Self, ExecError> {
        let time_type = match schema.field(time_column).data_type() {
            time @ (DataType::Timestamp(TimeUnit::Microsecond, _) | DataType::Date32) => window_type(time),
            other => {
                return Err(ExecError::Unsupported {
                    what: format!("a window over a time column of type {other}"),
                    hint: "Use a TIMESTAMP, TIMESTAMPTZ or DATE column.".into(),
                });
            }
        };
        Ok(AssignWindows { time_column, window, time_type, schema, left_out: 0 })
    }

    fn bounds(&self, bounds_us: Vec<i64>) -> Result<ArrayRef, ExecError> {
        let DataType::Timestamp(_, zone) = &self.time_type else { unreachable!("windows are bounded by timestamps") };
        Ok(Arc::new(TimestampMicrosecondArray::from(bounds_us).with_timezone_opt(zone.clone())))
    }
}

impl Operator for AssignWindows {
    fn step(&mut self, inputs: &[Delta]) -> Result<Delta, ExecError> {
        let [input] = inputs else { unreachable!("windows are assigned to one input") };
        let times = cast(input.column(self.time_column), &self.time_type)?;
        let times = times.as_primitive::<TimestampMicrosecondType>();
        let (mut rows, mut ends) = (Vec::with_capacity(times.len()), Vec::with_capacity(times.len()));
        for row in 0..times.len() {
            // What is taken back was counted when it came.
            let comes = input.weight(row) > 0;
            if times.is_null(row) || !stands_in_windows(times.value(row)) {
                self.left_out += u64::from(comes);
                continue;
            }
            let windows = windows_of(times.value(row), self.window);
            rows.resize(rows.len() + windows.len(), row as u32);
            ends.extend(windows);
        }
        let starts = ends.iter().map(|&end| self.window.start_of(end)).collect();
        let weights = input.weights.as_ref().map(|weights| rows.iter().map(|&row| weights[row as usize]).collect());
        let taken = take_rows(&input.rows, rows)?;
        let mut columns = taken.columns().to_vec();
        columns.push(self.bounds(starts)?);
        columns.push(self.bounds(ends)?);
        Ok(Delta { rows: batch_of(&self.schema, columns, taken.num_rows())?, weights })
    }

    fn left_out(&self) -> u64 {
        self.left_out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::text::{parse, parse_schema, print};

    fn check(seconds: (i64, i64), header: (&str, &str), rows: &str) -> (String, u64) {
        let (slide, size) = seconds;
        let window = Window::hop(size * 1_000_000, slide * 1_000_000, 0);
        let schema = parse_schema(&format!("{} {}", header.0, header.1));
        let mut assign = AssignWindows::new(1, window, schema).unwrap();
        let output = assign.step(&[parse(&format!("{}\n{rows}", header.0))]).unwrap();
        (print(&output), assign.left_out())
    }

    #[test]
    fn each_row_is_copied_into_every_window_that_covers_it() {
        let (output, left_out) = check(
            (10, 25),
            ("a:i ts:t", "window_start:t window_end:t"),
            "+  1 00:00:20
             -2 2 00:00:04.5
             +  3 .
             -  4 -0.000001",
        );
        insta::assert_snapshot!(output, @r"
        + 1 00:00:20 00:00:00 00:00:25
        + 1 00:00:20 00:00:10 00:00:35
        + 1 00:00:20 00:00:20 00:00:45
        -2 2 00:00:04.5 -20 00:00:05
        -2 2 00:00:04.5 -10 00:00:15
        -2 2 00:00:04.5 00:00:00 00:00:25
        - 4 -0.000001 -20 00:00:05
        - 4 -0.000001 -10 00:00:15
        ");
        assert_eq!(left_out, 1);
    }

    #[test]
    fn a_date_is_its_midnight_and_windows_keep_the_time_type() {
        let (output, _) = check((86_400, 86_400), ("a:i d:D", "window_start:n window_end:n"), "+ 1 2\n+ 2 -1");
        insta::assert_snapshot!(output, @r"
        + 1 2 172800 259200
        + 2 -1 -86400 00:00:00
        ");
        let (output, _) = check((60, 60), ("a:i ts:n", "window_start:n window_end:n"), "+ 1 00:01:00");
        insta::assert_snapshot!(output, @"+ 1 00:01:00 00:01:00 00:02:00");
    }

    #[test]
    fn a_row_between_windows_is_not_counted() {
        let (output, left_out) =
            check((20, 10), ("a:i ts:t", "window_start:t window_end:t"), "+ 1 00:00:15\n+ 2 00:00:25");
        insta::assert_snapshot!(output, @"+ 2 00:00:25 00:00:20 00:00:30");
        assert_eq!(left_out, 0);
    }

    #[test]
    fn other_times_are_refused() {
        let window = Window::hop(1, 1, 0);
        let refused = AssignWindows::new(0, window, parse_schema("s n n")).err().unwrap();
        insta::assert_snapshot!(refused, @"a window over a time column of type Utf8 cannot be kept up to date");
    }
}
