//! Typed ids: 25 characters of base 36, as in Swarm; one type per kind, so that the compiler tells them apart.

use rand::Rng;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Length of every cluster object's id, in characters.
pub const ID_LEN: usize = 25;
const ALPHABET: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

/// Text of a new random id. The generator is passed in, so that a seeded run makes the same ids.
pub fn draw(rng: &mut impl Rng) -> String {
    (0..ID_LEN).map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())])).collect()
}

macro_rules! id {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// A new random id.
            pub fn draw(rng: &mut impl Rng) -> Self {
                Self(draw(rng))
            }
            pub fn as_str(&self) -> &str {
                &self.0
            }
            /// True for the empty id (not set).
            pub fn is_empty(&self) -> bool {
                self.0.is_empty()
            }
        }
        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.to_owned())
            }
        }
        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(text)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )+};
}

id!(
    /// The cluster; the store has one cluster object.
    ClusterId,
    /// A node; drawn when its certificate is issued.
    NodeId,
    /// A service.
    ServiceId,
    /// A task. Never reused: a restarted task is a new task in the same slot.
    TaskId,
    /// An overlay network.
    NetworkId,
);

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn ids_have_25_characters_of_base_36_and_depend_on_the_seed() {
        let mut a = rand::rngs::StdRng::seed_from_u64(7);
        let mut b = rand::rngs::StdRng::seed_from_u64(7);
        let id = TaskId::draw(&mut a);
        assert_eq!(id, TaskId::draw(&mut b));
        assert_eq!(id.as_str().len(), ID_LEN);
        assert!(id.as_str().bytes().all(|c| ALPHABET.contains(&c)));
    }
}
