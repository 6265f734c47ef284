//! Selects the implementation, and opens and closes it.

use super::super::Tunnel;
use super::{KernelChoice, TunnelConfig, client, kernel, key::public_key};
use anyhow::Context as _;
use std::sync::Arc;

/// Brings the tunnel up: adopts a running one that fits, otherwise creates one. An adopted tunnel keeps its peers.
///
/// # Errors
/// A key file that cannot be read, a pin that is no namespace, a UDP port in use (the error names the process), a kernel
/// without the WireGuard that [`KernelChoice::Always`] requires.
pub async fn open(config: TunnelConfig) -> anyhow::Result<Arc<dyn Tunnel>> {
    // Before anything is done: a key that cannot be read.
    public_key(&config.private_key_file)?;
    let running = client::hello(&config.socket()).await.ok();
    let adoptable = match &running {
        Some(hello) => client::misfit(hello, &config)?.is_none(),
        None => false,
    };
    let kernel = match config.kernel {
        KernelChoice::Never => false,
        KernelChoice::Always => true,
        KernelChoice::Auto => !adoptable && kernel::supported().await?,
    };
    if kernel {
        if running.is_some() {
            client::stop(&config.socket(), false)
                .await
                .context("stopping the tunnel process, to use kernel WireGuard instead")?;
        }
        return Ok(Arc::new(kernel::KernelTunnel::open(config).await?));
    }
    kernel::remove_for_process(&config).await?;
    Ok(client::ProcessTunnel::open(config).await?)
}

/// Removes the tunnel: ends the process, deletes the device. Neither needs to exist.
///
/// # Errors
/// A process that does not end, a device that cannot be deleted.
pub async fn close(config: &TunnelConfig) -> anyhow::Result<()> {
    client::close(&config.socket()).await?;
    kernel::delete(config).await
}
