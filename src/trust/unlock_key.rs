//! Unlock keys: `SWMKEY-1-<base64>`, Swarm's format. What a locked manager keeps on disk is opened with it.

use crate::model::Secret;
use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use rand::Rng;
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::str::FromStr;

const PREFIX: &str = "SWMKEY-1-";
/// Begins what the tag is made of.
const TAG: &[u8] = b"skep-unlock-key-tag/1\0";

/// The text is not an unlock key. Swarm's words.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("invalid key string")]
pub struct InvalidUnlockKey;

/// A key that other keys are wrapped with: 32 random bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct UnlockKey(Secret<[u8; 32]>);

impl UnlockKey {
    /// `rng` must be cryptographically secure.
    pub fn draw(rng: &mut impl Rng) -> Self {
        Self(Secret::new(rng.random()))
    }

    /// `SWMKEY-1-…`.
    #[must_use]
    pub fn to_text(&self) -> Secret<String> {
        format!("{PREFIX}{}", STANDARD_NO_PAD.encode(self.0.expose())).into()
    }

    /// Tells whether a file was made with this key, without the file. It says nothing of the key, which is as random as it is long.
    pub(super) fn tag(&self) -> String {
        let digest = Sha256::new().chain_update(TAG).chain_update(self.0.expose()).finalize();
        STANDARD_NO_PAD.encode(&digest[..9])
    }

    pub(super) fn bytes(&self) -> &[u8; 32] {
        self.0.expose()
    }
}

impl FromStr for UnlockKey {
    type Err = InvalidUnlockKey;
    fn from_str(text: &str) -> Result<Self, InvalidUnlockKey> {
        let encoded = text.trim().strip_prefix(PREFIX).ok_or(InvalidUnlockKey)?;
        let bytes = Secret::new(STANDARD_NO_PAD.decode(encoded).map_err(|_| InvalidUnlockKey)?);
        let bytes: [u8; 32] = bytes.expose().as_slice().try_into().map_err(|_| InvalidUnlockKey)?;
        Ok(Self(Secret::new(bytes)))
    }
}

impl fmt::Debug for UnlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UnlockKey(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_as_it_is_written_and_nothing_else_is_one() {
        let key = UnlockKey::draw(&mut rand::rng());
        let text = key.to_text();
        assert_eq!(text.expose().parse(), Ok(key.clone()));
        assert_eq!(format!(" {}\n", text.expose()).parse(), Ok(key.clone()), "as pasted");
        // The form of a real swarm's key.
        let swarms = "SWMKEY-1-7c37Cc8654o6p38HnroywCi19pllOnGtbdZEgtKxZu8";
        assert_eq!(swarms.parse::<UnlockKey>().map(|key| key.to_text()), Ok(swarms.into()));
        assert!(!format!("{key:?}{}", key.tag()).contains(&text.expose()[12..20]));
        for wrong in ["", "x", "SWMKEY-1-", "SWMKEY-1-AAAA", "SWMKEY-2-7c37Cc8654o6p38HnroywCi19pllOnGtbdZEgtKxZu8", &swarms[9..]]
        {
            assert_eq!(wrong.parse::<UnlockKey>(), Err(InvalidUnlockKey), "{wrong}");
        }
    }
}
