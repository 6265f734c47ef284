//! The loop between the planner and the executor. It runs on the leader and keeps nothing but what is running.

use super::dns_hook::DnsHook;
use super::error::{AcmeError, AcmeErrorKind};
use super::executor::{AcmeExecutor, Advance};
use super::names::{self, FailedWildcards, WantedNames};
use super::plan::{AcmeInput, AcmeJob, AcmePlan, is_too_old, plan, with_nodes_down};
use super::settle;
use crate::clock::{Clock, reached};
use crate::model::acme::{AcmeChallengeKind, AcmeOrder, AcmeRegistration, AcmeSettings};
use crate::model::payload::SealedData;
use crate::model::{AcmeAccount, AcmeCertificate, AcmeCertificateId, Revision, Service, Timestamp};
use crate::store::{Action, ProposeError, Store, StoreHandle, changed};
use crate::trust::PayloadVault;
use futures_util::FutureExt as _;
use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Changes of the store that come within this time are planned for together.
const GATHERED: Duration = Duration::from_millis(200);
/// Planned again at the latest.
const LOOK: Duration = Duration::from_mins(1);
/// Attempts to store what the authority has done, and the pause between them.
const ATTEMPTS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(500);

/// What the loop works with.
#[derive(Clone)]
pub struct AcmeWorkerConfig {
    pub store: StoreHandle,
    pub leads: watch::Receiver<bool>,
    /// Lowest revision that every live node has applied.
    pub applied: watch::Receiver<Revision>,
    pub vault: Arc<PayloadVault>,
    pub hook: Option<DnsHook>,
    pub clock: Arc<dyn Clock>,
}

/// The loop.
pub struct AcmeWorker {
    config: AcmeWorkerConfig,
}

/// The names that are wanted, read again once services, settings or what fails have changed.
#[derive(Default)]
struct KnownNames {
    of: Option<Arc<Store>>,
    failed: FailedWildcards,
    names: WantedNames,
}

impl KnownNames {
    fn of(&mut self, store: &Arc<Store>, now: Timestamp) -> &WantedNames {
        let settings = |store: &Store| store.acme_account().map(|account| account.settings.clone());
        let is_known =
            |before: &Arc<Store>| changed::<Service>(before, store).next().is_none() && settings(before) == settings(store);
        let failed = names::failed_wildcards(store, now);
        if self.failed != failed || !self.of.as_ref().is_some_and(is_known) {
            let wanted = |settings| names::wanted(store, &settings, &failed);
            self.names = settings(store).map(wanted).unwrap_or_default();
            self.failed = failed;
        }
        self.of = Some(store.clone());
        &self.names
    }
}

/// What a step has led to.
enum StepOutcome {
    KeyMade(AcmeSettings, Result<SealedData, AcmeError>),
    Registered(AcmeSettings, Result<AcmeRegistration, AcmeError>),
    /// Of a certificate, with the account that the step has read.
    Of(AcmeCertificateId, Box<AcmeAccount>, Box<RecordChange>),
}

/// What becomes of a record, if it is still as the step has read it.
enum RecordChange {
    Ordered(Result<AcmeOrder, AcmeError>),
    Advanced(AcmeOrder, Result<Advance, AcmeError>),
    Renewal(Option<((Timestamp, Timestamp), Duration)>),
}

impl AcmeWorker {
    #[must_use]
    pub fn new(config: AcmeWorkerConfig) -> Self {
        Self { config }
    }

    /// Runs until raft or the store ends.
    pub async fn run(mut self) {
        loop {
            if self.config.leads.wait_for(|leads| *leads).await.is_err() {
                return;
            }
            let mut leads = self.config.leads.clone();
            // Steps of a leader that leads no more end where they are; the next leader goes on.
            tokio::select! {
                _ = leads.wait_for(|leads| !*leads) => {}
                () = self.lead() => return,
            }
        }
    }

    async fn lead(&self) {
        let mut view = self.config.store.watch();
        let mut applied = self.config.applied.clone();
        let (mut jobs, mut busy, mut registers) = (JoinSet::new(), BTreeSet::new(), false);
        let mut wanted = KnownNames::default();
        loop {
            let store = view.borrow_and_update().clone();
            let now = self.config.clock.now();
            let input =
                AcmeInput { now, wanted: wanted.of(&store, now), applied: *applied.borrow_and_update(), busy: &busy, registers };
            let AcmePlan { actions, jobs: steps, wake } = plan(&store, input);
            if !actions.is_empty() {
                if let Err(error) = self.config.store.write(now, actions).await {
                    tracing::warn!(%error, "the records of certificates cannot be written");
                    tokio::time::sleep(PAUSE).await;
                }
                continue;
            }
            for job in steps {
                match &job {
                    AcmeJob::MakeKey | AcmeJob::Register => registers = true,
                    AcmeJob::Order(certificate) | AcmeJob::Advance { certificate, .. } | AcmeJob::AskRenewal(certificate) => {
                        busy.insert(certificate.id.clone());
                    }
                }
                self.start(job, &store, &mut jobs);
            }
            let waits = store.all::<AcmeCertificate>().any(|record| record.order.is_some());
            let wake = wake.unwrap_or(now.plus(LOOK)).min(now.plus(LOOK));
            tokio::select! {
                changed = view.changed() => {
                    if changed.is_err() { return }
                    tokio::time::sleep(GATHERED).await;
                }
                _ = applied.changed(), if waits => {}
                Some(ended) = jobs.join_next() => match ended {
                    Ok(StepOutcome::KeyMade(settings, result)) => {
                        registers = false;
                        self.registering(&settings, result, |account, key| account.key = Some(key)).await;
                    }
                    Ok(StepOutcome::Registered(settings, result)) => {
                        registers = false;
                        if let Ok(registration) = &result {
                            tracing::info!(account = registration.url, "ACME account registered");
                        }
                        let registered = |account: &mut AcmeAccount, of| (account.registration, account.failure) = (Some(of), None);
                        self.registering(&settings, result, registered).await;
                    }
                    Ok(StepOutcome::Of(id, account, change)) => {
                        self.settle(&id, &account, *change).await;
                        busy.remove(&id);
                    }
                    // The loop ends, and its steps with it: none panics.
                    Err(_) => {}
                },
                () = reached(&*self.config.clock, wake) => {}
            }
        }
    }

    fn start(&self, job: AcmeJob, store: &Store, jobs: &mut JoinSet<StepOutcome>) {
        let Some(account) = store.acme_account().cloned() else { return };
        let key = match store.payload_keys().map(|keys| self.config.vault.data_key(keys)) {
            Some(Ok(key)) => Ok(key),
            Some(Err(error)) => Err(AcmeError::new(AcmeErrorKind::NotReady, error.to_string())),
            None => Err(AcmeError::new(AcmeErrorKind::NotReady, "the cluster has no key of secrets")),
        };
        let (hook, now) = (self.config.hook.clone(), self.config.clock.now());
        let executor = key.map(|key| AcmeExecutor { key, hook });
        jobs.spawn(async move {
            let executor = match executor {
                Ok(executor) => executor,
                Err(error) => return could_not(job, &account, error),
            };
            let step = AssertUnwindSafe(carry_out(job.clone(), &account, &executor, now)).catch_unwind();
            // Only this certificate waits for a library that an answer was too strange for.
            step.await.unwrap_or_else(|_| {
                could_not(job, &account, AcmeError::new(AcmeErrorKind::Transient, "a fault in skep; its log has more"))
            })
        });
    }

    /// Stores what a step on the way to the account has led to: `done` puts it into the account.
    async fn registering<T: Clone + Sync>(
        &self,
        settings: &AcmeSettings,
        result: Result<T, AcmeError>,
        done: impl Fn(&mut AcmeAccount, T) + Sync,
    ) {
        if let Err(error) = &result {
            tracing::warn!(%error, "the ACME account cannot be registered");
        }
        let change = |store: &Store, now: Timestamp| {
            let account = store.acme_account().filter(|account| account.settings == *settings)?;
            let mut next = account.clone();
            match &result {
                Ok(of) => done(&mut next, of.clone()),
                Err(error) => next.failure = Some(settle::failure(account.failure.as_ref(), error, now, &mut rand::rng())),
            }
            Some(vec![Action::update(next)])
        };
        self.store(change).await;
    }

    /// Stores what a step has led to.
    async fn settle(&self, id: &AcmeCertificateId, used: &AcmeAccount, change: RecordChange) {
        match &change {
            RecordChange::Advanced(_, Ok(Advance::Issued(received))) => {
                let until = received.validity.not_after.to_rfc3339();
                tracing::info!(names = received.names.join(","), issuer = received.issuer, until, "certificate issued");
            }
            RecordChange::Ordered(Err(error)) | RecordChange::Advanced(_, Err(error)) => {
                tracing::warn!(%id, %error, "no certificate");
            }
            _ => {}
        }
        // A random time is drawn once, however often it is written.
        let seed: u64 = rand::random();
        let make = |store: &Store, now: Timestamp| {
            let rng = &mut <rand::rngs::StdRng as rand::SeedableRng>::seed_from_u64(seed);
            let record = store.get::<AcmeCertificate>(id)?;
            let account = store.acme_account()?;
            let is_same = account.settings == used.settings && url(account) == url(used);
            let is_this = |order: &AcmeOrder| record.order.as_ref().is_some_and(|stored| stored.url == order.url);
            let next = match &change {
                RecordChange::Ordered(_) if record.order.is_some() => return None,
                // The user, or another step, has set right what it failed by.
                RecordChange::Ordered(Err(_)) if !is_same => return None,
                RecordChange::Ordered(Ok(order)) => settle::ordered(record, order.clone()),
                RecordChange::Advanced(order, _) if !is_this(order) => return None,
                RecordChange::Advanced(_, Ok(Advance::Issued(received))) => settle::issued(record, received.clone(), now, rng),
                RecordChange::Advanced(_, Ok(Advance::Undecided(wait))) => settle::undecided(record, now.plus(*wait)),
                RecordChange::Ordered(Err(error)) | RecordChange::Advanced(_, Err(error)) => {
                    settle::failed(record, error, now, rng)
                }
                RecordChange::Renewal(answer) => settle::renewal(record, *answer, now, rng),
            };
            // What it counts, it counts for the account too: the other certificates wait, and meet it one by one.
            let held = match &change {
                RecordChange::Ordered(Err(error)) if error.kind == AcmeErrorKind::RateLimited && is_same => Some(error),
                _ => None,
            };
            let held = held.map(|error| Action::update(settle::held(account, error, now)));
            let gone = matches!(&change,
                RecordChange::Ordered(Err(error)) | RecordChange::Advanced(_, Err(error)) if error.kind == AcmeErrorKind::AccountGone);
            // The account of a step that has begun before another one was registered is of no interest any more.
            let forgotten = (gone && is_same).then(|| Action::update(AcmeAccount { registration: None, ..account.clone() }));
            Some([Action::update(next)].into_iter().chain(forgotten).chain(held).collect())
        };
        self.store(make).await;
    }

    /// Writes until it is written, or there is nothing to write any more.
    async fn store(&self, make: impl Fn(&Store, Timestamp) -> Option<Vec<Action>>) {
        for _ in 0..ATTEMPTS {
            let now = self.config.clock.now();
            let Some(actions) = make(&self.config.store.read(), now) else { return };
            match self.config.store.write(now, actions).await {
                Ok(_) | Err(ProposeError::NotLeader | ProposeError::Stopped(_) | ProposeError::TooLarge(_)) => return,
                Err(error) => tracing::debug!(%error, "what the authority has done is not stored yet"),
            }
            tokio::time::sleep(PAUSE).await;
        }
        tracing::error!("what the authority has done cannot be stored");
    }
}

/// Where the account is at the authority.
fn url(account: &AcmeAccount) -> Option<&str> {
    account.registration.as_ref().map(|registration| registration.url.as_str())
}

/// Kinds of challenges, best first: with each failure in a row the other one of those that nodes answer. All names beside a
/// wildcard are proved as it is.
fn preferred(settings: &AcmeSettings, certificate: &AcmeCertificate, has_hook: bool) -> Vec<AcmeChallengeKind> {
    use AcmeChallengeKind::{Dns, Http, TlsAlpn};
    let failures = certificate.failure.as_ref().map_or(0, |failure| failure.count);
    let by_nodes = if failures.is_multiple_of(2) { [Http, TlsAlpn] } else { [TlsAlpn, Http] };
    let has_wildcard = certificate.names.iter().any(|name| name.starts_with("*."));
    let dns = |first: bool| (has_hook && first == has_wildcard).then_some(Dns);
    let all = dns(true).into_iter().chain(by_nodes).chain(dns(false));
    all.filter(|kind| settings.challenge.is_none_or(|only| only == *kind)).collect()
}

async fn carry_out(job: AcmeJob, account: &AcmeAccount, executor: &AcmeExecutor, now: Timestamp) -> StepOutcome {
    let of = |id, change| StepOutcome::Of(id, Box::new(account.clone()), Box::new(change));
    match job {
        AcmeJob::MakeKey => StepOutcome::KeyMade(account.settings.clone(), executor.make_key()),
        AcmeJob::Register => StepOutcome::Registered(account.settings.clone(), executor.register(account).await),
        AcmeJob::Order(certificate) => {
            let prefer = preferred(&account.settings, &certificate, executor.hook.is_some());
            let ordered = executor.order(account, &certificate, &prefer, now).await;
            of(certificate.id, RecordChange::Ordered(ordered))
        }
        AcmeJob::Advance { certificate, without } => {
            let AcmeCertificate { id, order: Some(order), .. } = certificate else {
                return of(certificate.id, RecordChange::Renewal(None));
            };
            if !without.is_empty() {
                tracing::warn!(%id, nodes = without.join(","), "a challenge is answered without nodes that are down");
            }
            let advanced = executor.advance(account, &id, &order).await.map_err(|error| with_nodes_down(error, &without));
            let advanced = match advanced {
                Ok(Advance::Undecided(_)) if is_too_old(&order, now) => {
                    Err(AcmeError::refused("the authority has not decided on the order in a day"))
                }
                other => other,
            };
            of(id, RecordChange::Advanced(order, advanced))
        }
        AcmeJob::AskRenewal(certificate) => {
            let answer = match &certificate.issued {
                Some(issued) => executor.renewal(account, issued).await,
                None => Ok(None),
            };
            let answer = answer.unwrap_or_else(|error| {
                tracing::debug!(id = %certificate.id, %error, "the authority does not say when to renew");
                None
            });
            of(certificate.id, RecordChange::Renewal(answer))
        }
    }
}

fn could_not(job: AcmeJob, account: &AcmeAccount, error: AcmeError) -> StepOutcome {
    let of = |id, change| StepOutcome::Of(id, Box::new(account.clone()), Box::new(change));
    match job {
        AcmeJob::MakeKey | AcmeJob::Register => StepOutcome::Registered(account.settings.clone(), Err(error)),
        AcmeJob::Order(certificate) => of(certificate.id, RecordChange::Ordered(Err(error))),
        AcmeJob::Advance { certificate: AcmeCertificate { id, order: Some(order), .. }, .. } => {
            of(id, RecordChange::Advanced(order, Err(error)))
        }
        AcmeJob::Advance { certificate, .. } | AcmeJob::AskRenewal(certificate) => {
            of(certificate.id, RecordChange::Renewal(None))
        }
    }
}
