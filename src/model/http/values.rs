//! Values of labels: flags, names of headers, users.

use super::route::BasicUser;
use std::collections::BTreeMap;

/// Headers that the proxy itself decides about.
const OWN_HEADERS: [&str; 6] = ["connection", "content-length", "transfer-encoding", "upgrade", "te", "trailer"];

pub(super) fn flag(value: &str) -> Option<bool> {
    match value {
        "true" => Some(true),
        "false" => Some(false),
        _ => None,
    }
}

/// A flag as Go reads one, and with it Traefik.
pub(super) fn go_flag(value: &str) -> Option<bool> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// A token of RFC 9110: the name of a header or cookie.
pub(super) fn is_token(text: &str) -> bool {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.len() <= 64 && text.bytes().all(is_token)
}

/// Adds a header that is set, or removed if its value is empty.
///
/// # Errors
/// What is wrong, for users.
pub(super) fn add_header<V: From<String>>(list: &mut BTreeMap<String, V>, name: &str, value: &str) -> Result<(), String> {
    let name = name.to_ascii_lowercase();
    if !is_token(&name) || OWN_HEADERS.contains(&name.as_str()) {
        return Err(format!("a header that can be set, which {name:?} is not"));
    }
    if name == "host" && value.is_empty() {
        return Err("a value: HTTP/1.1 has no request without a host".to_owned());
    }
    if !value.bytes().all(|byte| byte == b'\t' || (b' '..=b'~').contains(&byte)) {
        return Err("printable ASCII; empty to remove the header".to_owned());
    }
    list.insert(name, value.to_owned().into());
    Ok(())
}

/// Users as htpasswd writes them, separated by commas.
pub(super) fn users(text: &str) -> Result<Vec<BasicUser>, String> {
    let valid =
        "user:hash with a hash of `htpasswd -nB` (or the older one of `htpasswd -n`, $apr1$), several separated by commas";
    let user = |one: &str| {
        let (name, hash) = one.trim().split_once(':')?;
        // Compose files double each $.
        let hash = hash.replace("$$", "$");
        (!name.is_empty() && (is_bcrypt(&hash) || is_apr1(&hash))).then(|| BasicUser { name: name.to_owned(), hash: hash.into() })
    };
    text.split(',').map(user).collect::<Option<Vec<_>>>().ok_or_else(|| valid.to_owned())
}

/// `$apr1$`, a salt, and 22 characters.
fn is_apr1(hash: &str) -> bool {
    let is_text = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'/'));
    let parts = hash.strip_prefix("$apr1$").and_then(|rest| rest.split_once('$'));
    parts.is_some_and(|(salt, digest)| (1..=8).contains(&salt.len()) && digest.len() == 22 && is_text(salt) && is_text(digest))
}

/// `$2y$10$` and 53 characters.
fn is_bcrypt(hash: &str) -> bool {
    let is_known = ["$2a$", "$2b$", "$2y$"].iter().any(|kind| hash.starts_with(kind));
    let cost = hash.get(4..6).and_then(|cost| cost.parse::<u32>().ok());
    let tail = hash.get(7..).unwrap_or_default();
    let is_tail = tail.len() == 53 && tail.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'/'));
    // A cost of 14 takes a second of the processor for each new client.
    is_known && hash.as_bytes().get(6) == Some(&b'$') && cost.is_some_and(|cost| (4..=14).contains(&cost)) && is_tail
}
