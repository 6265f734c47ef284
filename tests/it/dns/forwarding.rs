//! Names outside the cluster: which resolvers are queried, in which order, and what forged, missing and truncated answers
//! lead to.

use super::upstream::{ANSWER, Upstream};
use super::*;

fn two_members(net: LoopbackNet) -> NetworkPart {
    network(net, "front", vec![member(net, "web", 1, 11), member(net, "own", 1, 12)])
}

async fn served(net: LoopbackNet, resolvers: &[Ipv4Addr]) -> (Server, Client) {
    let mut server = Server::start(net, |_| {});
    server.resolvers(resolvers);
    server.show(view(1, vec![two_members(net)])).await;
    (server, Client { from: net.host(11), gateway: net.gateway() })
}

#[tokio::test]
async fn names_outside_the_cluster_are_forwarded_to_the_hosts_resolvers_with_edns_and_ours_never_are() {
    let net = LoopbackNet::new();
    let upstream = Upstream::start(net.host(200)).await;
    let (server, client) = served(net, &[upstream.address]).await;
    assert_eq!(client.addresses("Example.test").await, [ANSWER]);
    assert_eq!(client.code("unknown.test").await, ResponseCode::NXDomain);
    assert_eq!(client.addresses("single").await, [ANSWER], "a name of one label may be outside the cluster");
    let bytes = client.udp_bytes(&query_bytes(9, "edns.test", RecordType::A, Some(1400))).await.unwrap();
    assert!(Message::from_vec(&bytes).unwrap().edns.is_some());
    assert_eq!(upstream.seen.lock().unwrap().last().unwrap().edns.as_ref().map(Edns::max_payload), Some(1400));
    let before = upstream.names().len();
    for (name, kind) in
        [("web", RecordType::A), ("web", RecordType::AAAA), ("tasks.own", RecordType::MX), ("own.1", RecordType::TXT)]
    {
        client.ask(name, kind).await;
    }
    assert_eq!(upstream.names().len(), before, "{:?}", upstream.names());
    let unknown = Client { from: net.host(99), ..client };
    assert_eq!(unknown.code("example.test").await, ResponseCode::Refused);
    assert_eq!(upstream.names().len(), before);
    server.stop().await;
}

#[tokio::test]
async fn a_truncated_answer_is_fetched_over_tcp() {
    let net = LoopbackNet::new();
    let upstream = Upstream::start(net.host(200)).await;
    let (server, client) = served(net, &[upstream.address]).await;
    let whole = client.ask_tcp(&query_bytes(3, "big.test", RecordType::A, None)).await;
    assert_eq!((whole.answers.len(), whole.metadata.truncation, whole.metadata.id), (100, false, 3));
    let truncated = client.ask("big.test", RecordType::A).await;
    assert!(truncated.metadata.truncation && !truncated.answers.is_empty(), "the answers that fit, marked as truncated");
    // A resolver that truncates and does not answer over TCP: its truncated answer is used.
    let stubborn = client.ask("stubborn.test", RecordType::A).await;
    assert!(stubborn.metadata.truncation);
    server.stop().await;
}

#[tokio::test]
async fn forged_answers_are_ignored() {
    let net = LoopbackNet::new();
    let upstream = Upstream::start(net.host(200)).await;
    let (server, client) = served(net, &[upstream.address]).await;
    assert_eq!(client.addresses("forged.test").await, [ANSWER]);
    server.stop().await;
}

#[tokio::test]
async fn the_next_resolver_is_queried_when_one_is_closed_silent_or_failing_and_if_all_fail_the_answer_is_servfail() {
    let net = LoopbackNet::new();
    let silent = UdpSocket::bind((net.host(202), 53)).await.unwrap();
    let good = Upstream::start(net.host(200)).await;
    // No socket at .201 (refused at once), one that never answers at .202.
    let (server, client) = served(net, &[net.host(201), net.host(202), good.address]).await;
    assert_eq!(client.addresses("example.test").await, [ANSWER]);
    let began = tokio::time::Instant::now();
    assert_eq!(client.code("silent.test").await, ResponseCode::ServFail);
    assert!(began.elapsed() < 2 * SECOND, "each resolver has its time-out: {:?}", began.elapsed());
    assert_eq!(client.code("broken.test").await, ResponseCode::ServFail);
    // The file is read again when it changes.
    server.resolvers(&[net.host(201)]);
    assert_eq!(client.code("example.test").await, ResponseCode::ServFail);
    server.resolvers(&[]);
    assert_eq!(client.code("example.test").await, ResponseCode::ServFail);
    server.resolvers(&[good.address]);
    assert_eq!(client.addresses("example.test").await, [ANSWER]);
    // A gateway listed as a resolver is not queried: that would be a loop.
    server.resolvers(&[net.gateway()]);
    assert_eq!(client.code("example.test").await, ResponseCode::ServFail);
    drop(silent);
    server.stop().await;
}

#[tokio::test]
async fn queries_of_a_task_with_its_own_resolvers_are_forwarded_to_those() {
    let net = LoopbackNet::new();
    let (host, own) = (Upstream::start(net.host(200)).await, Upstream::start(net.host(201)).await);
    let (mut server, client) = served(net, &[host.address]).await;
    let task = fixture::task_with_resolvers("own1id", "own", ME, &[&own.address.to_string()]);
    let mut changed = view(2, vec![two_members(net)]);
    changed.tasks = Arc::new(Tasks { by_id: BTreeMap::from([(task.id.clone(), task)]), ..Tasks::default() });
    server.show(changed).await;
    let with_own = Client { from: net.host(12), ..client };
    assert_eq!(with_own.addresses("a.test").await, [ANSWER]);
    assert_eq!(client.addresses("b.test").await, [ANSWER]);
    assert_eq!((own.names(), host.names()), (vec!["a.test".to_owned()], vec!["b.test".to_owned()]));
    assert_eq!(with_own.addresses("web").await, [net.host(11)], "our names are still ours");
    server.stop().await;
}
