//! What the parts of the access point share: the node, how it places containers, and what was seen of other nodes.

use super::placements::RecentPlacements;
use super::planner::PlacementRules;
use super::seen::SeenNode;
use crate::api::context::ApiContext;
use crate::api::control::{LOCKED, NOT_MANAGER, Standing};
use crate::api::error::{ApiError, Result};
use crate::api::handlers::{NOT_IN_SWARM, NOT_YET};
use crate::http::BoxedStream;
use crate::model::NodeId;
use crate::store::Store;
use crate::sync::lock;
use futures_util::future::BoxFuture;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

/// Containers whose node is remembered.
const HOMES: usize = 16_384;
/// Bytes that wait between the access point and this node's own API, each way.
const OWN_BUFFER: usize = 64 << 10;

/// The Docker API of this node, without a socket.
pub struct OwnApi(pub Box<dyn Fn(BoxedStream) -> BoxFuture<'static, ()> + Send + Sync>);

impl OwnApi {
    /// A connection to it.
    pub fn connect(&self) -> BoxedStream {
        let (near, far) = tokio::io::duplex(OWN_BUFFER);
        tokio::spawn((self.0)(Box::new(far)));
        Box::new(near)
    }
}

pub struct AccessContext {
    pub api: Arc<ApiContext>,
    pub own_api: OwnApi,
    pub rules: PlacementRules,
    homes: Mutex<Homes>,
    /// What the watch has read of each node.
    pub seen: Mutex<BTreeMap<NodeId, SeenNode>>,
    pub placements: RecentPlacements,
}

/// Nodes of containers by full id. A container never moves, so this is never wrong.
#[derive(Default)]
struct Homes {
    of: BTreeMap<String, NodeId>,
    order: VecDeque<String>,
}

impl AccessContext {
    pub fn new(api: Arc<ApiContext>, own_api: OwnApi, rules: PlacementRules) -> Self {
        Self { api, own_api, rules, homes: Mutex::default(), seen: Mutex::default(), placements: RecentPlacements::default() }
    }

    /// The store of this moment.
    ///
    /// # Errors
    /// 503 unless this node is a manager.
    pub fn store(&self) -> Result<Arc<Store>> {
        match self.api.control.standing() {
            Standing::Manager => self.api.control.store().map(|store| store.read()).ok_or_else(|| ApiError::unavailable(NOT_YET)),
            Standing::Worker | Standing::Pending => Err(ApiError::unavailable(NOT_MANAGER)),
            Standing::Locked => Err(ApiError::unavailable(LOCKED)),
            Standing::Inactive => Err(ApiError::unavailable(NOT_IN_SWARM)),
        }
    }

    /// This node's id.
    ///
    /// # Errors
    /// 503 unless it is in a swarm.
    pub fn me(&self) -> Result<NodeId> {
        let membership = self.api.control.membership();
        membership.info().map(|info| info.node_id.clone()).ok_or_else(|| ApiError::unavailable(NOT_IN_SWARM))
    }

    /// Whether this node leads the managers, and they agree on that.
    pub fn leads(&self) -> bool {
        let membership = self.api.control.membership();
        let leads = membership.info().is_some_and(|info| info.leader.as_ref() == Some(&info.node_id));
        leads && self.api.control.leaderless_since().is_none()
    }

    /// The node of a container, if it was seen there.
    pub fn home(&self, id: &str) -> Option<NodeId> {
        lock(&self.homes).of.get(id).cloned()
    }

    /// Remembers the node of a container.
    pub fn remember(&self, id: &str, node: &NodeId) {
        let mut homes = lock(&self.homes);
        if homes.of.insert(id.to_owned(), node.clone()).is_none() {
            homes.order.push_back(id.to_owned());
        }
        while homes.order.len() > HOMES {
            if let Some(oldest) = homes.order.pop_front() {
                homes.of.remove(&oldest);
            }
        }
    }
}
