//! Typed ids: 25 characters of base 36, as in Swarm; one type per kind, so that the compiler tells them apart.

use rand::Rng;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// Length of every cluster object's id, in characters.
pub const ID_LEN: usize = 25;
const ALPHABET: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

/// Text of a new random id. The generator is passed in, so that a seeded run makes the same ids.
pub fn draw(rng: &mut impl Rng) -> String {
    (0..ID_LEN).map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())])).collect()
}

/// Longest text that is kept without an allocation, in bytes: the store copies ids with every node of its maps.
const INLINE: usize = 30;

/// The text of an id.
#[derive(Clone)]
enum IdText {
    Inline(u8, [u8; INLINE]),
    /// Not drawn by skep.
    Long(Arc<str>),
}

impl IdText {
    fn as_str(&self) -> &str {
        match self {
            Self::Inline(len, bytes) => std::str::from_utf8(&bytes[..usize::from(*len)]).unwrap_or_default(),
            Self::Long(text) => text,
        }
    }
    fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Inline(len, bytes) => &bytes[..usize::from(*len)],
            Self::Long(text) => text.as_bytes(),
        }
    }
}

impl From<&str> for IdText {
    fn from(text: &str) -> Self {
        let mut bytes = [0; INLINE];
        match (bytes.get_mut(..text.len()), u8::try_from(text.len())) {
            (Some(start), Ok(len)) => {
                start.copy_from_slice(text.as_bytes());
                Self::Inline(len, bytes)
            }
            _ => Self::Long(text.into()),
        }
    }
}

impl Default for IdText {
    fn default() -> Self {
        Self::from("")
    }
}

impl PartialEq for IdText {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for IdText {}

impl PartialOrd for IdText {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for IdText {
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_bytes().cmp(other.as_bytes())
    }
}

impl Hash for IdText {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

impl Serialize for IdText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for IdText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self::from(text.as_str()))
    }
}

macro_rules! id {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(IdText);

        impl $name {
            /// A new random id.
            pub fn draw(rng: &mut impl Rng) -> Self {
                Self(IdText::from(draw(rng).as_str()))
            }
            pub fn as_str(&self) -> &str {
                self.0.as_str()
            }
            /// True for the empty id (not set).
            pub fn is_empty(&self) -> bool {
                self.0.as_bytes().is_empty()
            }
        }
        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(IdText::from(text))
            }
        }
        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(IdText::from(text.as_str()))
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
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
    /// A secret.
    SecretId,
    /// A config.
    ConfigId,
    /// A certificate by ACME: its first name.
    AcmeCertificateId,
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

    #[test]
    fn an_id_of_any_length_keeps_its_text_and_its_order() {
        let texts: Vec<String> =
            ["", "a", "é", "z", &"a".repeat(30), &"a".repeat(31), &"b".repeat(4000)].map(str::to_owned).into();
        for a in &texts {
            let id = TaskId::from(a.as_str());
            assert_eq!((id.as_str(), id.is_empty()), (a.as_str(), a.is_empty()));
            let json = serde_json::to_string(&id).expect("text");
            assert_eq!(json, serde_json::to_string(a).expect("text"));
            assert_eq!(serde_json::from_str::<TaskId>(&json).expect("text"), id);
            for b in &texts {
                assert_eq!(id.cmp(&TaskId::from(b.as_str())), a.cmp(b));
            }
        }
    }
}
