//! Words that this code base once used for things that the field has a term for. ARCHITECTURE.md's glossary has the terms.

use super::source::{files, root};
use std::fs;

/// The word, and what to write in its place. A capital first letter is a type's name; others are found in any case.
const WORDS: &[(&str, &str)] = &[
    ("anew", "again, or a new one"),
    ("asker", "client"),
    ("base plane", "userspace datapath"),
    ("door", "listener"),
    ("errand", "forwarded query"),
    ("farewell", "leave message"),
    ("fast plane", "eBPF datapath"),
    ("fast_plane", "ebpf_datapath"),
    ("gate", "connection limiter"),
    ("glance", "check"),
    ("hands", "engine worker"),
    ("keeper", "reconciler"),
    ("lacking", "unavailable"),
    ("litter", "leftover files"),
    ("mended", "repaired"),
    ("newcomer", "joining node"),
    ("nobody", "no node, no client, no socket"),
    ("poke", "send a probe"),
    ("shall", "must, or the plain present"),
    ("skep_fast", "skep_ebpf"),
    ("strangers", "unauthenticated connections"),
    ("surroundings", "host devices"),
    ("tangled", "overlapping"),
    ("told", "sent, reported, notified"),
    ("toward", "to; translate"),
    ("whoever", "the node, client or caller that"),
    ("whom", "which"),
    ("Followed", "DesiredState"),
    ("Given", "Inputs"),
    ("Ground", "Dependencies"),
    ("Lead", "policy rule"),
    ("Lines", "Outboxes"),
    ("Pump", "SessionRelay"),
    ("Question", "Probe"),
    ("There", "AttachmentPoint"),
    ("Touched", "Dirty"),
    ("Way", "Verdict, path or reachability"),
];

/// Where an old name must stay.
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    ("src/settings.rs", "fast_plane", "the setting's name of 0.1: configuration files keep working"),
    ("src/cli/daemon.rs", "fast_plane", "as above, for the flag"),
    ("src/cli/daemon.rs", "skep_fast", "as above, for the variable"),
    ("ebpf/src/maps.rs", "gate", "the pinned name of a map"),
    ("src/datapath/ebpf/trace/classes.rs", "gate", "the pinned name of a map"),
    ("src/datapath/ebpf/vip_packets.rs", "gate", "the pinned name of a map"),
    ("tests/it/ebpf/growth.rs", "gate", "the pinned name of a map"),
    ("tests/bench/RESULTS.md", "gate", "the pinned name of a map"),
    ("tests/it/ebpf_lifecycle/damage.rs", "gate", "the pinned name of a map"),
    ("tests/bench/before/control.rs", "newcomer", "a function of the commit that it is built with"),
    ("tests/it/architecture/words.rs", "", "the list itself"),
];

#[test]
fn the_field_s_terms_are_used() {
    let mut found = Vec::new();
    let mut paths: Vec<_> = ["README.md", "ARCHITECTURE.md", "Makefile"].map(|name| root().join(name)).into();
    for (folder, extensions) in
        [("src", &["rs"][..]), ("ebpf/src", &["rs"]), ("tests", &["rs", "txt", "py", "md"]), ("config", &["toml"])]
    {
        paths.extend(files(&root().join(folder), extensions));
    }
    for path in paths {
        let name = path.strip_prefix(root()).unwrap().display().to_string();
        for (number, line) in fs::read_to_string(&path).unwrap().lines().enumerate() {
            for (word, instead) in WORDS {
                let excepted = EXCEPTIONS.iter().any(|(file, except, _)| name == *file && (except.is_empty() || except == word));
                if !excepted && has(line, word) {
                    found.push(format!("{name}:{}: `{word}`: write {instead}", number + 1));
                }
            }
        }
    }
    assert!(found.is_empty(), "\n{}\n{} places\n", found.join("\n"), found.len());
}

/// Whether the word stands in the line, not as a part of a longer word; a part of a snake_case name counts.
fn has(line: &str, word: &str) -> bool {
    let is_type = word.starts_with(char::is_uppercase);
    // A type's name stands in code; English sentences begin with capitals, too.
    let line = if is_type { line.split_once("//").map_or(line, |(code, _)| code).to_owned() } else { line.to_lowercase() };
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        let free = |c: Option<char>| !c.is_some_and(char::is_alphanumeric);
        free(before)
            && free(after)
            && !(is_type && (before == Some('"') || after == Some(' ') && before.is_some_and(|c| c == '"')))
    })
}

#[test]
fn words_are_found_in_names_and_not_in_other_words() {
    assert!(has("fn told_twice() {}", "told") && has("// Nobody asks.", "nobody") && has("let x: Way;", "Way"));
    assert!(!has("the gateway", "gate") && !has("// Way to go", "Way") && !has("Wayland", "Way"));
}
