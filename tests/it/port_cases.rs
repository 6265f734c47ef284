//! What both datapaths do with a published port: one list of cases, which `packets::port_cases` runs on the programs of the eBPF
//! datapath and `userspace::port_cases` on the listeners of the userspace datapath. A client that the programs do not serve is
//! left to the host, where the userspace datapath decides: so it must refuse there what the list says to be refused.

use skep::model::Protocol;

/// A client address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Client {
    A,
    B,
}

/// A published port, over both protocols.
#[derive(Clone, Copy, Debug)]
pub struct PortCase {
    /// Numbers of the tasks that receive traffic, from 1.
    pub tasks: &'static [u8],
    /// Clients on the allow-list; empty: all.
    pub allow: &'static [Client],
    pub affinity: bool,
}

#[derive(Clone, Copy, Debug)]
pub enum PortStep {
    Publish(PortCase),
    /// New connections or flows of a client: so many, and how many different tasks they reach.
    New(Client, usize, usize),
    /// A new one is refused.
    Refused(Client),
    /// The client's last flow goes on, to this task if it is not the one that it was with. (Datagrams only.)
    Again(Client, Option<u8>),
    /// The client's last flow is refused. (Datagrams only.)
    AgainRefused(Client),
}

/// A datapath with one published port.
pub trait PortDatapath {
    fn publish(&mut self, port: PortCase) -> impl Future<Output = ()>;
    /// Whether its clients are other machines: an allow-list does not concern the node itself.
    fn has_clients_outside(&self) -> bool;
    /// Begins a connection or flow, or goes on with the client's last one; the task that answers, from the address and port that
    /// the client asked. `None`: refused.
    fn visit(&mut self, client: Client, again: bool) -> impl Future<Output = Option<u8>>;
}

const OPEN: PortCase = PortCase { tasks: &[1, 2, 3], allow: &[], affinity: false };

pub const CASES: &[(&str, &[PortStep])] = {
    use Client::{A, B};
    use PortStep::{Again, AgainRefused, New, Publish, Refused};
    &[
        ("every task gets connections", &[Publish(OPEN), New(A, 64, 3), New(B, 64, 3)]),
        (
            "a port without a task refuses, and serves as soon as there is one",
            &[Publish(PortCase { tasks: &[], ..OPEN }), Refused(A), Publish(PortCase { tasks: &[2], ..OPEN }), New(A, 2, 1)],
        ),
        (
            "an allow-list holds for new and for known flows, and a change of it at once",
            &[
                Publish(PortCase { allow: &[A], ..OPEN }),
                New(A, 32, 3),
                Refused(B),
                Publish(PortCase { allow: &[B], ..OPEN }),
                AgainRefused(A),
                Refused(A),
                New(B, 32, 3),
                Publish(OPEN),
                New(A, 32, 3),
            ],
        ),
        (
            "a client with affinity keeps its task",
            &[Publish(PortCase { affinity: true, ..OPEN }), New(A, 32, 1), New(B, 32, 1), New(A, 32, 1)],
        ),
        (
            "a flow stays with its task while tasks come",
            &[Publish(PortCase { tasks: &[1], ..OPEN }), New(A, 1, 1), Publish(OPEN), Again(A, None), Again(A, None)],
        ),
        (
            "a flow moves when its task is taken away",
            &[
                Publish(PortCase { tasks: &[1], ..OPEN }),
                New(A, 1, 1),
                Publish(PortCase { tasks: &[3], ..OPEN }),
                Again(A, Some(3)),
                New(A, 8, 1),
                Publish(PortCase { tasks: &[], ..OPEN }),
                AgainRefused(A),
                Refused(A),
            ],
        ),
    ]
};

/// Runs one case.
pub async fn run(name: &str, steps: &[PortStep], protocol: Protocol, datapath: &mut impl PortDatapath) {
    let guards = |step: &PortStep| matches!(step, PortStep::Publish(port) if !port.allow.is_empty());
    if !datapath.has_clients_outside() && steps.iter().any(guards) {
        return;
    }
    let mut last = std::collections::BTreeMap::new();
    for (number, step) in steps.iter().enumerate() {
        let at = format!("{name}, {protocol:?}, step {number}: {step:?}");
        match *step {
            PortStep::Publish(port) => datapath.publish(port).await,
            PortStep::New(client, count, different) => {
                let mut reached = std::collections::BTreeSet::new();
                for _ in 0..count {
                    let task = datapath.visit(client, false).await.unwrap_or_else(|| panic!("{at}: refused"));
                    reached.insert(task);
                    last.insert(client, task);
                }
                assert_eq!(reached.len(), different, "{at}: {reached:?}");
            }
            PortStep::Refused(client) => assert_eq!(datapath.visit(client, false).await, None, "{at}"),
            PortStep::Again(..) | PortStep::AgainRefused(_) if protocol == Protocol::Tcp => {}
            PortStep::Again(client, task) => {
                assert_eq!(datapath.visit(client, true).await, task.or(last.get(&client).copied()), "{at}");
            }
            PortStep::AgainRefused(client) => assert_eq!(datapath.visit(client, true).await, None, "{at}"),
        }
    }
}
