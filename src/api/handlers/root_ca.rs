//! The root CA as `docker swarm ca --rotate` posts it.

use crate::api::error::{ApiError, Result};
use crate::manager::bounds;
use crate::model::{Cluster, ClusterSpec, RetiredRoot, RootRotation, Timestamp};
use crate::store::{Action, FieldUpdate};
use crate::trust::{RootCa, TrustError, check_new_root, cross_sign};
use serde_json::Value;

/// The certificate and the key that are posted; either may be empty.
fn posted_root(posted: &Value) -> (&str, &str) {
    let text = |key: &str| posted["CAConfig"][key].as_str().unwrap_or_default().trim();
    (text("SigningCACert"), text("SigningCAKey"))
}

/// Refuses a root CA where a new swarm is made: it makes its own.
///
/// # Errors
/// 501.
pub fn refuse_at_init(posted: &Value) -> Result<()> {
    match posted_root(posted) {
        ("", "") => Ok(()),
        _ => Err(ApiError::not_implemented(
            "Spec.CAConfig.SigningCACert is not supported by skep at init: make the swarm, then run `docker swarm ca --rotate --ca-cert \
             FILE --ca-key FILE` (nothing was changed)",
        )),
    }
}

/// Refuses external CAs.
///
/// # Errors
/// 501.
pub fn refuse_external(spec: &Value) -> Result<()> {
    match spec["CAConfig"]["ExternalCAs"].as_array().map_or(0, Vec::len) {
        0 => Ok(()),
        _ => Err(ApiError::not_implemented(
            "CAConfig.ExternalCAs is not supported by skep: its managers sign certificates themselves, so that no node waits for another \
             program to renew; give them the CA with `docker swarm ca --rotate --ca-cert FILE --ca-key FILE` (nothing was changed)",
        )),
    }
}

/// The change of the root CA that an update asks for; `None`: it stays. What is not posted of `ForceRotate` stays as it is, unlike in
/// Docker: clients that post a part of a spec would replace the CA with each change of something else.
///
/// # Errors
/// 400 for a root that cannot be used, 500 if none can be made.
pub fn rotation(cluster: &Cluster, posted: &Value, spec: &mut ClusterSpec, now: Timestamp) -> Result<Option<Action>> {
    // The text around them is kept as well.
    bounds::spec("a root CA", &posted_root(posted), None).map_err(ApiError::invalid_argument)?;
    let stored = cluster.spec.ca_config.force_rotate;
    let forced = &mut spec.ca_config.force_rotate;
    if *forced == 0 {
        *forced = stored;
    }
    let failed = |error: TrustError| ApiError::failed(format!("the root CA cannot be replaced: {error}"));
    let new = match posted_root(posted) {
        ("", "") if *forced == stored => return Ok(None),
        ("", "") => RootCa::generate(&mut rand::rng(), now).map_err(failed)?,
        ("", _) => {
            return Err(ApiError::invalid_argument("if a signing CA key is provided, the signing CA cert must also be provided"));
        }
        (certificate, key) => {
            if key.is_empty() {
                return Err(ApiError::invalid_argument(
                    "the signing CA cert is given without its key, which skep needs: it knows no external CA",
                ));
            }
            let new = check_new_root(certificate, key, now).map_err(ApiError::invalid_argument)?;
            if new.certificate() == cluster.issuing_ca().0 {
                return Ok(None);
            }
            let known = cluster.ca_history.retired.iter().map(|root| &root.certificate).chain([&cluster.ca_certificate]);
            if known.into_iter().any(|root| root == new.certificate()) {
                return Err(ApiError::invalid_argument("this root CA is the one that is replaced, or was replaced a while ago"));
            }
            new
        }
    };
    let old = RootCa::from_pem(&cluster.ca_certificate, cluster.ca_key.expose()).map_err(failed)?;
    let cross = cross_sign(&old, &new, now, &mut rand::rng()).map_err(failed)?;
    // Nodes may have a certificate of one that has begun and is not everywhere yet.
    let replaces = cluster.ca_history.rotation.as_ref().map(|begun| {
        let root = RootCa::from_pem(&begun.ca_certificate, begun.ca_key.expose())?;
        let cross = cross_sign(&root, &new, now, &mut rand::rng())?;
        Ok(Box::new(RetiredRoot { certificate: begun.ca_certificate.clone(), cross }))
    });
    let rotation = RootRotation { ca_certificate: new.certificate().to_owned(), ca_key: new.key().into(), cross };
    Ok(Some(Action::Set(FieldUpdate::RootRotation {
        id: cluster.id.clone(),
        rotation: Box::new(rotation),
        replaces: replaces.transpose().map_err(failed)?,
    })))
}
