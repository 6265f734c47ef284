//! A simulated swarm of a thousand nodes: the leader's production cores as its loops run them, with churn, slow nodes, loss and
//! restarts of the leader, over a virtual clock and from a seed. Short in `make test`; `make soak` runs it with further seeds.

use super::fixture::{self, after, node, restarting, service};
use super::leader_cores::LeaderCores;
use super::simulated_agent::SimulatedAgent;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use skep::manager::dispatcher::{Effect, view_of};
use skep::manager::invariants::{check, check_settled};
use skep::manager::liveness::Event;
use skep::manager::round::RoundPlanner;
use skep::manager::{ManagerSettings, SessionId, bootstrap, node_allocation};
use skep::model::service::Replicated;
use skep::model::{Availability, Cluster, NodeState, TaskState, Timestamp};
use skep::protocol::{ToManager, ToNode};
use skep::store::{Action, Store, Transaction};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
/// The planning loop's pause.
const STEP: u64 = 100;

/// What the test runs.
struct Size {
    nodes: usize,
    replicas: u64,
    /// Seconds of churn.
    churn: u64,
}

enum Due {
    Heartbeat,
    AgentStep,
    /// The session it was sent in, and the message.
    ToNode(SessionId, Box<ToNode>),
    ToManager(SessionId, Box<ToManager>),
    Opened(SessionId, Box<ToManager>),
    Closed(SessionId),
}

/// A node, and the network to it.
struct Member {
    agent: SimulatedAgent,
    delay_ms: u64,
    step_ms: u64,
    /// Messages keep their order: the last one arrives then.
    last: Timestamp,
    /// Applies nothing that it is sent: its loops hang.
    hangs: bool,
}

struct Swarm {
    now: Timestamp,
    rng: StdRng,
    seed: u64,
    settings: ManagerSettings,
    store: Arc<Store>,
    cores: LeaderCores,
    planner: RoundPlanner,
    members: Vec<Member>,
    queue: BTreeMap<(Timestamp, u64), (usize, Due)>,
    number: u64,
    owners: BTreeMap<SessionId, usize>,
    commits: u64,
}

/// Nodes without a session, in a network that is wide enough for all.
fn store_of(nodes: usize) -> Store {
    let mut store = Store::default();
    let wide = Cluster { subnet_size: 16, ..fixture::cluster() };
    fixture::apply(&mut store, fixture::START, bootstrap(wide, "ingress-id".into(), fixture::joining_node("n1")).unwrap());
    for n in 2..=nodes {
        let (_, actions) = node_allocation::admit(&store, fixture::joining_node(&format!("n{n}"))).unwrap();
        fixture::apply(&mut store, fixture::START, actions);
    }
    store
}

impl Swarm {
    fn new(size: &Size, seed: u64) -> Self {
        let (now, settings) = (fixture::START.plus(SECOND), ManagerSettings::default());
        let store = Arc::new(store_of(size.nodes));
        let mut rng = StdRng::seed_from_u64(seed);
        let member = |n: usize| {
            // One of twenty is slow, one of two hundred applies nothing.
            let slow = n % 20 == 7;
            let delay_ms = if slow { rng.random_range(200..500) } else { rng.random_range(1..60) };
            let step_ms = if slow { 1500 } else { rng.random_range(150..400) };
            Member { agent: SimulatedAgent::new(node(n)), delay_ms, step_ms, last: now, hangs: n % 200 == 13 }
        };
        let mut swarm = Self {
            members: (1..=size.nodes).map(member).collect(),
            now,
            seed,
            cores: LeaderCores::new(settings.clone(), store.clone(), now),
            planner: RoundPlanner::new(settings.clone(), seed),
            settings,
            store,
            rng,
            queue: BTreeMap::new(),
            number: 0,
            owners: BTreeMap::new(),
            commits: 0,
        };
        for n in 0..size.nodes {
            let (heartbeat, step) = (swarm.rng.random_range(0..500), swarm.rng.random_range(0..400));
            swarm.later(heartbeat, n, Due::Heartbeat);
            swarm.later(step, n, Due::AgentStep);
        }
        swarm
    }

    fn later(&mut self, ms: u64, n: usize, due: Due) {
        self.number += 1;
        self.queue.insert((self.now.plus(Duration::from_millis(ms)), self.number), (n, due));
    }

    /// Sends in a session, in order. A lost packet is sent again after a while; what is behind it waits.
    fn send(&mut self, n: usize, due: Due) {
        let lost = if self.rng.random_bool(0.01) { self.rng.random_range(200..900) } else { 0 };
        let member = &mut self.members[n];
        let at = self.now.plus(Duration::from_millis(member.delay_ms + lost)).max(member.last);
        member.last = at;
        self.number += 1;
        self.queue.insert((at, self.number), (n, due));
    }

    fn run(&mut self, time: Duration) {
        let end = self.now.plus(time);
        while self.now < end {
            let step_end = self.now.plus(Duration::from_millis(STEP));
            while let Some(entry) = self.queue.first_entry().filter(|entry| entry.key().0 <= step_end) {
                let ((at, _), (n, due)) = entry.remove_entry();
                self.now = self.now.max(at);
                self.occur(n, due);
            }
            self.now = step_end;
            let effects = self.cores.hear(self.now, Event::Tick);
            self.carry_out(effects);
            self.plan();
        }
    }

    fn occur(&mut self, n: usize, due: Due) {
        let connected = self.members[n].agent.connected;
        match due {
            Due::Heartbeat => {
                let Member { agent, hangs, .. } = &self.members[n];
                let applied = if *hangs { skep::model::Revision::default() } else { agent.revision };
                if let Some(session) = agent.session.filter(|_| connected) {
                    self.send(n, Due::ToManager(session, Box::new(ToManager::Heartbeat { applied })));
                }
                self.later(500, n, Due::Heartbeat);
            }
            Due::AgentStep => {
                self.agent_step(n);
                let pause = self.members[n].step_ms;
                self.later(pause, n, Due::AgentStep);
            }
            Due::ToNode(session, message) => {
                let agent = &mut self.members[n].agent;
                if connected && agent.session == Some(session) {
                    // The answer is the next heartbeat.
                    agent.receive(*message);
                }
            }
            Due::ToManager(session, message) if connected => self.hear(Event::Message { session, message: *message }),
            Due::Opened(session, hello) if connected => self.hear(Event::Opened { node: node(n + 1), session, hello: *hello }),
            Due::Closed(session) => self.hear(Event::Closed { session }),
            Due::ToManager(..) | Due::Opened(..) => {}
        }
    }

    fn agent_step(&mut self, n: usize) {
        let broken = self.rng.random_bool(0.0002);
        let Member { agent, .. } = &mut self.members[n];
        if let Some(session) = agent.session.filter(|_| agent.connected && broken) {
            // A reset connection; the leader learns of it as well.
            agent.session = None;
            return self.send(n, Due::Closed(session));
        }
        if agent.session.is_none() && agent.connected {
            self.number += 1;
            let session = SessionId(self.number);
            agent.session = Some(session);
            let hello = Box::new(agent.hello());
            self.owners.insert(session, n);
            self.send(n, Due::Opened(session, hello));
        }
        let Member { agent, hangs, .. } = &mut self.members[n];
        if *hangs {
            return;
        }
        agent.step(self.now, &mut self.rng);
        let session = agent.session.filter(|_| agent.connected);
        let reports = session.map(|_| agent.reports()).unwrap_or_default();
        for report in reports {
            self.send(n, Due::ToManager(session.unwrap(), Box::new(report)));
        }
    }

    fn hear(&mut self, event: Event) {
        let effects = self.cores.hear(self.now, event);
        self.carry_out(effects);
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Send { session, message } => {
                    let n = self.owners[&session];
                    self.send(n, Due::ToNode(session, Box::new(message)));
                }
                Effect::Close { session } => {
                    let agent = &mut self.members[self.owners[&session]].agent;
                    agent.session.take_if(|open| *open == session && agent.connected);
                }
            }
        }
    }

    /// One step of the planning loop, with a few rounds.
    fn plan(&mut self) {
        for _ in 0..4 {
            let effects = self.cores.catch_up(self.now);
            self.carry_out(effects);
            let reports = self.cores.plan(&self.store, self.now);
            let actions = self.planner.round(&self.store, reports, self.cores.lowest_applied(self.now), self.now);
            if actions.is_empty() {
                return;
            }
            self.write(actions);
            self.planner.written();
        }
    }

    fn write(&mut self, actions: Vec<Action>) {
        let mut next = (*self.store).clone();
        // What the leader's loops write has one writer here.
        next.apply(self.store.index() + 1, &Transaction::new(self.now, actions)).unwrap();
        self.store = Arc::new(next);
        self.commits += 1;
        if self.commits.is_multiple_of(40) {
            assert_eq!(check(&self.store), Vec::<String>::new(), "seed {}", self.seed);
        }
        self.hear(Event::StoreChanged(self.store.clone()));
    }

    fn change_leader(&mut self) {
        self.cores = LeaderCores::new(self.settings.clone(), self.store.clone(), self.now);
        self.planner = RoundPlanner::new(self.settings.clone(), self.rng.random());
        self.queue.retain(|_, (_, due)| matches!(due, Due::Heartbeat | Due::AgentStep));
        for member in &mut self.members {
            member.agent.session = None;
        }
    }

    fn connect(&mut self, n: usize, connected: bool) {
        let agent = &mut self.members[n].agent;
        if connected && !agent.connected {
            agent.session = None;
        }
        agent.connected = connected;
    }

    fn availability(&mut self, n: usize, availability: Availability) {
        let mut changed = self.store.node(&node(n + 1)).unwrap().clone();
        changed.spec.availability = availability;
        self.write(vec![Action::update(changed)]);
    }

    fn scale(&mut self, name: &str, replicas: u64) {
        let mut service = self.store.service(&name.into()).unwrap().clone();
        service.spec.mode.replicated = Some(Replicated { replicas: Some(replicas) });
        self.write(vec![Action::update(service)]);
    }

    /// A second of churn.
    fn churn(&mut self, size: &Size) {
        for _ in 0..6 {
            let n = self.rng.random_range(0..size.nodes);
            match self.rng.random_range(0..8) {
                0..=2 => self.connect(n, false),
                3 | 4 => self.availability(n, Availability::Drain),
                5 | 6 => self.availability(n, Availability::Active),
                _ => {
                    let replicas = self.rng.random_range(size.replicas * 8 / 10..=size.replicas);
                    self.scale("web", replicas);
                }
            }
        }
        // Those that are away are back after some seconds.
        for n in 0..size.nodes {
            let back = !self.members[n].agent.connected && self.rng.random_bool(0.15);
            if back {
                self.connect(n, true);
            }
        }
        self.run(SECOND);
        self.check_addresses();
    }

    /// No two containers that run have one address.
    fn check_addresses(&self) {
        let mut owners = BTreeMap::new();
        let containers = self.members.iter().flat_map(|member| member.agent.containers.values());
        for container in containers.filter(|container| container.runs()) {
            for attachment in &container.task.attachments {
                let other = owners.insert((&attachment.network_id, attachment.address.addr()), &container.task.id);
                assert!(other.is_none(), "seed {}: {} and {other:?} have one address", self.seed, container.task.id);
            }
        }
    }

    fn down(&self) -> Vec<String> {
        let down = self.store.nodes().filter(|node| node.status.state == NodeState::Down);
        down.map(|node| node.id.to_string()).collect()
    }

    fn running(&self, name: &str) -> u64 {
        let id = name.into();
        let backends = self.store.tasks_of_service(&id).filter(|task| task.is_backend());
        let here = |task: &skep::model::Task| {
            let agent = self.members.iter().find(|m| Some(&m.agent.id) == task.node_id.as_ref()).map(|m| &m.agent);
            agent.is_some_and(|agent| agent.containers.get(&task.id).is_some_and(|c| c.status.state == TaskState::Running))
        };
        backends.filter(|task| here(task)).count() as u64
    }

    /// The node has what the store says; one that hangs applies nothing.
    fn has_current_view(&self, n: usize) -> bool {
        let (wanted, agent) = (view_of(&self.store, &node(n)).unwrap(), &self.members[n - 1].agent);
        agent.hangs || (agent.cluster.as_ref() == Some(&wanted.cluster) && agent.networks == wanted.networks)
    }

    fn desired(&self, name: &str) -> u64 {
        self.store.service(&name.into()).unwrap().spec.mode.replicas()
    }
}

fn live(size: &Size, seed: u64) {
    let mut swarm = Swarm::new(size, seed);
    swarm.run(SECOND * 3);
    assert_eq!(swarm.down(), Vec::<String>::new(), "seed {seed}: at the start");
    // What hangs gets no tasks: it would keep them from running.
    for n in (0..size.nodes).filter(|n| (n + 1) % 200 == 13) {
        swarm.availability(n, Availability::Drain);
    }
    let web = service("web", size.replicas, &[(8080, 80)], &[]);
    let crash = restarting(service("crash", 5, &[], &[]), after(SECOND));
    swarm.write(vec![Action::create(web), Action::create(crash)]);
    swarm.run(SECOND * 8);
    for second in 0..size.churn {
        swarm.churn(size);
        if second % 10 == 4 {
            let away: Vec<bool> = swarm.members.iter().map(|m| !m.agent.connected).collect();
            let down = swarm.down();
            swarm.change_leader();
            swarm.run(SECOND * 5);
            let wrong: Vec<String> = swarm.down().into_iter().filter(|id| !down.contains(id)).collect();
            let connected = |id: &String| id[1..].parse().is_ok_and(|n: usize| !away[n - 1]);
            assert!(
                !wrong.iter().any(connected),
                "seed {seed}: connected nodes are down after a change of the leader: {wrong:?}"
            );
        }
    }
    for n in 0..size.nodes {
        swarm.connect(n, true);
        if (n + 1) % 200 != 13 {
            swarm.availability(n, Availability::Active);
        }
    }
    swarm.write(vec![Action::Remove(skep::store::Kind::Service, "crash".to_owned())]);
    let converged = |swarm: &Swarm| {
        swarm.down().is_empty() && swarm.running("web") == swarm.desired("web") && check_settled(&swarm.store).is_empty()
    };
    for _ in 0..60 {
        if converged(&swarm) {
            break;
        }
        swarm.run(SECOND * 3);
    }
    let (running, desired) = (swarm.running("web"), swarm.desired("web"));
    assert_eq!((swarm.down(), running), (Vec::new(), desired), "seed {seed}: {:?}", check_settled(&swarm.store));
    assert_eq!(check_settled(&swarm.store), Vec::<String>::new(), "seed {seed}");
    // A server on a slow node may have begun to listen just now: its news is on the way.
    for _ in 0..20 {
        swarm.run(SECOND * 3);
        if (1..=size.nodes).all(|n| swarm.has_current_view(n)) {
            return;
        }
    }
    let old: Vec<usize> = (1..=size.nodes).filter(|n| !swarm.has_current_view(*n)).collect();
    panic!("seed {seed}: nodes with an old view: {old:?}");
}

#[test]
fn a_thousand_nodes_with_churn_loss_slow_nodes_and_restarts_of_the_leader_converge() {
    live(&Size { nodes: 1000, replicas: 300, churn: 6 }, 1);
}

/// For `SKEP_SOAK_SECONDS`, with one seed after the other.
#[test]
#[ignore = "minutes: `make soak`"]
#[allow(clippy::disallowed_methods, clippy::print_stderr, reason = "an option of the soak, and its clock")]
fn thousands_of_tasks_on_a_thousand_nodes_for_minutes() {
    let seconds = std::env::var("SKEP_SOAK_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(600);
    let begin = std::time::Instant::now();
    for seed in 2.. {
        eprintln!("seed {seed}");
        live(&Size { nodes: 1000, replicas: 2000, churn: 60 }, seed);
        if begin.elapsed() >= Duration::from_secs(seconds) {
            break;
        }
    }
}
