//! A type name means one thing in all of `src`.

use super::source::{code, files, is_test_file, root};
use std::collections::BTreeMap;
use std::fs;

/// Files that mirror the names of somebody else's JSON.
const MIRRORS: &[(&str, &str)] = &[
    ("api/wire.rs", "Docker's API names the shapes of its objects"),
    ("overlay/driver/wire.rs", "Docker's plugin protocol names its calls"),
];
/// Names that are a pattern.
const PATTERNS: &[(&str, &str)] = &[
    ("Core", "a state machine without IO: `handle(now, Event) -> Vec<Effect>`"),
    ("Event", "what a core takes"),
    ("Effect", "what a core asks for"),
    ("Shell", "the loop around a core that carries its effects out"),
];

#[test]
fn a_type_name_means_one_thing() {
    let src = root().join("src");
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for file in files(&src, &["rs"]).into_iter().filter(|file| !is_test_file(file)) {
        let path = file.strip_prefix(&src).unwrap().display().to_string();
        if MIRRORS.iter().any(|(mirror, _)| path == *mirror) {
            continue;
        }
        for name in types(&code(&fs::read_to_string(&file).unwrap())) {
            places.entry(name).or_default().push(path.clone());
        }
    }
    let twice: Vec<String> = places
        .into_iter()
        .filter(|(name, places)| places.len() > 1 && !PATTERNS.iter().any(|(pattern, _)| name == pattern))
        .map(|(name, places)| format!("{name}: {}", places.join(", ")))
        .collect();
    assert!(twice.is_empty(), "type names with more than one meaning:\n{}\n", twice.join("\n"));
}

/// Types that a file defines.
fn types(code: &str) -> Vec<String> {
    let name = |line: &str| {
        let line = line.strip_prefix("pub").map_or(line, |rest| rest.trim_start_matches(|c| c != ' ').trim_start());
        let (kind, rest) = line.split_once(' ')?;
        let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len());
        ["struct", "enum", "trait", "type"].contains(&kind).then(|| rest[..end].to_owned())
    };
    code.lines().filter_map(name).collect()
}

#[test]
fn types_are_seen_with_any_visibility_and_associated_ones_are_not() {
    let code = "pub struct A<T>(T);\npub(super) enum B {\n    type No;\n}\ntrait C: D {}\ntype E = u8;\nfn struct_f() {}\n";
    assert_eq!(types(code), ["A", "B", "C", "E"]);
}
