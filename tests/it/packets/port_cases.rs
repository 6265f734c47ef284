//! The cases of both datapaths, on the programs: the maps are what the daemon makes of a view.

use super::super::port_cases::{CASES, Client, PortCase, PortDatapath, run};
use super::build::*;
use super::kernel::*;
use skep::datapath::ebpf::{EbpfState, EbpfStep, HostDevices, Tables};
use skep::ingress::ebpf::{Changed, DesiredState, Inputs, SlotAllocator, plan};
use skep::model::fixture::{cluster_part, network_part, node_view, peer, published_port, task_endpoint};
use skep::model::view::{ClusterPart, Peer, PublishedPort, TaskEndpoint};
use skep::model::{Listens, NodeView, Protocol};
use skep_ebpf::{Backend, Frontend, SLOTS_PER_BLOCK, SlotBlock};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

const PORT: &str = "192.0.2.1:8080";

struct Programs<'a> {
    kernel: &'a mut Kernel,
    protocol: Protocol,
    state: EbpfState,
    desired: DesiredState,
    revision: u64,
    /// Port of the last connection or flow, and the client.
    last: u16,
    client: Client,
    /// The port as last published, and the tasks whose containers have ended.
    port: PortCase,
    ended: BTreeSet<u8>,
    /// Tasks whose processes do not listen, as the probe has seen.
    deaf: BTreeSet<u8>,
}

fn task(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, 10 + number)
}

fn address(client: Client) -> Ipv4Addr {
    match client {
        Client::A => Ipv4Addr::new(203, 0, 113, 9),
        Client::B => Ipv4Addr::new(203, 0, 113, 10),
        Client::Range => Ipv4Addr::new(10, 20, 30, 40),
        Client::Network => Ipv4Addr::new(10, 0, 0, 99),
    }
}

impl Programs<'_> {
    fn view(&self, port: PortCase) -> NodeView {
        let addresses: Vec<Ipv4Addr> = port.tasks.iter().map(|number| task(*number)).collect();
        let mut published = PublishedPort {
            protocol: self.protocol,
            affinity: port.affinity,
            allow: port.allow.iter().map(|client| IpAddr::from(address(*client)).into()).collect(),
            ..published_port(8080, 80, &addresses)
        };
        for backend in &mut published.backends {
            let listens = !self.deaf.contains(&(backend.address.octets()[3] - 10));
            backend.listens = Listens { v4: listens, v6: listens };
        }
        let member = |number: u8| TaskEndpoint {
            backend: port.tasks.contains(&number),
            ..task_endpoint("web", number.into(), "node1", task(number))
        };
        let network = network_part(
            "ingress",
            "10.0.0.0/24".parse().unwrap(),
            (1..=3).filter(|number| !self.ended.contains(number)).map(member).collect(),
        );
        let nodes = vec![Peer { ebpf: true, ..peer(1) }];
        node_view(self.revision, vec![network], ClusterPart { ports: vec![Arc::new(published)], ..cluster_part(nodes) })
    }

    /// Carries a step out on the maps. What concerns other programs and devices is left out.
    fn apply(&mut self, step: &EbpfStep) {
        let kernel = &mut *self.kernel;
        match step {
            EbpfStep::Config(config) => kernel.change_config(|own| own.hash_key = config.hash_key),
            EbpfStep::Slots(base, slots) => {
                let number = base / SLOTS_PER_BLOCK;
                assert!(base % SLOTS_PER_BLOCK + u32::try_from(slots.len()).unwrap() <= SLOTS_PER_BLOCK, "in one block");
                let mut block: SlotBlock = kernel.get("SLOTS", number).unwrap_or([0; _]);
                let first = (base % SLOTS_PER_BLOCK) as usize;
                block[first..first + slots.len()].copy_from_slice(slots);
                kernel.set("SLOTS", number, block);
            }
            EbpfStep::SetPort(port, frontend) => kernel.set("PORTS", *port, *frontend),
            EbpfStep::RemovePort(port) => kernel.remove::<_, Frontend>("PORTS", *port),
            EbpfStep::SetBackend(address, backend) => kernel.set("BACKENDS", *address, *backend),
            EbpfStep::RemoveBackend(address) => kernel.remove::<_, Backend>("BACKENDS", *address),
            EbpfStep::AddTarget(target) => kernel.set("TARGETS", *target, 1_u32),
            EbpfStep::RemoveTarget(target) => kernel.remove::<_, u32>("TARGETS", *target),
            EbpfStep::AddSource(length, source) => kernel.add_source(*length, *source),
            EbpfStep::RemoveSource(length, source) => kernel.remove_source(*length, *source),
            EbpfStep::FreeBlock(number) => kernel.remove::<_, SlotBlock>("SLOTS", *number),
            _ => {}
        }
    }

    fn frame(&self, from: &str, to: &str) -> Frame {
        if self.protocol == Protocol::Tcp { Frame::syn(from, to, 1) } else { Frame::udp(from, to) }
    }
}

impl PortDatapath for Programs<'_> {
    async fn publish(&mut self, port: PortCase) {
        (self.revision, self.port) = (self.revision + 1, port);
        let veths = (1..=3).map(|number| (task(number), (format!("veth{number}"), self.kernel.uplink))).collect();
        let (me, host_devices) = ("node1".into(), HostDevices { veths, ..HostDevices::default() });
        let (members, unavailable) = (BTreeMap::new(), BTreeMap::new());
        let inputs = Inputs {
            me: &me,
            host_devices: &host_devices,
            members: &members,
            unavailable: &unavailable,
            held: None,
            lost: None,
            left: None,
            udp_idle: Duration::from_secs(UDP_IDLE.into()),
        };
        let view = self.view(port);
        self.desired.recompute(&view, &inputs);
        let mut allocator = SlotAllocator::from_tables(&self.state.tables);
        for step in plan(self.desired.desired(), &self.state, &mut allocator, &Changed::All) {
            self.apply(&step);
            self.state.tables.carry_out(&step);
        }
    }

    fn decides_who_is_a_client(&self) -> bool {
        true
    }

    async fn visit(&mut self, client: Client, again: bool) -> Option<u8> {
        self.last += u16::from(!again);
        self.client = client;
        let from = format!("{}:{}", address(client), self.last);
        let (question, uplink) = (self.frame(&from, PORT), self.kernel.uplink);
        let there = self.kernel.run("from_uplink", &question, uplink);
        assert_ne!(there.decision, Decision::Drop);
        if there.decision == Decision::Pass {
            return None;
        }
        let container = Ipv4Addr::from(<[u8; 4]>::try_from(&there.bytes[30..34]).unwrap());
        if self.deaf.contains(&(container.octets()[3] - 10)) {
            let refusal = Frame::unreachable(&container.to_string(), &self.frame(&from, &format!("{container}:80")));
            let back = self.kernel.run("from_container", &refusal, uplink);
            // But for the sum of the quoted datagram, which nothing checks and the programs leave, and that of the message, which covers it.
            let but_sums = |packet: &[u8]| [&packet[..22], &packet[24..54], &packet[56..]].concat();
            let expected = Frame::unreachable("192.0.2.1", &question);
            assert_eq!(
                (back.decision, but_sums(&back.bytes[14..])),
                (Decision::Redirect, but_sums(&expected.packet)),
                "the client learns it"
            );
            return None;
        }
        let answer = self.frame(&format!("{container}:80"), &from);
        let back = self.kernel.run("from_container", &answer, uplink);
        assert_eq!(back.decision, Decision::Redirect);
        assert_eq!(back.bytes[14..], self.frame(PORT, &from).packet, "from the address that the client asked");
        Some(container.octets()[3] - 10)
    }

    async fn go_on(&mut self) -> Option<u8> {
        let from = format!("{}:{}", address(self.client), self.last);
        let uplink = self.kernel.uplink;
        let there = self.kernel.run("from_uplink", &Frame::tcp(&from, PORT, ACK), uplink);
        if there.decision == Decision::Pass {
            // The host has no such connection.
            return None;
        }
        assert_eq!(there.decision, Decision::Redirect);
        let container = Ipv4Addr::from(<[u8; 4]>::try_from(&there.bytes[30..34]).unwrap());
        let has_it = self
            .kernel
            .reply(&format!("{container}:80"), &from, super::kernel::TCP)
            .is_some_and(|(_, reply)| reply.flags & skep_ebpf::SYN_ACKED != 0);
        // A container that has not answered the SYN has no such connection, and says so.
        let flags = if has_it { ACK } else { RST };
        let answer = Frame::tcp(&format!("{container}:80"), &from, flags);
        let back = self.kernel.run("from_container", &answer, uplink);
        assert_eq!(back.decision, Decision::Redirect);
        assert_eq!(back.bytes[14..], Frame::tcp(PORT, &from, flags).packet, "from the address that the client asked");
        has_it.then(|| container.octets()[3] - 10)
    }

    async fn end(&mut self, task: u8) {
        self.ended.insert(task);
        self.publish(self.port).await;
    }

    async fn make_deaf(&mut self, task: u8) {
        self.deaf.insert(task);
        self.publish(self.port).await;
    }
}

#[test]
fn the_programs_do_what_both_datapaths_do() {
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        for (name, steps) in CASES {
            in_namespaces(|kernel| {
                let state = EbpfState { tables: Tables { room: 1 << 20, ..Tables::default() }, ..EbpfState::default() };
                let mut programs = Programs {
                    kernel,
                    protocol,
                    state,
                    desired: DesiredState::default(),
                    revision: 0,
                    last: 40_000,
                    client: Client::A,
                    port: PortCase { tasks: &[], allow: &[], affinity: false },
                    ended: BTreeSet::new(),
                    deaf: BTreeSet::new(),
                };
                let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                runtime.block_on(run(name, steps, protocol, &mut programs));
            });
        }
    }
}
