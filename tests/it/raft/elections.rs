//! How long elections take, on a simulated network with times: latency, disk writes, ticks out of step, managers that get the
//! processor only half of the time. Everything depends on a seed.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use skep::raft::{Core, Effect, Event, Log, MembershipChange, RaftConfig, RaftStatus};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

/// Microseconds.
type Micros = u64;
const MS: Micros = 1_000;

/// What a manager has to do.
enum Work {
    /// A tick that was due at this time.
    Tick(Micros),
    Event(Event),
}

struct TimedManager {
    disk: Log,
    core: Core,
    /// When its disk write is done.
    busy_until: Micros,
    /// Begin of its pauses.
    phase: Micros,
}

struct TimedNetwork {
    random: StdRng,
    now: Micros,
    /// By time and number.
    queue: BTreeMap<(Micros, u64), (u64, Work)>,
    numbers: u64,
    managers: BTreeMap<u64, TimedManager>,
    latency: RangeInclusive<Micros>,
    disk: RangeInclusive<Micros>,
    /// Each manager stands still in the second half of such a period.
    starved: Option<Micros>,
    /// Managers whose messages are all lost.
    cut: BTreeSet<u64>,
}

impl TimedNetwork {
    fn new(seed: u64, count: u64) -> Self {
        let mut network = Self {
            random: StdRng::seed_from_u64(seed),
            now: 0,
            queue: BTreeMap::new(),
            numbers: 0,
            managers: BTreeMap::new(),
            latency: 100..=2 * MS,
            disk: MS..=15 * MS,
            starved: None,
            cut: BTreeSet::new(),
        };
        for id in 1..=count {
            let log = if id == 1 { Log::bootstrap(1, Vec::new()) } else { Log::default() };
            network.boot(id, log);
            if id > 1 {
                let change = MembershipChange::AddVoter(id);
                network.later(0, network.leader().expect("a leader"), Work::Event(Event::Change { ticket: id, change }));
                let voters = usize::try_from(id).expect("small");
                network.run_until(10_000 * MS, |n| n.managers.values().all(|m| m.core.status().voters.len() == voters));
            }
        }
        network
    }

    fn boot(&mut self, id: u64, disk: Log) {
        let (core, effects) = Core::new(&RaftConfig::new("", id), disk.clone()).expect("starts");
        let phase = self.random.random_range(0..1_000 * MS);
        self.managers.insert(id, TimedManager { disk, core, busy_until: 0, phase });
        self.carry_out(id, effects);
        let first = self.random.random_range(0..50 * MS);
        self.later(first, id, Work::Tick(self.now + first));
    }

    fn later(&mut self, after: Micros, id: u64, work: Work) {
        self.numbers += 1;
        self.queue.insert((self.now + after, self.numbers), (id, work));
    }

    fn leader(&self) -> Option<u64> {
        let lead =
            |(id, manager): (&u64, &TimedManager)| (manager.core.status().is_leader && !self.cut.contains(id)).then_some(*id);
        self.managers.iter().find_map(lead)
    }

    fn status(&self, id: u64) -> RaftStatus {
        self.managers[&id].core.status()
    }

    /// When a manager goes on that is due now; `None` if it does so at once.
    fn paused_until(&self, id: u64) -> Option<Micros> {
        let manager = &self.managers[&id];
        let starved = self.starved.map_or(0, |period| {
            let at = (self.now + manager.phase) % period;
            if at < period / 2 { 0 } else { self.now + period - at }
        });
        Some(starved.max(manager.busy_until)).filter(|until| *until > self.now)
    }

    fn step(&mut self) {
        let ((time, _), (id, work)) = self.queue.pop_first().expect("ticks never end");
        self.now = time;
        if !self.managers.contains_key(&id) {
            return;
        }
        if let Some(until) = self.paused_until(id) {
            return self.later(until - self.now, id, work);
        }
        let event = match work {
            Work::Event(event) => event,
            Work::Tick(due) => {
                // As the thread does it: ticks that were missed are skipped.
                let next = (due + 50 * MS).max(self.now);
                self.later(next - self.now, id, Work::Tick(next));
                Event::Tick
            }
        };
        let effects = self.managers.get_mut(&id).expect("manager").core.handle([event]).expect("no core fails");
        self.carry_out(id, effects);
    }

    fn carry_out(&mut self, id: u64, effects: Vec<Effect>) {
        let mut spent = 0;
        for effect in effects {
            match effect {
                Effect::Persist(batch) => {
                    self.managers.get_mut(&id).expect("manager").disk.write(&batch);
                    spent += self.random.random_range(self.disk.clone());
                }
                Effect::Send { to, message } => {
                    let latency = self.random.random_range(self.latency.clone());
                    if !self.cut.contains(&id) && !self.cut.contains(&to) {
                        self.later(spent + latency, to, Work::Event(Event::Message { from: id, bytes: message }));
                    }
                }
                Effect::Snapshot { index } => self.later(spent, id, Work::Event(Event::Snapshot { index, bytes: Vec::new() })),
                _ => {}
            }
        }
        self.managers.get_mut(&id).expect("manager").busy_until = self.now + spent;
    }

    /// The time that it took.
    fn run_until(&mut self, limit: Micros, done: impl Fn(&Self) -> bool) -> Micros {
        let begin = self.now;
        while !done(self) {
            assert!(self.now < begin + limit, "not within {} ms: {:?}", limit / MS, self.managers.keys());
            self.step();
        }
        self.now - begin
    }

    fn run_for(&mut self, time: Micros) {
        let end = self.now + time;
        self.run_until(time + 1_000 * MS, |n| n.now >= end);
    }
}

/// How a leader is lost.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Loss {
    /// Its process ends: its host refuses connections, which the others find out some milliseconds later.
    Killed,
    /// Its packets vanish.
    Cut,
}

/// Times until another leads, sorted, and how many terms were used in all.
fn failovers(managers: u64, loss: Loss, seeds: u64) -> (Vec<Micros>, u64) {
    let (mut times, mut terms) = (Vec::new(), 0);
    for seed in 0..seeds {
        let mut network = TimedNetwork::new(seed, managers);
        let running = network.random.random_range(500..1_500) * MS;
        network.run_for(running);
        let leader = network.leader().expect("a leader");
        let term = network.status(leader).term;
        match loss {
            Loss::Cut => drop(network.cut.insert(leader)),
            Loss::Killed => {
                network.managers.remove(&leader);
                for id in network.managers.keys().copied().collect::<Vec<_>>() {
                    let after = network.random.random_range(MS..=30 * MS);
                    network.later(after, id, Work::Event(Event::Ended(leader)));
                }
            }
        }
        times.push(network.run_until(10_000 * MS, |n| n.leader().is_some()));
        let next = network.status(network.leader().expect("a leader"));
        // Where votes were split another one may have led for a moment, and is heard.
        if next.term == term + 1 {
            assert_eq!(next.lost_leader, Some(leader), "seed {seed}: whose place {next:?} took");
        }
        terms += next.term - term;
    }
    times.sort_unstable();
    (times, terms)
}

fn percentile(sorted: &[Micros], percent: usize) -> Micros {
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)] / MS
}

#[test]
fn a_lost_leader_is_replaced_in_time_and_votes_are_not_split() {
    // Milliseconds: median, 99 of 100.
    for (managers, loss, median, most) in
        [(3, Loss::Killed, 150, 300), (5, Loss::Killed, 150, 300), (3, Loss::Cut, 500, 800), (5, Loss::Cut, 500, 800)]
    {
        let (times, terms) = failovers(managers, loss, 200);
        let (p50, p99) = (percentile(&times, 50), percentile(&times, 99));
        let what = if loss == Loss::Killed { "killed" } else { "cut" };
        println!("{managers} managers, leader {what}: p50 {p50} ms, p99 {p99} ms, {terms} terms for {} elections", times.len());
        assert!(p50 <= median && p99 <= most, "{managers} managers, {what}: {p50} ms, {p99} ms");
        assert!(terms <= 204, "{terms} terms for 200 elections: votes were split");
    }
}

#[test]
fn managers_that_get_half_of_the_processor_keep_their_leader() {
    for period in [20, 100, 200] {
        for seed in 0..10 {
            let mut network = TimedNetwork::new(seed, 3);
            let leader = network.leader().expect("a leader");
            let term = network.status(leader).term;
            network.starved = Some(period * MS);
            for _ in 0..30 {
                network.run_for(1_000 * MS);
                for id in 1..=3 {
                    assert_eq!(network.status(id).term, term, "an election with pauses of {} ms, seed {seed}", period / 2);
                }
            }
            assert!(network.status(leader).is_leader);
        }
    }
}

#[test]
fn a_wrong_report_of_a_leaders_end_changes_nothing() {
    for seed in 0..50 {
        let mut network = TimedNetwork::new(seed, 3);
        let leader = network.leader().expect("a leader");
        let term = network.status(leader).term;
        let follower = leader % 3 + 1;
        network.later(0, follower, Work::Event(Event::Ended(leader)));
        network.run_for(2_000 * MS);
        assert_eq!(network.leader(), Some(leader), "the other follower hears the leader and refuses");
        assert_eq!((network.status(follower).leader, network.status(follower).term), (Some(leader), term));
    }
}

#[test]
fn a_leader_that_asks_another_to_lead_is_not_lost_and_one_that_is_cut_off_after_that_is() {
    for seed in 0..50 {
        let mut network = TimedNetwork::new(seed, 3);
        let first = network.leader().expect("a leader");
        assert_eq!(network.status(first).lost_leader, None, "it led first");
        network.later(0, first, Work::Event(Event::TransferLeadership));
        network.run_until(2_000 * MS, |n| n.leader().is_some_and(|leader| leader != first));
        let second = network.leader().expect("a leader");
        assert_eq!(network.status(second).lost_leader, None, "it was asked to lead");
        network.run_for(500 * MS);
        assert_eq!(network.status(first).lost_leader, None, "it follows");
        network.cut.insert(second);
        network.run_until(10_000 * MS, |n| n.leader().is_some());
        let third = network.leader().expect("a leader");
        assert_eq!(network.status(third).lost_leader, Some(second));
    }
}
