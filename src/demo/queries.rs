//! The SQL of `queries/`, loaded into an engine.

use super::DemoError;
use crate::catalog::NameContext;
use crate::engine::{Engine, EngineError};
use crate::planner;
use crate::sql::{self, Statement};

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        /// Every file of `queries/` with its text.
        pub const QUERIES: &[(&str, &str)] = &[$(($name, include_str!(concat!("../../queries/", $name)))),*];
    };
}

files![
    "ad_events.sql",
    "billing.sql",
    "by_country_device.sql",
    "ctr_per_ad.sql",
    "day_so_far.sql",
    "last_hour.sql",
    "minute_history.sql",
    "page_views.sql",
    "rollup.sql",
    "scoreboard.sql",
    "sessions.sql",
    "top_ads.sql",
    "unique_visitors.sql",
];

/// The broker that the files name.
const WRITTEN_BROKER: &str = "localhost:9092";
/// How long views keep windows: the demo's state is in memory.
const RETENTION: &str = "2 hours";

/// Runs every statement of the files, each when the objects it reads are there.
pub async fn load(engine: &Engine, names: &NameContext, servers: &str) -> Result<(), DemoError> {
    let mut pending = Vec::new();
    for &(file, text) in QUERIES {
        for parsed in sql::parse(text).map_err(|error| DemoError::Syntax { file, error })? {
            pending.push((file, adapted(parsed.statement, servers)));
        }
    }
    while !pending.is_empty() {
        let before = pending.len();
        let mut first_error = None;
        for (file, statement) in std::mem::take(&mut pending) {
            match planner::define(&statement, &engine.catalog(), names) {
                Ok(_) => {
                    let created = create(engine, names, &statement).await;
                    created.map_err(|error| DemoError::Create { file, error: Box::new(error) })?;
                }
                // It may read what a later statement makes.
                Err(error) => {
                    first_error.get_or_insert(DemoError::Plan { file, error });
                    pending.push((file, statement));
                }
            }
        }
        if let Some(error) = first_error.filter(|_| pending.len() == before) {
            return Err(error);
        }
    }
    Ok(())
}

/// The statement for the broker at hand.
fn adapted(mut statement: Statement, servers: &str) -> Statement {
    if let Statement::CreateSource(create) = &mut statement {
        for value in create.options.values_mut().filter(|value| *value == WRITTEN_BROKER) {
            *value = servers.to_string();
        }
    }
    statement
}

/// Creates the object; a materialized view with a retention, if it can have one.
async fn create(engine: &Engine, names: &NameContext, statement: &Statement) -> Result<(), EngineError> {
    if let Some(bounded) = with_retention(statement) {
        match engine.create(&bounded, names).await {
            Ok(_) => return Ok(()),
            Err(EngineError::Plan(_) | EngineError::Invalid { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    engine.create(statement, names).await.map(|_| ())
}

fn with_retention(statement: &Statement) -> Option<Statement> {
    let Statement::CreateMaterializedView(create) = statement else { return None };
    let mut create = create.clone();
    create.options.insert("retention".into(), RETENTION.into());
    Some(Statement::CreateMaterializedView(create))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn no_file_is_forgotten() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("queries");
        let entries = std::fs::read_dir(folder).expect("the folder is there");
        let mut files: Vec<String> = entries
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            .filter(|name| name.ends_with(".sql"))
            .collect();
        files.sort();
        assert_eq!(files, QUERIES.iter().map(|(name, _)| *name).collect::<Vec<_>>());
    }
}
