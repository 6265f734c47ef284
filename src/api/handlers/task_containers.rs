//! Containers of tasks separated from others: the filter `is-task`, and a prune that leaves prepared tasks alone. The engine
//! itself knows no tasks; their containers have a label.

use super::reply::ok;
use super::request::ApiRequest;
use crate::api::error::{ApiError, Result};
use crate::api::query::{Filters, encode};
use crate::model::docker::LABEL_TASK_ID;
use axum::response::Response;
use serde_json::{Value, json};

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
    let mut filters = request.query.any_filters()?.to_json();
    filters["label!"][LABEL_TASK_ID] = json!(true);
    let (version, _) = crate::api::query::split_version(&request.target);
    let path = target("/containers/prune", &[("filters", filters.to_string())]);
    request.forward_to(&version.map_or_else(|| path.clone(), |v| format!("/v{v}{path}"))).await
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
