//! No text advises a step that loses the state of a swarm without saying when it does not.

use super::source::{files, root};
use std::fs;

const STEP: &str = "leave --force";
/// Said beside it: another manager has the state.
const CONDITION: &str = "if other managers are up";

/// Where the step loses nothing, by file and a part of the text.
const HARMLESS: &[(&str, &str, &str)] = &[
    ("src/node/certificate_authority.rs", "took the place of this one's", "the others have gone on with a new root"),
    ("src/node/greetings.rs", "keep one of the two", "the other one is kept"),
    ("src/node/session.rs", "no longer a member", "the managers have removed it"),
    ("src/protocol/certificate.rs", "no longer a member", "the managers have removed it"),
    ("src/node/control.rs", "this Docker Engine is itself part of a swarm", "another swarm: the engine's own"),
    ("src/doctor/engine.rs", "docker -H", "another swarm: the engine's own"),
];

#[test]
fn texts_that_advise_to_leave_say_when_nothing_is_lost() {
    let mut found = Vec::new();
    for path in files(&root().join("src"), &["rs"]) {
        let name = path.strip_prefix(root()).unwrap().display().to_string();
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap();
        let lines: Vec<&str> = code.lines().collect();
        for (at, line) in lines.iter().enumerate() {
            // A text may go on in the next line.
            let around = lines[at.saturating_sub(2)..=(at + 1).min(lines.len() - 1)].join(" ");
            let is_text = line.contains(STEP) && !line.trim_start().starts_with("//") && !name.ends_with("tests.rs");
            let harmless = HARMLESS.iter().any(|(file, part, _)| name == *file && around.contains(part));
            if is_text && !around.contains(CONDITION) && !harmless && !name.starts_with("src/cli") {
                found.push(format!("{name}:{}: {}", at + 1, line.trim()));
            }
        }
    }
    assert!(found.is_empty(), "\n{}\nadd \"{CONDITION}\", or a reason to the list", found.join("\n"));
}
