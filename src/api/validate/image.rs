//! The grammar of image references: `[host[:port]/]path[:tag][@digest]`.

/// Whether the text is a valid reference, at most as long as name, tag and digest can be.
pub fn is_reference(text: &str) -> bool {
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (text, None),
    };
    // A colon before the last slash belongs to a port.
    let (name, tag) = match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (rest, None),
    };
    text.len() <= 255 + 1 + 128 + 80 && is_name(name) && tag.is_none_or(is_tag) && digest.is_none_or(is_digest)
}

fn is_name(name: &str) -> bool {
    let path = match name.split_once('/') {
        Some((host, path)) if is_host(host) => path,
        _ => name,
    };
    name.len() <= 255 && path.split('/').all(is_path_component)
}

/// A first component is a host if it looks like one: a dot, a port, `localhost`, or capitals.
fn is_host(text: &str) -> bool {
    let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
    let looks_like_host =
        port.is_some() || host.contains('.') || host == "localhost" || host.bytes().any(|b| b.is_ascii_uppercase());
    let is_valid = host.split('.').all(|label| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    });
    looks_like_host && is_valid && port.is_none_or(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()))
}

/// Lower-case letters and digits, with `.`, `_`, `__` or dashes between them.
fn is_path_component(text: &str) -> bool {
    let is_alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    let separators_fit =
        bytes.split(is_alphanumeric).all(|s| matches!(s, b"" | b"." | b"_" | b"__") || s.iter().all(|b| *b == b'-'));
    bytes.first().is_some_and(is_alphanumeric) && bytes.last().is_some_and(is_alphanumeric) && separators_fit
}

fn is_tag(text: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    text.len() <= 128 && text.bytes().next().is_some_and(is_word) && text.bytes().all(|b| is_word(b) || b == b'.' || b == b'-')
}

fn is_digest(text: &str) -> bool {
    text.split_once(':').is_some_and(|(algorithm, hex)| {
        !algorithm.is_empty()
            && algorithm.bytes().all(|b| b.is_ascii_alphanumeric() || b"+._-".contains(&b))
            && hex.len() >= 32
            && hex.bytes().all(|b| b.is_ascii_hexdigit())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_follow_the_grammar() {
        let digest = format!("lab@sha256:{}", "0".repeat(64));
        for good in ["lab:1", "lab", "registry.example:5000/app:2", "a/b/c", "localhost/x", "my__app", "a---b:v1.0-rc_1", &digest]
        {
            assert!(is_reference(good), "{good}");
        }
        for bad in ["Bad Image", "", "Lab", "lab:", "lab:-x", "/lab", "lab/", "a//b", "-lab", "a..b", "lab@sha256:12", "a b"] {
            assert!(!is_reference(bad), "{bad}");
        }
    }
}
