//! Labels that describe HTTP routes.

use crate::api::error::{ApiError, Result};
use crate::api::http_conflicts::{conflicts_of, http_conflicts};
use crate::model::http::HTTP;
use crate::model::{Protocol, Service, ServiceSpec};
use crate::store::Store;

/// Ports that a proxy of the swarm's own publishes.
const WEB: [u16; 2] = [80, 443];

/// Refuses labels of HTTP routes that are not carried out; returns what users are to know of the others. `own` is the service
/// itself on an update: what Traefik's labels said before may go on.
///
/// # Errors
/// 400 with `InvalidArgument`.
pub fn http_labels(spec: &ServiceSpec, own: Option<&Service>, store: &Store) -> Result<Vec<String>> {
    let labels = spec.http().map_err(ApiError::invalid_argument)?;
    if !labels.routes.is_empty() && spec.mode.is_job() {
        return Err(ApiError::invalid_argument(format!("label {HTTP}: a job serves no requests: leave its HTTP labels out")));
    }
    if let Some(name) = labels.certificate.filter(|name| store.secret_named(name).is_none()) {
        return Err(ApiError::invalid_argument(format!(
            "label {HTTP}.tls: secret not found: {name}: create it with certificate and key, as PEM"
        )));
    }
    let before = own.and_then(|own| own.spec.http().ok()).unwrap_or_default().refused;
    // A proxy of the swarm's own, which reads these labels itself, has one of the ports.
    let has_proxy = publishes_web(spec) || store.services().any(|service| publishes_web(&service.spec));
    if let Some(refused) = labels.refused.iter().find(|refused| !has_proxy && !before.contains(refused)) {
        return Err(ApiError::invalid_argument(format!(
            "{refused}: leave it out (with traefik.enable=false skep reads no label of Traefik), or run a proxy that publishes port 80"
        )));
    }
    if labels.routes.is_empty() {
        return Ok([labels.refused, labels.notes].concat());
    }
    let conflicts = http_conflicts(store, Some((spec, own)));
    let conflicts = conflicts_of(&conflicts, &spec.name).map(|line| format!("HTTP route: {line}")).collect();
    Ok([labels.refused, labels.notes, conflicts].concat())
}

fn publishes_web(spec: &ServiceSpec) -> bool {
    let ports = spec.endpoint_spec.iter().flat_map(|endpoint| &endpoint.ports);
    ports.into_iter().any(|port| port.protocol == Protocol::Tcp && WEB.contains(&port.published_port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::service::EndpointSpec;
    use crate::model::{PortConfig, Timestamp, fixture};
    use crate::store::{Action, Transaction};

    fn spec(name: &str, labels: &[(&str, &str)], port: Option<u16>) -> ServiceSpec {
        let ports = port.map(|published_port| PortConfig { published_port, target_port: 80, ..PortConfig::default() });
        ServiceSpec {
            name: name.to_owned(),
            labels: labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            endpoint_spec: Some(EndpointSpec { ports: ports.into_iter().collect(), ..EndpointSpec::default() }),
            ..ServiceSpec::default()
        }
    }

    fn message(result: Result<Vec<String>>) -> String {
        result.expect_err("refused").message
    }

    #[test]
    fn labels_that_are_not_carried_out_are_refused_by_name() {
        let store = Store::default();
        assert_eq!(http_labels(&spec("web", &[(HTTP, "a.b")], None), None, &store).expect("accepted"), [""; 0]);
        let wrong = spec("web", &[(HTTP, "a.b"), ("skep.http.prot", "80")], None);
        assert!(message(http_labels(&wrong, None, &store)).contains("skep.http.prot"));
        let certificate = spec("web", &[(HTTP, "a.b"), ("skep.http.tls", "cert")], None);
        assert!(message(http_labels(&certificate, None, &store)).contains("secret not found: cert"));
    }

    #[test]
    fn a_host_that_another_service_has_is_a_warning() {
        let mut store = Store::default();
        let older = fixture::service("s1", spec("older", &[(HTTP, "a.b")], None));
        store.apply(1, &Transaction::new(Timestamp(1), vec![Action::create(older)])).expect("applied");
        let warnings = |spec: &ServiceSpec, own: Option<&Service>| http_labels(spec, own, &store).expect("accepted");
        let young = spec("young", &[(HTTP, "a.b,c.d")], None);
        let [warning] = &warnings(&young, None)[..] else { panic!("{:?}", warnings(&young, None)) };
        assert!(warning.contains("HTTP route: a.b/ is older's, which is older"), "{warning}");
        assert_eq!(warnings(&spec("young", &[(HTTP, "c.d")], None), None), [""; 0]);
        let own = store.service(&"s1".into()).expect("stored");
        assert_eq!(warnings(&own.spec, Some(own)), [""; 0], "it is no conflict with itself");
    }

    #[test]
    fn two_routes_of_one_service_for_the_same_requests_are_refused() {
        let labels = [
            (HTTP, "a.b"),
            ("skep.http.port", "81"),
            ("traefik.http.routers.r.rule", "Host(`a.b`)"),
            ("traefik.http.services.s.loadbalancer.server.port", "80"),
        ];
        let refused = message(http_labels(&spec("web", &labels, None), None, &Store::default()));
        assert!(refused.contains("a second route of the service for http://a.b/"), "{refused}");
    }

    #[test]
    fn traefiks_labels_are_refused_unless_a_proxy_runs_or_they_were_there_before() {
        let limit = [("traefik.tcp.routers.r.rule", "HostSNI(`*`)")];
        let mut store = Store::default();
        assert!(message(http_labels(&spec("web", &limit, None), None, &store)).contains("traefik.tcp.routers.r.rule"));
        assert_eq!(http_labels(&spec("web", &limit, Some(443)), None, &store).expect("it is the proxy").len(), 1);
        let own = fixture::service("s1", spec("web", &limit, None));
        assert_eq!(http_labels(&own.spec, Some(&own), &store).expect("as before").len(), 1);
        let created = vec![Action::create(fixture::service("s2", spec("traefik", &[], Some(80))))];
        store.apply(1, &Transaction::new(Timestamp(1), created)).expect("applied");
        assert_eq!(http_labels(&spec("web", &limit, None), None, &store).expect("a proxy runs").len(), 1);
    }
}
