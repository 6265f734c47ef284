//! The files of the page.

use std::path::Path;

/// Names come from users: what is shown is set as text, never as HTML; and no other site is asked.
#[test]
fn the_files_set_text_alone_and_name_no_other_site() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/dashboard/page");
    let mut count = 0;
    for file in std::fs::read_dir(dir).expect("the page").flatten() {
        let text = std::fs::read_to_string(file.path()).expect("text").replace("http://www.w3.org/2000/svg", "");
        for forbidden in [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "Function(",
            "style=\"",
            "http://",
            "https://",
            "javascript:",
        ] {
            assert!(!text.contains(forbidden), "{}: {forbidden}", file.path().display());
        }
        count += 1;
    }
    assert_eq!(count, 6);
}
