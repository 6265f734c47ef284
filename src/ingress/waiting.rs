//! Connections and requests that wait for a task of a service that has none: how many, so that the service gets one, and no more than
//! there may be.

use crate::model::ServiceId;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How long one waits.
pub const WAIT: Duration = Duration::from_mins(1);
/// Pause between attempts to reach a task that runs and does not listen yet.
pub const RETRY: Duration = Duration::from_millis(100);
/// How many of a service wait on this node at most.
const MOST_OF_SERVICE: u64 = 512;
/// How many of all services.
const MOST: u64 = 4096;

/// Those that wait on this node, by service.
#[derive(Debug)]
pub struct WaitingRoom {
    counts: watch::Sender<BTreeMap<ServiceId, u64>>,
}

/// One that waits, until this is dropped.
#[derive(Debug)]
pub struct WaitingPlace {
    room: Arc<WaitingRoom>,
    service: ServiceId,
}

impl WaitingRoom {
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self { counts: watch::channel(BTreeMap::new()).0 })
    }

    /// One more that waits for a task of the service; `None` if there is no room.
    #[must_use]
    pub fn enter(self: &Arc<Self>, service: &ServiceId) -> Option<WaitingPlace> {
        let has_entered = self.counts.send_if_modified(|counts| {
            let (all, of_service) = (counts.values().sum::<u64>(), counts.get(service).copied().unwrap_or(0));
            let has_room = all < MOST && of_service < MOST_OF_SERVICE;
            if has_room {
                counts.insert(service.clone(), of_service + 1);
            }
            has_room
        });
        has_entered.then(|| WaitingPlace { room: self.clone(), service: service.clone() })
    }

    /// How many wait, by service.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<BTreeMap<ServiceId, u64>> {
        self.counts.subscribe()
    }

    /// The same now.
    #[must_use]
    pub fn read(&self) -> BTreeMap<ServiceId, u64> {
        self.counts.borrow().clone()
    }
}

impl Drop for WaitingPlace {
    fn drop(&mut self) {
        self.room.counts.send_modify(|counts| match counts.get_mut(&self.service) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(counts.remove(&self.service)),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_wait_are_counted_by_service_and_bounded() {
        let room = WaitingRoom::new();
        let (web, db) = (ServiceId::from("web"), ServiceId::from("db"));
        let all: Vec<_> = (0..1000).filter_map(|_| room.enter(&web)).collect();
        let other = room.enter(&db);
        assert!(other.is_some(), "one service does not take the room of another");
        assert_eq!(room.read(), [(db.clone(), 1), (web.clone(), MOST_OF_SERVICE)].into());
        drop(other);
        assert_eq!(room.read(), [(web.clone(), MOST_OF_SERVICE)].into());
        drop(all);
        assert_eq!(room.read(), BTreeMap::new());
        let services: Vec<ServiceId> = (0..50).map(|n| format!("s{n}").as_str().into()).collect();
        let entered = services.iter().flat_map(|service| (0..500).filter_map(|_| room.enter(service)));
        assert_eq!(entered.collect::<Vec<_>>().len(), usize::try_from(MOST).unwrap());
    }
}
