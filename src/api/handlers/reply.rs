//! Successful replies.

use crate::api::error::{ApiError, Result};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use serde::Serialize;

/// A reply with a JSON body.
pub fn json(status: StatusCode, value: &impl Serialize) -> Result<Response> {
    let text = serde_json::to_vec(value).map_err(|e| ApiError::failed(format!("the reply cannot be encoded: {e}")))?;
    Ok(json_text(status, text.into()))
}

/// A reply with a body that is encoded already.
pub fn json_text(status: StatusCode, text: Bytes) -> Response {
    (status, [(CONTENT_TYPE, HeaderValue::from_static("application/json"))], text).into_response()
}

/// 200 with a JSON body.
pub fn ok(value: &impl Serialize) -> Result<Response> {
    json(StatusCode::OK, value)
}

/// 200 without a body.
#[expect(clippy::unnecessary_wraps, reason = "the tail expression of handlers")]
pub fn empty() -> Result<Response> {
    Ok(StatusCode::OK.into_response())
}
