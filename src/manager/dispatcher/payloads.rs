//! The contents of secrets and configs in a node's view: of those that its tasks need, the certificates of HTTP routes, and no
//! others.

use crate::model::acme::IssuedCertificate;
use crate::model::view::{ClusterPart, Tasks};
use crate::model::{AcmeCertificate, Payload, PayloadId, SecretId, TaskState};
use crate::store::Store;
use crate::trust::{DataKey, PayloadVault};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Adds the contents that the tasks need, and the certificates. Those of `before` are taken over: they never change. One that cannot be opened is
/// missing, and its tasks wait.
pub(super) fn attach(
    mut tasks: Arc<Tasks>,
    certificates: &BTreeSet<PayloadId>,
    before: Option<&Tasks>,
    store: &Store,
    vault: Option<&PayloadVault>,
) -> Arc<Tasks> {
    let needed: BTreeSet<PayloadId> = needed(&tasks).chain(certificates.iter().cloned()).collect();
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
fn needed(tasks: &Tasks) -> impl Iterator<Item = PayloadId> {
    let wanted = tasks.by_id.values().filter(|t| t.desired_state <= TaskState::Running && !t.status.state.is_final());
    wanted.flat_map(|task| task.spec.container_spec.payloads())
}

/// The certificates of HTTP routes, which every node serves.
pub(super) fn certificates(cluster: &ClusterPart) -> BTreeSet<PayloadId> {
    let secrets = cluster.http.iter().filter_map(|service| service.certificate.clone());
    let by_acme = cluster.acme.certificates.iter().map(|certificate| certificate.payload.clone());
    secrets.chain(by_acme).map(PayloadId::Secret).collect()
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

/// The certificate by ACME with this content.
fn issued<'a>(store: &'a Store, payload: &SecretId) -> Option<&'a IssuedCertificate> {
    store.all::<AcmeCertificate>().filter_map(|certificate| certificate.issued.as_ref()).find(|issued| issued.payload == *payload)
}

fn open(id: &PayloadId, store: &Store, key: &DataKey) -> Option<Arc<Payload>> {
    let (spec, sealed) = match id {
        PayloadId::Secret(id) => match store.get::<crate::model::ClusterSecret>(id) {
            Some(secret) => (Some(&secret.spec), &secret.data),
            None => (None, &issued(store, id)?.data),
        },
        PayloadId::Config(id) => store.get::<crate::model::ClusterConfig>(id).map(|c| (Some(&c.spec), &c.data))?,
    };
    match key.open(id, sealed) {
        Ok(content) => {
            let templating =
                spec.and_then(|spec| spec.templating.as_ref()).map(|t| t.name.clone()).filter(|name| !name.is_empty());
            Some(Arc::new(Payload { data: STANDARD.encode(content.expose()).into(), templating }))
        }
        Err(error) => {
            tracing::error!(%id, %error, "a content cannot be opened: tasks that need it wait");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::container_spec::{ConfigReference, SecretReference};
    use crate::model::payload::PayloadSpec;
    use crate::model::{ClusterConfig, ClusterSecret, Meta, Secret, Task, Timestamp, fixture};
    use crate::store::{Action, Transaction};
    use crate::trust::TunnelKey;
    use rand::SeedableRng as _;

    fn vault(node: &str, number: u8) -> PayloadVault {
        PayloadVault::new(node.into(), TunnelKey::new(Secret::new([number; 32])))
    }

    /// Secrets `a` and `b` and the config `c`, whose contents are their names.
    fn store(vault: &PayloadVault) -> Store {
        let rng = &mut rand::rngs::StdRng::seed_from_u64(1);
        let (key, keys) = vault.first_key("cluster".into(), rng).expect("a key");
        let spec = |name: &str| PayloadSpec { name: name.to_owned(), ..PayloadSpec::default() };
        let mut actions = vec![Action::create(keys)];
        for id in ["a", "b"] {
            let data = key.seal(&PayloadId::Secret(id.into()), id.as_bytes(), rng).expect("sealed");
            actions.push(Action::create(ClusterSecret { id: id.into(), meta: Meta::default(), spec: spec(id), data }));
        }
        let data = key.seal(&PayloadId::Config("c".into()), b"c", rng).expect("sealed");
        actions.push(Action::create(ClusterConfig { id: "c".into(), meta: Meta::default(), spec: spec("c"), data }));
        let mut store = Store::default();
        store.apply(1, &Transaction::new(Timestamp(0), actions)).expect("applied");
        store
    }

    fn task(id: &str, secret: &str, config: Option<&str>) -> Task {
        let mut task = fixture::task_with_resolvers(id, "web", "n1", &[]);
        let container = &mut Arc::make_mut(&mut task.spec).container_spec;
        container.secrets = vec![SecretReference { id: secret.into(), ..SecretReference::default() }];
        container.configs = config.iter().map(|id| ConfigReference { id: (*id).into(), ..ConfigReference::default() }).collect();
        task
    }

    fn tasks(all: Vec<Task>) -> Arc<Tasks> {
        Arc::new(Tasks { by_id: all.into_iter().map(|t| (t.id.clone(), Arc::new(t))).collect(), ..Tasks::default() })
    }

    fn names(tasks: &Tasks) -> Vec<String> {
        tasks.payloads.keys().map(ToString::to_string).collect()
    }

    #[test]
    fn a_node_is_sent_what_its_live_tasks_name_and_nothing_else() {
        let vault = vault("n1", 1);
        let store = store(&vault);
        let none = BTreeSet::new();
        let plain = fixture::task_with_resolvers("t0", "web", "n1", &[]);
        assert_eq!(names(&attach(tasks(vec![plain.clone()]), &none, None, &store, Some(&vault))), [""; 0]);
        let live = tasks(vec![plain, task("t1", "a", Some("c"))]);
        let sent = attach(live, &none, None, &store, Some(&vault));
        assert_eq!(names(&sent), ["secret a", "config c"]);
        let content = &sent.payloads[&PayloadId::Secret("a".into())].data;
        assert_eq!(STANDARD.decode(content.expose()).expect("base64"), b"a");
        // One that ends, one that has ended, one whose secret there is not.
        let (mut stops, mut ended) = (task("t2", "a", None), task("t3", "b", None));
        stops.desired_state = TaskState::Shutdown;
        ended.status.state = TaskState::Failed;
        let next = attach(tasks(vec![stops, ended, task("t4", "gone", Some("c"))]), &none, Some(&sent), &store, Some(&vault));
        assert_eq!(names(&next), ["config c"]);
        let config = PayloadId::Config("c".into());
        assert!(Arc::ptr_eq(&next.payloads[&config], &sent.payloads[&config]), "opened once");
        let certificates = [PayloadId::Secret("b".into())].into();
        assert_eq!(names(&attach(tasks(vec![]), &certificates, None, &store, Some(&vault))), ["secret b"], "of an HTTP route");
    }

    #[test]
    fn without_the_key_tasks_wait() {
        let store = store(&vault("n1", 1));
        for vault in [None, Some(vault("n2", 1)), Some(vault("n1", 2))] {
            assert_eq!(
                names(&attach(tasks(vec![task("t1", "a", Some("c"))]), &BTreeSet::new(), None, &store, vault.as_ref())),
                [""; 0]
            );
        }
    }
}
