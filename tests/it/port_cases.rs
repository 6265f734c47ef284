//! What both datapaths do with a published port: one list of cases, which `packets::port_cases` runs on the programs of the eBPF
//! datapath and `userspace::port_cases` on the listeners of the userspace datapath. A client that the programs do not serve is
//! left to the host, where the userspace datapath decides: so it must refuse there what the list says to be refused.

use skep::model::Protocol;

/// A client address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Client {
    A,
    B,
    /// A machine outside in the range that networks of the cluster have their subnets from, in none of these.
    Range,
    /// A source in the subnet of a network of the cluster.
    Network,
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
    /// The process of a task closes its socket, and its container goes on. (Datagrams only.)
    Deaf(u8),
    /// The client's last connection goes on with its task. (Connections only.)
    Open,
    /// The container of a task ends.
    Ended(u8),
    /// The client's last connection is reset. (Connections only.)
    Reset,
}

/// A datapath with one published port.
pub trait PortDatapath {
    fn publish(&mut self, port: PortCase) -> impl Future<Output = ()>;
    /// Whether it decides who is a client. (The userspace datapath serves who reaches it.)
    fn decides_who_is_a_client(&self) -> bool;
    /// Begins a connection or flow, or goes on with the client's last one; the task that answers, from the address and port that
    /// the client asked. `None`: refused.
    fn visit(&mut self, client: Client, again: bool) -> impl Future<Output = Option<u8>>;
    /// Goes on with the last connection: the task that answers. `None`: it is reset.
    fn go_on(&mut self) -> impl Future<Output = Option<u8>>;
    /// Ends the container of a task.
    fn end(&mut self, task: u8) -> impl Future<Output = ()>;
    /// Closes the socket for datagrams of a task.
    fn make_deaf(&mut self, task: u8) -> impl Future<Output = ()>;
}

const OPEN: PortCase = PortCase { tasks: &[1, 2, 3], allow: &[], affinity: false };

pub const CASES: &[(&str, &[PortStep])] = {
    use Client::{A, B, Network, Range};
    use PortStep::{Again, AgainRefused, Deaf, Ended, New, Open, Publish, Refused, Reset};
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
        (
            "a flow leaves a task whose process does not listen any more",
            &[
                Publish(PortCase { tasks: &[1], ..OPEN }),
                New(A, 1, 1),
                Publish(PortCase { tasks: &[1, 3], ..OPEN }),
                Again(A, None),
                Deaf(1),
                AgainRefused(A),
                Again(A, Some(3)),
                Again(A, Some(3)),
            ],
        ),
        (
            "a connection of a source that loses the right to the port is reset, and others go on",
            &[
                Publish(PortCase { tasks: &[1], allow: &[A], ..OPEN }),
                New(A, 1, 1),
                Open,
                Publish(PortCase { tasks: &[1], allow: &[A, B], ..OPEN }),
                Open,
                Publish(PortCase { tasks: &[1], allow: &[B], ..OPEN }),
                Reset,
                Refused(A),
                New(B, 1, 1),
                Publish(PortCase { tasks: &[1], ..OPEN }),
                Open,
                New(A, 1, 1),
            ],
        ),
        (
            "a connection stays with its task until the container ends, and is reset then",
            &[
                Publish(PortCase { tasks: &[1], ..OPEN }),
                New(A, 1, 1),
                Open,
                Publish(PortCase { tasks: &[3], ..OPEN }),
                Open,
                Ended(1),
                Reset,
                New(A, 8, 1),
            ],
        ),
        (
            "a connection whose container ends is reset also if no task is left",
            &[
                Publish(PortCase { tasks: &[2], ..OPEN }),
                New(A, 1, 1),
                Publish(PortCase { tasks: &[], ..OPEN }),
                Open,
                Ended(2),
                Reset,
                Refused(A),
            ],
        ),
        (
            "only sources on a network of the cluster are no clients",
            &[Publish(OPEN), New(Range, 64, 3), Refused(Network), New(A, 8, 3)],
        ),
    ]
};

/// Runs one case.
pub async fn run(name: &str, steps: &[PortStep], protocol: Protocol, datapath: &mut impl PortDatapath) {
    let is_decided = |step: &PortStep| match step {
        PortStep::New(client, ..) | PortStep::Refused(client) => matches!(client, Client::Range | Client::Network),
        _ => false,
    };
    if !datapath.decides_who_is_a_client() && steps.iter().any(is_decided) {
        return;
    }
    let of_datagrams = |step: &PortStep| matches!(step, PortStep::Deaf(_));
    if protocol == Protocol::Tcp && steps.iter().any(of_datagrams) {
        return;
    }
    let (mut last, mut latest) = (std::collections::BTreeMap::new(), None);
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
                    latest = Some(task);
                }
                assert_eq!(reached.len(), different, "{at}: {reached:?}");
            }
            PortStep::Refused(client) => assert_eq!(datapath.visit(client, false).await, None, "{at}"),
            PortStep::Again(..) | PortStep::AgainRefused(_) if protocol == Protocol::Tcp => {}
            PortStep::Open | PortStep::Reset if protocol != Protocol::Tcp => {}
            PortStep::Open => assert_eq!(datapath.go_on().await, latest, "{at}"),
            PortStep::Reset => assert_eq!(datapath.go_on().await, None, "{at}"),
            PortStep::Ended(task) => datapath.end(task).await,
            PortStep::Deaf(task) => datapath.make_deaf(task).await,
            PortStep::Again(client, task) => {
                assert_eq!(datapath.visit(client, true).await, task.or(last.get(&client).copied()), "{at}");
            }
            PortStep::AgainRefused(client) => assert_eq!(datapath.visit(client, true).await, None, "{at}"),
        }
    }
}
