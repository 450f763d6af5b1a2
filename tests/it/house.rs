//! The rules of the house, read off the files: which room may use which, where a heavy crate may be named, what `exec` must
//! not know, and how long a file may grow.

use std::fs;
use std::path::{Path, PathBuf};

/// A room and the rooms it may use besides itself. `planner::stream_plan` is plain data and counts by itself.
const ROOMS: &[(&str, &[&str])] = &[
    ("sql", &[]),
    ("catalog", &["sql"]),
    ("planner", &["sql", "catalog", "planner::stream_plan"]),
    ("exec", &["planner::stream_plan"]),
    ("connector", &["exec"]),
    ("storage", &["exec"]),
    ("engine", &["sql", "catalog", "planner", "planner::stream_plan", "exec", "connector", "storage"]),
    ("server", &["sql", "catalog", "planner", "planner::stream_plan", "exec", "engine"]),
    ("demo", &["sql", "catalog", "planner", "connector", "engine", "server"]),
];

/// A crate and the paths under `src` that may name it.
const CRATES: &[(&str, &[&str])] = &[
    ("rdkafka", &["connector/"]),
    ("rdkafka_sys", &["connector/"]),
    ("pgwire", &["server/wire.rs", "server/wire/"]),
    ("sqlparser", &["sql/", "planner/", "catalog/", "server/"]),
    ("object_store", &["storage/"]),
    ("clap", &["main.rs", "bin/", "demo/", "demo.rs"]),
];

/// `exec` is a function of its inputs: no clock, no I/O, no threads, no async.
const NOT_IN_EXEC: &[&str] = &[
    "std::time",
    "std::fs",
    "std::net",
    "std::io",
    "std::thread",
    "std::env",
    "tokio",
    "async fn",
    "futures::",
    "rand::rng(",
    "rand::random",
];

const MAX_LINES: usize = 900;

#[test]
fn rooms_depend_one_way() {
    check(|file| {
        let room = file.room()?;
        let allowed = ROOMS.iter().find(|(name, _)| *name == room)?.1;
        let wrong = file.code().flat_map(|(line, text)| uses(text).into_iter().map(move |used| (line, used)));
        let wrong = wrong.filter(|(_, used)| {
            let is_room = ROOMS.iter().any(|(name, _)| used == name) || used == "planner::stream_plan";
            let own = used == room || used.split("::").next() == Some(room);
            is_room && !own && !allowed.contains(&used.as_str())
        });
        Some(wrong.map(|(line, used)| (line, format!("{room} uses {used}"))).collect())
    });
}

#[test]
fn heavy_crates_stay_in_their_rooms() {
    check(|file| {
        let foreign: Vec<&str> = CRATES
            .iter()
            .filter(|(_, homes)| !homes.iter().any(|home| file.path.starts_with(home)))
            .map(|(name, _)| *name)
            .collect();
        let named = |text: &str, name: &str| {
            text.match_indices(name).any(|(at, _)| {
                let before = text[..at].chars().next_back();
                let after = &text[at + name.len()..];
                !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') && after.starts_with("::")
            })
        };
        let wrong = file.code().flat_map(|(line, text)| {
            foreign.iter().filter(move |name| named(text, name)).map(move |name| (line, format!("names {name}")))
        });
        Some(wrong.collect())
    });
}

#[test]
fn exec_knows_no_clock_no_io_and_no_async() {
    check(|file| {
        // Tests may try what several readers do at once.
        (file.room()? == "exec" && !file.path.ends_with("_tests.rs")).then_some(())?;
        let wrong = file.code().flat_map(|(line, text)| {
            NOT_IN_EXEC.iter().filter(move |word| text.contains(**word)).map(move |word| (line, format!("uses {word}")))
        });
        Some(wrong.collect())
    });
}

#[test]
fn files_stay_short_and_finished() {
    check(|file| {
        let mut wrong = Vec::new();
        let lines = file.text.lines().count();
        if lines > MAX_LINES {
            wrong.push((lines, format!("{lines} lines; {MAX_LINES} are the most")));
        }
        for (line, text) in file.code() {
            for word in ["todo!(", "unimplemented!(", "dbg!("] {
                if text.contains(word) {
                    wrong.push((line, format!("{word}) left in")));
                }
            }
        }
        Some(wrong)
    });
}

#[test]
fn the_reader_of_uses_sees_every_form() {
    let forms = "use crate::sql::Name; use crate::{catalog::Oid, exec::{Delta, law}, planner}; x: crate::engine::Engine,
        use crate::planner::stream_plan::Op; use crate::planner::{define, stream_plan::{Node, Op}}; $crate::sql::x; mycrate::sql";
    assert_eq!(
        uses(forms),
        [
            "sql",
            "catalog",
            "exec",
            "planner",
            "engine",
            "planner::stream_plan",
            "planner",
            "planner::stream_plan",
            "sql"
        ]
    );
}

struct File {
    /// Under `src`.
    path: String,
    text: String,
}

impl File {
    fn room(&self) -> Option<&str> {
        self.path.split_once('/').map(|(room, _)| room)
    }

    /// Lines with their numbers, comments left out; a `use` over several lines is given as one.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let mut at = 0;
        std::iter::from_fn(move || {
            while at < self.text.len() {
                let start = at;
                let rest = &self.text[at..];
                let is_use = rest.trim_start().starts_with("use ") || rest.trim_start().starts_with("pub use ");
                let from = if is_use { rest.find(';').unwrap_or(0) } else { 0 };
                let end = rest[from..].find('\n').map(|i| from + i + 1);
                at += end.unwrap_or(rest.len());
                let text = &self.text[start..at];
                if !text.trim_start().starts_with("//") {
                    return Some((self.text[..start].matches('\n').count() + 1, text));
                }
            }
            None
        })
    }
}

/// Runs a rule over every file under `src` and fails with all lines that break it.
fn check(rule: impl Fn(&File) -> Option<Vec<(usize, String)>>) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    collect(&root, &mut paths);
    assert!(paths.len() > 10, "the files under {} are found", root.display());
    let mut broken = Vec::new();
    for path in paths {
        let text = fs::read_to_string(&path).expect("a source file is text");
        let path = path.strip_prefix(&root).expect("it lies under src").to_string_lossy().replace('\\', "/");
        let file = File { path, text };
        for (line, what) in rule(&file).unwrap_or_default() {
            broken.push(format!("src/{}:{line}: {what}", file.path));
        }
    }
    broken.sort();
    assert!(broken.is_empty(), "\n{}\n", broken.join("\n"));
}

fn collect(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder of sources").map(|entry| entry.expect("an entry").path()) {
        if entry.is_dir() {
            collect(&entry, into);
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            into.push(entry);
        }
    }
}

/// What code names behind `crate::`, by room: `crate::{a::b, c}` names `a` and `c`. `planner::stream_plan` counts by itself.
fn uses(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, prefix) in text.match_indices("crate::") {
        if text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            continue;
        }
        for path in branches(&text[at + prefix.len()..]) {
            let mut segments = path.split("::");
            let room = segments.next().unwrap_or_default().to_string();
            if room != "planner" {
                found.push(room);
                continue;
            }
            let inner = branches(path.strip_prefix("planner").and_then(|p| p.strip_prefix("::")).unwrap_or_default());
            let rest = inner.iter().any(|p| !p.starts_with("stream_plan")) || inner.is_empty();
            found.extend(rest.then(|| room.clone()));
            found.extend(inner.iter().any(|p| p.starts_with("stream_plan")).then(|| format!("{room}::stream_plan")));
        }
    }
    found
}

/// The paths of `{a::b, c::{d, e}}` or of a single path, one level deep.
fn branches(text: &str) -> Vec<&str> {
    let Some(inner) = text.strip_prefix('{') else {
        let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')).unwrap_or(text.len());
        // A brace that follows belongs to the path: `planner::{a, b}`.
        let braces = text[end..].starts_with('{') && text[..end].ends_with("::");
        let end = if braces { end + closing_brace(&text[end..]) } else { end };
        return if end == 0 { Vec::new() } else { vec![&text[..end]] };
    };
    let (mut depth, mut start, mut paths) = (0, 0, Vec::new());
    for (i, c) in inner.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                paths.push(inner[start..i].trim());
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                paths.push(inner[start..i].trim());
                start = i + 1;
            }
            _ => {}
        }
    }
    paths.retain(|path| !path.is_empty());
    paths
}

/// Length of `{...}` with its braces.
fn closing_brace(text: &str) -> usize {
    let mut depth = 0;
    for (i, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return i + 1;
        }
    }
    text.len()
}
