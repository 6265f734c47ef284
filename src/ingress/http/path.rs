//! Hosts and paths as requests have them, in the form that routes are looked up by. Pure.

use std::borrow::Cow;

/// The host of a `Host` header or `:authority`, in lower case, without port and dot at its end; `None` if it is none.
pub fn host(text: &str) -> Option<String> {
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    let without_port = match text.strip_prefix('[') {
        // An IPv6 address: no route names one.
        Some(rest) => {
            let (address, port) = rest.split_once(']')?;
            Some(address).filter(|_| port.is_empty() || port.strip_prefix(':').is_some_and(is_port))?
        }
        None => text.rsplit_once(':').map_or(text, |(host, port)| if is_port(port) { host } else { text }),
    };
    let host = without_port.trim_end_matches('.');
    let is_valid = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':');
    (!host.is_empty() && host.len() <= 253 && host.bytes().all(is_valid)).then(|| host.to_ascii_lowercase())
}

/// A path with what is percent-encoded decoded, as tasks read it; `None` if it leads elsewhere than it looks (`..`, a backslash, a
/// slash or NUL that is encoded, an encoding that is none), so that no task reads another route out of it than the one it was looked up by. (For
/// slashes in a row and `.`, see [`merged`].)
pub fn path(text: &str) -> Option<Cow<'_, str>> {
    let bytes = text.as_bytes();
    if !text.contains("..") && !bytes.iter().any(|byte| matches!(byte, b'%' | b'\\')) {
        return Some(text.into());
    }
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] == b'%' {
            let byte = text.get(at + 1..at + 3).and_then(|digits| u8::from_str_radix(digits, 16).ok())?;
            if matches!(byte, b'/' | b'\\' | 0) {
                return None;
            }
            decoded.push(byte);
            at += 3;
        } else {
            decoded.push(bytes[at]);
            at += 1;
        }
    }
    let decoded = String::from_utf8_lossy(&decoded).into_owned();
    let is_plain = |segment: &str| without_parameters(segment) != ".." && !segment.contains('\\');
    decoded.split('/').all(is_plain).then_some(decoded.into())
}

/// A segment without the parameters that some servers allow in it and do not count as part of the path: `admin;v=1`.
fn without_parameters(segment: &str) -> &str {
    segment.split_once(';').map_or(segment, |(name, _)| name)
}

/// The path as servers that merge slashes and drop `.` and parameters of segments read it.
pub fn merged(path: &str) -> Cow<'_, str> {
    if path.starts_with('/') && !path.contains("//") && !path.contains("/.") && !path.contains(';') {
        return path.into();
    }
    let segments: Vec<&str> = path.split('/').map(without_parameters).filter(|segment| !matches!(*segment, "" | ".")).collect();
    let end = if path.ends_with('/') && !segments.is_empty() { "/" } else { "" };
    format!("/{}{end}", segments.join("/")).into()
}

/// The path and query without the prefix.
pub fn stripped(path_and_query: &str, prefix: &str) -> String {
    let rest = path_and_query.strip_prefix(prefix).unwrap_or(path_and_query);
    if rest.starts_with('/') { rest.to_owned() } else { format!("/{rest}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        for (text, expected) in [
            ("Shop.Example.com", Some("shop.example.com")),
            ("shop.example.com:8443", Some("shop.example.com")),
            ("shop.example.com.", Some("shop.example.com")),
            ("[2001:db8::1]:80", Some("2001:db8::1")),
            ("192.0.2.7:80", Some("192.0.2.7")),
            ("", None),
            (":80", None),
            ("a b", None),
            ("a/b", None),
            ("user@a.b", None),
            ("[::1", None),
            ("[::1]", Some("::1")),
            ("[::1]x", None),
            ("[::1]\";a=b", None),
            ("[::1]:8o", None),
            ("[[::1]", None),
        ] {
            assert_eq!(host(text).as_deref(), expected, "{text}");
        }
        assert_eq!(host(&"a".repeat(300)), None);
    }

    #[test]
    fn paths_lead_where_they_look() {
        for (text, expected) in [
            ("/", Some("/")),
            ("/%61pi/x%20y", Some("/api/x y")),
            ("/a/./b", Some("/a/./b")),
            ("/a..b", Some("/a..b")),
            ("/a/../b", None),
            ("/a/%2e%2E/b", None),
            ("/a%2fb", None),
            ("/a%5C..%5Cb", None),
            ("/a\\..\\b", None),
            ("/\\admin", None),
            ("/x/..;v/admin", None),
            ("/x;v/admin", Some("/x;v/admin")),
            ("/a%00", None),
            ("/a%", None),
            ("/a%zz", None),
            ("/%é", None),
        ] {
            assert_eq!(path(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn merged_paths() {
        for (text, expected) in [
            ("/", "/"),
            ("//", "/"),
            ("//admin", "/admin"),
            ("/./admin/", "/admin/"),
            ("/a//b/.", "/a/b"),
            ("/a/b", "/a/b"),
            ("/admin;v=1/x", "/admin/x"),
        ] {
            assert_eq!(merged(text), expected, "{text}");
        }
    }

    #[test]
    fn a_stripped_path_begins_with_a_slash() {
        for (text, expected) in [("/api/x?y", "/x?y"), ("/api", "/"), ("/api?y", "/?y"), ("/%61pi/x", "/%61pi/x")] {
            assert_eq!(stripped(text, "/api"), expected);
        }
    }
}
