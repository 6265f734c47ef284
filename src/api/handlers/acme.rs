//! `/acme`, for `skep http acme`, which no Docker has: GET shows the switch, the account and the certificates, POST changes the switch.

use super::payloads::{data_key, sealing_failed, vault};
use super::reply::ok;
use super::request::ApiRequest;
use crate::acme::{external_account_payload, names};
use crate::api::error::{ApiError, Result};
use crate::http::HttpsClient;
use crate::manager::bounds;
use crate::model::acme::{AcmeChallengeKind, AcmeFailure, AcmeSettings, ExternalAccount};
use crate::model::{AcmeAccount, AcmeCertificate, Timestamp};
use crate::store::{Action, Store, Transaction};
use axum::response::Response;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::Duration;

/// The directory of Let's Encrypt.
const DEFAULT_DIRECTORY: &str = "https://acme-v02.api.letsencrypt.org/directory";

/// What is to be changed; the rest stays.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields, default)]
struct AcmeChange {
    enabled: Option<bool>,
    directory: Option<String>,
    /// PEM; empty: the host's.
    root_certificate: Option<String>,
    email: Option<String>,
    terms_agreed: Option<bool>,
    profile: Option<String>,
    /// Empty: any.
    challenge: Option<String>,
    external_account: Option<PostedExternalAccount>,
    /// What has failed is tried at once.
    retry: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct PostedExternalAccount {
    #[serde(rename = "KeyID")]
    key_id: String,
    /// In base64url, as authorities hand it out.
    key: String,
}

/// GET /acme
pub fn show(request: &ApiRequest) -> Result<Response> {
    ok(&shown(&request.store()?.read(), request.api.clock.now()))
}

/// POST /acme
pub async fn change(request: &ApiRequest) -> Result<Response> {
    let change: AcmeChange =
        serde_json::from_slice(&request.body).map_err(|error| ApiError::bad(format!("the request is not readable: {error}")))?;
    let handle = request.store()?;
    let (store, now) = (handle.read(), request.api.clock.now());
    let (key, first) = data_key(&*vault(request)?, &store)?;
    let before = store.acme_account();
    let mut settings = before.map(|account| account.settings.clone()).unwrap_or_default();
    if let Some(posted) = &change.external_account {
        let bytes = URL_SAFE_NO_PAD.decode(posted.key.trim().trim_end_matches('='));
        let bytes = bytes
            .map_err(|_| ApiError::bad("the key of the external account is not base64url: pass it as the authority shows it"))?;
        let sealed = key.seal(&external_account_payload(), &bytes, &mut rand::rng()).map_err(|error| sealing_failed(&error))?;
        settings.external_account = Some(ExternalAccount { key_id: posted.key_id.clone(), key: sealed });
    }
    apply(&mut settings, &change).map_err(ApiError::bad)?;
    let stored = before.map(|account| texts(&account.settings));
    bounds::spec("a set of settings", &texts(&settings), stored.as_ref()).map_err(ApiError::invalid_argument)?;
    let mut actions: Vec<Action> = first.into_iter().collect();
    // What has failed with other settings is tried with these.
    let retries = change.retry || before.is_some_and(|account| account.settings != settings);
    if let Some(account) = before {
        let mut next = AcmeAccount { settings, ..account.clone() };
        if is_another_account(&account.settings, &next.settings) {
            (next.key, next.registration) = (None, None);
        }
        next.failure = None;
        actions.push(Action::update(next));
    } else {
        let id = store.cluster().map(|cluster| cluster.id.clone());
        let id = id.ok_or_else(|| ApiError::unavailable(super::request::NOT_YET))?;
        actions.push(Action::create(AcmeAccount::new(id, settings)));
    }
    if retries {
        actions
            .extend(store.all::<AcmeCertificate>().filter(|record| record.failure.is_some()).map(|record| retried(record, now)));
    }
    handle.propose(Transaction::new(now, actions)).await?;
    ok(&shown(&handle.read(), now))
}

/// The record with its next try now.
fn retried(record: &AcmeCertificate, now: Timestamp) -> Action {
    let mut next = record.clone();
    if let Some(failure) = &mut next.failure {
        failure.next = now;
    }
    if let Some(order) = &mut next.order {
        order.look_at = now;
    }
    Action::update(next)
}

/// Whether the account is none of these settings: another authority, user or address.
fn is_another_account(before: &AcmeSettings, after: &AcmeSettings) -> bool {
    before.directory != after.directory || before.email != after.email || before.external_account != after.external_account
}

/// What of the settings may be long.
fn texts(settings: &AcmeSettings) -> [String; 5] {
    let AcmeSettings { directory, root_certificate, email, profile, external_account, .. } = settings.clone();
    [
        directory,
        root_certificate,
        email,
        profile,
        external_account.map_or_else(String::new, |account| account.key_id + &account.key.0),
    ]
}

/// Changes the settings.
///
/// # Errors
/// What is not valid, for users.
fn apply(settings: &mut AcmeSettings, change: &AcmeChange) -> std::result::Result<(), String> {
    let before = settings.clone();
    let AcmeChange { enabled, directory, root_certificate, email, terms_agreed, profile, challenge, .. } = change;
    for (field, value) in [
        (&mut settings.directory, directory),
        (&mut settings.root_certificate, root_certificate),
        (&mut settings.email, email),
        (&mut settings.profile, profile),
    ] {
        if let Some(value) = value {
            value.trim().clone_into(field);
        }
    }
    if settings.directory.is_empty() {
        DEFAULT_DIRECTORY.clone_into(&mut settings.directory);
    }
    if !settings.directory.starts_with("https://") {
        return Err(format!("the directory {} must begin with https://", settings.directory));
    }
    if !settings.root_certificate.is_empty() {
        HttpsClient::new(Some(&settings.root_certificate), Duration::ZERO)
            .map_err(|error| format!("the root certificate is not usable: {error:#}"))?;
    }
    let is_address = |email: &str| {
        email.is_ascii()
            && !email.contains([' ', ','])
            && email.split_once('@').is_some_and(|(a, b)| !a.is_empty() && !b.is_empty())
    };
    if !settings.email.is_empty() && !is_address(&settings.email) {
        return Err(format!("{} is no mail address", settings.email));
    }
    if let Some(challenge) = challenge {
        let read = || {
            AcmeChallengeKind::parse(challenge).ok_or_else(|| "the challenge must be http-01, tls-alpn-01 or dns-01".to_owned())
        };
        settings.challenge = if challenge.is_empty() { None } else { Some(read()?) };
    }
    // The terms of one authority are not those of another.
    if before.directory != settings.directory {
        settings.terms_agreed = false;
    }
    settings.terms_agreed = terms_agreed.unwrap_or(settings.terms_agreed);
    settings.enabled = enabled.unwrap_or(settings.enabled);
    if settings.enabled && !settings.terms_agreed {
        return Err(format!(
            "the authority of {} issues certificates only to those who agree to its terms of service: read them (the directory names \
             them as termsOfService), and add --agree-tos",
            settings.directory
        ));
    }
    Ok(())
}

fn shown(store: &Store, now: Timestamp) -> Value {
    let Some(account) = store.acme_account() else { return json!({ "Enabled": false, "Certificates": [], "LeftOut": [] }) };
    let settings = &account.settings;
    let wanted = names::wanted(store, settings, &names::failed_wildcards(store, now));
    let is_shown = |failure: &&AcmeFailure| account.registration.is_none() || failure.next > now;
    let shown = store.all::<AcmeCertificate>().filter(|record| !record.names.is_empty());
    let certificates = shown.map(|record| certificate(record, &wanted, now));
    let left_out = wanted.left_out.iter().map(|(host, why)| json!({ "Host": host, "Why": why }));
    json!({
        "Enabled": settings.enabled,
        "Directory": settings.directory,
        "Email": settings.email,
        "TermsAgreed": settings.terms_agreed,
        "Profile": settings.profile,
        "Challenge": settings.challenge.map(AcmeChallengeKind::as_str),
        "Account": account.registration.as_ref().map(|registration| &registration.url),
        "Failure": account.failure.as_ref().filter(is_shown).map(failure),
        "Certificates": certificates.collect::<Value>(),
        "LeftOut": left_out.collect::<Value>(),
    })
}

fn failure(failure: &AcmeFailure) -> Value {
    json!({ "Reason": failure.reason, "At": failure.at, "Next": failure.next, "Count": failure.count })
}

fn certificate(record: &AcmeCertificate, wanted: &names::WantedNames, now: Timestamp) -> Value {
    let issued = record.issued.as_ref();
    json!({
        "Names": record.names,
        "Wanted": wanted.certificates.contains_key(record.id.as_str()),
        "Ordered": record.order.is_some(),
        "Issuer": issued.map(|issued| &issued.issuer),
        "NotBefore": issued.map(|issued| issued.not_before),
        "NotAfter": issued.map(|issued| issued.not_after),
        "DaysLeft": issued.map(|issued| issued.not_after.since(now).as_secs() / 86_400),
        "RenewAt": issued.map(|issued| issued.renewal.at),
        "Failure": record.failure.as_ref().map(failure),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(settings: &AcmeSettings, change: Value) -> std::result::Result<AcmeSettings, String> {
        let mut settings = settings.clone();
        apply(&mut settings, &serde_json::from_value(change).unwrap()).map(|()| settings)
    }

    #[test]
    fn the_terms_are_agreed_to_by_the_user_and_for_one_authority() {
        let refused = changed(&AcmeSettings::default(), json!({ "Enabled": true })).unwrap_err();
        assert!(refused.contains("--agree-tos") && refused.contains(DEFAULT_DIRECTORY), "{refused}");
        let on = changed(&AcmeSettings::default(), json!({ "Enabled": true, "TermsAgreed": true, "Email": "a@b.c" })).unwrap();
        assert_eq!((on.enabled, on.directory.as_str(), on.email.as_str()), (true, DEFAULT_DIRECTORY, "a@b.c"));
        assert!(!changed(&on, json!({ "Enabled": false })).unwrap().enabled);
        let other = json!({ "Directory": "https://ca.test/dir" });
        assert!(changed(&on, other).unwrap_err().contains("https://ca.test/dir"));
    }

    #[test]
    fn what_is_not_valid_says_what_is() {
        for (change, expected) in [
            (json!({ "Directory": "http://ca.test" }), "begin with https://"),
            (json!({ "RootCertificate": "x" }), "root certificate is not usable"),
            (json!({ "Email": "somebody" }), "no mail address"),
            (json!({ "Challenge": "dns" }), "http-01, tls-alpn-01 or dns-01"),
        ] {
            let said = changed(&AcmeSettings::default(), change.clone()).unwrap_err();
            assert!(said.contains(expected), "{change}: {said}");
        }
    }
}
