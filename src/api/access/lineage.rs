//! What a container that is made again elsewhere is made of. Its node keeps it in a label, sealed by the managers: a node can show
//! it or not, but cannot read it, change it, make one, or show that of another node. Pure.

use super::planner::SWARM_ID_LABEL;
use super::seen::labels_of;
use crate::api::error::{ApiError, Result};
use crate::api::handlers::{field, update};
use crate::model::NodeId;
use crate::store::Store;
use crate::trust::RescheduleKey;
use rand::Rng;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Label with the sealed container.
const SEAL_LABEL: &str = "skep.access-point.seal";
/// Length of what is sealed: it is part of each list of containers.
const LONGEST: usize = 64 << 10;
/// Length of the beginning of a lineage's id that names a container without a name: it has the same elsewhere.
const NAME_LENGTH: usize = 12;

/// One of a container and its successors.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealedContainer {
    /// The same in all successors.
    pub lineage: String,
    /// The name that it was made with, without the slash.
    pub name: String,
    /// 0, and one more in each successor.
    pub generation: u64,
    /// It is started as soon as it is made.
    pub run: bool,
    /// What creates it.
    pub body: Value,
}

impl SealedContainer {
    /// The container that a client asks for.
    pub fn first(body: &Value, name: &str) -> Self {
        let lineage = field(field(body, "Labels"), SWARM_ID_LABEL).as_str().unwrap_or_default().to_owned();
        let name = if name.is_empty() { lineage.get(..NAME_LENGTH).unwrap_or_default() } else { name }.to_owned();
        Self { lineage, name, generation: 0, run: false, body: body.clone() }
    }

    /// The one that replaces this one.
    pub fn successor(&self, run: bool) -> Self {
        Self { generation: self.generation + 1, run, ..self.clone() }
    }

    /// The body that creates it on a node, with the seal.
    ///
    /// # Errors
    /// It is too long.
    pub fn body_for(&self, node: &NodeId, key: &RescheduleKey, rng: &mut impl Rng) -> Result<Value> {
        let plain = serde_json::to_vec(self).map_err(|error| ApiError::failed(error.to_string()))?;
        if plain.len() > LONGEST {
            let message = format!(
                "a container with reschedule:on-node-failure is kept in a label, and its definition has {} bytes: at most {LONGEST} are kept",
                plain.len()
            );
            return Err(ApiError::bad(message));
        }
        let seal = key.seal(node, &plain, rng).map_err(|error| ApiError::failed(error.to_string()))?;
        let mut body = self.body.clone();
        update(&mut body, "Labels", |labels| update(labels, SEAL_LABEL, |label| *label = json!(seal)));
        Ok(body)
    }

    /// What a container that a node lists is, if managers sealed it for this node and it still has its name: a container of an image
    /// that was committed from it has the label too.
    pub fn of_listed(container: &Value, node: &NodeId, keys: &[RescheduleKey]) -> Option<Self> {
        let labels = labels_of(container);
        let seal = labels.get(SEAL_LABEL).filter(|seal| seal.len() <= 2 * LONGEST)?;
        let plain = keys.iter().find_map(|key| key.open(node, seal).ok())?;
        let sealed: Self = serde_json::from_slice(&plain).ok()?;
        let mut names = container["Names"].as_array()?.iter().filter_map(Value::as_str);
        names.any(|name| name.trim_start_matches('/') == sealed.name).then_some(sealed)
    }
}

/// A client's body without a seal: only managers seal.
pub fn unsealed(body: &mut Value) {
    if field(field(body, "Labels"), SEAL_LABEL).is_null() {
        return;
    }
    update(body, "Labels", |labels| {
        labels.as_object_mut().into_iter().for_each(|map| map.retain(|key, _| !key.eq_ignore_ascii_case(SEAL_LABEL)));
    });
}

/// The keys of this moment: the first seals, all open.
pub fn keys(store: &Store) -> Vec<RescheduleKey> {
    let Some(cluster) = store.cluster() else { return Vec::new() };
    let (_, issuing) = cluster.issuing_ca();
    [issuing, &cluster.ca_key].into_iter().filter_map(|key| RescheduleKey::derived_from(key).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    #[test]
    fn a_container_is_known_by_its_seal_on_its_own_node_and_under_its_own_name_only() {
        let keys = [RescheduleKey::derived_from(&"ca".into()).unwrap()];
        let (n1, n2) = (NodeId::from("n1"), NodeId::from("n2"));
        let asked = json!({ "Image": "x", "Labels": { SWARM_ID_LABEL: "0123456789abcdef" } });
        let first = SealedContainer::first(&asked, "");
        assert_eq!((first.name.as_str(), first.generation), ("0123456789ab", 0));
        let next = first.successor(true);
        let rng = &mut StdRng::seed_from_u64(1);
        let body = next.body_for(&n1, &keys[0], rng).unwrap();
        let mut listed = json!({ "Names": ["/0123456789ab"], "Labels": body["Labels"] });
        assert_eq!(SealedContainer::of_listed(&listed, &n1, &keys), Some(next.clone()));
        assert_eq!(SealedContainer::of_listed(&listed, &n2, &keys), None);
        listed["Names"] = json!(["/a-container-of-its-committed-image"]);
        assert_eq!(SealedContainer::of_listed(&listed, &n1, &keys), None);
        let mut posted = body;
        unsealed(&mut posted);
        assert_eq!(posted, asked);
        let long = SealedContainer { body: json!({ "Env": ["x".repeat(LONGEST)] }), ..first };
        assert!(long.body_for(&n1, &keys[0], rng).is_err());
    }
}
