//! `/services/{id}/logs` and `/tasks/{id}/logs`.

use super::request::ApiRequest;
use crate::api::error::{ApiError, Result};
use crate::api::logs::{LogFeed, LogFormat, LogSelector, check_streams, has_terminal, log_options};
use crate::api::lookup;
use crate::model::docker::ApiVersion;
use crate::store::Store;
use axum::body::Body;
use axum::response::{IntoResponse as _, Response};
use futures_util::stream::unfold;
use std::convert::Infallible;

/// First API version with a content type of its own for frames.
const FRAMES_NAMED: ApiVersion = ApiVersion { major: 1, minor: 42 };

/// GET /services/{id}/logs
pub fn of_service(request: &ApiRequest, reference: &str) -> Result<Response> {
    stream(request, |store| Ok(LogSelector::Service(lookup::service(store, reference)?.id.clone())))
}

/// GET /tasks/{id}/logs
pub fn of_task(request: &ApiRequest, reference: &str) -> Result<Response> {
    stream(request, |store| Ok(LogSelector::Task(lookup::task(store, reference)?.id.clone())))
}

fn stream(request: &ApiRequest, find: impl FnOnce(&Store) -> Result<LogSelector>) -> Result<Response> {
    check_streams(&request.query)?;
    let store = request.store()?;
    let now = store.read();
    let selector = find(&now)?;
    let parameters = log_options(&request.query)?;
    let api = &request.api;
    let slot = api.log_slots.clone().try_acquire_owned();
    let slot =
        slot.map_err(|_| ApiError::unavailable("too many logs are read through this manager: end some of them, or ask another"))?;
    let framed = !has_terminal(&now, &selector);
    let format = LogFormat { framed, timestamps: parameters.timestamps, details: parameters.details };
    let (control, clock) = (api.control.clone(), api.clock.clone());
    let lines = LogFeed { control, clock, store, selector, parameters, format }.start(slot);
    let body = unfold(lines, async |mut lines| lines.recv().await.map(|line| (Ok::<_, Infallible>(line), lines)));
    let kind = if framed && request.version >= FRAMES_NAMED { "multiplexed" } else { "raw" };
    Ok(([("content-type", format!("application/vnd.docker.{kind}-stream"))], Body::from_stream(body)).into_response())
}
