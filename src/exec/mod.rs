//! Deltas in, deltas out. No I/O, no clock, no async: time and inputs are handed in, so the same inputs give the same
//! outputs.

pub mod delta;
pub mod horizon;
pub mod id_set;
pub mod law;

pub use delta::Delta;
