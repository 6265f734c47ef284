//! The WireGuard keys on disk. While the node changes its key there are two: the next one beside the one that is used, then the one before.
//! Each step is a rename, so that a crash between any two leaves a key that the other nodes know.

use super::state_dir::StateDir;
use crate::datapath::tunnel;
use crate::durable::{self, ignore_missing};
use crate::model::WgKey;
use crate::trust::TunnelKey;
use anyhow::Context as _;
use std::fs::File;
use std::path::{Path, PathBuf};

/// The public halves of what is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct KeyFiles {
    /// The tunnel's.
    pub current: WgKey,
    /// The tunnel is to have it.
    pub next: Option<WgKey>,
    /// The tunnel had it.
    pub previous: Option<WgKey>,
}

impl KeyFiles {
    /// # Errors
    /// A file cannot be read, or holds no key.
    pub(super) fn read(dir: &StateDir) -> anyhow::Result<Self> {
        let current = tunnel::public_key(&dir.tunnel_key())?;
        // Copied when it was cut short, or read in the middle of the change for a backup.
        let other = |path: PathBuf| anyhow::Ok(public_key(&path)?.filter(|key| *key != current));
        Ok(Self { current, next: other(dir.next_tunnel_key())?, previous: other(dir.previous_tunnel_key())? })
    }

    /// Draws the next key, unless there is one.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn draw_next(dir: &StateDir) -> anyhow::Result<WgKey> {
        let path = dir.next_tunnel_key();
        public_key(&path)?.map_or_else(|| tunnel::generate_key(&path), Ok)
    }

    /// The next key is given up.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub(super) fn drop_next(dir: &StateDir) -> anyhow::Result<()> {
        remove(&dir.next_tunnel_key())
    }

    /// From now on the next key is the tunnel's.
    ///
    /// # Errors
    /// A file cannot be written; the tunnel's key is the one or the other.
    pub(super) fn use_next(dir: &StateDir) -> anyhow::Result<()> {
        let (current, previous) = (dir.tunnel_key(), dir.previous_tunnel_key());
        // Before the only copy of the key before is replaced by the tunnel's key.
        anyhow::ensure!(dir.next_tunnel_key().exists(), "there is no next key to use");
        let before = std::fs::read(&current).with_context(|| format!("cannot read {}", current.display()))?;
        durable::replace(&previous, &before).with_context(|| format!("cannot write {}", previous.display()))?;
        let renamed = std::fs::rename(dir.next_tunnel_key(), &current).and_then(|()| File::open(dir.path())?.sync_all());
        renamed.with_context(|| format!("cannot replace {}", current.display()))
    }

    /// The key before is not needed any more.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub(super) fn forget_previous(dir: &StateDir) -> anyhow::Result<()> {
        remove(&dir.previous_tunnel_key())
    }
}

/// All private keys of the node, the tunnel's first.
///
/// # Errors
/// A file cannot be read, or holds no key.
pub(super) fn private_keys(dir: &StateDir) -> anyhow::Result<Vec<TunnelKey>> {
    let further = [dir.next_tunnel_key(), dir.previous_tunnel_key()];
    let files = std::iter::once(dir.tunnel_key()).chain(further.into_iter().filter(|path| path.exists()));
    files.map(|path| Ok(TunnelKey::new(tunnel::private_key(&path)?))).collect()
}

fn public_key(path: &Path) -> anyhow::Result<Option<WgKey>> {
    if path.exists() { tunnel::public_key(path).map(Some) } else { Ok(None) }
}

fn remove(path: &Path) -> anyhow::Result<()> {
    ignore_missing(std::fs::remove_file(path)).with_context(|| format!("cannot remove {}", path.display()))
}
