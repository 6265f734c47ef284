//! Secrets and configs as posted, and what services name of them. The words are SwarmKit's.

use crate::api::error::{ApiError, Result};
use crate::model::container_spec::{ContainerSpec, FileTarget};
use crate::model::{ClusterConfig, ClusterSecret};
use crate::store::Store;
use std::collections::BTreeMap;

/// Longest name, in bytes.
const MAX_NAME: usize = 64;

/// Refuses a name of a secret or config.
///
/// # Errors
/// 400 with `InvalidArgument`.
pub fn payload_name(name: &str) -> Result<()> {
    let is_alphanumeric = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let is_valid = name.len() <= MAX_NAME
        && is_alphanumeric(name.chars().next())
        && is_alphanumeric(name.chars().next_back())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    if name.is_empty() {
        return Err(ApiError::invalid_argument("name must be provided"));
    }
    if is_valid {
        return Ok(());
    }
    Err(ApiError::invalid_argument(
        "invalid name, only 64 [a-zA-Z0-9-_.] characters allowed, and the start and end character must be [a-zA-Z0-9]",
    ))
}

/// Refuses a content that is empty or has `limit` bytes or more.
///
/// # Errors
/// 400 with `InvalidArgument`.
pub fn payload_size(kind: &str, content: &[u8], limit: usize) -> Result<()> {
    if (1..limit).contains(&content.len()) {
        return Ok(());
    }
    Err(ApiError::invalid_argument(format!("{kind} data must be larger than 0 and less than {limit} bytes")))
}

/// What a service names of a secret or config.
struct Reference<'a> {
    id: &'a str,
    name: &'a str,
    file: Option<&'a FileTarget>,
}

/// Refuses secrets and configs that a service names and that there are not, or that are named in a way that no node can carry
/// out.
///
/// # Errors
/// 400 with `InvalidArgument`.
pub fn payload_references(spec: &ContainerSpec, store: &Store) -> Result<()> {
    let secrets = spec.secrets.iter().map(|s| Reference { id: s.id.as_str(), name: &s.name, file: s.file.as_ref() });
    let configs = spec.configs.iter().map(|c| Reference { id: c.id.as_str(), name: &c.name, file: c.file.as_ref() });
    let (secrets, configs): (Vec<_>, Vec<_>) = (secrets.collect(), configs.collect());
    check_targets("secret", &secrets)?;
    check_targets("config", &configs)?;
    let secret = |id: &str| store.get::<ClusterSecret>(&id.into()).map(|secret| secret.spec.name.as_str());
    let config = |id: &str| store.get::<ClusterConfig>(&id.into()).map(|config| config.spec.name.as_str());
    check_presence("secret", &secrets, secret)?;
    check_presence("config", &configs, config)
}

fn check_targets(kind: &str, references: &[Reference<'_>]) -> Result<()> {
    let refuse = |what: String| Err(ApiError::invalid_argument(what));
    let mut targets: BTreeMap<&str, &str> = BTreeMap::new();
    for Reference { id, name, file } in references {
        if id.is_empty() || name.is_empty() {
            return refuse(format!("malformed {kind} reference"));
        }
        let Some(file) = file else { return refuse(format!("malformed {kind} reference, no target provided")) };
        if file.name.is_empty() {
            return refuse(format!("malformed file {kind} reference, invalid target file name provided"));
        }
        // The real server accepts these, and every task fails.
        for (what, number) in [("UID", &file.uid), ("GID", &file.gid)] {
            if !number.is_empty() && number.parse::<u32>().is_err() {
                return refuse(format!("malformed file {kind} reference, {what} '{number}' of '{name}' is no number"));
            }
        }
        if let Some(before) = targets.insert(&file.name, name) {
            return refuse(format!("{kind} references '{before}' and '{name}' have a conflicting target: '{}'", file.name));
        }
    }
    Ok(())
}

fn check_presence<'a>(kind: &str, references: &[Reference<'_>], stored: impl Fn(&str) -> Option<&'a str>) -> Result<()> {
    let missing: Vec<&str> = references.iter().filter(|r| stored(r.id) != Some(r.name)).map(|r| r.name).collect();
    match missing.as_slice() {
        [] => Ok(()),
        [one] => Err(ApiError::invalid_argument(format!("{kind} not found: {one}"))),
        many => Err(ApiError::invalid_argument(format!("{kind}s not found: {}", many.join(", ")))),
    }
}
