//! What a node shows to prove who it is: key, certificate, CA; checked to belong together before anything uses them.

use super::{CaDigest, NodeName, TrustError, ca, name};
use crate::model::{ClusterId, NodeId, Role, Timestamp};
use std::fmt;

/// A node's key and certificate, and the CA that issued it.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    name: NodeName,
    key: String,
    certificate: String,
    ca_certificate: String,
    expires: Timestamp,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("name", &self.name).field("expires", &self.expires).finish_non_exhaustive()
    }
}

impl Identity {
    /// Checks that the three belong together. Expiry is not an error here: see [`Identity::expires`].
    ///
    /// # Errors
    /// One is unreadable, the key is another's, the CA did not sign the certificate, or it is not a node's.
    pub fn new(key: &str, certificate: &str, ca_certificate: &str) -> Result<Self, TrustError> {
        let pair = ca::key_pair("the node key", key)?;
        let der = name::certificate_der("the node certificate", certificate)?;
        let ca_der = name::certificate_der("the CA certificate", ca_certificate)?;
        let (node, root) = (name::parse(&der)?, name::parse(&ca_der)?);
        if node.issuer() != root.subject() || node.verify_signature(Some(root.public_key())).is_err() {
            return Err(TrustError::ForeignIssuer);
        }
        if name::public_key(&der)? != pair.public_key_raw() {
            return Err(TrustError::KeyMismatch);
        }
        let seconds = node.validity().not_after.timestamp();
        Ok(Self {
            name: NodeName::of_der(&der)?,
            key: key.to_owned(),
            certificate: name::to_pem(&der),
            ca_certificate: name::to_pem(&ca_der),
            expires: Timestamp(seconds.saturating_mul(1_000_000_000)),
        })
    }

    /// Who it says the node is.
    pub fn name(&self) -> &NodeName {
        &self.name
    }
    /// The node.
    pub fn node_id(&self) -> &NodeId {
        &self.name.node_id
    }
    /// Its role when the certificate was issued.
    pub fn role(&self) -> Role {
        self.name.role
    }
    /// Its cluster.
    pub fn cluster_id(&self) -> &ClusterId {
        &self.name.cluster_id
    }
    /// Node key, PEM.
    pub fn key(&self) -> &str {
        &self.key
    }
    /// Node certificate, PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }
    /// Root CA, PEM.
    pub fn ca_certificate(&self) -> &str {
        &self.ca_certificate
    }
    /// Node certificate, DER.
    ///
    /// # Errors
    /// None in practice: it was read before.
    pub fn certificate_der(&self) -> Result<Vec<u8>, TrustError> {
        name::certificate_der("the node certificate", &self.certificate)
    }
    /// Root CA, DER.
    ///
    /// # Errors
    /// None in practice: it was read before.
    pub fn ca_der(&self) -> Result<Vec<u8>, TrustError> {
        name::certificate_der("the CA certificate", &self.ca_certificate)
    }
    /// Digest of the root CA.
    ///
    /// # Errors
    /// None in practice: it was read before.
    pub fn ca_digest(&self) -> Result<CaDigest, TrustError> {
        CaDigest::of_pem(&self.ca_certificate)
    }
    /// End of the certificate's life.
    pub fn expires(&self) -> Timestamp {
        self.expires
    }
}
