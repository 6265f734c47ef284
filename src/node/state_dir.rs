//! The data directory: the only place that knows the names in it, and the file of the membership, `node.json`.
//!
//! | name | what | written by |
//! |---|---|---|
//! | `lock` | held while a daemon runs | this file |
//! | `node.json` | the membership | this file |
//! | `left.json` | the membership that the node has left, until everything of it is taken down | this file |
//! | `certificates/` | the node's identity | [`CertificateFiles`] |
//! | `manager.key` | what encrypts the log; while the swarm locks its managers also the certificate's key, and it is itself encrypted | `keyring` |
//! | `tunnel.key` | WireGuard private key | `datapath::tunnel` |
//! | `tunnel.key.next`, `tunnel.key.previous` | the other one, while the node changes its key | `key_files` |
//! | `ledger.json` | the last view | [`Ledger`] |
//! | `endpoints.json` | endpoints of the network driver | `overlay::driver` |
//! | `attachments.json` | addresses of plain containers | `overlay::driver` |
//! | `raft/` | log and snapshots, on managers | `raft` |
//! | `backup.content` | a backup that an earlier build was making; removed at a start | nothing |

use super::address::ListenAddresses;
use crate::agent::ledger::Ledger;
use crate::durable::{DocumentFile, UnknownFields, ignore_missing};
use crate::model::view::Peer;
use crate::model::{ClusterId, NodeId, Role, mesh::MeshPrefix, node::NodeDescription};
use crate::raft::Disk;
use crate::trust::CertificateFiles;
use anyhow::Context as _;
use ipnet::Ipv6Net;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// The data directory of a daemon.
#[derive(Clone, Debug)]
pub(super) struct StateDir {
    path: PathBuf,
}

impl StateDir {
    pub(super) fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
    fn membership(&self) -> PathBuf {
        self.path.join("node.json")
    }
    pub(super) fn has_membership(&self) -> bool {
        self.membership().exists()
    }
    fn left(&self) -> PathBuf {
        self.path.join("left.json")
    }
    /// The membership was left, and not everything of it is taken down.
    pub(super) fn is_left(&self) -> bool {
        self.left().exists()
    }
    /// From now on the membership is one that was left, also after a power cut.
    ///
    /// # Errors
    /// The disk is broken; the membership may be resumed by the next run of the daemon.
    pub(super) fn mark_left(&self) -> anyhow::Result<()> {
        let renamed = std::fs::rename(self.membership(), self.left());
        let marked = ignore_missing(renamed).and_then(|()| File::open(&self.path)?.sync_all());
        marked.with_context(|| format!("cannot mark the membership in {} as left", self.path.display()))
    }
    pub(super) fn tunnel_key(&self) -> PathBuf {
        self.path.join("tunnel.key")
    }
    pub(super) fn next_tunnel_key(&self) -> PathBuf {
        self.path.join("tunnel.key.next")
    }
    pub(super) fn previous_tunnel_key(&self) -> PathBuf {
        self.path.join("tunnel.key.previous")
    }
    pub(super) fn manager_key(&self) -> PathBuf {
        self.path.join("manager.key")
    }
    pub(super) fn ledger(&self) -> Ledger {
        Ledger::new(self.path.join("ledger.json"))
    }
    pub(super) fn endpoints(&self) -> PathBuf {
        self.path.join("endpoints.json")
    }
    pub(super) fn attachments(&self) -> PathBuf {
        self.path.join("attachments.json")
    }
    pub(super) fn certificates(&self) -> CertificateFiles {
        CertificateFiles::new(self.path.join("certificates"))
    }
    /// Where earlier builds wrote a backup's content.
    fn backup(&self) -> PathBuf {
        self.path.join("backup.content")
    }
    pub(super) fn raft(&self) -> PathBuf {
        self.path.join("raft")
    }

    /// Locks the directory for this daemon, until the returned file is dropped.
    ///
    /// # Errors
    /// The directory cannot be written, or another daemon has it.
    pub(super) fn lock(&self) -> anyhow::Result<File> {
        let path = self.path.join("lock");
        let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
            .with_context(|| format!("another skep daemon runs on {}", self.path.display()))?;
        Ok(file)
    }

    /// Removes what runs that were cut short left beside the files, some of it in the clear on a manager that is locked. Before anything
    /// writes to the directory.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub(super) fn remove_leftovers(&self) -> anyhow::Result<()> {
        let backup = self.backup();
        ignore_missing(std::fs::remove_file(&backup)).with_context(|| format!("cannot remove {}", backup.display()))?;
        self.certificates().remove_leftover()?;
        Ok(Disk::remove_leftover(&self.raft())?)
    }

    /// Removes everything of a membership; missing files are no error. The lock stays.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub(super) fn forget(&self) -> anyhow::Result<()> {
        // The membership first: without it the rest is unused, and replaced by the next membership.
        let (ledger, endpoints, attachments) = (self.ledger().path().to_owned(), self.endpoints(), self.attachments());
        let keys = [self.tunnel_key(), self.next_tunnel_key(), self.previous_tunnel_key(), self.manager_key()];
        for path in [self.membership(), ledger, endpoints, attachments, self.backup()].into_iter().chain(keys) {
            ignore_missing(std::fs::remove_file(&path)).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        self.certificates().remove()?;
        let raft = self.raft();
        ignore_missing(std::fs::remove_dir_all(&raft)).with_context(|| format!("cannot remove {}", raft.display()))?;
        // Last: as long as it is there, a daemon that is started again takes down what is left.
        let left = self.left();
        ignore_missing(std::fs::remove_file(&left)).with_context(|| format!("cannot remove {}", left.display()))
    }
}

const FILE: DocumentFile = DocumentFile {
    name: "the membership",
    format: 1,
    unknown_fields: UnknownFields::Refused,
    if_damaged: "restore it from a backup; if other managers are up, run `skep leave --force` and join again instead",
};

/// What a cluster assigns to a node.
pub(super) struct NodeAssignment {
    pub node_id: NodeId,
    pub role: Role,
    pub cluster_id: ClusterId,
    pub mesh: MeshPrefix,
    pub subnet: Ipv6Net,
    pub ingress_addr: Ipv4Addr,
    /// Id in the raft group; managers only.
    pub raft_id: Option<u64>,
}

/// The file of the membership, which a restarted daemon continues.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct MembershipFile {
    format: u32,
    pub node_id: NodeId,
    pub role: Role,
    pub cluster_id: ClusterId,
    pub mesh: MeshPrefix,
    pub subnet: Ipv6Net,
    pub ingress_addr: Ipv4Addr,
    /// TCP: joins.
    pub listen: SocketAddr,
    /// UDP port of the tunnel.
    pub data_path_port: u16,
    /// Address that other nodes reach this one at; `None`: the source address that the manager saw at the join.
    pub advertise: Option<IpAddr>,
    /// Id in the raft group; managers only.
    pub raft_id: Option<u64>,
    /// Interfaces that the user named for `listen` and `advertise`: their addresses of the time of each start are used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen_interface: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advertise_interface: Option<String>,
    /// Interface that has `advertise`, however the user gave it: where its successor is looked for. `None` for an address that the host
    /// does not have itself, and in files of older builds until the next start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advertise_on: Option<String>,
    /// Address that other nodes' tunnels reach this one at, if it is another one; and the interface that the user named for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_path: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_path_interface: Option<String>,
    /// The managers of the last view, for a node whose ledger is gone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub managers: Vec<Peer>,
    /// The host as its engine described it last: a session opens before the engine answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<NodeDescription>,
    /// A manager's reason, once this node is known to be no member any more. It starts nothing of the swarm then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removed: Option<String>,
}

impl MembershipFile {
    pub(super) fn new(assignment: NodeAssignment, addresses: &ListenAddresses) -> Self {
        let NodeAssignment { node_id, role, cluster_id, mesh, subnet, ingress_addr, raft_id } = assignment;
        Self {
            format: FILE.format,
            node_id,
            role,
            cluster_id,
            mesh,
            subnet,
            ingress_addr,
            listen: addresses.listen,
            data_path_port: addresses.data_path_port,
            advertise: addresses.advertise,
            raft_id,
            listen_interface: addresses.listen_interface.clone(),
            advertise_interface: addresses.advertise_interface.clone(),
            advertise_on: addresses.advertise_on.clone(),
            data_path: addresses.data_path,
            data_path_interface: addresses.data_path_interface.clone(),
            managers: Vec::new(),
            description: None,
            removed: None,
        }
    }

    /// With the host's description of now.
    pub(super) fn described(mut self, description: &NodeDescription) -> Self {
        self.description = Some(description.clone()).filter(|d| !d.engine_version.is_empty());
        self
    }

    pub(super) fn addresses(&self) -> ListenAddresses {
        ListenAddresses {
            listen: self.listen,
            advertise: self.advertise,
            data_path: self.data_path,
            data_path_port: self.data_path_port,
            listen_interface: self.listen_interface.clone(),
            advertise_interface: self.advertise_interface.clone(),
            advertise_on: self.advertise_on.clone(),
            data_path_interface: self.data_path_interface.clone(),
        }
    }

    /// In another role.
    pub(super) fn with_role(mut self, role: Role, raft_id: Option<u64>) -> Self {
        (self.role, self.raft_id) = (role, raft_id);
        self
    }

    /// The part of the manager's that runs: none on a node that was removed.
    pub(super) fn current_role(&self) -> Role {
        if self.removed.is_some() { Role::Worker } else { self.role }
    }

    /// Of a node that was removed for this reason, or of one that is a member.
    pub(super) fn removed(mut self, why: Option<String>) -> Self {
        self.removed = why;
        self
    }

    /// With another address that other nodes reach it at, perhaps that of an interface.
    pub(super) fn advertising(mut self, advertise: Option<IpAddr>, interface: Option<String>) -> Self {
        // The next start notes where the host has it.
        (self.advertise, self.advertise_interface, self.advertise_on) = (advertise, interface, None);
        self
    }

    /// With other addresses of the same interfaces.
    pub(super) fn with_addresses(mut self, addresses: &ListenAddresses) -> Self {
        (self.listen, self.advertise) = (addresses.listen, addresses.advertise);
        self.advertise_on.clone_from(&addresses.advertise_on);
        self
    }

    /// Reads the file; `None` outside a swarm.
    ///
    /// # Errors
    /// The file cannot be read, is damaged, or another build of skep wrote it.
    pub(super) fn load(dir: &StateDir) -> anyhow::Result<Option<Self>> {
        FILE.load(&dir.membership())
    }

    /// Reads the membership that was left and is not taken down yet.
    ///
    /// # Errors
    /// As [`MembershipFile::load`].
    pub(super) fn load_left(dir: &StateDir) -> anyhow::Result<Option<Self>> {
        FILE.load(&dir.left())
    }

    /// # Errors
    /// The disk is full or broken.
    pub(super) fn store(&self, dir: &StateDir) -> anyhow::Result<()> {
        FILE.store(&dir.membership(), self)
    }
}

#[cfg(test)]
mod tests {
    use super::super::address::for_join;
    use super::*;
    use crate::durable::recorded::RecordedNames;
    use crate::model::fixture;
    use std::collections::BTreeSet;

    struct TempDir(StateDir);

    impl TempDir {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("skep-state-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Self(StateDir::new(path))
        }
        fn names(&self) -> BTreeSet<String> {
            let entries = std::fs::read_dir(self.0.path()).unwrap();
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
        }
    }

    impl Drop for TempDir {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(self.0.path());
        }
    }

    fn membership() -> MembershipFile {
        let assignment = NodeAssignment {
            node_id: "node1".into(),
            role: Role::Worker,
            cluster_id: "cluster1".into(),
            mesh: fixture::mesh(),
            subnet: fixture::peer(1).subnet,
            ingress_addr: Ipv4Addr::new(10, 0, 0, 2),
            raft_id: None,
        };
        MembershipFile::new(assignment, &for_join("0.0.0.0:2377", "", &[]).unwrap())
    }

    #[test]
    fn forget_removes_every_file_of_a_membership_and_nothing_else() {
        let dir = TempDir::new("forget");
        let _lock = dir.0.lock().unwrap();
        membership().store(&dir.0).unwrap();
        std::fs::write(dir.0.left(), "x").unwrap();
        for file in [
            dir.0.ledger().path(),
            &dir.0.endpoints(),
            &dir.0.tunnel_key(),
            &dir.0.next_tunnel_key(),
            &dir.0.previous_tunnel_key(),
            &dir.0.backup(),
            &dir.0.path().join("foreign"),
            &dir.0.manager_key(),
        ] {
            std::fs::write(file, "x").unwrap();
        }
        for folder in [dir.0.certificates().dir(), &dir.0.path().join("certificates.new"), &dir.0.raft()] {
            std::fs::create_dir(folder).unwrap();
        }
        let all = [
            "backup.content",
            "certificates",
            "certificates.new",
            "endpoints.json",
            "foreign",
            "ledger.json",
            "left.json",
            "lock",
            "manager.key",
            "node.json",
            "raft",
            "tunnel.key",
            "tunnel.key.next",
            "tunnel.key.previous",
        ];
        assert_eq!(dir.names(), all.map(str::to_owned).into());
        dir.0.forget().unwrap();
        assert_eq!(dir.names(), ["foreign", "lock"].map(str::to_owned).into());
        dir.0.forget().unwrap();
    }

    #[test]
    fn a_start_removes_what_runs_that_were_cut_short_left_and_nothing_else() {
        let dir = TempDir::new("leftovers");
        dir.0.remove_leftovers().unwrap();
        for folder in [dir.0.certificates().dir(), &dir.0.path().join("certificates.new"), &dir.0.raft()] {
            std::fs::create_dir(folder).unwrap();
        }
        let (log, new) = (dir.0.raft().join("raft.redb"), dir.0.raft().join("raft.redb.new"));
        for file in [&log, &new, &dir.0.backup(), &dir.0.manager_key()] {
            std::fs::write(file, "x").unwrap();
        }
        dir.0.remove_leftovers().unwrap();
        assert_eq!(dir.names(), ["certificates", "manager.key", "raft"].map(str::to_owned).into());
        assert!(log.exists() && !new.exists());
    }

    #[test]
    fn a_membership_that_was_left_is_not_resumed_and_stays_known_until_it_is_taken_down() {
        let dir = TempDir::new("left");
        membership().store(&dir.0).unwrap();
        dir.0.mark_left().unwrap();
        assert!(dir.0.is_left() && !dir.0.has_membership());
        assert_eq!(MembershipFile::load(&dir.0).unwrap(), None);
        // A loop that had not ended yet wrote it once more.
        membership().store(&dir.0).unwrap();
        assert_eq!(MembershipFile::load_left(&dir.0).unwrap(), Some(membership()));
        dir.0.forget().unwrap();
        assert!(!dir.0.is_left() && !dir.0.has_membership());
        dir.0.mark_left().unwrap();
    }

    #[test]
    fn a_membership_round_trips_under_its_names_on_disk() {
        let dir = TempDir::new("membership");
        assert_eq!(MembershipFile::load(&dir.0).unwrap(), None);
        membership().store(&dir.0).unwrap();
        assert_eq!(MembershipFile::load(&dir.0).unwrap(), Some(membership()));
        let document: serde_json::Value =
            serde_json::from_slice(&std::fs::read(dir.0.path().join("node.json")).unwrap()).unwrap();
        let names: BTreeSet<&str> = document.as_object().unwrap().keys().map(String::as_str).collect();
        let expected = "advertise cluster_id data_path_port format ingress_addr listen mesh node_id raft_id role subnet";
        assert_eq!(names, expected.split(' ').collect());
    }

    #[test]
    fn the_memberships_of_the_release_before_are_read_and_written_with_all_fields() {
        for role in ["manager", "worker"] {
            let recorded = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/formats/b71afbd").join(role).join("node.json");
            let dir = TempDir::new(&format!("recorded-{role}"));
            std::fs::copy(&recorded, dir.0.membership()).expect("recorded");
            let read = MembershipFile::load(&dir.0).unwrap().expect("a membership");
            assert_eq!((read.role.as_str(), read.raft_id), (role, (role == "manager").then_some(1)));
            read.store(&dir.0).unwrap();
            let value = |path: &Path| serde_json::from_slice::<serde_json::Value>(&std::fs::read(path).unwrap()).unwrap();
            assert_eq!(value(&dir.0.membership()), value(&recorded), "the release before can read it again");
        }
    }

    /// The other types of the file are recorded with the messages that have them.
    #[test]
    fn a_membership_with_every_field_is_read_and_written_the_same() {
        let recorded = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/formats/node.json");
        let value = |path: &Path| serde_json::from_slice::<serde_json::Value>(&std::fs::read(path).unwrap()).unwrap();
        let names = RecordedNames::default();
        names.read::<MembershipFile>(&value(&recorded)).unwrap();
        let missing = names.missing().into_iter().filter(|name| name.starts_with("MembershipFile"));
        assert_eq!(missing.collect::<Vec<_>>(), [""; 0], "record them in {}", recorded.display());
        let dir = TempDir::new("every-field");
        std::fs::copy(&recorded, dir.0.membership()).unwrap();
        MembershipFile::load(&dir.0).unwrap().expect("a membership").store(&dir.0).unwrap();
        assert_eq!(value(&dir.0.membership()), value(&recorded));
    }

    #[test]
    fn a_second_daemon_on_the_directory_is_refused() {
        let dir = TempDir::new("lock");
        let _lock = dir.0.lock().unwrap();
        let error = format!("{:#}", dir.0.lock().unwrap_err());
        assert!(error.contains("another skep daemon runs on"), "{error}");
    }
}
