//! The key that a manager's files are encrypted with, and how it lies on the disk: where the swarm locks its managers, wrapped with the
//! unlock key and bound to its node; elsewhere as it is. XChaCha20-Poly1305, whose nonces are long enough to be drawn at random for every row of a log. Pure:
//! randomness is the caller's.

use super::unlock_key::UnlockKey;
use crate::model::secret::{self, Secret};
use crate::model::{ClusterId, NodeId};
use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use chacha20poly1305::aead::{Aead as _, KeyInit as _, Payload};
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};
use rand::Rng;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Bytes of a nonce, before the ciphertext.
const NONCE: usize = 24;
/// Begins what is authenticated with a wrapped key.
const WRAPPED: &str = "skep-state-key/1";
/// Begins what the id of a key is made of.
const ID: &[u8] = b"skep-state-key-id/1\0";

/// Why something is not opened.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StateKeyError {
    #[error("another unlock key is needed")]
    WrongKey,
    #[error("it was changed, cut short, or is another node's")]
    Damaged,
}

/// A manager's key of its own: no other manager has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StateKey(Secret<[u8; 32]>);

impl StateKey {
    /// `rng` must be cryptographically secure.
    pub fn draw(rng: &mut impl Rng) -> Self {
        Self(Secret::new(rng.random()))
    }

    fn of_bytes(bytes: &Secret<Vec<u8>>) -> Result<Self, StateKeyError> {
        let key: [u8; 32] = bytes.expose().as_slice().try_into().map_err(|_| StateKeyError::Damaged)?;
        Ok(Self(Secret::new(key)))
    }

    /// Names the key in what is sealed with it; says nothing of the key.
    #[must_use]
    pub fn id(&self) -> String {
        let digest = Sha256::new().chain_update(ID).chain_update(self.0.expose()).finalize();
        STANDARD_NO_PAD.encode(&digest[..9])
    }

    /// Seals a content for this place; elsewhere it is not opened.
    ///
    /// # Errors
    /// The content is longer than the cipher takes (256 GiB).
    pub fn seal(&self, place: &str, content: &[u8], rng: &mut impl Rng) -> Result<Vec<u8>, StateKeyError> {
        seal(self.0.expose(), place, content, rng.random())
    }

    /// The content of this place.
    ///
    /// # Errors
    /// [`StateKeyError::Damaged`].
    pub fn open(&self, place: &str, sealed: &[u8]) -> Result<Secret<Vec<u8>>, StateKeyError> {
        open(self.0.expose(), place, sealed)
    }
}

/// A manager's keys, the newest first, wrapped with an unlock key or as they are. There are two while what is sealed with the second is
/// sealed again.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StoredKeys {
    /// Tells a wrong unlock key; `None`: the keys are not wrapped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tag: Option<String>,
    keys: Vec<StoredKey>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct StoredKey {
    id: String,
    /// Base64 of nonce and ciphertext, or of the key.
    #[serde(serialize_with = "secret::expose")]
    data: Secret<String>,
}

impl StoredKeys {
    /// Of a swarm that does not lock its managers: who reads the file has the keys.
    #[must_use]
    pub fn bare(keys: &[&StateKey]) -> Self {
        let bare = |key: &&StateKey| StoredKey { id: key.id(), data: STANDARD_NO_PAD.encode(key.0.expose()).into() };
        Self { tag: None, keys: keys.iter().map(bare).collect() }
    }

    /// An unlock key is needed.
    #[must_use]
    pub fn is_wrapped(&self) -> bool {
        self.tag.is_some()
    }

    /// Keys that are not wrapped, the newest first; never none.
    ///
    /// # Errors
    /// [`StateKeyError`].
    pub fn read(&self) -> Result<Vec<StateKey>, StateKeyError> {
        if self.is_wrapped() {
            return Err(StateKeyError::WrongKey);
        }
        self.each(|stored| {
            let bytes = Secret::new(STANDARD_NO_PAD.decode(stored.data.expose()).map_err(|_| StateKeyError::Damaged)?);
            let key = StateKey::of_bytes(&bytes)?;
            if key.id() == stored.id { Ok(key) } else { Err(StateKeyError::Damaged) }
        })
    }

    fn each(&self, open: impl Fn(&StoredKey) -> Result<StateKey, StateKeyError>) -> Result<Vec<StateKey>, StateKeyError> {
        let keys = self.keys.iter().map(open).collect::<Result<Vec<_>, _>>()?;
        if keys.is_empty() { Err(StateKeyError::Damaged) } else { Ok(keys) }
    }

    /// Wraps the keys of a node. `rng` must be cryptographically secure.
    ///
    /// # Errors
    /// None in practice: keys are short.
    pub fn wrap(
        unlock: &UnlockKey,
        (cluster, node): (&ClusterId, &NodeId),
        keys: &[&StateKey],
        rng: &mut impl Rng,
    ) -> Result<Self, StateKeyError> {
        let wrap = |key: &&StateKey| {
            let id = key.id();
            let sealed = seal(unlock.bytes(), &place(cluster, node, &id), key.0.expose(), rng.random())?;
            Ok(StoredKey { id, data: STANDARD_NO_PAD.encode(sealed).into() })
        };
        Ok(Self { tag: Some(unlock.tag()), keys: keys.iter().map(wrap).collect::<Result<_, _>>()? })
    }

    /// The keys of this node, the newest first; never none.
    ///
    /// # Errors
    /// [`StateKeyError`].
    pub fn unwrap(&self, unlock: &UnlockKey, (cluster, node): (&ClusterId, &NodeId)) -> Result<Vec<StateKey>, StateKeyError> {
        if self.tag.as_ref() != Some(&unlock.tag()) {
            return Err(StateKeyError::WrongKey);
        }
        self.each(|wrapped| {
            let bytes = STANDARD_NO_PAD.decode(wrapped.data.expose()).map_err(|_| StateKeyError::Damaged)?;
            StateKey::of_bytes(&open(unlock.bytes(), &place(cluster, node, &wrapped.id), &bytes)?)
        })
    }
}

fn place(cluster: &ClusterId, node: &NodeId, id: &str) -> String {
    format!("{WRAPPED} {cluster} {node} {id}")
}

fn seal(key: &[u8; 32], place: &str, content: &[u8], nonce: [u8; NONCE]) -> Result<Vec<u8>, StateKeyError> {
    let cipher = XChaCha20Poly1305::new(Key::from_slice(key));
    let sealing = Payload { msg: content, aad: place.as_bytes() };
    let sealed = cipher.encrypt(XNonce::from_slice(&nonce), sealing).map_err(|_| StateKeyError::Damaged)?;
    Ok([&nonce[..], &sealed].concat())
}

fn open(key: &[u8; 32], place: &str, sealed: &[u8]) -> Result<Secret<Vec<u8>>, StateKeyError> {
    let (nonce, sealed) = sealed.split_at_checked(NONCE).ok_or(StateKeyError::Damaged)?;
    let cipher = XChaCha20Poly1305::new(Key::from_slice(key));
    let opened = cipher.decrypt(XNonce::from_slice(nonce), Payload { msg: sealed, aad: place.as_bytes() });
    opened.map(Secret::new).map_err(|_| StateKeyError::Damaged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    #[test]
    fn wrapped_keys_are_opened_with_their_unlock_key_on_their_node_only() {
        let rng = &mut StdRng::seed_from_u64(1);
        let (unlock, other) = (UnlockKey::draw(rng), UnlockKey::draw(rng));
        let keys = [StateKey::draw(rng), StateKey::draw(rng)];
        let (cluster, node) = (ClusterId::from("c1"), NodeId::from("n1"));
        let wrapped = StoredKeys::wrap(&unlock, (&cluster, &node), &[&keys[0], &keys[1]], rng).expect("wrapped");
        assert_eq!(wrapped.unwrap(&unlock, (&cluster, &node)), Ok(keys.to_vec()));
        assert_eq!(wrapped.unwrap(&other, (&cluster, &node)), Err(StateKeyError::WrongKey));
        // Of another node, of another cluster, without keys, with the ids exchanged.
        assert_eq!(wrapped.unwrap(&unlock, (&cluster, &"n2".into())), Err(StateKeyError::Damaged));
        assert_eq!(wrapped.unwrap(&unlock, (&"c2".into(), &node)), Err(StateKeyError::Damaged));
        let none = StoredKeys { keys: Vec::new(), ..wrapped.clone() };
        assert_eq!(none.unwrap(&unlock, (&cluster, &node)), Err(StateKeyError::Damaged));
        let mut exchanged = wrapped.clone();
        exchanged.keys[0].id.clone_from(&wrapped.keys[1].id);
        assert_eq!(exchanged.unwrap(&unlock, (&cluster, &node)), Err(StateKeyError::Damaged));
        let mut cut = wrapped.clone();
        cut.keys[0].data = cut.keys[0].data.expose()[..30].into();
        assert_eq!(cut.unwrap(&unlock, (&cluster, &node)), Err(StateKeyError::Damaged));
        let text = serde_json::to_string(&wrapped).expect("JSON");
        for secret in [keys[0].0.expose(), keys[1].0.expose(), unlock.bytes()] {
            assert!(!text.contains(&STANDARD_NO_PAD.encode(secret)[2..20]), "{text}");
        }
    }

    #[test]
    fn keys_that_are_not_wrapped_are_read_as_they_are_and_not_with_a_bit_changed() {
        let rng = &mut StdRng::seed_from_u64(3);
        let keys = [StateKey::draw(rng), StateKey::draw(rng)];
        let bare = StoredKeys::bare(&[&keys[0], &keys[1]]);
        let text = serde_json::to_string(&bare).expect("JSON");
        assert!(!bare.is_wrapped() && !text.contains("tag"), "{text}");
        assert_eq!(serde_json::from_str::<StoredKeys>(&text).expect("read").read(), Ok(keys.to_vec()));
        assert!(!format!("{bare:?}").contains(&STANDARD_NO_PAD.encode(keys[0].0.expose())));
        let mut exchanged = bare.clone();
        exchanged.keys[0].id.clone_from(&bare.keys[1].id);
        assert_eq!(exchanged.read(), Err(StateKeyError::Damaged));
        let unlock = UnlockKey::draw(rng);
        assert_eq!(bare.unwrap(&unlock, (&"c".into(), &"n".into())), Err(StateKeyError::WrongKey));
        let wrapped = StoredKeys::wrap(&unlock, (&"c".into(), &"n".into()), &[&keys[0]], rng).expect("wrapped");
        assert_eq!(wrapped.read(), Err(StateKeyError::WrongKey));
        assert_eq!(StoredKeys::bare(&[]).read(), Err(StateKeyError::Damaged));
    }

    #[test]
    fn a_content_is_opened_in_its_place_and_no_changed_bit_is_taken() {
        let rng = &mut StdRng::seed_from_u64(2);
        let key = StateKey::draw(rng);
        let sealed = key.seal("log 7", b"planted", rng).expect("sealed");
        assert_eq!(key.open("log 7", &sealed).expect("opened").expose(), b"planted");
        assert_ne!(key.seal("log 7", b"planted", rng).expect("sealed"), sealed, "another nonce");
        assert_eq!(key.open("log 8", &sealed).err(), Some(StateKeyError::Damaged));
        assert_eq!(StateKey::draw(rng).open("log 7", &sealed).err(), Some(StateKeyError::Damaged));
        for bit in 0..sealed.len() * 8 {
            let mut changed = sealed.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(key.open("log 7", &changed).err(), Some(StateKeyError::Damaged), "bit {bit}");
        }
        for cut in 0..sealed.len() {
            assert_eq!(key.open("log 7", &sealed[..cut]).err(), Some(StateKeyError::Damaged), "{cut} bytes");
        }
    }
}
