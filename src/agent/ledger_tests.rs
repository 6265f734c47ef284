//! The ledger: what goes in comes out, and what is broken says so.

use super::ledger::Ledger;
use super::testing::{task, view};
use std::os::unix::fs::PermissionsExt as _;

fn ledger(name: &str) -> (std::path::PathBuf, Ledger) {
    let dir = std::env::temp_dir().join(format!("agent-ledger-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a directory");
    (dir.clone(), Ledger::new(dir.join("view.json")))
}

#[test]
fn what_goes_in_comes_out() {
    let (dir, ledger) = ledger("round");
    assert!(ledger.load().expect("reads").is_none());
    let first = view(1, &[task("t1")], &[]);
    ledger.store(&first).expect("writes");
    let second = view(2, &[task("t1"), task("t2")], &[]);
    ledger.store(&second).expect("writes");
    assert_eq!(ledger.load().expect("reads").as_ref(), Some(&*second));
    let mode = std::fs::metadata(ledger.path()).expect("is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    ledger.clear().expect("clears");
    ledger.clear().expect("clears twice");
    assert!(ledger.load().expect("reads").is_none());
    std::fs::remove_dir_all(dir).expect("cleans");
}

#[test]
fn a_damaged_or_newer_file_is_named_with_what_to_do() {
    let (dir, ledger) = ledger("bad");
    for (bytes, words) in [
        (&b"{\"format\":1,\"view\":{"[..], "is damaged"),
        (b"", "is damaged"),
        (b"\0\0\0\0", "is damaged"),
        (b"{\"format\":1,\"view\":{}}", "is damaged"),
        (b"{\"format\":9,\"view\":null}", "has format 9"),
    ] {
        std::fs::write(ledger.path(), bytes).expect("writes");
        let error = format!("{:#}", ledger.load().expect_err("refused"));
        assert!(error.contains(words) && error.contains("view.json") && error.contains("mv "), "{error}");
    }
    std::fs::remove_dir_all(dir).expect("cleans");
}
