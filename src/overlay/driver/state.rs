//! Networks and endpoints that the engine told us of, on disk.

use crate::durable::replace;
use anyhow::Context as _;
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Number of the file's format.
const FORMAT: u32 = 1;

/// Everything that the engine told us, by its ids.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Known {
    /// Networks.
    pub networks: BTreeMap<String, Network>,
    /// Endpoints.
    pub endpoints: BTreeMap<String, Endpoint>,
}

/// A network on the engine.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Network {
    /// Its subnet.
    pub subnet: Ipv4Net,
    /// Its gateway.
    pub gateway: Ipv4Addr,
    /// No default route for its containers.
    pub internal: bool,
    /// Id of the swarm network.
    pub swarm_network: String,
}

/// A container's place on a network.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Endpoint {
    /// The engine's id of it.
    pub id: String,
    /// The engine's id of its network.
    pub network: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// Path of the container's network namespace, while it is joined.
    pub sandbox: Option<String>,
    /// Name that its link was made under, while it has one.
    pub link: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Written {
    format: u32,
    #[serde(flatten)]
    known: Known,
}

/// What is known, and its file.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    /// What is known, and how often it changed.
    known: Mutex<(Known, u64)>,
    /// How many changes are on disk; held while writing.
    written: tokio::sync::Mutex<u64>,
}

impl Ledger {
    /// Reads the file; nothing is known without one.
    ///
    /// # Errors
    /// It cannot be read, is damaged or of a newer skep.
    pub fn open(path: PathBuf) -> anyhow::Result<Self> {
        let known = read(&path)?;
        Ok(Self { path, known: Mutex::new((known, 0)), written: tokio::sync::Mutex::new(0) })
    }

    /// Looks at what is known.
    pub fn look<T>(&self, look: impl FnOnce(&Known) -> T) -> T {
        look(&self.known.lock().unwrap_or_else(PoisonError::into_inner).0)
    }

    /// Changes what is known; it reaches the disk with the next [`Ledger::change`]. For what may be lost with the daemon.
    pub fn note<T>(&self, change: impl FnOnce(&mut Known) -> T) -> T {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.1 += 1;
        change(&mut known.0)
    }

    /// Changes what is known; it is on disk when this returns. Changes that come together share one write.
    ///
    /// # Errors
    /// The disk is full or broken.
    pub async fn change<T>(&self, change: impl FnOnce(&mut Known) -> T) -> anyhow::Result<T> {
        let value = self.note(change);
        let mine = self.known.lock().unwrap_or_else(PoisonError::into_inner).1;
        let mut written = self.written.lock().await;
        if *written < mine {
            let (known, number) = self.known.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let bytes = serde_json::to_vec(&Written { format: FORMAT, known })?;
            let path = self.path.clone();
            tokio::task::spawn_blocking(move || replace(&path, &bytes))
                .await?
                .with_context(|| format!("cannot write the driver's endpoints {}", self.path.display()))?;
            *written = number;
        }
        Ok(value)
    }
}

fn read(path: &Path) -> anyhow::Result<Known> {
    let at = path.display();
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Known::default()),
        Err(e) => return Err(e).with_context(|| format!("cannot read the driver's endpoints {at}")),
    };
    let written: Written = serde_json::from_slice(&bytes).with_context(|| {
        format!(
            "the driver's endpoints {at} are damaged; move the file away (mv {at} {at}.bad) and start again: running containers keep \
             their links, and the engine's overlay networks are to be removed by hand (docker network rm) once they are unused"
        )
    })?;
    anyhow::ensure!(
        written.format == FORMAT,
        "the driver's endpoints {at} have format {}, this skep reads {FORMAT}: start the skep that wrote them",
        written.format
    );
    Ok(written.known)
}
