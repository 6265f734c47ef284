//! `failure_modes/behaviour.tsv`: what skep does where a control plane is known to fail. One line a behaviour: what is right, the test that
//! fails without it, or `-` and the reason why there is none.

use crate::compatibility::exists;
use std::collections::BTreeSet;
use std::path::Path;

#[test]
fn each_behaviour_has_a_test_that_exists_or_a_reason() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("tests/it/failure_modes/behaviour.tsv")).unwrap();
    let (mut wrong, mut seen) = (Vec::new(), BTreeSet::new());
    for line in text.lines() {
        let is_right = match line.split('\t').collect::<Vec<_>>()[..] {
            [behaviour, test] => seen.insert(behaviour) && exists(root, test),
            [behaviour, "-", reason] => seen.insert(behaviour) && !reason.is_empty(),
            _ => false,
        };
        if !is_right {
            wrong.push(line);
        }
    }
    assert!(wrong.is_empty(), "no such test, no reason, or there twice:\n{}", wrong.join("\n"));
}
