//! Foreign names: who is asked, in what order, and what comes of liars, silence and answers that were cut.

use super::upstream::{ANSWER, Upstream};
use super::*;
use skep::model::task::{ContainerSpec, DnsConfig};
use skep::model::{Meta, Task, TaskSpec, TaskState, TaskStatus};

fn two(net: Net) -> NetworkPart {
    net.part("front", vec![net.member("web", 1, 11), net.member("own", 1, 12)])
}

async fn served(net: Net, resolvers: &[Ipv4Addr]) -> (Server, Client) {
    let mut server = Server::start(net, |_| {});
    server.resolvers(resolvers);
    server.show(view(1, vec![two(net)])).await;
    (server, Client { from: net.host(11), gateway: net.gateway() })
}

#[tokio::test]
async fn a_foreign_name_is_asked_of_the_host_resolvers_with_its_edns_and_ours_never_are() {
    let net = Net::new();
    let upstream = Upstream::start(net.host(200)).await;
    let (server, client) = served(net, &[upstream.address]).await;
    assert_eq!(client.addresses("Example.test").await, [ANSWER]);
    assert_eq!(client.code("unknown.test").await, ResponseCode::NXDomain);
    assert_eq!(client.addresses("single").await, [ANSWER], "one label is no proof that a name is ours");
    let bytes = client.udp_bytes(&question(9, "edns.test", RecordType::A, Some(1400))).await.unwrap();
    assert!(Message::from_vec(&bytes).unwrap().edns.is_some());
    assert_eq!(upstream.seen.lock().unwrap().last().unwrap().edns.as_ref().map(Edns::max_payload), Some(1400));
    let before = upstream.names().len();
    for (name, kind) in
        [("web", RecordType::A), ("web", RecordType::AAAA), ("tasks.own", RecordType::MX), ("own.1", RecordType::TXT)]
    {
        client.ask(name, kind).await;
    }
    assert_eq!(upstream.names().len(), before, "{:?}", upstream.names());
    let stranger = Client { from: net.host(99), ..client };
    assert_eq!(stranger.code("example.test").await, ResponseCode::Refused);
    assert_eq!(upstream.names().len(), before);
    server.stop().await;
}

#[tokio::test]
async fn a_cut_answer_is_fetched_over_tcp() {
    let net = Net::new();
    let upstream = Upstream::start(net.host(200)).await;
    let (server, client) = served(net, &[upstream.address]).await;
    let whole = client.ask_tcp(&question(3, "big.test", RecordType::A, None)).await;
    assert_eq!((whole.answers.len(), whole.metadata.truncation, whole.metadata.id), (100, false, 3));
    let cut = client.ask("big.test", RecordType::A).await;
    assert!(cut.metadata.truncation && !cut.answers.is_empty(), "as much as fits, and marked");
    // A resolver that says "cut" and has nothing over TCP: its first word stands.
    let stubborn = client.ask("stubborn.test", RecordType::A).await;
    assert!(stubborn.metadata.truncation);
    server.stop().await;
}

#[tokio::test]
async fn lies_are_not_believed() {
    let net = Net::new();
    let upstream = Upstream::start(net.host(200)).await;
    let (server, client) = served(net, &[upstream.address]).await;
    assert_eq!(client.addresses("liar.test").await, [ANSWER]);
    server.stop().await;
}

#[tokio::test]
async fn the_next_resolver_is_asked_when_one_is_dead_silent_or_broken_and_all_failing_is_servfail() {
    let net = Net::new();
    let silent = UdpSocket::bind((net.host(202), 53)).await.unwrap();
    let good = Upstream::start(net.host(200)).await;
    // Nobody at .201 (refused at once), somebody who says nothing at .202.
    let (server, client) = served(net, &[net.host(201), net.host(202), good.address]).await;
    assert_eq!(client.addresses("example.test").await, [ANSWER]);
    let began = tokio::time::Instant::now();
    assert_eq!(client.code("silent.test").await, ResponseCode::ServFail);
    assert!(began.elapsed() < 2 * SECOND, "each resolver has its time, no more: {:?}", began.elapsed());
    assert_eq!(client.code("broken.test").await, ResponseCode::ServFail);
    // The file is read again when it changes.
    server.resolvers(&[net.host(201)]);
    assert_eq!(client.code("example.test").await, ResponseCode::ServFail);
    server.resolvers(&[]);
    assert_eq!(client.code("example.test").await, ResponseCode::ServFail);
    server.resolvers(&[good.address]);
    assert_eq!(client.addresses("example.test").await, [ANSWER]);
    // One's own address listed as a resolver asks nobody in circles.
    server.resolvers(&[net.gateway()]);
    assert_eq!(client.code("example.test").await, ResponseCode::ServFail);
    drop(silent);
    server.stop().await;
}

#[tokio::test]
async fn a_task_with_resolvers_of_its_own_asks_those() {
    let net = Net::new();
    let (host, own) = (Upstream::start(net.host(200)).await, Upstream::start(net.host(201)).await);
    let (mut server, client) = served(net, &[host.address]).await;
    let dns_config = Some(DnsConfig { nameservers: vec![own.address.to_string()], ..DnsConfig::default() });
    let task = Task {
        id: "own1".into(),
        meta: Meta::default(),
        spec: TaskSpec { container_spec: ContainerSpec { dns_config, ..ContainerSpec::default() }, ..TaskSpec::default() },
        spec_version: 1,
        service_id: "own".into(),
        service_name: "own".to_owned(),
        service_labels: BTreeMap::new(),
        slot: 1,
        node_id: Some(ME.into()),
        desired_state: TaskState::Running,
        status: TaskStatus::default(),
        attachments: Vec::new(),
        not_before: None,
        ports: Vec::new(),
        listens: Vec::new(),
    };
    let mut changed = view(2, vec![two(net)]);
    changed.tasks = Arc::new(Tasks { by_id: BTreeMap::from([(task.id.clone(), task)]) });
    server.show(changed).await;
    let with_own = Client { from: net.host(12), ..client };
    assert_eq!(with_own.addresses("a.test").await, [ANSWER]);
    assert_eq!(client.addresses("b.test").await, [ANSWER]);
    assert_eq!((own.names(), host.names()), (vec!["a.test".to_owned()], vec!["b.test".to_owned()]));
    assert_eq!(with_own.addresses("web").await, [net.host(11)], "our names are still ours");
    server.stop().await;
}
