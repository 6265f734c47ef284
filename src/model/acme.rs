//! Certificates of a public certificate authority by ACME: what the user has agreed to, the account, and each certificate with
//! the order that is to become it. Whatever a step at the authority needs is stored before the step, so that the next leader
//! goes on where the last one was. Keys are sealed as secrets are.

use super::id::{AcmeCertificateId, ClusterId, SecretId};
use super::meta::Meta;
use super::payload::SealedData;
use super::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The switch and the account. The store has one at most.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AcmeAccount {
    pub id: ClusterId,
    pub meta: Meta,
    pub settings: AcmeSettings,
    /// The private key that it is registered with, PKCS #8. Stored before: where the answer is lost, the next attempt finds the same
    /// account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<SealedData>,
    /// `None`: the account is to be registered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registration: Option<AcmeRegistration>,
    /// Why it could not be registered, or was refused an order as one too many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<AcmeFailure>,
}

impl AcmeAccount {
    /// One that is to be registered, or nothing but the switch.
    #[must_use]
    pub fn new(id: ClusterId, settings: AcmeSettings) -> Self {
        Self { id, meta: Meta::default(), settings, key: None, registration: None, failure: None }
    }
}

/// What the user has said.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct AcmeSettings {
    /// Certificates are ordered and renewed. Those that there are, are served while they are valid, also without.
    pub enabled: bool,
    /// URL of the authority's directory. All managers use it as it is spelled here: account URLs carry the host name.
    pub directory: String,
    /// Roots that the authority's own TLS certificate is verified with, PEM; the host's if empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub root_certificate: String,
    /// Mail address that the authority writes to; none if empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub email: String,
    pub terms_agreed: bool,
    /// Kind of certificate among those that the authority offers; its default if empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub profile: String,
    /// The only kind of challenge that is used; any if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub challenge: Option<AcmeChallengeKind>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external_account: Option<ExternalAccount>,
}

/// The user's account with the authority, to which the ACME account is bound.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ExternalAccount {
    pub key_id: String,
    /// The MAC key as bytes.
    pub key: SealedData,
}

/// An account at the authority.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AcmeRegistration {
    /// Its URL.
    pub url: String,
    /// URL, key and directory as the ACME library writes them.
    pub credentials: SealedData,
}

/// A certificate that is wanted, is there, or both.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AcmeCertificate {
    /// Its first name.
    pub id: AcmeCertificateId,
    pub meta: Meta,
    /// Host names and addresses of the next order, sorted, a wildcard first.
    pub names: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issued: Option<IssuedCertificate>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<AcmeOrder>,
    /// Since the last success.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<AcmeFailure>,
}

/// A certificate that is served.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct IssuedCertificate {
    /// The name of its content among those that nodes are sent; a new one for each content.
    pub payload: SecretId,
    /// Chain and private key, PEM.
    pub data: SealedData,
    pub names: Vec<String>,
    /// Common name of the issuer.
    pub issuer: String,
    pub not_before: Timestamp,
    pub not_after: Timestamp,
    pub renewal: AcmeRenewal,
}

/// When a certificate is to be renewed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AcmeRenewal {
    /// Drawn once for a certificate, or once for a window.
    pub at: Timestamp,
    /// The window that the authority has suggested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<(Timestamp, Timestamp)>,
    /// When the authority is asked for its window again.
    pub ask_at: Timestamp,
}

/// An order at the authority.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AcmeOrder {
    pub url: String,
    /// URL of the account that has it.
    pub account: String,
    pub names: Vec<String>,
    /// The certificate's private key, PKCS #8.
    pub key: SealedData,
    /// The request with that key, DER in base64.
    pub csr: String,
    /// What is still to be proved; empty if the authority asks for nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub challenges: Vec<AcmeChallenge>,
    pub created_at: Timestamp,
    /// The authority is asked for it then.
    pub look_at: Timestamp,
}

/// How the authority is shown that a name is ours.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum AcmeChallengeKind {
    /// It asks for a path without TLS.
    #[serde(rename = "http-01")]
    Http,
    /// It opens a TLS connection that is for this alone.
    #[serde(rename = "tls-alpn-01")]
    TlsAlpn,
    /// It looks a TXT record up.
    #[serde(rename = "dns-01")]
    Dns,
}

impl AcmeChallengeKind {
    /// As ACME spells it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http-01",
            Self::TlsAlpn => "tls-alpn-01",
            Self::Dns => "dns-01",
        }
    }
    /// Of what [`Self::as_str`] writes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Http, Self::TlsAlpn, Self::Dns].into_iter().find(|kind| kind.as_str() == text)
    }
}

/// What proves that a name is ours. Nothing of it is secret.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct AcmeChallenge {
    /// Without `*.` before it.
    pub name: String,
    pub kind: AcmeChallengeKind,
    /// The token: the last segment of the path that the authority asks for.
    #[serde(rename = "token")]
    pub segment: String,
    pub key_authorization: String,
}

/// What went wrong, and when it is tried again.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AcmeFailure {
    pub reason: String,
    pub at: Timestamp,
    pub next: Timestamp,
    /// Failures in a row.
    pub count: u32,
}

/// What every node serves of it.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct AcmePart {
    /// Of all orders; sorted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub challenges: Vec<AcmeChallenge>,
    /// By name of their first host.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub certificates: Vec<ServedCertificate>,
    /// Which certificates there are not, and why, for users.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
    /// The same for programs: failures in a row by name of the first host.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub failures: BTreeMap<String, u32>,
}

/// A certificate and its content's name among the payloads of a view.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ServedCertificate {
    pub payload: SecretId,
    pub names: Vec<String>,
}

impl AcmePart {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
