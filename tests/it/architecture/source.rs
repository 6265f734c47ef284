//! Rust files as text: without comments, literals and test modules, so that a line of code is what it seems.

use std::fs;
use std::path::{Path, PathBuf};

/// The root of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below `folder` with one of these extensions, sorted.
pub fn files(folder: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, extensions));
        } else if path.extension().is_some_and(|e| extensions.contains(&e.to_str().unwrap())) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Whether a file of `src` holds nothing but tests.
pub fn is_test_file(path: &Path) -> bool {
    path.file_stem().and_then(|stem| stem.to_str()).is_some_and(|stem| stem == "tests" || stem.ends_with("_tests"))
}

/// The text without comments and literals and without an inline test module at the end; lines keep their numbers.
pub fn code(text: &str) -> String {
    let end = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    text[..end].lines().map(|line| without_literals(line) + "\n").collect()
}

/// The line without its comment and without what stands in quotes.
pub fn without_literals(line: &str) -> String {
    let code = line.split_once("//").map_or(line, |(code, _)| code);
    code.split('"').step_by(2).collect::<Vec<_>>().join("\"\"")
}

/// The paths that one tree of a `use` names: `a::{b, c::{self, D}}` gives `a::b`, `a::c`, `a::c::D`. Aliases are dropped.
pub fn expand(tree: &str) -> Vec<String> {
    let tree = tree.trim();
    let Some((prefix, rest)) = tree.split_once('{') else {
        let path = tree.split(" as ").next().unwrap_or_default().trim();
        return vec![path.strip_suffix("::self").unwrap_or(path).to_owned()];
    };
    let inner = &rest[..rest.rfind('}').unwrap_or(rest.len())];
    let (mut depth, mut start, mut parts) = (0, 0, Vec::new());
    for (at, c) in inner.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&inner[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&inner[start..]);
    let nested = parts.into_iter().filter(|part| !part.trim().is_empty()).flat_map(expand);
    nested.map(|path| if path == "self" { prefix.trim_end_matches("::").to_owned() } else { format!("{prefix}{path}") }).collect()
}

#[test]
fn a_use_tree_is_expanded() {
    assert_eq!(expand("a::{b, c::{self, D as E}}"), ["a::b", "a::c", "a::c::D"]);
    assert_eq!(expand("super::x::Y"), ["super::x::Y"]);
}
