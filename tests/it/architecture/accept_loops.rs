//! Loops that accept connections. While the process is out of file descriptors `accept` fails at once, again and again: a loop must neither
//! end with that nor spin. `accept::accept_each` is right; the others are named here with the reason why they are not that one.

use super::source::{code, files, is_test_file, root};
use std::collections::BTreeSet;
use std::fs;

const OWN_LOOPS: &[(&str, &str)] = &[
    ("accept.rs", "the loop itself"),
    ("dns/server.rs", "takes back the connections that have ended before each one"),
    ("ingress/userspace/listener.rs", "lets one client wait before the next is accepted; a client that has gone needs no pause"),
    ("ingress/http/listeners.rs", "is stopped by a value, and tells the stop to what it has accepted"),
    ("dashboard/server.rs", "accepts only while there is room"),
    ("datapath/tunnel/process.rs", "waits for requests and signals too"),
];

#[test]
fn a_loop_that_accepts_outlives_a_lack_of_descriptors() {
    let src = root().join("src");
    let (mut wrong, mut found) = (Vec::new(), BTreeSet::new());
    for file in files(&src, &["rs"]).into_iter().filter(|file| !is_test_file(file)) {
        let path = file.strip_prefix(&src).unwrap().display().to_string();
        let text = code(&fs::read_to_string(&file).unwrap());
        if !text.contains(".accept()") {
            continue;
        }
        if !OWN_LOOPS.iter().any(|(own, _)| path == *own) {
            wrong.push(format!("{path}: use accept::accept_each, or say here why not"));
        } else if !text.contains("sleep(") {
            wrong.push(format!("{path}: no pause after a failure"));
        }
        if text.contains("while let Ok") && text.split("while let Ok").skip(1).any(|rest| first_line(rest).contains(".accept()"))
        {
            wrong.push(format!("{path}: ends with the first failure"));
        }
        found.insert(path);
    }
    wrong.extend(OWN_LOOPS.iter().filter(|(own, _)| !found.contains(*own)).map(|(own, _)| format!("{own}: accepts nothing")));
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}
