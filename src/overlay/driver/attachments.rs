//! Addresses for plain containers, asked of the managers: what is needed is part of the node's reports, and what was given comes
//! with its view. Kept on disk, since containers outlive the daemon.

use super::attachment_set::AttachmentSet;
use crate::clock::Clock;
use crate::durable::{DocumentFile, UnknownFields};
use crate::model::view::NetworkPart;
use crate::model::{AttachedContainer, ContainerAttachment, NetworkId, NodeView, TaskId};
use crate::sync::{lock, replace_if_changed};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;

const FILE: DocumentFile = DocumentFile {
    name: "the file of plain containers' addresses",
    format: 1,
    unknown_fields: UnknownFields::Refused,
    if_damaged: "move it away (mv {path} {path}.bad) and start again: restart the plain containers that are on overlay networks then \
                 (docker restart), so that they get addresses again",
};

/// How long a command of a user waits for an address.
const PATIENCE: Duration = Duration::from_secs(8);
/// How long a start waits: the engine does not try again one that failed while it came up itself, when the swarm may come up too, and
/// an address that the container had until now is free once every node knows that.
const START_PATIENCE: Duration = Duration::from_secs(20);

/// Why a plain container gets no address.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    #[error("this node is in no swarm: the network {0} is left of an earlier one, remove it (docker network rm)")]
    NoSwarm(String),
    /// The managers' answer, for users.
    #[error("{0}")]
    Refused(String),
    #[error(
        "no manager of the swarm gave an address on network {network} within {} s: containers that are not tasks get theirs from a \
         manager; see skep status, and start the container again when the node is connected",
        .waited.as_secs()
    )]
    NoAnswer { network: String, waited: Duration },
    #[error(transparent)]
    File(anyhow::Error),
}

/// An address that a manager has given.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GivenAddress {
    pub network_id: NetworkId,
    pub network: NetworkPart,
    pub address: Ipv4Addr,
}

#[derive(Serialize, Deserialize)]
struct AttachmentDocument {
    format: u32,
    attachments: AttachmentSet,
}

/// The addresses of this node's plain containers.
pub struct Attachments {
    path: PathBuf,
    clock: Arc<dyn Clock>,
    set: Mutex<AttachmentSet>,
    /// Whether the file was read. One that cannot be is not written.
    loaded: AtomicBool,
    /// Held while the file is written.
    writing: tokio::sync::Mutex<()>,
    wanted: watch::Sender<Vec<ContainerAttachment>>,
    /// [`PATIENCE`], [`START_PATIENCE`], except in tests.
    patience: (Duration, Duration),
    /// The node's view; `None` while it is in no swarm.
    view: watch::Sender<Option<Arc<NodeView>>>,
}

impl Attachments {
    /// Of the file at `path`, which is not read yet: [`Self::load`].
    pub fn new(path: PathBuf, clock: Arc<dyn Clock>) -> Self {
        Self {
            path,
            clock,
            set: Mutex::default(),
            loaded: AtomicBool::new(false),
            writing: tokio::sync::Mutex::default(),
            wanted: watch::channel(Vec::new()).0,
            patience: (PATIENCE, START_PATIENCE),
            view: watch::channel(None).0,
        }
    }

    /// Reads what an earlier run wrote, unless it was read.
    ///
    /// # Errors
    /// The file is damaged, of another format or cannot be read.
    pub fn load(&self) -> anyhow::Result<()> {
        let mut set = lock(&self.set);
        if !self.loaded.load(Ordering::Relaxed) {
            if let Some(document) = FILE.load::<AttachmentDocument>(&self.path)? {
                *set = document.attachments;
                self.wanted.send_replace(set.wanted());
            }
            self.loaded.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// What the managers are to be asked for: all of it.
    pub fn wanted(&self) -> watch::Receiver<Vec<ContainerAttachment>> {
        self.wanted.subscribe()
    }

    /// The node's view is this now; `None`: it is in no swarm.
    pub fn follow(&self, view: Option<Arc<NodeView>>) {
        self.view.send_replace(view);
    }

    /// The node has left its swarm.
    ///
    /// # Errors
    /// The file cannot be written.
    pub async fn forget(&self) -> anyhow::Result<()> {
        self.follow(None);
        {
            let mut set = lock(&self.set);
            *set = AttachmentSet::default();
            // What the file says is forgotten, whether it was read or not.
            self.loaded.store(true, Ordering::Relaxed);
        }
        self.publish().await
    }

    /// Keeps an address ready on a network, by its id or name, for a container that is about to be made. What no container claims
    /// within a minute is given back.
    ///
    /// # Errors
    /// See [`AttachError`].
    pub async fn prepare(&self, network: &str, requested: Option<Ipv4Addr>) -> Result<GivenAddress, AttachError> {
        let id = lock(&self.set).prepare(network, requested, draw(), self.clock.now());
        self.obtain(&id, network, self.patience.0).await
    }

    /// The address that the engine's next container on a network gets: the one that was asked for, or any.
    ///
    /// # Errors
    /// See [`AttachError`].
    pub async fn claim(&self, network: &NetworkId, requested: Option<Ipv4Addr>) -> Result<Ipv4Addr, AttachError> {
        let id = lock(&self.set).claim(network, requested, draw(), self.clock.now());
        self.obtain(&id, network.as_str(), self.patience.1).await.map(|given| given.address)
    }

    /// True if a task of this node has the address: its container does not ask for another one.
    pub fn is_of_task(&self, network: &NetworkId, address: Ipv4Addr) -> bool {
        let view = self.view.borrow();
        let mut tasks = view.iter().flat_map(|view| view.tasks.by_id.values());
        tasks.any(|task| task.attached.is_none() && task.address_on(network) == Some(address))
    }

    /// The engine has released the address of a container.
    pub async fn release(&self, network: &NetworkId, address: Ipv4Addr) {
        if lock(&self.set).release(network, address) {
            self.publish_or_warn().await;
        }
    }

    /// Gives back what no container has; `endpoints` are those of the engine.
    pub async fn sweep(&self, endpoints: &BTreeSet<(NetworkId, Ipv4Addr)>) {
        if lock(&self.set).sweep(endpoints, self.clock.now()) {
            self.publish_or_warn().await;
        }
    }

    /// Networks whose containers are not described yet, or with `all` those that have any.
    pub fn to_describe(&self, all: bool) -> BTreeSet<NetworkId> {
        let set = lock(&self.set);
        if all { set.networks() } else { set.undescribed() }
    }

    /// The engine has these plain containers on a network, and no others.
    pub async fn observe(&self, network: &NetworkId, found: &BTreeMap<Ipv4Addr, AttachedContainer>) {
        if lock(&self.set).observe(network, found, self.clock.now()) {
            self.publish_or_warn().await;
        }
    }

    /// Asks, and waits for the answer. What was refused or not answered is asked for no longer.
    async fn obtain(&self, id: &TaskId, network: &str, patience: Duration) -> Result<GivenAddress, AttachError> {
        let given = self.ask(id, network, patience).await;
        match &given {
            Ok(given) => lock(&self.set).given(id, &given.network_id, given.address),
            Err(_) => lock(&self.set).remove(id),
        }
        let written = self.publish().await;
        let given = given?;
        written.map_err(AttachError::File)?;
        Ok(given)
    }

    async fn ask(&self, id: &TaskId, network: &str, patience: Duration) -> Result<GivenAddress, AttachError> {
        let mut view = self.view.subscribe();
        self.announce();
        let answer = tokio::time::timeout(patience, async {
            loop {
                if let Some(answer) = answer_in(view.borrow_and_update().as_deref(), id) {
                    return Some(answer);
                }
                if view.changed().await.is_err() {
                    return None;
                }
            }
        });
        match answer.await {
            Ok(Some(answer)) => answer.map_err(AttachError::Refused),
            Ok(None) | Err(_) if self.view.borrow().is_none() => Err(AttachError::NoSwarm(network.to_owned())),
            Ok(None) | Err(_) => Err(AttachError::NoAnswer { network: network.to_owned(), waited: patience }),
        }
    }

    fn announce(&self) {
        replace_if_changed(&self.wanted, lock(&self.set).wanted());
    }

    /// Reports the present state, and writes it to the file.
    async fn publish(&self) -> anyhow::Result<()> {
        self.load()?;
        self.announce();
        let _writing = self.writing.lock().await;
        let document = AttachmentDocument { format: FILE.format, attachments: lock(&self.set).clone() };
        let path = self.path.clone();
        tokio::task::spawn_blocking(move || FILE.store(&path, &document)).await?
    }

    async fn publish_or_warn(&self) {
        if let Err(error) = self.publish().await {
            tracing::warn!(error = format!("{error:#}"), "the addresses of plain containers are not on disk");
        }
    }
}

/// What the managers answered: an address, or why there is none.
fn answer_in(view: Option<&NodeView>, id: &TaskId) -> Option<Result<GivenAddress, String>> {
    let view = view?;
    let task = view.tasks.by_id.get(id)?;
    if let Some(attachment) = task.attachments.first() {
        // Task and network are parts of the same view, but an older manager may send one before the other.
        let network = view.networks.by_id.get(&attachment.network_id)?.clone();
        let (network_id, address) = (attachment.network_id.clone(), attachment.address.addr());
        return Some(Ok(GivenAddress { network_id, network, address }));
    }
    (!task.status.err.is_empty()).then(|| Err(task.status.err.clone()))
}

fn draw() -> TaskId {
    TaskId::draw(&mut rand::rng())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use crate::durable::recorded::RecordedNames;
    use crate::model::fixture;
    use crate::model::task::Attachment;
    use crate::model::view::Tasks;

    fn opened(path: PathBuf) -> Attachments {
        let all = Attachments::new(path, Arc::new(SystemClock));
        all.load().unwrap();
        all
    }

    #[test]
    fn a_file_with_every_field_is_read_and_written_the_same() {
        let recorded: serde_json::Value =
            serde_json::from_slice(include_bytes!("../../../tests/it/formats/attachments.json")).unwrap();
        let names = RecordedNames::default();
        let read = names.read::<AttachmentDocument>(&recorded).unwrap();
        assert_eq!(names.missing(), [""; 0], "record them in tests/it/formats/attachments.json");
        assert_eq!(serde_json::to_value(read).unwrap(), recorded);
    }

    /// In a swarm that has answered nothing.
    fn attachments(name: &str) -> Attachments {
        let path = std::env::temp_dir().join(format!("attachments-{name}-{}.json", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let all = opened(path);
        all.follow(Some(Arc::new(view(Vec::new()))));
        all
    }

    fn view(tasks: Vec<crate::model::Task>) -> NodeView {
        let network = fixture::network_part("back", "172.20.0.0/24".parse().unwrap(), Vec::new());
        let mut view = fixture::node_view(7, vec![network], fixture::cluster_part(vec![fixture::peer(1)]));
        let by_id = tasks.into_iter().map(|task| (task.id.clone(), Arc::new(task))).collect();
        view.tasks = Arc::new(Tasks { by_id, ..Tasks::default() });
        view
    }

    /// The task that the managers make of the only request.
    fn answered(all: &Attachments, address: Option<&str>, err: &str) -> crate::model::Task {
        let wish = all.wanted().borrow().first().cloned().expect("one");
        let mut task = wish.task(&"node1".into(), Some(&"back".into()), crate::model::Timestamp(0));
        let attachment =
            |address: &str| Attachment { network_id: "back".into(), address: format!("{address}/24").parse().unwrap() };
        task.attachments = address.map(attachment).into_iter().collect();
        err.clone_into(&mut task.status.err);
        task
    }

    #[tokio::test]
    async fn an_address_comes_with_the_view_and_is_kept_over_a_restart_until_it_is_released() {
        let all = Arc::new(attachments("given"));
        let mut wanted = all.wanted();
        let claim = tokio::spawn({
            let all = all.clone();
            async move { all.claim(&"back".into(), None).await }
        });
        wanted.changed().await.unwrap();
        assert!(!claim.is_finished());
        all.follow(Some(Arc::new(view(vec![answered(&all, Some("172.20.0.9"), "")]))));
        let address = Ipv4Addr::new(172, 20, 0, 9);
        assert_eq!(claim.await.unwrap().unwrap(), address);

        let again = opened(all.path.clone());
        assert_eq!(*again.wanted().borrow(), *all.wanted().borrow());
        again.release(&"back".into(), Ipv4Addr::new(172, 20, 0, 8)).await;
        assert_eq!(again.wanted().borrow().len(), 1, "another one");
        again.release(&"back".into(), address).await;
        assert!(again.wanted().borrow().is_empty());
        let last = opened(all.path.clone());
        assert!(last.wanted().borrow().is_empty());
        std::fs::remove_file(&all.path).unwrap();
    }

    #[tokio::test]
    async fn a_refusal_is_passed_on_and_the_request_is_gone() {
        let all = Arc::new(attachments("refused"));
        let mut wanted = all.wanted();
        let prepare = tokio::spawn({
            let all = all.clone();
            async move { all.prepare("shut", None).await }
        });
        wanted.changed().await.unwrap();
        all.follow(Some(Arc::new(view(vec![answered(&all, None, "network shut not manually attachable")]))));
        let error = prepare.await.unwrap().unwrap_err();
        assert_eq!(error.to_string(), "network shut not manually attachable");
        assert!(all.wanted().borrow().is_empty());
        std::fs::remove_file(&all.path).unwrap();
    }

    #[tokio::test]
    async fn without_an_answer_there_is_an_error_within_its_bound_and_another_one_without_a_swarm() {
        let mut all = attachments("silent");
        all.patience = (Duration::from_millis(30), Duration::from_millis(30));
        let error = all.claim(&"back".into(), None).await.unwrap_err().to_string();
        assert!(error.contains("no manager of the swarm gave an address on network back within"), "{error}");
        assert!(all.wanted().borrow().is_empty());
        all.follow(None);
        assert!(matches!(all.claim(&"back".into(), None).await, Err(AttachError::NoSwarm(_))));
        std::fs::remove_file(&all.path).unwrap();
    }

    #[test]
    fn the_address_of_a_task_is_not_asked_for_again() {
        let all = attachments("task");
        let mut task = fixture::task_with_resolvers("t1", "web", "node1", &[]);
        task.attachments = vec![Attachment { network_id: "back".into(), address: "172.20.0.5/24".parse().unwrap() }];
        all.follow(Some(Arc::new(view(vec![task]))));
        assert!(all.is_of_task(&"back".into(), Ipv4Addr::new(172, 20, 0, 5)));
        assert!(!all.is_of_task(&"back".into(), Ipv4Addr::new(172, 20, 0, 6)));
    }
}
