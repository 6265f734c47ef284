//! One client address and port, several connections that are one at the container: through two nodes, and to two published
//! ports of one service. All of them live, and none gets another's answers.

use super::servers::{Talk, say};
use super::*;

pub async fn all(stage: &Stage) {
    let client = stage.client(0);
    for (six, backend) in [(false, 0), (false, 1), (false, 2), (true, 0), (true, 2)] {
        let own = SocketAddr::new(address(11, six), 20_000 + port_of(backend));
        let port = port_of(backend);
        let ways = [at(0, six, port), at(1, six, port), at(0, six, port + 100), at(1, six, port + 100)];
        let mut talks: Vec<Talk> = ways
            .into_iter()
            .map(|to| Talk::from(&client, Some(own), to).unwrap_or_else(|e| panic!("{own} to n{}: {e:#}", backend + 1)))
            .collect();
        let mut peers = BTreeSet::new();
        // The first one as well, after the last one was made.
        for round in 0..3 {
            for (talk, to) in talks.iter_mut().zip(ways) {
                let seen = talk.who().unwrap_or_else(|e| panic!("round {round}, {own} -> {to}: {e:#}"));
                assert_eq!((seen.who, seen.peer.ip()), (format!("n{}", backend + 1), own.ip()), "never another address");
                peers.insert(seen.peer);
            }
        }
        assert_eq!(peers.len(), ways.len(), "each is another connection to the server, and stays the same one: {peers:?}");
        for (talk, to) in talks.iter_mut().zip(ways) {
            talk.down(200_000).unwrap_or_else(|e| panic!("{own} -> {to}: {e:#}"));
            talk.up(200_000).unwrap_or_else(|e| panic!("{own} -> {to}: {e:#}"));
        }
        // Connected sockets: an answer from an address that was not asked reaches none of them, another's would be seen.
        let sockets: Vec<_> = ways.into_iter().map(|to| client.udp(Some(own), to).expect("a socket")).collect();
        for round in 0..3 {
            for (socket, to) in sockets.iter().zip(ways) {
                let word = format!("{round} {to}");
                let seen = within(15, "an answer of its own", || async {
                    say(socket, word.as_bytes()).map_err(|e| e.context(format!("round {round}, UDP {own} -> {to}")))
                });
                assert_eq!(seen.await.peer.ip(), own.ip());
            }
        }
    }
}
