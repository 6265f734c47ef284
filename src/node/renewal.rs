//! Keeps a node's certificate valid: when it is due, makes a new key, gets a certificate for it, writes both, and
//! publishes them to all that use the node's identity. Where certificates come from is behind [`CertificateSource`].

use super::certificate_authority::CertificateIssuer;
use super::issuer_watch::{IssuerVerdict, IssuerWatch};
use super::keyring::{KeyOwner, Keyring};
use crate::backoff::Backoff;
use crate::clock::{Clock, reached};
use crate::model::Role;
use crate::protocol::{RenewalRequest, RenewedCertificate};
use crate::rpc::{RenewalConfig, request_certificate};
use crate::store::StoreHandle;
use crate::trust::{self, CertificateFiles, Identity, NodeKey, Remaining};
use anyhow::Context as _;
use async_trait::async_trait;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Pause after the first attempt that failed.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// Longest pause while much of the life is left.
const LONGEST_PAUSE: Duration = Duration::from_mins(10);
/// Longest pause once little is left, or nothing: an operator who allows expired certificates waits for this.
const URGENT_PAUSE: Duration = Duration::from_secs(5);

/// Where a node's next certificate comes from.
#[async_trait]
pub(super) trait CertificateSource: Send + Sync {
    /// A certificate for the key of the request. `current` is the identity that is to be replaced. With `from_others` what this node
    /// itself knows of the cluster is not used: it is old.
    async fn certificate(
        &self,
        current: &Identity,
        request: RenewalRequest,
        from_others: bool,
    ) -> anyhow::Result<RenewedCertificate>;
}

/// A manager's own store, or a manager on a worker.
pub(super) struct StoreOrManagers<F> {
    /// The store, while the manager's part runs.
    pub store: watch::Receiver<Option<StoreHandle>>,
    /// Makes an issuer of a store.
    pub issuer: F,
    /// The role that the certificate is to have.
    pub role: watch::Receiver<Role>,
    pub managers: RenewalConfig,
    pub keyring: Arc<Keyring>,
}

#[async_trait]
impl<F: Fn(StoreHandle) -> CertificateIssuer + Send + Sync> CertificateSource for StoreOrManagers<F> {
    async fn certificate(
        &self,
        current: &Identity,
        request: RenewalRequest,
        from_others: bool,
    ) -> anyhow::Result<RenewedCertificate> {
        let store = self.store.borrow().clone().filter(|_| !from_others);
        // A store that does not know the role yet may be one that the others bring up to date only once the certificate is right.
        let own = store.map(|store| (self.issuer)(store)).filter(|own| own.has_role(current.node_id(), *self.role.borrow()));
        if let Some(own) = own {
            return Ok(own.issue(current.node_id(), &request.csr)?);
        }
        let renewed = request_certificate(&self.managers, current, &request).await?;
        if let Some(key) = &renewed.unlock_key {
            // Before the key of a manager's certificate, and then its log, are written.
            let owner = KeyOwner { cluster: current.cluster_id().clone(), node: current.node_id().clone() };
            let (keyring, key) = (self.keyring.clone(), key.expose().parse()?);
            tokio::task::spawn_blocking(move || keyring.begin(Some(key), owner)).await??;
        }
        Ok(renewed)
    }
}

/// How renewals go.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct RenewalState {
    /// Attempts that have failed since the last certificate.
    pub failures: u32,
    /// Why the last of them failed.
    pub error: Option<String>,
}

/// The loop's parts.
pub(super) struct Renewal<S> {
    pub clock: Arc<dyn Clock>,
    pub identity: watch::Sender<Arc<Identity>>,
    /// The role that the certificate is to have: one with another role is replaced at once.
    pub role: watch::Receiver<Role>,
    /// One of another issuer than now is replaced at once, too.
    pub issuer: IssuerWatch,
    pub source: S,
    pub files: CertificateFiles,
    pub state: watch::Sender<RenewalState>,
}

impl<S: CertificateSource> Renewal<S> {
    /// Renews until stopped.
    pub(super) async fn run(self, stop: CancellationToken) {
        let mut rng = StdRng::from_os_rng();
        while let Some(renewed) = self.next(&mut rng, &stop).await {
            let life = renewed.validity().life();
            tracing::info!(until = renewed.expires().to_rfc3339(), "this node has a new certificate");
            self.state.send_replace(RenewalState::default());
            self.identity.send_replace(Arc::new(renewed));
            // No certificate is due before half of its life. By a clock that is ahead of the managers' it may look due, or
            // even over, as soon as it is issued.
            tokio::select! {
                () = stop.cancelled() => {}
                () = self.clock.sleep(life / 4) => {}
                () = self.is_wrong() => {}
            }
        }
    }

    /// Waits until the certificate is due, then tries until an attempt succeeds. `None` once stopped.
    async fn next(&self, rng: &mut StdRng, stop: &CancellationToken) -> Option<Identity> {
        let current = self.identity.borrow().clone();
        let due = current.validity().renewal_time(rng);
        tokio::select! {
            () = stop.cancelled() => return None,
            () = reached(self.clock.as_ref(), due) => {}
            () = self.is_wrong() => {}
        }
        let mut failures = 0_u32;
        loop {
            let role = *self.role.borrow();
            let error = match stop.run_until_cancelled(self.request(&current, role)).await? {
                // Not cancelled: the files must not be written after those of the membership were removed.
                Ok(renewed) => match self.store(&renewed).await {
                    Ok(()) => return Some(renewed),
                    Err(error) => error,
                },
                Err(error) => error,
            };
            failures = failures.saturating_add(1);
            let error = format!("{error:#}");
            if failures.is_power_of_two() {
                let until = current.expires().to_rfc3339();
                tracing::warn!(error, failures, until, "this node's certificate could not be renewed; it is tried again");
            }
            self.state.send_replace(RenewalState { failures, error: Some(error) });
            let pause = pauses(&current, self.clock.as_ref()).jittered(failures, rng);
            tokio::select! {
                () = stop.cancelled() => return None,
                () = self.clock.sleep(pause) => {}
                // What was refused for the sake of the role may not be refused any more.
                () = self.role_is_not(role) => {}
            }
        }
    }

    /// Waits until the certificate is to be replaced, however long it is valid.
    async fn is_wrong(&self) {
        let identity = self.identity.borrow().clone();
        tokio::select! {
            () = self.role_differs() => {}
            () = self.issuer.is_to_be_replaced(&identity) => {}
        }
    }

    /// Waits until the certificate has not the role that it is to have.
    async fn role_differs(&self) {
        let has = self.identity.borrow().role();
        self.role_is_not(has).await;
    }

    async fn role_is_not(&self, role: Role) {
        if self.role.clone().wait_for(|now| *now != role).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// A certificate for a new key: serial numbers and keys are never used twice.
    async fn request(&self, current: &Identity, role: Role) -> anyhow::Result<Identity> {
        let key = NodeKey::generate()?;
        let request = RenewalRequest { csr: key.request()? };
        let verdict = self.issuer.verdict(current);
        let answer = self.source.certificate(current, request, verdict == IssuerVerdict::Refused).await?;
        let RenewedCertificate { certificate, ca_certificate, chain, .. } = answer;
        let renewed = Identity::new(&key.to_pem(), &certificate, &ca_certificate)?;
        let same = renewed.node_id() == current.node_id() && renewed.cluster_id() == current.cluster_id();
        anyhow::ensure!(
            same && trust::leads_to(current.ca_certificate(), &chain, renewed.ca_certificate()),
            "the certificate that was issued is not this node's, or not of this cluster's CA, or of one that the CA before has not certified"
        );
        anyhow::ensure!(
            verdict == IssuerVerdict::Good || renewed.ca_certificate() != current.ca_certificate(),
            "the manager that was asked does not know yet that the root CA was replaced"
        );
        anyhow::ensure!(
            renewed.role() == role || current.role() == role,
            "the manager that was asked does not know yet that this node is a {}",
            role.as_str()
        );
        Ok(renewed.trusting(self.issuer.bundle()))
    }

    /// Writes key and certificate; those before stay complete until these are on disk.
    async fn store(&self, renewed: &Identity) -> anyhow::Result<()> {
        let (files, renewed) = (self.files.clone(), renewed.clone());
        tokio::task::spawn_blocking(move || files.store(&renewed)).await?.context("the new certificate was not written")
    }
}

/// Pauses between attempts: the less is left of the certificate, the shorter.
fn pauses(current: &Identity, clock: &dyn Clock) -> Backoff {
    let validity = current.validity();
    let longest = match validity.remaining(clock.now()) {
        Remaining::Enough => LONGEST_PAUSE,
        Remaining::Little | Remaining::Expired => URGENT_PAUSE,
    };
    Backoff::new(FIRST_PAUSE, longest.min(validity.life() / 20).max(FIRST_PAUSE))
}

#[cfg(test)]
mod tests;
