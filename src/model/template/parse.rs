//! From a text to its pieces.

/// Why a text cannot be expanded.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("template: expansion:{0}")]
pub struct TemplateError(pub(super) String);

/// A part of a template.
pub(super) enum Piece<'a> {
    Text(&'a str),
    Placeholder(Placeholder),
}

/// What stands between `{{` and `}}`.
pub(super) struct Placeholder {
    /// From 1.
    pub line: usize,
    /// Bytes before it in its line.
    pub column: usize,
    /// `None`: the value of the one operand.
    pub function: Option<String>,
    pub operands: Vec<Operand>,
}

pub(super) enum Operand {
    Text(String),
    /// Column, and the names without their dots.
    Field(usize, Vec<String>),
}

/// The pieces of a text, comments and trimmed white space left out.
pub(super) fn parse(text: &str) -> Result<Vec<Piece<'_>>, TemplateError> {
    let mut pieces = Vec::new();
    let (mut at, mut trims_next) = (0, false);
    while let Some(start) = text[at..].find("{{").map(|found| found + at) {
        let line = 1 + text[..start].matches('\n').count();
        let column = |at: usize| at - text[..at].rfind('\n').map_or(0, |newline| newline + 1);
        let inside = start + 2;
        let end = closing(&text[inside..]).ok_or_else(|| TemplateError(format!("{line}: unclosed action")))? + inside;
        let (mut body, mut body_at) = (&text[inside..end], inside);
        let trims_before = body.strip_prefix('-').is_some_and(|rest| rest.starts_with(char::is_whitespace));
        if trims_before {
            (body, body_at) = (&body[1..], body_at + 1);
        }
        push_text(&mut pieces, &text[at..start], trims_next, trims_before);
        trims_next = body.strip_suffix('-').is_some_and(|rest| rest.ends_with(char::is_whitespace));
        if trims_next {
            body = &body[..body.len() - 1];
        }
        if !(body.trim_start().starts_with("/*") && body.trim_end().ends_with("*/")) {
            pieces.push(Piece::Placeholder(placeholder(body, line, column(body_at))?));
        }
        at = end + 2;
    }
    push_text(&mut pieces, &text[at..], trims_next, false);
    Ok(pieces)
}

fn push_text<'a>(pieces: &mut Vec<Piece<'a>>, mut text: &'a str, trims_start: bool, trims_end: bool) {
    if trims_start {
        text = text.trim_start();
    }
    if trims_end {
        text = text.trim_end();
    }
    if !text.is_empty() {
        pieces.push(Piece::Text(text));
    }
}

/// Where the action ends: at `}}` outside of its strings.
fn closing(text: &str) -> Option<usize> {
    let (mut quote, mut escaped) = (None, false);
    for (at, c) in text.char_indices() {
        match quote {
            Some('"') if escaped => escaped = false,
            Some('"') if c == '\\' => escaped = true,
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if c == '"' || c == '`' => quote = Some(c),
            None if text[at..].starts_with("}}") => return Some(at),
            None => {}
        }
    }
    None
}

fn placeholder(body: &str, line: usize, column: usize) -> Result<Placeholder, TemplateError> {
    let error = |what: String| Err(TemplateError(format!("{line}: {what}")));
    let mut placeholder = Placeholder { line, column, function: None, operands: Vec::new() };
    let mut at = 0;
    while let Some(c) = body[at..].chars().next() {
        let rest = &body[at..];
        let end_of_word = |rest: &str| rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len());
        match c {
            _ if c.is_whitespace() => at += c.len_utf8(),
            '"' | '`' => {
                let Some((text, length)) = string(rest, c) else { return error("unterminated quoted string".to_owned()) };
                placeholder.operands.push(Operand::Text(text));
                at += length;
            }
            '.' => {
                let (from, mut names) = (at, Vec::new());
                while body[at..].starts_with('.') {
                    let length = end_of_word(&body[at + 1..]);
                    if length == 0 {
                        return error(format!("unexpected <{}> in operand", &body[from..=at]));
                    }
                    names.push(body[at + 1..at + 1 + length].to_owned());
                    at += 1 + length;
                }
                placeholder.operands.push(Operand::Field(column + from, names));
            }
            _ if c.is_alphabetic() => {
                let word = &rest[..end_of_word(rest)];
                if placeholder.function.is_some() || !placeholder.operands.is_empty() {
                    return error(format!(
                        "function {word:?} stands within a placeholder: skep takes one function, at its start"
                    ));
                }
                placeholder.function = Some(word.to_owned());
                at += word.len();
            }
            other => return error(format!("unexpected {:?} in operand", other.to_string())),
        }
    }
    if placeholder.function.is_none() && placeholder.operands.is_empty() {
        return error("missing value for command".to_owned());
    }
    Ok(placeholder)
}

/// A string of Go at the start of `text`, and its length in the text.
fn string(text: &str, quote: char) -> Option<(String, usize)> {
    let (mut out, mut chars) = (String::new(), text.char_indices().skip(1));
    while let Some((at, c)) = chars.next() {
        match c {
            _ if c == quote => return Some((out, at + 1)),
            '\\' if quote == '"' => match chars.next()?.1 {
                'n' => out.push('\n'),
                't' => out.push('\t'),
                other @ ('"' | '\\' | '\'') => out.push(other),
                _ => return None,
            },
            other => out.push(other),
        }
    }
    None
}
