//! Tables of text.

use std::fmt::Write as _;

/// Columns as wide as their widest cell, two blanks apart.
pub(super) fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let mut width = [0; N];
    for row in rows {
        for (w, cell) in width.iter_mut().zip(row) {
            *w = (*w).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (w, cell) in width.iter().zip(row) {
            let _ = write!(line, "{cell:w$}  ");
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}
