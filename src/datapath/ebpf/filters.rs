//! Programs on devices of kernels without tcx links (before 6.6): filters of the `clsact` qdisc. A filter stays without
//! anybody holding it, has no pin, and is found by its device, priority and number. Ours has the same two on every
//! device, so that a new program takes the place of the old one in one step and no packet passes between.

use anyhow::Context as _;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::RouteNetlinkMessage as Message;
use rtnetlink::packet_route::tc::{TcAttribute, TcBpfFlags, TcFilterBpfOption, TcHandle, TcMessage, TcOption};
use std::os::fd::{AsRawFd as _, BorrowedFd};

use super::Hook;
use crate::datapath::netlink::{Netlink, ignore_existing, ignore_missing};

/// Priority of our filters: others may stand before or behind.
const PRIORITY: u16 = 2377;
/// Number of our filter at that priority.
const NUMBER: u32 = 1;
/// Every protocol, in network order.
const ALL: u16 = 0x0003_u16.to_be();

/// About the side of `clsact` where a hook's packets pass.
fn on(hook: Hook, index: u32, attributes: Vec<TcAttribute>) -> anyhow::Result<TcMessage> {
    let mut message = TcMessage::with_index(i32::try_from(index).context("no such device number")?);
    let minor = if hook.egress() { TcHandle::MIN_EGRESS } else { TcHandle::MIN_INGRESS };
    message.header.parent = TcHandle { major: u16::MAX, minor };
    message.attributes = attributes;
    Ok(message)
}

fn ours(hook: Hook, index: u32, attributes: Vec<TcAttribute>) -> anyhow::Result<TcMessage> {
    let mut message = on(hook, index, attributes)?;
    message.header.handle = TcHandle::from(NUMBER);
    message.header.info = u32::from(PRIORITY) << 16 | u32::from(ALL);
    Ok(message)
}

/// Puts the program at its place, or in the place of the one that is there.
pub(super) async fn attach(netlink: &Netlink, hook: Hook, index: u32, program: BorrowedFd<'_>) -> anyhow::Result<()> {
    let kind = |kind: &str| TcAttribute::Kind(kind.to_owned());
    let mut qdisc = on(hook, index, vec![kind("clsact")])?;
    qdisc.header.handle = TcHandle { major: u16::MAX, minor: 0 };
    qdisc.header.parent = TcHandle::CLSACT;
    let qdisc = netlink.change(Message::NewQueueDiscipline(qdisc), NLM_F_CREATE | NLM_F_EXCL).await;
    ignore_existing(qdisc).context("cannot add the clsact qdisc (modules sch_ingress and cls_bpf)")?;
    let number = u32::try_from(program.as_raw_fd()).context("no file descriptor")?;
    let options = [
        TcFilterBpfOption::ProgFd(number),
        TcFilterBpfOption::ProgName(hook.program().to_owned()),
        TcFilterBpfOption::Flags(TcBpfFlags::DirectAction),
    ];
    let filter = ours(hook, index, vec![kind("bpf"), TcAttribute::Options(options.map(TcOption::Bpf).to_vec())])?;
    // Without EXCL it replaces what is there.
    netlink.change(Message::NewTrafficFilter(filter), NLM_F_CREATE).await.context("cannot add the filter")?;
    Ok(())
}

/// The program at our place: its name and number.
pub(super) async fn look(netlink: &Netlink, hook: Hook, index: u32) -> anyhow::Result<Option<(String, u32)>> {
    for message in netlink.dump(Message::GetTrafficFilter(on(hook, index, Vec::new())?)).await? {
        let Message::NewTrafficFilter(message) = message else { continue };
        if message.header.info >> 16 != u32::from(PRIORITY) || u32::from(message.header.handle) != NUMBER {
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

/// Takes the hook's program away; none, another one or no such device is fine.
pub(super) async fn detach(netlink: &Netlink, hook: Hook, index: u32) -> anyhow::Result<()> {
    if look(netlink, hook, index).await?.is_none_or(|(there, _)| there != hook.program()) {
        return Ok(());
    }
    ignore_missing(netlink.change(Message::DelTrafficFilter(ours(hook, index, Vec::new())?), 0).await)
        .with_context(|| format!("cannot remove the filter {}", hook.program()))
}
