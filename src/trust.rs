//! Who is who: the root CA, node certificates, join tokens and the files that keep them. Pure but for `files`.
//! Knows certificates and keys, not TLS (that is `rpc`'s), and not which node may have which role (that is the managers').

mod ca;
mod files;
mod identity;
mod name;
mod token;

pub use ca::{NodeKey, RootCa, TlsInfo, issue, node_life};
pub use files::{CertificateFiles, FilesError};
pub use identity::Identity;
pub use name::NodeName;
pub use token::{CaDigest, InvalidToken, JoinToken, role_of};

/// What can be wrong with a key, a certificate or a request.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TrustError {
    /// Not PEM, or PEM of something else.
    #[error("{what} is not readable: {why}")]
    Unreadable {
        /// What was read.
        what: &'static str,
        /// What the parser said.
        why: String,
    },
    /// A key of another kind than ECDSA P-256.
    #[error("{what} is not an ECDSA P-256 key; skep uses no other")]
    WrongKind {
        /// What was read.
        what: &'static str,
    },
    /// Key and certificate are not of each other.
    #[error("the key does not belong to the certificate")]
    KeyMismatch,
    /// The certificate was not signed by this CA.
    #[error("the certificate was not issued by this cluster's CA")]
    ForeignIssuer,
    /// The names in the certificate are not those of a node.
    #[error("the certificate is not a node's: {0}")]
    NotANode(String),
    /// The crypto library refused.
    #[error("cannot make {what}: {why}")]
    Make {
        /// What was to be made.
        what: &'static str,
        /// What the library said.
        why: String,
    },
}
