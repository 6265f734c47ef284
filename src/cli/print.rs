//! What a verb prints while it runs.

use anyhow::Context as _;
use std::io::Write as _;

/// Flushed, so that a pipe shows each line when it comes. A reader that has gone is an end like others.
pub(super) fn print_line(line: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).context("cannot print")
}
