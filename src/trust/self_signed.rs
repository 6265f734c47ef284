//! Certificates that no authority has confirmed, served until there are better ones.

use super::TrustError;
use crate::model::Secret;
use rcgen::{CertificateParams, DnType, KeyPair};

/// A certificate with its key.
pub struct SelfSigned {
    /// DER.
    pub certificate: Vec<u8>,
    /// PKCS #8, DER.
    pub key: Secret<Vec<u8>>,
}

/// Makes a certificate for these hosts (`*.example.com` too), with a new key.
///
/// # Errors
/// A host is no name, or the crypto library failed.
pub fn self_signed(hosts: Vec<String>) -> Result<SelfSigned, TrustError> {
    let fail = |why: rcgen::Error| TrustError::Make { what: "a self-signed certificate", why: why.to_string() };
    let key = KeyPair::generate().map_err(fail)?;
    let mut params = CertificateParams::new(hosts).map_err(fail)?;
    params.distinguished_name.push(DnType::CommonName, "skep: self-signed");
    let certificate = params.self_signed(&key).map_err(fail)?;
    Ok(SelfSigned { certificate: certificate.der().to_vec(), key: Secret::new(key.serialize_der()) })
}
