//! One client address and port, several connections whose tuples are equal at the container: through two nodes, and to two
//! published ports of one service. All of them work, and none gets answers of another.

use super::*;

#[test]
fn connections_with_one_tuple_at_the_container_stay_separate() {
    PUBLISHED_PORTS.concurrent_case(async |fixture| {
        let client = fixture.client(0);
        for (six, backend) in [(false, 0), (false, 1), (false, 2), (true, 0), (true, 2)] {
            let own = SocketAddr::new(address(11, six), 20_000 + port_of(backend));
            let port = port_of(backend);
            let paths = [at(0, six, port), at(1, six, port), at(0, six, port + 100), at(1, six, port + 100)];
            let mut connections: Vec<Connection> = paths
                .into_iter()
                .map(|to| Connection::from(&client, Some(own), to).unwrap_or_else(|e| panic!("{own} to n{}: {e:#}", backend + 1)))
                .collect();
            let mut peers = BTreeSet::new();
            // The first connection is used again after the last one was opened.
            for round in 0..3 {
                for (connection, to) in connections.iter_mut().zip(paths) {
                    let seen = connection.identify().unwrap_or_else(|e| panic!("round {round}, {own} -> {to}: {e:#}"));
                    assert_eq!(
                        (seen.server, seen.client.ip()),
                        (format!("n{}", backend + 1), own.ip()),
                        "the server and the client's address"
                    );
                    peers.insert(seen.client);
                }
            }
            assert_eq!(
                peers.len(),
                paths.len(),
                "the server sees a connection for each, with the same client address each time: {peers:?}"
            );
            for (connection, to) in connections.iter_mut().zip(paths) {
                connection.download(200_000).unwrap_or_else(|e| panic!("{own} -> {to}: {e:#}"));
                connection.upload(200_000).unwrap_or_else(|e| panic!("{own} -> {to}: {e:#}"));
            }
            // Connected sockets: the kernel drops answers from any other address, so that an exchanged one is a missing one.
            let sockets: Vec<_> = paths.into_iter().map(|to| client.udp(Some(own), to).expect("a socket")).collect();
            for round in 0..3 {
                for (socket, to) in sockets.iter().zip(paths) {
                    let payload = format!("{round} {to}");
                    let seen = within(15, "the socket's answer", || async {
                        exchange(socket, payload.as_bytes()).map_err(|e| e.context(format!("round {round}, UDP {own} -> {to}")))
                    });
                    assert_eq!(seen.await.client.ip(), own.ip());
                }
            }
        }
    });
}
