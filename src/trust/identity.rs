//! A node's identity: key, certificate and CA, checked to belong together before anything uses them.

use super::renewal::Validity;
use super::{CaDigest, NodeName, TrustError, ca, name};
use crate::model::{ClusterId, NodeId, Role, Secret, Timestamp, TrustBundle};
use std::fmt;
use std::sync::Arc;

/// A node's key and certificate, and the CA that issued it.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    name: NodeName,
    key: Secret<String>,
    certificate: String,
    ca_certificate: String,
    validity: Validity,
    /// What it trusts beside its own CA; `None`: nothing.
    bundle: Option<Arc<TrustBundle>>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("name", &self.name).field("validity", &self.validity).finish_non_exhaustive()
    }
}

impl Identity {
    /// Checks that the three belong together. Expiry is not an error here: see [`Identity::expires`].
    ///
    /// # Errors
    /// One of them is unreadable, the key does not belong to the certificate, the CA did not sign the certificate, or it is
    /// not a node's.
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
        Ok(Self {
            name: NodeName::of_der(&der)?,
            key: key.into(),
            certificate: name::to_pem(&der),
            ca_certificate: name::to_pem(&ca_der),
            validity: Validity::of_der(&der)?,
            bundle: None,
        })
    }

    /// The same identity, which trusts what the cluster says.
    #[must_use]
    pub fn trusting(self, bundle: Option<Arc<TrustBundle>>) -> Self {
        Self { bundle, ..self }
    }
    /// What it trusts beside its own CA.
    pub fn bundle(&self) -> Option<&Arc<TrustBundle>> {
        self.bundle.as_ref()
    }
    /// Whether it is of the root CA that issues certificates now, as far as the cluster has said.
    #[must_use]
    pub fn is_of(&self, bundle: Option<&TrustBundle>) -> bool {
        bundle.is_none_or(|bundle| bundle.issuer == self.ca_certificate)
    }
    /// The node that the certificate names.
    pub fn name(&self) -> &NodeName {
        &self.name
    }
    pub fn node_id(&self) -> &NodeId {
        &self.name.node_id
    }
    /// The node's role when the certificate was issued.
    pub fn role(&self) -> Role {
        self.name.role
    }
    pub fn cluster_id(&self) -> &ClusterId {
        &self.name.cluster_id
    }
    /// Node key, PEM.
    pub fn key(&self) -> &str {
        self.key.expose()
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
    /// None in practice: `new` has parsed it.
    pub fn certificate_der(&self) -> Result<Vec<u8>, TrustError> {
        name::certificate_der("the node certificate", &self.certificate)
    }
    /// Root CA, DER.
    ///
    /// # Errors
    /// None in practice: `new` has parsed it.
    pub fn ca_der(&self) -> Result<Vec<u8>, TrustError> {
        name::certificate_der("the CA certificate", &self.ca_certificate)
    }
    /// Roots whose certificates are accepted, DER: its own CA and those of the bundle.
    ///
    /// # Errors
    /// One of the bundle is unreadable.
    pub fn trusted_ders(&self) -> Result<Vec<Vec<u8>>, TrustError> {
        let others = self.bundle.iter().flat_map(|bundle| &bundle.trusted).filter(|pem| **pem != self.ca_certificate);
        [&self.ca_certificate].into_iter().chain(others).map(|pem| name::certificate_der("a CA certificate", pem)).collect()
    }
    /// Whether a certificate, DER, is directly of one of the roots whose certificates are accepted.
    #[must_use]
    pub fn trusts(&self, certificate: &[u8]) -> bool {
        let Ok(certificate) = name::parse(certificate) else { return false };
        self.trusted_ders()
            .unwrap_or_default()
            .iter()
            .any(|root| name::parse(root).is_ok_and(|root| certificate.verify_signature(Some(root.public_key())).is_ok()))
    }
    /// Roots whose certificates are accepted for a renewal alone, DER.
    ///
    /// # Errors
    /// One is unreadable.
    pub fn retired_ders(&self) -> Result<Vec<Vec<u8>>, TrustError> {
        let retired = self.bundle.iter().flat_map(|bundle| &bundle.retired);
        retired.map(|pem| name::certificate_der("a CA certificate", pem)).collect()
    }
    /// Certificates that lead from replaced roots to its CA, DER.
    ///
    /// # Errors
    /// One is unreadable.
    pub fn chain_ders(&self) -> Result<Vec<Vec<u8>>, TrustError> {
        let chain = self.bundle.iter().flat_map(|bundle| &bundle.chain);
        chain.map(|pem| name::certificate_der("a cross-signed certificate", pem)).collect()
    }
    /// Digest of the root CA.
    ///
    /// # Errors
    /// None in practice: `new` has parsed it.
    pub fn ca_digest(&self) -> Result<CaDigest, TrustError> {
        CaDigest::of_pem(&self.ca_certificate)
    }
    /// Life of the node certificate.
    pub fn validity(&self) -> Validity {
        self.validity
    }
    /// End of the node certificate's life.
    pub fn expires(&self) -> Timestamp {
        self.validity.not_after
    }
}
