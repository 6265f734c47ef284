//! New containers: the planner chooses a node from what all of them have at this moment, and from what was placed a moment ago.

use super::access_request::AccessRequest;
use super::context::AccessContext;
use super::engine_node::{EngineNode, all};
use super::lineage::{self, SealedContainer, unsealed};
use super::nodes::{ANSWER, NodeRequest, WORK};
use super::placements::PendingPlacement;
use super::planner::request::{RESERVED_LABEL, reserved_of};
use super::planner::{
    BoundPort, CandidateNode, ContainerRequest, PlacedContainer, Reservation, SWARM_ID_LABEL, choose, expression,
};
use super::reply::{collect, passed_on};
use super::route::replaced;
use super::seen::labels_of;
use crate::api::error::{ApiError, Result};
use crate::api::handlers::update;
use crate::http::HttpReply;
use crate::model::docker::LABEL_TASK_ID;
use crate::model::{Availability, Timestamp};
use crate::store::Store;
use crate::sync::lock;
use crate::trust::RescheduleKey;
use axum::response::Response;
use bytes::Bytes;
use hyper::{HeaderMap, Method, StatusCode};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// A node's reply to the creation of a container.
pub struct Placed {
    pub node: EngineNode,
    pub reply: HttpReply,
}

/// POST /containers/create. It goes on if the client goes away: a placement is counted until its node has answered.
pub async fn create(call: &AccessRequest, body: &Bytes) -> Result<Response> {
    let posted: Value = serde_json::from_slice(body).map_err(|e| ApiError::bad(format!("invalid JSON: {e}")))?;
    let name = call.query.get("name").trim_start_matches('/').to_owned();
    let (access, version, query) = (call.access.clone(), call.version.clone(), call.query_text.clone());
    let headers = call.headers.clone();
    let placing = tokio::spawn(async move {
        let creation = Creation { version: &version, query: &query, headers, again: None };
        creation.place(&access, posted, &name).await
    });
    let placed = placing.await.map_err(|error| ApiError::failed(format!("the container was not placed: {error}")))??;
    Ok(passed_on(placed.reply))
}

/// Makes the successor of a container of a lost node, somewhere. Its name is free therefore.
///
/// # Errors
/// No node fits, or the one that does refuses.
pub async fn place(access: &AccessContext, again: &SealedContainer) -> Result<Placed> {
    let creation = Creation { version: "", query: "", headers: HeaderMap::new(), again: Some(again) };
    let placed = creation.place(access, again.body.clone(), &again.name).await?;
    if placed.reply.status.is_success() { Ok(placed) } else { Err(super::reply::refusal_of(&placed.reply)) }
}

struct Creation<'a> {
    version: &'a str,
    query: &'a str,
    headers: HeaderMap,
    /// It replaces one of a lost node.
    again: Option<&'a SealedContainer>,
}

/// What does not change between two attempts.
struct Plan<'a> {
    posted: &'a Value,
    name: &'a str,
    /// What is sealed for the node, if it is rescheduled; and the key.
    sealed: Option<(SealedContainer, RescheduleKey)>,
    /// When the nodes were asked what they have.
    listed: Timestamp,
}

impl Creation<'_> {
    async fn place(&self, access: &AccessContext, mut posted: Value, name: &str) -> Result<Placed> {
        let store = access.store()?;
        let nodes = all(&store);
        let is_node = |name: &str| nodes.iter().any(|node| node.is_named(name));
        let mut asked = ContainerRequest::take(&mut posted, &is_node).map_err(ApiError::bad)?;
        let name = match name.split_once('/') {
            Some((node, name)) if is_node(node) => {
                asked.constraints.push(expression::PlacementExpression::exactly("node", node).map_err(ApiError::bad)?);
                name
            }
            _ => name,
        };
        unsealed(&mut posted);
        if self.again.is_none() {
            let id = format!("{:032x}", rand::random::<u128>());
            update(&mut posted, "Labels", |labels| labels[SWARM_ID_LABEL] = json!(id));
        }
        let sealed = match self.again {
            Some(again) => Some(again.clone()),
            None => asked.reschedule.then(|| SealedContainer::first(&posted, name)),
        };
        let name = sealed.as_ref().map_or_else(|| name.to_owned(), |sealed| sealed.name.clone());
        let key = lineage::keys(&store).into_iter().next();
        let listed = access.api.clock.now();
        let candidates = candidates(access, &store, &nodes, asked.affinities.iter().any(|a| a.key == "image")).await?;
        let plan = Plan { posted: &posted, name: &name, sealed: sealed.zip(key), listed };
        let first = self.attempt(access, &candidates, &asked, &plan).await?;
        if !is_missing_image(&first.reply) {
            return Ok(first);
        }
        // A node that has the image may fit too.
        let with_images = with_images(access, candidates).await;
        let Ok(has_image) = expression::PlacementExpression::exactly("image", &with_tag(&asked.image)) else { return Ok(first) };
        let mut with_image = asked.clone();
        with_image.affinities.push(has_image);
        match self.attempt(access, &with_images, &with_image, &plan).await {
            Ok(second) => Ok(second),
            Err(_) if self.again.is_some() => {
                self.pull(access, &first.node, &asked.image).await?;
                let only_there: Vec<CandidateNode> = with_images.into_iter().filter(|c| c.node.id == first.node.id).collect();
                self.attempt(access, &only_there, &asked, &plan).await
            }
            Err(_) => Ok(first),
        }
    }

    /// Chooses a node and has it make the container.
    async fn attempt(
        &self,
        access: &AccessContext,
        candidates: &[CandidateNode],
        asked: &ContainerRequest,
        plan: &Plan<'_>,
    ) -> Result<Placed> {
        let Plan { posted, name, .. } = *plan;
        let (node, placement) = self.reserve(access, candidates, asked, plan)?;
        let query = replaced(self.query, "name", (!name.is_empty()).then_some(name));
        let target = format!("{}/containers/create{}{query}", self.version, if query.is_empty() { "" } else { "?" });
        let request = NodeRequest::new(Method::POST, target).with_headers(&self.headers);
        let body = match &plan.sealed {
            Some((sealed, key)) => sealed.body_for(&node.id, key, &mut rand::rng()),
            None => Ok(posted.clone()),
        };
        let answered = match body {
            Ok(body) => access.ask(&node, request.json(&body), WORK).await,
            Err(error) => Err(error),
        };
        let id = answered.as_ref().ok().filter(|reply| reply.status.is_success()).and_then(|reply| {
            let created: Value = serde_json::from_slice(&reply.body).ok()?;
            created["Id"].as_str().map(str::to_owned)
        });
        match &id {
            Some(id) => {
                placement.made(id, access.api.clock.now());
                access.remember(id, &node.id);
            }
            None => access.placements.at(access.api.clock.now()).forget(&placement),
        }
        Ok(Placed { node, reply: answered? })
    }

    /// Plans under a lock, with what others plan: two containers get no port, name or CPU twice.
    fn reserve(
        &self,
        access: &AccessContext,
        candidates: &[CandidateNode],
        asked: &ContainerRequest,
        plan: &Plan<'_>,
    ) -> Result<(EngineNode, PendingPlacement)> {
        let Plan { posted, name, listed, .. } = *plan;
        let now = access.api.clock.now();
        let mut recent = access.placements.at(now);
        let mut candidates = candidates.to_vec();
        recent.count_in(&mut candidates, listed);
        if !name.is_empty()
            && let Some(id) = self.taken_by(access, &candidates, name)
        {
            let message = format!(
                "Conflict. The container name \"/{name}\" is already in use by container \"{id}\". You have to remove (or rename) that \
                 container to be able to reuse that name."
            );
            return Err(ApiError::new(StatusCode::CONFLICT, message));
        }
        let chosen = choose(&candidates, asked, access.rules, &mut rand::rng()).map_err(ApiError::failed)?;
        let container = PlacedContainer {
            id: String::new(),
            name: name.to_owned(),
            labels: labels_of(posted),
            running: false,
            reserved: asked.reserved,
            ports: asked.ports.clone(),
        };
        let node = chosen.node.clone();
        let placement = recent.add(&node.id, container, now);
        Ok((node, placement))
    }

    /// The container that has a name, on a node that answers or on a lost one.
    fn taken_by(&self, access: &AccessContext, candidates: &[CandidateNode], name: &str) -> Option<String> {
        let here = candidates.iter().flat_map(|node| &node.containers).find(|container| container.name == name);
        if here.is_some() || self.again.is_some() {
            return here.map(|container| container.id.clone());
        }
        let seen = lock(&access.seen);
        let others = seen.iter().filter(|(id, _)| !candidates.iter().any(|candidate| candidate.node.id == **id));
        let mut containers = others.flat_map(|(_, seen)| &seen.containers);
        let found = containers.find(|container| plain_name(container) == name)?;
        found["Id"].as_str().map(str::to_owned)
    }

    async fn pull(&self, access: &AccessContext, node: &EngineNode, image: &str) -> Result<()> {
        let target = format!("/images/create?fromImage={}", crate::api::query::encode(&with_tag(image)));
        access.ask(node, NodeRequest::new(Method::POST, target), WORK).await.map(drop)
    }
}

fn is_missing_image(reply: &HttpReply) -> bool {
    let body: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
    reply.status == StatusCode::NOT_FOUND
        && body["message"].as_str().is_some_and(|text| text.to_ascii_lowercase().contains("no such image"))
}

/// An image's name as lists have it.
fn with_tag(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or_default();
    if last.contains(':') || image.contains('@') { image.to_owned() } else { format!("{image}:latest") }
}

/// The name of a listed container, without the slash.
pub fn plain_name(container: &Value) -> &str {
    container["Names"][0].as_str().unwrap_or_default().trim_start_matches('/')
}

/// The nodes that may get containers and answer, with what they have.
///
/// # Errors
/// No node answers.
pub async fn candidates(access: &AccessContext, store: &Store, nodes: &[EngineNode], images: bool) -> Result<Vec<CandidateNode>> {
    let active: Vec<EngineNode> =
        nodes.iter().filter(|node| node.availability == Availability::Active && node.unreachable().is_none()).cloned().collect();
    let lists = access.ask_all(active, &NodeRequest::get("/containers/json?all=1"), ANSWER).await;
    let mut candidates = Vec::new();
    for (node, list) in collect::<Vec<Value>>(lists)?.found {
        let facts = lock(&access.seen).get(&node.id).and_then(|seen| seen.facts.clone());
        let facts = match facts {
            Some(facts) => Some(facts),
            None => access.read_facts(&node).await,
        };
        let mut labels = facts.map(|facts| facts.labels).unwrap_or_default();
        labels.extend(node.labels.clone());
        let containers = list.iter().map(|container| placed(container, store)).collect();
        candidates.push(CandidateNode { node, labels, containers, images: Vec::new() });
    }
    if images { Ok(with_images(access, candidates).await) } else { Ok(candidates) }
}

async fn with_images(access: &AccessContext, mut candidates: Vec<CandidateNode>) -> Vec<CandidateNode> {
    let nodes = candidates.iter().map(|candidate| candidate.node.clone()).collect();
    let lists = access.ask_all(nodes, &NodeRequest::get("/images/json"), ANSWER).await;
    for (node, list) in collect::<Vec<Value>>(lists).map(|collected| collected.found).unwrap_or_default() {
        if let Some(candidate) = candidates.iter_mut().find(|candidate| candidate.node.id == node.id) {
            candidate.images = list.iter().flat_map(image_names).collect();
        }
    }
    candidates
}

/// Its id, its names, and those without tags.
fn image_names(image: &Value) -> Vec<String> {
    let tags = image["RepoTags"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let names = tags.flat_map(|tag| [Some(tag), tag.rsplit_once(':').map(|(name, _)| name)]).flatten();
    let all: BTreeSet<&str> = image["Id"].as_str().into_iter().chain(names).collect();
    all.into_iter().map(str::to_owned).collect()
}

/// A listed container. What a task reserves is in the store, what a container of the access point reserves in its label.
fn placed(container: &Value, store: &Store) -> PlacedContainer {
    let labels = labels_of(container);
    let (mut reserved, mut ports) = labels.get(RESERVED_LABEL).map(|text| reserved_of(text)).unwrap_or_default();
    if let Some(task) = labels.get(LABEL_TASK_ID).and_then(|id| store.task(&id.as_str().into())) {
        let of_task = task.spec.resources.as_ref().and_then(|resources| resources.reservations.as_ref());
        reserved = of_task.map(|r| Reservation { nano_cpus: r.nano_cpus, memory: r.memory_bytes }).unwrap_or_default();
    }
    let listed = container["Ports"].as_array().into_iter().flatten().filter_map(|port| {
        Some(BoundPort {
            protocol: port["Type"].as_str()?.to_owned(),
            port: u16::try_from(port["PublicPort"].as_u64()?).ok()?,
            ip: port["IP"].as_str().unwrap_or_default().to_owned(),
        })
    });
    ports.extend(listed);
    PlacedContainer {
        id: container["Id"].as_str().unwrap_or_default().to_owned(),
        name: plain_name(container).to_owned(),
        running: container["State"] == "running",
        labels,
        reserved,
        ports,
    }
}
