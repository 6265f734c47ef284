//! Credentials for a registry, in the header of a request.

use crate::api::error::{ApiError, Result};
use crate::model::PullAuth;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use hyper::HeaderMap;
use serde_json::Value;

/// Longest header that is stored, in bytes: each task of the service carries it.
const MAX_HEADER: usize = 16 << 10;

/// The credentials in `X-Registry-Auth`. An object without any, or what cannot be read, counts as none, as on the real
/// server: clients send `{}` without a login.
///
/// # Errors
/// 400 if they are too long.
pub fn pull_auth(headers: &HeaderMap) -> Result<Option<PullAuth>> {
    let header = headers.get("x-registry-auth").and_then(|v| v.to_str().ok()).unwrap_or_default();
    let decoded = URL_SAFE_NO_PAD.decode(header.trim_end_matches('=')).unwrap_or_default();
    let auth: Value = serde_json::from_slice(&decoded).unwrap_or_default();
    let is_set = |key: &str| auth[key].as_str().is_some_and(|text| !text.is_empty());
    if !["username", "password", "auth", "identitytoken", "registrytoken"].into_iter().any(is_set) {
        return Ok(None);
    }
    if header.len() > MAX_HEADER {
        return Err(ApiError::bad(format!("X-Registry-Auth is longer than {} KiB", MAX_HEADER >> 10)));
    }
    Ok(Some(PullAuth::new(header.to_owned())))
}
