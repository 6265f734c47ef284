//! Names of services and networks.

use crate::api::error::{ApiError, Result};
use rand::Rng;
use rand::seq::IndexedRandom as _;

/// Longest name, in bytes.
const MAX_NAME: usize = 63;

/// Refuses a name that is not a valid DNS label.
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
    Err(ApiError::invalid_argument(description))
}

/// As [`object_name`], with the engine's message for an empty name.
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
    let is_alphanumeric = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    is_alphanumeric(name.chars().next())
        && is_alphanumeric(name.chars().next_back())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
}

const ADJECTIVES: [&str; 16] = [
    "brave", "calm", "clever", "eager", "gentle", "jolly", "keen", "lucid", "merry", "nimble", "patient", "quiet", "steady",
    "sunny", "vivid", "wise",
];
const ANIMALS: [&str; 16] = [
    "badger", "bee", "crane", "dolphin", "falcon", "gecko", "heron", "ibex", "lynx", "marten", "otter", "owl", "raven", "seal",
    "swift", "wren",
];

/// A name for a service that was posted without one: two words, with a number appended while the name is taken.
pub fn random_name<'a>(rng: &mut impl Rng, taken: impl Iterator<Item = &'a str>) -> String {
    let taken: std::collections::BTreeSet<&str> = taken.collect();
    let word = |rng: &mut _, words: &[&'static str]| words.choose(rng).copied().unwrap_or("nameless");
    let mut name = format!("{}_{}", word(rng, &ADJECTIVES), word(rng, &ANIMALS));
    while taken.contains(name.as_str()) {
        name = format!("{}_{}{}", word(rng, &ADJECTIVES), word(rng, &ANIMALS), rng.random_range(0..10_000));
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_names_are_valid_and_not_taken() {
        use rand::SeedableRng as _;
        let all: Vec<String> = ADJECTIVES.iter().flat_map(|h| ANIMALS.iter().map(move |w| format!("{h}_{w}"))).collect();
        let name = random_name(&mut rand::rngs::StdRng::seed_from_u64(1), all.iter().map(String::as_str));
        assert!(object_name(&name).is_ok() && !all.contains(&name), "{name}");
    }

    #[test]
    fn invalid_names_are_refused_as_recorded() {
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
