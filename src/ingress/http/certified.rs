//! Certificates that this process has made, as they are served.

use crate::trust::SelfSigned;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use std::sync::Arc;

/// A certificate with its key.
///
/// # Errors
/// The crypto library does not take the key.
pub(super) fn certified(made: SelfSigned) -> Result<Arc<CertifiedKey>, String> {
    let key = PrivatePkcs8KeyDer::from(made.key.expose().clone()).into();
    let signer = any_supported_type(&key).map_err(|error| error.to_string())?;
    Ok(Arc::new(CertifiedKey::new(vec![CertificateDer::from(made.certificate)], signer)))
}
