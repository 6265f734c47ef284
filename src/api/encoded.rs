//! Services as JSON, encoded once for each state of theirs: clients poll, and most services are as they were at the last poll.
//! An entry holds the service that it was made of, so that an equal pointer means an equal text.

use super::convert;
use super::error::{ApiError, Result};
use super::wire::{JobStatus, ServiceStatus};
use crate::model::{Service, ServiceId};
use crate::store::{Store, StoreObject as _};
use crate::sync::lock;
use bytes::Bytes;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// Encoded services that the store has no more are dropped when there are this many more entries than services.
const SPARE: usize = 64;

/// The texts, by service. At most one for each service of the store, and [`SPARE`] more.
#[derive(Default)]
pub struct EncodedServices(Mutex<BTreeMap<ServiceId, EncodedService>>);

struct EncodedService {
    service: Arc<Service>,
    text: Bytes,
    /// Where `ServiceStatus` belongs, which is of the tasks and is not kept: before `JobStatus`.
    status_at: usize,
}

fn encode(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|error| ApiError::failed(format!("the reply cannot be encoded: {error}")))
}

impl EncodedService {
    fn new(service: &Arc<Service>, store: &Store) -> Result<Self> {
        let shown = convert::service::service(service, store, false);
        let text = encode(&shown)?;
        let end = shown.job_status.as_ref().map_or(Ok(1), end_with)?;
        Ok(Self { service: service.clone(), status_at: text.len().saturating_sub(end), text: text.into() })
    }

    /// Appends the service with its counts.
    fn append(&self, status: Option<ServiceStatus>, out: &mut Vec<u8>) -> Result<()> {
        let Some(status) = status else {
            out.extend_from_slice(&self.text);
            return Ok(());
        };
        let (start, end) = self.text.split_at(self.status_at);
        out.extend_from_slice(start);
        out.extend_from_slice(b",\"ServiceStatus\":");
        out.extend_from_slice(&encode(&status)?);
        out.extend_from_slice(end);
        Ok(())
    }
}

/// Length of the end of a service's text that begins with its `JobStatus`.
fn end_with(job: &JobStatus) -> Result<usize> {
    Ok(",\"JobStatus\":".len() + encode(job)?.len() + 1)
}

impl EncodedServices {
    /// One service.
    ///
    /// # Errors
    /// It cannot be encoded.
    pub fn one(&self, service: &Arc<Service>, store: &Store) -> Result<Bytes> {
        let mut entries = lock(&self.0);
        prune(&mut entries, store);
        Ok(current(&mut entries, service, store)?.text.clone())
    }

    /// Services as a list, each with its counts if `status` returns any.
    ///
    /// # Errors
    /// One cannot be encoded.
    pub fn list(
        &self,
        services: &[&Arc<Service>],
        status: impl Fn(&Service) -> Option<ServiceStatus>,
        store: &Store,
    ) -> Result<Vec<u8>> {
        let statuses: Vec<Option<ServiceStatus>> = services.iter().map(|service| status(service)).collect();
        let mut out = vec![b'['];
        let mut entries = lock(&self.0);
        prune(&mut entries, store);
        for (service, status) in services.iter().zip(statuses) {
            if out.len() > 1 {
                out.push(b',');
            }
            current(&mut entries, service, store)?.append(status, &mut out)?;
        }
        out.push(b']');
        Ok(out)
    }
}

fn prune(entries: &mut BTreeMap<ServiceId, EncodedService>, store: &Store) {
    if entries.len() > Service::table(store).len() + SPARE {
        entries.retain(|id, _| store.service(id).is_some());
    }
}

fn current<'a>(
    entries: &'a mut BTreeMap<ServiceId, EncodedService>,
    service: &Arc<Service>,
    store: &Store,
) -> Result<&'a EncodedService> {
    let is_current = entries.get(&service.id).is_some_and(|entry| Arc::ptr_eq(&entry.service, service));
    if !is_current {
        entries.insert(service.id.clone(), EncodedService::new(service, store)?);
    }
    entries.get(&service.id).ok_or_else(|| ApiError::failed("a service is not encoded"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{JobStatus as ModelJobStatus, ServiceSpec, Timestamp, fixture};
    use crate::store::{Action, Kind, Transaction};

    fn write(store: &mut Store, actions: Vec<Action>) {
        store.apply(store.index() + 1, &Transaction::new(Timestamp(1), actions)).expect("applied");
    }

    fn listed(encoded: &EncodedServices, store: &Store, status: bool) -> String {
        let services: Vec<&Arc<Service>> = store.shared_services().collect();
        let status_of = |service: &Service| status.then(|| convert::service::status(service, store));
        String::from_utf8(encoded.list(&services, status_of, store).expect("encoded")).expect("text")
    }

    /// What the list is without anything kept.
    fn plain(store: &Store, status: bool) -> String {
        let shown = store.services().map(|service| {
            let mut shown = convert::service::service(service, store, false);
            shown.service_status = status.then(|| convert::service::status(service, store));
            shown
        });
        serde_json::to_string(&shown.collect::<Vec<_>>()).expect("encoded")
    }

    #[test]
    fn a_kept_text_is_that_of_the_service_as_it_is_now_with_and_without_counts() {
        let (encoded, mut store) = (EncodedServices::default(), Store::default());
        assert_eq!(listed(&encoded, &store, true), "[]");
        let named = |id: &str| fixture::service(id, ServiceSpec { name: id.to_owned(), ..ServiceSpec::default() });
        let job = Some(ModelJobStatus { iteration: 3, last_execution: Timestamp(7) });
        write(&mut store, vec![Action::create(named("a")), Action::create(Service { job, ..named("b") })]);
        for status in [false, true, true, false] {
            assert_eq!(listed(&encoded, &store, status), plain(&store, status));
        }
        let mut changed = store.service(&"a".into()).expect("a").clone();
        changed.spec.labels.insert("colour".to_owned(), "red".to_owned());
        write(&mut store, vec![Action::update(changed)]);
        assert!(listed(&encoded, &store, false).contains("red"));
        for status in [false, true] {
            assert_eq!(listed(&encoded, &store, status), plain(&store, status));
        }
        let one = encoded.one(store.shared_service(&"b".into()).expect("b"), &store).expect("encoded");
        assert_eq!(
            serde_json::to_vec(&convert::service::service(store.service(&"b".into()).expect("b"), &store, false)).ok(),
            Some(one.to_vec())
        );
    }

    #[test]
    fn texts_of_removed_services_are_dropped() {
        let (encoded, mut store) = (EncodedServices::default(), Store::default());
        for number in 0..3 * SPARE {
            let name = format!("s{number}");
            write(
                &mut store,
                vec![Action::create(fixture::service(&name, ServiceSpec { name: name.clone(), ..ServiceSpec::default() }))],
            );
            listed(&encoded, &store, false);
            write(&mut store, vec![Action::Remove(Kind::Service, name)]);
            listed(&encoded, &store, false);
        }
        assert!(lock(&encoded.0).len() <= SPARE + 1);
    }
}
