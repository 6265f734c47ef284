//! Messages of a certificate renewal, between a member and a manager. The member's current certificate and its key
//! authenticate the connection; nothing in a message says who the member is.

use crate::model::secret::{self, Secret};
use serde::{Deserialize, Serialize};

/// A member asks for its next certificate.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RenewalRequest {
    /// Certificate signing request with the member's new key, PEM. Only its key is used.
    pub csr: String,
}

/// The manager's answer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum RenewalAnswer {
    Renewed(RenewedCertificate),
    Refused(RenewalRefused),
}

/// The next certificate.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RenewedCertificate {
    /// Node certificate, PEM.
    pub certificate: String,
    /// Root CA, PEM.
    pub ca_certificate: String,
    /// Certificates that lead from the member's root CA to this one, PEM.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub chain: Vec<String>,
    /// What a manager encrypts its keys with, if the swarm locks its managers.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "secret::expose_some")]
    pub unlock_key: Option<Secret<String>>,
}

/// Why a manager does not renew a certificate.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error, Serialize, Deserialize)]
pub enum RenewalRefused {
    /// The store does not have the node.
    #[error("this node is no longer a member: run `skep leave --force` here, then join again")]
    NotAMember,
    /// The request did not come from the node's own mesh address.
    #[error("a node renews its certificate from its own address in the mesh")]
    ForeignAddress,
    /// The certificate has expired, and no operator has allowed expired ones.
    #[error("this node's certificate has expired: run `skep recover-certificates` on a manager")]
    Expired,
    /// The node had a certificate a moment ago.
    #[error("this node's certificate was renewed a moment ago")]
    TooSoon,
    /// The manager cannot answer now: a later attempt may succeed.
    #[error("{0}")]
    Unavailable(String),
    /// Any other reason, for people.
    #[error("{0}")]
    Other(String),
}
