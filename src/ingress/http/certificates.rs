//! Which certificate a host is served with: that of the secret which its service names, or one that this process has signed
//! itself.

use super::certified::certified;
use super::challenges::{Challenges, PROTOCOL};
use super::index::{HostIndex, PathPrefix};
use super::table::HttpTable;
use crate::model::http::claims::HttpClaim;
use crate::model::{SecretId, Timestamp};
use crate::sync::lock;
use crate::trust;
use arc_swap::ArcSwap;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

/// Hosts that one self-signed certificate names.
const MOST_NAMES: usize = 100;

/// The certificates of a table. Asked at each handshake.
#[derive(Default)]
pub(super) struct Certificates {
    current: ArcSwap<ByHost>,
    loaded: Mutex<LoadedCertificates>,
    /// Hosts that the certificate of their secret does not name, with the service, for users.
    unnamed: ArcSwap<BTreeSet<String>>,
    pub challenges: Arc<Challenges>,
}

#[derive(Default)]
struct ByHost {
    /// `None`: the secret is not here, and another certificate would be wrong.
    hosts: HostIndex<Option<Arc<CertifiedKey>>>,
    self_signed: Option<Arc<CertifiedKey>>,
}

struct LoadedCertificate {
    key: Arc<CertifiedKey>,
    issuer: String,
    not_after: Timestamp,
    names: Vec<String>,
}

impl LoadedCertificate {
    /// Whether clients that ask for a host of a route take it.
    fn is_for(&self, host: &str) -> bool {
        let of_parent = || host.split_once('.').map(|(_, parent)| format!("*.{parent}"));
        host == "*" || self.names.iter().any(|name| name == host) || of_parent().is_some_and(|name| self.names.contains(&name))
    }
}

/// What has been read, kept for tables that do not bring the content again.
#[derive(Default)]
struct LoadedCertificates {
    secrets: BTreeMap<SecretId, Result<LoadedCertificate, String>>,
    self_signed: Option<(Vec<String>, Arc<CertifiedKey>)>,
}

impl std::fmt::Debug for Certificates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("certificates by host")
    }
}

impl Certificates {
    /// Follows a table.
    pub fn set(&self, table: &HttpTable) {
        let mut loaded = lock(&self.loaded);
        let named = table.named_certificates();
        loaded.secrets.retain(|id, _| named.contains(id));
        for (id, content) in &table.certificates {
            // The content of a secret never changes.
            loaded.secrets.entry(id.clone()).or_insert_with(|| read(&content.0));
        }
        let mut by_host = ByHost::default();
        let (mut names, mut unnamed) = (Vec::new(), BTreeSet::new());
        let services: BTreeMap<_, _> = table.services.iter().map(|service| (&service.service_id, service)).collect();
        let service_of = |claim: &HttpClaim| claim.choices.first().and_then(|choice| services.get(&choice.service));
        let mut claims: Vec<_> = table.claims.iter().filter_map(|claim| Some((service_of(claim)?, claim))).collect();
        // The oldest service that names one decides for a host: the first one that is inserted is found.
        claims.sort_by_key(|(service, _)| (service.certificate.is_none(), service.created_at, &service.service_id));
        for (service, claim) in claims {
            match service.certificate.as_ref().map(|id| loaded.secrets.get(id)) {
                Some(Some(Ok(loaded))) => {
                    if claim.tls && !loaded.is_for(&claim.host) {
                        unnamed.insert(format!(
                            "service {}: the certificate of its secret does not name {}, it is for {}: browsers refuse it",
                            service.service_name,
                            claim.host,
                            loaded.names.join(", ")
                        ));
                    }
                    by_host.hosts.insert(&claim.host, PathPrefix::segments("/"), Some(loaded.key.clone()));
                }
                Some(None) => by_host.hosts.insert(&claim.host, PathPrefix::segments("/"), None),
                Some(Some(Err(_))) | None => {
                    let by_acme = table.issued_for(&claim.host).and_then(|id| loaded.secrets.get(id)?.as_ref().ok());
                    match by_acme {
                        Some(loaded) => by_host.hosts.insert(&claim.host, PathPrefix::segments("/"), Some(loaded.key.clone())),
                        None if claim.host != "*" => names.push(claim.host.clone()),
                        None => {}
                    }
                }
            }
        }
        names.sort();
        names.dedup();
        names.truncate(MOST_NAMES);
        by_host.self_signed = loaded.self_signed(names);
        self.current.store(Arc::new(by_host));
        self.unnamed.store(Arc::new(unnamed));
    }

    /// Hosts that the certificate of their secret does not name, for users.
    pub fn problems(&self) -> Vec<String> {
        self.unnamed.load().iter().cloned().collect()
    }

    /// What a host is served with, for users, and the end of its life: the certificate of the secret, or else the one by ACME. A
    /// self-signed one of this process has no end.
    pub fn describe(&self, host: &str, secret: Option<&SecretId>, issued: Option<&SecretId>) -> (String, Option<Timestamp>) {
        let loaded = lock(&self.loaded);
        let by_acme_or = |text: String| match issued.and_then(|id| loaded.secrets.get(id)) {
            Some(Ok(one)) => (one.issuer.clone(), Some(one.not_after)),
            _ => (text, None),
        };
        match secret.map(|id| loaded.secrets.get(id)) {
            Some(Some(Ok(one))) if one.is_for(host) => ("secret".to_owned(), Some(one.not_after)),
            Some(Some(Ok(one))) => ("secret, which does not name the host".to_owned(), Some(one.not_after)),
            Some(Some(Err(why))) => by_acme_or(format!("self-signed: {why}")),
            Some(None) => ("none: the secret's content is not here yet".to_owned(), None),
            None => by_acme_or("self-signed".to_owned()),
        }
    }
}

impl LoadedCertificates {
    fn self_signed(&mut self, names: Vec<String>) -> Option<Arc<CertifiedKey>> {
        if let Some((of, key)) = &self.self_signed
            && *of == names
        {
            return Some(key.clone());
        }
        let made = trust::self_signed(names.clone()).map_err(|error| error.to_string()).and_then(certified);
        match made {
            Ok(key) => {
                self.self_signed = Some((names, key.clone()));
                Some(key)
            }
            Err(error) => {
                tracing::warn!(%error, "cannot make a self-signed certificate");
                None
            }
        }
    }
}

/// Certificate chain and key in PEM, in base64.
fn read(content: &str) -> Result<LoadedCertificate, String> {
    let pem = STANDARD.decode(content).map_err(|_| "the content is not readable".to_owned())?;
    let chain: Result<Vec<CertificateDer<'static>>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let chain = chain.ok().filter(|chain| !chain.is_empty()).ok_or("the secret has no certificate in PEM")?;
    let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|_| "the secret has no private key in PEM beside the certificate")?;
    let signer = any_supported_type(&key).map_err(|_| "the private key is of a kind that is not supported: use ECDSA or RSA")?;
    let certified = CertifiedKey::new(chain, signer);
    match certified.keys_match() {
        Ok(()) => {
            let about = trust::about(&certified.cert[0]).map_err(|error| error.to_string())?;
            Ok(LoadedCertificate {
                key: Arc::new(certified),
                issuer: about.issuer,
                not_after: about.validity.not_after,
                names: about.names,
            })
        }
        Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::KeyMismatch)) => {
            Err("the private key does not belong to the certificate".to_owned())
        }
        Err(error) => Err(format!("the certificate is not readable: {error}")),
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, client: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // A client that offers other protocols too wants a page.
        if client.alpn().is_some_and(|offered| offered.eq([PROTOCOL])) {
            return self.challenges.certificate(client.server_name()?);
        }
        let current = self.current.load();
        match client.server_name().and_then(|name| current.hosts.find(name, "/")) {
            Some(named) => named.clone(),
            None => current.self_signed.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pem(label: &str, der: &[u8]) -> String {
        let body = STANDARD.encode(der);
        let lines: Vec<&str> = body.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
        format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
    }

    #[test]
    fn a_certificate_of_a_secret_that_does_not_name_the_host_is_named() {
        let made = trust::self_signed(vec!["a.b".to_owned(), "*.c.d".to_owned()]).unwrap();
        let content = format!("{}{}", pem("CERTIFICATE", &made.certificate), pem("PRIVATE KEY", made.key.expose()));
        let service = crate::model::http::claims::tests::service("web", 1, "a.b,x.c.d,y.x.c.d,*.c.d,e.f", None);
        let service = Arc::new(crate::model::http::HttpService { certificate: Some("s".into()), ..(*service).clone() });
        let (claims, _) = crate::model::http::claims::decide(std::slice::from_ref(&service));
        let content = super::super::table::CertificateContent(STANDARD.encode(content));
        let table =
            HttpTable { services: vec![service], claims, certificates: [("s".into(), content)].into(), ..HttpTable::default() };
        let certificates = Certificates::default();
        certificates.set(&table);
        let problems = certificates.problems();
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(
            problems[0].contains("does not name e.f, it is for a.b, *.c.d") && problems[1].contains("y.x.c.d"),
            "{problems:?}"
        );
        let described = |host: &str| certificates.describe(host, Some(&"s".into()), None).0;
        assert_eq!((described("x.c.d").as_str(), described("e.f").as_str()), ("secret", "secret, which does not name the host"));
    }

    #[test]
    fn a_secret_that_is_no_certificate_with_its_key_says_why() {
        let one = trust::self_signed(vec!["a.b".to_owned()]).unwrap();
        let other = trust::self_signed(vec!["a.b".to_owned()]).unwrap();
        let certificate = pem("CERTIFICATE", &one.certificate);
        let key = |made: &trust::SelfSigned| pem("PRIVATE KEY", made.key.expose());
        let read = |text: &str| super::read(&STANDARD.encode(text)).map(|_| ());
        assert_eq!(read(&format!("{certificate}{}", key(&one))), Ok(()));
        assert_eq!(read(&format!("{}{certificate}", key(&one))), Ok(()), "in any order");
        for (text, expected) in [
            (String::new(), "no certificate"),
            ("garbage".to_owned(), "no certificate"),
            (certificate.clone(), "no private key"),
            (key(&one), "no certificate"),
            (format!("{certificate}{}", key(&other)), "does not belong"),
            (format!("{}{}", pem("CERTIFICATE", b"x"), key(&one)), "not readable"),
        ] {
            let why = read(&text).unwrap_err();
            assert!(why.contains(expected), "{expected}: {why}");
        }
    }
}
