//! Loops of the daemon run under a supervisor: a panic of one that is spawned bare vanishes, and what it did is done no more,
//! without a word. What is spawned in `node` elsewhere is named here with the reason why it is no loop.

use super::source::{code, files, is_test_file, root};
use std::fs;

/// File, part of the line, reason.
const NO_LOOPS: &[(&str, &str, &str)] = &[
    ("supervisor.rs", "self.tasks.spawn(", "the supervisor itself"),
    ("control.rs", "let made = tokio::spawn(", "a request that goes on without its client, which is answered with its panic"),
    ("control.rs", "daemon.unlock(key)", "a request that goes on without its client, which is answered with its panic"),
    ("network.rs", "mesh.answers(", "one probe, whose result is ignored"),
    ("manager_part.rs", "PreparedManager::open(", "opens one log; its panic is returned to what waits for it"),
];

#[test]
fn loops_of_the_node_are_supervised() {
    let node = root().join("src/node");
    let (mut wrong, mut found) = (Vec::new(), vec![false; NO_LOOPS.len()]);
    for file in files(&node, &["rs"]).into_iter().filter(|file| !is_test_file(file)) {
        let path = file.strip_prefix(&node).unwrap().display().to_string();
        for (number, line) in code(&fs::read_to_string(&file).unwrap()).lines().enumerate() {
            if !spawns(line) {
                continue;
            }
            match NO_LOOPS.iter().position(|(of, part, _)| *of == path && line.contains(part)) {
                Some(known) => found[known] = true,
                None => wrong.push(format!("node/{path}:{}: {}: use Supervisor::keep or once", number + 1, line.trim())),
            }
        }
    }
    let unused = NO_LOOPS.iter().zip(found).filter(|(_, found)| !found);
    wrong.extend(unused.map(|((path, part, _), _)| format!("node/{path}: nothing with `{part}` is spawned")));
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

/// Whether the line spawns something on the runtime.
fn spawns(line: &str) -> bool {
    [".spawn(", "::spawn(", "spawn_local("].iter().any(|call| line.contains(call))
}

#[test]
fn the_check_sees_what_is_spawned() {
    for line in ["tasks.spawn(links.run());", "drop(tokio::spawn(async move {", "    set.spawn(one)"] {
        assert!(spawns(line), "{line}");
    }
    for line in ["tokio::task::spawn_blocking(work)", "supervisor.keep(\"\", run)"] {
        assert!(!spawns(line), "{line}");
    }
}
