//! Encryption of secrets and configs in the store: one key per cluster, itself sealed to the tunnel key of each manager. X25519,
//! HKDF-SHA256, ChaCha20-Poly1305. Pure: randomness is the caller's.

use super::tunnel_keys::TunnelKeys;
use crate::model::payload::{SealedData, SealedKey};
use crate::model::{ClusterId, Meta, NodeId, PayloadId, PayloadKeys, Secret, WgKey};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use chacha20poly1305::aead::{Aead as _, KeyInit as _, Payload as Sealing};
use chacha20poly1305::{ChaCha20Poly1305, Key, Nonce};
use hmac::{Hmac, Mac as _};
use rand::Rng;
use sha2::Sha256;
use std::collections::BTreeMap;
use x25519_dalek::{PublicKey, StaticSecret};

/// Begins what is authenticated with a content.
const CONTENT: &str = "skep-payload/1";
/// Begins what a key to seal the key with is derived from: the tunnel's key is used for other things too.
const KEY: &[u8] = b"skep-payload-key/1\0";
/// Bytes of a nonce, before the ciphertext.
const NONCE: usize = 12;

/// Why something sealed cannot be opened, or not sealed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SealError {
    #[error("it was changed, or sealed with another key or for another object")]
    Damaged,
    #[error("this manager has no key of the cluster's secrets and configs: another manager has to pass it on")]
    NoKey,
    #[error("the manager's WireGuard key has a low order")]
    LowOrder,
}

/// The key that contents are sealed with.
#[derive(Debug)]
pub struct DataKey(Secret<[u8; 32]>);

impl DataKey {
    /// `rng` must be cryptographically secure.
    pub fn draw(rng: &mut impl Rng) -> Self {
        Self(Secret::new(rng.random()))
    }

    /// Seals the content of this object; it cannot be taken for that of another one.
    ///
    /// # Errors
    /// The content is longer than the cipher takes (256 GiB).
    pub fn seal(&self, id: &PayloadId, content: &[u8], rng: &mut impl Rng) -> Result<SealedData, SealError> {
        seal(self.0.expose(), rng.random(), &binding(id), content)
    }

    /// The content of this object.
    ///
    /// # Errors
    /// [`SealError::Damaged`].
    pub fn open(&self, id: &PayloadId, sealed: &SealedData) -> Result<Secret<Vec<u8>>, SealError> {
        open(self.0.expose(), &binding(id), sealed)
    }

    /// The key for the holder of a tunnel's private key.
    ///
    /// # Errors
    /// [`SealError::LowOrder`].
    pub fn sealed_to(&self, recipient: WgKey, rng: &mut impl Rng) -> Result<SealedKey, SealError> {
        let private = StaticSecret::from(rng.random::<[u8; 32]>());
        let ephemeral = WgKey(PublicKey::from(&private).to_bytes());
        let key = derive(&private, recipient, ephemeral, recipient)?;
        Ok(SealedKey { recipient, ephemeral, data: seal(key.expose(), rng.random(), KEY, self.0.expose())? })
    }
}

/// What a manager opens and seals contents with.
#[derive(Debug)]
pub struct PayloadVault {
    me: NodeId,
    keys: TunnelKeys,
}

impl PayloadVault {
    /// Of this manager.
    #[must_use]
    pub fn new(me: NodeId, keys: impl Into<TunnelKeys>) -> Self {
        Self { me, keys: keys.into() }
    }

    /// The cluster's key.
    ///
    /// # Errors
    /// [`SealError::NoKey`], or it is damaged.
    pub fn data_key(&self, keys: &PayloadKeys) -> Result<DataKey, SealError> {
        let sealed = keys.managers.get(&self.me).ok_or(SealError::NoKey)?;
        let own = self.keys.of(sealed.recipient).ok_or(SealError::NoKey)?;
        let derived = derive(&own.dh_secret(), sealed.ephemeral, sealed.ephemeral, sealed.recipient)?;
        let bytes = open(derived.expose(), KEY, &sealed.data)?;
        let key: [u8; 32] = bytes.expose().as_slice().try_into().map_err(|_| SealError::Damaged)?;
        Ok(DataKey(key.into()))
    }

    /// A key for a cluster that has none, and how it is stored. `rng` must be cryptographically secure.
    ///
    /// # Errors
    /// See [`SealError`].
    pub fn first_key(&self, cluster: ClusterId, rng: &mut impl Rng) -> Result<(DataKey, PayloadKeys), SealError> {
        let key = DataKey::draw(rng);
        let own = self.keys.current().ok_or(SealError::NoKey)?;
        let managers = BTreeMap::from([(self.me.clone(), key.sealed_to(own.public(), rng)?)]);
        Ok((key, PayloadKeys { id: cluster, meta: Meta::default(), managers }))
    }

    /// The stored keys with one for a further manager.
    ///
    /// # Errors
    /// This manager cannot open the key itself; see [`SealError`].
    pub fn shared_with(
        &self,
        keys: &PayloadKeys,
        node: NodeId,
        recipient: WgKey,
        rng: &mut impl Rng,
    ) -> Result<PayloadKeys, SealError> {
        let sealed = self.data_key(keys)?.sealed_to(recipient, rng)?;
        let mut shared = keys.clone();
        shared.managers.insert(node, sealed);
        Ok(shared)
    }
}

/// Vaults differ by their managers.
impl PartialEq for PayloadVault {
    fn eq(&self, other: &Self) -> bool {
        let public = |vault: &Self| vault.keys.current().map(|key| key.public());
        self.me == other.me && public(self) == public(other)
    }
}

impl Eq for PayloadVault {}

fn binding(id: &PayloadId) -> Vec<u8> {
    format!("{CONTENT} {id}").into_bytes()
}

pub(super) fn seal(key: &[u8; 32], nonce: [u8; NONCE], context: &[u8], content: &[u8]) -> Result<SealedData, SealError> {
    let cipher = ChaCha20Poly1305::new(Key::from_slice(key));
    let sealing = Sealing { msg: content, aad: context };
    let sealed = cipher.encrypt(Nonce::from_slice(&nonce), sealing).map_err(|_| SealError::Damaged)?;
    Ok(SealedData(STANDARD.encode([&nonce[..], &sealed].concat())))
}

pub(super) fn open(key: &[u8; 32], context: &[u8], sealed: &SealedData) -> Result<Secret<Vec<u8>>, SealError> {
    let bytes = STANDARD.decode(&sealed.0).map_err(|_| SealError::Damaged)?;
    let (nonce, sealed) = bytes.split_at_checked(NONCE).ok_or(SealError::Damaged)?;
    let cipher = ChaCha20Poly1305::new(Key::from_slice(key));
    let opened = cipher.decrypt(Nonce::from_slice(nonce), Sealing { msg: sealed, aad: context });
    opened.map(Secret::new).map_err(|_| SealError::Damaged)
}

/// HKDF-SHA256 of the secret that `private` and `other` share; the salt is both public keys.
fn derive(private: &StaticSecret, other: WgKey, ephemeral: WgKey, recipient: WgKey) -> Result<Secret<[u8; 32]>, SealError> {
    let shared = private.diffie_hellman(&PublicKey::from(other.0));
    if !shared.was_contributory() {
        return Err(SealError::LowOrder);
    }
    let extracted = Secret::new(hmac_sha256(&[ephemeral.0, recipient.0].concat(), &[shared.as_bytes()])?);
    Ok(Secret::new(hmac_sha256(extracted.expose(), &[KEY, &[1]])?))
}

/// HMAC-SHA256 of the parts, one after another.
pub(super) fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> Result<[u8; 32], SealError> {
    // HMAC takes keys of any length.
    let mut mac = <Hmac<Sha256> as hmac::Mac>::new_from_slice(key).map_err(|_| SealError::LowOrder)?;
    for part in parts {
        mac.update(part);
    }
    Ok(mac.finalize().into_bytes().into())
}

#[cfg(test)]
mod tests {
    use super::super::key_possession::TunnelKey;
    use super::*;
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    fn vault(number: u8) -> PayloadVault {
        PayloadVault::new(NodeId::from(format!("node{number}")), TunnelKey::new(Secret::new([number; 32])))
    }

    #[test]
    fn a_content_is_opened_by_managers_that_were_given_the_key_and_for_its_own_object() {
        let rng = &mut StdRng::seed_from_u64(1);
        let (one, two) = (vault(1), vault(2));
        let (key, keys) = one.first_key("c".into(), rng).expect("a key");
        let id = PayloadId::Secret("s1".into());
        let sealed = key.seal(&id, b"planted", rng).expect("sealed");
        assert_eq!(one.data_key(&keys).expect("own").open(&id, &sealed).expect("opens").expose(), b"planted");
        assert_eq!(two.data_key(&keys).err(), Some(SealError::NoKey));
        // Another id, a config of the same id.
        for other in [PayloadId::Secret("s2".into()), PayloadId::Config("s1".into())] {
            assert_eq!(key.open(&other, &sealed).err(), Some(SealError::Damaged));
        }
        let shared = one.shared_with(&keys, "node2".into(), public(&two), rng).expect("shared");
        assert_eq!(two.data_key(&shared).expect("shared").open(&id, &sealed).expect("opens").expose(), b"planted");
        let (mut swapped, mut torn) = (shared.clone(), shared);
        let ones = swapped.managers[&NodeId::from("node1")].clone();
        swapped.managers.insert("node2".into(), SealedKey { recipient: public(&two), ..ones });
        assert_eq!(two.data_key(&swapped).err(), Some(SealError::Damaged), "sealed to another manager");
        torn.managers.get_mut(&NodeId::from("node2")).expect("shared").data.0.truncate(20);
        assert_eq!(two.data_key(&torn).err(), Some(SealError::Damaged));
    }

    fn public(vault: &PayloadVault) -> WgKey {
        vault.keys.current().expect("a key").public()
    }

    #[test]
    fn a_manager_that_changes_its_key_opens_with_both_until_the_old_one_is_forgotten() {
        let rng = &mut StdRng::seed_from_u64(3);
        let [key, next] = [1, 2].map(|number| move || TunnelKey::new(Secret::new([number; 32])));
        let (keys, vault) = (TunnelKeys::from(key()), |keys: &TunnelKeys| PayloadVault::new("node1".into(), keys.clone()));
        let vault = vault(&keys);
        let (_, sealed) = vault.first_key("c".into(), rng).expect("a key");
        keys.set(vec![next(), key()]);
        let resealed = vault.shared_with(&sealed, "node1".into(), next().public(), rng).expect("opens with the old one");
        assert!(vault.data_key(&resealed).is_ok());
        keys.set(vec![next()]);
        assert!(vault.data_key(&resealed).is_ok());
        assert_eq!(vault.data_key(&sealed).err(), Some(SealError::NoKey), "sealed to the key of before");
    }

    #[test]
    fn what_is_stored_shows_nothing_and_differs_each_time() {
        let rng = &mut StdRng::seed_from_u64(2);
        let (key, keys) = vault(1).first_key("c".into(), rng).expect("a key");
        let id = PayloadId::Config("c1".into());
        let [a, b] = [0, 1].map(|_| key.seal(&id, b"planted-value", rng).expect("sealed"));
        assert_ne!(a, b);
        let stored = format!("{keys:?}{}{a:?}{}", serde_json::to_string(&keys).expect("JSON"), a.0);
        let key = STANDARD.encode(key.0.expose());
        for planted in ["planted", &STANDARD.encode("planted-value")[..12], &key] {
            assert!(!stored.contains(planted), "{stored}");
        }
        for at in [0, 20, a.0.len() - 3] {
            let mut changed = a.0.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = SealedData(String::from_utf8(changed).expect("base64"));
            let key = vault(1).data_key(&keys).expect("own");
            assert_eq!(key.open(&id, &changed).err(), Some(SealError::Damaged), "{at}");
        }
    }
}
