//! Addresses of plain containers on attachable networks.

use super::Allocation;
use super::addresses::{AddressBook, Untakeable};
use crate::model::task::Attachment;
use crate::model::{AttachDenial, AttachedContainer, NetworkId, Task};
use ipnet::Ipv4Net;
use std::net::Ipv4Addr;

impl Allocation<'_> {
    /// The address of a plain container; `None` while the one that its user asked for is not yet free on every node. The error is for
    /// users: Docker's words.
    pub(super) fn attach_container(&mut self, task: &Task, container: &AttachedContainer) -> Result<Option<Attachment>, String> {
        let target = task.spec.networks.first().map(|network| network.target.as_str()).unwrap_or_default();
        let network = self.store.network(&NetworkId::from(target)).filter(|network| !network.removing);
        let Some(network) = network else { return Err(AttachDenial::UnknownNetwork(target.to_owned()).to_string()) };
        let name = &network.spec.name;
        if !network.spec.attachable {
            return Err(AttachDenial::NotAttachable(name.clone()).to_string());
        }
        let id = network.id.clone();
        let Some(address) = container.requested else {
            let address = self.take_address(&id)?;
            return Ok(Some(Attachment { network_id: id, address }));
        };
        let (subnets, node) = (self.subnets(&id)?, task.node_id.clone().unwrap_or_default());
        let Some(subnet) = subnets.iter().find(|subnet| subnet.contains(&address)).copied() else {
            return Err(no_host(address, name, &subnets));
        };
        let book = self.book.get_or_insert_with(|| AddressBook::new(self.store));
        match book.take_exact(&id, subnet, address, &node, self.quarantine) {
            Ok(()) => {
                let address = Ipv4Net::new(address, subnet.prefix_len()).unwrap_or(subnet);
                Ok(Some(Attachment { network_id: id, address }))
            }
            Err(Untakeable::NotYet) => Ok(None),
            // The container that had it is gone, and its task is about to be.
            Err(Untakeable::InUse) if self.is_left(&id, address) => Ok(None),
            Err(Untakeable::InUse) => Err(format!("Address already in use: {address} on network {name}")),
            Err(Untakeable::NoHost) => Err(no_host(address, name, &subnets)),
        }
    }

    /// Only a plain container that is gone has the address.
    fn is_left(&self, network: &NetworkId, address: Ipv4Addr) -> bool {
        let mut holders = self.store.tasks_at(network, address).peekable();
        holders.peek().is_some() && holders.all(|task| task.attached.is_some() && !task.is_wanted())
    }
}

fn no_host(address: Ipv4Addr, name: &str, subnets: &[Ipv4Net]) -> String {
    let shown = subnets.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    format!("invalid address {address}: it is no host address of network {name} ({shown})")
}
