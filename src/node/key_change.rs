//! Changes this node's WireGuard key, without a lost connection: the other nodes get the next key as a second peer; once all that are up have it,
//! the tunnel uses it, and the key before is forgotten. What is to be done next follows from the files and the view alone, so a node that
//! was killed in between goes on where it was.

use super::environment::Environment;
use super::key_files::KeyFiles;
use crate::datapath::Tunnel;
use crate::model::{NextKey, NodeId, NodeView, WgKey};
use crate::protocol::KeyChangeRequest;
use crate::rpc::{KeyChangeError, RenewalConfig, ask_key_change};
use crate::store::StoreHandle;
use crate::sync::replace_if_changed;
use crate::trust::Identity;
use anyhow::Context as _;
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

/// Between attempts, and between looks at what the view does not show.
const AGAIN: Duration = Duration::from_secs(1);

/// What is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum KeyStep {
    /// No change is under way.
    None,
    /// Tell a manager of the next key.
    Announce(WgKey),
    /// Keep this key: the managers have a next one that this node does not have. While they do, no other node changes its key.
    GiveUp(WgKey),
    /// Not every node that is up knows the next key.
    WaitForNodes,
    /// Use the next key.
    Use,
    /// Tell a manager that it is used.
    Report(WgKey),
    /// The key of secrets and configs is still sealed to the key before.
    WaitForSeal,
    /// Forget the key before.
    Forget,
    /// The managers know neither the key nor its successor: this node, or they, were restored from a backup.
    Unknown,
}

impl KeyStep {
    /// For people; empty: nothing is done.
    fn text(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Announce(_) => "the next key is being announced to the managers",
            Self::GiveUp(_) => "a next key that this node does not have is being given up",
            Self::WaitForNodes => "waiting until every node that is up knows the next key",
            Self::Use => "the tunnel is about to use the next key",
            Self::Report(_) => "the tunnel uses the new key; the managers are being notified",
            Self::WaitForSeal => "waiting until the key of secrets and configs is sealed to the new key",
            Self::Forget => "the old key is being removed",
            Self::Unknown => "the managers know another WireGuard key of this node: make it leave and join again",
        }
    }
}

/// What this node's copy of the key of secrets and configs is sealed to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Sealed {
    /// It has none: it is a worker, or there are no secrets.
    Nothing,
    /// The manager part does not run.
    Unknown,
    Key(WgKey),
}

/// `own`: this node's key and its successor, as the managers have them.
fn plan(files: KeyFiles, own: Option<(WgKey, Option<NextKey>)>, sealed: Sealed) -> KeyStep {
    let KeyFiles { current, next, previous } = files;
    let Some((key, successor)) = own else { return KeyStep::None };
    if current != key {
        let is_successor = successor.is_some_and(|successor| successor.key == current);
        return if is_successor { KeyStep::Report(current) } else { KeyStep::Unknown };
    }
    match (previous, next) {
        (Some(previous), _) if sealed == Sealed::Key(previous) || sealed == Sealed::Unknown => KeyStep::WaitForSeal,
        (Some(_), _) => KeyStep::Forget,
        (None, Some(next)) => match successor.filter(|successor| successor.key == next) {
            Some(NextKey { known: true, .. }) => KeyStep::Use,
            Some(_) => KeyStep::WaitForNodes,
            // The managers may have one of before, which no node can use: it makes room.
            None if successor.is_some_and(|successor| successor.known) => KeyStep::GiveUp(current),
            None => KeyStep::Announce(next),
        },
        // Refused, or its answer lost, and written later all the same; or its file was removed.
        (None, None) if successor.is_some() => KeyStep::GiveUp(current),
        (None, None) => KeyStep::None,
    }
}

/// How far a change is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(super) struct KeyChangeState {
    /// The tunnel's key.
    pub key: WgKey,
    /// What is being done, for people; empty: no change is under way.
    pub step: &'static str,
    /// Why the last attempt of that failed; it is tried again. Empty: it did not.
    pub error: String,
}

/// What the change is made with.
pub(super) struct KeyChanger {
    pub env: Arc<Environment>,
    pub me: NodeId,
    pub view: watch::Receiver<Option<Arc<NodeView>>>,
    pub identity: watch::Receiver<Arc<Identity>>,
    /// On a manager.
    pub store: watch::Receiver<Option<StoreHandle>>,
    pub tunnel: Arc<dyn Tunnel>,
    pub managers: RenewalConfig,
    /// A user has asked for a change.
    pub wake: Notify,
    pub state: watch::Sender<Option<KeyChangeState>>,
}

impl KeyChanger {
    /// Begins a change, or goes on with one; returns the key that the node is to have. The rest is done by [`Self::run`].
    ///
    /// # Errors
    /// A manager refuses it: nothing is changed then.
    pub(super) async fn begin(&self) -> anyhow::Result<WgKey> {
        let files = self.files(KeyFiles::read).await?;
        match plan(files, self.own(), self.sealed()) {
            KeyStep::None | KeyStep::Announce(_) | KeyStep::GiveUp(_) => {}
            KeyStep::Report(_) | KeyStep::WaitForSeal | KeyStep::Forget => return Ok(files.current),
            KeyStep::Use | KeyStep::WaitForNodes => return Ok(files.next.unwrap_or(files.current)),
            KeyStep::Unknown => anyhow::bail!(KeyStep::Unknown.text()),
        }
        anyhow::ensure!(self.own().is_some(), "this node has not received its view of the swarm yet");
        let next = self.files(KeyFiles::draw_next).await?;
        let announced = self.announce(next).await;
        self.wake.notify_one();
        announced?;
        tracing::info!(from = %files.current.to_base64(), to = %next.to_base64(), "this node changes its WireGuard key");
        Ok(next)
    }

    /// Does what is to be done, until stopped.
    pub(super) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let _ = stop.run_until_cancelled(self.work()).await;
    }

    async fn work(&self) {
        let (mut view, mut store) = (self.view.clone(), self.store.clone());
        let mut files = None;
        loop {
            view.borrow_and_update();
            store.borrow_and_update();
            let known = match files {
                Some(known) => Ok(known),
                None => self.files(KeyFiles::read).await,
            };
            let (mut is_done, mut is_busy) = (false, true);
            match known {
                Ok(known) => {
                    files = Some(known);
                    let step = plan(known, self.own(), self.sealed());
                    let error = match self.carry_out(step).await {
                        Ok(changed) => {
                            is_done = changed;
                            String::new()
                        }
                        Err(error) => {
                            // It may have failed after the files were changed.
                            files = None;
                            format!("{error:#}")
                        }
                    };
                    if !error.is_empty() {
                        tracing::warn!(error, step = step.text(), "the change of this node's WireGuard key waits");
                    }
                    is_busy = step != KeyStep::None;
                    replace_if_changed(&self.state, Some(KeyChangeState { key: known.current, step: step.text(), error }));
                }
                Err(error) => tracing::error!(error = format!("{error:#}"), "this node's WireGuard key"),
            }
            if is_done {
                files = None;
                continue;
            }
            tokio::select! {
                changed = view.changed() => if changed.is_err() { return },
                () = self.wake.notified() => files = None,
                () = tokio::time::sleep(AGAIN), if is_busy => files = None,
            }
        }
    }

    /// Returns whether the files have changed, so that the next step can follow at once.
    async fn carry_out(&self, step: KeyStep) -> anyhow::Result<bool> {
        match step {
            KeyStep::None | KeyStep::WaitForNodes | KeyStep::WaitForSeal | KeyStep::Unknown => Ok(false),
            KeyStep::Announce(key) => self.announce(key).await.map(|()| false),
            KeyStep::GiveUp(key) => {
                self.ask(KeyChangeRequest::Begin(key), key).await?;
                Ok(false)
            }
            KeyStep::Use => {
                self.files(KeyFiles::use_next).await?;
                self.env.read_tunnel_keys()?;
                self.tunnel.rekey().await?;
                tracing::info!("the tunnel uses this node's new WireGuard key");
                Ok(true)
            }
            KeyStep::Report(key) => {
                self.env.read_tunnel_keys()?;
                // It has, unless the daemon was killed before.
                self.tunnel.rekey().await?;
                self.ask(KeyChangeRequest::InUse(key), key).await?;
                Ok(false)
            }
            KeyStep::Forget => {
                self.files(KeyFiles::forget_previous).await?;
                self.env.read_tunnel_keys()?;
                tracing::info!("this node's WireGuard key is changed; the old one is removed");
                Ok(true)
            }
        }
    }

    /// A key that is refused is given up: what is in the way may stay there for long.
    async fn announce(&self, key: WgKey) -> anyhow::Result<()> {
        self.env.read_tunnel_keys()?;
        match self.ask(KeyChangeRequest::Begin(key), key).await {
            Err(error @ KeyChangeError::Refused(_)) => {
                self.files(KeyFiles::drop_next).await?;
                self.env.read_tunnel_keys()?;
                Err(error.into())
            }
            other => Ok(other?),
        }
    }

    async fn ask(&self, request: KeyChangeRequest, key: WgKey) -> Result<(), KeyChangeError> {
        let identity = self.identity.borrow().clone();
        let key =
            self.env.tunnel_keys.of(key).ok_or_else(|| KeyChangeError::Refused("the key is not on disk any more".to_owned()))?;
        ask_key_change(&self.managers, &identity, request, &key).await
    }

    async fn files<T: Send + 'static>(
        &self,
        work: impl FnOnce(&super::state_dir::StateDir) -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<T> {
        let dir = self.env.state_dir.clone();
        tokio::task::spawn_blocking(move || work(&dir)).await.context("the files of the keys")?
    }

    fn own(&self) -> Option<(WgKey, Option<NextKey>)> {
        let view = self.view.borrow();
        let node = view.as_ref()?.cluster.node(&self.me)?;
        Some((node.key, node.next))
    }

    fn sealed(&self) -> Sealed {
        let Some(store) = self.store.borrow().as_ref().map(StoreHandle::read) else {
            let is_manager = self.view.borrow().as_ref().and_then(|view| Some(view.cluster.node(&self.me)?.manager));
            return if is_manager == Some(false) { Sealed::Nothing } else { Sealed::Unknown };
        };
        let own = store.payload_keys().and_then(|keys| Some(keys.managers.get(&self.me)?.recipient));
        own.map_or(Sealed::Nothing, Sealed::Key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: WgKey = WgKey([1; 32]);
    const NEW: WgKey = WgKey([2; 32]);
    const OTHER: WgKey = WgKey([3; 32]);

    #[test]
    fn each_state_of_files_and_store_has_one_next_step() {
        let files = |current, next, previous| KeyFiles { current, next, previous };
        let next = |known| Some(NextKey { key: NEW, known });
        let steady = files(OLD, None, None);
        let begun = files(OLD, Some(NEW), None);
        let used = files(NEW, None, Some(OLD));
        for (files, own, sealed, step) in [
            (steady, None, Sealed::Nothing, KeyStep::None),
            (steady, Some((OLD, None)), Sealed::Key(OLD), KeyStep::None),
            // Killed after the key was drawn, before or after it was announced.
            (begun, Some((OLD, None)), Sealed::Nothing, KeyStep::Announce(NEW)),
            (begun, Some((OLD, next(false))), Sealed::Nothing, KeyStep::WaitForNodes),
            (begun, Some((OLD, next(true))), Sealed::Key(OLD), KeyStep::Use),
            // The managers have one that was given up; no node uses it.
            (begun, Some((OLD, Some(NextKey { key: OTHER, known: false }))), Sealed::Nothing, KeyStep::Announce(NEW)),
            (begun, Some((OLD, Some(NextKey { key: OTHER, known: true }))), Sealed::Nothing, KeyStep::GiveUp(OLD)),
            (steady, Some((OLD, next(true))), Sealed::Nothing, KeyStep::GiveUp(OLD)),
            (steady, Some((OLD, next(false))), Sealed::Nothing, KeyStep::GiveUp(OLD)),
            // Killed after the files were changed, before the managers were notified, or by a view of before that.
            (used, Some((OLD, next(true))), Sealed::Key(OLD), KeyStep::Report(NEW)),
            (files(NEW, None, None), Some((OLD, next(true))), Sealed::Nothing, KeyStep::Report(NEW)),
            (used, Some((NEW, None)), Sealed::Key(OLD), KeyStep::WaitForSeal),
            (used, Some((NEW, None)), Sealed::Key(NEW), KeyStep::Forget),
            (used, Some((NEW, None)), Sealed::Nothing, KeyStep::Forget),
            // A manager whose manager part does not run: the key of secrets may still be sealed to the old one.
            (used, Some((NEW, None)), Sealed::Unknown, KeyStep::WaitForSeal),
            (files(NEW, None, None), Some((NEW, None)), Sealed::Key(NEW), KeyStep::None),
            // Another change was asked for meanwhile: this one ends first.
            (files(NEW, Some(OTHER), Some(OLD)), Some((NEW, None)), Sealed::Key(OLD), KeyStep::WaitForSeal),
            (files(NEW, Some(OTHER), None), Some((NEW, None)), Sealed::Nothing, KeyStep::Announce(OTHER)),
            // Restored.
            (steady, Some((OTHER, None)), Sealed::Nothing, KeyStep::Unknown),
        ] {
            assert_eq!(plan(files, own, sealed), step, "{files:?} {own:?} {sealed:?}");
        }
    }

    #[test]
    fn a_crash_between_any_two_writes_leaves_the_key_in_use_and_the_one_before() {
        let path = std::env::temp_dir().join(format!("skep-key-files-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        let dir = super::super::state_dir::StateDir::new(&path);
        let old = crate::datapath::tunnel::generate_key(&dir.tunnel_key()).unwrap();
        let new = KeyFiles::draw_next(&dir).unwrap();
        assert_eq!(KeyFiles::draw_next(&dir).unwrap(), new, "the same one");
        let read = || KeyFiles::read(&dir).unwrap();
        assert_eq!(read(), KeyFiles { current: old, next: Some(new), previous: None });
        // Killed after the copy.
        std::fs::copy(dir.tunnel_key(), dir.previous_tunnel_key()).unwrap();
        assert_eq!(read(), KeyFiles { current: old, next: Some(new), previous: None });
        KeyFiles::use_next(&dir).unwrap();
        assert_eq!(read(), KeyFiles { current: new, next: None, previous: Some(old) });
        KeyFiles::use_next(&dir).expect_err("there is none");
        assert_eq!(read(), KeyFiles { current: new, next: None, previous: Some(old) }, "the key before is still there");
        let all = super::super::key_files::private_keys(&dir).unwrap();
        assert_eq!(all.iter().map(crate::trust::TunnelKey::public).collect::<Vec<_>>(), [new, old]);
        KeyFiles::forget_previous(&dir).unwrap();
        KeyFiles::drop_next(&dir).unwrap();
        assert_eq!(read(), KeyFiles { current: new, next: None, previous: None });
        std::fs::remove_dir_all(&path).unwrap();
    }
}
