//! The ledger: round trip, and the errors of damaged files.

use super::ledger::Ledger;
use super::testing::{task, view};
use crate::model::{Payload, PayloadId, PullAuth, Task, TaskId};
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

fn ledger(name: &str) -> (std::path::PathBuf, Ledger) {
    let dir = std::env::temp_dir().join(format!("agent-ledger-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a directory");
    (dir.clone(), Ledger::new(dir.join("view.json")))
}

#[test]
fn a_stored_view_is_loaded() {
    let (dir, ledger) = ledger("round");
    assert!(ledger.load().expect("reads").is_none());
    let first = view(1, &[task("t1")], &[]);
    ledger.store(&first).expect("writes");
    let second = view(2, &[task("t1"), task("t2")], &[]);
    ledger.store(&second).expect("writes");
    assert_eq!(ledger.load().expect("reads").as_ref(), Some(&*second));
    let mode = std::fs::metadata(ledger.path()).expect("exists").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    std::fs::remove_dir_all(dir).expect("cleans");
}

#[test]
fn contents_of_secrets_are_not_written() {
    let (dir, ledger) = ledger("secrets");
    let mut view = view(1, &[task("t1")], &[]);
    let payload = Payload { data: "cGxhbnRlZA==".into(), templating: None };
    let tasks = &mut Arc::make_mut(&mut view).tasks;
    Arc::make_mut(tasks).payloads.insert(PayloadId::Secret("s".into()), Arc::new(payload));
    ledger.store(&view).expect("writes");
    let text = std::fs::read_to_string(ledger.path()).expect("reads");
    assert!(text.contains("t1") && !text.contains("cGxhbnRlZA"), "{text}");
    assert!(!format!("{view:?}").contains("cGxhbnRlZA"), "nor shown");
    assert!(ledger.load().expect("reads").expect("stored").tasks.payloads.is_empty());
    std::fs::remove_dir_all(dir).expect("cleans");
}

#[test]
fn registry_credentials_are_not_written_and_that_there_are_some_is() {
    let (dir, ledger) = ledger("credentials");
    let with = |id: &str, header: &str| Task { pull_auth: Some(PullAuth::new(header.to_owned())), ..task(id) };
    let view = view(1, &[task("open"), with("private", "cGxhbnRlZA==")], &[]);
    ledger.store(&view).expect("writes");
    let text = std::fs::read_to_string(ledger.path()).expect("reads");
    assert!(text.contains("private") && !text.contains("cGxhbnRlZA"), "{text}");
    let loaded = ledger.load().expect("reads").expect("stored");
    let auth = |id: &str| loaded.tasks.by_id[&TaskId::from(id)].pull_auth.clone();
    assert_eq!((auth("open"), auth("private").map(|auth| auth.is_withheld())), (None, Some(true)));
    assert!(view.tasks.by_id.values().any(|task| task.pull_auth.as_ref().is_some_and(|auth| !auth.is_withheld())), "in use");
    // A ledger of an earlier build has them.
    std::fs::write(ledger.path(), text.replace("\"pull_auth\":\"\"", "\"pull_auth\":\"cGxhbnRlZA==\"")).expect("written");
    let earlier = ledger.load().expect("reads").expect("stored");
    assert_eq!(earlier, *view);
    std::fs::remove_dir_all(dir).expect("cleans");
}

#[test]
fn the_error_of_a_damaged_or_newer_file_names_it_and_what_to_do() {
    let (dir, ledger) = ledger("bad");
    for (bytes, expected) in [
        (&b"{\"format\":1,\"view\":{"[..], "is damaged"),
        (b"", "is damaged"),
        (b"\0\0\0\0", "is damaged"),
        (b"{\"format\":1,\"view\":{}}", "is damaged"),
        (b"{\"format\":9,\"view\":null}", "has format 9"),
    ] {
        std::fs::write(ledger.path(), bytes).expect("writes");
        let error = format!("{:#}", ledger.load().expect_err("refused"));
        assert!(error.contains(expected) && error.contains("view.json") && error.contains("mv "), "{error}");
    }
    std::fs::remove_dir_all(dir).expect("cleans");
}
