//! The engine's own networks that services may use: each node has its own, skep gives no address there. The store has no object
//! for them: names and ids are fixed.

/// One of the networks `host` and `bridge`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum PredefinedNetwork {
    /// The network namespace of the node.
    Host,
    /// The engine's default bridge.
    Bridge,
}

impl PredefinedNetwork {
    pub const ALL: [Self; 2] = [Self::Host, Self::Bridge];
    /// Label by which clients recognise them.
    pub const LABEL: &str = "com.docker.swarm.predefined";

    /// In the engine and in the swarm; also that of the driver.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Bridge => "bridge",
        }
    }

    /// Target of a service's spec, the same in every cluster. In the form of the ids that are drawn.
    #[must_use]
    pub fn id(self) -> &'static str {
        match self {
            Self::Host => "predefinednetworkhost0000",
            Self::Bridge => "predefinednetworkbridge00",
        }
    }

    #[must_use]
    pub fn with_id(id: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|network| network.id() == id)
    }

    /// By id or name.
    #[must_use]
    pub fn find(reference: &str) -> Option<Self> {
        Self::with_id(reference).or_else(|| Self::ALL.into_iter().find(|network| network.name() == reference))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_the_form_of_drawn_ones_and_names_are_those_of_the_engine() {
        for network in PredefinedNetwork::ALL {
            assert!(network.id().len() == 25 && network.id().bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()));
            assert_eq!(
                (PredefinedNetwork::find(network.id()), PredefinedNetwork::find(network.name())),
                (Some(network), Some(network))
            );
            assert_eq!(PredefinedNetwork::with_id(network.name()), None);
        }
        assert_eq!(PredefinedNetwork::find("none"), None);
    }
}
