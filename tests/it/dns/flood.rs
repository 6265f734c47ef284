//! Invalid packets, floods and slow clients: nothing crashes, everything is bounded, other clients are served meanwhile.

use super::upstream::{ANSWER, Upstream};
use super::*;
use rand::{Rng, SeedableRng, rngs::StdRng};

async fn served(net: LoopbackNet, set: impl FnOnce(&mut DnsSettings)) -> (Server, Upstream, Client) {
    let upstream = Upstream::start(net.host(200)).await;
    let mut server = Server::start(net, set);
    server.resolvers(&[upstream.address]);
    server.show(view(1, vec![network(net, "front", vec![member(net, "web", 1, 11), member(net, "bad", 1, 12)])])).await;
    (server, upstream, Client { from: net.host(11), gateway: net.gateway() })
}

#[tokio::test]
async fn other_clients_are_answered_during_a_flood_of_invalid_packets() {
    let net = LoopbackNet::new();
    let (server, _upstream, client) = served(net, |_| {}).await;
    let flood = tokio::spawn(async move {
        let socket = Client { from: net.host(12), ..client }.socket().await;
        let mut rng = StdRng::seed_from_u64(1);
        let good = query_bytes(1, "web.front", RecordType::A, Some(1232));
        for n in 0..20_000_u32 {
            let mut packet = good.clone();
            match n % 4 {
                0 => packet = (0..rng.random_range(0..600)).map(|_| rng.random()).collect(),
                1 => packet.truncate(rng.random_range(0..good.len())),
                2 => packet[rng.random_range(0..good.len())] ^= 1 << rng.random_range(0..8),
                _ => packet.resize(rng.random_range(4000..9000), 0xff),
            }
            let _ = socket.send(&packet).await;
            if n % 64 == 0 {
                tokio::task::yield_now().await;
            }
        }
    });
    let mut answered = 0;
    while !flood.is_finished() {
        // A datagram may be lost in a full buffer: clients retry.
        until("an answer during the flood", || async {
            let socket = client.socket().await;
            socket.send(&query_bytes(7, "web", RecordType::A, None)).await.unwrap();
            let mut buffer = [0; 512];
            tokio::time::timeout(Duration::from_millis(200), socket.recv(&mut buffer)).await.is_ok()
        })
        .await;
        answered += 1;
    }
    flood.await.unwrap();
    assert!(answered > 0);
    assert_eq!(client.addresses("web").await, [net.host(11)]);
    server.stop().await;
}

#[tokio::test]
async fn one_container_cannot_use_up_the_forwarder() {
    let net = LoopbackNet::new();
    let (server, upstream, client) = served(net, |settings| {
        settings.max_in_flight = 64;
        settings.max_per_client = 16;
        settings.timeout = 30 * SECOND;
    })
    .await;
    let socket = Client { from: net.host(12), ..client }.socket().await;
    let mut refused = 0;
    for n in 0..500_u16 {
        socket.send(&query_bytes(n, &format!("silent.{n}.test"), RecordType::A, None)).await.unwrap();
        if n >= 16 {
            let mut buffer = [0; 512];
            let length = tokio::time::timeout(5 * SECOND, socket.recv(&mut buffer)).await.expect("answered at once").unwrap();
            assert_eq!(Message::from_vec(&buffer[..length]).unwrap().metadata.response_code, ResponseCode::ServFail);
            refused += 1;
        }
    }
    assert_eq!(refused, 500 - 16);
    until("the bound is used", || async { upstream.silent.load(Ordering::Relaxed) == 16 }).await;
    assert_eq!(client.addresses("example.test").await, [ANSWER], "the other container is served");
    assert_eq!(upstream.silent.load(Ordering::Relaxed), 16);
    server.stop().await;
}

#[tokio::test]
async fn many_queries_on_one_connection_are_all_answered_and_a_slow_one_delays_none() {
    let net = LoopbackNet::new();
    let (server, _upstream, client) = served(net, |settings| settings.timeout = SECOND).await;
    let mut stream = client.connect().await;
    send_tcp(&mut stream, &query_bytes(1000, "silent.test", RecordType::A, None)).await;
    for n in 0..200 {
        send_tcp(&mut stream, &query_bytes(n, if n % 2 == 0 { "web" } else { "example.test" }, RecordType::A, None)).await;
    }
    stream.shutdown().await.unwrap();
    let mut ids = Vec::new();
    while let Some(bytes) = receive_tcp(&mut stream).await {
        ids.push(Message::from_vec(&bytes).unwrap().metadata.id);
    }
    assert_eq!(ids.last(), Some(&1000), "the slow one is answered last");
    ids.sort_unstable();
    assert_eq!(ids, (0..200).chain([1000]).collect::<Vec<u16>>());
    server.stop().await;
}

#[tokio::test]
async fn bad_connections_are_closed_and_their_number_is_bounded() {
    let net = LoopbackNet::new();
    let (server, _upstream, client) = served(net, |settings| {
        settings.idle = Duration::from_millis(300);
        settings.max_connections = 40;
    })
    .await;
    // Longer than any query; a length without a packet; an answer instead of a query; half a length.
    for bytes in [vec![0xff, 0xff, 1], vec![0, 50, 1, 2], [vec![0, 12], vec![0xff; 12]].concat(), vec![0]] {
        let mut stream = client.connect().await;
        stream.write_all(&bytes).await.unwrap();
        assert_eq!(receive_tcp(&mut stream).await, None, "{bytes:?}");
    }
    // An unparsable packet of a valid length is answered FORMERR.
    let unparsable = client.ask_tcp(&[[0, 1, 1, 0], [0xff; 4], [0xff; 4]].concat()).await;
    assert_eq!(unparsable.metadata.response_code, ResponseCode::FormErr);
    // One client has at most a quarter of the connections; idle ones are closed.
    let bad = Client { from: net.host(12), ..client };
    let mut held = Vec::new();
    for _ in 0..20 {
        held.push(bad.connect().await);
    }
    assert_eq!(addresses(&client.ask_tcp(&query_bytes(1, "web", RecordType::A, None)).await), [net.host(11)]);
    for stream in &mut held {
        assert_eq!(receive_tcp(stream).await, None);
    }
    assert_eq!(addresses(&bad.ask_tcp(&query_bytes(1, "web", RecordType::A, None)).await), [net.host(11)]);
    server.stop().await;
}
