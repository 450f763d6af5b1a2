//! `connector = 'datagen'`: a log that is computed instead of stored.
//!
//! Row g of the source is a function of the seed and g; partition p of n holds the rows p, p + n, p + 2n, ..., each at the
//! offset that counts them. Row g comes into being at `datagen.start.timestamp.millis` + g / `datagen.rows.per.second`, and
//! that is the time in its timestamps. So the log reads the same however often, in whatever order and whenever it is read.
//! Values are JSON and pass the decoder like any other record.
//!
//! | option | meaning |
//! |---|---|
//! | `datagen.rows.per.second` | over all partitions, 1 to 10 000 000; default 10 |
//! | `datagen.rows.total` | the log ends after so many; default: it does not |
//! | `datagen.split.num` | partitions, 1 to 1 024; default 1 |
//! | `datagen.seed` | default 0 |
//! | `datagen.start.timestamp.millis` | the time of row 0; CREATE SOURCE adds its own time where it is left out |
//! | `fields.<column>.kind` | `random` (default), `sequence`, `zipf` |
//! | `fields.<column>.seed` | default: from `datagen.seed` and the column's name |
//!
//! | columns | kinds and options |
//! |---|---|
//! | SMALLINT, INT, BIGINT | random, zipf: `min` 0, `max` 1000; zipf also `exponent` 1.0, `min` being the most frequent; sequence: `start` 0, `end`, after which it begins again |
//! | REAL, DOUBLE, NUMERIC | random: `min` 0, `max` 1000; sequence: `start` 0, `end` |
//! | VARCHAR | random: `length` 10, or one of `values` 'a,b,c'; zipf: one of `values`, the first being the most frequent |
//! | BYTEA | random: `length` 10 |
//! | BOOLEAN | random |
//! | TIMESTAMP, TIMESTAMPTZ, DATE, TIME | random: the row's time less up to `max_past` '0s' (such as '90s', '2h 30min') |

mod field;
mod options;
mod reader;
#[cfg(test)]
mod tests;

pub use options::DatagenOptions;
pub use reader::{Metadata, Reader, Waker};
