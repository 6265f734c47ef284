//! The README's section "Unlike Docker Swarm, on purpose" is made of `differences/outcomes.tsv` (an outcome a line, and the tests that show
//! it) and of the lines of `api/words/*.txt` that are unlike the real swarm, by their reasons. To write it again, run with
//! `SKEP_BLESS=1`.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use crate::api::words::{Case, cases};
use crate::compatibility::exists;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

const BEGIN: &str = "<!-- Made by tests/it/differences.rs: SKEP_BLESS=1 cargo test --test it differences -->\n";
const END: &str = "<!-- end -->\n";
/// What stands for the reason of the line before.
const SAME: &str = "as above";

/// Cases with one reason, in the order of the tables.
struct Difference<'a> {
    reason: &'a str,
    first: (&'a str, &'a str, &'a str),
    more: usize,
}

/// The cases of tables that are unlike the real ones, by reason.
fn differences(tables: &[(String, String)]) -> Vec<Difference<'_>> {
    let mut all = Vec::<Difference<'_>>::new();
    for (_, table) in tables {
        // `as above` names the line before in the same table.
        let mut last = None;
        for Case { request, real, unlike, number } in cases(table) {
            let Some((ours, reason)) = unlike else { continue };
            let reason = reason.trim();
            let at = match reason {
                SAME => last.unwrap_or_else(|| panic!("line {number}: nothing is above")),
                _ => all.iter().position(|known| known.reason == reason).unwrap_or(all.len()),
            };
            match all.get_mut(at) {
                Some(known) => known.more += 1,
                None => all.push(Difference { reason, first: (request, real, ours.trim()), more: 0 }),
            }
            last = Some(at);
        }
    }
    all
}

/// A text as code in a table of Markdown.
fn code(text: &str) -> String {
    let short: String = text.chars().take(100).collect();
    let end = if short.len() < text.len() { "…" } else { "" };
    format!("`{}{end}`", short.replace('`', "'").replace('|', "\\|"))
}

fn section(outcomes: &[(&str, &str)], differences: &[Difference<'_>]) -> String {
    let mut out = String::new();
    for (outcome, _) in outcomes {
        writeln!(out, "- {outcome}").unwrap();
    }
    writeln!(
        out,
        "\nOf requests and texts, with the first case of each reason ([all of them](tests/it/api/words), the lines with `~>`):\n"
    )
    .unwrap();
    writeln!(out, "| why | first case | Docker Swarm | skep |\n|---|---|---|---|").unwrap();
    for Difference { reason, first: (request, real, ours), more } in differences {
        let more = if *more == 0 { String::new() } else { format!(" (and {more} more)") };
        writeln!(out, "| {reason}{more} | {} | {} | {} |", code(request), code(real), code(ours)).unwrap();
    }
    out
}

#[test]
fn the_readme_names_what_is_unlike_docker_swarm_as_the_tests_show_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("tests/it/differences/outcomes.tsv")).unwrap();
    let outcomes: Vec<(&str, &str)> = text.lines().map(|line| line.split_once('\t').unwrap()).collect();
    let missing: Vec<&str> =
        outcomes.iter().flat_map(|(_, tests)| tests.split('\t')).filter(|test| !exists(root, test)).collect();
    assert!(missing.is_empty(), "there are no tests {missing:?}");
    let files: BTreeSet<_> =
        std::fs::read_dir(root.join("tests/it/api/words")).unwrap().map(|file| file.unwrap().path()).collect();
    let tables: Vec<(String, String)> =
        files.iter().map(|file| (file.display().to_string(), std::fs::read_to_string(file).unwrap())).collect();
    let made = section(&outcomes, &differences(&tables));
    let file = root.join("README.md");
    let readme = std::fs::read_to_string(&file).unwrap();
    let (before, rest) = readme.split_once(BEGIN).expect("the README has the section");
    let (written, after) = rest.split_once(END).expect("and its end");
    if std::env::var_os("SKEP_BLESS").is_some() {
        std::fs::write(&file, [before, BEGIN, &made, END, after].concat()).unwrap();
        return;
    }
    let differs = written.lines().zip(made.lines()).find(|(written, made)| written != made);
    assert!(
        written == made,
        "the README's section is not made of the tables: run this test with SKEP_BLESS=1; first: {differs:?}"
    );
}

#[test]
fn reasons_are_named_once_and_as_above_is_the_one_before() {
    let table = "a => 1 ~> 2 # because\nb => 1\nc => 1 ~> 3 # as above\nd => 1 ~> 4 # otherwise\ne => 1 ~> 5 # because\n";
    let tables = [("t".to_owned(), table.to_owned())];
    let found = differences(&tables);
    let shown: Vec<_> = found.iter().map(|d| (d.reason, d.first, d.more)).collect();
    assert_eq!(shown, [("because", ("a", "1", "2"), 2), ("otherwise", ("d", "1", "4"), 0)]);
}
