//! Names of services and networks.

use crate::api::error::{ApiError, Code, Result};

/// Longest name, in bytes.
const MAX_NAME: usize = 63;

/// Refuses a name that cannot be part of a DNS name.
///
/// # Errors
/// 400 with `InvalidArgument`.
pub fn object_name(name: &str) -> Result<()> {
    let description = if name.is_empty() {
        "name must be provided"
    } else if !is_dns_component(name) {
        "name must be valid as a DNS name component"
    } else if name.len() > MAX_NAME {
        "name must be 63 characters or fewer"
    } else {
        return Ok(());
    };
    Err(ApiError::rpc(Code::InvalidArgument, description))
}

/// As [`object_name`], with the engine's own sentence for no name at all.
///
/// # Errors
/// 400.
pub fn network_name(name: &str) -> Result<()> {
    if name.trim().is_empty() {
        return Err(ApiError::bad("invalid name: name is empty"));
    }
    object_name(name)
}

/// `^[a-zA-Z0-9](?:[-_]*[A-Za-z0-9]+)*$`
fn is_dns_component(name: &str) -> bool {
    let alphanumeric = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    alphanumeric(name.chars().next())
        && alphanumeric(name.chars().next_back())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_refused_as_recorded() {
        for good in ["web", "a_b", "a--b", "9"] {
            assert!(object_name(good).is_ok(), "{good}");
        }
        for bad in ["bad name", "-x", "x-", "a.b", "ü"] {
            assert!(object_name(bad).unwrap_err().message.ends_with("name must be valid as a DNS name component"), "{bad}");
        }
        assert!(object_name(&"a".repeat(64)).unwrap_err().message.ends_with("name must be 63 characters or fewer"));
        assert_eq!(network_name("").unwrap_err().message, "invalid name: name is empty");
    }
}
