//! The table that the process serves, from the node's view. Pure, and the same on every node but for the node's own address.

use super::claims::{self, HttpClaim};
use crate::model::http::HttpService;
use crate::model::view::ClusterPart;
use crate::model::{NodeId, NodeView, PayloadId, Protocol, SecretId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

/// What the settings say.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct HttpPorts {
    /// 0: none.
    pub plain: u16,
    /// 0: none.
    pub tls: u16,
}

/// All that the process follows.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct HttpTable {
    pub ports: HttpPorts,
    /// Each request is logged.
    pub access_log: bool,
    /// Source of connections to tasks: the node's address on `ingress`.
    pub source: Option<Ipv4Addr>,
    pub services: Vec<Arc<HttpService>>,
    pub claims: Vec<HttpClaim>,
    /// Contents of certificates that the daemon has at hand, in base64. One that is missing stays as it was.
    pub certificates: BTreeMap<SecretId, CertificateContent>,
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
    /// There is something to serve.
    pub fn is_wanted(&self) -> bool {
        !self.services.is_empty() && self.ports != HttpPorts::default()
    }
}

/// The table for a node.
pub fn table(view: &NodeView, me: &NodeId, ports: HttpPorts, access_log: bool) -> HttpTable {
    let cluster = &view.cluster;
    let (claims, mut problems) = claims::decide(&cluster.http);
    let mut free = ports;
    for port in [&mut free.plain, &mut free.tls] {
        if let Some(service) = publishing(cluster, *port) {
            problems.push(format!("port {port} is published by service {service}: HTTP routes are not served there"));
            *port = 0;
        }
    }
    let named: BTreeSet<&SecretId> = cluster.http.iter().filter_map(|service| service.certificate.as_ref()).collect();
    let content = |id: &SecretId| {
        let payload = view.tasks.payloads.get(&PayloadId::Secret(id.clone()))?;
        Some((id.clone(), CertificateContent(payload.data.expose().clone())))
    };
    HttpTable {
        ports: free,
        access_log,
        source: cluster.node(me).map(|node| node.ingress_addr),
        services: cluster.http.clone(),
        claims,
        certificates: named.into_iter().filter_map(content).collect(),
        problems: if cluster.http.is_empty() { Vec::new() } else { problems },
    }
}

/// The service that publishes a port on every node, which it has then.
fn publishing(cluster: &ClusterPart, port: u16) -> Option<&str> {
    let is_it = |published: &&Arc<crate::model::view::PublishedPort>| {
        port != 0 && published.protocol == Protocol::Tcp && published.published == port
    };
    cluster.ports.iter().find(is_it).map(|published| published.service_name.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingress::http::claims::tests::service;
    use crate::model::fixture;

    const PORTS: HttpPorts = HttpPorts { plain: 80, tls: 443 };

    #[test]
    fn a_published_port_is_left_to_its_service_and_named() {
        let peer = fixture::peer(1);
        let me = peer.node_id.clone();
        let mut cluster = fixture::cluster_part(vec![peer]);
        cluster.http = vec![service("shop", 1, "shop.example.com", None)];
        let view = fixture::node_view(1, Vec::new(), cluster.clone());
        let made = table(&view, &me, PORTS, false);
        assert_eq!((made.ports, made.problems.len(), made.is_wanted()), (PORTS, 0, true));
        assert_eq!(made.source, view.cluster.nodes.first().map(|node| node.ingress_addr));
        cluster.ports = vec![Arc::new(fixture::published_port(443, 8443, &[]))];
        let made = table(&fixture::node_view(1, Vec::new(), cluster), &me, PORTS, false);
        assert_eq!(made.ports, HttpPorts { plain: 80, tls: 0 });
        assert_eq!(made.problems, ["port 443 is published by service web: HTTP routes are not served there"]);
    }

    #[test]
    fn without_a_route_or_a_port_nothing_is_wanted() {
        let view = fixture::node_view(1, Vec::new(), fixture::cluster_part(vec![fixture::peer(1)]));
        assert!(!table(&view, &"node1".into(), PORTS, false).is_wanted());
        let mut cluster = fixture::cluster_part(vec![fixture::peer(1)]);
        cluster.http = vec![service("shop", 1, "shop.example.com", None)];
        let view = fixture::node_view(1, Vec::new(), cluster);
        assert!(!table(&view, &"node1".into(), HttpPorts::default(), false).is_wanted());
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
