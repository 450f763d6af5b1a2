//! ALTER SOURCE: a source's definition with other options.

use std::sync::Arc;

use chrono::DateTime;

use super::define::define;
use super::error::{PlanError, Refusal};
use crate::catalog::{Catalog, NameContext, OWNER, Object, PUBLIC};
use crate::sql::{self, AlterSource, Statement};

/// What ALTER SOURCE can change: the bounds of event time, which hold from an offset on. Any other option decides which
/// records there are, or which of them are dead, and what has been read so far would be wrong by it.
const CHANGEABLE: [&str; 4] = ["allowed_lateness", "idle_advance", "idle_timeout", "max_future"];

/// The source after SET (...) or RESET (...). Whether the values make sense is for others to say.
pub fn altered_source(object: &Object, change: &AlterSource, catalog: &Arc<Catalog>) -> Result<Object, PlanError> {
    let parsed = sql::parse(&object.sql).ok().and_then(|mut statements| statements.pop());
    let Some(Statement::CreateSource(mut create)) = parsed.map(|parsed| parsed.statement) else {
        return Err(PlanError::invalid(format!("the definition of \"{}\" is no CREATE SOURCE", object.name)));
    };
    match change {
        AlterSource::Set(options) => {
            for (name, value) in options {
                check(name)?;
                create.options.insert(name.clone(), value.clone());
            }
        }
        AlterSource::Reset(names) => {
            for name in names {
                check(name)?;
                create.options.remove(name);
            }
        }
        AlterSource::ResetTo(_) | AlterSource::ResetWatermark { .. } => {}
    }
    // The definition's text names what is not in public with its schema.
    let names = NameContext { search_path: vec![PUBLIC.into()], ..NameContext::new(object.database.clone(), OWNER) };
    let defined = define(&Statement::CreateSource(create), catalog, &names)?.object;
    Ok(Object { oid: object.oid, ..defined })
}

fn check(option: &str) -> Result<(), PlanError> {
    if CHANGEABLE.contains(&option) {
        return Ok(());
    }
    Err(PlanError::Unsupported(
        Refusal::new(format!("option {option} of a source cannot be changed")).hint(format!(
            "These can: {}. For another one drop the source and create it again.",
            CHANGEABLE.join(", ")
        )),
    ))
}

/// A timestamp's text as microseconds since the epoch; without a zone it is UTC.
pub fn timestamp_us(text: &str) -> Result<i64, PlanError> {
    let parsed = arrow::compute::kernels::cast_utils::string_to_datetime(&chrono::Utc, text);
    parsed.map(|time| time.timestamp_micros()).map_err(|_| {
        PlanError::Invalid(
            Refusal::new(format!("invalid input syntax for type timestamp: \"{text}\""))
                .hint("Write it as '2026-01-31 12:00:00'."),
        )
    })
}

/// Microseconds since the epoch as SQL shows a TIMESTAMPTZ in UTC.
pub fn timestamp_text(us: i64) -> String {
    match DateTime::from_timestamp_micros(us) {
        Some(time) => time.format("%Y-%m-%d %H:%M:%S%.f+00").to_string(),
        None => format!("{us} microseconds since the epoch"),
    }
}
