//! Keys, requests and certificates of host names, as a public certificate authority issues them.

use super::{SelfSigned, TrustError, Validity, name};
use crate::model::Secret;
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};
use sha2::{Digest as _, Sha256};
use std::net::IpAddr;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// A new key and the request for its certificate.
pub struct CertificateRequest {
    /// PKCS #8, DER.
    pub key: Secret<Vec<u8>>,
    /// DER.
    pub csr: Vec<u8>,
}

fn fail(what: &'static str) -> impl Fn(rcgen::Error) -> TrustError {
    move |why| TrustError::Make { what, why: why.to_string() }
}

impl CertificateRequest {
    /// For these host names and addresses.
    ///
    /// # Errors
    /// One is no name, or the crypto library failed.
    pub fn new(names: &[String]) -> Result<Self, TrustError> {
        let fail = fail("a certificate request");
        let key = KeyPair::generate().map_err(&fail)?;
        let mut params = CertificateParams::new(names).map_err(&fail)?;
        // The default asks for a common name that is no host of ours.
        params.distinguished_name = DistinguishedName::new();
        let csr = params.serialize_request(&key).map_err(&fail)?;
        Ok(Self { key: Secret::new(key.serialize_der()), csr: csr.der().to_vec() })
    }
}

/// A certificate that an authority has issued.
pub struct PublicCertificate {
    /// Chain and key, PEM.
    pub pem: Secret<String>,
    /// Common name of the issuer, or its whole name.
    pub issuer: String,
    pub validity: Validity,
}

impl PublicCertificate {
    /// Checks that a chain is for this key and these names.
    ///
    /// # Errors
    /// It is unreadable, for another key, or lacks a name.
    pub fn new(chain: &str, key: &[u8], names: &[String]) -> Result<Self, TrustError> {
        let pair = KeyPair::try_from(key).map_err(fail("a key of a stored order"))?;
        let leaf = leaf(chain)?;
        if name::public_key(&leaf)? != pair.public_key_raw() {
            return Err(TrustError::KeyMismatch);
        }
        let certificate = name::parse(&leaf)?;
        let has = names_of(&certificate)?;
        if let Some(missing) = names.iter().find(|name| !has.contains(name)) {
            return Err(TrustError::Unreadable {
                what: "the certificate",
                why: format!("it lacks {missing}, it is for {}", has.join(", ")),
            });
        }
        let CertificateFacts { issuer, validity, .. } = about(&leaf)?;
        let pem = Secret::new(format!("{}\n{}", chain.trim_end(), pair.serialize_pem()));
        Ok(Self { pem, issuer, validity })
    }
}

/// What users are shown of a certificate.
pub struct CertificateFacts {
    /// Common name of the issuer, or its whole name.
    pub issuer: String,
    pub validity: Validity,
    /// Host names and addresses, in lower case.
    pub names: Vec<String>,
}

/// Reads a certificate, DER. Does not check its signature.
///
/// # Errors
/// It is unreadable.
pub fn about(der: &[u8]) -> Result<CertificateFacts, TrustError> {
    let certificate = name::parse(der)?;
    let common_name = certificate.issuer().iter_common_name().next().and_then(|name| name.as_str().ok());
    let issuer = common_name.map_or_else(|| certificate.issuer().to_string(), str::to_owned);
    Ok(CertificateFacts { issuer, validity: Validity::of_der(der)?, names: names_of(&certificate).unwrap_or_default() })
}

/// The first certificate of a chain in PEM, DER.
///
/// # Errors
/// There is none.
pub fn leaf(chain: &str) -> Result<Vec<u8>, TrustError> {
    let unreadable = |why: String| TrustError::Unreadable { what: "the certificate chain", why };
    let (_, pem) = x509_parser::pem::parse_x509_pem(chain.as_bytes()).map_err(|error| unreadable(error.to_string()))?;
    X509Certificate::from_der(&pem.contents).map_err(|error| unreadable(error.to_string()))?;
    Ok(pem.contents)
}

fn names_of(certificate: &X509Certificate<'_>) -> Result<Vec<String>, TrustError> {
    let unreadable = |why: String| TrustError::Unreadable { what: "the certificate", why };
    let names = certificate.subject_alternative_name().map_err(|error| unreadable(error.to_string()))?;
    let text = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|bytes| IpAddr::from(bytes).to_string()),
            _ => <[u8; 16]>::try_from(*bytes).ok().map(|bytes| IpAddr::from(bytes).to_string()),
        },
        _ => None,
    };
    Ok(names.map(|names| names.value.general_names.iter().filter_map(text).collect()).unwrap_or_default())
}

/// The certificate that answers a challenge of the kind tls-alpn-01 for a name or address.
///
/// # Errors
/// It is no name, or the crypto library failed.
pub fn challenge_certificate(name: &str, key_authorization: &str) -> Result<SelfSigned, TrustError> {
    let fail = fail("the certificate of a challenge");
    let key = KeyPair::generate().map_err(&fail)?;
    let mut params = CertificateParams::new([name.to_owned()]).map_err(&fail)?;
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(&Sha256::digest(key_authorization))];
    let certificate = params.self_signed(&key).map_err(&fail)?;
    Ok(SelfSigned { certificate: certificate.der().to_vec(), key: Secret::new(key.serialize_der()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_names_its_hosts_and_nothing_else() {
        let names = ["*.a.test".to_owned(), "a.test".to_owned(), "192.0.2.7".to_owned()];
        let request = CertificateRequest::new(&names).unwrap();
        let read = rcgen::CertificateSigningRequestParams::from_der(&request.csr.clone().into()).unwrap();
        assert_eq!(read.params.subject_alt_names.len(), 3);
        assert_eq!(read.params.distinguished_name.iter().count(), 0);
    }

    #[test]
    fn a_certificate_for_another_key_or_without_a_name_is_refused() {
        let hosts = ["a.test".to_owned(), "b.test".to_owned()];
        let one = super::super::self_signed(hosts.to_vec()).unwrap();
        let other = super::super::self_signed(hosts.to_vec()).unwrap();
        let chain = name::to_pem(&one.certificate);
        let made = PublicCertificate::new(&chain, one.key.expose(), &hosts).unwrap();
        assert!(made.pem.expose().starts_with(chain.trim_end()) && made.pem.expose().contains("PRIVATE KEY"));
        assert_eq!(made.issuer, "skep: self-signed");
        let refused = |chain: &str, key: &[u8], names: &[String]| match PublicCertificate::new(chain, key, names) {
            Ok(_) => panic!("accepted"),
            Err(error) => error,
        };
        assert_eq!(refused(&chain, other.key.expose(), &hosts), TrustError::KeyMismatch);
        assert!(refused(&chain, one.key.expose(), &["c.test".to_owned()]).to_string().contains("lacks c.test"));
        assert!(refused("<html>", one.key.expose(), &hosts).to_string().contains("not readable"));
    }
}
