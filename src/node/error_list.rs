//! The errors of a take-down: each step is tried, whatever the steps before it returned.

use std::fmt;

/// Errors in the order in which they occurred.
#[derive(Default, Debug)]
pub(super) struct ErrorList(Vec<anyhow::Error>);

impl ErrorList {
    /// Adds the error of a step, if it failed.
    pub(super) fn check(&mut self, step: anyhow::Result<()>) {
        match step {
            Ok(()) => {}
            // The steps of a part that failed are listed one by one.
            Err(error) => match error.downcast::<Self>() {
                Ok(list) => self.0.extend(list.0),
                Err(error) => self.0.push(error),
            },
        }
    }

    /// `Ok` if no step failed.
    pub(super) fn into_result(self) -> anyhow::Result<()> {
        if self.0.is_empty() { Ok(()) } else { Err(self.into()) }
    }
}

impl fmt::Display for ErrorList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("; ")?;
            }
            write!(f, "{error:#}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ErrorList {}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    #[test]
    fn every_error_of_a_take_down_is_reported() {
        let failed = |what: &'static str, why: &'static str| Err::<(), _>(anyhow::anyhow!(why)).context(what);
        let mut network = ErrorList::default();
        network.check(failed("cannot remove the eBPF datapath", "busy"));
        network.check(Ok(()));
        network.check(failed("cannot delete the tunnel", "no such device"));
        let mut all = ErrorList::default();
        all.check(failed("cannot remove container c1", "timeout"));
        all.check(network.into_result());
        let error = all.into_result().expect_err("three steps failed");
        assert_eq!(
            format!("{error:#}"),
            "cannot remove container c1: timeout; cannot remove the eBPF datapath: busy; cannot delete the tunnel: no such device"
        );
        assert!(ErrorList::default().into_result().is_ok());
    }
}
