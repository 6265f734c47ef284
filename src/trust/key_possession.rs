//! Proof that a joiner has the private key of its tunnel. The manager draws an X25519 key and a nonce for the one connection;
//! the joiner answers with an HMAC under the secret that both keys share. Pure: randomness and messages are the caller's.

use crate::model::{KeyChallenge, Secret, WgKey};
use hmac::{Hmac, Mac as _};
use rand::Rng;
use sha2::{Digest as _, Sha256};
use x25519_dalek::{PublicKey, StaticSecret};

/// Begins every transcript: the tunnel's key is used for WireGuard too, and nothing that WireGuard computes with it begins
/// with this.
const CONTEXT: &[u8] = b"skep-join/1 possession of the WireGuard key\0";

/// Why possession is not proved.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NotProved {
    /// The secret shared with it is the same for every private key.
    #[error("it is no WireGuard key: it has a low order")]
    LowOrder,
    #[error("the answer was not computed with its private key")]
    WrongAnswer,
}

/// A tunnel's key.
#[derive(Debug)]
pub struct TunnelKey {
    private: Secret<[u8; 32]>,
    public: WgKey,
}

impl TunnelKey {
    #[must_use]
    pub fn new(private: Secret<[u8; 32]>) -> Self {
        let public = WgKey(PublicKey::from(&StaticSecret::from(*private.expose())).to_bytes());
        Self { private, public }
    }

    #[must_use]
    pub fn public(&self) -> WgKey {
        self.public
    }

    pub(super) fn dh_secret(&self) -> StaticSecret {
        StaticSecret::from(*self.private.expose())
    }

    /// The answer to a challenge. `request` is the joiner's request as it was sent.
    ///
    /// # Errors
    /// The key in the challenge has a low order.
    pub fn answer(&self, challenge: &KeyChallenge, request: &[u8]) -> Result<[u8; 32], NotProved> {
        let mac = mac(&self.dh_secret(), challenge.key, challenge, self.public, request)?;
        Ok(mac.finalize().into_bytes().into())
    }
}

/// A challenge whose answer is awaited.
pub struct AwaitedProof {
    private: StaticSecret,
    challenge: KeyChallenge,
}

impl AwaitedProof {
    /// `rng` must be cryptographically secure.
    pub fn draw(rng: &mut impl Rng) -> Self {
        let private = StaticSecret::from(rng.random::<[u8; 32]>());
        let challenge = KeyChallenge { key: WgKey(PublicKey::from(&private).to_bytes()), nonce: rng.random() };
        Self { private, challenge }
    }

    #[must_use]
    pub fn challenge(&self) -> &KeyChallenge {
        &self.challenge
    }

    /// Whether the answer was computed with the private half of `claimed`, for this challenge and this request. Takes the same
    /// time for every wrong answer. An answer is checked once: the challenge ends with it.
    ///
    /// # Errors
    /// See [`NotProved`].
    pub fn check(self, claimed: WgKey, request: &[u8], answer: &[u8; 32]) -> Result<(), NotProved> {
        let mac = mac(&self.private, claimed, &self.challenge, claimed, request)?;
        mac.verify_slice(answer).map_err(|_| NotProved::WrongAnswer)
    }
}

/// True if the secret shared with this public key is the same for every private key: no tunnel can use it.
#[must_use]
pub fn has_low_order(key: WgKey) -> bool {
    !StaticSecret::from([1; 32]).diffie_hellman(&PublicKey::from(key.0)).was_contributory()
}

/// The HMAC of the transcript, under the secret that `private` and `other` share.
fn mac(
    private: &StaticSecret,
    other: WgKey,
    challenge: &KeyChallenge,
    joiner: WgKey,
    request: &[u8],
) -> Result<Hmac<Sha256>, NotProved> {
    let shared = private.diffie_hellman(&PublicKey::from(other.0));
    if !shared.was_contributory() {
        return Err(NotProved::LowOrder);
    }
    // HMAC takes keys of any length.
    let mut mac = Hmac::<Sha256>::new_from_slice(shared.as_bytes()).map_err(|_| NotProved::WrongAnswer)?;
    // Each part has a fixed length.
    for part in [CONTEXT, &challenge.key.0, &challenge.nonce, &joiner.0, &Sha256::digest(request)] {
        mac.update(part);
    }
    Ok(mac)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    /// Public keys of low order: of the curve and its twist, canonical and not (RFC 7748 section 6.1 wants them refused).
    const LOW_ORDER: [&str; 7] = [
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    ];

    fn low_order() -> impl Iterator<Item = WgKey> {
        LOW_ORDER
            .into_iter()
            .map(|hex| WgKey(std::array::from_fn(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).expect("two digits"))))
    }

    fn key(number: u8) -> TunnelKey {
        TunnelKey::new(Secret::new([number; 32]))
    }

    #[test]
    fn only_the_holder_of_the_key_answers_a_challenge() {
        let rng = &mut StdRng::seed_from_u64(1);
        let (own, other) = (key(1), key(2));
        let challenged = || AwaitedProof::draw(&mut StdRng::seed_from_u64(7));
        let answer = own.answer(challenged().challenge(), b"request").unwrap();
        assert_eq!(challenged().check(own.public(), b"request", &answer), Ok(()));
        let wrong = Err(NotProved::WrongAnswer);
        // Another's key is named: answered with one's own, or with what its holder sent in another join.
        assert_eq!(challenged().check(other.public(), b"request", &answer), wrong);
        let forged = other.answer(challenged().challenge(), b"request").unwrap();
        assert_eq!(challenged().check(own.public(), b"request", &forged), wrong);
        assert_eq!(AwaitedProof::draw(rng).check(own.public(), b"request", &answer), wrong, "a replay");
        assert_eq!(challenged().check(own.public(), b"another request", &answer), wrong);
        for bit in [0, 100, 255] {
            let mut flipped = answer;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(challenged().check(own.public(), b"request", &flipped), wrong, "bit {bit}");
        }
        assert_eq!(challenged().check(own.public(), b"request", &[0; 32]), wrong);
    }

    #[test]
    fn a_nonce_of_another_challenge_changes_the_answer() {
        let awaited = AwaitedProof::draw(&mut StdRng::seed_from_u64(7));
        let other = KeyChallenge { nonce: [9; 32], ..*awaited.challenge() };
        let answer = key(1).answer(&other, b"request").unwrap();
        assert_eq!(awaited.check(key(1).public(), b"request", &answer), Err(NotProved::WrongAnswer));
    }

    #[test]
    fn a_key_of_low_order_is_refused_by_both_sides() {
        for low in low_order() {
            assert!(has_low_order(low), "{low:?}");
            let awaited = AwaitedProof::draw(&mut StdRng::seed_from_u64(7));
            // What anybody computes who knows that the shared secret is zero.
            let mut mac = Hmac::<Sha256>::new_from_slice(&[0; 32]).unwrap();
            for part in [CONTEXT, &awaited.challenge.key.0, &awaited.challenge.nonce, &low.0, &Sha256::digest(b"request")] {
                mac.update(part);
            }
            let answer = mac.finalize().into_bytes().into();
            assert_eq!(awaited.check(low, b"request", &answer), Err(NotProved::LowOrder), "{low:?}");
            let challenge = KeyChallenge { key: low, nonce: [1; 32] };
            assert_eq!(key(1).answer(&challenge, b"request"), Err(NotProved::LowOrder), "{low:?}");
        }
        assert!(!has_low_order(key(1).public()));
    }
}
