//! The contents of secrets and configs in a node's view: of those that its tasks need, and no others.

use crate::model::view::Tasks;
use crate::model::{Payload, PayloadId, TaskState};
use crate::store::Store;
use crate::trust::{DataKey, PayloadVault};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Adds the contents that the tasks need. Those of `before` are taken over: they never change. One that cannot be opened is
/// missing, and its tasks wait.
pub(super) fn attach(mut tasks: Arc<Tasks>, before: Option<&Tasks>, store: &Store, vault: Option<&PayloadVault>) -> Arc<Tasks> {
    let needed = needed(&tasks);
    if needed.is_empty() {
        return tasks;
    }
    let mut key = None;
    let mut opened = |id: &PayloadId| {
        if key.is_none() {
            key = open_key(store, vault);
        }
        open(id, store, key.as_ref()?)
    };
    let known = |id: &PayloadId| before.and_then(|before| before.payloads.get(id)).cloned();
    let payloads = needed.into_iter().filter_map(|id| {
        let payload = known(&id).or_else(|| opened(&id))?;
        Some((id, payload))
    });
    let payloads = payloads.collect();
    Arc::make_mut(&mut tasks).payloads = payloads;
    tasks
}

/// What tasks that run or are to run name.
fn needed(tasks: &Tasks) -> BTreeSet<PayloadId> {
    let wanted = tasks.by_id.values().filter(|t| t.desired_state <= TaskState::Running && !t.status.state.is_final());
    wanted.flat_map(|task| task.spec.container_spec.payloads()).collect()
}

fn open_key(store: &Store, vault: Option<&PayloadVault>) -> Option<DataKey> {
    let keys = store.payload_keys()?;
    match vault?.data_key(keys) {
        Ok(key) => Some(key),
        Err(error) => {
            tracing::error!(%error, "the key of secrets and configs cannot be opened: tasks that need some wait");
            None
        }
    }
}

fn open(id: &PayloadId, store: &Store, key: &DataKey) -> Option<Arc<Payload>> {
    let (spec, sealed) = match id {
        PayloadId::Secret(id) => store.get::<crate::model::ClusterSecret>(id).map(|s| (&s.spec, &s.data))?,
        PayloadId::Config(id) => store.get::<crate::model::ClusterConfig>(id).map(|c| (&c.spec, &c.data))?,
    };
    match key.open(id, sealed) {
        Ok(content) => {
            let templating = spec.templating.as_ref().map(|t| t.name.clone()).filter(|name| !name.is_empty());
            Some(Arc::new(Payload { data: STANDARD.encode(content.expose()).into(), templating }))
        }
        Err(error) => {
            tracing::error!(%id, %error, "a content cannot be opened: tasks that need it wait");
            None
        }
    }
}
