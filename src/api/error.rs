//! Errors as the API tells them: a status and a sentence. The sentence of an error that Docker also has is Docker's.

use super::control::{ControlError, ControlErrorKind};
use crate::store::{ProposeError, StoreError};
use axum::response::{IntoResponse, Response};
use hyper::StatusCode;
use serde_json::json;

/// A refusal.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// HTTP status.
    pub status: StatusCode,
    /// For people.
    pub message: String,
}

/// What a handler gives.
pub type Result<T, E = ApiError> = std::result::Result<T, E>;

/// Codes of errors that come out of the cluster's store. They decide the status and are part of the text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Code {
    /// 400.
    InvalidArgument,
    /// 400.
    FailedPrecondition,
    /// 409.
    AlreadyExists,
    /// 404.
    NotFound,
    /// 501.
    Unimplemented,
    /// 500.
    Unknown,
}

impl ApiError {
    /// With this status.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }
    /// 400.
    pub fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }
    /// 404.
    pub fn not_found(kind: &str, reference: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("{kind} {reference} not found"))
    }
    /// 500.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }
    /// 501: not built yet.
    pub fn not_built(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, message)
    }
    /// 503.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
    }
    /// An error out of the store, with its code in the text as clients match it.
    pub fn rpc(code: Code, description: impl std::fmt::Display) -> Self {
        let status = match code {
            Code::InvalidArgument | Code::FailedPrecondition => StatusCode::BAD_REQUEST,
            Code::AlreadyExists => StatusCode::CONFLICT,
            Code::NotFound => StatusCode::NOT_FOUND,
            Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
            Code::Unknown => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, format!("rpc error: code = {code:?} desc = {description}"))
    }
    /// The answer to a path that nobody has, or to a method that the path has not.
    pub fn page_not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "page not found")
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, axum::Json(json!({ "message": self.message }))).into_response()
    }
}

impl From<ControlError> for ApiError {
    fn from(error: ControlError) -> Self {
        let status = match error.kind {
            ControlErrorKind::Invalid => StatusCode::BAD_REQUEST,
            ControlErrorKind::Failed => StatusCode::INTERNAL_SERVER_ERROR,
            ControlErrorKind::NotBuilt => StatusCode::NOT_IMPLEMENTED,
            ControlErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, error.message)
    }
}

impl From<ProposeError> for ApiError {
    fn from(error: ProposeError) -> Self {
        match error {
            ProposeError::Refused(error @ StoreError::OutOfSequence) => Self::rpc(Code::Unknown, error),
            ProposeError::Refused(error @ (StoreError::NameConflict { .. } | StoreError::Exists { .. })) => {
                Self::rpc(Code::AlreadyExists, error)
            }
            ProposeError::Refused(error @ StoreError::NotFound { .. }) => Self::rpc(Code::NotFound, error),
            ProposeError::NotLeader => {
                Self::rpc(Code::Unknown, "The swarm does not have a leader. Make sure more than half of the managers are online.")
            }
            ProposeError::TimedOut => Self::rpc(Code::Unknown, format!("{error}: more than half of them must be up")),
            ProposeError::Stopped(_) => Self::failed(error.to_string()),
        }
    }
}
