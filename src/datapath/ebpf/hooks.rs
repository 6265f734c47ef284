//! Programs at their places: attached, pinned, looked at, taken away. A device's number is part of a pin's name, so a
//! pin whose device was made anew is recognised as nobody's.

use super::load::{self, links_dir};
use super::{EbpfDatapath, Hook, Link, Side, attachment, filters};
use anyhow::Context as _;
use aya::programs::links::{CgroupAttachMode, FdLink};
use aya::programs::{CgroupSockAddr, SchedClassifier, TcAttachType};
use aya::util::KernelVersion;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use crate::datapath::mesh::Mesh;
use crate::datapath::netlink::Netlink;
use crate::datapath::netns;

impl EbpfDatapath {
    fn namespace(&self, side: Side) -> BorrowedFd<'_> {
        if side == Side::Mesh { self.mesh.fd() } else { self.mesh.host.as_fd() }
    }

    /// This run's links that are still there, and pins of others.
    pub(super) async fn look_at_links(&self) -> anyhow::Result<(BTreeSet<Link>, BTreeSet<String>)> {
        let mut pins = names(&links_dir(&self.dir))?;
        let attached = self.loaded().attached.clone();
        let mut links = BTreeSet::new();
        for (link, id) in attached {
            if pins.contains(&link.pin()) && self.runs(&link, id).await {
                pins.remove(&link.pin());
                links.insert(link);
            } else {
                self.loaded().attached.remove(&link);
            }
        }
        Ok((links, pins))
    }

    /// Whether the program with this id is at its place.
    async fn runs(&self, link: &Link, id: u32) -> bool {
        let side = link.hook.side();
        if side == Side::Cgroup {
            let there = self.loaded().cgroup.as_ref().map(|cgroup| attachment::look(cgroup, link.hook));
            return matches!(there, Some(Ok(there)) if there.programs.contains(&id));
        }
        if !tcx() {
            return matches!(filters::look(netlink(&self.mesh, side), link.hook, link.index).await, Ok(Some((_, there))) if there == id);
        }
        let there = netns::run(self.namespace(side), || SchedClassifier::query_tcx(&link.device, direction(link.hook)));
        matches!(there, Ok(Ok((_, programs))) if programs.iter().any(|p| p.id() == id))
    }

    /// Hooks of socket calls whose place another program has for itself, and what to tell people. It may go at any time.
    pub(super) fn look_for_hermits(&self) -> BTreeMap<Hook, String> {
        let loaded = self.loaded();
        let Some(cgroup) = loaded.cgroup.as_ref() else { return BTreeMap::new() };
        let calls = Hook::ALL.into_iter().filter(|hook| hook.side() == Side::Cgroup);
        let alone = |hook: &Hook| attachment::look(cgroup, *hook).is_ok_and(|there| there.alone);
        calls.filter(alone).map(|hook| (hook, ALONE.to_owned())).collect()
    }

    /// Puts a program at its place. A device that went away in the meantime is no matter: the next look knows.
    pub(super) async fn attach(&self, link: &Link) -> anyhow::Result<()> {
        let mut attached = self.attach_to(link).await;
        // A link that somebody took away goes a moment later, and the kernel takes a program once per place.
        for _ in 0..10 {
            if !attached.as_ref().is_err_and(exists_already) {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            attached = self.attach_to(link).await;
        }
        if attached.is_err() && link.hook.side() != Side::Cgroup && !self.exists(link) { Ok(()) } else { attached }
    }

    fn exists(&self, link: &Link) -> bool {
        let index = netns::run(self.namespace(link.hook.side()), || {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
            Ok::<u32, io::Error>(rustix::net::netdevice::name_to_index(&socket, &link.device)?)
        });
        matches!(index, Ok(Ok(index)) if index == link.index)
    }

    async fn attach_to(&self, link: &Link) -> anyhow::Result<()> {
        // The kernel takes one program once per place.
        let before = self.loaded().attached.get(link).copied();
        let pin = links_dir(&self.dir).join(link.pin());
        if let Some(id) = before.filter(|_| pin.exists())
            && self.runs(link, id).await
        {
            return Ok(());
        }
        let id = if link.hook.side() == Side::Cgroup || tcx() {
            let (fd, id) = self.link(link)?;
            // Beside the old one, then in its place: there is never none.
            let new = pin.with_file_name(format!("{}!", link.pin()));
            let _ = fs::remove_file(&new);
            fd.pin(&new).map_err(|e| anyhow::anyhow!("{}", load::chain(&e)))?;
            fs::rename(&new, &pin).with_context(|| format!("cannot pin {}", pin.display()))?;
            id
        } else {
            let (program, id) = self.classifier(link.hook)?;
            filters::attach(netlink(&self.mesh, link.hook.side()), link.hook, link.index, program.as_fd()).await?;
            // A filter cannot be pinned: a folder says that it is there.
            fs::create_dir_all(&pin).with_context(|| format!("cannot make {}", pin.display()))?;
            id
        };
        self.loaded().attached.insert(link.clone(), id);
        Ok(())
    }

    /// Puts a program at its place by a link, beside what is there. The link and the program's id.
    fn link(&self, link: &Link) -> anyhow::Result<(FdLink, u32)> {
        let mut loaded = self.loaded();
        let side = link.hook.side();
        let cgroup = loaded.cgroup.as_ref().map(fs::File::try_clone).transpose()?;
        let program = loaded.ebpf.program_mut(link.hook.program()).context("the object has no such program")?;
        if side == Side::Cgroup {
            let program = <&mut CgroupSockAddr>::try_from(program)?;
            let cgroup = cgroup.context("there is no cgroup2 tree")?;
            // By a link: several of them can be at one place, whatever the mode says.
            let attached = program.attach(cgroup, CgroupAttachMode::Single).map_err(refused)?;
            let owned = program.take_link(attached)?;
            Ok((FdLink::try_from(owned)?, program.info()?.id()))
        } else {
            let program = <&mut SchedClassifier>::try_from(program)?;
            let attached = netns::run(self.namespace(side), || program.attach(&link.device, direction(link.hook)))?;
            let owned = program.take_link(attached?)?;
            Ok((FdLink::try_from(owned)?, program.info()?.id()))
        }
    }

    /// A loaded program for packets, and its id.
    fn classifier(&self, hook: Hook) -> anyhow::Result<(OwnedFd, u32)> {
        let mut loaded = self.loaded();
        let program = loaded.ebpf.program_mut(hook.program()).context("the object has no such program")?;
        let program = <&mut SchedClassifier>::try_from(program)?;
        Ok((program.fd()?.as_fd().try_clone_to_owned()?, program.info()?.id()))
    }

    pub(super) async fn detach(&self, link: &Link) -> anyhow::Result<()> {
        self.loaded().attached.remove(link);
        self.unpin(&link.pin()).await
    }

    pub(super) async fn unpin(&self, pin: &str) -> anyhow::Result<()> {
        unpin(&links_dir(&self.dir), pin, &self.mesh).await
    }
}

fn netlink(mesh: &Mesh, side: Side) -> &Netlink {
    if side == Side::Mesh { &mesh.netlink } else { &mesh.host_netlink }
}

fn names(folder: &Path) -> anyhow::Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        names.insert(entry?.file_name().to_string_lossy().into_owned());
    }
    Ok(names)
}

/// Takes away every program whose pin is in `links`.
pub(super) async fn unpin_all(links: &Path, mesh: &Mesh) -> anyhow::Result<()> {
    if !links.exists() {
        return Ok(());
    }
    for pin in names(links)? {
        unpin(links, &pin, mesh).await?;
    }
    Ok(())
}

/// Takes a program away by its pin: a link ends with its pin, a filter is removed.
async fn unpin(links: &Path, pin: &str, mesh: &Mesh) -> anyhow::Result<()> {
    let path = links.join(pin);
    let removed = if path.is_dir() {
        // A device's number may have passed on to another one, whose filter stays.
        if let Some((hook, index)) = filter_of(pin)
            && !names(links)?.iter().any(|other| other != pin && filter_of(other) == Some((hook, index)))
        {
            filters::detach(netlink(mesh, hook.side()), hook, index).await?;
        }
        fs::remove_dir(&path)
    } else {
        fs::remove_file(&path)
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// The hook and the number of the device in the name of a pin.
fn filter_of(pin: &str) -> Option<(Hook, u32)> {
    let mut parts = pin.split('@');
    let (program, index) = (parts.next()?, parts.next_back()?);
    let hook = Hook::ALL.into_iter().find(|hook| hook.program() == program)?;
    Some((hook, index.parse().ok()?))
}

const ALONE: &str = "another program has the root of the cgroup tree for itself (see `bpftool cgroup tree`)";

fn direction(hook: Hook) -> TcAttachType {
    if hook.egress() { TcAttachType::Egress } else { TcAttachType::Ingress }
}

fn exists_already(error: &anyhow::Error) -> bool {
    let mut reasons = error.chain().filter_map(|reason| reason.downcast_ref::<io::Error>());
    reasons.any(|reason| reason.kind() == io::ErrorKind::AlreadyExists)
}

/// Whether the kernel has tcx links; before 6.6 there are filters only.
fn tcx() -> bool {
    KernelVersion::current().is_ok_and(|kernel| kernel >= KernelVersion::new(6, 6, 0))
}

fn refused(error: aya::programs::ProgramError) -> anyhow::Error {
    let text = load::chain(&error);
    if text.contains("Operation not permitted") {
        return anyhow::anyhow!("{text}: {ALONE}");
    }
    error.into()
}

#[cfg(test)]
mod tests {
    use super::{Hook, Link, filter_of};

    #[test]
    fn the_name_of_a_pin_tells_hook_and_device() {
        let link = Link { hook: Hook::FromUplink, device: "eth0.100".to_owned(), index: 7 };
        assert_eq!(filter_of(&link.pin()), Some((Hook::FromUplink, 7)));
        assert!(!link.pin().contains('.'), "a bpf file system takes no dots: {}", link.pin());
        assert_eq!(filter_of("connect4"), None);
        assert_eq!(filter_of("somebody@eth0@7"), None);
    }
}
