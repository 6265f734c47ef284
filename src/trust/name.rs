//! Parsing certificates: PEM, names, keys. Decides nothing about validity.

use super::TrustError;
use crate::model::{ClusterId, NodeId, Role};
use base64::Engine as _;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// The node that a certificate is issued for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeName {
    /// CN.
    pub node_id: NodeId,
    /// OU, `swarm-worker` or `swarm-manager`.
    pub role: Role,
    /// O.
    pub cluster_id: ClusterId,
}

impl NodeName {
    /// Reads the subject of a certificate, DER. Does not check its signature.
    ///
    /// # Errors
    /// The subject is not a node's.
    pub fn of_der(der: &[u8]) -> Result<Self, TrustError> {
        let certificate = parse(der)?;
        let subject = certificate.subject();
        let one = |what: &str, values: Vec<&x509_parser::x509::AttributeTypeAndValue<'_>>| match values.as_slice() {
            [value] => value.as_str().map(str::to_owned).map_err(|_| TrustError::NotANode(format!("its {what} is not text"))),
            _ => Err(TrustError::NotANode(format!("it has no {what}, or several"))),
        };
        let node_id = one("common name", subject.iter_common_name().collect())?;
        let role = one("unit", subject.iter_organizational_unit().collect())?;
        let cluster_id = one("organization", subject.iter_organization().collect())?;
        let role = [Role::Worker, Role::Manager]
            .into_iter()
            .find(|r| unit(*r) == role)
            .ok_or_else(|| TrustError::NotANode(format!("its unit is {role:?}")))?;
        if node_id.is_empty() || cluster_id.is_empty() {
            return Err(TrustError::NotANode("an empty name".to_owned()));
        }
        Ok(Self { node_id: node_id.into(), role, cluster_id: cluster_id.into() })
    }
}

/// Parses DER; trailing bytes are an error.
pub(super) fn parse(der: &[u8]) -> Result<X509Certificate<'_>, TrustError> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err(TrustError::Unreadable { what: "the certificate", why: "trailing data".to_owned() }),
        Err(e) => Err(TrustError::Unreadable { what: "the certificate", why: e.to_string() }),
    }
}

/// The one certificate in a PEM text, as DER.
pub(super) fn certificate_der(what: &'static str, text: &str) -> Result<Vec<u8>, TrustError> {
    let unreadable = |why: &str| TrustError::Unreadable { what, why: why.to_owned() };
    let (rest, pem) = x509_parser::pem::parse_x509_pem(text.as_bytes()).map_err(|e| unreadable(&e.to_string()))?;
    if pem.label != "CERTIFICATE" {
        return Err(unreadable(&format!("it is a {}", pem.label)));
    }
    if rest.iter().any(|c| !c.is_ascii_whitespace()) {
        return Err(unreadable("trailing data"));
    }
    parse(&pem.contents).map_err(|e| unreadable(&e.to_string()))?;
    Ok(pem.contents)
}

/// A certificate as PEM in the one form that digests are computed from: lines of 64 characters, LF, as openssl and Go write
/// it.
pub(super) fn to_pem(der: &[u8]) -> String {
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in body.as_bytes().chunks(64) {
        text.extend(line.iter().map(|c| char::from(*c)));
        text.push('\n');
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}

/// The public key's bits (an uncompressed point).
pub(super) fn public_key(der: &[u8]) -> Result<Vec<u8>, TrustError> {
    Ok(parse(der)?.public_key().subject_public_key.data.to_vec())
}

/// The OU that names a role.
pub(super) fn unit(role: Role) -> &'static str {
    match role {
        Role::Worker => "swarm-worker",
        Role::Manager => "swarm-manager",
    }
}
