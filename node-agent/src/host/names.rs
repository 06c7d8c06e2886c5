//! What the relays' names resolve to, so that no peer can claim a range with a relay in it.

use std::net::IpAddr;
use std::time::Duration;

use derp::RelayUrl;
use tokio::sync::watch;
use tokio::task::AbortHandle;

const AGAIN: Duration = Duration::from_secs(60);

/// The names that are looked up, again and again.
pub(super) struct RelayNames {
    names: Vec<(String, u16)>,
    addresses_in: watch::Sender<Vec<IpAddr>>,
    addresses: watch::Receiver<Vec<IpAddr>>,
    task: Option<AbortHandle>,
}

impl RelayNames {
    pub(super) fn new() -> Self {
        let (addresses_in, addresses) = watch::channel(Vec::new());
        Self {
            names: Vec::new(),
            addresses_in,
            addresses,
            task: None,
        }
    }

    /// Looks up the hosts of `urls` that are names.
    pub(super) fn watch(&mut self, urls: impl Iterator<Item = RelayUrl>) {
        let is_name = |url: &RelayUrl| url.host().parse::<IpAddr>().is_err();
        let names: Vec<_> = urls
            .filter(is_name)
            .map(|url| (url.host().to_owned(), url.port()))
            .collect();
        if names == self.names {
            return;
        }
        self.stop();
        self.names.clone_from(&names);
        self.task = Some(tokio::spawn(look_up(names, self.addresses_in.clone())).abort_handle());
    }

    /// Resolves when the addresses have changed.
    pub(super) async fn changed(&mut self) {
        if self.addresses.changed().await.is_err() {
            std::future::pending().await
        }
    }

    pub(super) fn addresses(&self) -> Vec<IpAddr> {
        self.addresses.borrow().clone()
    }

    fn stop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

impl Drop for RelayNames {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn look_up(names: Vec<(String, u16)>, to: watch::Sender<Vec<IpAddr>>) {
    let mut known: Vec<Vec<IpAddr>> = vec![Vec::new(); names.len()];
    loop {
        for ((host, port), known) in names.iter().zip(&mut known) {
            match tokio::net::lookup_host((host.as_str(), *port)).await {
                Ok(addresses) => *known = addresses.map(|address| address.ip()).collect(),
                // The relay has not moved because a name server is away.
                Err(error) => tracing::debug!(%error, "name of a relay"),
            }
        }
        let mut found: Vec<IpAddr> = known.concat();
        found.sort_unstable();
        found.dedup();
        to.send_if_modified(|before| {
            let changed = *before != found;
            *before = found;
            changed
        });
        tokio::time::sleep(AGAIN).await;
    }
}
