//! What a certificate authority is answered, on every node.

use super::certified::certified;
use super::reply::Reply;
use crate::model::acme::{AcmeChallenge, AcmeChallengeKind};
use crate::sync::lock;
use crate::trust;
use arc_swap::ArcSwap;
use rustls::sign::CertifiedKey;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

/// Where the authority asks without TLS.
const PATH: &str = "/.well-known/acme-challenge/";
/// The only protocol that it offers with TLS.
pub(super) const PROTOCOL: &[u8] = b"acme-tls/1";

/// The challenges of a table.
#[derive(Default)]
pub(super) struct Challenges {
    current: ArcSwap<ChallengeAnswers>,
    /// What these are the answers to.
    of: Mutex<Vec<AcmeChallenge>>,
}

#[derive(Default)]
struct ChallengeAnswers {
    /// Key authorizations by token.
    http: HashMap<String, String>,
    /// Certificates by the name that the authority asks for.
    tls: HashMap<String, Arc<CertifiedKey>>,
}

impl std::fmt::Debug for Challenges {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("challenges")
    }
}

impl Challenges {
    /// Follows a table.
    pub fn set(&self, challenges: &[AcmeChallenge]) {
        let mut of = lock(&self.of);
        if *of == challenges {
            return;
        }
        let mut answers = ChallengeAnswers::default();
        for AcmeChallenge { name, kind, segment, key_authorization } in challenges {
            match kind {
                AcmeChallengeKind::Http => drop(answers.http.insert(segment.clone(), key_authorization.clone())),
                AcmeChallengeKind::TlsAlpn => {
                    let made = trust::challenge_certificate(name, key_authorization).map_err(|error| error.to_string());
                    match made.and_then(certified) {
                        Ok(key) => drop(answers.tls.insert(server_name(name), key)),
                        Err(error) => tracing::warn!(name, error, "a challenge cannot be answered"),
                    }
                }
                AcmeChallengeKind::Dns => {}
            }
        }
        self.current.store(Arc::new(answers));
        *of = challenges.to_vec();
    }

    /// The answer for a path, whatever the host: a token is of one name, and cannot be guessed. Other paths below are those of an
    /// application that orders certificates itself.
    pub fn answer(&self, path: &str) -> Option<Reply> {
        self.current.load().http.get(path.strip_prefix(PATH)?).map(|key_authorization| Reply::exactly(key_authorization.clone()))
    }

    /// The certificate that answers the challenge of a name.
    pub fn certificate(&self, server_name: &str) -> Option<Arc<CertifiedKey>> {
        self.current.load().tls.get(server_name).cloned()
    }
}

/// The name by which the authority asks for a host; for an address by that of its reverse zone.
fn server_name(name: &str) -> String {
    let digits = |octets: &[u8], digits: fn(&u8) -> String| octets.iter().rev().map(digits).collect::<Vec<_>>().join(".");
    match name.parse() {
        Ok(IpAddr::V4(address)) => digits(&address.octets(), ToString::to_string) + ".in-addr.arpa",
        Ok(IpAddr::V6(address)) => digits(&address.octets(), |byte| format!("{:x}.{:x}", byte & 15, byte >> 4)) + ".ip6.arpa",
        Err(_) => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn challenge(kind: AcmeChallengeKind, name: &str, token: &str) -> AcmeChallenge {
        let (name, token) = (name.to_owned(), token.to_owned());
        AcmeChallenge { name, kind, key_authorization: format!("{token}.key"), segment: token }
    }

    #[test]
    fn a_token_that_is_known_is_answered_and_no_other() {
        let challenges = Challenges::default();
        assert!(challenges.answer("/.well-known/acme-challenge/t").is_none());
        challenges
            .set(&[challenge(AcmeChallengeKind::Http, "a.test", "t"), challenge(AcmeChallengeKind::TlsAlpn, "b.test", "alpn")]);
        let answer = |path: &str| challenges.answer(path).map(|answer| answer.into_parts().unwrap().1);
        assert_eq!(answer("/.well-known/acme-challenge/t"), Some("t.key".into()));
        for other in ["/.well-known/acme-challenge/alpn", "/.well-known/acme-challenge/", "/.well-known/acme-challenge/t/", "/t"]
        {
            assert_eq!(answer(other), None, "{other}");
        }
        assert!(challenges.certificate("b.test").is_some() && challenges.certificate("a.test").is_none());
        challenges.set(&[]);
        assert!(challenges.answer("/.well-known/acme-challenge/t").is_none() && challenges.certificate("b.test").is_none());
    }

    #[test]
    fn addresses_are_asked_for_by_their_reverse_names() {
        assert_eq!(server_name("127.0.0.1"), "1.0.0.127.in-addr.arpa");
        assert_eq!(server_name("::1"), format!("1.{}ip6.arpa", "0.".repeat(31)));
        assert_eq!(server_name("a.test"), "a.test");
    }
}
