//! `/secrets` and `/configs`. Contents are sealed before they are proposed, and opened only for those who inspect a config.

use super::reply::{empty, json, ok};
use super::request::ApiRequest;
use crate::api::error::{ApiError, GrpcCode, Result};
use crate::api::query::Filters;
use crate::api::schema::{CONFIG_SPEC, SECRET_SPEC, Struct};
use crate::api::{convert, lookup, validate, wire};
use crate::manager::bounds;
use crate::model::payload::{PayloadSpec, SealedData};
use crate::model::{ClusterConfig, ClusterSecret, ConfigId, Meta, PayloadId, Secret, SecretId, Service};
use crate::store::{Action, Condition, Kind, Object, ProposeError, Store, StoreError, StoreObject, Transaction};
use crate::trust::{DataKey, PayloadVault, SealError};
use axum::response::{IntoResponse as _, Response};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyper::StatusCode;
use serde_json::{Value, json};
use std::sync::Arc;

/// Attempts to create an object while others create the cluster's first.
const ATTEMPTS: usize = 5;

/// What differs between secrets and configs.
pub trait StoredPayload: StoreObject + Into<Object> {
    /// In messages.
    const WORD: &'static str;
    const SCHEMA: &'static Struct;
    const FILTERS: &'static [&'static str];
    /// A content has fewer bytes.
    const LIMIT: usize;
    fn new(spec: PayloadSpec) -> Self;
    fn spec(&self) -> &PayloadSpec;
    fn spec_mut(&mut self) -> &mut PayloadSpec;
    fn data(&self) -> &SealedData;
    fn set_data(&mut self, data: SealedData);
    fn payload_id(&self) -> PayloadId;
    fn find<'a>(store: &'a Store, reference: &str) -> Result<&'a Self>;
    /// As users see it.
    ///
    /// # Errors
    /// It is shown with its content, which cannot be opened.
    fn shown(&self, opened: impl FnOnce() -> Result<Secret<Vec<u8>>>) -> Result<wire::StoredPayload>;
}

impl StoredPayload for ClusterSecret {
    const WORD: &'static str = "secret";
    const SCHEMA: &'static Struct = &SECRET_SPEC;
    const FILTERS: &'static [&'static str] = &["id", "name", "names", "label"];
    const LIMIT: usize = 512_000;
    fn new(spec: PayloadSpec) -> Self {
        Self { id: SecretId::draw(&mut rand::rng()), meta: Meta::default(), spec, data: SealedData::default() }
    }
    fn spec(&self) -> &PayloadSpec {
        &self.spec
    }
    fn spec_mut(&mut self) -> &mut PayloadSpec {
        &mut self.spec
    }
    fn data(&self) -> &SealedData {
        &self.data
    }
    fn set_data(&mut self, data: SealedData) {
        self.data = data;
    }
    fn payload_id(&self) -> PayloadId {
        PayloadId::Secret(self.id.clone())
    }
    fn find<'a>(store: &'a Store, reference: &str) -> Result<&'a Self> {
        lookup::secret(store, reference)
    }
    fn shown(&self, _: impl FnOnce() -> Result<Secret<Vec<u8>>>) -> Result<wire::StoredPayload> {
        Ok(convert::payload::secret(self))
    }
}

impl StoredPayload for ClusterConfig {
    const WORD: &'static str = "config";
    const SCHEMA: &'static Struct = &CONFIG_SPEC;
    const FILTERS: &'static [&'static str] = &["id", "name", "label"];
    const LIMIT: usize = 1_024_000;
    fn new(spec: PayloadSpec) -> Self {
        Self { id: ConfigId::draw(&mut rand::rng()), meta: Meta::default(), spec, data: SealedData::default() }
    }
    fn spec(&self) -> &PayloadSpec {
        &self.spec
    }
    fn spec_mut(&mut self) -> &mut PayloadSpec {
        &mut self.spec
    }
    fn data(&self) -> &SealedData {
        &self.data
    }
    fn set_data(&mut self, data: SealedData) {
        self.data = data;
    }
    fn payload_id(&self) -> PayloadId {
        PayloadId::Config(self.id.clone())
    }
    fn find<'a>(store: &'a Store, reference: &str) -> Result<&'a Self> {
        lookup::config(store, reference)
    }
    fn shown(&self, opened: impl FnOnce() -> Result<Secret<Vec<u8>>>) -> Result<wire::StoredPayload> {
        Ok(convert::payload::config(self, STANDARD.encode(opened()?.expose())))
    }
}

/// GET /secrets and /configs
pub fn list<T: StoredPayload>(request: &ApiRequest) -> Result<Response> {
    let filters = request.query.filters(T::FILTERS)?;
    let store = request.store()?.read();
    let passing = store.all::<T>().filter(|object| passes(*object, &filters));
    ok(&passing.map(|object| shown(request, &store, object)).collect::<Result<Vec<_>>>()?)
}

fn passes<T: StoredPayload>(object: &T, filters: &Filters) -> bool {
    let spec = object.spec();
    filters.any("id", |v| object.id().to_string().starts_with(v))
        && filters.any("name", |v| spec.name.starts_with(v))
        && filters.any("names", |v| spec.name == v)
        && filters.swarm_labels("label", &spec.labels)
}

/// GET /secrets/{id} and /configs/{id}
pub fn inspect<T: StoredPayload>(request: &ApiRequest, reference: &str) -> Result<Response> {
    let store = request.store()?.read();
    ok(&shown(request, &store, T::find(&store, reference)?)?)
}

fn shown<T: StoredPayload>(request: &ApiRequest, store: &Store, object: &T) -> Result<wire::StoredPayload> {
    object.shown(|| content(request, store, object))
}

/// The content of a stored object.
fn content<T: StoredPayload>(request: &ApiRequest, store: &Store, object: &T) -> Result<Secret<Vec<u8>>> {
    let keys = store.payload_keys().ok_or_else(|| sealing_failed(&SealError::NoKey))?;
    let opened = vault(request)?.data_key(keys).and_then(|key| key.open(&object.payload_id(), object.data()));
    opened.map_err(|error| sealing_failed(&error))
}

pub(super) fn vault(request: &ApiRequest) -> Result<Arc<PayloadVault>> {
    Ok(request.api.control.vault()?)
}

pub(super) fn sealing_failed(error: &SealError) -> ApiError {
    ApiError::failed(format!("the content of secrets and configs cannot be read or written: {error}"))
}

/// POST /secrets/create and /configs/create
pub async fn create<T: StoredPayload>(request: &ApiRequest) -> Result<Response> {
    let mut posted = request.decode_body(T::SCHEMA)?;
    let content = take_content(&mut posted).unwrap_or_default();
    let handle = request.store()?;
    let driver = posted["Driver"]["Name"].as_str().unwrap_or_default().to_owned();
    let spec = spec_of::<T>(posted)?;
    validate::payload_name(&spec.name)?;
    if !driver.is_empty() {
        return Err(ApiError::rpc(GrpcCode::Unknown, format!("plugin {driver:?} not found")));
    }
    bounds::spec(&format!("a spec of a {}", T::WORD), &spec, None).map_err(ApiError::invalid_argument)?;
    validate::payload_size(T::WORD, content.expose(), T::LIMIT)?;
    let (vault, mut object) = (vault(request)?, T::new(spec));
    for attempt in 1.. {
        let store = handle.read();
        let (key, first) = data_key(&vault, &store)?;
        let sealed = key.seal(&object.payload_id(), content.expose(), &mut rand::rng());
        object.set_data(sealed.map_err(|error| sealing_failed(&error))?);
        // What another request sealed with another first key is not opened by this one: only one of them is stored.
        let actions = first.into_iter().chain([Action::Create(object.clone().into())]).collect();
        let guard = store.payload_keys().map(|keys| Condition::version(Kind::PayloadKeys, &keys.id, keys.meta.version));
        let transaction = Transaction::new(request.api.clock.now(), actions).require(guard);
        match handle.propose(transaction).await {
            Ok(_) => break,
            Err(ProposeError::Refused(StoreError::Exists { kind: Kind::PayloadKeys, .. } | StoreError::OutOfSequence))
                if attempt < ATTEMPTS => {}
            Err(error) => return Err(creation_error::<T>(error)),
        }
    }
    json(StatusCode::CREATED, &json!({ "ID": object.id().to_string() }))
}

/// The cluster's key, and what is to be written with what it seals: the first key, or a known one for managers that have none. The leader
/// passes it on too, and cannot if it is one of those.
pub(super) fn data_key(vault: &PayloadVault, store: &Store) -> Result<(DataKey, Option<Action>)> {
    let rng = &mut rand::rng();
    let found = match (store.payload_keys(), store.cluster()) {
        (Some(keys), _) => vault.data_key(keys).map(|key| (key, keys.clone())),
        (None, Some(cluster)) => vault.first_key(cluster.id.clone(), rng),
        (None, None) => return Err(ApiError::unavailable(super::request::NOT_YET)),
    };
    let (key, mut keys) = found.map_err(|error| sealing_failed(&error))?;
    for node in store.nodes().filter(|node| node.manager.is_some()) {
        if !keys.managers.contains_key(&node.id) {
            let sealed = key.sealed_to(node.mesh.key, rng).map_err(|error| sealing_failed(&error))?;
            keys.managers.insert(node.id.clone(), sealed);
        }
    }
    let write = match store.payload_keys() {
        None => Some(Action::create(keys)),
        Some(before) => (*before != keys).then(|| Action::update(keys)),
    };
    Ok((key, write))
}

fn creation_error<T: StoredPayload>(error: ProposeError) -> ApiError {
    match error {
        ProposeError::Refused(StoreError::NameConflict { name, .. }) => {
            ApiError::rpc(GrpcCode::AlreadyExists, format!("{} {name} already exists", T::WORD))
        }
        error => error.into(),
    }
}

fn spec_of<T: StoredPayload>(posted: Value) -> Result<PayloadSpec> {
    serde_json::from_value(posted).map_err(|error| ApiError::bad(format!("invalid {} spec: {error}", T::WORD)))
}

/// Takes the posted content out; `None` without one. Its schema has checked that it is base64.
fn take_content(posted: &mut Value) -> Option<Secret<Vec<u8>>> {
    let Value::String(text) = posted.get_mut("Data")?.take() else { return None };
    let mut text = Secret::new(text);
    if text.expose().contains(['\r', '\n']) {
        text = Secret::new(text.expose().replace(['\r', '\n'], ""));
    }
    STANDARD.decode(text.expose()).ok().map(Secret::new)
}

/// POST /secrets/{id}/update and /configs/{id}/update: labels may change. Clients post the rest back, also the content.
pub async fn update<T: StoredPayload>(request: &ApiRequest, reference: &str) -> Result<Response> {
    let mut posted = request.decode_body(T::SCHEMA)?;
    let version: u64 = request.query.get("version").parse().map_err(|_| ApiError::bad(format!("invalid {} version", T::WORD)))?;
    let handle = request.store()?;
    let store = handle.read();
    let stored = T::find(&store, reference)?;
    let posted_content = take_content(&mut posted);
    let spec = spec_of::<T>(posted)?;
    let same_content = match posted_content.filter(|content| !content.expose().is_empty()) {
        Some(posted) => content(request, &store, stored)? == posted,
        None => true,
    };
    if spec.name != stored.spec().name || !same_content {
        return Err(ApiError::invalid_argument("only updates to Labels are allowed"));
    }
    if stored.meta().version != version {
        return Err(ApiError::out_of_sequence());
    }
    bounds::spec(&format!("a set of labels of a {}", T::WORD), &spec.labels, Some(&stored.spec().labels))
        .map_err(ApiError::invalid_argument)?;
    let mut object = stored.clone();
    object.spec_mut().labels = spec.labels;
    handle.write(request.api.clock.now(), vec![Action::Update(object.into())]).await?;
    empty()
}

/// DELETE /secrets/{id} and /configs/{id}
pub async fn remove<T: StoredPayload>(request: &ApiRequest, reference: &str) -> Result<Response> {
    let handle = request.store()?;
    let store = handle.read();
    let object = T::find(&store, reference)?;
    // Not a condition of the write: managers of earlier builds decide the same there.
    if certified(object, &store).next().is_some() || rolled_back_to(object, &store).next().is_some() {
        return Err(in_use(object, &store));
    }
    let id = object.id().to_string();
    let removal = Transaction::new(request.api.clock.now(), vec![Action::Remove(T::KIND, id.clone())])
        .require([Condition::unreferenced(T::KIND, &id)]);
    match handle.propose(removal).await {
        Ok(_) => Ok(StatusCode::NO_CONTENT.into_response()),
        Err(ProposeError::Refused(StoreError::InUse { .. })) => Err(in_use(object, &handle.read())),
        Err(error) => Err(error.into()),
    }
}

/// Services whose HTTP routes are served with the certificate of this secret.
fn certified<'a, T: StoredPayload>(object: &'a T, store: &'a Store) -> impl Iterator<Item = &'a Service> {
    let named = |service: &&Service| {
        let certificate = service.spec.http().ok().and_then(|labels| labels.certificate);
        certificate.is_some_and(|name| name.eq_ignore_ascii_case(&object.spec().name))
    };
    store.services().filter(|_| T::KIND == Kind::ClusterSecret).filter(named)
}

/// Services whose update may go back by itself, or by their user's word because it is paused, to a spec that names it.
fn rolled_back_to<'a, T: StoredPayload>(object: &T, store: &'a Store) -> impl Iterator<Item = &'a Service> {
    let payload = object.payload_id();
    store.services().filter(move |service| {
        let previous = service.previous_spec.as_ref().filter(|_| service.has_open_update());
        previous.is_some_and(|spec| spec.task_template.container_spec.payloads().any(|named| named == payload))
    })
}

fn in_use<T: StoredPayload>(object: &T, store: &Store) -> ApiError {
    let payload = object.payload_id();
    let users = store.services_with(&payload).chain(certified(object, store)).chain(rolled_back_to(object, store));
    let mut services: Vec<&str> = users.map(|service| service.spec.name.as_str()).collect();
    services.sort_unstable();
    services.dedup();
    let noun = if services.len() == 1 { "service" } else { "services" };
    ApiError::invalid_argument(format!(
        "{} '{}' is in use by the following {noun}: {}",
        T::WORD,
        object.spec().name,
        services.join(", ")
    ))
}
