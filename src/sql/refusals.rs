//! What Postgres, RisingWave or Flink know and Riverrun does not: each refused by name, with what works instead.

use super::SqlError;

fn refuse(what: impl Into<String>, hint: &str) -> SqlError {
    SqlError::unsupported(what, hint)
}

/// By a statement's first word in upper or lower case.
pub(super) fn statement(first: &str) -> Option<SqlError> {
    let word = first.to_ascii_uppercase();
    let hint = match word.as_str() {
        "TRUNCATE" => "use DELETE FROM without a WHERE clause",
        "GRANT" | "REVOKE" | "REASSIGN" | "SECURITY" => "there are no privileges: whoever connects may do everything",
        "VACUUM" | "ANALYZE" | "CLUSTER" | "REINDEX" | "CHECKPOINT" => "the engine looks after its storage by itself",
        "SAVEPOINT" | "RELEASE" => "a transaction is committed or rolled back as a whole",
        "REFRESH" => "a materialized view is always current",
        "MERGE" => "use INSERT ... ON CONFLICT, UPDATE and DELETE",
        "DO" | "CALL" => "there are no stored procedures",
        "LISTEN" | "UNLISTEN" | "NOTIFY" => "ask a materialized view for changes with SELECT",
        "LOCK" => "reads see one version of all views and never wait for writers",
        "MOVE" => "use FETCH",
        "USE" => "connect to the other database instead",
        "COMMENT" | "LOAD" | "IMPORT" => "",
        _ => return None,
    };
    Some(refuse(word, hint))
}

/// By the first words of an ALTER.
pub(super) fn alter(words: &[String]) -> SqlError {
    let what = match words.get(1..).unwrap_or_default() {
        [first, second] if first == "MATERIALIZED" => format!("ALTER {first} {second}"),
        [first, ..] => format!("ALTER {first}"),
        [] => "ALTER".to_string(),
    };
    refuse(what, "drop the object and create it again; of a source, ALTER SOURCE changes the bounds of its event time")
}

/// By the words behind CREATE or CREATE OR REPLACE in upper case.
pub(super) fn create(words: &[String]) -> Option<SqlError> {
    let first = words.first()?.as_str();
    let second = words.get(1).map_or("", String::as_str);
    let (what, hint) = match (first, second) {
        ("TEMP" | "TEMPORARY" | "GLOBAL" | "LOCAL" | "UNLOGGED", _) => {
            (first, "tables and views are kept until they are dropped")
        }
        ("RECURSIVE", _) => ("RECURSIVE VIEW", "write the query out without recursion"),
        ("UNIQUE", _) | ("INDEX", _) => ("INDEX", "filter a materialized view with WHERE: there is nothing to tune"),
        ("SINK", _) => ("SINK", "read a materialized view with SELECT"),
        ("FUNCTION" | "PROCEDURE" | "AGGREGATE", _) => (first, "use the functions that are built in"),
        ("TYPE" | "DOMAIN", _) => (first, "use the types that are built in"),
        ("SEQUENCE", _) => ("SEQUENCE", "take the values from the stream"),
        ("USER" | "ROLE" | "GROUP", _) => (first, "on loopback any user gets in without a password"),
        ("FOREIGN", _) => ("FOREIGN TABLE", "use CREATE SOURCE"),
        ("MATERIALIZED", "VIEW") => ("OR REPLACE MATERIALIZED VIEW", "DROP it first"),
        (
            "EXTENSION" | "TRIGGER" | "RULE" | "POLICY" | "SERVER" | "TABLESPACE" | "PUBLICATION" | "SUBSCRIPTION"
            | "COLLATION" | "OPERATOR" | "CAST" | "LANGUAGE" | "STATISTICS" | "CONNECTION" | "SECRET" | "EVENT"
            | "ACCESS" | "TEXT" | "CONVERSION" | "TRANSFORM",
            _,
        ) => (first, ""),
        _ => return None,
    };
    Some(refuse(format!("CREATE {what}"), hint))
}

/// By the words behind DROP in upper case.
pub(super) fn drop(words: &[String]) -> Option<SqlError> {
    let known = create(words).is_some() || words.first().is_some_and(|word| word == "OWNED");
    let first = words.first()?;
    known.then(|| {
        refuse(
            format!("DROP {first}"),
            "there are sources, tables, views, materialized views, schemas and databases to drop",
        )
    })
}

/// By the word behind a table's closing parenthesis.
pub(super) fn table_clause(words: &[String]) -> Option<SqlError> {
    let first = words.first()?.as_str();
    match first {
        "INHERITS" | "PARTITION" | "TABLESPACE" | "USING" | "ON" | "WITHOUT" => {
            Some(refuse(format!("{first} on a table"), ""))
        }
        "INCLUDE" | "FORMAT" | "ENGINE" => {
            Some(refuse(format!("{first} on a table"), "for records from outside use CREATE SOURCE"))
        }
        _ => None,
    }
}

/// By the words that begin an element of a table's parentheses.
pub(super) fn table_constraint(words: &[String]) -> Option<SqlError> {
    let first = words.first()?.as_str();
    let second = words.get(1).map_or("", String::as_str);
    match (first, second) {
        ("UNIQUE" | "CHECK" | "EXCLUDE", _) => {
            Some(refuse(format!("a {first} constraint"), "the constraints are NOT NULL and PRIMARY KEY"))
        }
        ("FOREIGN", "KEY") => Some(refuse("a FOREIGN KEY constraint", "the constraints are NOT NULL and PRIMARY KEY")),
        ("LIKE", _) => Some(refuse("LIKE in CREATE TABLE", "list the columns")),
        _ => None,
    }
}

/// By the word behind a column's type.
pub(super) fn column_clause(words: &[String]) -> Option<SqlError> {
    let first = words.first()?.as_str();
    match first {
        "UNIQUE" | "CHECK" | "REFERENCES" => {
            Some(refuse(format!("a {first} constraint"), "the constraints are NOT NULL and PRIMARY KEY"))
        }
        "GENERATED" | "AS" => Some(refuse("a generated column", "compute it in a view")),
        "COLLATE" => Some(refuse("COLLATE on a column", "text is compared by its bytes")),
        "COMPRESSION" | "STORAGE" | "COMMENT" | "DEFERRABLE" | "INITIALLY" => {
            Some(refuse(format!("{first} on a column"), ""))
        }
        _ => None,
    }
}
