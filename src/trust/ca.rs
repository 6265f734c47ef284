//! The root CA and the certificates that it issues. ECDSA P-256 throughout; names and lifetimes as in Swarm, so that tools
//! for Swarm's certificates read these.

use super::{CaDigest, NodeName, TrustError, name, renewal::BACKDATED};
use crate::model::{Secret, Timestamp, cluster::CaSettings};
use rand::Rng;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType, DnValue,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber,
};
use std::fmt;
use std::time::Duration;

const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);
/// Life of a root CA: 20 years, as Swarm's.
pub(super) const ROOT_LIFE: Duration = Duration::from_hours(20 * 365 * 24);
/// Life of a node certificate unless the cluster spec sets one.
const NODE_LIFE: Duration = Duration::from_hours(90 * 24);

/// The root CA of a cluster: certificate and key.
#[derive(Clone, PartialEq, Eq)]
pub struct RootCa {
    pub(super) certificate: String,
    key: Secret<String>,
}

impl fmt::Debug for RootCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RootCa").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

impl RootCa {
    /// Creates a new root CA. The key is from the system's random generator, the serial number from `rng`.
    ///
    /// # Errors
    /// The crypto library failed.
    pub fn generate(rng: &mut impl Rng, now: Timestamp) -> Result<Self, TrustError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|e| creation_error("a CA key", &e))?;
        let mut params = CertificateParams::default();
        validity(&mut params, now, ROOT_LIFE);
        params.serial_number = Some(serial(rng));
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, printable("swarm-ca")?);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).map_err(|e| creation_error("a CA certificate", &e))?;
        Ok(Self { certificate: name::to_pem(certificate.der()), key: key.serialize_pem().into() })
    }

    /// The CA as stored in the cluster object.
    ///
    /// # Errors
    /// One of them is unreadable, or the key does not belong to the certificate.
    pub fn from_pem(certificate: &str, key: &str) -> Result<Self, TrustError> {
        let pair = key_pair("the CA key", key)?;
        let der = name::certificate_der("the CA certificate", certificate)?;
        if name::public_key(&der)? != pair.public_key_raw() {
            return Err(TrustError::KeyMismatch);
        }
        Ok(Self { certificate: name::to_pem(&der), key: key.into() })
    }

    /// Certificate, PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Key, PEM. Managers only.
    pub fn key(&self) -> &str {
        self.key.expose()
    }

    /// The digest that join tokens contain.
    ///
    /// # Errors
    /// None in practice: the certificate was parsed before.
    pub fn digest(&self) -> Result<CaDigest, TrustError> {
        CaDigest::of_pem(&self.certificate)
    }
}

/// What the Docker API shows of the CA (`TLSInfo`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TlsInfo {
    /// Root certificate, PEM.
    pub trust_root: String,
    /// Subject of the issuer, DER.
    pub issuer_subject: Vec<u8>,
    /// Public key of the issuer, DER.
    pub issuer_public_key: Vec<u8>,
}

impl TlsInfo {
    /// # Errors
    /// The root certificate is unreadable.
    pub fn of(ca_certificate: &str) -> Result<Self, TrustError> {
        let der = name::certificate_der("the CA certificate", ca_certificate)?;
        let certificate = name::parse(&der)?;
        Ok(Self {
            trust_root: ca_certificate.to_owned(),
            issuer_subject: certificate.subject().as_raw().to_vec(),
            issuer_public_key: certificate.public_key().raw.to_vec(),
        })
    }
}

/// A node's own key; it never leaves the node.
pub struct NodeKey(KeyPair);

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeKey(…)")
    }
}

impl NodeKey {
    /// A new key from the system's random generator.
    ///
    /// # Errors
    /// The crypto library failed.
    pub fn generate() -> Result<Self, TrustError> {
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map(Self).map_err(|e| creation_error("a node key", &e))
    }

    /// Parses PEM.
    ///
    /// # Errors
    /// It is not a P-256 key.
    pub fn from_pem(text: &str) -> Result<Self, TrustError> {
        key_pair("the node key", text).map(Self)
    }

    /// As PEM (PKCS #8).
    pub fn to_pem(&self) -> String {
        self.0.serialize_pem()
    }

    /// A certificate signing request, PEM. It has no subject: the CA decides the names.
    ///
    /// # Errors
    /// The crypto library failed.
    pub fn request(&self) -> Result<String, TrustError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let request = params.serialize_request(&self.0).map_err(|e| creation_error("a certificate request", &e))?;
        request.pem().map_err(|e| creation_error("a certificate request", &e))
    }
}

/// Issues a node certificate (PEM). Only the public key of the request is used; the request's signature proves that the
/// requester has the private key. A lifetime of zero means 90 days.
///
/// # Errors
/// The request is unreadable, its signature is wrong, or its key is not P-256.
pub fn issue(
    ca: &RootCa,
    request: &str,
    node: &NodeName,
    now: Timestamp,
    life: Duration,
    rng: &mut impl Rng,
) -> Result<String, TrustError> {
    let request = CertificateSigningRequestParams::from_pem(request)
        .map_err(|e| TrustError::Unreadable { what: "the certificate request", why: e.to_string() })?;
    if *request.public_key.algorithm() != PKCS_ECDSA_P256_SHA256 {
        return Err(TrustError::WrongKind { what: "the key of the certificate request" });
    }
    let issuer = Issuer::from_ca_cert_pem(&ca.certificate, key_pair("the CA key", ca.key())?)
        .map_err(|e| TrustError::Unreadable { what: "the CA certificate", why: e.to_string() })?;
    let mut params = CertificateParams::default();
    validity(&mut params, now, if life.is_zero() { NODE_LIFE } else { life });
    params.serial_number = Some(serial(rng));
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, printable(node.cluster_id.as_str())?);
    params.distinguished_name.push(DnType::OrganizationalUnitName, printable(name::unit(node.role))?);
    params.distinguished_name.push(DnType::CommonName, printable(node.node_id.as_str())?);
    let san = node.node_id.as_str().try_into().map_err(|e| creation_error("the certificate's name", &e))?;
    params.subject_alt_names = vec![SanType::DnsName(san)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    let certificate = params.signed_by(&request.public_key, &issuer).map_err(|e| creation_error("a node certificate", &e))?;
    Ok(name::to_pem(certificate.der()))
}

/// Lifetime of node certificates by the cluster's settings: 90 days without one, an hour at least.
pub fn node_life(settings: &CaSettings) -> Duration {
    let requested = settings.node_cert_expiry.map_or(Duration::ZERO, crate::model::Nanos::duration);
    if requested.is_zero() { NODE_LIFE } else { requested.max(HOUR) }
}

/// Parses a P-256 key.
pub(super) fn key_pair(what: &'static str, pem: &str) -> Result<KeyPair, TrustError> {
    let pair = KeyPair::from_pem(pem).map_err(|e| TrustError::Unreadable { what, why: e.to_string() })?;
    if pair.is_compatible(&PKCS_ECDSA_P256_SHA256) { Ok(pair) } else { Err(TrustError::WrongKind { what }) }
}

pub(super) fn validity(params: &mut CertificateParams, now: Timestamp, life: Duration) {
    let now = time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(now.0)).unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    params.not_before = now - BACKDATED;
    params.not_after = now + life.min(365 * 100 * DAY);
}

pub(super) fn serial(rng: &mut impl Rng) -> SerialNumber {
    let mut bytes: [u8; 20] = rng.random();
    bytes[0] = bytes[0] & 0x7f | 0x40; // positive, and without leading zero bits, which DER would drop
    SerialNumber::from_slice(&bytes)
}

fn printable(text: &str) -> Result<DnValue, TrustError> {
    text.try_into().map(DnValue::PrintableString).map_err(|e| creation_error("the certificate's name", &e))
}

pub(super) fn creation_error(what: &'static str, why: &rcgen::Error) -> TrustError {
    TrustError::Make { what, why: why.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ClusterId, NodeId, Role};
    use base64::Engine as _;
    use rand::SeedableRng;

    fn node(role: Role) -> NodeName {
        NodeName {
            node_id: NodeId::from("ty9y0lg7dkj9kci5tkukt89nx"),
            role,
            cluster_id: ClusterId::from("c67q4jahe2xaweq5gh2g0oqvo"),
        }
    }
    const NOW: Timestamp = Timestamp(1_795_000_000_000_000_000);

    #[test]
    fn a_certificate_names_its_node_and_its_life() {
        let rng = &mut rand::rngs::StdRng::seed_from_u64(1);
        let ca = RootCa::generate(rng, NOW).unwrap();
        let key = NodeKey::generate().unwrap();
        let pem = issue(&ca, &key.request().unwrap(), &node(Role::Manager), NOW, Duration::ZERO, rng).unwrap();
        let der = name::certificate_der("it", &pem).unwrap();
        assert_eq!(NodeName::of_der(&der).unwrap(), node(Role::Manager));
        let parsed = name::parse(&der).unwrap();
        let seconds = NOW.0 / 1_000_000_000;
        assert_eq!(parsed.validity().not_before.timestamp(), seconds - 3600);
        assert_eq!(parsed.validity().not_after.timestamp(), seconds + 90 * 24 * 3600);
        assert_eq!(parsed.issuer().to_string(), "CN=swarm-ca");
        assert!(!parsed.is_ca());
    }

    #[test]
    fn the_life_of_certificates_is_the_swarms_setting_and_an_hour_at_least() {
        let life = |nanos: Option<i64>| {
            node_life(&CaSettings { node_cert_expiry: nanos.map(crate::model::Nanos), ..CaSettings::default() })
        };
        assert_eq!((life(None), life(Some(0))), (NODE_LIFE, NODE_LIFE));
        assert_eq!(life(Some(7_200_000_000_000)), Duration::from_hours(2));
        assert_eq!(life(Some(1)), HOUR, "written by an earlier build");
        let rng = &mut rand::rngs::StdRng::seed_from_u64(1);
        let ca = RootCa::generate(rng, NOW).unwrap();
        let request = NodeKey::generate().unwrap().request().unwrap();
        let pem = issue(&ca, &request, &node(Role::Worker), NOW, life(Some(7_200_000_000_000)), rng).unwrap();
        let der = name::certificate_der("it", &pem).unwrap();
        let until = name::parse(&der).unwrap().validity().not_after.timestamp();
        assert_eq!(until, NOW.0 / 1_000_000_000 + 7200);
    }

    #[test]
    fn only_the_key_of_a_request_is_used() {
        let rng = &mut rand::rngs::StdRng::seed_from_u64(1);
        let ca = RootCa::generate(rng, NOW).unwrap();
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::new(["swarm-ca".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, "swarm-ca");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let request = params.serialize_request(&pair).unwrap().pem().unwrap();
        let pem = issue(&ca, &request, &node(Role::Worker), NOW, HOUR, rng).unwrap();
        let der = name::certificate_der("it", &pem).unwrap();
        assert_eq!(NodeName::of_der(&der).unwrap(), node(Role::Worker));
        assert!(!name::parse(&der).unwrap().is_ca());
        assert_eq!(name::public_key(&der).unwrap(), pair.public_key_raw());
    }

    #[test]
    fn a_malformed_request_is_refused() {
        let rng = &mut rand::rngs::StdRng::seed_from_u64(1);
        let ca = RootCa::generate(rng, NOW).unwrap();
        for bad in ["", "hello", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"] {
            let refused = issue(&ca, bad, &node(Role::Worker), NOW, HOUR, rng);
            assert!(matches!(refused, Err(TrustError::Unreadable { .. })), "{bad:?}: {refused:?}");
        }
        let other = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let request = CertificateParams::default().serialize_request(&other).unwrap().pem().unwrap();
        let refused = issue(&ca, &request, &node(Role::Worker), NOW, HOUR, rng);
        assert!(matches!(refused, Err(TrustError::WrongKind { .. })), "{refused:?}");
    }

    #[test]
    fn the_root_is_as_recorded_from_swarm() {
        let rng = &mut rand::rngs::StdRng::seed_from_u64(1);
        let ca = RootCa::generate(rng, NOW).unwrap();
        let info = TlsInfo::of(ca.certificate()).unwrap();
        let b64 = base64::engine::general_purpose::STANDARD.encode(&info.issuer_subject);
        assert_eq!(b64, "MBMxETAPBgNVBAMTCHN3YXJtLWNh", "as recorded from a real swarm");
        assert_eq!(RootCa::from_pem(ca.certificate(), ca.key()).unwrap(), ca);
        let other = RootCa::generate(rng, NOW).unwrap();
        assert_eq!(RootCa::from_pem(ca.certificate(), other.key()), Err(TrustError::KeyMismatch));
    }
}
