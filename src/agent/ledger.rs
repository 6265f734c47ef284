//! The last view on disk, so that a node's tasks and tunnel come up without any manager. Knows nothing of what is in it.

use crate::durable::replace;
use crate::model::NodeView;
use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Number of the file's format.
const FORMAT: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Written<T> {
    format: u32,
    view: T,
}

/// Only the number, to tell a newer file from a broken one.
#[derive(Deserialize)]
struct Head {
    format: u32,
}

/// The file with the last view.
#[derive(Clone, Debug)]
pub struct Ledger {
    path: PathBuf,
}

impl Ledger {
    /// At this path; its directory must be there.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The last view stored; `None` if there never was one.
    ///
    /// # Errors
    /// The file cannot be read, is of a newer skep or is damaged.
    pub fn load(&self) -> anyhow::Result<Option<NodeView>> {
        let path = self.path.display();
        let bytes = match std::fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).with_context(|| format!("cannot read the ledger {path}")),
        };
        let damaged = || {
            format!(
                "the ledger {path} (this node's last orders from the managers) is damaged; move it away (mv {path} {path}.bad) \
                 and start again: the node gets its orders anew from any manager, its containers keep running until then"
            )
        };
        let head: Head = serde_json::from_slice(&bytes).with_context(damaged)?;
        anyhow::ensure!(
            head.format == FORMAT,
            "the ledger {path} has format {}, this skep reads {FORMAT}: start the skep that wrote it, or move it away (mv {path} {path}.old)",
            head.format
        );
        let written: Written<NodeView> = serde_json::from_slice(&bytes).with_context(damaged)?;
        Ok(Some(written.view))
    }

    /// Replaces what is stored; after this returns it outlives a power cut.
    ///
    /// # Errors
    /// The disk is full or broken; the view stored before is untouched.
    pub fn store(&self, view: &NodeView) -> anyhow::Result<()> {
        let bytes = serde_json::to_vec(&Written { format: FORMAT, view })?;
        replace(&self.path, &bytes).with_context(|| format!("cannot write the ledger {}", self.path.display()))
    }

    /// Forgets everything (the node left its cluster). Fine if there is nothing.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn clear(&self) -> anyhow::Result<()> {
        match std::fs::remove_file(&self.path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(e).with_context(|| format!("cannot remove the ledger {}", self.path.display()))
            }
            _ => Ok(()),
        }
    }
}
