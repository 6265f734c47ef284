//! ICMP errors of containers: to the clients of their own connections, and of no others.

use super::build::*;
use super::kernel::*;
use skep_ebpf::{Backend, Counter, INGRESS};

const CLIENT: &str = "203.0.113.9:40000";
const CLIENT6: &str = "[2001:db8:1::9]:40000";
const PORT: &str = "192.0.2.1:8080";
const PORT6: &str = "[2001:db8::1]:8080";
const TASK: &str = "10.0.0.11:80";
/// `Config::containers` of these tests.
const TASK6: &str = "[2fd:0:900::a00:b]:80";

/// Review, section B: an error is believed by what it quotes, so a container could end the connections of another one.
#[test]
fn a_container_s_errors_concern_its_own_connections_only() {
    in_namespaces(|kernel| {
        kernel.backend("10.0.0.11", 7);
        // Another one behind a device of its own.
        let other = Backend { ifindex: kernel.other_uplink, serving: 1, prefix: [0; 2], owner: 7, flags: INGRESS };
        kernel.set("BACKENDS", v4("10.0.0.12"), other);
        for protocol in [TCP, UDP] {
            kernel.publish(protocol, 8080, &["10.0.0.11"], 0);
        }
        for (client, port, task, hosts) in
            [(CLIENT, PORT, TASK, ["10.0.0.12", "10.0.0.11"]), (CLIENT6, PORT6, TASK6, ["2fd:0:900::a00:c", "2fd:0:900::a00:b"])]
        {
            for make in [|from: &str, to: &str| Frame::tcp(from, to, SYN), |from: &str, to: &str| Frame::udp(from, to)] {
                assert_eq!(kernel.run("from_uplink", &make(client, port), kernel.uplink).decision, Decision::Redirect);
                let about = make(client, task);
                let before = kernel.counted(Counter::DropForged);
                // With its own address, and with that of the other one.
                for host in hosts {
                    let run = kernel.run("from_container", &Frame::unreachable(host, &about), kernel.other_uplink);
                    assert_eq!(run.decision, Decision::Drop, "{host} about {about:?}");
                }
                assert_eq!(kernel.counted(Counter::DropForged), before + 2);
                let run = kernel.run("from_container", &Frame::unreachable(hosts[1], &about), kernel.uplink);
                assert_eq!(run.decision, Decision::Redirect, "its own");
            }
            let (_, flow) = kernel.flow(client, port, UDP).expect("of several uplinks it knows the one that leads to the client");
            assert_eq!(flow.owner, u32::MAX, "the next datagram asks the table");
            assert!(kernel.flow(client, port, TCP).is_some(), "a connection ends by RST or FIN");
        }
    });
}
