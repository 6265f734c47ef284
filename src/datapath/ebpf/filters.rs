//! Programs on devices of kernels without tcx links (before 6.6): filters of the `clsact` qdisc. A filter stays attached
//! without an open descriptor, has no pin, and is found by its device, priority and handle. Ours has the same priority and
//! handle on every device, so that a new program replaces the old one in one step and no packet passes in between.

use anyhow::Context as _;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::RouteNetlinkMessage as Message;
use rtnetlink::packet_route::tc::{TcAttribute, TcBpfFlags, TcFilterBpfOption, TcHandle, TcMessage, TcOption};
use std::collections::BTreeSet;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use super::hook::Hook;
use crate::datapath::netlink::{Netlink, ignore_existing, ignore_missing};

/// Priority of our filter: filters of other programs may run before or after it.
const PRIORITY: u16 = 2377;
/// Handle of our filter at that priority.
const HANDLE: u32 = 1;
/// Every protocol, in network order.
const ETH_P_ALL: u16 = 0x0003_u16.to_be();

/// A message about the filters of a device in the direction of the hook.
fn message_for(hook: Hook, index: u32, attributes: Vec<TcAttribute>) -> anyhow::Result<TcMessage> {
    let mut message = TcMessage::with_index(i32::try_from(index).context("no such interface index")?);
    let minor = if hook.egress() { TcHandle::MIN_EGRESS } else { TcHandle::MIN_INGRESS };
    message.header.parent = TcHandle { major: u16::MAX, minor };
    message.attributes = attributes;
    Ok(message)
}

/// A message about our filter.
fn filter_message(hook: Hook, index: u32, attributes: Vec<TcAttribute>) -> anyhow::Result<TcMessage> {
    let mut message = message_for(hook, index, attributes)?;
    message.header.handle = TcHandle::from(HANDLE);
    message.header.info = u32::from(PRIORITY) << 16 | u32::from(ETH_P_ALL);
    Ok(message)
}

/// Devices at whose ingress another queueing discipline than clsact is attached. The kernel then refuses clsact because
/// "it exists", and puts a filter for the other direction at the ingress as well.
pub(super) async fn foreign_ingress(netlink: &Netlink) -> anyhow::Result<BTreeSet<u32>> {
    let mut found = BTreeSet::new();
    for message in netlink.dump(Message::GetQueueDiscipline(TcMessage::default())).await.context("cannot read the qdiscs")? {
        if let Message::NewQueueDiscipline(message) = message
            && is_foreign_ingress(&message)
        {
            found.insert(u32::try_from(message.header.index).unwrap_or_default());
        }
    }
    Ok(found)
}

fn is_foreign_ingress(message: &TcMessage) -> bool {
    let kind = message.attributes.iter().find_map(|a| if let TcAttribute::Kind(kind) = a { Some(kind.as_str()) } else { None });
    // Both have the handle ffff: and the same parent, one place of which a device has one.
    message.header.parent == TcHandle::CLSACT && kind != Some("clsact")
}

/// Attaches the program, or replaces the one that is attached.
pub(super) async fn attach(netlink: &Netlink, hook: Hook, index: u32, program: BorrowedFd<'_>) -> anyhow::Result<()> {
    let kind = |kind: &str| TcAttribute::Kind(kind.to_owned());
    let mut qdisc = message_for(hook, index, vec![kind("clsact")])?;
    qdisc.header.handle = TcHandle { major: u16::MAX, minor: 0 };
    qdisc.header.parent = TcHandle::CLSACT;
    let qdisc = netlink.change(Message::NewQueueDiscipline(qdisc), NLM_F_CREATE | NLM_F_EXCL).await;
    ignore_existing(qdisc).context("cannot add the clsact qdisc (modules sch_ingress and cls_bpf)")?;
    let descriptor = u32::try_from(program.as_raw_fd()).context("no file descriptor")?;
    let options = [
        TcFilterBpfOption::ProgFd(descriptor),
        TcFilterBpfOption::ProgName(hook.program().to_owned()),
        TcFilterBpfOption::Flags(TcBpfFlags::DirectAction),
    ];
    let filter = filter_message(hook, index, vec![kind("bpf"), TcAttribute::Options(options.map(TcOption::Bpf).to_vec())])?;
    // Without EXCL an existing filter is replaced.
    netlink.change(Message::NewTrafficFilter(filter), NLM_F_CREATE).await.context("cannot add the filter")?;
    Ok(())
}

/// The program of our filter: its name and id.
pub(super) async fn find(netlink: &Netlink, hook: Hook, index: u32) -> anyhow::Result<Option<(String, u32)>> {
    for message in netlink.dump(Message::GetTrafficFilter(message_for(hook, index, Vec::new())?)).await? {
        let Message::NewTrafficFilter(message) = message else { continue };
        if message.header.info >> 16 != u32::from(PRIORITY) || u32::from(message.header.handle) != HANDLE {
            continue;
        }
        let (mut name, mut id) = (String::new(), None);
        for attribute in &message.attributes {
            let TcAttribute::Options(options) = attribute else { continue };
            for option in options {
                match option {
                    TcOption::Bpf(TcFilterBpfOption::ProgName(text)) => name.clone_from(text),
                    TcOption::Bpf(TcFilterBpfOption::ProgId(number)) => id = Some(*number),
                    _ => {}
                }
            }
        }
        if let Some(id) = id {
            return Ok(Some((name, id)));
        }
    }
    Ok(None)
}

/// Removes our filter if it runs the hook's program. A missing filter, another program or a missing device is no error.
pub(super) async fn detach(netlink: &Netlink, hook: Hook, index: u32) -> anyhow::Result<()> {
    if find(netlink, hook, index).await?.is_none_or(|(name, _)| name != hook.program()) {
        return Ok(());
    }
    ignore_missing(netlink.change(Message::DelTrafficFilter(filter_message(hook, index, Vec::new())?), 0).await)
        .with_context(|| format!("cannot remove the filter {}", hook.program()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_ingress_qdisc_is_recognized_and_ours_and_those_of_the_egress_are_not() {
        let qdisc = |parent, kind: &str| {
            let mut message = TcMessage::default();
            message.header.parent = parent;
            message.attributes.push(TcAttribute::Kind(kind.to_owned()));
            message
        };
        assert!(is_foreign_ingress(&qdisc(TcHandle::CLSACT, "ingress")));
        assert!(!is_foreign_ingress(&qdisc(TcHandle::CLSACT, "clsact")));
        assert!(!is_foreign_ingress(&qdisc(TcHandle::ROOT, "fq_codel")));
    }
}
