//! Resolvers that are down, slow, wrong or at odds: what a question about a name outside the cluster costs then.

use super::upstream::{ANSWER, Upstream};
use super::*;
use hickory_proto::rr::{Record, rdata};
use skep::dns::counts::ResolverFailures;
use skep::model::view::ServiceNames;
use std::sync::atomic::AtomicUsize;
use tokio::task::JoinSet;

/// A resolver with one kind of behaviour.
struct Resolver {
    address: Ipv4Addr,
    asked: Arc<AtomicUsize>,
    _loop: JoinSet<()>,
}

impl Resolver {
    /// Answers the query with this number (from 0) with a code and addresses, after a while; `None`: not at all.
    async fn start(
        address: Ipv4Addr,
        reply: impl Fn(usize) -> Option<(ResponseCode, Vec<Ipv4Addr>, Duration)> + Send + 'static,
    ) -> Self {
        let socket = Arc::new(UdpSocket::bind((address, 53)).await.unwrap());
        let asked = Arc::new(AtomicUsize::new(0));
        let (count, mut running) = (Arc::clone(&asked), JoinSet::new());
        running.spawn(async move {
            let mut buffer = [0; 4096];
            let mut answers = JoinSet::new();
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                let Some((code, found, pause)) = reply(count.fetch_add(1, Ordering::Relaxed)) else { continue };
                let query = Message::from_vec(&buffer[..length]).unwrap();
                let mut message = Message::new(query.metadata.id, MessageType::Response, OpCode::Query);
                message.metadata.response_code = code;
                message.add_query(query.queries[0].clone());
                for address in found {
                    message.add_answer(Record::from_rdata(query.queries[0].name().clone(), 60, RData::A(rdata::A(address))));
                }
                let socket = Arc::clone(&socket);
                answers.spawn(async move {
                    tokio::time::sleep(pause).await;
                    let _ = socket.send_to(&message.to_vec().unwrap(), from).await;
                });
            }
        });
        Self { address, asked, _loop: running }
    }
    async fn silent(address: Ipv4Addr) -> Self {
        Self::start(address, |_| None).await
    }
    async fn with(address: Ipv4Addr, code: ResponseCode, found: &[Ipv4Addr]) -> Self {
        let found = found.to_vec();
        Self::start(address, move |_| Some((code, found.clone(), Duration::ZERO))).await
    }
    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

async fn served(net: LoopbackNet, resolvers: &[&Resolver], timeout: Duration) -> (Server, Client) {
    let mut server = Server::start(net, |settings| settings.timeout = timeout);
    server.resolvers(&resolvers.iter().map(|resolver| resolver.address).collect::<Vec<_>>());
    server.show(view(1, vec![network(net, "front", vec![member(net, "web", 1, 11)])])).await;
    (server, Client { from: net.host(11), gateway: net.gateway() })
}

fn failures(server: &Server, resolver: &Resolver) -> Vec<(String, u64)> {
    let of = |failure: &ResolverFailures| failure.resolver == resolver.address.to_string();
    server.counts.status().resolvers.into_iter().filter(of).map(|failure| (failure.reason, failure.count)).collect()
}

#[tokio::test]
async fn a_dead_first_resolver_delays_a_few_questions_and_then_none() {
    let net = LoopbackNet::new();
    let dead = Resolver::silent(net.host(201)).await;
    let good = Resolver::with(net.host(200), ResponseCode::NoError, &[ANSWER]).await;
    let (server, client) = served(net, &[&dead, &good], 2 * SECOND).await;
    let began = tokio::time::Instant::now();
    for n in 0..30 {
        assert_eq!(client.addresses(&format!("n{n}.test")).await, [ANSWER]);
    }
    // Three that waited for it, and perhaps a test meanwhile.
    assert!(dead.asked() <= 5, "{} of 30 questions", dead.asked());
    assert!(began.elapsed() < 5 * SECOND, "{:?}", began.elapsed());
    assert_eq!(good.asked(), 30);
    assert!(failures(&server, &dead).iter().any(|(reason, count)| reason == "slow" && *count >= 3));
    server.stop().await;
}

#[tokio::test]
async fn a_resolver_that_is_back_is_the_first_again() {
    let net = LoopbackNet::new();
    let second = Resolver::with(net.host(200), ResponseCode::NoError, &[ANSWER]).await;
    let first = Resolver::silent(net.host(201)).await;
    let (server, client) = served(net, &[&first, &second], Duration::from_millis(300)).await;
    for n in 0..5 {
        assert_eq!(client.addresses(&format!("n{n}.test")).await, [ANSWER]);
    }
    let address = first.address;
    drop(first);
    let other = Ipv4Addr::new(192, 0, 2, 99);
    until("the address is free", || async { UdpSocket::bind((address, 53)).await.is_ok() }).await;
    let _back = Resolver::with(address, ResponseCode::NoError, &[other]).await;
    let client = &client;
    until("the first one is used again", || async { client.addresses("again.test").await == [other] }).await;
    server.stop().await;
}

#[tokio::test]
async fn a_later_resolver_is_not_believed_that_a_name_is_unknown_while_the_first_one_may_know_it() {
    let net = LoopbackNet::new();
    let pause = Duration::from_millis(500);
    let company = Resolver::start(net.host(201), move |_| Some((ResponseCode::NoError, vec![ANSWER], pause))).await;
    let public = Resolver::with(net.host(200), ResponseCode::NXDomain, &[]).await;
    let (server, client) = served(net, &[&company, &public], 2 * SECOND).await;
    assert_eq!(client.addresses("intranet.test").await, [ANSWER]);
    assert_eq!(public.asked(), 1, "it was asked meanwhile");
    server.stop().await;
    // A first one that says nothing at all has its time, not more.
    let net = LoopbackNet::new();
    let dead = Resolver::silent(net.host(201)).await;
    let public = Resolver::with(net.host(200), ResponseCode::NXDomain, &[]).await;
    let (server, client) = served(net, &[&dead, &public], Duration::from_millis(400)).await;
    for _ in 0..5 {
        assert_eq!(client.code("nowhere.test").await, ResponseCode::NXDomain);
    }
    assert!(dead.asked() <= 2, "{}", dead.asked());
    server.stop().await;
}

#[tokio::test]
async fn a_first_resolver_that_was_slow_several_times_is_still_asked_for_names_that_others_do_not_know() {
    let net = LoopbackNet::new();
    let pause = Duration::from_millis(250);
    let company = Resolver::start(net.host(201), move |_| Some((ResponseCode::NoError, vec![ANSWER], pause))).await;
    let other = Ipv4Addr::new(192, 0, 2, 99);
    // Names outside for five questions, then none.
    let public = Resolver::start(net.host(200), move |n| match n {
        0..5 => Some((ResponseCode::NoError, vec![other], Duration::ZERO)),
        _ => Some((ResponseCode::NXDomain, Vec::new(), Duration::ZERO)),
    });
    let public = public.await;
    let (server, client) = served(net, &[&company, &public], 2 * SECOND).await;
    for n in 0..5 {
        assert_eq!(client.addresses(&format!("outside{n}.test")).await, [other], "the company's was slow");
    }
    for _ in 0..3 {
        assert_eq!(client.addresses("intranet.test").await, [ANSWER]);
    }
    server.stop().await;
}

#[tokio::test]
async fn failures_of_any_kind_are_one_code_for_every_type() {
    let net = LoopbackNet::new();
    let refusing = Resolver::with(net.host(201), ResponseCode::Refused, &[]).await;
    let failing = Resolver::with(net.host(202), ResponseCode::NotImp, &[]).await;
    let good = Resolver::with(net.host(200), ResponseCode::NoError, &[ANSWER]).await;
    let (server, client) = served(net, &[&refusing, &failing, &good], 2 * SECOND).await;
    assert_eq!(client.addresses("a.test").await, [ANSWER]);
    assert_eq!((refusing.asked(), failing.asked(), good.asked()), (1, 1, 1));
    for resolvers in [vec![&refusing], vec![&refusing, &failing], vec![&failing, &refusing]] {
        server.resolvers(&resolvers.iter().map(|resolver| resolver.address).collect::<Vec<_>>());
        for kind in [RecordType::A, RecordType::AAAA, RecordType::HTTPS] {
            let code = client.ask("a.test", kind).await.metadata.response_code;
            assert_eq!(code, ResponseCode::ServFail, "{kind} of {} resolvers", resolvers.len());
        }
    }
    assert_eq!(failures(&server, &refusing), [("refused".to_owned(), 10)]);
    server.stop().await;
}

#[tokio::test]
async fn an_answer_that_is_late_and_one_to_a_second_datagram_are_taken() {
    let net = LoopbackNet::new();
    let late = Resolver::start(net.host(200), |_| Some((ResponseCode::NoError, vec![ANSWER], Duration::from_millis(600)))).await;
    let (server, client) = served(net, &[&late], Duration::from_millis(400)).await;
    assert_eq!(client.addresses("late.test").await, [ANSWER]);
    let lossy = Resolver::start(net.host(201), |n| (n > 0).then(|| (ResponseCode::NoError, vec![ANSWER], Duration::ZERO))).await;
    server.resolvers(&[lossy.address]);
    assert_eq!(client.addresses("lost.test").await, [ANSWER]);
    server.stop().await;
}

#[tokio::test]
async fn names_and_ports_of_services_without_a_task_are_answered_inside() {
    let net = LoopbackNet::new();
    let upstream = Upstream::start(net.host(200)).await;
    let (mut server, client) = served(net, &[], SECOND).await;
    server.resolvers(&[upstream.address]);
    let mut front = network(net, "front", vec![member(net, "web", 1, 11)]);
    let names =
        ServiceNames { service_id: "idle".into(), name: "idle".to_owned(), aliases: vec!["rest".to_owned()], ports: vec![] };
    front.names = vec![Arc::new(names)];
    server.show(view(2, vec![front.clone()])).await;
    for name in ["idle", "rest", "tasks.idle", "IDLE.Front"] {
        for kind in [RecordType::A, RecordType::AAAA, RecordType::HTTPS, RecordType::SVCB, RecordType::TXT, RecordType::MX] {
            let message = client.ask(name, kind).await;
            assert_eq!((message.metadata.response_code, message.answers.len()), (ResponseCode::NoError, 0), "{name} {kind}");
            assert_eq!(message.authorities.len(), 1, "{name} {kind}");
        }
    }
    assert_eq!(client.ask("_http._tcp.idle", RecordType::SRV).await.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(client.ask("_http._tcp.web", RecordType::SRV).await.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(upstream.names(), Vec::<String>::new());
    // On an internal network nothing is asked outside, and no client waits for an answer that does not come.
    front.internal = true;
    server.show(view(3, vec![front])).await;
    for kind in [RecordType::A, RecordType::AAAA] {
        assert_eq!(client.ask("unheard", kind).await.metadata.response_code, ResponseCode::NXDomain);
        assert_eq!(client.ask("example.test", kind).await.metadata.response_code, ResponseCode::NXDomain);
    }
    assert_eq!(upstream.names(), Vec::<String>::new());
    let status = server.counts.status();
    assert_eq!(status.questions, BTreeMap::from([("internal".to_owned(), 30)]));
    assert_eq!(status.answers, BTreeMap::from([("noerror".to_owned(), 24), ("nxdomain".to_owned(), 6)]));
    server.stop().await;
}

#[tokio::test]
async fn a_task_with_ndots_finds_names_of_the_cluster_in_its_search_domain_after_those_of_the_domain() {
    let net = LoopbackNet::new();
    let (mut server, client) = served(net, &[], Duration::from_millis(300)).await;
    let task_with = |search: &str| {
        let mut task = fixture::task_with_resolvers("web1id", "web", ME, &[]);
        let config = Arc::make_mut(&mut task.spec).container_spec.dns_config.as_mut().unwrap();
        config.search = vec![search.to_owned()];
        config.options = vec!["ndots:2".to_owned()];
        Arc::new(Tasks { by_id: BTreeMap::from([(task.id.clone(), Arc::new(task))]), ..Tasks::default() })
    };
    let networks = vec![network(net, "front", vec![member(net, "web", 1, 11), member(net, "unknown", 1, 12)])];
    server.show(NodeView { tasks: task_with("corp.test"), ..view(2, networks) }).await;
    // This one says NXDOMAIN of names that begin with `unknown`.
    let upstream = Upstream::start(net.host(200)).await;
    server.resolvers(&[upstream.address]);
    assert_eq!(client.addresses("unknown.corp.test").await, [net.host(12)]);
    assert_eq!(client.addresses("web.corp.test").await, [ANSWER], "the domain has this name");
    assert_eq!(client.addresses("web").await, [net.host(11)]);
    server.resolvers(&[]);
    assert_eq!(client.addresses("web.corp.test").await, [net.host(11)], "no resolver answers");
    server.stop().await;
}
