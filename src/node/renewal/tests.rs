//! The loop under a simulated clock, with a CA whose answers the tests choose.

use super::*;
use crate::model::{ClusterId, NodeId, Role, Timestamp};
use crate::sync::lock;
use crate::trust::{NodeName, RootCa, issue};
use futures_util::future::BoxFuture;
use std::collections::BTreeMap;
use std::sync::Mutex;
use tokio::sync::{Notify, oneshot};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_mins(1);
const START: Timestamp = Timestamp(1_795_000_000_000_000_000);

/// Time that passes only when every loop waits for it.
#[derive(Default)]
struct Simulation {
    state: Mutex<SimulatedTime>,
    changed: Notify,
}

#[derive(Default)]
struct SimulatedTime {
    now: Duration,
    /// By deadline and number.
    sleepers: BTreeMap<(Duration, usize), oneshot::Sender<()>>,
    slept: usize,
}

impl Simulation {
    fn now(&self) -> Duration {
        lock(&self.state).now
    }

    /// Lets time pass; `each` is called whenever all of `loops` loops wait.
    async fn pass(&self, time: Duration, loops: usize, mut each: impl FnMut()) {
        let end = self.now() + time;
        while self.now() < end {
            while lock(&self.state).sleepers.len() < loops {
                self.changed.notified().await;
            }
            each();
            let mut state = lock(&self.state);
            let next = state.sleepers.first_key_value().map_or(end, |((deadline, _), _)| *deadline).min(end);
            state.now = next;
            while state.sleepers.first_key_value().is_some_and(|((deadline, _), _)| *deadline <= next) {
                let (_, waker) = state.sleepers.pop_first().unwrap();
                let _ = waker.send(());
            }
        }
    }
}

/// A clock of the simulation; wrong by so many seconds.
#[derive(Clone)]
struct Simulated(Arc<Simulation>, i64);

impl Clock for Simulated {
    fn now(&self) -> Timestamp {
        Timestamp(START.plus(self.0.now()).0 + self.1 * 1_000_000_000)
    }

    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        let (waker, woken) = oneshot::channel();
        let mut state = lock(&self.0.state);
        state.slept += 1;
        let key = (state.now + time, state.slept);
        state.sleepers.insert(key, waker);
        self.0.changed.notify_one();
        Box::pin(async move {
            let _ = woken.await;
        })
    }
}

/// A CA, by its own clock.
struct Ca {
    root: RootCa,
    clock: Simulated,
    life: Mutex<Duration>,
    /// The role that it has for every node.
    role: Mutex<Role>,
    /// Why it refuses.
    refuses: Mutex<Option<&'static str>>,
    asked: Mutex<Vec<Timestamp>>,
}

impl Ca {
    fn new(clock: Simulated, life: Duration) -> Arc<Self> {
        let root = RootCa::generate(&mut rand::rng(), clock.now()).unwrap();
        Arc::new(Self {
            root,
            clock,
            life: Mutex::new(life),
            role: Mutex::default(),
            refuses: Mutex::default(),
            asked: Mutex::default(),
        })
    }

    fn sign(&self, csr: &str, node_id: &NodeId) -> String {
        let name = NodeName { node_id: node_id.clone(), role: *lock(&self.role), cluster_id: ClusterId::from("cluster") };
        issue(&self.root, csr, &name, self.clock.now(), *lock(&self.life), &mut rand::rng()).unwrap()
    }

    fn identity(&self, node_id: &str) -> Identity {
        let key = NodeKey::generate().unwrap();
        let certificate = self.sign(&key.request().unwrap(), &node_id.into());
        Identity::new(&key.to_pem(), &certificate, self.root.certificate()).unwrap()
    }
}

#[async_trait]
impl CertificateSource for Arc<Ca> {
    async fn certificate(&self, current: &Identity, request: RenewalRequest, _: bool) -> anyhow::Result<RenewedCertificate> {
        lock(&self.asked).push(self.clock.now());
        if let Some(why) = *lock(&self.refuses) {
            anyhow::bail!(why);
        }
        let certificate = self.sign(&request.csr, current.node_id());
        Ok(RenewedCertificate {
            certificate,
            ca_certificate: self.root.certificate().to_owned(),
            chain: Vec::new(),
            unlock_key: None,
        })
    }
}

/// A node with a running loop.
struct Node {
    identity: watch::Receiver<Arc<Identity>>,
    role: watch::Sender<Role>,
    state: watch::Receiver<RenewalState>,
    files: CertificateFiles,
    clock: Simulated,
    stop: CancellationToken,
    _dir: TempDir,
}

struct TempDir(std::path::PathBuf);

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Node {
    fn start(name: &str, ca: &Arc<Ca>, clock: Simulated) -> Self {
        let dir = std::env::temp_dir().join(format!("skep-renewal-{name}-{}", std::process::id()));
        let files = CertificateFiles::new(dir.join("certificates"));
        let (sender, identity) = watch::channel(Arc::new(ca.identity(name)));
        files.store(&identity.borrow()).unwrap();
        let (state_sender, state) = watch::channel(RenewalState::default());
        let (source, stop) = (ca.clone(), CancellationToken::new());
        let (role_sender, role) = watch::channel(identity.borrow().role());
        let issuer = IssuerWatch { view: watch::channel(None).1, session: watch::channel(crate::rpc::SessionState::default()).1 };
        let renewal = Renewal {
            clock: Arc::new(clock.clone()),
            identity: sender,
            role,
            issuer,
            source,
            files: files.clone(),
            state: state_sender,
        };
        tokio::spawn(renewal.run(stop.clone()));
        Self { identity, role: role_sender, state, files, clock, stop, _dir: TempDir(dir) }
    }

    fn is_valid_for(&self, clock: &Simulated) -> bool {
        let validity = self.identity.borrow().validity();
        validity.not_before <= clock.now() && !validity.is_over(clock.now())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

#[tokio::test]
async fn certificates_of_two_minutes_are_renewed_in_time_for_ten() {
    let time = Arc::new(Simulation::default());
    let clock = Simulated(time.clone(), 0);
    let ca = Ca::new(clock.clone(), 2 * MINUTE);
    let node = Node::start("two-minutes", &ca, clock.clone());
    let first = node.identity.borrow().clone();
    time.pass(10 * MINUTE, 1, || assert!(node.is_valid_for(&clock), "after {:?}", time.now())).await;
    let asked = lock(&ca.asked).clone();
    assert!((6..=10).contains(&asked.len()), "each after 60 to 96 s: {asked:?}");
    for pair in asked.windows(2) {
        let between = pair[1].since(pair[0]);
        assert!((59 * SECOND..=98 * SECOND).contains(&between), "{between:?}");
    }
    let now = node.identity.borrow().clone();
    assert_ne!(now.key(), first.key(), "each certificate has a key of its own");
    let stored = node.files.load(None).unwrap().unwrap();
    assert_eq!(stored, *now, "what is used is on disk");
}

#[tokio::test]
async fn clocks_five_minutes_apart_see_each_others_certificates_of_an_hour_as_valid() {
    let time = Arc::new(Simulation::default());
    let at = |seconds| Simulated(time.clone(), seconds);
    let ca = Ca::new(at(0), 60 * MINUTE);
    let nodes = [("ahead", 300), ("behind", -300), ("right", 0)].map(|(name, off)| Node::start(name, &ca, at(off)));
    let check = || {
        for node in &nodes {
            for other in &nodes {
                assert!(node.is_valid_for(&other.clock), "{:?} after {:?}", node.identity.borrow(), time.now());
            }
        }
    };
    time.pass(6 * 60 * MINUTE, nodes.len(), check).await;
    let asked = lock(&ca.asked).len();
    assert!((3 * 6..3 * 15).contains(&asked), "no node asks all the time: {asked}");
}

#[tokio::test]
async fn failures_are_reported_and_end_with_a_success_even_after_the_end() {
    let time = Arc::new(Simulation::default());
    let clock = Simulated(time.clone(), 0);
    let ca = Ca::new(clock.clone(), 60 * MINUTE);
    let node = Node::start("failures", &ca, clock.clone());
    *lock(&ca.refuses) = Some("no manager answers");
    time.pass(90 * MINUTE, 1, || {}).await;
    let state = node.state.borrow().clone();
    assert_eq!(state.error.as_deref(), Some("no manager answers"));
    assert!(!node.is_valid_for(&clock));
    assert!(state.failures > 10, "{state:?}");
    *lock(&ca.refuses) = None;
    time.pass(6 * SECOND, 1, || {}).await;
    assert!(node.is_valid_for(&clock), "an operator waits for seconds, not minutes");
    assert_eq!(*node.state.borrow(), RenewalState::default());
}

#[tokio::test]
async fn a_clock_that_is_days_ahead_causes_no_hot_loop() {
    let time = Arc::new(Simulation::default());
    let ca = Ca::new(Simulated(time.clone(), 0), 60 * MINUTE);
    let _node = Node::start("days-ahead", &ca, Simulated(time.clone(), 10 * 86_400));
    time.pass(60 * MINUTE, 1, || {}).await;
    let asked = lock(&ca.asked).len();
    assert!((1..=5).contains(&asked), "{asked}");
}

#[tokio::test]
async fn a_changed_expiry_is_the_life_of_the_next_certificate() {
    let time = Arc::new(Simulation::default());
    let clock = Simulated(time.clone(), 0);
    let ca = Ca::new(clock.clone(), 60 * MINUTE);
    let node = Node::start("changed", &ca, clock);
    *lock(&ca.life) = 240 * MINUTE;
    assert_eq!(node.identity.borrow().validity().life(), 60 * MINUTE, "the certificate in use stays");
    time.pass(50 * MINUTE, 1, || {}).await;
    assert_eq!(node.identity.borrow().validity().life(), 240 * MINUTE);
}

#[tokio::test]
async fn a_node_whose_role_changes_gets_another_certificate_at_once() {
    let time = Arc::new(Simulation::default());
    let clock = Simulated(time.clone(), 0);
    let ca = Ca::new(clock.clone(), 60 * MINUTE);
    let node = Node::start("role", &ca, clock);
    // The view is ahead of the manager that is asked.
    node.role.send_replace(Role::Manager);
    time.pass(SECOND, 1, || {}).await;
    assert_eq!(node.identity.borrow().role(), Role::Worker);
    assert!(node.state.borrow().error.as_ref().is_some_and(|why| why.contains("does not know yet")), "{:?}", node.state.borrow());
    *lock(&ca.role) = Role::Manager;
    time.pass(6 * SECOND, 1, || {}).await;
    assert_eq!(node.identity.borrow().role(), Role::Manager);
    // And back, although that certificate is new.
    *lock(&ca.role) = Role::Worker;
    node.role.send_replace(Role::Worker);
    let mut identity = node.identity.clone();
    identity.wait_for(|identity| identity.role() == Role::Worker).await.expect("without waiting for a part of its life");
}

#[tokio::test]
async fn a_role_that_turns_back_is_followed_without_the_pause_after_a_failure() {
    let time = Arc::new(Simulation::default());
    let clock = Simulated(time.clone(), 0);
    let ca = Ca::new(clock.clone(), 60 * MINUTE);
    *lock(&ca.role) = Role::Manager;
    let node = Node::start("turns-back", &ca, clock);
    // Demoted, as the node knows; promoted again, as the manager that is asked knows.
    node.role.send_replace(Role::Worker);
    time.pass(20 * MINUTE, 1, || {}).await;
    assert!(node.state.borrow().failures > 3, "{:?}", node.state.borrow());
    let first = node.identity.borrow().clone();
    node.role.send_replace(Role::Manager);
    let mut identity = node.identity.clone();
    identity.wait_for(|now| now.key() != first.key()).await.expect("renewed before any time has passed");
    assert_eq!((node.state.borrow().failures, time.now()), (0, 20 * MINUTE));
}
