//! Finds the node that has what a path names.

use super::context::AccessContext;
use super::engine_node::{EngineNode, split_reference};
use super::nodes::{ANSWER, NodeRequest};
use super::route::{ObjectKind, ObjectRequest, encode_image};
use crate::api::error::{ApiError, Result};
use crate::api::query::encode;
use crate::http::HttpReply;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use hyper::StatusCode;
use serde_json::Value;

/// Length of a container's full id.
const FULL_ID: usize = 64;

/// An object and its node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LocatedObject {
    pub node: EngineNode,
    /// As the node knows it.
    pub name: String,
    /// It belongs to the swarm: this manager's own API has it, whatever a node refuses.
    pub of_swarm: bool,
}

impl AccessContext {
    /// Finds what a request is about.
    ///
    /// # Errors
    /// 404, 400 if several nodes have it, 503 if the one node that it names cannot be asked.
    pub async fn locate(&self, request: &ObjectRequest) -> Result<LocatedObject> {
        match request.kind {
            ObjectKind::Container => self.container(&request.reference).await,
            ObjectKind::Exec => {
                let target = format!("/exec/{}/json", encode(&request.reference));
                self.first_with("exec instance", &request.reference, &target).await
            }
            ObjectKind::Image => {
                let target = format!("/images/{}/json", encode_image(&request.reference));
                let found = self.first_with("image", &request.reference, &target).await;
                found.map(|found| LocatedObject { name: request.reference.clone(), ..found })
            }
            ObjectKind::Volume => self.only_with("volume", &request.reference, "/volumes/{}").await,
            ObjectKind::Network => self.network(&request.reference).await,
        }
    }

    /// Finds a container by id, beginning of an id, name, or `node/name`; its name is its full id.
    ///
    /// # Errors
    /// As [`Self::locate`].
    pub async fn container(&self, reference: &str) -> Result<LocatedObject> {
        let nodes = self.nodes()?;
        let home = self.home(reference).and_then(|id| nodes.iter().find(|node| node.id == id));
        if let Some(node) = home {
            return Ok(LocatedObject { node: node.clone(), name: reference.to_owned(), of_swarm: false });
        }
        let found = match split_reference(&nodes, reference) {
            Some((node, name)) => {
                let reply = self.ask(node, look("/containers/{}/json", name), ANSWER).await?;
                named_on(node, &reply, reference)?
            }
            None if reference.contains('/') => return Err(no_such("container", reference)),
            None if reference.len() == FULL_ID => {
                let target = format!("/containers/{}/json", encode(reference));
                self.first_with("container", reference, &target).await?
            }
            None => self.only_with("container", reference, "/containers/{}/json").await?,
        };
        self.remember(&found.name, &found.node.id);
        Ok(found)
    }

    /// Finds a network: one of the swarm, which each manager has, or a node's own.
    async fn network(&self, reference: &str) -> Result<LocatedObject> {
        let (nodes, me) = (self.nodes()?, self.me()?);
        if split_reference(&nodes, reference).is_none()
            && let Some(node) = nodes.into_iter().find(|node| node.id == me)
        {
            let reply = self.ask_here(look("/networks/{}", reference), ANSWER).await?;
            let body: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
            if reply.status.is_success() && body["Scope"] == "swarm" {
                return Ok(LocatedObject { node, name: reference.to_owned(), of_swarm: true });
            }
        }
        self.only_with("network", reference, "/networks/{}").await
    }

    /// The first node that has it: it is the same on every node, or on one only. Nodes that do not answer are not waited for then.
    async fn first_with(&self, kind: &str, reference: &str, target: &str) -> Result<LocatedObject> {
        let nodes = self.nodes()?;
        let mut asked: FuturesUnordered<_> =
            nodes.iter().map(async |node| (node, self.ask(node, NodeRequest::get(target), ANSWER).await)).collect();
        let mut missing = None;
        while let Some((node, reply)) = asked.next().await {
            match reply {
                Ok(reply) if reply.status.is_success() => return Ok(located(node, &reply, reference)),
                Ok(_) => {}
                Err(error) => missing = Some(error),
            }
        }
        Err(incomplete(no_such(kind, reference), missing))
    }

    /// The only node that has it.
    async fn only_with(&self, kind: &str, reference: &str, path: &str) -> Result<LocatedObject> {
        let nodes = self.nodes()?;
        if let Some((node, name)) = split_reference(&nodes, reference) {
            let reply = self.ask(node, look(path, name), ANSWER).await?;
            return if reply.status.is_success() {
                let id = if kind == "container" { id_of(&reply) } else { None };
                Ok(LocatedObject { node: node.clone(), name: id.unwrap_or_else(|| name.to_owned()), of_swarm: false })
            } else {
                Err(no_such(kind, reference))
            };
        }
        let (mut found, mut missing) = (Vec::new(), None);
        for (node, reply) in self.ask_all(nodes, &look(path, reference), ANSWER).await {
            match reply {
                Ok(reply) if reply.status.is_success() => {
                    found.push((located(&node, &reply, reference), is_exact(&reply, reference)));
                }
                Ok(_) => {}
                Err(error) => missing = Some(ApiError::unavailable(error)),
            }
        }
        // A name is more than the beginning of an id.
        if found.iter().any(|(_, exact)| *exact) {
            found.retain(|(_, exact)| *exact);
        }
        match found.as_slice() {
            [] => Err(incomplete(no_such(kind, reference), missing)),
            [(one, _)] => Ok(one.clone()),
            many => {
                let names: Vec<String> = many.iter().map(|(found, _)| format!("{}/{reference}", found.node.name)).collect();
                Err(ApiError::bad(format!("{kind} {reference} is on several nodes: say which, as {}", names.join(" or "))))
            }
        }
    }
}

fn look(path: &str, name: &str) -> NodeRequest {
    NodeRequest::get(path.replacen("{}", &encode(name), 1))
}

fn id_of(reply: &HttpReply) -> Option<String> {
    let body: Value = serde_json::from_slice(&reply.body).ok()?;
    body["Id"].as_str().map(str::to_owned)
}

/// Whether the object has this name, or this whole id.
fn is_exact(reply: &HttpReply, reference: &str) -> bool {
    let body: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
    let name = body["Name"].as_str().unwrap_or_default().trim_start_matches('/');
    name == reference || body["Id"] == reference
}

fn located(node: &EngineNode, reply: &HttpReply, reference: &str) -> LocatedObject {
    let name = id_of(reply).unwrap_or_else(|| reference.to_owned());
    LocatedObject { node: node.clone(), name, of_swarm: false }
}

fn named_on(node: &EngineNode, reply: &HttpReply, reference: &str) -> Result<LocatedObject> {
    if reply.status.is_success() {
        return Ok(located(node, reply, reference));
    }
    Err(no_such("container", reference))
}

fn no_such(kind: &str, reference: &str) -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, format!("No such {kind}: {reference}"))
}

/// The 404 says so if a node that may have it was not asked.
fn incomplete(error: ApiError, missing: Option<ApiError>) -> ApiError {
    match missing {
        Some(missing) => ApiError::new(error.status, format!("{} ({})", error.message, missing.message)),
        None => error,
    }
}
