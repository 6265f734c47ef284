//! Why managers give a plain container no address. It travels as the error text of the container's task, in Docker's words; this is the
//! one place that has them.

use std::fmt;

/// The reason.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AttachDenial {
    /// The swarm has no network of this id or name.
    UnknownNetwork(String),
    /// The network of this name takes tasks of services alone.
    NotAttachable(String),
    /// For users: no address is free, or not the one that was asked for.
    Other(String),
}

impl AttachDenial {
    /// The reason that a task's error text says.
    #[must_use]
    pub fn of_text(text: &str) -> Self {
        let network = |end: &str| text.strip_prefix("network ")?.strip_suffix(end).map(str::to_owned);
        match (network(" not found"), network(" not manually attachable")) {
            (Some(name), _) => Self::UnknownNetwork(name),
            (_, Some(name)) => Self::NotAttachable(name),
            (None, None) => Self::Other(text.to_owned()),
        }
    }
}

impl fmt::Display for AttachDenial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownNetwork(name) => write!(f, "network {name} not found"),
            Self::NotAttachable(name) => write!(f, "network {name} not manually attachable"),
            Self::Other(text) => f.write_str(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_survives_its_text() {
        for reason in [
            AttachDenial::UnknownNetwork("back net".to_owned()),
            AttachDenial::NotAttachable("shut".to_owned()),
            AttachDenial::Other("could not find an available IP on network back (10.0.1.0/24 is full)".to_owned()),
        ] {
            assert_eq!(AttachDenial::of_text(&reason.to_string()), reason);
        }
    }
}
