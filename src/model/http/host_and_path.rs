//! Hosts and path prefixes as labels have them.

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

/// A prefix without a slash at its end.
pub(super) fn path_prefix(text: &str) -> Option<String> {
    let is_path = text.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#' | b'*' | b',' | b'"' | b'\\'));
    let is_plain = !text.contains("//") && text.split('/').all(|segment| !matches!(segment, "." | ".."));
    let trimmed = text.trim_end_matches('/');
    (is_path && is_plain).then(|| if trimmed.is_empty() { "/" } else { trimmed }.to_owned())
}
