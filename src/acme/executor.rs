//! Carries out one step at the authority. Decides nothing about when.

use super::client::AcmeHttp;
use super::dns_hook::DnsHook;
use super::error::{self, AcmeError, AcmeErrorKind};
use super::new_account::{self, ExternalBinding, NewAccountRequest};
use super::settle::ReceivedCertificate;
use crate::http::HttpsClient;
use crate::model::acme::{AcmeChallenge, AcmeChallengeKind, AcmeOrder, AcmeRegistration, AcmeSettings, IssuedCertificate};
use crate::model::payload::SealedData;
use crate::model::{AcmeAccount, AcmeCertificate, AcmeCertificateId, PayloadId, SecretId, Timestamp};
use crate::trust::{CertificateRequest, DataKey, PublicCertificate, leaf};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use instant_acme::{
    Account, AuthorizationHandle, AuthorizationStatus, CertificateIdentifier, ChallengeStatus, ChallengeType, Error, Identifier,
    NewOrder, Order, OrderStatus,
};
use rustls::pki_types::CertificateDer;
use std::net::IpAddr;
use std::time::Duration;

/// Time for one request.
const REQUEST: Duration = Duration::from_secs(30);
/// How long one step follows an order.
const FOLLOWED: Duration = Duration::from_mins(1);
/// Between two looks at an order.
const LOOK: Duration = Duration::from_secs(1);
/// Longest pause between two looks that a step waits itself.
const MOST_LOOK: Duration = Duration::from_secs(10);

/// Longest time until an order that is not decided is looked at again, whatever the authority says.
const MOST_UNDECIDED: Duration = Duration::from_hours(1);

/// Carries out steps with the keys of this manager.
pub struct AcmeExecutor {
    pub key: DataKey,
    pub hook: Option<DnsHook>,
}

/// How an order stands after a step.
pub enum Advance {
    Issued(ReceivedCertificate),
    /// It is not decided; look again after this time.
    Undecided(Duration),
}

/// What the sealed parts are bound to.
fn account_payload() -> PayloadId {
    PayloadId::Secret("acme-account".into())
}
fn account_key_payload() -> PayloadId {
    PayloadId::Secret("acme-account-key".into())
}
fn order_payload(certificate: &AcmeCertificateId) -> PayloadId {
    PayloadId::Secret(SecretId::from(format!("acme-order/{certificate}")))
}

/// The name under which the key of the user's account is sealed.
#[must_use]
pub fn external_account_payload() -> PayloadId {
    PayloadId::Secret("acme-external-account".into())
}

fn here(reason: impl std::fmt::Display) -> AcmeError {
    AcmeError::new(AcmeErrorKind::Transient, reason.to_string())
}

fn http(settings: &AcmeSettings) -> Result<AcmeHttp, AcmeError> {
    let roots = Some(settings.root_certificate.as_str()).filter(|pem| !pem.is_empty());
    Ok(AcmeHttp::new(HttpsClient::new(roots, REQUEST).map_err(here)?))
}

impl AcmeExecutor {
    /// A new key for an account.
    ///
    /// # Errors
    /// See [`AcmeError`].
    pub fn make_key(&self) -> Result<SealedData, AcmeError> {
        let key = new_account::new_key().map_err(here)?;
        self.key.seal(&account_key_payload(), key.expose(), &mut rand::rng()).map_err(here)
    }

    /// Registers the account with its key; with a new one if it has none. One that is registered with the key is found again.
    ///
    /// # Errors
    /// See [`AcmeError`].
    pub async fn register(&self, account: &AcmeAccount) -> Result<AcmeRegistration, AcmeError> {
        let settings = &account.settings;
        let key = match &account.key {
            Some(sealed) => self.key.open(&account_key_payload(), sealed).map_err(here)?,
            None => new_account::new_key().map_err(here)?,
        };
        let external = settings.external_account.as_ref().map(|external| {
            let key = self.key.open(&external_account_payload(), &external.key).map_err(here)?;
            Ok(ExternalBinding { key_id: external.key_id.clone(), key })
        });
        let request = NewAccountRequest::new(key.expose(), &settings.email, external.transpose()?).map_err(here)?;
        let http = http(settings)?.registering(request);
        let builder = Account::builder_with_http(Box::new(http.clone()));
        let made =
            builder.create_from_key(new_account::library_key(key.expose()).map_err(here)?, settings.directory.clone()).await;
        let (account, credentials) = made.map_err(|error| AcmeError::read(&error, &http.last()))?;
        let text = serde_json::to_vec(&credentials).map_err(here)?;
        let credentials = self.key.seal(&account_payload(), &text, &mut rand::rng()).map_err(here)?;
        Ok(AcmeRegistration { url: account.id().to_owned(), credentials })
    }

    async fn account(&self, account: &AcmeAccount) -> Result<(Account, AcmeHttp), AcmeError> {
        let http = http(&account.settings)?;
        let registration = account.registration.as_ref().ok_or_else(|| here("there is no account yet"))?;
        let text = self.key.open(&account_payload(), &registration.credentials).map_err(here)?;
        let credentials = serde_json::from_slice(text.expose()).map_err(here)?;
        let builder = Account::builder_with_http(Box::new(http.clone()));
        let opened = builder.from_credentials(credentials).await;
        // The directory alone was asked for: whatever it answers says nothing of an order.
        let opened = opened.map_err(|error| match AcmeError::read(&error, &http.last()) {
            AcmeError { kind: AcmeErrorKind::OrderGone | AcmeErrorKind::Refused, reason, retry_after } => {
                AcmeError { kind: AcmeErrorKind::Transient, reason: format!("the authority's directory: {reason}"), retry_after }
            }
            other => other,
        })?;
        Ok((opened, http))
    }

    /// Makes an order with a new key, and reads what it asks for. `prefer` are kinds of challenges, best first.
    ///
    /// # Errors
    /// See [`AcmeError`].
    pub async fn order(
        &self,
        account: &AcmeAccount,
        certificate: &AcmeCertificate,
        prefer: &[AcmeChallengeKind],
        now: Timestamp,
    ) -> Result<AcmeOrder, AcmeError> {
        // Before the authority counts an order that cannot be proved.
        if certificate.names.iter().any(|name| name.starts_with("*.")) && !prefer.contains(&AcmeChallengeKind::Dns) {
            return Err(AcmeError::refused(match account.settings.challenge {
                Some(only) if only != AcmeChallengeKind::Dns => format!(
                    "a certificate for a wildcard needs dns-01, and {} alone is allowed: `skep http acme --challenge \"\"` allows any",
                    only.as_str()
                ),
                _ => "a certificate for a wildcard needs dns-01: name a program in `dns_hook` of the section [acme] of skep.toml on \
                      every manager"
                    .to_owned(),
            }));
        }
        let request = CertificateRequest::new(&certificate.names).map_err(|error| AcmeError::refused(error.to_string()))?;
        let key = self.key.seal(&order_payload(&certificate.id), request.key.expose(), &mut rand::rng()).map_err(here)?;
        let (api, http) = self.account(account).await?;
        let read = |error: Error| AcmeError::read(&error, &http.last());
        let replaces = certificate.issued.as_ref().and_then(|issued| self.identifier(issued).ok());
        let mut order = new_order(&api, &http, account, certificate, replaces).await?;
        let mut challenges = Vec::new();
        if order.state().status == OrderStatus::Pending {
            let mut authorizations = order.authorizations();
            while let Some(authorization) = authorizations.next().await {
                let mut authorization = authorization.map_err(read)?;
                if authorization.status == AuthorizationStatus::Pending {
                    challenges.push(choose(&mut authorization, prefer)?);
                }
            }
        }
        Ok(AcmeOrder {
            url: order.url().to_owned(),
            account: api.id().to_owned(),
            names: certificate.names.clone(),
            key,
            csr: STANDARD.encode(&request.csr),
            challenges,
            created_at: now,
            look_at: now,
        })
    }

    /// Goes on with an order from where it stands at the authority, whichever leader has brought it there.
    ///
    /// # Errors
    /// See [`AcmeError`].
    pub async fn advance(
        &self,
        account: &AcmeAccount,
        certificate: &AcmeCertificateId,
        stored: &AcmeOrder,
    ) -> Result<Advance, AcmeError> {
        let advanced = self.follow(account, certificate, stored).await;
        // Not before the order is decided: the authority may look the records up at any moment until then.
        let is_decided = match &advanced {
            Ok(advance) => matches!(advance, Advance::Issued(_)),
            Err(error) => error.ends_order(),
        };
        if is_decided && let Some(hook) = &self.hook {
            hook.remove(&stored.challenges).await;
        }
        advanced
    }

    async fn follow(
        &self,
        account: &AcmeAccount,
        certificate: &AcmeCertificateId,
        stored: &AcmeOrder,
    ) -> Result<Advance, AcmeError> {
        let (api, http) = self.account(account).await?;
        let read = |error: Error| AcmeError::read(&error, &http.last());
        let mut order = api.order(stored.url.clone()).await.map_err(read)?;
        let (mut answered, mut finalized) = (false, false);
        let end = tokio::time::Instant::now() + FOLLOWED;
        loop {
            match order.state().status {
                OrderStatus::Pending if !answered => {
                    self.answer(&mut order, &http, stored).await?;
                    answered = true;
                }
                OrderStatus::Ready if !finalized => {
                    finalized = true;
                    self.finalize(&mut order, &http, stored).await?;
                    continue;
                }
                OrderStatus::Pending | OrderStatus::Ready | OrderStatus::Processing => {}
                OrderStatus::Valid => {
                    let chain = order.certificate().await.map_err(read)?;
                    let chain = chain.ok_or_else(|| here("the authority has no certificate yet"))?;
                    return self.received(certificate, stored, &chain).map(Advance::Issued);
                }
                OrderStatus::Invalid => return Err(AcmeError::refused(reason(&api, stored).await)),
            }
            let wait = http.last().retry_after.unwrap_or(LOOK).clamp(LOOK, MOST_UNDECIDED);
            if wait > MOST_LOOK || tokio::time::Instant::now() + wait > end {
                return Ok(Advance::Undecided(wait));
            }
            tokio::time::sleep(wait).await;
            order.refresh().await.map_err(read)?;
        }
    }

    /// Answers one challenge of each authorization that waits for it, with the token that nodes serve.
    async fn answer(&self, order: &mut Order, http: &AcmeHttp, stored: &AcmeOrder) -> Result<(), AcmeError> {
        let read = |error: &Error| AcmeError::read(error, &http.last());
        if stored.challenges.iter().any(|challenge| challenge.kind == AcmeChallengeKind::Dns) {
            let hook =
                self.hook.as_ref().ok_or_else(|| here("no program is set for dns-01 on this manager: `dns_hook` in [acme]"))?;
            hook.set(&stored.challenges).await.map_err(here)?;
        }
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization.map_err(|error| read(&error))?;
            if authorization.status != AuthorizationStatus::Pending {
                continue;
            }
            let is_served = |challenge: &&AcmeChallenge| {
                authorization.challenges.iter().any(|c| c.r#type == kind_of(challenge.kind) && c.token == challenge.segment)
            };
            let Some(served) = stored.challenges.iter().find(is_served) else {
                return Err(AcmeError::new(AcmeErrorKind::OrderGone, "the authority asks for another token than at the order"));
            };
            let Some(mut challenge) = authorization.challenge(kind_of(served.kind)) else { continue };
            if challenge.status != ChallengeStatus::Pending {
                continue;
            }
            match challenge.set_ready().await {
                Ok(()) => {}
                // Answered already, by an earlier leader: the order says what came of it.
                Err(Error::Api(problem)) if error::name(&problem) == "malformed" => {
                    tracing::debug!(name = served.name, problem = error::text(&problem), "a challenge is not answered again");
                }
                Err(error) => return Err(read(&error)),
            }
        }
        Ok(())
    }

    async fn finalize(&self, order: &mut Order, http: &AcmeHttp, stored: &AcmeOrder) -> Result<(), AcmeError> {
        let csr = STANDARD.decode(&stored.csr).map_err(|_| AcmeError::refused("the stored request is not readable"))?;
        let read = |error: Error| AcmeError::read(&error, &http.last());
        match order.finalize_csr(&csr).await {
            Ok(()) => Ok(()),
            // Done already, by an earlier leader.
            Err(Error::Api(problem)) if error::name(&problem) == "orderNotReady" => order.refresh().await.map(drop).map_err(read),
            Err(error) => Err(read(error)),
        }
    }

    /// Checks what was received against the stored key: another manager's order may have been finalized with another one.
    fn received(
        &self,
        certificate: &AcmeCertificateId,
        stored: &AcmeOrder,
        chain: &str,
    ) -> Result<ReceivedCertificate, AcmeError> {
        let key = self.key.open(&order_payload(certificate), &stored.key).map_err(here)?;
        let made = PublicCertificate::new(chain, key.expose(), &stored.names);
        let made = made.map_err(|error| AcmeError::refused(format!("the certificate received: {error}")))?;
        let payload = SecretId::draw(&mut rand::rng());
        let id = PayloadId::Secret(payload.clone());
        let data = self.key.seal(&id, made.pem.expose().as_bytes(), &mut rand::rng()).map_err(here)?;
        Ok(ReceivedCertificate { payload, data, names: stored.names.clone(), issuer: made.issuer, validity: made.validity })
    }

    /// The window in which the authority wants a certificate to be renewed, and when to ask again; `None` if it does not say.
    ///
    /// # Errors
    /// See [`AcmeError`].
    pub async fn renewal(
        &self,
        account: &AcmeAccount,
        issued: &IssuedCertificate,
    ) -> Result<Option<((Timestamp, Timestamp), Duration)>, AcmeError> {
        let identifier = self.identifier(issued)?;
        let (api, http) = self.account(account).await?;
        match api.renewal_info(&identifier).await {
            Ok((info, retry_after)) => {
                let time = |time: time::OffsetDateTime| Timestamp(i64::try_from(time.unix_timestamp_nanos()).unwrap_or(i64::MAX));
                let window = (time(info.suggested_window.start), time(info.suggested_window.end));
                Ok(Some((window, retry_after)))
            }
            Err(Error::Unsupported(_)) => Ok(None),
            Err(error) => Err(AcmeError::read(&error, &http.last())),
        }
    }

    /// How the authority names a certificate in questions about its renewal.
    fn identifier(&self, issued: &IssuedCertificate) -> Result<CertificateIdentifier<'static>, AcmeError> {
        let pem = self.key.open(&PayloadId::Secret(issued.payload.clone()), &issued.data).map_err(here)?;
        let leaf = leaf(&String::from_utf8_lossy(pem.expose())).map_err(here)?;
        let identifier = CertificateIdentifier::try_from(&CertificateDer::from(leaf)).map_err(here)?;
        Ok(identifier.into_owned())
    }
}

/// Orders; says which certificate it replaces if the authority takes that.
async fn new_order(
    api: &Account,
    http: &AcmeHttp,
    account: &AcmeAccount,
    certificate: &AcmeCertificate,
    replaces: Option<CertificateIdentifier<'static>>,
) -> Result<Order, AcmeError> {
    let identifiers: Vec<Identifier> = certificate.names.iter().map(|name| identifier_of(name)).collect();
    let mut new = NewOrder::new(&identifiers);
    let profile = &account.settings.profile;
    if !profile.is_empty() {
        let offered: Vec<&str> = api.profiles().map(|profile| profile.name).collect();
        if !offered.contains(&profile.as_str()) {
            let offered = if offered.is_empty() { "none".to_owned() } else { offered.join(", ") };
            return Err(AcmeError::refused(format!("the authority has no profile {profile}; it has: {offered}")));
        }
        new = new.profile(profile);
    }
    if let Some(replaces) = replaces {
        match api.new_order(&new.replaces(replaces)).await {
            Ok(order) => return Ok(order),
            Err(error) => {
                let error_read = AcmeError::read(&error, &http.last());
                if matches!(error_read.kind, AcmeErrorKind::RateLimited | AcmeErrorKind::AccountGone) {
                    return Err(error_read);
                }
                // No ARI there, replaced already, or of another authority: the order counts, not what it replaces.
                tracing::debug!(id = %certificate.id, error = %error_read, "an order that names no certificate to replace");
            }
        }
        new = NewOrder::new(&identifiers);
        if !profile.is_empty() {
            new = new.profile(profile);
        }
    }
    let made = api.new_order(&new).await;
    made.map_err(|error| match AcmeError::read(&error, &http.last()) {
        AcmeError { kind: AcmeErrorKind::OrderGone, reason, retry_after } => {
            AcmeError { kind: AcmeErrorKind::Transient, reason, retry_after }
        }
        other => other,
    })
}

fn identifier_of(name: &str) -> Identifier {
    name.parse::<IpAddr>().map_or_else(|_| Identifier::Dns(name.to_owned()), Identifier::Ip)
}

fn kind_of(kind: AcmeChallengeKind) -> ChallengeType {
    match kind {
        AcmeChallengeKind::Http => ChallengeType::Http01,
        AcmeChallengeKind::TlsAlpn => ChallengeType::TlsAlpn01,
        AcmeChallengeKind::Dns => ChallengeType::Dns01,
    }
}

/// The first challenge that both sides can do.
fn choose<'a>(authorization: &'a mut AuthorizationHandle<'a>, prefer: &[AcmeChallengeKind]) -> Result<AcmeChallenge, AcmeError> {
    let name = match authorization.identifier().identifier {
        Identifier::Dns(name) => name.clone(),
        Identifier::Ip(address) => address.to_string(),
        other => return Err(AcmeError::refused(format!("the authority asks for {other:?}, which skep does not know"))),
    };
    let is_offered = |kind: &&AcmeChallengeKind| authorization.challenges.iter().any(|c| c.r#type == kind_of(**kind));
    let Some(kind) = prefer.iter().find(is_offered).copied() else {
        let kinds = |list: Vec<String>| if list.is_empty() { "none".to_owned() } else { list.join(", ") };
        let offered = kinds(authorization.challenges.iter().map(|c| text_of(&c.r#type)).collect());
        let can = kinds(prefer.iter().map(|kind| kind.as_str().to_owned()).collect());
        return Err(AcmeError::refused(format!("{name}: the authority offers {offered}; possible here: {can}")));
    };
    let challenge = authorization.challenge(kind_of(kind)).ok_or_else(|| here("a challenge has gone"))?;
    Ok(AcmeChallenge {
        name,
        kind,
        segment: challenge.token.clone(),
        key_authorization: challenge.key_authorization().as_str().to_owned(),
    })
}

fn text_of(kind: &ChallengeType) -> String {
    match kind {
        ChallengeType::Http01 => "http-01".to_owned(),
        ChallengeType::Dns01 => "dns-01".to_owned(),
        ChallengeType::TlsAlpn01 => "tls-alpn-01".to_owned(),
        ChallengeType::Unknown(name) => name.clone(),
        other => format!("{other:?}"),
    }
}

/// Why an order is invalid: the order's own error, or those of its challenges.
async fn reason(api: &Account, stored: &AcmeOrder) -> String {
    let mut reasons = Vec::new();
    if let Ok(mut order) = api.order(stored.url.clone()).await {
        let own = order.state().error.as_ref().map(error::text);
        let mut authorizations = order.authorizations();
        while let Some(Ok(authorization)) = authorizations.next().await {
            let name = authorization.identifier().to_string();
            let problems = authorization.challenges.iter().filter_map(|challenge| challenge.error.as_ref());
            reasons.extend(problems.map(|problem| format!("{name}: {}", error::text(problem))));
        }
        if reasons.is_empty() {
            reasons.extend(own);
        }
    }
    if reasons.is_empty() { "the authority gives no reason".to_owned() } else { reasons.join("; ") }
}
