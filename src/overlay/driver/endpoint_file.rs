//! The networks and endpoints that the engine has created with this driver, in memory and in a file. The engine does not
//! repeat them after a restart.

use crate::durable::{DocumentFile, UnknownFields};
use crate::model::dual_stack::pairs;
use crate::model::network::FurtherSubnet;
use crate::model::{NetworkV6, SubnetPair};
use crate::sync::lock;
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

const FILE: DocumentFile = DocumentFile {
    name: "the file of the driver's endpoints",
    format: 1,
    unknown_fields: UnknownFields::Refused,
    if_damaged: "move it away (mv {path} {path}.bad) and start again: running containers keep their links, and the engine's \
                 overlay networks are to be removed by hand (docker network rm) once they are unused",
};

/// Everything that the engine has created, by its ids.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct EngineObjects {
    pub networks: BTreeMap<String, EngineNetwork>,
    pub endpoints: BTreeMap<String, EngineEndpoint>,
}

/// A network as the engine created it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EngineNetwork {
    pub subnet: Ipv4Net,
    pub gateway: Ipv4Addr,
    /// Its subnets beside the first one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub further: Vec<FurtherSubnet>,
    /// Its IPv6 half, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v6: Option<NetworkV6>,
    /// Its containers get no default route.
    pub internal: bool,
    /// Id of the swarm network that the engine's network stands for.
    pub swarm_network: String,
    /// Largest MTU of its containers, in bytes; `None`: that of the tunnel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub most_mtu: Option<u32>,
}

impl EngineNetwork {
    /// Its IPv4 subnets, each with its gateway.
    pub fn subnets(&self) -> Vec<FurtherSubnet> {
        let first = FurtherSubnet { subnet: self.subnet, gateway: self.gateway };
        std::iter::once(first).chain(self.further.iter().copied()).collect()
    }

    /// Its subnets of both families, if it has both.
    pub fn pairs(&self) -> Vec<SubnetPair> {
        let subnets: Vec<Ipv4Net> = self.subnets().iter().map(|one| one.subnet).collect();
        self.v6.map(|v6| pairs(&subnets, v6.subnet)).unwrap_or_default()
    }

    /// The IPv6 address that belongs to an IPv4 address on it.
    pub fn to_v6(&self, address: Ipv4Addr) -> Option<Ipv6Addr> {
        self.pairs().iter().find_map(|pair| pair.to_v6(address))
    }
}

/// The attachment of a container to a network.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EngineEndpoint {
    /// The engine's id.
    pub id: String,
    /// The engine's id of the network.
    pub network: String,
    pub address: Ipv4Addr,
    /// Path of the container's network namespace, while the container is joined.
    pub sandbox: Option<String>,
    /// Name under which the container's end of the veth was created, while it exists.
    pub link: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct EndpointDocument {
    format: u32,
    networks: BTreeMap<String, EngineNetwork>,
    endpoints: BTreeMap<String, EngineEndpoint>,
}

#[derive(Debug)]
struct Numbered {
    objects: EngineObjects,
    /// Updates since the start.
    updates: u64,
}

/// The objects and their file.
#[derive(Debug)]
pub struct EndpointFile {
    path: PathBuf,
    current: Mutex<Numbered>,
    /// Whether the file was read. One that cannot be is not written.
    loaded: AtomicBool,
    /// How many updates the file contains; held while writing.
    written: tokio::sync::Mutex<u64>,
}

impl EndpointFile {
    /// The file at this path, which is not read yet: [`Self::load`].
    pub fn new(path: PathBuf) -> Self {
        let current = Mutex::new(Numbered { objects: EngineObjects::default(), updates: 0 });
        Self { path, current, loaded: AtomicBool::new(false), written: tokio::sync::Mutex::new(0) }
    }

    /// Reads the file, unless it was read; without one there are no objects. Returns whether it was read now.
    ///
    /// # Errors
    /// It cannot be read, is damaged or of another format.
    pub fn load(&self) -> anyhow::Result<bool> {
        let mut current = lock(&self.current);
        if self.loaded.load(Ordering::Relaxed) {
            return Ok(false);
        }
        if let Some(EndpointDocument { networks, endpoints, .. }) = FILE.load::<EndpointDocument>(&self.path)? {
            current.objects = EngineObjects { networks, endpoints };
        }
        self.loaded.store(true, Ordering::Relaxed);
        Ok(true)
    }

    /// Reads from the objects.
    pub fn read<T>(&self, read: impl FnOnce(&EngineObjects) -> T) -> T {
        read(&lock(&self.current).objects)
    }

    /// Updates the objects in memory; the file follows with the next [`EndpointFile::update`]. For what may be lost with the
    /// daemon.
    pub fn update_in_memory<T>(&self, update: impl FnOnce(&mut EngineObjects) -> T) -> T {
        self.numbered_update(update).0
    }

    /// Updates the objects; the file contains the update when this returns. Concurrent updates share one write.
    ///
    /// # Errors
    /// The disk is full or broken, or the file could not be read.
    pub async fn update<T>(&self, update: impl FnOnce(&mut EngineObjects) -> T) -> anyhow::Result<T> {
        self.load()?;
        let (value, number) = self.numbered_update(update);
        let mut written = self.written.lock().await;
        if *written < number {
            let (objects, updates) = {
                let current = lock(&self.current);
                (current.objects.clone(), current.updates)
            };
            let path = self.path.clone();
            let EngineObjects { networks, endpoints } = objects;
            let document = EndpointDocument { format: FILE.format, networks, endpoints };
            tokio::task::spawn_blocking(move || FILE.store(&path, &document)).await??;
            *written = updates;
        }
        Ok(value)
    }

    fn numbered_update<T>(&self, update: impl FnOnce(&mut EngineObjects) -> T) -> (T, u64) {
        let mut current = lock(&self.current);
        current.updates += 1;
        (update(&mut current.objects), current.updates)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::durable::recorded::RecordedNames;
    use std::path::Path;

    #[tokio::test]
    async fn the_endpoints_of_the_release_before_are_read_and_written_with_all_fields() {
        let recorded = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/formats/b71afbd/worker/endpoints.json");
        let copy = std::env::temp_dir().join(format!("skep-endpoints-{}.json", std::process::id()));
        std::fs::copy(&recorded, &copy).expect("recorded");
        let file = EndpointFile::new(copy.clone());
        file.load().unwrap();
        file.read(|objects| assert!(!objects.networks.is_empty() && !objects.endpoints.is_empty(), "{objects:?}"));
        file.update(|_| ()).await.unwrap();
        let value = |path: &Path| serde_json::from_slice::<serde_json::Value>(&std::fs::read(path).unwrap()).unwrap();
        assert_eq!(value(&copy), value(&recorded), "the release before can read it again");
        std::fs::remove_file(&copy).unwrap();
    }

    #[tokio::test]
    async fn a_file_with_every_field_is_read_and_written_the_same() {
        let recorded = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/formats/endpoints.json");
        let value = |path: &Path| serde_json::from_slice::<serde_json::Value>(&std::fs::read(path).unwrap()).unwrap();
        let names = RecordedNames::default();
        names.read::<EndpointDocument>(&value(&recorded)).unwrap();
        assert_eq!(names.missing(), [""; 0], "record them in {}", recorded.display());
        let copy = std::env::temp_dir().join(format!("skep-endpoints-all-{}.json", std::process::id()));
        std::fs::copy(&recorded, &copy).unwrap();
        EndpointFile::new(copy.clone()).update(|_| ()).await.unwrap();
        assert_eq!(value(&copy), value(&recorded));
        std::fs::remove_file(&copy).unwrap();
    }
}
