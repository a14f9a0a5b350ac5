//! Style, as a test: what a reviewer would otherwise have to say each time.

#![allow(clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

/// A file of ours: its path from the root, with `/`, and its text.
struct File {
    path: String,
    text: String,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Every file whose name ends so, without what others wrote or what was built.
fn files(ending: &str) -> Vec<File> {
    fn walk(dir: &Path, ending: &str, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_ours =
                !name.starts_with('.') && !["target", "node_modules"].contains(&name.as_str());
            if is_ours && entry.path().is_dir() {
                walk(&entry.path(), ending, found);
            } else if is_ours && name.ends_with(ending) {
                found.push(entry.path());
            }
        }
    }
    let mut found = Vec::new();
    walk(&root(), ending, &mut found);
    found.sort();
    let read = |path: PathBuf| File {
        path: path.strip_prefix(root()).unwrap().to_string_lossy().replace('\\', "/"),
        text: String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned(),
    };
    found.into_iter().map(read).collect()
}

/// Fails with the whole list: mistakes are found one after the other, but shown at once.
fn assert_none(rule: &str, offenders: Vec<String>) {
    assert!(offenders.is_empty(), "{rule}:\n  {}", offenders.join("\n  "));
}

/// Whether `text` uses the crate or module `name`, as `name::` or `use name`.
fn uses(text: &str, name: &str) -> bool {
    let path = format!("{name}::");
    let code = || text.lines().map(str::trim_start).filter(|line| !line.starts_with("//"));
    let is_word_before = |line: &str, at: usize| {
        line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':')
    };
    code().any(|line| {
        line == format!("use {name};")
            || line.match_indices(&path).any(|(at, _)| !is_word_before(line, at))
    })
}

#[test]
fn a_file_has_at_most_500_lines() {
    let long = files(".rs").into_iter().filter(|file| file.text.lines().count() > 500);
    let long = long.map(|file| format!("{}: {}", file.path, file.text.lines().count()));
    assert_none("a file with more than 500 lines does too much", long.collect());
}

#[test]
fn a_file_begins_by_saying_what_it_is_about() {
    let mute = files(".rs").into_iter().filter(|file| !file.text.starts_with("//! "));
    assert_none("a file begins with `//! `", mute.map(|file| file.path).collect());
}

#[test]
fn a_file_is_named_after_what_it_does() {
    const NOTHING_SAID: [&str; 10] = [
        "utils", "util", "common", "helpers", "helper", "misc", "manager", "managers", "types",
        "stuff",
    ];
    let stem = |path: &str| path.rsplit('/').next().unwrap().trim_end_matches(".rs").to_owned();
    let folder = |path: &str| path.rsplit('/').nth(1).unwrap_or_default().to_owned();
    let empty = files(".rs").into_iter().filter(|file| {
        [stem(&file.path), folder(&file.path)]
            .iter()
            .any(|name| NOTHING_SAID.contains(&name.as_str()))
    });
    assert_none("the name says nothing", empty.map(|file| file.path).collect());
}

#[test]
fn nothing_is_left_to_do_or_left_out() {
    // Put together here, so that this file does not find itself.
    let marks = [
        ["TO", "DO"],
        ["FIX", "ME"],
        ["XX", "X"],
        ["#[ign", "ore"],
        ["#[should_", "panic"],
        ["to", "do!("],
    ]
    .map(|parts| parts.concat());
    let mut found = Vec::new();
    for file in files(".rs") {
        for (at, line) in file.text.lines().enumerate() {
            if marks.iter().any(|mark| line.contains(mark.as_str())) {
                found.push(format!("{}:{}: {}", file.path, at + 1, line.trim()));
            }
        }
    }
    assert_none("do it now, or write it down where work is planned", found);
}

#[test]
fn no_path_of_somebodys_machine_is_anywhere() {
    let paths = [["/wo", "rk/"], ["/ho", "me/"], ["/ro", "ot/"], ["/Us", "ers/"]]
        .map(|parts| parts.concat());
    let mut found = Vec::new();
    for ending in [".rs", ".md", ".toml", ".sh", ".yml", ".yaml", ".json", ".js", ".html", ".lua"] {
        for file in files(ending) {
            for (at, line) in file.text.lines().enumerate() {
                let is_path = |path: &String| {
                    line.match_indices(path.as_str()).any(|(at, _)| {
                        !line[..at].ends_with(|c: char| c.is_alphanumeric() || ".-_}/".contains(c))
                    })
                };
                if paths.iter().any(is_path) {
                    found.push(format!("{}:{}: {}", file.path, at + 1, line.trim()));
                }
            }
        }
    }
    assert_none("works on one machine only", found);
}

/// `redis` only where the record is; `axum` only at the routes; the agent's side and the middle never
/// meet; the way down and the way up never meet.
#[test]
fn everything_is_imported_only_where_it_belongs() {
    let anywhere_but = |allowed: &'static [&'static str]| {
        move |path: &str| !allowed.iter().any(|start| path.starts_with(start))
    };
    let within = |folder: &'static str| move |path: &str| path.starts_with(folder);
    type Place = Box<dyn Fn(&str) -> bool>;
    let table: Vec<(&[&str], Place)> = vec![
        (&["redis", "deadpool_redis"], Box::new(anywhere_but(&["journal/", "tests/", "bench/"]))),
        (
            &["axum"],
            Box::new(anywhere_but(&[
                "relay/src/routes/",
                "relay/src/routes.rs",
                "relay/src/server.rs",
                "relay/src/agents/route.rs",
                "bench/",
            ])),
        ),
        // The handshake and the end of a WebSocket, and who reads and writes it.
        (
            &["tokio_tungstenite", "tungstenite"],
            Box::new(|path| {
                let transports = [
                    "relay/src/routes/upgrade.rs",
                    "relay/src/routes/websocket.rs",
                    "relay/src/agents/route.rs",
                    "relay/src/agents/socket.rs",
                ];
                path.starts_with("relay/src/")
                    && !transports.iter().any(|one| path.starts_with(one))
            }),
        ),
        // A conversation is a state machine: what it needs done, others do.
        (
            &["axum", "hyper", "hyper_util", "tokio::net", "tokio::sync", "futures_util"],
            Box::new(within("relay/src/conversation/")),
        ),
        (&["publisher_sdk"], Box::new(within("relay/src/"))),
        (&["relay"], Box::new(within("publisher-sdk/src/"))),
        (&["relay", "publisher_sdk", "journal", "tokio", "redis"], Box::new(within("protocol/"))),
        (&["relay", "publisher_sdk"], Box::new(within("journal/"))),
        (&["relay", "cli"], Box::new(within("tests/"))),
        (&["journal"], Box::new(within("tests/scenarios/"))),
        (
            &["crate::commands", "super::commands", "super::super::commands"],
            Box::new(within("relay/src/events/")),
        ),
        (
            &["crate::events", "super::events", "super::super::events"],
            Box::new(within("relay/src/commands/")),
        ),
    ];
    let mut found = Vec::new();
    for file in files(".rs").iter().filter(|file| file.path != "tests/tidy.rs") {
        for (names, is_forbidden) in
            table.iter().filter(|(_, is_forbidden)| is_forbidden(&file.path))
        {
            let _: &Place = is_forbidden;
            let used = names.iter().filter(|name| uses(&file.text, name));
            found.extend(used.map(|name| format!("{} uses {name}", file.path)));
        }
    }
    assert_none("imported where it does not belong", found);
}

/// The part of a file that is shipped: without its tests, which stand at its end or in files of their own.
fn shipped(file: &File) -> &str {
    if file.path.ends_with("/tests.rs") {
        return "";
    }
    file.text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default()
}

/// A task that nobody owns can die unseen, and outlive what it works for.
#[test]
fn every_task_of_a_replica_has_an_owner() {
    let relay = files(".rs").into_iter().filter(|file| file.path.starts_with("relay/src/"));
    let bare = relay.filter(|file| {
        let spawns = ["tokio::spawn(", "task::spawn(", "use tokio::spawn"];
        let is_owned = file.text.contains("AbortOnDropHandle::new(");
        !is_owned && spawns.iter().any(|spawn| shipped(file).contains(spawn))
    });
    let bare = bare.map(|file| file.path).collect();
    assert_none("a task is owned: by the supervisor, a `JoinSet` or an `AbortOnDropHandle`", bare);
}

/// What waits cannot be tested without what it waits for.
#[test]
fn a_conversation_waits_for_nothing() {
    let conversation =
        files(".rs").into_iter().filter(|file| file.path.starts_with("relay/src/conversation/"));
    let waits = conversation.filter(|file| shipped(file).contains(".await"));
    assert_none("a conversation does no I/O", waits.map(|file| file.path).collect());
}

/// The same, said by the manifests: what a crate does not depend on it cannot use. Its tests may.
#[test]
fn the_manifests_keep_the_layers_apart() {
    let depends = |krate: &str, on: &str| {
        let manifest = fs::read_to_string(root().join(krate).join("Cargo.toml")).unwrap();
        let shipped = manifest.split("[dev-dependencies]").next().unwrap();
        shipped.lines().any(|line| {
            line.split(['.', ' ', '=']).next() == Some(on) && !line.trim_start().starts_with('#')
        })
    };
    let forbidden = [
        ("protocol", &["journal", "publisher-sdk", "relay", "tokio", "redis"][..]),
        ("journal", &["publisher-sdk", "relay", "axum"]),
        ("publisher-sdk", &["relay", "redis", "deadpool-redis", "axum"]),
        ("relay", &["publisher-sdk", "redis", "deadpool-redis"]),
        ("demo", &["relay", "redis", "deadpool-redis"]),
        ("tests", &["relay", "cli"]),
    ];
    let mut found = Vec::new();
    for (krate, others) in forbidden {
        found.extend(
            others.iter().filter(|on| depends(krate, on)).map(|on| format!("{krate} on {on}")),
        );
    }
    assert_none("a crate depends on what it must not know", found);
}

/// What is fuzzed is replayed by the tests as well: target, corpus and property have one name.
#[test]
fn every_fuzz_target_has_a_corpus_that_a_test_replays() {
    let names = |folder: &str| -> Vec<String> {
        let entries = fs::read_dir(root().join("fuzz").join(folder)).unwrap();
        let name = |entry: fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
        let mut names: Vec<String> = entries.map(|entry| name(entry.unwrap())).collect();
        names.sort();
        names
    };
    let targets = names("fuzz_targets").into_iter().map(|name| name.replace(".rs", ""));
    let targets: Vec<String> = targets.collect();
    assert_eq!(targets, names("corpus"), "each target has a corpus, and each corpus a target");
    let manifest = fs::read_to_string(root().join("fuzz/Cargo.toml")).unwrap();
    let sources = files("properties.rs");
    let mut found = Vec::new();
    for target in &targets {
        let path = format!("fuzz/fuzz_targets/{target}.rs");
        let text = fs::read_to_string(root().join(&path)).unwrap();
        if !text.contains(&format!("::properties::{target}(")) {
            found.push(format!("{path} does not try the property `{target}`"));
        }
        if !manifest.contains(&format!("name = \"{target}\"")) {
            found.push(format!("fuzz/Cargo.toml does not name `{target}`"));
        }
        let replays = format!("replay(\"{target}\", ");
        if !sources.iter().any(|file| file.text.contains(&replays)) {
            found.push(format!("no test replays the corpus of `{target}`"));
        }
        if names(&format!("corpus/{target}")).len() > 100 {
            found.push(format!("the corpus of `{target}` has more than a hundred files"));
        }
    }
    assert_none("what is fuzzed is not replayed", found);
}

/// The rules above can find something.
#[test]
fn the_rules_would_find_what_they_forbid() {
    assert!(uses("use redis::Client;", "redis"));
    assert!(uses("let c = redis::Client::open(url);", "redis"));
    assert!(uses("use redis;", "redis"));
    assert!(!uses("// redis::Client", "redis"));
    assert!(!uses("use journal::redis::Keys;", "redis"));
    assert!(!uses("use crate::redis::Keys;", "redis"));
    assert!(!uses("use deadpool_redis::Pool;", "redis"));
    assert!(files(".rs").len() > 30);
}

/// A reader who meets a type knows which one it is: the top level of a crate has each name once.
#[test]
fn the_name_of_a_type_is_unique_in_its_crate() {
    let declared = |line: &str| {
        // What is indented is of a function or an implementation.
        let mut words = line.split(' ').peekable();
        words.next_if(|word| word.starts_with("pub"));
        let is_type =
            words.next().is_some_and(|word| ["struct", "enum", "trait", "type"].contains(&word));
        let name = words.next().filter(|_| is_type)?;
        Some(name.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_owned())
    };
    let mut places: std::collections::BTreeMap<(String, String), Vec<String>> = Default::default();
    for file in files(".rs") {
        let Some((krate, _)) = file.path.split_once("/src/") else { continue };
        // Each subcommand has its own options there.
        if krate == "bench" {
            continue;
        }
        for name in file.text.lines().filter_map(declared) {
            places.entry((krate.to_owned(), name)).or_default().push(file.path.clone());
        }
    }
    let twice = places.into_iter().filter(|(_, files)| files.len() > 1);
    let twice = twice.map(|((_, name), files)| format!("{name}: {}", files.join(", "))).collect();
    assert_none("a type's name is used twice in a crate", twice);
}
