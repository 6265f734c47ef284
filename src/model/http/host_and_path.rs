//! Hosts and path prefixes as labels have them.

use super::route::PrefixEnd;

/// A host in lower case, `*.` before it or `*` alone allowed.
pub(super) fn host(text: &str) -> Option<String> {
    let text = text.to_ascii_lowercase();
    if text == "*" {
        return Some(text);
    }
    let name = text.strip_prefix("*.").unwrap_or(&text);
    let is_label = |label: &str| {
        let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        (1..=63).contains(&label.len()) && label.bytes().all(inner) && !label.starts_with('-') && !label.ends_with('-')
    };
    (name.len() <= 253 && name.split('.').all(is_label)).then_some(text)
}

/// A path that segments of one with nothing percent-encoded are compared with, as they are when requests are looked up.
fn is_plain_path(text: &str) -> bool {
    is_path(text) && !text.contains('%')
}

/// A path, with percent-encoding too.
pub(super) fn is_path(text: &str) -> bool {
    let is_path = text.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#' | b'*' | b',' | b'"' | b'\\'));
    is_path && !text.contains("//") && text.split('/').all(|segment| !matches!(segment, "." | ".."))
}

/// A prefix of characters, and what follows it.
pub(super) fn characters(text: &str) -> Option<(String, PrefixEnd)> {
    let end = match text {
        "/" => PrefixEnd::Segment,
        _ if text.ends_with('/') => PrefixEnd::Slash,
        _ => PrefixEnd::Anything,
    };
    Some((path_prefix(text).filter(|_| text.starts_with('/'))?, end))
}

/// A prefix of whole segments: without a slash at its end.
pub(super) fn path_prefix(text: &str) -> Option<String> {
    let trimmed = text.trim_end_matches('/');
    is_plain_path(text).then(|| if trimmed.is_empty() { "/" } else { trimmed }.to_owned())
}
