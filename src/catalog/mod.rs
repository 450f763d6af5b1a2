//! Names → objects with stable OIDs.

mod object;

pub use object::*;
