//! What a backup of a manager holds, and a data directory made from it. The content is not encrypted here; until it is, it lies below the
//! run directory only, which is in memory: a power cut leaves nothing of it.

use super::backup_contents;
use super::daemon::Daemon;
use super::keyring::{KeyOwner, Keyring};
use super::lifecycle::MembershipState;
use super::new_cluster::begin;
use super::state_dir::{MembershipFile, StateDir};
use crate::admin::WrittenBackup;
use crate::clock::{Clock as _, SystemClock};
use crate::durable::{self, UnknownFields};
use crate::model::{FormatRange, NodeId, Role, Secret, Timestamp};
use crate::raft::{self, LogCipher};
use crate::store::Store;
use crate::trust::{self, Identity, NodeKey, NodeName, RootCa};
use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const FORMAT: u32 = 1;
/// Of a backup that may not have all.
const WITHOUT_LEADER: &str = "this manager knows no leader: what others have written since then is not in it; make another one once \
                              `skep status` names a leader";
/// Bytes of the length before the document.
const LENGTH: usize = 8;

/// The document of a backup; the snapshot of the store follows it.
#[derive(Serialize, Deserialize)]
struct BackupDocument {
    format: u32,
    made: Timestamp,
    /// Version of skep that made it.
    version: String,
    membership: MembershipFile,
    /// The file of the tunnel's key: the node's identity in the mesh, and what the secrets' key is sealed to.
    #[serde(serialize_with = "crate::model::secret::expose")]
    tunnel_key: Secret<String>,
    /// The other one, in the middle of a change of the key.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "crate::model::secret::expose_some")]
    next_tunnel_key: Option<Secret<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "crate::model::secret::expose_some")]
    previous_tunnel_key: Option<Secret<String>>,
    /// Raft's position of the snapshot.
    index: u64,
    term: u64,
}

/// What a restored node is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RestoredNode {
    pub node: NodeId,
    /// When the backup was made.
    pub made: Timestamp,
    pub services: usize,
    pub incarnation: u64,
}

impl Daemon {
    /// Writes the content of a backup to a file of its own below the run directory, which only root may read. The state is that of one
    /// moment.
    ///
    /// # Errors
    /// The node is no manager that serves its store, or there is no room for the file.
    pub(super) fn write_backup(&self) -> anyhow::Result<WrittenBackup> {
        let MembershipState::Active(member) = self.lifecycle.state() else { anyhow::bail!("this node is not part of a swarm") };
        let store = member.store().context("this node is not a manager: make the backup on one")?.read();
        let dir = &self.env.state_dir;
        let membership = MembershipFile::load(dir)?.context("the membership is not on disk")?;
        let read = |path: PathBuf| {
            let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()));
            text.map(Secret::new)
        };
        let further = |path: PathBuf| path.exists().then(|| read(path)).transpose();
        // In the order in which a change moves them, and after the store: the keys that it knows are among them.
        let next_tunnel_key = further(dir.next_tunnel_key())?;
        let tunnel_key = read(dir.tunnel_key())?;
        let previous_tunnel_key = further(dir.previous_tunnel_key())?;
        let raft = member.raft_status().unwrap_or_default();
        let document = BackupDocument {
            format: FORMAT,
            made: self.env.clock.now(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            membership,
            tunnel_key,
            next_tunnel_key,
            previous_tunnel_key,
            index: store.index(),
            term: raft.term,
        };
        let document = serde_json::to_vec(&document)?;
        let mut content = (document.len() as u64).to_be_bytes().to_vec();
        content.extend_from_slice(&document);
        content.extend_from_slice(&store.snapshot());
        let path = backup_contents::write(&self.env.settings.run_dir, &content, rand::random())?;
        Ok(WrittenBackup { path, warning: raft.leader.is_none().then_some(WITHOUT_LEADER) })
    }
}

/// Makes the data directory of a manager from a backup's content: of a new incarnation of the cluster, with this node as its only manager.
/// An address takes the place of the one that the node had. Blocks.
///
/// # Errors
/// The content is not that of a backup, or the directory is in use, has a membership, or cannot be written.
pub fn restore_backup(data_dir: &Path, content: &[u8], advertise: Option<IpAddr>) -> anyhow::Result<RestoredNode> {
    let now = SystemClock.now();
    let (document, snapshot) = parse(content)?;
    let BackupDocument { made, membership, tunnel_key, next_tunnel_key, previous_tunnel_key, index, term, .. } = document;
    let membership = match advertise {
        Some(_) => membership.advertising(advertise, None),
        None => membership,
    };
    let store = Store::restore(snapshot).context("the state in the backup cannot be read")?;
    std::fs::create_dir_all(data_dir).with_context(|| format!("cannot make {}", data_dir.display()))?;
    let dir = StateDir::new(data_dir);
    let _lock = dir.lock().context("stop the daemon first")?;
    let path = data_dir.display();
    anyhow::ensure!(
        !dir.has_membership() && !dir.is_left(),
        "{path} has the membership of a node: move the directory away, or make that node leave first"
    );
    let began = begin(store, &membership, 0, (index, term), now)?;
    let identity = new_identity(&began.store, &membership, now)?;
    let services = began.store.services().count();
    let keyring = Arc::new(Keyring::new(&dir));
    // What a membership before left.
    keyring.remove()?;
    let unlock = began.store.cluster().and_then(|cluster| cluster.unlock_key.as_ref());
    let unlock = unlock.map(|key| key.expose().parse()).transpose()?;
    keyring.begin(unlock, KeyOwner { cluster: membership.cluster_id.clone(), node: membership.node_id.clone() })?;
    let cipher: Arc<dyn LogCipher> = keyring.clone();
    raft::rebuild(&dir.raft(), began.raft_id, began.at, began.store.snapshot(), &cipher)?;
    let keys = [
        (dir.tunnel_key(), Some(tunnel_key)),
        (dir.next_tunnel_key(), next_tunnel_key),
        (dir.previous_tunnel_key(), previous_tunnel_key),
    ];
    for (path, key) in keys {
        let Some(key) = key else { continue };
        durable::replace(&path, key.expose().as_bytes()).with_context(|| format!("cannot write {}", path.display()))?;
    }
    dir.certificates().sealed_by(keyring).store(&identity)?;
    let node = membership.node_id.clone();
    // Last: without it the rest is not used.
    membership.with_role(Role::Manager, Some(began.raft_id)).store(&dir)?;
    Ok(RestoredNode { node, made, services, incarnation: began.incarnation })
}

/// A certificate of now: that of the backup's time may have expired.
fn new_identity(store: &Store, membership: &MembershipFile, now: Timestamp) -> anyhow::Result<Identity> {
    let cluster = store.cluster().context("the backup has no cluster")?;
    let ca = RootCa::from_pem(&cluster.ca_certificate, cluster.ca_key.expose())?;
    let key = NodeKey::generate()?;
    let name = NodeName { node_id: membership.node_id.clone(), role: Role::Manager, cluster_id: cluster.id.clone() };
    let life = trust::node_life(&cluster.spec.ca_config);
    let certificate = trust::issue(&ca, &key.request()?, &name, now, life, &mut rand::rng())?;
    Ok(Identity::new(&key.to_pem(), &certificate, ca.certificate())?)
}

fn parse(content: &[u8]) -> anyhow::Result<(BackupDocument, &[u8])> {
    const WRONG: &str = "the file holds no backup of a manager";
    let (length, rest) = content.split_first_chunk::<LENGTH>().context(WRONG)?;
    let length = usize::try_from(u64::from_be_bytes(*length)).context(WRONG)?;
    let (document, snapshot) = rest.split_at_checked(length).context(WRONG)?;
    let document = durable::decode(document, FormatRange::only(FORMAT), UnknownFields::Refused).context(WRONG)?;
    Ok((document, snapshot))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::durable::recorded::RecordedNames;

    #[test]
    fn every_field_of_a_backup_is_in_the_recorded_one() {
        let recorded: serde_json::Value = serde_json::from_slice(include_bytes!("../../tests/it/formats/backup.json")).unwrap();
        let names = RecordedNames::default();
        let read = names.read::<BackupDocument>(&recorded).unwrap();
        let missing = names.missing().into_iter().filter(|name| name.starts_with("BackupDocument."));
        assert_eq!(missing.collect::<Vec<_>>(), [""; 0], "record them in tests/it/formats/backup.json");
        assert_eq!(serde_json::to_value(read).unwrap(), recorded);
    }

    #[test]
    fn a_content_that_is_no_backup_is_refused_and_nothing_is_written() {
        let dir = std::env::temp_dir().join(format!("skep-restore-{}", std::process::id()));
        for content in [&b""[..], b"short", &[0; 8], &[255; 40], b"\0\0\0\0\0\0\0\x02{}"] {
            let error = restore_backup(&dir, content, None).expect_err("no backup");
            assert!(format!("{error:#}").contains("holds no backup"), "{error:#}");
        }
        assert!(!dir.exists());
    }
}
