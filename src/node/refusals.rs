//! The events of the eBPF datapath as the admin socket shows them: with the names of services and devices.

use crate::admin::{DropEvent, DropLine, LostEvents};
use crate::datapath::ebpf::{
    Counter, EbpfDatapath, HookSide, HostDevices, Refusal, RefusalWatch, Watched, hook_side, protocol_text,
};
use crate::ingress::ebpf::{refusal_reason, service_names};
use crate::model::{NodeView, Timestamp};
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::watch;

/// Devices are read again for one that is not known, at most so often.
const READ_DEVICES: Duration = Duration::from_secs(1);

/// A watcher with what names are looked up in.
struct NamedWatch {
    watch: RefusalWatch,
    ebpf: Arc<EbpfDatapath>,
    view: watch::Receiver<Option<Arc<NodeView>>>,
    services: BTreeMap<u32, String>,
    devices: HostDevices,
    devices_read: Option<Instant>,
}

/// What the datapath drops or refuses from now on, until the membership ends.
///
/// # Errors
/// The kernel's.
pub(super) fn watch(
    ebpf: &Arc<EbpfDatapath>,
    view: watch::Receiver<Option<Arc<NodeView>>>,
    left: bool,
) -> anyhow::Result<BoxStream<'static, DropLine>> {
    let services = view.borrow().as_deref().map(service_names).unwrap_or_default();
    let watch = ebpf.watch_refusals(left)?;
    let (ebpf, devices) = (Arc::clone(ebpf), HostDevices::default());
    let named = NamedWatch { watch, ebpf, view, services, devices, devices_read: None };
    Ok(stream::unfold(named, async |mut named| Some((named.next().await?, named))).boxed())
}

impl NamedWatch {
    async fn next(&mut self) -> Option<DropLine> {
        loop {
            tokio::select! {
                watched = self.watch.next() => match watched? {
                    Watched::Lost(lost) => return Some(DropLine::Lost(LostEvents { lost })),
                    Watched::Event(event) => {
                        self.read_devices(&event).await;
                        return Some(DropLine::Event(Box::new(line(&event, &self.devices, &self.services))));
                    }
                },
                changed = self.view.changed() => {
                    changed.ok()?;
                    self.services = self.view.borrow_and_update().as_deref().map(service_names).unwrap_or_default();
                }
            }
        }
    }

    async fn read_devices(&mut self, event: &Refusal) {
        let recent = self.devices_read.is_some_and(|read| read.elapsed() < READ_DEVICES);
        if event.device == 0 || recent || device_name(&self.devices, hook_side(event.hook), event.device).is_some() {
            return;
        }
        self.devices_read = Some(Instant::now());
        if let Ok(devices) = self.ebpf.host_devices().await {
            self.devices = devices;
        }
    }
}

/// The name of a device of one of the two namespaces, if it is one that programs are attached to.
pub(super) fn device_name(devices: &HostDevices, side: HookSide, index: u32) -> Option<&str> {
    use crate::datapath::ebpf::{HOST_END, MESH_END};
    use crate::datapath::mesh::TUNNEL;
    let is = |device: Option<u32>| device == Some(index);
    match side {
        HookSide::Host if is(devices.host_end) => Some(HOST_END),
        HookSide::Host => devices.uplinks.iter().find(|(_, uplink)| **uplink == index).map(|(name, _)| name.as_str()),
        HookSide::Mesh if is(devices.mesh_end) => Some(MESH_END),
        HookSide::Mesh if is(devices.tunnel) => Some(TUNNEL),
        HookSide::Mesh => devices.veths.values().find(|(_, veth)| *veth == index).map(|(name, _)| name.as_str()),
        HookSide::Cgroup => None,
    }
}

/// An address with its port; without one if it has none. `-` if it is not known.
fn endpoint(address: IpAddr, port: u16) -> String {
    match (address.is_unspecified(), port) {
        (true, _) => "-".to_owned(),
        (false, 0) => address.to_string(),
        (false, port) => SocketAddr::new(address, port).to_string(),
    }
}

/// An event as a line. Pure.
fn line(event: &Refusal, devices: &HostDevices, services: &BTreeMap<u32, String>) -> DropEvent {
    let side = hook_side(event.hook);
    let action = match side {
        _ if event.reason.left_reason().is_some() => "left",
        // A packet to a virtual address without a task is answered.
        HookSide::Host | HookSide::Mesh if event.reason != Counter::VipEmpty => "dropped",
        _ => "refused",
    };
    let device = match device_name(devices, side, event.device) {
        Some(name) => name.to_owned(),
        None if event.device == 0 => String::new(),
        None => format!("#{}", event.device),
    };
    DropEvent {
        time: timestamp(event.time).to_rfc3339(),
        action: action.to_owned(),
        hook: event.hook.to_owned(),
        reason: refusal_reason(event.reason).unwrap_or_else(|| event.reason.name()).to_owned(),
        protocol: protocol_text(event.protocol),
        source: endpoint(event.source, event.source_port),
        destination: endpoint(event.destination, event.destination_port),
        source_port: event.source_port,
        destination_port: event.destination_port,
        device,
        service: services.get(&event.owner).cloned().unwrap_or_default(),
    }
}

fn timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::default().plus(since)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_device_service_and_what_was_done() {
        let devices = HostDevices {
            uplinks: [("eth0".to_owned(), 2)].into(),
            veths: [("10.0.1.5".parse().unwrap(), ("v0a000105".to_owned(), 2))].into(),
            ..HostDevices::default()
        };
        let services = [(7, "web".to_owned())].into();
        let event = Refusal {
            time: SystemTime::UNIX_EPOCH,
            hook: "from_uplink",
            reason: Counter::PassNotAllowed,
            protocol: 6,
            source: "2001:db8::9".parse().unwrap(),
            source_port: 40_000,
            destination: "192.0.2.1".parse().unwrap(),
            destination_port: 0,
            device: 2,
            owner: 7,
        };
        let shown = line(&event, &devices, &services);
        assert_eq!((shown.action.as_str(), shown.reason.as_str()), ("left", "source_not_allowed"));
        assert_eq!((shown.source.as_str(), shown.destination.as_str()), ("[2001:db8::9]:40000", "192.0.2.1"));
        assert_eq!((shown.device.as_str(), shown.service.as_str(), shown.protocol.as_str()), ("eth0", "web", "tcp"));

        let of_container = Refusal { hook: "from_container", reason: Counter::DropForged, owner: 8, ..event.clone() };
        let shown = line(&of_container, &devices, &services);
        assert_eq!((shown.device.as_str(), shown.service.as_str(), shown.action.as_str()), ("v0a000105", "", "dropped"));

        let refused = Refusal { reason: Counter::VipEmpty, ..of_container };
        assert_eq!(line(&refused, &devices, &services).action, "refused");

        let call = Refusal { hook: "connect4", reason: Counter::VipEmpty, device: 0, source: "::".parse().unwrap(), ..event };
        let shown = line(&call, &devices, &services);
        assert_eq!((shown.action.as_str(), shown.source.as_str(), shown.device.as_str()), ("refused", "-", ""));
        assert_eq!(shown.reason, "vip_without_backend");
    }
}
