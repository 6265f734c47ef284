//! Secrets and configs in the store: their names are unique, what a service names is not removed, and a snapshot has them.

use skep::model::container_spec::{ConfigReference, SecretReference};
use skep::model::payload::{PayloadSpec, SealedData};
use skep::model::{ClusterConfig, ClusterSecret, Meta, PayloadId, Service, ServiceSpec, Timestamp, fixture};
use skep::store::{Action, Condition, Kind, Store, StoreError, Transaction};

fn spec(name: &str) -> PayloadSpec {
    PayloadSpec { name: name.to_owned(), ..PayloadSpec::default() }
}

fn secret(id: &str, name: &str) -> Action {
    Action::create(ClusterSecret { id: id.into(), meta: Meta::default(), spec: spec(name), data: SealedData("x".to_owned()) })
}

fn config(id: &str, name: &str) -> Action {
    Action::create(ClusterConfig { id: id.into(), meta: Meta::default(), spec: spec(name), data: SealedData("x".to_owned()) })
}

/// A service that names the secret and the config with these ids.
fn service(name: &str, secret: &str, config: &str) -> Service {
    let mut spec = ServiceSpec { name: name.to_owned(), ..ServiceSpec::default() };
    spec.task_template.container_spec.secrets = vec![SecretReference { id: secret.into(), ..SecretReference::default() }];
    spec.task_template.container_spec.configs = vec![ConfigReference { id: config.into(), ..ConfigReference::default() }];
    fixture::service(name, spec)
}

fn apply(store: &mut Store, actions: Vec<Action>, require: Vec<Condition>) -> Result<(), StoreError> {
    store.apply(store.index() + 1, &Transaction::new(Timestamp(5), actions).require(require)).map(drop)
}

#[test]
fn names_are_unique_within_their_kind_without_regard_to_case() {
    let mut store = Store::default();
    apply(&mut store, vec![secret("s1", "web"), config("c1", "web")], vec![]).expect("two kinds");
    let taken = apply(&mut store, vec![secret("s2", "WEB")], vec![]).expect_err("taken");
    assert_eq!(taken, StoreError::NameConflict { kind: Kind::ClusterSecret, name: "WEB".to_owned() });
    assert_eq!(store.secret_named("Web").map(|s| s.id.as_str()), Some("s1"));
    apply(&mut store, vec![Action::Remove(Kind::ClusterSecret, "s1".to_owned()), secret("s2", "WEB")], vec![]).expect("free");
}

#[test]
fn what_a_service_names_is_not_removed_until_the_last_service_drops_it() {
    let mut store = Store::default();
    apply(&mut store, vec![secret("x", "s"), config("x", "c"), secret("y", "t")], vec![]).expect("created");
    apply(&mut store, vec![Action::create(service("a", "x", "x")), Action::create(service("b", "y", "x"))], vec![])
        .expect("created");
    let remove = |store: &mut Store, kind: Kind| {
        apply(store, vec![Action::Remove(kind, "x".to_owned())], vec![Condition::unreferenced(kind, "x")])
    };
    let in_use = remove(&mut store, Kind::ClusterSecret).expect_err("in use");
    assert_eq!(in_use.to_string(), "secret x is in use by service a");
    let users: Vec<&str> = store.services_with(&PayloadId::Config("x".into())).map(|s| s.id.as_str()).collect();
    assert_eq!(users, ["a", "b"]);
    // `a` is updated to name others.
    let mut updated = service("a", "y", "y");
    updated.meta = store.service(&"a".into()).expect("stored").meta;
    apply(&mut store, vec![Action::update(updated)], vec![]).expect("updated");
    remove(&mut store, Kind::ClusterSecret).expect("free");
    remove(&mut store, Kind::ClusterConfig).expect_err("the other service names it");
    apply(&mut store, vec![Action::Remove(Kind::Service, "b".to_owned())], vec![]).expect("removed");
    remove(&mut store, Kind::ClusterConfig).expect("free");
    // Removed in between: the service is not written.
    let gone =
        apply(&mut store, vec![Action::create(service("c", "x", "x"))], vec![Condition::present(Kind::ClusterSecret, "x")]);
    assert_eq!(gone, Err(StoreError::NotFound { kind: Kind::ClusterSecret, id: "x".to_owned() }));
}

#[test]
fn a_snapshot_has_them_and_one_without_is_as_before() {
    let mut store = Store::default();
    let empty = String::from_utf8(store.snapshot()).expect("JSON");
    for word in ["secrets", "configs", "payload_keys"] {
        assert!(!empty.contains(word), "{empty}");
    }
    let actions = vec![secret("x", "s"), config("x", "c"), Action::create(service("a", "x", "x"))];
    apply(&mut store, actions, vec![]).expect("created");
    let restored = Store::restore(&store.snapshot()).expect("readable");
    assert_eq!(restored, store, "with its indexes");
}

#[test]
fn an_earlier_build_is_not_sent_what_it_cannot_read() {
    let error = Transaction::new(Timestamp(0), vec![secret("x", "s")]).at_level_of(&Store::default()).expect_err("too new");
    assert_eq!(error, StoreError::NeedsLevel { kind: Kind::ClusterSecret, needed: 2, level: 1 });
}
