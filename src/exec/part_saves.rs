//! What a part of the state is loaded from.

use super::ExecError;
use super::durable::{Buckets, Saved};

/// What one owner has saved of its share of a part, in the order in which it was saved. The last that is whole counts, and those
/// behind it.
#[derive(Debug, Clone)]
pub struct PartSaves {
    /// The buckets whose keys it held.
    pub buckets: Buckets,
    pub saves: Vec<Saved>,
}

impl PartSaves {
    /// Of what has one owner.
    pub fn all(saves: Vec<Saved>) -> Self {
        PartSaves { buckets: 0..=u8::MAX, saves }
    }

    pub fn since_whole(&self) -> Result<&[Saved], ExecError> {
        since_whole(&self.saves)
    }

    /// Counts belong to no key. Of several owners that load this share, one goes on with them.
    pub fn gives_counts_to(&self, owner: &Buckets) -> bool {
        owner.contains(self.buckets.start())
    }
}

/// The last save that is whole, and those behind it. Fails if there is none.
pub fn since_whole(saves: &[Saved]) -> Result<&[Saved], ExecError> {
    let whole = saves.iter().rposition(|saved| saved.whole);
    whole.map(|at| &saves[at..]).ok_or_else(|| wrong("there is no whole one to begin with"))
}

/// The sections of a part are known by name: an unknown one is of another version.
pub fn only_sections(saved: &Saved, names: &[&str]) -> Result<(), ExecError> {
    match saved.sections.iter().find(|section| !names.contains(&section.name.as_str())) {
        Some(section) => Err(wrong(format!("there is a section {} besides {}", section.name, names.join(", ")))),
        None => Ok(()),
    }
}

pub fn wrong(what: impl Into<String>) -> ExecError {
    ExecError::Saved { what: what.into() }
}
