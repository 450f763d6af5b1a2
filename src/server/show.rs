//! SHOW, DESCRIBE and SHOW CREATE: small tables of text.

use std::sync::Arc;

use super::error::PgError;
use super::pg_type::PgColumn;
use super::rows::{RowStream, RowsTag, texts};
use super::session::Session;
use super::settings::Settings;
use super::sqlstate as code;
use crate::catalog::{Catalog, Object, ObjectKind, format_type, pg_type_of, typmod_of};
use crate::planner::stream_plan::Micros;
use crate::sql::{Include, Name, ObjectType, ShowWhat, Statement};

const OBJECTS: [&str; 2] = ["schema", "name"];
const SOURCES: [&str; 3] = ["schema", "name", "connector"];
const NAMES: [&str; 1] = ["name"];
const CREATE: [&str; 2] = ["name", "create_sql"];
const JOBS: [&str; 9] =
    ["id", "kind", "schema", "name", "progress", "records_read", "records_to_read", "records_per_second", "time_left"];
const COLUMNS: [&str; 4] = ["column", "type", "nullable", "note"];
const SETTINGS: [&str; 3] = ["name", "setting", "description"];

/// The columns of such a statement; `None` for a statement without rows.
pub fn columns(statement: &Statement) -> Result<Option<Vec<PgColumn>>, PgError> {
    let of = |names: &[&str]| {
        let empty = names.iter().map(|name| texts([*name], &[]).schema().field(0).clone());
        Some(empty.map(|field| PgColumn::of(&field)).collect())
    };
    Ok(match statement {
        Statement::ShowObjects { what, .. } => match what {
            ShowWhat::Sources => of(&SOURCES),
            ShowWhat::Tables | ShowWhat::Views | ShowWhat::MaterializedViews => of(&OBJECTS),
            ShowWhat::Schemas | ShowWhat::Databases => of(&NAMES),
        },
        Statement::ShowCreate { .. } => of(&CREATE),
        Statement::ShowJobs => of(&JOBS),
        Statement::Describe { .. } => of(&COLUMNS),
        Statement::ShowSetting { name: None } => of(&SETTINGS),
        Statement::ShowSetting { name: Some(name) } => of(&[Settings::spelling(name)?]),
        Statement::Explain { .. } | Statement::ExplainView { .. } => of(&["QUERY PLAN"]),
        _ => None,
    })
}

impl Session {
    pub(super) fn show(&self, statement: &Statement) -> Result<RowStream, PgError> {
        match statement {
            Statement::ShowObjects { what, schema, like } => self.show_objects(*what, schema.as_ref(), like.as_deref()),
            Statement::ShowCreate { kind, name } => self.show_create(*kind, name),
            Statement::ShowJobs => Ok(self.show_jobs()),
            Statement::Describe { name } => self.show_columns(name),
            Statement::ShowSetting { name: None } => {
                let settings = self.settings();
                let rows: Vec<[Option<String>; 3]> = settings
                    .all()
                    .map(|(name, value, about)| [name, value, about].map(|s| Some(s.to_string())))
                    .collect();
                Ok(self.table(SETTINGS, rows))
            }
            Statement::ShowSetting { name: Some(name) } => {
                let value = self.settings().show(name)?.to_string();
                Ok(self.table([Settings::spelling(name)?], vec![[Some(value)]]))
            }
            _ => Err(PgError::new(code::INTERNAL_ERROR, "no SHOW statement")),
        }
    }

    fn table<const N: usize>(&self, names: [&str; N], rows: Vec<[Option<String>; N]>) -> RowStream {
        RowStream::of(texts(names, &rows), RowsTag::Bare("SHOW"), Arc::clone(self.interrupt()))
    }

    fn show_objects(&self, what: ShowWhat, schema: Option<&Name>, like: Option<&str>) -> Result<RowStream, PgError> {
        let catalog = self.catalog();
        let matches = |name: &str| like.is_none_or(|pattern| is_like(name, pattern));
        let namespaces = match what {
            ShowWhat::Databases => catalog.databases(),
            ShowWhat::Schemas => catalog.schemas(&self.names.database),
            _ => Vec::new(),
        };
        if matches!(what, ShowWhat::Databases | ShowWhat::Schemas) {
            let names = namespaces.into_iter().map(|namespace| namespace.name).filter(|name| matches(name));
            return Ok(self.table(NAMES, names.map(|name| [Some(name)]).collect()));
        }
        let schemas = self.schemas(&catalog, schema)?;
        let mut found: Vec<Arc<Object>> = catalog
            .objects(&self.names.database)
            .filter(|object| kind_shown(&object.kind) == what && schemas.contains(&object.schema))
            .filter(|object| matches(&object.name))
            .collect();
        found.sort_by(|a, b| (&a.schema, &a.name).cmp(&(&b.schema, &b.name)));
        if what == ShowWhat::Sources {
            let connector = |object: &Object| match &object.kind {
                ObjectKind::Source(source) => source.options.get("connector").cloned(),
                _ => None,
            };
            let rows = found.iter().map(|o| [Some(o.schema.clone()), Some(o.name.clone()), connector(o)]).collect();
            return Ok(self.table(SOURCES, rows));
        }
        Ok(self.table(OBJECTS, found.iter().map(|o| [Some(o.schema.clone()), Some(o.name.clone())]).collect()))
    }

    /// The schema named, else those of the search path.
    fn schemas(&self, catalog: &Catalog, named: Option<&Name>) -> Result<Vec<String>, PgError> {
        let names = self.name_context();
        let Some(name) = named else { return Ok(catalog.explicit_search_path(&names)) };
        let (database, schema) = catalog.schema_name(name, &names)?;
        if !catalog.schemas(&database).iter().any(|known| known.name == schema) {
            return Err(PgError::new(code::INVALID_SCHEMA_NAME, format!("schema \"{schema}\" does not exist")));
        }
        Ok(vec![schema])
    }

    fn resolve(&self, name: &Name) -> Result<Arc<Object>, PgError> {
        Ok(self.catalog().resolve(name, &self.name_context())?)
    }

    fn show_create(&self, kind: ObjectType, name: &Name) -> Result<RowStream, PgError> {
        let object = self.resolve(name)?;
        let is = object.kind.object_type();
        if is != kind {
            return Err(crate::catalog::CatalogError::WrongKind { name: object.name.clone(), wanted: kind, is }.into());
        }
        let full = format!("{}.{}", object.schema, object.name);
        Ok(self.table(CREATE, vec![[Some(full), Some(object.sql.clone())]]))
    }

    fn show_jobs(&self) -> RowStream {
        let stats = self.shared.engine.stats();
        let jobs = stats.jobs();
        let rows = jobs.iter().map(|job| {
            [
                Some(job.id.to_string()),
                Some(job.kind.to_string()),
                Some(job.schema.clone()),
                Some(job.name.clone()),
                Some(format!("{:.1}%", job.progress() * 100.0)),
                Some(job.read.to_string()),
                Some(job.to_read.to_string()),
                job.records_per_second.map(|rate| format!("{rate:.0}")),
                job.seconds_left.map(|seconds| Micros((seconds.ceil() as i64).saturating_mul(1_000_000)).to_string()),
            ]
        });
        self.table(JOBS, rows.collect())
    }

    fn show_columns(&self, name: &Name) -> Result<RowStream, PgError> {
        let object = self.resolve(name)?;
        let rows = object.columns.fields().iter().enumerate().map(|(i, field)| {
            let (required, note) = notes(&object.kind, i);
            [
                Some(field.name().clone()),
                Some(format_type(pg_type_of(field).oid, Some(typmod_of(field)))),
                Some(if required { "no" } else { "yes" }.to_string()),
                (!note.is_empty()).then(|| note.join(", ")),
            ]
        });
        Ok(self.table(COLUMNS, rows.collect()))
    }
}

fn kind_shown(kind: &ObjectKind) -> ShowWhat {
    match kind {
        ObjectKind::Source(_) => ShowWhat::Sources,
        ObjectKind::Table(_) => ShowWhat::Tables,
        ObjectKind::View { .. } => ShowWhat::Views,
        ObjectKind::MaterializedView(_) => ShowWhat::MaterializedViews,
    }
}

/// Whether a column may not be NULL, and what else its definition says of it.
fn notes(kind: &ObjectKind, column: usize) -> (bool, Vec<String>) {
    let mut note = Vec::new();
    let (required, watermark) = match kind {
        ObjectKind::Source(source) => {
            if let Some((_, include)) = source.includes.iter().find(|(i, _)| *i == column) {
                let what = match include {
                    Include::Partition => "partition",
                    Include::Offset => "offset",
                    Include::Timestamp => "timestamp",
                    Include::Key => "key",
                };
                note.push(format!("{what} of the record"));
            }
            (source.not_null.contains(&column), &source.watermark)
        }
        ObjectKind::Table(table) => {
            if table.primary_key.contains(&column) {
                note.push("primary key".into());
            }
            if let Some(default) = table.defaults.get(&column) {
                note.push(format!("default {default}"));
            }
            (table.not_null.contains(&column) || table.primary_key.contains(&column), &table.watermark)
        }
        ObjectKind::View { .. } | ObjectKind::MaterializedView(_) => (false, &None),
    };
    if let Some(watermark) = watermark.as_ref().filter(|watermark| watermark.column == column) {
        note.push(format!("watermark {} behind", Micros(watermark.delay_us)));
    }
    (required, note)
}

/// SQL's LIKE: `%` for any text, `_` for any character, a backslash before a character that stands for itself.
fn is_like(text: &str, pattern: &str) -> bool {
    let (text, pattern): (Vec<char>, Vec<char>) = (text.chars().collect(), pattern.chars().collect());
    let (mut t, mut p) = (0, 0);
    // Where to go back to: behind the last `%`, and the text tried there.
    let mut back: Option<(usize, usize)> = None;
    while t < text.len() {
        let step = match pattern.get(p) {
            Some('%') => {
                back = Some((p + 1, t));
                p += 1;
                continue;
            }
            Some('_') => Some(1),
            Some('\\') if pattern.get(p + 1) == Some(&text[t]) => Some(2),
            Some(c) if *c != '\\' && *c == text[t] => Some(1),
            _ => None,
        };
        match (step, &mut back) {
            (Some(step), _) => {
                p += step;
                t += 1;
            }
            (None, Some((after, tried))) => {
                *tried += 1;
                (p, t) = (*after, *tried);
            }
            (None, None) => return false,
        }
    }
    pattern[p..].iter().all(|c| *c == '%')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn like_patterns() {
        for (text, pattern, expected) in [
            ("ad_1m", "ad%", true),
            ("ad_1m", "%1_", true),
            ("ad_1m", "ad\\_1m", true),
            ("adx1m", "ad\\_1m", false),
            ("abcbc", "%bc", true),
            ("abc", "", false),
            ("", "%", true),
        ] {
            assert_eq!(is_like(text, pattern), expected, "{text} LIKE {pattern}");
        }
    }
}
