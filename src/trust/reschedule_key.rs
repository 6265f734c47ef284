//! What managers keep about a container on the container's own node: sealed, so that no node can read, change or make it.
//! ChaCha20-Poly1305 under a key that is derived (HKDF-SHA256) from the key of the root CA, which only managers have.

use super::SealError;
use super::sealing::{hmac_sha256, open, seal};
use crate::model::payload::SealedData;
use crate::model::{NodeId, Secret};
use rand::Rng;

/// What the key is derived for: the CA's key is used for other things too.
const PURPOSE: &[u8] = b"skep-container/1";

/// The key that managers seal containers with.
#[derive(Debug)]
pub struct RescheduleKey(Secret<[u8; 32]>);

impl RescheduleKey {
    /// `ca_key` is the PEM of a root CA's key, as it is stored.
    ///
    /// # Errors
    /// Never: HMAC takes keys of any length.
    pub fn derived_from(ca_key: &Secret<String>) -> Result<Self, SealError> {
        let extracted = Secret::new(hmac_sha256(PURPOSE, &[ca_key.expose().as_bytes()])?);
        Ok(Self(Secret::new(hmac_sha256(extracted.expose(), &[PURPOSE, &[1]])?)))
    }

    /// Seals what one node keeps. `rng` must be cryptographically secure.
    ///
    /// # Errors
    /// The content is longer than the cipher takes (256 GiB).
    pub fn seal(&self, node: &NodeId, content: &[u8], rng: &mut impl Rng) -> Result<String, SealError> {
        seal(self.0.expose(), rng.random(), &binding(node), content).map(|sealed| sealed.0)
    }

    /// What managers sealed for this node.
    ///
    /// # Errors
    /// [`SealError::Damaged`]: it was not sealed with this key for this node.
    pub fn open(&self, node: &NodeId, sealed: &str) -> Result<Vec<u8>, SealError> {
        open(self.0.expose(), &binding(node), &SealedData(sealed.to_owned())).map(|content| content.expose().clone())
    }
}

fn binding(node: &NodeId) -> Vec<u8> {
    [PURPOSE, b" ", node.as_str().as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    #[test]
    fn only_who_has_the_ca_key_can_seal_and_open_and_for_one_node() {
        let key = |pem: &str| RescheduleKey::derived_from(&pem.into()).unwrap();
        let (n1, n2) = (NodeId::from("n1"), NodeId::from("n2"));
        let sealed = key("a").seal(&n1, b"content", &mut StdRng::seed_from_u64(1)).unwrap();
        assert_eq!(key("a").open(&n1, &sealed).unwrap(), b"content");
        assert_eq!(key("a").open(&n2, &sealed), Err(SealError::Damaged), "another node shows it");
        assert_eq!(key("b").open(&n1, &sealed), Err(SealError::Damaged), "another cluster");
        assert!(!sealed.contains("content"));
        for garbage in ["", "x", "AAAA"] {
            assert_eq!(key("a").open(&n1, garbage), Err(SealError::Damaged));
        }
    }
}
