//! The step from one root CA to the next: what a new root must be, the certificate of its key by the old root, and what a node accepts
//! as the successor of the root that it trusts. Pure.

use super::ca::{ROOT_LIFE, creation_error, key_pair, serial, validity};
use super::{RootCa, TrustError, name};
use crate::model::Timestamp;
use rand::Rng;
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, DnValue, IsCa, Issuer, KeyUsagePurpose};
use std::time::Duration;
use x509_parser::der_parser::asn1_rs::Tag;
use x509_parser::x509::X509Name;

/// A root must be valid for so much longer, as Swarm's.
const SHORTEST: Duration = Duration::from_hours(365 * 24);
/// Certificates of a chain that are looked at.
const LONGEST: usize = 8;

/// Why a root CA that a user gives is not taken. Swarm's words where it has them.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NewRootError {
    #[error("CA certificate expires too soon")]
    TooShort,
    #[error("certificate key mismatch")]
    KeyMismatch,
    #[error("the certificate is not that of a CA (basicConstraints CA:TRUE)")]
    NotACa,
    #[error("unsupported key parameters: skep's certificates are ECDSA P-256 throughout, make the CA with such a key")]
    Unsupported,
    #[error("{0}")]
    Unreadable(TrustError),
}

/// Reads and checks a root CA that a user gives.
///
/// # Errors
/// See [`NewRootError`].
pub fn check_new_root(certificate: &str, key: &str, now: Timestamp) -> Result<RootCa, NewRootError> {
    let root = RootCa::from_pem(certificate, key).map_err(|error| match error {
        TrustError::KeyMismatch => NewRootError::KeyMismatch,
        TrustError::WrongKind { .. } => NewRootError::Unsupported,
        other => NewRootError::Unreadable(other),
    })?;
    let der = name::certificate_der("the CA certificate", &root.certificate).map_err(NewRootError::Unreadable)?;
    let parsed = name::parse(&der).map_err(NewRootError::Unreadable)?;
    if !parsed.is_ca() {
        return Err(NewRootError::NotACa);
    }
    // The library that signs takes no other names.
    if parsed.subject().iter().any(|part| part.iter().count() != 1) {
        return Err(NewRootError::Unreadable(unusual_name()));
    }
    distinguished_name(parsed.subject()).map_err(NewRootError::Unreadable)?;
    let ends = Timestamp(parsed.validity().not_after.timestamp().saturating_mul(1_000_000_000));
    if ends < now.plus(SHORTEST) {
        return Err(NewRootError::TooShort);
    }
    Ok(root)
}

/// A certificate of the new root's key, issued by the old root, PEM. Who trusts the old root accepts by it what the new one issues.
///
/// # Errors
/// One of the two is unreadable.
pub fn cross_sign(old: &RootCa, new: &RootCa, now: Timestamp, rng: &mut impl Rng) -> Result<String, TrustError> {
    let unreadable = |why: rcgen::Error| TrustError::Unreadable { what: "the CA certificate", why: why.to_string() };
    let issuer = Issuer::from_ca_cert_pem(&old.certificate, key_pair("the CA key", old.key())?).map_err(unreadable)?;
    let der = name::certificate_der("the CA certificate", &new.certificate)?;
    let mut params = CertificateParams::default();
    // A chain is built over its name.
    params.distinguished_name = distinguished_name(name::parse(&der)?.subject())?;
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    validity(&mut params, now, ROOT_LIFE);
    params.serial_number = Some(serial(rng));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.use_authority_key_identifier_extension = true;
    let certificate = params
        .signed_by(&key_pair("the CA key", new.key())?, &issuer)
        .map_err(|e| creation_error("a cross-signed certificate", &e))?;
    if name::parse(certificate.der())?.subject().as_raw() != name::parse(&der)?.subject().as_raw() {
        return Err(unusual_name());
    }
    Ok(name::to_pem(certificate.der()))
}

fn unusual_name() -> TrustError {
    TrustError::Unreadable {
        what: "the CA certificate",
        why: "skep cannot write its subject again: it may have each attribute once, as text".to_owned(),
    }
}

/// The name of a certificate's subject, with the same types of text.
fn distinguished_name(subject: &X509Name<'_>) -> Result<DistinguishedName, TrustError> {
    let mut name = DistinguishedName::new();
    for attribute in subject.iter_attributes() {
        let oid: Vec<u64> = attribute.attr_type().iter().ok_or_else(unusual_name)?.collect();
        let text = attribute.as_str().map_err(|_| unusual_name())?;
        let value = match attribute.attr_value().tag() {
            Tag::PrintableString => DnValue::PrintableString(text.try_into().map_err(|_| unusual_name())?),
            Tag::Ia5String => DnValue::Ia5String(text.try_into().map_err(|_| unusual_name())?),
            Tag::Utf8String => DnValue::Utf8String(text.to_owned()),
            _ => return Err(unusual_name()),
        };
        name.push(DnType::from_oid(&oid), value);
    }
    Ok(name)
}

/// Whether a root is the one that is trusted, or one that this has certified, directly or over others: `chain` in any order, PEM. Times are
/// not looked at: a node that was away for long finds the way all the same.
#[must_use]
pub fn leads_to(trusted: &str, chain: &[String], root: &str) -> bool {
    let der = |pem: &str| name::certificate_der("a CA certificate", pem).ok();
    let (Some(trusted), Some(root)) = (der(trusted), der(root)) else { return false };
    let Ok(wanted) = name::public_key(&root) else { return false };
    let mut links: Vec<Vec<u8>> = chain.iter().take(LONGEST).filter_map(|pem| der(pem)).collect();
    let mut known = vec![trusted];
    while let Some(by) = known.pop() {
        if name::public_key(&by).is_ok_and(|key| key == wanted) {
            return true;
        }
        let Ok(issuer) = name::parse(&by) else { continue };
        let (signed, rest): (Vec<_>, Vec<_>) = links.into_iter().partition(|link| {
            name::parse(link).is_ok_and(|link| {
                link.is_ca() && link.issuer() == issuer.subject() && link.verify_signature(Some(issuer.public_key())).is_ok()
            })
        });
        links = rest;
        known.extend(signed);
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;
    use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};

    const NOW: Timestamp = Timestamp(1_795_000_000_000_000_000);
    const DAY: Duration = Duration::from_hours(24);

    /// What a user makes with openssl: another name, another life.
    fn own(days: u32, is_ca: bool, algorithm: &'static rcgen::SignatureAlgorithm) -> (String, String) {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let mut params = CertificateParams::default();
        validity(&mut params, NOW, days * DAY);
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "our own root");
        params.is_ca = if is_ca { IsCa::Ca(BasicConstraints::Unconstrained) } else { IsCa::ExplicitNoCa };
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    #[test]
    fn a_root_of_the_user_is_checked_as_swarm_checks_it() {
        let (certificate, key) = own(400, true, &PKCS_ECDSA_P256_SHA256);
        assert!(check_new_root(&certificate, &key, NOW).is_ok());
        let (_, other) = own(400, true, &PKCS_ECDSA_P256_SHA256);
        let refused = |(certificate, key): (String, String)| check_new_root(&certificate, &key, NOW).expect_err("refused");
        assert_eq!(refused((certificate.clone(), other)), NewRootError::KeyMismatch);
        for days in [30, 300] {
            assert_eq!(refused(own(days, true, &PKCS_ECDSA_P256_SHA256)), NewRootError::TooShort);
        }
        assert_eq!(refused(own(400, false, &PKCS_ECDSA_P256_SHA256)), NewRootError::NotACa);
        assert_eq!(refused(own(400, true, &rcgen::PKCS_ED25519)), NewRootError::Unsupported);
        assert_eq!(refused(own(400, true, &rcgen::PKCS_ECDSA_P384_SHA384)), NewRootError::Unsupported);
        assert!(matches!(refused((certificate, "no PEM".to_owned())), NewRootError::Unreadable(_)));
        assert!(matches!(refused(("no PEM".to_owned(), key)), NewRootError::Unreadable(_)));
    }

    #[test]
    fn a_root_leads_to_its_successors_and_to_nothing_else() {
        let rng = &mut StdRng::seed_from_u64(1);
        let (one, two, foreign) =
            (RootCa::generate(rng, NOW).unwrap(), RootCa::generate(rng, NOW).unwrap(), RootCa::generate(rng, NOW).unwrap());
        let (certificate, key) = own(4000, true, &PKCS_ECDSA_P256_SHA256);
        let three = check_new_root(&certificate, &key, NOW).unwrap();
        let chain = [cross_sign(&two, &three, NOW, rng).unwrap(), cross_sign(&one, &two, NOW, rng).unwrap()];
        let leads = |from: &RootCa, chain: &[String], to: &RootCa| leads_to(&from.certificate, chain, &to.certificate);
        assert!(leads(&one, &[], &one));
        assert!(leads(&one, &chain, &two) && leads(&two, &chain, &three) && leads(&one, &chain, &three));
        assert!(!leads(&one, &chain[..1], &three), "a link is missing");
        assert!(!leads(&two, &chain, &one), "not back");
        assert!(!leads(&one, &[], &foreign) && !leads(&one, &chain, &foreign));
        // Certified by a CA of the same name with another key.
        let forged = cross_sign(&foreign, &two, NOW, rng).unwrap();
        assert!(!leads(&one, &[forged], &two));
        assert!(
            !leads_to("no PEM", &chain, &three.certificate) && !leads_to(&one.certificate, &["x".to_owned()], &two.certificate)
        );
    }
}
