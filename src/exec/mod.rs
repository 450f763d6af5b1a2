//! Deltas in, deltas out. No I/O, no clock, no async: time and inputs are handed in, so the same inputs give the same
//! outputs.

mod delta;

pub use delta::Delta;
