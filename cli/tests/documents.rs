//! Checks the documents at the root: their links lead somewhere, and the tests that they name exist.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

const DOCUMENTS: [&str; 5] =
    ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Everything between `start` and `end`, but not over lines.
fn between<'a>(text: &'a str, start: &'a str, end: char) -> impl Iterator<Item = &'a str> {
    text.lines()
        .flat_map(move |line| line.split(start).skip(1).filter_map(move |s| s.split_once(end)))
        .map(|(found, _)| found)
}

#[test]
fn every_link_leads_somewhere() {
    let mut broken = Vec::new();
    for document in DOCUMENTS {
        let text = fs::read_to_string(root().join(document)).unwrap();
        let links = between(&text, "](", ')').filter(|link| !link.contains("://"));
        // Pictures are not sources; a build without them is whole.
        let files = links
            .map(|link| link.split('#').next().unwrap())
            .filter(|link| !link.ends_with(".png"));
        broken.extend(
            files
                .filter(|file| !root().join(file).exists())
                .map(|file| format!("{document}: {file}")),
        );
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn every_test_that_holds_an_invariant_exists() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let section = text.split("\n## ").find(|section| section.starts_with("Invariants")).unwrap();
    let scenarios: String = fs::read_dir(root().join("tests/scenarios"))
        .unwrap()
        .map(|file| fs::read_to_string(file.unwrap().path()).unwrap())
        .collect();
    let is_row = |line: &&str| line.starts_with("| ") && !line.starts_with("| |");
    let rows: Vec<&str> = section.lines().filter(is_row).collect();
    assert_eq!(rows.len(), 11);
    let mut missing = Vec::new();
    for (at, row) in rows.into_iter().enumerate() {
        let (_, held_by) = row.trim_end_matches(" |").rsplit_once(" | ").unwrap();
        let named: Vec<&str> =
            held_by.split('`').skip(1).step_by(2).filter(|name| name.contains('_')).collect();
        assert!(!named.is_empty(), "invariant {} is held by no test", at + 1);
        let is_missing = |name: &&str| !scenarios.contains(&format!("fn {name}("));
        missing.extend(named.into_iter().filter(is_missing).map(str::to_owned));
    }
    assert!(missing.is_empty(), "{missing:#?}");
}
