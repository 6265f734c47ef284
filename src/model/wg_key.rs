//! WireGuard public keys, and the challenge to the holder of the private one.

use serde::{Deserialize, Serialize};

/// A WireGuard public key; serialized as base64.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WgKey(pub [u8; 32]);

/// The key that takes the place of a node's key, once the other nodes know it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NextKey {
    pub key: WgKey,
    /// Every node that is up has it among its peers: the node may use it from now on.
    pub known: bool,
}

/// What a manager sends a joiner, to be answered with the private key of the joiner's tunnel.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct KeyChallenge {
    /// Public half of an X25519 key that the manager has drawn for this challenge alone.
    pub key: WgKey,
    pub nonce: [u8; 32],
}

impl WgKey {
    /// Base64, as `wg show` prints it.
    #[must_use]
    pub fn to_base64(self) -> String {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.encode(self.0)
    }
    /// Parses base64; `None` if it is no key.
    #[must_use]
    pub fn from_base64(text: &str) -> Option<Self> {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.decode(text.trim()).ok()?.try_into().ok().map(Self)
    }
}

impl std::fmt::Debug for WgKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.to_base64())
    }
}

impl Serialize for WgKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_base64())
    }
}

impl<'de> Deserialize<'de> for WgKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::from_base64(&text).ok_or_else(|| serde::de::Error::custom("not a WireGuard key"))
    }
}
