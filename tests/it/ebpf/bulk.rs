//! Large transfers and datagrams of every size, over both families, to a backend here and elsewhere.

use super::servers::{Talk, ask_udp};
use super::*;

const BYTES: usize = 100_000_000;

/// Family, and the node that the backend is on; the client comes in by the first one.
const WAYS: [(bool, usize); 4] = [(false, 0), (false, 1), (true, 0), (true, 1)];

pub fn streams(stage: &Stage) {
    let client = stage.client(0);
    for (six, backend) in WAYS {
        let to = at(0, six, port_of(backend));
        let begun = Instant::now();
        let mut talk = Talk::open(&client, to).expect("connects");
        talk.down(BYTES).unwrap_or_else(|e| panic!("down from {to} of n{}: {e:#}", backend + 1));
        let (half, begun) = (begun.elapsed(), Instant::now());
        talk.up(BYTES).unwrap_or_else(|e| panic!("up to {to} of n{}: {e:#}", backend + 1));
        let seen = talk.who().expect("still answers");
        assert_eq!((seen.who, seen.peer), (format!("n{}", backend + 1), talk.own()));
        eprintln!("    {to} of n{}: down {half:.1?}, up {:.1?}", backend + 1, begun.elapsed());
    }
}

pub async fn datagrams(stage: &Stage) {
    let client = stage.client(1);
    for (six, backend) in WAYS {
        let to = at(0, six, port_of(backend));
        // Around what fits one packet, before and after what the mesh puts on top.
        for length in [1, 2, 512, 1292, 1293, 1352, 1353, 1392, 1420, 1452, 1453, 1472, 1473, 2944, 9000, 30_001, 60_000] {
            let word: Vec<u8> = (0..length).map(|i: usize| u8::try_from(i % 253).expect("a byte")).collect();
            // Datagrams may be lost where the machine is busy.
            let (seen, own) = within(20, "a datagram and its answer", || async { ask_udp(&client, to, &word) }).await;
            assert_eq!((seen.who, seen.peer), (format!("n{}", backend + 1), own), "{to}: {length} bytes");
        }
    }
}
