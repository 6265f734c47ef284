//! Large transfers and datagrams of every size, over both families, to a backend on the node that the client uses and to one
//! on another node.

use super::*;

const BYTES: usize = 100_000_000;

/// Whether over IPv6, and the backend's node; clients use the ports of the first node.
const PATHS: [(bool, usize); 4] = [(false, 0), (false, 1), (true, 0), (true, 1)];

#[test]
fn streams_of_100_mb_arrive_unchanged_both_ways() {
    PUBLISHED_PORTS.concurrent_case(async |fixture| {
        let client = fixture.client(0);
        for (six, backend) in PATHS {
            let to = at(0, six, port_of(backend));
            let started = Instant::now();
            let mut connection = Connection::open(&client, to).expect("connects");
            connection.download(BYTES).unwrap_or_else(|e| panic!("down from {to} of n{}: {e:#}", backend + 1));
            let (down, started) = (started.elapsed(), Instant::now());
            connection.upload(BYTES).unwrap_or_else(|e| panic!("up to {to} of n{}: {e:#}", backend + 1));
            let seen = connection.identify().expect("still answers");
            assert_eq!((seen.server, seen.client), (format!("n{}", backend + 1), connection.local_addr()));
            eprintln!("    {to} of n{}: down {down:.1?}, up {:.1?}", backend + 1, started.elapsed());
        }
    });
}

#[test]
fn datagrams_of_any_size_arrive_unchanged() {
    PUBLISHED_PORTS.concurrent_case(async |fixture| {
        let client = fixture.client(1);
        for (six, backend) in PATHS {
            let to = at(0, six, port_of(backend));
            // Around the payload that fits one packet, with and without the headers of the mesh.
            for length in [1, 2, 512, 1292, 1293, 1352, 1353, 1392, 1420, 1452, 1453, 1472, 1473, 2944, 9000, 30_001, 60_000] {
                let payload: Vec<u8> = (0..length).map(|i: usize| u8::try_from(i % 253).expect("a byte")).collect();
                // Datagrams may be lost where the machine is busy.
                let (seen, client_address) =
                    within(20, "a datagram and its answer", || async { exchange_once(&client, to, &payload) }).await;
                assert_eq!((seen.server, seen.client), (format!("n{}", backend + 1), client_address), "{to}: {length} bytes");
            }
        }
    });
}
