//! The last view on disk, so that a restarted node starts its tasks and its tunnel without any manager.

use crate::durable::{DocumentFile, UnknownFields};
use crate::model::{NodeView, PullAuth};
use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const FILE: DocumentFile = DocumentFile {
    name: "the ledger",
    format: 1,
    // A copy of what the managers have: each session sends the whole view again.
    unknown_fields: UnknownFields::Skipped,
    if_damaged: "restore it from a backup",
};

/// The document in the file.
#[derive(Serialize, Deserialize)]
struct LedgerDocument<T> {
    format: u32,
    view: T,
}

/// The file with the last view.
#[derive(Clone, Debug)]
pub struct Ledger {
    path: PathBuf,
}

impl Ledger {
    /// At this path; its directory must exist.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The last view stored; `None` if there is none.
    ///
    /// # Errors
    /// The file cannot be read, is damaged, or another build of skep wrote it.
    pub fn load(&self) -> anyhow::Result<Option<NodeView>> {
        let document = FILE.load::<LedgerDocument<NodeView>>(&self.path).with_context(|| {
            let path = self.path.display();
            format!(
                "cannot read this node's last assignments; to start without them, move the ledger away (mv {path} {path}.bad) and \
                 restart skep: any manager sends them again, containers keep running until then"
            )
        })?;
        Ok(document.map(|document| document.view))
    }

    /// Replaces the stored view; once this returns the new one outlives a power cut.
    ///
    /// # Errors
    /// The disk is full or broken; the view stored before is untouched.
    pub fn store(&self, view: &NodeView) -> anyhow::Result<()> {
        FILE.store(&self.path, &LedgerDocument { format: FILE.format, view: without_credentials(view) })
    }
}

/// The view without registry credentials: a node that starts again has the images of its tasks, and gets them with its next session
/// for those that it does not have.
fn without_credentials(view: &NodeView) -> Cow<'_, NodeView> {
    if view.tasks.by_id.values().all(|task| task.pull_auth.is_none()) {
        return Cow::Borrowed(view);
    }
    let mut view = view.clone();
    for task in Arc::make_mut(&mut view.tasks).by_id.values_mut().filter(|task| task.pull_auth.is_some()) {
        Arc::make_mut(task).pull_auth = Some(PullAuth::withheld());
    }
    Cow::Owned(view)
}
