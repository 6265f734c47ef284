//! Attaches programs, pins their links, reads what is attached, detaches. The interface index of a device is part of a pin's
//! name, so the pin of a device that was created again is recognized as stale.

use super::hook::{Hook, HookSide, ProgramLink};
use super::load::{self, Loaded};
use super::{attachment, filters};
use anyhow::Context as _;
use aya::programs::links::{CgroupAttachMode, FdLink, PinnedLink};
use aya::programs::tc::SchedClassifierLink;
use aya::programs::{CgroupSockAddr, SchedClassifier, TcAttachType};
use aya::util::KernelVersion;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use crate::datapath::mesh::Mesh;
use crate::datapath::netlink::Netlink;
use crate::datapath::netns;
use crate::durable::ignore_missing;
use crate::sync::lock;

/// Retries of an attachment that the kernel refuses because the removal of the same link is not complete yet.
const ATTACH_RETRIES: (u32, Duration) = (10, Duration::from_millis(20));

/// Checks of whether replaced programs are gone.
const ALONE_RETRIES: (u32, Duration) = (50, Duration::from_millis(20));

const EXCLUSIVE: &str = "another program has exclusive use of the root of the cgroup tree (see `bpftool cgroup tree`)";

/// The loaded object, and the folder of the pins of its links.
pub(super) struct Programs {
    links: PathBuf,
    mesh: Arc<Mesh>,
    loaded: Mutex<Loaded>,
}

impl Programs {
    pub(super) fn new(links: PathBuf, mesh: Arc<Mesh>, loaded: Loaded) -> Self {
        Self { links, mesh, loaded: Mutex::new(loaded) }
    }

    pub(super) fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    pub(super) fn loaded(&self) -> MutexGuard<'_, Loaded> {
        lock(&self.loaded)
    }

    pub(super) fn namespace(&self, side: HookSide) -> BorrowedFd<'_> {
        if side == HookSide::Mesh { self.mesh.fd() } else { self.mesh.host.as_fd() }
    }

    /// This run's links that are still attached, and all other pins. Steps may be carried out meanwhile: a dump looks at any time.
    pub(super) async fn read_links(&self) -> anyhow::Result<(BTreeSet<ProgramLink>, BTreeSet<String>)> {
        // Pins first: the pin of a link that is attached now is in neither result.
        let mut pins = file_names(&self.links)?;
        let attached = self.loaded().attached.clone();
        let mut links = BTreeSet::new();
        for (link, id) in attached {
            if self.links.join(link.pin()).exists() && self.is_attached(&link, id).await {
                pins.remove(&link.pin());
                links.insert(link);
            } else {
                self.loaded().attached.remove(&link);
            }
        }
        Ok((links, pins))
    }

    /// Whether the program with this id is attached to the hook and device of the link.
    async fn is_attached(&self, link: &ProgramLink, id: u32) -> bool {
        let side = link.hook.side();
        if side == HookSide::Cgroup {
            let found = self.loaded().cgroup.as_ref().map(|cgroup| attachment::query(cgroup, link.hook));
            return matches!(found, Some(Ok(found)) if found.programs.contains(&id));
        }
        if !has_tcx() {
            let found = filters::find(netlink(&self.mesh, side), link.hook, link.index).await;
            return matches!(found, Ok(Some((_, found))) if found == id);
        }
        // Not on a thread of its own: there is a link for each container.
        let found = netns::briefly(self.namespace(side), || {
            SchedClassifier::query_tcx(&link.device, direction(link.hook)).map_err(io::Error::other)
        });
        matches!(found, Ok((_, programs)) if programs.iter().any(|p| p.id() == id))
    }

    /// Whether no program of an earlier run is attached. One whose link was replaced runs until the kernel has released that, a
    /// moment later: waits for that, a second at most.
    pub(super) async fn are_alone(&self) -> anyhow::Result<bool> {
        for _ in 0..ALONE_RETRIES.0 {
            let (links, stale) = self.read_links().await?;
            if !stale.is_empty() {
                return Ok(false);
            }
            if links.iter().all(|link| self.is_alone(link)) {
                return Ok(true);
            }
            tokio::time::sleep(ALONE_RETRIES.1).await;
        }
        Ok(false)
    }

    /// Whether the device of a link has one program of its hook. (A filter is replaced in one step.)
    fn is_alone(&self, link: &ProgramLink) -> bool {
        let side = link.hook.side();
        if side == HookSide::Cgroup || !has_tcx() {
            return true;
        }
        let found = netns::briefly(self.namespace(side), || {
            SchedClassifier::query_tcx(&link.device, direction(link.hook)).map_err(io::Error::other)
        });
        let name = Some(link.hook.program());
        // A device that is gone has none.
        found.map_or(true, |(_, programs)| programs.iter().filter(|p| p.name_as_str() == name).count() <= 1)
    }

    /// Hooks of socket calls that another program occupies exclusively, and what to tell the user.
    pub(super) fn blocked_hooks(&self) -> BTreeMap<Hook, String> {
        let loaded = self.loaded();
        let Some(cgroup) = loaded.cgroup.as_ref() else { return BTreeMap::new() };
        let calls = Hook::ALL.into_iter().filter(|hook| hook.side() == HookSide::Cgroup);
        let blocked = |hook: &Hook| attachment::query(cgroup, *hook).is_ok_and(|found| found.exclusive);
        calls.filter(blocked).map(|hook| (hook, EXCLUSIVE.to_owned())).collect()
    }

    /// Attaches a program. A device that was removed in the meantime is no error: the next observation shows it.
    pub(super) async fn attach(&self, link: &ProgramLink) -> anyhow::Result<()> {
        let mut attached = self.attach_once(link).await;
        // The kernel attaches a program once per attachment point, and completes the removal of a link a moment after its
        // last reference is closed.
        for _ in 0..ATTACH_RETRIES.0 {
            if !attached.as_ref().is_err_and(exists_already) {
                break;
            }
            tokio::time::sleep(ATTACH_RETRIES.1).await;
            attached = self.attach_once(link).await;
        }
        if attached.as_ref().is_err_and(exists_already) && self.adopt(link).await? {
            return Ok(());
        }
        if attached.is_err() && link.hook.side() != HookSide::Cgroup && !self.device_exists(link) {
            return Ok(());
        }
        attached
    }

    /// Takes a link that is attached and pinned for this run's, if it is of this run's program.
    async fn adopt(&self, link: &ProgramLink) -> anyhow::Result<bool> {
        let id = self.program_id(link.hook)?;
        if !self.links.join(link.pin()).exists() || !self.is_attached(link, id).await {
            return Ok(false);
        }
        self.loaded().attached.insert(link.clone(), id);
        Ok(true)
    }

    /// The id of the loaded program of a hook.
    fn program_id(&self, hook: Hook) -> anyhow::Result<u32> {
        let mut loaded = self.loaded();
        let program = loaded.ebpf.program_mut(hook.program()).context("the object has no such program")?;
        Ok(program.info()?.id())
    }

    fn device_exists(&self, link: &ProgramLink) -> bool {
        let index = netns::run(self.namespace(link.hook.side()), || {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
            Ok::<u32, io::Error>(rustix::net::netdevice::name_to_index(&socket, &link.device)?)
        });
        matches!(index, Ok(Ok(index)) if index == link.index)
    }

    async fn attach_once(&self, link: &ProgramLink) -> anyhow::Result<()> {
        // The kernel attaches a program once per attachment point.
        let before = self.loaded().attached.get(link).copied();
        let pin = self.links.join(link.pin());
        if let Some(id) = before.filter(|_| pin.exists())
            && self.is_attached(link, id).await
        {
            return Ok(());
        }
        let id = if let Some(id) = self.update_link(link, &pin)? {
            id
        } else if link.hook.side() == HookSide::Cgroup || has_tcx() {
            let (fd, id) = self.create_link(link)?;
            // Pinned beside the old link and then renamed over it, so that a program is attached at any time.
            let new = pin.with_file_name(format!("{}!", link.pin()));
            let _ = fs::remove_file(&new);
            fd.pin(&new).map_err(|e| anyhow::anyhow!("{}", load::chain(&e)))?;
            fs::rename(&new, &pin).with_context(|| format!("cannot pin {}", pin.display()))?;
            id
        } else {
            let (program, id) = self.classifier(link.hook)?;
            filters::attach(netlink(&self.mesh, link.hook.side()), link.hook, link.index, program.as_fd()).await?;
            // A filter cannot be pinned: a folder represents it.
            fs::create_dir_all(&pin).with_context(|| format!("cannot create {}", pin.display()))?;
            id
        };
        self.loaded().attached.insert(link.clone(), id);
        Ok(())
    }

    /// Replaces the program of the link that is pinned there: at once, so that no packet comes to an earlier program of this hook
    /// after one of the next hook was replaced. (A link that is closed is released by a worker of the kernel, in its time.) `None`:
    /// there is no link that can be updated, or its device is gone.
    fn update_link(&self, link: &ProgramLink, pin: &Path) -> anyhow::Result<Option<u32>> {
        if link.hook.side() == HookSide::Cgroup || !has_tcx() {
            return Ok(None);
        }
        let pinned = PinnedLink::from_pin(pin).ok().and_then(|pinned| SchedClassifierLink::try_from(FdLink::from(pinned)).ok());
        let Some(pinned) = pinned else { return Ok(None) };
        let mut loaded = self.loaded();
        let program = loaded.ebpf.program_mut(link.hook.program()).context("the object has no such program")?;
        let program = <&mut SchedClassifier>::try_from(program)?;
        let Ok(updated) = program.attach_to_link(pinned) else { return Ok(None) };
        // The pin holds the link.
        drop(program.take_link(updated)?);
        Ok(Some(program.info()?.id()))
    }

    /// Attaches a program by a link, beside other programs. Returns the link and the program's id.
    fn create_link(&self, link: &ProgramLink) -> anyhow::Result<(FdLink, u32)> {
        let mut loaded = self.loaded();
        let side = link.hook.side();
        let cgroup = loaded.cgroup.as_ref().map(fs::File::try_clone).transpose()?;
        let program = loaded.ebpf.program_mut(link.hook.program()).context("the object has no such program")?;
        if side == HookSide::Cgroup {
            let program = <&mut CgroupSockAddr>::try_from(program)?;
            let cgroup = cgroup.context("there is no cgroup2 tree")?;
            // The kernel allows several links at one attachment point in every mode.
            let attached = program.attach(cgroup, CgroupAttachMode::Single).map_err(explain_refusal)?;
            let owned = program.take_link(attached)?;
            Ok((FdLink::try_from(owned)?, program.info()?.id()))
        } else {
            let program = <&mut SchedClassifier>::try_from(program)?;
            let attached = netns::run(self.namespace(side), || program.attach(&link.device, direction(link.hook)))?;
            let owned = program.take_link(attached?)?;
            Ok((FdLink::try_from(owned)?, program.info()?.id()))
        }
    }

    /// The loaded program of a hook on devices, and its id.
    fn classifier(&self, hook: Hook) -> anyhow::Result<(OwnedFd, u32)> {
        let mut loaded = self.loaded();
        let program = loaded.ebpf.program_mut(hook.program()).context("the object has no such program")?;
        let program = <&mut SchedClassifier>::try_from(program)?;
        Ok((program.fd()?.as_fd().try_clone_to_owned()?, program.info()?.id()))
    }

    pub(super) async fn detach(&self, link: &ProgramLink) -> anyhow::Result<()> {
        self.loaded().attached.remove(link);
        self.unpin(&link.pin()).await
    }

    pub(super) async fn unpin(&self, pin: &str) -> anyhow::Result<()> {
        unpin(&self.links, pin, &self.mesh).await
    }
}

fn netlink(mesh: &Mesh, side: HookSide) -> &Netlink {
    if side == HookSide::Mesh { &mesh.netlink } else { &mesh.host_netlink }
}

fn file_names(folder: &Path) -> anyhow::Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        names.insert(entry?.file_name().to_string_lossy().into_owned());
    }
    Ok(names)
}

/// Detaches every program whose pin is in the folder `links`.
pub(super) async fn unpin_all(links: &Path, mesh: &Mesh) -> anyhow::Result<()> {
    if !links.exists() {
        return Ok(());
    }
    for pin in file_names(links)? {
        unpin(links, &pin, mesh).await?;
    }
    Ok(())
}

/// Detaches a program by its pin: removing the pin closes a link; a filter is removed first.
async fn unpin(links: &Path, pin: &str, mesh: &Mesh) -> anyhow::Result<()> {
    let path = links.join(pin);
    let removed = if path.is_dir() {
        // The kernel may have assigned the interface index to a newer device: the filter of that one stays.
        if let Some((hook, index)) = parse_pin(pin)
            && !file_names(links)?.iter().any(|other| other != pin && parse_pin(other) == Some((hook, index)))
        {
            filters::detach(netlink(mesh, hook.side()), hook, index).await?;
        }
        fs::remove_dir(&path)
    } else {
        fs::remove_file(&path)
    };
    ignore_missing(removed).with_context(|| format!("cannot remove {}", path.display()))
}

/// The hook and the interface index in the name of a device hook's pin.
fn parse_pin(pin: &str) -> Option<(Hook, u32)> {
    let mut parts = pin.split('@');
    let (program, index) = (parts.next()?, parts.next_back()?);
    let hook = Hook::ALL.into_iter().find(|hook| hook.program() == program)?;
    Some((hook, index.parse().ok()?))
}

fn direction(hook: Hook) -> TcAttachType {
    if hook.egress() { TcAttachType::Egress } else { TcAttachType::Ingress }
}

fn exists_already(error: &anyhow::Error) -> bool {
    let mut reasons = error.chain().filter_map(|reason| reason.downcast_ref::<io::Error>());
    reasons.any(|reason| reason.kind() == io::ErrorKind::AlreadyExists)
}

/// Whether the kernel has tcx links; before 6.6 there are only filters.
pub(super) fn has_tcx() -> bool {
    KernelVersion::current().is_ok_and(|kernel| kernel >= KernelVersion::new(6, 6, 0))
}

fn explain_refusal(error: aya::programs::ProgramError) -> anyhow::Error {
    let text = load::chain(&error);
    if text.contains("Operation not permitted") {
        return anyhow::anyhow!("{text}: {EXCLUSIVE}");
    }
    error.into()
}

#[cfg(test)]
mod tests {
    use super::{Hook, ProgramLink, parse_pin};

    #[test]
    fn the_name_of_a_pin_holds_hook_and_interface_index() {
        let link = ProgramLink { hook: Hook::FromUplink, device: "eth0.100".to_owned(), index: 7 };
        assert_eq!(parse_pin(&link.pin()), Some((Hook::FromUplink, 7)));
        assert!(!link.pin().contains('.'), "a bpf file system takes no dots: {}", link.pin());
        assert_eq!(parse_pin("connect4"), None);
        assert_eq!(parse_pin("unknown@eth0@7"), None);
    }
}
