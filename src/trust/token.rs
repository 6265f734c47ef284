//! Join tokens: `SWMTKN-1-<digest of the root CA>-<secret>`, Swarm's format. By the digest (SHA-256 of the CA's PEM, 50
//! digits of base 36) the joiner recognises the cluster's CA; by the secret (25 digits) the manager recognises the joiner.

use super::{TrustError, name};
use crate::model::{JoinTokens, Role, Secret, id};
use rand::Rng;
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::str::FromStr;

const PREFIX: &str = "SWMTKN";
const VERSION: &str = "1";
const DIGEST_LEN: usize = 50;

/// The text is not a join token.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("invalid join token")]
pub struct InvalidToken;

/// SHA-256 of a root CA's certificate in canonical PEM. Displayed in hex.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct CaDigest([u8; 32]);

impl CaDigest {
    /// Digest of a certificate in DER.
    pub fn of_der(der: &[u8]) -> Self {
        Self(Sha256::digest(name::to_pem(der).as_bytes()).into())
    }

    /// Digest of a certificate in PEM.
    ///
    /// # Errors
    /// The certificate is unreadable.
    pub fn of_pem(pem: &str) -> Result<Self, TrustError> {
        Ok(Self::of_der(&name::certificate_der("the CA certificate", pem)?))
    }

    fn to_base36(self) -> String {
        let mut number = self.0;
        let mut digits = [b'0'; DIGEST_LEN];
        for digit in digits.iter_mut().rev() {
            let mut rest = 0_u32;
            for byte in &mut number {
                let value = rest << 8 | u32::from(*byte);
                *byte = u8::try_from(value / 36).unwrap_or(u8::MAX);
                rest = value % 36;
            }
            *digit = char::from_digit(rest, 36).map_or(b'0', |c| u8::try_from(c).unwrap_or(b'0'));
        }
        digits.iter().map(|c| char::from(*c)).collect()
    }

    fn from_base36(text: &str) -> Result<Self, InvalidToken> {
        let mut number = [0_u8; 32];
        for c in text.chars() {
            let mut carry = digit(c)?;
            for byte in number.iter_mut().rev() {
                let value = u32::from(*byte) * 36 + carry;
                *byte = u8::try_from(value & 0xff).unwrap_or_default();
                carry = value >> 8;
            }
            if carry != 0 {
                return Err(InvalidToken); // 50 digits hold slightly more than 256 bits
            }
        }
        Ok(Self(number))
    }
}

fn digit(c: char) -> Result<u32, InvalidToken> {
    if c.is_ascii_uppercase() { Err(InvalidToken) } else { c.to_digit(36).ok_or(InvalidToken) }
}

impl fmt::Display for CaDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for CaDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A join token. Displayed in full; `Debug` hides the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    digest: CaDigest,
    secret: Secret<String>,
}

impl JoinToken {
    /// A new token for the cluster with this CA. `rng` must be cryptographically secure.
    pub fn draw(digest: CaDigest, rng: &mut impl Rng) -> Self {
        Self { digest, secret: id::draw(rng).into() }
    }

    /// Digest of the CA that the joiner trusts.
    pub fn digest(&self) -> CaDigest {
        self.digest
    }
}

impl JoinToken {
    /// New tokens for both roles, as the cluster object stores them.
    pub fn draw_both(digest: CaDigest, rng: &mut impl Rng) -> JoinTokens {
        let mut draw = || Self::draw(digest, rng).to_string().into();
        JoinTokens { worker: draw(), manager: draw() }
    }
}

impl FromStr for JoinToken {
    type Err = InvalidToken;
    fn from_str(text: &str) -> Result<Self, InvalidToken> {
        let mut parts = text.split('-');
        let mut next = || parts.next().ok_or(InvalidToken);
        let (prefix, version, digest, secret) = (next()?, next()?, next()?, next()?);
        let shaped = prefix == PREFIX && version == VERSION && digest.len() == DIGEST_LEN && secret.len() == id::ID_LEN;
        if !shaped || parts.next().is_some() || secret.chars().any(|c| digit(c).is_err()) {
            return Err(InvalidToken);
        }
        Ok(Self { digest: CaDigest::from_base36(digest)?, secret: secret.into() })
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}-{VERSION}-{}-{}", self.digest.to_base36(), self.secret.expose())
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}-{VERSION}-{}-…", self.digest.to_base36())
    }
}

/// The role that a token is for; `None` if it is not a token of the cluster. Takes the same time for every wrong token.
pub fn role_of(tokens: &JoinTokens, presented: &str) -> Option<Role> {
    // Hashes of equal length are compared, so the time depends neither on the length nor on a common prefix.
    let presented = Sha256::digest(presented.as_bytes());
    let matches = |token: &str| {
        let known = Sha256::digest(token.as_bytes());
        let difference = known.iter().zip(&presented).fold(0, |all, (a, b)| std::hint::black_box(all | (a ^ b)));
        difference == 0 && !token.is_empty()
    };
    let (worker, manager) = (matches(tokens.of(Role::Worker)), matches(tokens.of(Role::Manager)));
    match (worker, manager) {
        (_, true) => Some(Role::Manager),
        (true, _) => Some(Role::Worker),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RECORDED: &str = "SWMTKN-1-01ggcd3dtsu5xvr6uscdzaoeldqaen3kt994ropxin3tl9vq00-eixjcs4b2n61ftd7b9hzo8uvw";

    #[test]
    fn a_recorded_token_is_parsed_as_swarm_parses_it() {
        let token: JoinToken = RECORDED.parse().unwrap();
        // From the error text in exchanges/swarm/join-wrong-ca-digest.json.
        assert_eq!(token.digest().to_string(), "019fb75fcce69325390c030fae17ea228a17f16d81b19c703f5658c64a9b4260");
        assert_eq!(token.to_string(), RECORDED);
        assert!(!format!("{token:?}").contains("eixjcs"));
    }

    #[test]
    fn malformed_tokens_are_refused() {
        let digest = "z".repeat(50);
        for bad in [
            "",
            "hello",
            "SWMTKN-1-",
            &RECORDED.replace("SWMTKN-1", "SWMTKN-2"),
            &RECORDED.replace("eixj", "EIXJ"),
            &RECORDED[..RECORDED.len() - 1],
            &format!("{RECORDED}-x"),
            &format!("{RECORDED} "),
            &format!("SWMTKN-1-{digest}-eixjcs4b2n61ftd7b9hzo8uvw"),
        ] {
            assert_eq!(bad.parse::<JoinToken>(), Err(InvalidToken), "{bad}");
        }
    }

    #[test]
    fn a_token_is_for_one_role() {
        let digest = RECORDED.parse::<JoinToken>().unwrap().digest();
        let tokens = JoinToken::draw_both(digest, &mut rand::rng());
        assert_eq!(role_of(&tokens, tokens.of(Role::Worker)), Some(Role::Worker));
        assert_eq!(role_of(&tokens, tokens.of(Role::Manager)), Some(Role::Manager));
        assert_eq!(role_of(&tokens, RECORDED), None);
        assert_eq!(role_of(&JoinTokens::default(), ""), None);
    }

    proptest! {
        #[test]
        fn digests_round_trip_through_base_36(bytes: [u8; 32]) {
            let digest = CaDigest(bytes);
            let text = digest.to_base36();
            prop_assert_eq!(text.len(), DIGEST_LEN);
            prop_assert_eq!(CaDigest::from_base36(&text), Ok(digest));
        }
        #[test]
        fn the_parser_does_not_panic(text in "\\PC{0,120}") {
            let _ = text.parse::<JoinToken>();
        }
    }
}
