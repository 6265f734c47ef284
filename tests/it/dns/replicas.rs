//! Services with many tasks: what each kind of client gets over UDP and TCP, and which clients are asked to use TCP.

use super::*;
use skep::model::view::ServiceNames;
use skep::model::{PortConfig, Protocol};
use std::collections::{BTreeMap, BTreeSet};

/// What a client gets: how many addresses, and whether it is asked to use TCP.
type Received = (usize, bool);

async fn received(client: Client, payload: Option<u16>) -> (Received, Vec<Ipv4Addr>) {
    let bytes = client.udp_bytes(&query_bytes(1, "app", RecordType::A, payload)).await.unwrap();
    assert!(bytes.len() <= usize::from(payload.unwrap_or(512)), "{} bytes for {payload:?}", bytes.len());
    let message = Message::from_vec(&bytes).unwrap();
    let found = addresses(&message);
    assert_eq!(found.iter().collect::<BTreeSet<_>>().len(), found.len(), "no address twice");
    ((found.len(), message.metadata.truncation), found)
}

#[tokio::test]
async fn each_client_gets_what_it_can_use_of_a_service_with_many_tasks() {
    let net = LoopbackNet::new();
    let mut server = Server::start(net, |_| {});
    let client = Client { from: net.host(2), gateway: net.gateway() };
    // Of `app.`, 512 bytes hold 30 addresses and with EDNS 30, 1232 bytes 75, 4096 bytes 254.
    for (index, count) in [(1, 28), (2, 29), (3, 30), (4, 31), (5, 48), (6, 49), (7, 75), (8, 76), (9, 200)] {
        let members = (0..count).map(|n| member(net, "app", n + 1, u8::try_from(n + 2).unwrap())).collect();
        server.show(view(index, vec![network(net, "front", members)])).await;
        let count = usize::try_from(count).unwrap();
        // musl, glibc, nginx: TCP after a truncated answer; old musl uses what came.
        assert_eq!(received(client, None).await.0, (count.min(30), count > 30), "{count} without EDNS");
        // HAProxy takes a truncated answer for a failure.
        assert_eq!(received(client, Some(512)).await.0, (count.min(30), false), "{count} with EDNS 512");
        assert_eq!(received(client, Some(1232)).await.0, (count.min(75), count > 75), "{count} with EDNS 1232");
        for payload in [4096, 8192] {
            assert_eq!(received(client, Some(payload)).await.0, (count, false), "{count} with EDNS {payload}");
        }
        for payload in [None, Some(512), Some(1232)] {
            let whole = client.ask_tcp(&query_bytes(1, "app", RecordType::A, payload)).await;
            assert_eq!((addresses(&whole).len(), whole.metadata.truncation), (count, false), "{count} over TCP, {payload:?}");
        }
        let aaaa = client.ask("app", RecordType::AAAA).await;
        assert_eq!((aaaa.metadata.response_code, aaaa.metadata.truncation), (ResponseCode::NoError, false));
    }
    server.stop().await;
}

#[tokio::test]
async fn a_client_of_a_subset_keeps_its_tasks_and_all_clients_together_have_all() {
    let net = LoopbackNet::new();
    let mut server = Server::start(net, |_| {});
    let members: Vec<TaskEndpoint> = (2..=101).map(|n| member(net, "app", u64::from(n), n)).collect();
    server.show(view(1, vec![network(net, "front", members.clone())])).await;
    let mut all = BTreeSet::new();
    let mut first = BTreeSet::new();
    for last in 2..=60 {
        let client = Client { from: net.host(last), gateway: net.gateway() };
        let mine: BTreeSet<Ipv4Addr> = received(client, Some(512)).await.1.into_iter().collect();
        let again: BTreeSet<Ipv4Addr> = received(client, Some(512)).await.1.into_iter().collect();
        assert_eq!(mine, again);
        all.extend(mine.iter().copied());
        if last == 2 {
            first = mine;
        }
    }
    assert_eq!(all.len(), 100);
    // A task outside the subset ends: nothing changes for this client.
    let outside = members.iter().position(|m| !first.contains(&m.address)).unwrap();
    let mut fewer = members;
    fewer[outside].backend = false;
    server.show(view(2, vec![network(net, "front", fewer)])).await;
    let client = Client { from: net.host(2), gateway: net.gateway() };
    assert_eq!(received(client, Some(512)).await.1.into_iter().collect::<BTreeSet<_>>(), first);
    server.stop().await;
}

/// HAProxy finds servers by A or by SRV records, with its default payload or with that of its documentation.
#[tokio::test]
async fn a_client_of_a_large_payload_gets_the_ports_of_all_tasks_and_one_of_the_smallest_some_of_them() {
    let net = LoopbackNet::new();
    let mut server = Server::start(net, |_| {});
    let client = Client { from: net.host(2), gateway: net.gateway() };
    let members: Vec<TaskEndpoint> = (2..=81).map(|n| member(net, "app", u64::from(n), n)).collect();
    let mut front = network(net, "front", members);
    let ports = vec![PortConfig { protocol: Protocol::Tcp, target_port: 8080, ..PortConfig::default() }];
    let service_id = front.members[0].service_id.clone();
    front.names = vec![Arc::new(ServiceNames { service_id, name: "app".to_owned(), aliases: vec![], ports })];
    server.show(view(1, vec![front])).await;
    let mut found = BTreeMap::new();
    for payload in [512, 8192] {
        let bytes = client.udp_bytes(&query_bytes(1, "_8080._tcp.app", RecordType::SRV, Some(payload))).await.unwrap();
        let message = Message::from_vec(&bytes).unwrap();
        assert!(!message.metadata.truncation, "{payload}: HAProxy would stop every server");
        found.insert(payload, message.answers.len());
    }
    assert_eq!(found[&8192], 80);
    assert!((7..80).contains(&found[&512]), "{found:?}");
    server.stop().await;
}

#[tokio::test]
async fn the_first_address_varies_for_clients_that_use_only_that_one() {
    let net = LoopbackNet::new();
    let mut server = Server::start(net, |_| {});
    let members = (2..=101).map(|n| member(net, "app", u64::from(n), n)).collect();
    server.show(view(1, vec![network(net, "front", members)])).await;
    let client = Client { from: net.host(2), gateway: net.gateway() };
    let mut firsts = BTreeSet::new();
    for _ in 0..100 {
        let message = client.ask("app", RecordType::A).await;
        let RData::A(address) = &message.answers[0].data else { panic!("{message:?}") };
        firsts.insert(address.0);
    }
    assert!(firsts.len() > 30, "{} of 100 tasks", firsts.len());
    server.stop().await;
}
