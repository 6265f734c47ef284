//! `/rebalance`, for `skep rebalance`, which no Docker has: GET says what would be moved, POST moves it.

use super::reply::ok;
use super::request::ApiRequest;
use crate::api::error::{ApiError, Result};
use crate::api::lookup;
use crate::manager::scheduler::rebalance::{self, Move};
use crate::model::{NodeId, ServiceId};
use crate::store::{Action, FieldUpdate, Store};
use axum::response::Response;
use serde_json::{Value, json};

/// Moves that one request orders. Those that are left are ordered by the next one.
const MOST: usize = 500;

/// GET /rebalance
pub fn show(request: &ApiRequest) -> Result<Response> {
    ok(&planned(request, &request.store()?.read())?.1)
}

/// POST /rebalance
pub async fn start(request: &ApiRequest) -> Result<Response> {
    let handle = request.store()?;
    let (moves, shown) = planned(request, &handle.read())?;
    let set = |one: Move| Action::Set(FieldUpdate::MoveTask { id: one.task, from: one.from, to: one.to });
    if !moves.is_empty() {
        handle.write(request.api.clock.now(), moves.into_iter().map(set).collect()).await?;
    }
    ok(&shown)
}

/// The moves, and how they are shown.
fn planned(request: &ApiRequest, store: &Store) -> Result<(Vec<Move>, Value)> {
    let only = match request.query.get("service") {
        "" => None,
        reference => {
            let service = lookup::service(store, reference)?;
            if service.spec.mode.is_global() {
                return Err(ApiError::bad(format!(
                    "service {} is global: it has one task on every node, there is nothing to move",
                    service.spec.name
                )));
            }
            Some(service.id.clone())
        }
    };
    let mut plan = rebalance::plan(store, only.as_ref(), request.api.clock.now());
    let more = plan.moves.len().saturating_sub(MOST);
    plan.moves.truncate(MOST);
    let service = |id: &ServiceId| store.service(id).map_or_else(|| id.to_string(), |service| service.spec.name.clone());
    let node = |id: &NodeId| store.node(id).map_or_else(|| id.to_string(), |node| node.description.hostname.clone());
    let moves = plan.moves.iter().map(|one| {
        json!({
            "Service": service(&one.service), "Task": one.task, "From": node(&one.from), "FromID": one.from, "To": node(&one.to),
            "ToID": one.to, "Name": store.task(&one.task).map(crate::model::Task::display_name),
        })
    });
    let left = plan.left.iter().map(|(id, why)| json!({ "Service": service(id), "Why": why }));
    let shown = json!({ "Moves": moves.collect::<Value>(), "More": more, "Left": left.collect::<Value>() });
    Ok((plan.moves, shown))
}
