//! The request for a new account with a key that is stored already. The ACME library makes one either with a key of its own, or with
//! one given and neither contact nor external account: here its request gets both, and is signed again with the same key.

use crate::model::Secret;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use instant_acme::Key;
use ring::hmac as mac;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use rustls::pki_types::PrivatePkcs8KeyDer;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The user's account with the authority.
#[derive(Clone)]
pub(super) struct ExternalBinding {
    pub key_id: String,
    /// The MAC key as bytes.
    pub key: Secret<Vec<u8>>,
}

/// What the request says beside the terms of service.
pub(super) struct NewAccountRequest {
    key: EcdsaKeyPair,
    contact: Option<String>,
    external: Option<ExternalBinding>,
}

/// A signed request (RFC 7515, section 7.2.2).
#[derive(Serialize, Deserialize)]
struct SignedRequest {
    protected: String,
    payload: String,
    signature: String,
}

/// What is read of a request's protected header.
#[derive(Deserialize)]
struct ProtectedHeader {
    url: String,
    jwk: Value,
}

/// A new private key for an account, PKCS #8.
pub(super) fn new_key() -> anyhow::Result<Secret<Vec<u8>>> {
    let (_, key) = Key::generate_pkcs8()?;
    Ok(Secret::new(key.secret_pkcs8_der().to_vec()))
}

/// A key as the ACME library takes it.
pub(super) fn library_key(pkcs8: &[u8]) -> anyhow::Result<(Key, rustls::pki_types::PrivateKeyDer<'static>)> {
    let der = PrivatePkcs8KeyDer::from(pkcs8.to_vec());
    Ok((Key::from_pkcs8_der(der.clone_key())?, der.into()))
}

impl NewAccountRequest {
    /// `pkcs8` is the account's key, `email` an address that the authority writes to; none if empty.
    pub fn new(pkcs8: &[u8], email: &str, external: Option<ExternalBinding>) -> anyhow::Result<Self> {
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8, &SystemRandom::new());
        let key = key.map_err(|error| anyhow::anyhow!("the key of the ACME account is not usable: {error}"))?;
        Ok(Self { key, contact: (!email.is_empty()).then(|| format!("mailto:{email}")), external })
    }

    /// The library's request with this content. Its nonce stays.
    pub fn amended(&self, body: &[u8]) -> anyhow::Result<Bytes> {
        let SignedRequest { protected, .. } = serde_json::from_slice(body)?;
        let header: ProtectedHeader = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(&protected)?)?;
        let mut payload = json!({ "termsOfServiceAgreed": true });
        if let Some(contact) = &self.contact {
            payload["contact"] = json!([contact]);
        }
        if let Some(external) = &self.external {
            payload["externalAccountBinding"] = serde_json::to_value(external.binding(&header))?;
        }
        let payload = URL_SAFE_NO_PAD.encode(payload.to_string());
        let signature = self.key.sign(&SystemRandom::new(), format!("{protected}.{payload}").as_bytes());
        let signature = signature.map_err(|_| anyhow::anyhow!("the request for an account cannot be signed"))?;
        let signature = URL_SAFE_NO_PAD.encode(signature.as_ref());
        Ok(serde_json::to_vec(&SignedRequest { protected, payload, signature })?.into())
    }
}

impl ExternalBinding {
    /// The account's public key, signed with the key of the user's account (RFC 8555, section 7.3.4).
    fn binding(&self, header: &ProtectedHeader) -> SignedRequest {
        let protected = json!({ "alg": "HS256", "kid": self.key_id, "url": header.url });
        let (protected, payload) =
            (URL_SAFE_NO_PAD.encode(protected.to_string()), URL_SAFE_NO_PAD.encode(header.jwk.to_string()));
        let key = mac::Key::new(mac::HMAC_SHA256, self.key.expose());
        let signature = URL_SAFE_NO_PAD.encode(mac::sign(&key, format!("{protected}.{payload}").as_bytes()));
        SignedRequest { protected, payload, signature }
    }
}
