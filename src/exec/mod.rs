//! Deltas in, deltas out. No I/O, no clock, no async: time and inputs are handed in, so the same inputs give the same
//! outputs.

pub mod arrangement;
pub mod bucket;
pub mod closed_slice;
pub mod dedup;
pub mod delta;
pub mod derive;
pub mod durable;
pub mod emitted_times;
mod error;
pub mod exchange;
pub mod expr;
pub mod feed;
pub mod flow;
pub mod hash;
pub mod horizon;
pub mod id_set;
pub mod keys;
pub mod law;
mod open_slice;
pub mod operator;
pub mod overflows;
pub mod panes;
pub mod panes_in_files;
pub mod regroup;
pub mod regroup_changes;
#[cfg(test)]
pub(crate) mod rough_transport;
pub mod rows;
pub mod saved_columns;
pub mod session_batch;
pub mod session_changes;
pub mod session_saves;
pub mod session_store;
#[cfg(test)]
mod session_tests;
pub mod slice_batch;
pub mod slice_cache;
pub mod slice_store;
pub mod state;
pub mod store_saved;
#[cfg(test)]
mod store_saved_tests;
pub mod store_snapshot;
pub mod table_state;
pub mod tail;
pub mod tail_saves;
#[cfg(test)]
mod tail_tests;
#[cfg(test)]
pub(crate) mod text;
pub mod unsaved;
pub mod window;
pub mod window_cursor;
pub mod window_view;

pub use delta::Delta;
pub use error::ExecError;
