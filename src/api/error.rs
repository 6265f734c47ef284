//! Errors of the API: a status and a message. Where Docker has the same error, the message is Docker's.

use super::control::{ControlError, ControlErrorKind};
use crate::store::{ProposeError, StoreError};
use axum::response::{IntoResponse, Response};
use hyper::StatusCode;
use serde_json::json;

/// An error reply.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    pub status: StatusCode,
    pub message: String,
}

/// Result of a handler.
pub type Result<T, E = ApiError> = std::result::Result<T, E>;

/// gRPC codes of SwarmKit's errors. They decide the status and are part of the message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GrpcCode {
    InvalidArgument,
    FailedPrecondition,
    AlreadyExists,
    NotFound,
    Unimplemented,
    Unknown,
}

impl ApiError {
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
    /// 501: skep has no such feature yet.
    pub fn not_implemented(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, message)
    }
    /// 501 for a field of the request that skep does not support, with its value unless that is empty.
    pub fn unsupported_field(path: &str, value: &str) -> Self {
        let value = if value.is_empty() { String::new() } else { format!(" {value}") };
        Self::not_implemented(format!("{path}{value} is not supported by skep yet: leave it out (nothing was changed)"))
    }
    /// 503.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
    }
    /// 400, as SwarmKit's validation refuses a spec.
    pub fn invalid_argument(description: impl std::fmt::Display) -> Self {
        Self::rpc(GrpcCode::InvalidArgument, description)
    }
    /// An error of SwarmKit's control API, with its code in the message: clients match on it.
    pub fn rpc(code: GrpcCode, description: impl std::fmt::Display) -> Self {
        let status = match code {
            GrpcCode::InvalidArgument | GrpcCode::FailedPrecondition => StatusCode::BAD_REQUEST,
            GrpcCode::AlreadyExists => StatusCode::CONFLICT,
            GrpcCode::NotFound => StatusCode::NOT_FOUND,
            GrpcCode::Unimplemented => StatusCode::NOT_IMPLEMENTED,
            GrpcCode::Unknown => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, format!("rpc error: code = {code:?} desc = {description}"))
    }
    /// 500 as SwarmKit answers: the client has not read the newest state of the object.
    pub fn out_of_sequence() -> Self {
        ProposeError::Refused(StoreError::OutOfSequence).into()
    }
    /// 404 for an unknown path, or a method that the path does not have.
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
            ControlErrorKind::WrongKey => StatusCode::UNAUTHORIZED,
            ControlErrorKind::Failed => StatusCode::INTERNAL_SERVER_ERROR,
            ControlErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, error.message)
    }
}

/// Swarm's text for a swarm whose managers have no majority.
pub const NO_LEADER: &str = "The swarm does not have a leader. It's possible that too few managers are online. Make sure more than half \
                             of the managers are online.";

impl From<ProposeError> for ApiError {
    fn from(error: ProposeError) -> Self {
        match error {
            ProposeError::Refused(error @ (StoreError::OutOfSequence | StoreError::StalePlan)) => {
                Self::rpc(GrpcCode::Unknown, error)
            }
            ProposeError::Refused(error @ (StoreError::PortInUse { .. } | StoreError::AllowListsFull { .. })) => {
                Self::rpc(GrpcCode::InvalidArgument, error)
            }
            ProposeError::Refused(error @ (StoreError::InUse { .. } | StoreError::KeyInUse { .. })) => {
                Self::rpc(GrpcCode::FailedPrecondition, error)
            }
            ProposeError::Refused(error @ (StoreError::NameConflict { .. } | StoreError::Exists { .. })) => {
                Self::rpc(GrpcCode::AlreadyExists, error)
            }
            ProposeError::Refused(
                error @ (StoreError::NeedsLevel { .. } | StoreError::FieldNeedsLevel { .. } | StoreError::UnreadableLevel { .. }),
            ) => Self::rpc(GrpcCode::FailedPrecondition, error),
            ProposeError::Refused(error @ StoreError::NotFound { .. }) => Self::rpc(GrpcCode::NotFound, error),
            ProposeError::NotLeader => Self::rpc(GrpcCode::Unknown, NO_LEADER),
            ProposeError::TimedOut => Self::rpc(GrpcCode::Unknown, format!("{error}: more than half of them must be up")),
            ProposeError::TooLarge(_) => Self::rpc(GrpcCode::InvalidArgument, error),
            ProposeError::Stopped(_) => Self::failed(error.to_string()),
        }
    }
}
