//! The renewal of a certificate: [`client`] is the member's side, [`server`] the manager's.

mod client;
pub(super) mod server;

pub use client::{RenewalConfig, RenewalError, request_certificate};
pub use server::{CertificateAuthority, CertificateHolder};
