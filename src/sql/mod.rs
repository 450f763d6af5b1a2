//! Text → [`Statement`]. Knows no catalog.

mod ast;

pub use ast::*;
