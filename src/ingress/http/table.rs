//! The table that the process serves, from the node's view. Pure, and the same on every node but for the node's own address.

use super::limits::HttpLimits;
use super::log_format::HttpAccessLog;
use crate::model::acme::AcmeChallenge;
use crate::model::http::claims::{self, HttpClaim};
use crate::model::http::{HttpRedirect, HttpRoute, HttpService};
use crate::model::{NodeId, NodeView, PayloadId, PortConfig, Protocol, PublishMode, SecretId, Task};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

/// What the settings say.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct HttpOptions {
    pub ports: HttpPorts,
    pub access_log: HttpAccessLog,
    pub limits: HttpLimits,
}

/// Ports of the listeners.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct HttpPorts {
    /// 0: none.
    pub plain: u16,
    /// 0: none.
    pub tls: u16,
}

/// All that the process follows.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct HttpTable {
    pub ports: HttpPorts,
    /// Where clients are redirected to for TLS: the port of the settings, also while a service has it. 0: nowhere.
    pub redirect_port: u16,
    pub access_log: HttpAccessLog,
    pub limits: HttpLimits,
    /// Source of connections to tasks: the node's address on `ingress`.
    pub source: Option<Ipv4Addr>,
    pub services: Vec<Arc<HttpService>>,
    pub claims: Vec<HttpClaim>,
    /// Contents of certificates that the daemon has at hand, in base64. One that is missing stays as it was.
    pub certificates: BTreeMap<SecretId, CertificateContent>,
    /// Certificates by ACME, by host; contents are among `certificates`.
    pub issued: BTreeMap<String, SecretId>,
    /// What the authority is answered.
    pub challenges: Vec<AcmeChallenge>,
    /// What is not served, for users.
    pub problems: Vec<String>,
}

/// Certificate and key in base64. Sent on a socket that only root may use.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CertificateContent(pub String);

impl std::fmt::Debug for CertificateContent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[certificate and key]")
    }
}

impl HttpTable {
    /// The contents of certificates that are used.
    pub fn named_certificates(&self) -> BTreeSet<&SecretId> {
        let of_services = self.services.iter().filter_map(|service| service.certificate.as_ref());
        of_services.chain(self.issued.values()).collect()
    }

    /// The certificate by ACME for a host of a route.
    pub fn issued_for(&self, host: &str) -> Option<&SecretId> {
        issued_for(&self.issued, host)
    }

    /// There is something to serve.
    pub fn is_wanted(&self) -> bool {
        !self.services.is_empty() && self.ports != HttpPorts::default()
    }
}

fn issued_for<'a>(issued: &'a BTreeMap<String, SecretId>, host: &str) -> Option<&'a SecretId> {
    let of_parent = || issued.get(&format!("*.{}", host.split_once('.')?.1));
    issued.get(host).or_else(of_parent)
}

/// The service, with the redirects that are for hosts with a certificate alone only where all of a route's hosts have one.
fn redirecting(service: &Arc<HttpService>, issued: &BTreeMap<String, SecretId>) -> Arc<HttpService> {
    let is_certified =
        |route: &HttpRoute| service.certificate.is_some() || route.hosts.iter().all(|host| issued_for(issued, host).is_some());
    let stays = |route: &HttpRoute| !route.redirects_if_certified || is_certified(route);
    if service.routes.iter().all(stays) {
        return service.clone();
    }
    let mut changed = HttpService::clone(service);
    for route in changed.routes.iter_mut().filter(|route| !stays(route)) {
        route.redirect = None;
    }
    Arc::new(changed)
}

/// The table for a node.
pub fn table(view: &NodeView, me: &NodeId, options: &HttpOptions) -> HttpTable {
    let ports = options.ports;
    let cluster = &view.cluster;
    let (claims, mut problems) = claims::decide(&cluster.http);
    let mut free = ports;
    for port in [&mut free.plain, &mut free.tls] {
        if let Some(service) = publishing(view, *port) {
            problems.push(format!("port {port} is published by service {service}: HTTP routes are not served there"));
            *port = 0;
        }
    }
    let redirects = |service: &&Arc<HttpService>| service.routes.iter().any(|route| route.redirect == Some(HttpRedirect::Https));
    for service in cluster.http.iter().filter(redirects).filter(|_| ports.tls == 0) {
        problems.push(format!(
            "service {} redirects to https, and http.tls_port is 0: its requests are refused",
            service.service_name
        ));
    }
    let issued = cluster
        .acme
        .certificates
        .iter()
        .flat_map(|certificate| certificate.names.iter().map(|name| (name.clone(), certificate.payload.clone())));
    let issued: BTreeMap<String, SecretId> = issued.collect();
    let services: Vec<Arc<HttpService>> = cluster.http.iter().map(|service| redirecting(service, &issued)).collect();
    problems.extend(cluster.acme.problems.iter().cloned());
    let of_services = cluster.http.iter().filter_map(|service| service.certificate.as_ref());
    let named: BTreeSet<&SecretId> = of_services.chain(issued.values()).collect();
    let content = |id: &SecretId| {
        let payload = view.tasks.payloads.get(&PayloadId::Secret(id.clone()))?;
        Some((id.clone(), CertificateContent(payload.data.expose().clone())))
    };
    HttpTable {
        ports: free,
        redirect_port: ports.tls,
        access_log: options.access_log,
        limits: options.limits.clone(),
        source: cluster.node(me).map(|node| node.ingress_addr),
        services,
        claims,
        certificates: named.into_iter().filter_map(content).collect(),
        issued,
        challenges: cluster.acme.challenges.clone(),
        problems: if cluster.http.is_empty() { Vec::new() } else { problems },
    }
}

/// The service that publishes a port on every node, or of which a task of this node binds it: it has the port then.
fn publishing(view: &NodeView, port: u16) -> Option<&str> {
    if port == 0 {
        return None;
    }
    let mut everywhere = view.cluster.ports.iter().filter(|published| published.protocol == Protocol::Tcp);
    let binds = |task: &&Arc<Task>| {
        let is_it = |bound: &PortConfig| {
            bound.publish_mode == PublishMode::Host && bound.protocol == Protocol::Tcp && bound.published_port == port
        };
        task.is_wanted() && task.ports.iter().any(is_it)
    };
    let here = || view.tasks.by_id.values().find(binds).map(|task| task.service_name.as_str());
    everywhere.find(|published| published.published == port).map(|published| published.service_name.as_str()).or_else(here)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fixture;
    use crate::model::http::claims::tests::service;
    use crate::model::view::Tasks;

    const PORTS: HttpPorts = HttpPorts { plain: 80, tls: 443 };

    fn options(ports: HttpPorts) -> HttpOptions {
        HttpOptions { ports, ..HttpOptions::default() }
    }

    #[test]
    fn a_published_port_is_left_to_its_service_and_named() {
        let peer = fixture::peer(1);
        let me = peer.node_id.clone();
        let mut cluster = fixture::cluster_part(vec![peer]);
        cluster.http = vec![service("shop", 1, "shop.example.com", None)];
        let view = fixture::node_view(1, Vec::new(), cluster.clone());
        let made = table(&view, &me, &options(PORTS));
        assert_eq!((made.ports, made.problems.len(), made.is_wanted()), (PORTS, 0, true));
        assert_eq!(made.source, view.cluster.nodes.first().map(|node| node.ingress_addr));
        let mut view = fixture::node_view(1, Vec::new(), cluster.clone());
        let bound = PortConfig { published_port: 80, publish_mode: PublishMode::Host, ..PortConfig::default() };
        let task = Task {
            service_name: "proxy".to_owned(),
            ports: vec![bound],
            ..fixture::task_with_resolvers("t", "proxy", "node1", &[])
        };
        view.tasks = Arc::new(Tasks { by_id: [(task.id.clone(), Arc::new(task))].into(), ..Tasks::default() });
        let made = table(&view, &me, &options(PORTS));
        assert_eq!(made.ports, HttpPorts { plain: 0, tls: 443 });
        assert_eq!(made.problems, ["port 80 is published by service proxy: HTTP routes are not served there"]);
        cluster.ports = vec![Arc::new(fixture::published_port(443, 8443, &[]))];
        let made = table(&fixture::node_view(1, Vec::new(), cluster), &me, &options(PORTS));
        assert_eq!(made.ports, HttpPorts { plain: 80, tls: 0 });
        assert_eq!(made.problems, ["port 443 is published by service web: HTTP routes are not served there"]);
    }

    #[test]
    fn a_redirect_for_hosts_with_a_certificate_waits_for_it() {
        let one = service("web", 1, "a.b,c.d", None);
        let route =
            |route: &HttpRoute| HttpRoute { redirect: Some(HttpRedirect::Https), redirects_if_certified: true, ..route.clone() };
        let one = Arc::new(HttpService { routes: one.routes.iter().map(route).collect(), ..(*one).clone() });
        let redirects = |service: &Arc<HttpService>, names: &[&str]| {
            let issued = names.iter().map(|name| ((*name).to_owned(), SecretId::from("p"))).collect();
            redirecting(service, &issued).routes[0].redirect.is_some()
        };
        assert!(!redirects(&one, &[]) && !redirects(&one, &["a.b"]));
        assert!(redirects(&one, &["a.b", "c.d"]) && redirects(&one, &["a.b", "*.d"]));
        assert!(redirects(&Arc::new(HttpService { certificate: Some("s".into()), ..(*one).clone() }), &[]));
    }

    #[test]
    fn without_a_route_or_a_port_nothing_is_wanted() {
        let view = fixture::node_view(1, Vec::new(), fixture::cluster_part(vec![fixture::peer(1)]));
        assert!(!table(&view, &"node1".into(), &options(PORTS)).is_wanted());
        let mut cluster = fixture::cluster_part(vec![fixture::peer(1)]);
        cluster.http = vec![service("shop", 1, "shop.example.com", None)];
        let view = fixture::node_view(1, Vec::new(), cluster);
        assert!(!table(&view, &"node1".into(), &HttpOptions::default()).is_wanted());
    }

    #[test]
    fn a_table_is_read_back_and_shows_no_key() {
        let table = HttpTable {
            certificates: [("s".into(), CertificateContent("cGxhbnRlZA==".to_owned()))].into(),
            ..HttpTable::default()
        };
        let text = serde_json::to_string(&table).unwrap();
        assert_eq!(serde_json::from_str::<HttpTable>(&text).unwrap(), table);
        assert!(!format!("{table:?}").contains("cGxhbnRlZA"));
    }
}
