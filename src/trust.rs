//! Identities: the root CA, node certificates and when to renew them, join tokens, the proof that a
//! joiner has its tunnel's key, the encryption of secrets and configs and of a locked manager's files, files that are encrypted with a
//! passphrase, certificates of host names, and the files of a node's identity. Pure
//! but for `files`. Knows certificates and keys, not TLS (that is in `rpc`), and not which node may have which role (the
//! managers decide that).

mod ca;
mod cross_signing;
mod files;
mod identity;
mod key_possession;
mod name;
mod name_digest;
mod public_certificate;
mod renewal;
mod reschedule_key;
mod sealed_file;
mod sealing;
mod self_signed;
mod state_key;
mod token;
mod tunnel_keys;
mod unlock_key;

pub use ca::{NodeKey, RootCa, TlsInfo, issue, node_life};
pub use cross_signing::{NewRootError, check_new_root, cross_sign, leads_to};
pub use files::{CertificateFiles, FilesError, KeySealer};
pub use identity::Identity;
pub use key_possession::{AwaitedProof, NotProved, TunnelKey, has_low_order};
pub use name::NodeName;
pub use name_digest::name_digest;
pub use public_certificate::{CertificateFacts, CertificateRequest, PublicCertificate, about, challenge_certificate, leaf};
pub use renewal::{Remaining, Validity};
pub use reschedule_key::RescheduleKey;
pub use sealed_file::{KeyCost, SealedFileError, open_file, seal_file};
pub use sealing::{DataKey, PayloadVault, SealError};
pub use self_signed::{SelfSigned, self_signed};
pub use state_key::{StateKey, StateKeyError, StoredKeys};
pub use token::{CaDigest, InvalidToken, JoinToken, role_of};
pub use tunnel_keys::TunnelKeys;
pub use unlock_key::{InvalidUnlockKey, UnlockKey};

/// Why a key, a certificate or a request is not accepted.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TrustError {
    /// Not PEM, or PEM of something else.
    #[error("{what} is not readable: {why}")]
    Unreadable {
        what: &'static str,
        /// The parser's error.
        why: String,
    },
    /// A key of another kind than ECDSA P-256.
    #[error("{what} is not an ECDSA P-256 key; skep uses no other")]
    WrongKind { what: &'static str },
    /// The certificate is for another key.
    #[error("the key does not belong to the certificate")]
    KeyMismatch,
    /// The certificate was not signed by this CA.
    #[error("the certificate was not issued by this cluster's CA")]
    ForeignIssuer,
    /// The subject of the certificate is not a node's.
    #[error("the certificate is not a node's: {0}")]
    NotANode(String),
    /// The crypto library failed.
    #[error("cannot create {what}: {why}")]
    Make {
        what: &'static str,
        /// The library's error.
        why: String,
    },
}
