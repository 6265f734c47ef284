//! Events between two states of the store, in the real server's words. Pure.

use crate::model::{ClusterConfig, ClusterSecret, Network, Node, NodeState, Role, Service, Timestamp};
use crate::store::{ChangedObject, Store, StoreObject, changed};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// A change of an object that users see.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SwarmEvent {
    /// `node`, `network`, `service`, `secret` or `config`.
    pub kind: &'static str,
    /// `create`, `update` or `remove`.
    pub action: &'static str,
    pub id: String,
    /// The name, and what changed as `what.old` and `what.new`.
    pub attributes: BTreeMap<String, String>,
    /// When the object was written, or removed: by the log, as on every manager, also on one that was away meanwhile.
    pub at: Timestamp,
}

impl SwarmEvent {
    /// As a line of `GET /events`.
    pub fn to_json(&self) -> Value {
        json!({
            "Type": self.kind, "Action": self.action, "Actor": { "ID": self.id, "Attributes": self.attributes },
            "scope": "swarm", "time": self.at.0 / 1_000_000_000, "timeNano": self.at.0,
        })
    }
}

/// An object whose changes are events.
trait Observed: StoreObject + PartialEq {
    const WORD: &'static str;
    fn name(&self) -> &str;
    /// False for an object that is removed as far as users see.
    fn is_shown(&self) -> bool {
        true
    }
    /// What users follow, as (name, value).
    fn followed(&self) -> Vec<(&'static str, String)>;
}

impl Observed for Node {
    const WORD: &'static str = "node";
    fn name(&self) -> &str {
        &self.description.hostname
    }
    fn followed(&self) -> Vec<(&'static str, String)> {
        // Docker has no other state for a node that has left.
        let state = if self.status.state == NodeState::Disconnected { NodeState::Down } else { self.status.state };
        vec![
            ("availability", self.spec.availability.as_str().to_owned()),
            // When it has happened: the wish is a change of the spec without attributes, as in Swarm.
            ("role", if self.manager.is_some() { Role::Manager } else { Role::Worker }.as_str().to_owned()),
            ("state", state.as_str().to_owned()),
        ]
    }
}

impl Observed for Network {
    const WORD: &'static str = "network";
    fn name(&self) -> &str {
        &self.spec.name
    }
    fn is_shown(&self) -> bool {
        !self.removing
    }
    fn followed(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }
}

impl Observed for Service {
    const WORD: &'static str = "service";
    fn name(&self) -> &str {
        &self.spec.name
    }
    fn followed(&self) -> Vec<(&'static str, String)> {
        let image = self.spec.task_template.container_spec.image.clone();
        let replicas = self.spec.mode.replicated.map(|r| r.replicas.unwrap_or(1).to_string()).unwrap_or_default();
        let shown = self.update.as_ref().filter(|update| update.is_shown());
        let state = shown.map(|update| update.state.as_str().to_owned()).unwrap_or_default();
        vec![("image", image), ("replicas", replicas), ("updatestate", state)]
    }
}

impl Observed for ClusterSecret {
    const WORD: &'static str = "secret";
    fn name(&self) -> &str {
        &self.spec.name
    }
    fn followed(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }
}

impl Observed for ClusterConfig {
    const WORD: &'static str = "config";
    fn name(&self) -> &str {
        &self.spec.name
    }
    fn followed(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }
}

/// The events that lead from one state to the other, in the order of their times. `now` is that of removals where the log has none.
pub fn changes(before: &Store, after: &Store, now: Timestamp) -> Vec<SwarmEvent> {
    let now = after.written_at().unwrap_or(now);
    let mut all = changes_of::<Node>(before, after, now);
    all.extend(changes_of::<Network>(before, after, now));
    all.extend(changes_of::<Service>(before, after, now));
    all.extend(changes_of::<ClusterSecret>(before, after, now));
    all.extend(changes_of::<ClusterConfig>(before, after, now));
    all.sort_by_key(|event| event.at);
    all
}

fn changes_of<T: Observed>(before: &Store, after: &Store, now: Timestamp) -> Vec<SwarmEvent> {
    let event_of = |(before, after): ChangedObject<'_, T>| match (shown(before), shown(after)) {
        (None, Some(new)) => Some(event(new, "create", BTreeMap::new(), new.meta().created_at)),
        (Some(old), None) => {
            // One that is hidden was written then.
            let at = after.map_or(now, |hidden| hidden.meta().updated_at);
            Some(event(old, "remove", BTreeMap::new(), at))
        }
        (Some(old), Some(new)) => update(old, new),
        (None, None) => None,
    };
    changed::<T>(before, after).filter_map(event_of).collect()
}

fn shown<T: Observed>(object: Option<&T>) -> Option<&T> {
    object.filter(|object| object.is_shown())
}

/// `None` if only the version differs: the allocator writes networks as the guard of their addresses.
fn update<T: Observed>(old: &T, new: &T) -> Option<SwarmEvent> {
    let mut same = old.clone();
    *same.meta_mut() = new.meta();
    if same == *new {
        return None;
    }
    // What is over has no attributes: they say what is there now, and what it was before.
    let pairs = old.followed().into_iter().zip(new.followed()).filter(|(old, new)| old != new && !new.1.is_empty());
    let attributes = pairs.flat_map(|((name, old), (_, new))| [(format!("{name}.old"), old), (format!("{name}.new"), new)]);
    let attributes = attributes.filter(|(_, value)| !value.is_empty()).collect();
    Some(event(new, "update", attributes, new.meta().updated_at))
}

fn event<T: Observed>(object: &T, action: &'static str, mut attributes: BTreeMap<String, String>, at: Timestamp) -> SwarmEvent {
    attributes.insert("name".to_owned(), object.name().to_owned());
    SwarmEvent { kind: T::WORD, action, id: object.id().to_string(), attributes, at }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::payload::{PayloadSpec, SealedData};
    use crate::model::service::{Replicated, ServiceMode};
    use crate::model::{Meta, NetworkSpec, ServiceSpec, fixture};
    use crate::store::{Action, Kind, Transaction};

    fn network(name: &str) -> Network {
        let spec = NetworkSpec { name: name.to_owned(), ..NetworkSpec::default() };
        Network::new(name.into(), spec)
    }

    fn service(name: &str, replicas: u64, image: &str) -> Service {
        let mode = ServiceMode { replicated: Some(Replicated { replicas: Some(replicas) }), ..ServiceMode::default() };
        let mut spec = ServiceSpec { name: name.to_owned(), mode, ..ServiceSpec::default() };
        image.clone_into(&mut spec.task_template.container_spec.image);
        fixture::service(name, spec)
    }

    struct Changing {
        store: Store,
        at: i64,
    }

    impl Changing {
        /// The events of one transaction, as text.
        fn write(&mut self, mut actions: Vec<Action>) -> Vec<String> {
            self.at += 1;
            for action in &mut actions {
                if let Action::Update(object) = action {
                    *object.meta_mut() = object.kind().stored_meta(&self.store, &object.id()).expect("stored");
                }
            }
            let before = self.store.clone();
            let index = self.store.index() + 1;
            self.store.apply(index, &Transaction::new(Timestamp(self.at), actions)).expect("applies");
            let text = |e: SwarmEvent| format!("{} {} {} {:?} at {}", e.kind, e.action, e.id, e.attributes, e.at.0);
            changes(&before, &self.store, Timestamp(99)).into_iter().map(text).collect()
        }
    }

    #[test]
    fn changes_are_events_with_what_changed() {
        let mut log = Changing { store: Store::default(), at: 0 };
        let created = log.write(vec![Action::create(service("web", 2, "lab:1")), Action::create(network("back"))]);
        let expected = ["network create back {\"name\": \"back\"} at 1", "service create web {\"name\": \"web\"} at 1"];
        assert_eq!(created, expected);
        assert_eq!(
            log.write(vec![Action::update(service("web", 3, "lab:2"))]),
            [
                "service update web {\"image.new\": \"lab:2\", \"image.old\": \"lab:1\", \"name\": \"web\", \"replicas.new\": \"3\", \
              \"replicas.old\": \"2\"} at 2"
            ]
        );
        let subnet = Network { subnet: Some("10.0.1.0/24".parse().expect("subnet")), ..network("back") };
        assert_eq!(log.write(vec![Action::update(subnet.clone())]), ["network update back {\"name\": \"back\"} at 3"]);
        assert!(log.write(vec![Action::update(subnet.clone())]).is_empty(), "only its version changed");
        let removing = Network { removing: true, ..subnet };
        assert_eq!(log.write(vec![Action::update(removing)]), ["network remove back {\"name\": \"back\"} at 5"]);
        let gone = vec![Action::Remove(Kind::Network, "back".into()), Action::Remove(Kind::Service, "web".into())];
        assert_eq!(log.write(gone), ["service remove web {\"name\": \"web\"} at 6"], "the network was removed before");
        let spec = PayloadSpec { name: "tok".to_owned(), ..PayloadSpec::default() };
        let secret = ClusterSecret { id: "s1".into(), meta: Meta::default(), spec, data: SealedData::default() };
        assert_eq!(log.write(vec![Action::create(secret)]), ["secret create s1 {\"name\": \"tok\"} at 7"]);
        let task = crate::model::fixture::task_with_resolvers("t1", "web", "n1", &[]);
        assert!(log.write(vec![Action::create(task)]).is_empty(), "tasks have none");
        let gone = vec![Action::Remove(Kind::Task, "t1".into()), Action::Remove(Kind::ClusterSecret, "s1".into())];
        assert_eq!(log.write(gone), ["secret remove s1 {\"name\": \"tok\"} at 9"]);
    }
}
