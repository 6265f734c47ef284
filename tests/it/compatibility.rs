//! `COMPATIBILITY.md` is made of `compatibility/features.tsv`: one line a feature of Docker Swarm, with its state, the test that
//! shows it, and what is missing. To write the file again after a change of the table, run with `SKEP_BLESS=1`.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

struct Feature<'a> {
    number: u32,
    state: &'a str,
    title: &'a str,
    /// `path::name` of a test; empty if there is none.
    test: &'a str,
    /// What is missing, unless it passes.
    note: &'a str,
}

fn features(text: &str) -> Vec<Feature<'_>> {
    text.lines()
        .map(|line| match line.split('\t').collect::<Vec<_>>()[..] {
            [number, state, title, test, note] => Feature { number: number.parse().unwrap(), state, title, test, note },
            _ => panic!("five fields are expected: {line:?}"),
        })
        .collect()
}

/// The table as a document.
fn document(features: &[Feature<'_>]) -> String {
    let mut counts = BTreeMap::new();
    for feature in features {
        *counts.entry(feature.state).or_insert(0) += 1;
    }
    let count = |state: &str| counts.get(state).copied().unwrap_or(0);
    let mut out = format!(
        "# Compatibility with Docker Swarm\n\nMade by `tests/it/compatibility.rs` of `tests/it/compatibility/features.tsv`; do not edit. \
         pass: the test named shows it. partial: it works as far as the note says, or has no test of its own. missing: refused with an \
         error that says so, or not there.\n\nRows 1 to 42 are what nearly everybody uses, to 99 what most do in production, to 140 what is regular but \
         not universal, to 155 what is special, from 156 on what only the older, stand-alone Swarm had.\n\n{} pass, {} partial, {} \
         missing.\n\n| # | feature | state | test | note |\n|---|---|---|---|---|\n",
        count("pass"),
        count("partial"),
        count("missing"),
    );
    for Feature { number, state, title, test, note } in features {
        let test = test.rsplit_once("::").map(|(path, name)| format!("`{name}` ({path})")).unwrap_or_default();
        writeln!(out, "| {number} | {title} | {state} | {test} | {note} |").unwrap();
    }
    out
}

#[test]
fn the_table_is_complete_its_tests_exist_and_the_document_is_made_of_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("tests/it/compatibility/features.tsv")).unwrap();
    let features = features(&text);
    let mut wrong = Vec::new();
    for (at, feature) in features.iter().enumerate() {
        if usize::try_from(feature.number).unwrap() != at + 1 {
            wrong.push(format!("{}: the numbers go up by one", feature.number));
        }
        let is_right = match feature.state {
            "pass" => !feature.test.is_empty() && feature.note.is_empty(),
            "partial" => !feature.note.is_empty(),
            "missing" => feature.test.is_empty() && !feature.note.is_empty(),
            _ => false,
        };
        if !is_right {
            wrong.push(format!("{}: {} with test {:?} and note {:?}", feature.number, feature.state, feature.test, feature.note));
        }
        if !feature.test.is_empty() && !exists(root, feature.test) {
            wrong.push(format!("{}: there is no test {}", feature.number, feature.test));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    let (file, document) = (root.join("COMPATIBILITY.md"), document(&features));
    if std::env::var_os("SKEP_BLESS").is_some() {
        std::fs::write(&file, &document).unwrap();
    }
    let written = std::fs::read_to_string(&file).unwrap_or_default();
    let differs = written.lines().zip(document.lines()).find(|(written, made)| written != made);
    assert!(
        written == document,
        "COMPATIBILITY.md is not made of the table: run this test with SKEP_BLESS=1; first: {differs:?}"
    );
}

/// Whether the file has a test of that name.
pub fn exists(root: &Path, test: &str) -> bool {
    let Some((path, name)) = test.rsplit_once("::") else { return false };
    let Ok(text) = std::fs::read_to_string(root.join(path)) else { return false };
    let Some(at) = text.find(&format!("fn {name}(")) else { return false };
    text[..at].lines().rev().take(4).any(|line| line.trim_start().starts_with("#[test]") || line.contains("#[tokio::test"))
}

/// `src/api/schema/effects_tests.rs` holds the fields themselves against the schemas.
#[test]
fn the_tests_that_show_the_fields_of_dockers_api_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("src/api/schema/fields.tsv")).unwrap();
    let proofs = text.lines().map(|line| line.rsplit_once('\t').unwrap()).filter(|(_, proof)| proof.contains("::"));
    let missing: Vec<_> = proofs.filter(|(_, proof)| !exists(root, proof)).collect();
    assert!(missing.is_empty(), "there are no such tests: {missing:#?}");
}

#[test]
fn a_test_that_is_gone_or_is_none_is_noticed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let this = "tests/it/compatibility.rs";
    assert!(exists(root, &format!("{this}::a_test_that_is_gone_or_is_none_is_noticed")));
    for other in ["exists", "nosuch"] {
        assert!(!exists(root, &format!("{this}::{other}")), "{other}");
    }
    assert!(!exists(root, "tests/it/nosuch.rs::exists"));
}
