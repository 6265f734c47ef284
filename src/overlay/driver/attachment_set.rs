//! The addresses that this node needs for plain containers, as data: what is asked of the managers, what they gave, and whether a
//! container has taken it. Pure; time and ids are passed in.

use crate::model::{AttachedContainer, ContainerAttachment, NetworkId, TaskId, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

/// An address that no container has taken after this time is given back.
pub const UNCLAIMED: Duration = Duration::from_mins(1);

/// One address, asked for or given.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HeldAddress {
    pub attachment: ContainerAttachment,
    /// What the managers gave; `None` until then.
    pub address: Option<Ipv4Addr>,
    /// The engine has asked for it. Until then it is kept ready for the container that is being made.
    pub claimed: bool,
    /// When it was asked for or claimed.
    pub since: Timestamp,
}

/// All of them, by the id of their task.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AttachmentSet {
    held: BTreeMap<TaskId, HeldAddress>,
}

impl AttachmentSet {
    /// Keeps an address ready on a network, by its id or name: one that is ready already counts. Returns the id of its task, which is
    /// `new` for a new one.
    pub fn prepare(&mut self, network: &str, requested: Option<Ipv4Addr>, new: TaskId, now: Timestamp) -> TaskId {
        self.find_or_add(network, requested, new, now).0
    }

    /// As [`Self::prepare`], for a container that takes the address now.
    pub fn claim(&mut self, network: &NetworkId, requested: Option<Ipv4Addr>, new: TaskId, now: Timestamp) -> TaskId {
        let (id, held) = self.find_or_add(network.as_str(), requested, new, now);
        (held.claimed, held.since) = (true, now);
        id
    }

    fn find_or_add(
        &mut self,
        network: &str,
        requested: Option<Ipv4Addr>,
        new: TaskId,
        now: Timestamp,
    ) -> (TaskId, &mut HeldAddress) {
        let is_ready = |held: &HeldAddress| {
            !held.claimed && held.attachment.network == network && held.attachment.container.requested == requested
        };
        let id = self.held.iter().find(|(_, held)| is_ready(held)).map_or(new, |(id, _)| id.clone());
        let held = self.held.entry(id.clone()).or_insert_with(|| {
            let container = AttachedContainer { requested, ..AttachedContainer::default() };
            let attachment = ContainerAttachment { id: id.clone(), network: network.to_owned(), container };
            HeldAddress { attachment, address: None, claimed: false, since: now }
        });
        if !held.claimed {
            held.since = now;
        }
        (id, held)
    }

    /// The managers gave an address, on the network with this id.
    pub fn given(&mut self, id: &TaskId, network: &NetworkId, address: Ipv4Addr) {
        if let Some(held) = self.held.get_mut(id) {
            network.as_str().clone_into(&mut held.attachment.network);
            held.address = Some(address);
        }
    }

    /// Not needed any more.
    pub fn remove(&mut self, id: &TaskId) {
        self.held.remove(id);
    }

    /// The engine has released the address; false if it was none of these.
    pub fn release(&mut self, network: &NetworkId, address: Ipv4Addr) -> bool {
        let before = self.held.len();
        self.held.retain(|_, held| !(held.claimed && held.is_at(network, address)));
        self.held.len() != before
    }

    /// The engine has these plain containers on a network, and no others: what is known of them is set, and the addresses of those
    /// that it does not have any more are given back. Says whether that changed anything.
    pub fn observe(&mut self, network: &NetworkId, found: &BTreeMap<Ipv4Addr, AttachedContainer>, now: Timestamp) -> bool {
        let mut news = false;
        self.held.retain(|_, held| {
            let Some(address) = held.address.filter(|_| held.claimed && held.attachment.network == network.as_str()) else {
                return true;
            };
            let Some(container) = found.get(&address) else {
                // One that was claimed just now may not have joined yet.
                let keep = now.since(held.since) < UNCLAIMED;
                news |= !keep;
                return keep;
            };
            let container = AttachedContainer { requested: held.attachment.container.requested, ..container.clone() };
            news |= held.attachment.container != container;
            held.attachment.container = container;
            true
        });
        news
    }

    /// Gives back what no container has: `endpoints` are the addresses of the engine's endpoints. Says whether that changed anything.
    pub fn sweep(&mut self, endpoints: &BTreeSet<(NetworkId, Ipv4Addr)>, now: Timestamp) -> bool {
        let before = self.held.len();
        self.held.retain(|_, held| {
            let network = NetworkId::from(held.attachment.network.as_str());
            let in_use = held.claimed && held.address.is_some_and(|address| endpoints.contains(&(network, address)));
            // Also if the clock was set back.
            in_use || (now.since(held.since) < UNCLAIMED && held.since <= now)
        });
        self.held.len() != before
    }

    /// Networks on which a container is not described yet.
    pub fn undescribed(&self) -> BTreeSet<NetworkId> {
        let unknown =
            self.held.values().filter(|held| held.claimed && held.address.is_some() && held.attachment.container.name.is_empty());
        unknown.map(|held| held.attachment.network.as_str().into()).collect()
    }

    /// Networks on which containers have addresses.
    pub fn networks(&self) -> BTreeSet<NetworkId> {
        self.held.values().filter(|held| held.claimed).map(|held| held.attachment.network.as_str().into()).collect()
    }

    /// What the managers are asked for.
    pub fn wanted(&self) -> Vec<ContainerAttachment> {
        self.held.values().map(HeldAddress::reported).collect()
    }
}

impl HeldAddress {
    /// A container that runs keeps its address, also with managers that do not know of it: after a restore, or a long absence.
    fn reported(&self) -> ContainerAttachment {
        let mut reported = self.attachment.clone();
        reported.container.requested = reported.container.requested.or(self.address.filter(|_| self.claimed));
        reported
    }

    fn is_at(&self, network: &NetworkId, address: Ipv4Addr) -> bool {
        self.attachment.network == network.as_str() && self.address == Some(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    fn at(seconds: i64) -> Timestamp {
        Timestamp(seconds * SECOND)
    }

    fn address(text: &str) -> Ipv4Addr {
        text.parse().unwrap()
    }

    #[test]
    fn what_was_prepared_by_name_is_claimed_by_id_once() {
        let mut set = AttachmentSet::default();
        let (back, first) = (NetworkId::from("n1"), TaskId::from("t1"));
        assert_eq!(set.prepare("back", None, first.clone(), at(0)), first);
        assert_eq!(set.prepare("back", None, "t2".into(), at(1)), first, "one that is ready is enough");
        set.given(&first, &back, address("172.20.3.4"));
        assert!(!set.release(&back, address("172.20.3.4")), "no container has it yet");
        assert_eq!(set.wanted()[0].container.requested, None, "another one would do");
        assert_eq!(set.claim(&back, None, "t3".into(), at(2)), first);
        let kept = set.wanted()[0].container.requested;
        assert_eq!(kept, Some(address("172.20.3.4")), "it runs with that, whatever the managers know");
        assert_eq!(set.claim(&back, None, "t4".into(), at(3)), TaskId::from("t4"), "it is taken");
        assert_eq!(set.wanted().len(), 2);
        assert!(set.release(&back, address("172.20.3.4")));
        assert_eq!(set.wanted().iter().map(|w| w.id.as_str()).collect::<Vec<_>>(), ["t4"]);
    }

    #[test]
    fn an_address_that_a_user_asked_for_is_not_given_to_another_container() {
        let mut set = AttachmentSet::default();
        let wanted = Some(address("192.168.7.9"));
        set.prepare("n1", wanted, "t1".into(), at(0));
        assert_eq!(set.claim(&"n1".into(), None, "t2".into(), at(0)), TaskId::from("t2"));
        assert_eq!(set.claim(&"n1".into(), wanted, "t3".into(), at(0)), TaskId::from("t1"));
        assert_eq!(set.wanted()[0].container.requested, wanted);
    }

    #[test]
    fn what_no_container_has_is_given_back_after_a_minute() {
        let mut set = AttachmentSet::default();
        let back = NetworkId::from("n1");
        set.prepare("n1", None, "ready".into(), at(0));
        set.claim(&back, Some(address("10.9.0.7")), "used".into(), at(0));
        set.given(&"used".into(), &back, address("10.9.0.7"));
        let endpoints = BTreeSet::from([(back.clone(), address("10.9.0.7"))]);
        assert!(!set.sweep(&endpoints, at(59)));
        assert!(set.sweep(&endpoints, at(60)));
        assert_eq!(set.wanted().iter().map(|w| w.id.as_str()).collect::<Vec<_>>(), ["used"]);
        assert!(set.sweep(&BTreeSet::new(), at(61)), "its endpoint is gone, and the engine did not release the address");
        assert_eq!(set, AttachmentSet::default());
    }

    #[test]
    fn a_container_is_described_until_the_engine_has_it_no_more() {
        let mut set = AttachmentSet::default();
        let (back, wanted) = (NetworkId::from("n1"), address("10.9.0.7"));
        set.claim(&back, Some(wanted), "t1".into(), at(0));
        assert!(set.undescribed().is_empty(), "it has no address yet");
        set.given(&"t1".into(), &back, wanted);
        assert_eq!(set.undescribed(), BTreeSet::from([back.clone()]));
        assert!(!set.observe(&back, &BTreeMap::new(), at(1)), "it has not joined yet");
        let container = AttachedContainer { id: "c".to_owned(), name: "c1".to_owned(), ..AttachedContainer::default() };
        let found = BTreeMap::from([(wanted, container)]);
        assert!(set.observe(&back, &found, at(2)));
        assert!(!set.observe(&back, &found, at(200)), "nothing new");
        assert!(!set.observe(&"other".into(), &BTreeMap::new(), at(200)), "another network");
        assert!(set.undescribed().is_empty());
        assert_eq!((set.wanted()[0].container.requested, set.wanted()[0].container.name.as_str()), (Some(wanted), "c1"));
        assert!(set.observe(&back, &BTreeMap::new(), at(200)), "it ended while skep was away");
        assert_eq!(set, AttachmentSet::default());
    }
}
