//! The arrows of the design point down: no room imports one above it, and each foreign library stays in
//! the rooms that are there to know it. Read from the sources, test modules left out.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Each room, and the rooms that it may look into; itself is always one of them.
const ROOMS: &[(&str, &[&str])] = &[
    ("job", &[]),
    ("pb", &[]),
    ("config", &["job"]),
    ("error", &["job"]),
    ("events", &["job"]),
    ("wire", &["job", "pb"]),
    ("store", &["job", "error", "wire"]),
    ("queue", &["store", "events", "error", "job", "config"]),
    ("executor", &["job", "config"]),
    ("worker", &["queue", "executor", "job", "error"]),
    ("maintenance", &["queue", "job"]),
    ("grpc", &["queue", "wire", "pb", "error", "job", "store"]),
    (
        "server",
        &[
            "grpc",
            "worker",
            "maintenance",
            "executor",
            "queue",
            "store",
            "events",
            "error",
            "wire",
            "pb",
            "config",
            "job",
        ],
    ),
    // Names of others, for whoever embeds us.
    ("embed", &["server", "executor", "client", "config", "job"]),
    ("client", &["pb"]),
    ("cli", &["client", "pb", "config", "server"]),
    ("main", &["cli"]),
    ("lib", &[]),
];

/// Parts of a room with arrows of their own: narrower or, with a reason, wider than the room's.
const PARTS: &[(&str, &[&str])] = &[
    ("cli/jobs", &["cli", "client", "pb"]),
    // It writes an input as the server reads it.
    ("client/request", &["wire", "job", "pb"]),
    // It runs handlers, as the server's own pool does.
    (
        "client/worker",
        &["client", "executor", "wire", "pb", "job"],
    ),
    // It measures parts of the server by themselves.
    (
        "cli/bench",
        &[
            "client", "pb", "config", "server", "executor", "queue", "store", "job",
        ],
    ),
    // It reads a duration as the configuration does.
    ("cli/health", &["cli", "pb", "config"]),
];

/// Foreign libraries, and the only places that may name them.
const LIBRARIES: &[(&str, &[&str])] = &[
    ("tonic", &["grpc", "server", "client", "pb", "cli"]),
    ("tonic_health", &["grpc", "server", "cli/health"]),
    ("tonic_reflection", &["grpc"]),
    ("tonic_types", &["grpc", "client"]),
    ("tonic_prost", &["pb"]),
    ("prost", &["pb", "wire", "grpc", "client", "cli"]),
    ("prost_types", &["pb", "wire", "grpc", "client", "cli"]),
    ("prost_reflect", &["pb", "cli"]),
    ("sqlx", &["store/sqlite"]),
    ("rusqlite", &["store/sqlite"]),
    // A module and not a library: the others know the store by its words and its trait.
    ("sqlite", &["store", "server", "cli/bench"]),
    ("clap", &["cli", "main"]),
    ("indicatif", &["cli"]),
    ("toml", &["config"]),
    (
        "tokio",
        &[
            "events",
            "store",
            "queue",
            "executor",
            "worker",
            "maintenance",
            "server",
            "client",
            "cli",
            "main",
        ],
    ),
];

/// What no line of these rooms may hold: they are pure.
const PURE: &[&str] = &["job", "wire", "error"];

/// A source file without comments, strings and test modules.
struct Source {
    path: String,
    text: String,
}

impl Source {
    fn new(path: impl Into<String>, text: &str) -> Self {
        Self {
            path: path.into(),
            text: code_of(text),
        }
    }

    /// The room: the first part of the path below `src`.
    fn room(&self) -> &str {
        let first = self.path.split('/').next().unwrap_or_default();
        first.strip_suffix(".rs").unwrap_or(first)
    }

    fn is_in(&self, place: &str) -> bool {
        let path = self.path.strip_suffix(".rs").unwrap_or(&self.path);
        path == place || path.starts_with(&format!("{place}/"))
    }

    fn may_look_into(&self) -> BTreeSet<&str> {
        let part = PARTS.iter().find(|(part, _)| self.is_in(part));
        let room = ROOMS.iter().find(|(room, _)| *room == self.room());
        let (_, allowed) = part
            .or(room)
            .unwrap_or_else(|| panic!("{} is in a room that this test does not know", self.path));
        allowed.iter().copied().chain([self.room()]).collect()
    }
}

/// Every arrow that points up, as a line of `file: what`.
fn faults(sources: &[Source]) -> String {
    let mut faults = String::new();
    for source in sources {
        let allowed = source.may_look_into();
        for room in rooms_named(&source.text) {
            if !allowed.contains(room.as_str()) {
                let _ = writeln!(faults, "{}: crate::{room}", source.path);
            }
        }
        for (library, places) in LIBRARIES {
            let named = names_library(&source.text, library);
            if named && !places.iter().any(|place| source.is_in(place)) {
                let _ = writeln!(faults, "{}: {library}", source.path);
            }
        }
        let is_async = source.text.contains("async ") || source.text.contains(".await");
        if is_async && PURE.contains(&source.room()) {
            let _ = writeln!(faults, "{}: async", source.path);
        }
    }
    faults
}

/// The rooms behind `crate::`, also of `crate::{a, b}` and of `super` chains, which rooms do not need.
fn rooms_named(text: &str) -> BTreeSet<String> {
    let mut rooms = BTreeSet::new();
    for (at, _) in text.match_indices("crate::") {
        let is_whole = !text[..at].ends_with(is_word);
        let rest = &text[at + "crate::".len()..];
        if !is_whole {
            continue;
        }
        match rest.strip_prefix('{') {
            Some(group) => rooms.extend(first_words_of_group(group)),
            None => rooms.extend(first_word(rest)),
        }
    }
    rooms
}

/// The first word of each entry of `a::b, c::{d, e}}…`, up to the brace that closes the group.
fn first_words_of_group(group: &str) -> Vec<String> {
    let (mut words, mut depth, mut entry) = (Vec::new(), 0, String::new());
    for c in group.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => words.extend(first_word(&std::mem::take(&mut entry))),
            _ => {}
        }
        if c != ',' || depth > 0 {
            entry.push(c);
        }
    }
    words.extend(first_word(&entry));
    words
}

fn first_word(text: &str) -> Option<String> {
    let word: String = text
        .trim_start()
        .chars()
        .take_while(|c| is_word(*c))
        .collect();
    (!word.is_empty()).then_some(word)
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn names_library(text: &str, library: &str) -> bool {
    text.match_indices(library).any(|(at, _)| {
        let before = &text[..at];
        let begins = !before.ends_with(is_word) && !before.ends_with("crate::");
        let rest = &text[at + library.len()..];
        // `use tonic;` and `use tonic as t;` would hide what follows.
        let used = before.ends_with("use ") && !rest.starts_with(is_word);
        begins && (rest.starts_with("::") || used)
    })
}

/// Drops comments, the insides of strings, and everything behind `#[cfg(test)]` before a `mod … {`.
fn code_of(text: &str) -> String {
    let text = match text.find("#[cfg(test)]\nmod tests {") {
        Some(tests) => &text[..tests],
        None => text,
    };
    let mut code = String::new();
    for line in text.lines() {
        let mut in_string = false;
        let mut before = ' ';
        let mut chars = line.chars().peekable();
        while let Some(c) = chars.next() {
            let is_quote = c == '"' && before != '\\' && before != '\'';
            if is_quote {
                in_string = !in_string;
            } else if !in_string {
                if c == '/' && chars.peek() == Some(&'/') {
                    break;
                }
                code.push(c);
            }
            before = if before == '\\' { ' ' } else { c };
        }
        code.push('\n');
    }
    code
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders: Vec<PathBuf> = vec![root.clone()];
    let mut sources = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder of sources") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().and_then(|name| name.to_str());
            let name = name.expect("a name").to_owned();
            // Test modules in files of their own may look wherever they like.
            let is_test = name == "tests" || name == "testing.rs" || name.ends_with("tests.rs");
            if is_test {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else if name.ends_with(".rs") {
                let below = path.strip_prefix(&root).expect("below src");
                let text = std::fs::read_to_string(&path).expect("a source");
                sources.push(Source::new(below.to_str().expect("a path"), &text));
            }
        }
    }
    sources
}

#[test]
fn no_arrow_points_up() {
    let sources = sources();
    assert!(sources.len() > 80, "only {} sources found", sources.len());
    let faults = faults(&sources);
    assert!(faults.is_empty(), "arrows that point up:\n{faults}");
}

#[test]
fn every_room_is_there_and_known() {
    let sources = sources();
    for (room, _) in ROOMS {
        assert!(sources.iter().any(|s| s.room() == *room), "no room {room}");
    }
    for source in &sources {
        source.may_look_into();
    }
}

/// Goal: this test itself can fail. Method: plant each kind of arrow that points up.
#[test]
fn a_planted_arrow_is_found() {
    for (path, text, fault) in [
        ("job/mod.rs", "use crate::store::View;", "crate::store"),
        (
            "job/apply.rs",
            "fn f() { crate::queue::f() }",
            "crate::queue",
        ),
        (
            "store/plan.rs",
            "use crate::{job, queue::JobQueue};",
            "crate::queue",
        ),
        (
            "store/plan.rs",
            "use crate::{\n  job::{A, B},\n  grpc,\n};",
            "crate::grpc",
        ),
        (
            "executor/mod.rs",
            "use crate::worker::Pool;",
            "crate::worker",
        ),
        ("client/mod.rs", "use crate::job::Job;", "crate::job"),
        (
            "cli/jobs/mod.rs",
            "use crate::server::Server;",
            "crate::server",
        ),
        ("queue/mod.rs", "use tonic::Status;", "tonic"),
        (
            "queue/read.rs",
            "fn f() -> ::prost::bytes::Bytes {}",
            "prost",
        ),
        ("store/mod.rs", "use sqlx::query;", "sqlx"),
        ("worker/mod.rs", "use sqlx as s;", "sqlx"),
        ("store/plan.rs", "use rusqlite::Connection;", "rusqlite"),
        (
            "grpc/mod.rs",
            "use crate::store::sqlite::SqliteStore;",
            "sqlite",
        ),
        ("job/time.rs", "use tokio::time::Instant;", "tokio"),
        ("job/mod.rs", "pub async fn f() {}", "async"),
    ] {
        let found = faults(&[Source::new(path, text)]);
        assert_eq!(found, format!("{path}: {fault}\n"), "{text}");
    }
    for (path, text) in [
        ("store/sqlite/write.rs", "use sqlx::query;"),
        (
            "job/mod.rs",
            "// use crate::queue;\nconst A: &str = \"crate::queue tokio::f\";",
        ),
        (
            "job/mod.rs",
            "#[cfg(test)]\nmod tests {\n    use crate::store::View;\n}",
        ),
        ("grpc/mod.rs", "use crate::store::View;\nuse tonic::Status;"),
        ("cli/serve.rs", "use crate::server::Server;"),
    ] {
        assert_eq!(faults(&[Source::new(path, text)]), "", "{path}: {text}");
    }
}
