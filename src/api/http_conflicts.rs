//! Which hosts and prefixes of services are other services': said to users before a node finds it.

use crate::model::http::HttpService;
use crate::model::http::claims::decide;
use crate::model::{Service, ServiceId, ServiceSpec, Timestamp};
use crate::store::Store;
use std::sync::Arc;

/// What of the services' routes is not served, each line with `service NAME: ` before it. `changed`: a spec to come, and the service whose it is
/// if there is one.
pub fn http_conflicts(store: &Store, changed: Option<(&ServiceSpec, Option<&Service>)>) -> Vec<String> {
    let own = changed.and_then(|(_, own)| own).map(|own| &own.id);
    let others = store.services().filter(|service| Some(&service.id) != own);
    let all = others.filter_map(|service| routes(&service.spec, Some(service)));
    let all: Vec<Arc<HttpService>> = all.chain(changed.and_then(|(spec, own)| routes(spec, own))).collect();
    decide(&all).1
}

/// The lines for a service, without its name.
pub fn conflicts_of<'a>(conflicts: &'a [String], service_name: &str) -> impl Iterator<Item = &'a str> {
    let begin = format!("service {service_name}: ");
    conflicts.iter().filter_map(move |line| line.strip_prefix(&begin))
}

/// The service as nodes see it, without its tasks; `None` if its labels ask for no route.
fn routes(spec: &ServiceSpec, stored: Option<&Service>) -> Option<Arc<HttpService>> {
    let labels = spec.http().ok()?;
    let service = HttpService {
        service_id: stored.map_or_else(|| ServiceId::from("new"), |service| service.id.clone()),
        service_name: spec.name.clone(),
        created_at: stored.map_or(Timestamp(i64::MAX), |service| service.meta.created_at),
        problems: if labels.is_closed { labels.refused } else { Vec::new() },
        routes: labels.routes,
        certificate: None,
        holds: false,
        backends: Vec::new(),
    };
    (!service.routes.is_empty() || labels.is_closed).then(|| Arc::new(service))
}
