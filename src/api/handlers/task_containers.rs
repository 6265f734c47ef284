//! Containers of tasks separated from others: the filter `is-task`, and a prune that leaves prepared tasks alone. The engine
//! itself knows no tasks; their containers have a label.

use super::reply::ok;
use super::request::ApiRequest;
use crate::api::control::Standing;
use crate::api::error::{ApiError, Result};
use crate::api::prune_filter::PruneFilter;
use crate::api::query::{Filters, encode};
use crate::model::Timestamp;
use crate::model::docker::LABEL_TASK_ID;
use axum::response::Response;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// GET /containers/json with the filter `is-task`
pub async fn list(request: &ApiRequest) -> Result<Response> {
    let filters = request.query.any_filters()?;
    let wanted = is_task(&filters)?;
    let mut others = filters.to_json();
    if let Some(map) = others.as_object_mut() {
        map.remove(IS_TASK);
    }
    let limit = request.query.get("limit").parse().unwrap_or(0_usize);
    let mut parameters: Vec<(&str, String)> =
        request.query.pairs().filter(|(name, _)| *name != "filters").map(|(name, value)| (name, value.to_owned())).collect();
    match wanted {
        Some(true) => others["label"][LABEL_TASK_ID] = json!(true),
        // The engine has no filter for containers without a label: it lists all, and they are left out and counted here.
        Some(false) if limit > 0 => {
            parameters.retain(|(name, _)| *name != "limit" && *name != "all");
            parameters.push(("all", "1".to_owned()));
        }
        None | Some(false) => {}
    }
    parameters.push(("filters", others.to_string()));
    let reply = request.api.engine.get(&request.engine_target(&target("/containers/json", &parameters))).await?;
    let Ok(Value::Array(mut containers)) = reply.json() else {
        return reply.ok().map_or_else(|e| Err(ApiError::new(reply.status, refusal(&e))), |()| ok(&Vec::<Value>::new()));
    };
    if wanted == Some(false) {
        containers.retain(|container| container["Labels"].get(LABEL_TASK_ID).is_none());
        if limit > 0 {
            containers.truncate(limit);
        }
    }
    ok(&containers)
}

/// POST /containers/prune: the container of a task that waits for its start has never run, which the engine takes for unused.
pub async fn prune(request: &ApiRequest) -> Result<Response> {
    if request.api.control.standing() == Standing::Inactive {
        return request.forward().await;
    }
    let filters = request.query.any_filters()?;
    if filters.has("label!") {
        return prune_one_by_one(request, &filters).await;
    }
    let mut filters = filters.to_json();
    filters["label!"][LABEL_TASK_ID] = json!(true);
    let (version, _) = crate::api::query::split_version(&request.target);
    let path = target("/containers/prune", &[("filters", filters.to_string())]);
    request.forward_to(&version.map_or_else(|| path.clone(), |v| format!("/v{v}{path}"))).await
}

/// The client spares containers by labels of its own. The engine would spare only what has all labels that spare, so that with the
/// label of tasks among them it would remove both what the client spares and what waits for its start.
async fn prune_one_by_one(request: &ApiRequest, filters: &Filters) -> Result<Response> {
    let pruned = PruneFilter::of(&request.query, request.api.clock.now())?;
    let mut query = json!({ "status": ["created", "exited", "dead"] });
    let labels: Vec<&str> = filters.values("label").collect();
    if !labels.is_empty() {
        query["label"] = json!(labels);
    }
    let parameters = [("all", "1".to_owned()), ("size", "1".to_owned()), ("filters", query.to_string())];
    // The engine computes the sizes, which may take long.
    let listed = request.engine_target(&target("/containers/json", &parameters));
    let listed = request.api.engine.send_unbounded("GET", &listed, &[], Bytes::new()).await?;
    listed.ok().map_err(|e| ApiError::new(listed.status, refusal(&e)))?;
    let listed: Vec<PrunedContainer> = serde_json::from_slice(&listed.body)
        .map_err(|e| ApiError::failed(format!("the engine's list of containers cannot be read: {e}")))?;
    let (mut deleted, mut reclaimed) = (Vec::new(), 0_u64);
    for container in listed {
        let labels = container.labels.unwrap_or_default();
        // Listed in whole seconds: it may have been made at the end of that one.
        let made = Timestamp(container.created.saturating_add(1).saturating_mul(1_000_000_000).saturating_sub(1));
        if labels.contains_key(LABEL_TASK_ID) || !pruned.removes(&labels, made) {
            continue;
        }
        let path = request.engine_target(&format!("/containers/{}", encode(&container.id)));
        // Not by force: one that was started since it was listed stays.
        if request.api.engine.send("DELETE", &path, &[], Bytes::new()).await?.status.is_success() {
            reclaimed = reclaimed.saturating_add(u64::try_from(container.size_rw.unwrap_or(0)).unwrap_or(0));
            deleted.push(container.id);
        }
    }
    let deleted = if deleted.is_empty() { Value::Null } else { json!(deleted) };
    ok(&json!({ "ContainersDeleted": deleted, "SpaceReclaimed": reclaimed }))
}

/// What a prune reads of a container.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct PrunedContainer {
    id: String,
    /// In seconds since 1970.
    created: i64,
    labels: Option<BTreeMap<String, String>>,
    size_rw: Option<i64>,
}

const IS_TASK: &str = "is-task";

/// The value of the filter; `None` without it.
fn is_task(filters: &Filters) -> Result<Option<bool>> {
    let values: Vec<&str> = filters.values(IS_TASK).collect();
    match values.as_slice() {
        [] => Ok(None),
        ["1" | "true"] => Ok(Some(true)),
        ["0" | "false"] => Ok(Some(false)),
        bad => Err(ApiError::bad(format!("invalid filter '{IS_TASK}={bad:?}'"))),
    }
}

fn target(path: &str, parameters: &[(&str, String)]) -> String {
    let query: Vec<String> = parameters.iter().map(|(name, value)| format!("{}={}", encode(name), encode(value))).collect();
    format!("{path}?{}", query.join("&"))
}

/// The engine's message, without the status that the client adds to it.
fn refusal(error: &anyhow::Error) -> String {
    let text = error.to_string();
    text.rsplit_once(" (HTTP ").map_or(text.clone(), |(message, _)| message.to_owned())
}
