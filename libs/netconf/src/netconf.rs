//! The handle that keeps a host as wanted.

use std::path::{Path, PathBuf};

use ipnet::IpNet;

use crate::actual::Actual;
use crate::apply::{self, Context};
use crate::cleanup;
use crate::condition;
use crate::desired::{Desired, Names, overlap};
use crate::journal::Journal;
use crate::netlink::{self, Netlink};
use crate::plan::{Change, plan};
use crate::read::{Reading, read};
use crate::report::{
    ApplyError, ChangeError, CleanupError, CleanupReport, Condition, HostAddress, OpenError,
    ReadError, Report,
};
use crate::sysctl;
use crate::watch::{Pulse, Watch};

/// Programs the host of the network namespace in which it was opened.
///
/// 1. [`open`](Self::open) checks that our names are free or ours.
/// 2. [`apply`](Self::apply) reads the host, plans, writes the journal and makes the changes.
/// 3. [`changed`](Self::changed) tells when to apply again.
///
/// Dropping it leaves everything in place; only [`cleanup`](Self::cleanup) removes it.
#[derive(Debug)]
pub struct Netconf {
    names: Names,
    journal: Journal,
    netlink: Netlink,
    watch: Watch,
}

impl Netconf {
    /// Opens the journal and the netlink sockets. Call it on a tokio runtime with time and IO.
    ///
    /// # Errors
    /// When a device, routing table or nftables table of our name belongs to somebody else, or when the host or
    /// the journal cannot be read.
    pub async fn open(names: Names, journal: PathBuf) -> Result<Self, OpenError> {
        if !names.are_plain() {
            return Err(OpenError::Names);
        }
        let journal = Journal::open(journal, &names)?;
        let watch = Watch::open()?;
        let netlink = Netlink::open()?;
        let reading = read(&netlink, &names, &journal.entries, 0).await?;
        match condition::conflicts(&names, &reading.actual)
            .into_iter()
            .next()
        {
            Some(conflict) => Err(OpenError::Conflict(conflict)),
            None => Ok(Self {
                names,
                journal,
                netlink,
                watch,
            }),
        }
    }

    /// Makes the host as `desired`, changing only what differs.
    ///
    /// # Errors
    /// When the host cannot be read or the journal not be written, nothing was changed. When single changes fail,
    /// all others were made and the next call tries again.
    pub async fn apply(&mut self, desired: &Desired) -> Result<Report, ApplyError> {
        let pulse = Pulse::take(&self.names).await;
        self.watch.reading(pulse);
        let reading = read(
            &self.netlink,
            &self.names,
            &self.journal.entries,
            desired.listen_port,
        )
        .await?;
        let desired = self.with_memory(desired, &reading);
        let changes = plan(&self.names, &desired, &reading.actual);
        apply::announce(&changes, &self.names, &mut self.journal)?;
        let mut conditions = condition::conditions(&self.names, &desired, &reading.actual);
        let failures = self
            .make(&changes, &desired, &reading.actual, &mut conditions)
            .await?;
        if self
            .journal
            .entries
            .sysctls
            .contains_key(sysctl::FORWARD_V6)
        {
            conditions.push(condition::ipv6_forwarding());
        }
        let failed = failures.len();
        match failures.into_iter().next() {
            Some(first) => Err(ApplyError::Changes {
                failed,
                planned: changes.len(),
                first,
            }),
            None => Ok(Report {
                changed: changes.len(),
                conditions,
            }),
        }
    }

    /// Resolves when somebody may have changed what [`apply`](Self::apply) looks at, about 150 ms after the first
    /// event, and at most about once a second while changes do not end. Firewalls and sysctls, which send no events,
    /// are looked at every 600 ms; that runs no program, except where legacy iptables has a filter table: one per
    /// family. Changes made by `apply` itself are noticed too: the next `apply` then changes nothing. May be
    /// cancelled at any point without losing a change.
    pub async fn changed(&mut self) {
        self.watch.changed(&self.names).await;
    }

    /// Networks this host is on: of all usable addresses of interfaces that are up, but for our own device and
    /// networks inside `excluding` (the bridge of the pods). Loopback and link-local ones do not count.
    ///
    /// # Errors
    /// When links or addresses cannot be listed.
    pub async fn connected(&self, excluding: &[IpNet]) -> Result<Vec<IpNet>, ReadError> {
        let interfaces = self.netlink.interfaces(&self.names).await?;
        Ok(netlink::connected(&interfaces.addresses, excluding))
    }

    /// Addresses others may reach this host at: of interfaces that are up, without our own device, loopback,
    /// link-local and tentative ones.
    ///
    /// # Errors
    /// When links or addresses cannot be listed.
    pub async fn host_addresses(&self) -> Result<Vec<HostAddress>, ReadError> {
        Ok(self.netlink.interfaces(&self.names).await?.addresses)
    }

    /// Removes everything that was ever programmed under `names`, by owner mark and by journal, and then the
    /// journal. Needs no running agent, finds nothing the second time, and leaves alone what is somebody else's.
    ///
    /// # Errors
    /// When the host cannot be read. What could not be removed is in the report, and the journal then stays.
    pub async fn cleanup(names: Names, journal: &Path) -> Result<CleanupReport, CleanupError> {
        if !names.are_plain() {
            return Err(CleanupError::Names);
        }
        let journal = Journal::open(journal.to_owned(), &names)?;
        cleanup::cleanup(&names, journal).await
    }

    /// What [`cleanup`](Self::cleanup) would remove and leave if there were no journal. Changes nothing.
    ///
    /// # Errors
    /// When the host cannot be read.
    pub async fn foresee_cleanup(names: Names) -> Result<CleanupReport, CleanupError> {
        if !names.are_plain() {
            return Err(CleanupError::Names);
        }
        cleanup::foresee(&names).await
    }

    /// `desired` plus the prefixes held before, unless they have become something of this host's own.
    fn with_memory(&mut self, desired: &Desired, reading: &Reading) -> Desired {
        self.journal.hold(&desired.held, &desired.remote);
        let connected = netlink::connected(&reading.addresses, &[]);
        let taken = |net: &IpNet| {
            let own = desired.local.iter().chain(&desired.addresses);
            own.chain(&connected)
                .any(|other| overlap(&other.trunc(), net))
        };
        let mut desired = desired.clone();
        let remembered = self.journal.entries.held.iter().copied();
        let remembered: Vec<_> = remembered.filter(|net| !taken(net)).collect();
        desired.held.extend(remembered);
        desired
    }

    async fn make(
        &mut self,
        changes: &[Change],
        desired: &Desired,
        actual: &Actual,
        conditions: &mut Vec<Condition>,
    ) -> Result<Vec<ChangeError>, ApplyError> {
        let context = Context {
            netlink: &self.netlink,
            names: &self.names,
            desired,
            actual,
        };
        let mut failures = Vec::new();
        for change in changes {
            tracing::debug!(%change, "host change");
            match apply::apply(change, &context, &mut self.journal).await {
                Ok(condition) => conditions.extend(condition),
                Err(source) => {
                    tracing::warn!(%change, error = %source, "host change failed");
                    let change = change.to_string();
                    failures.push(ChangeError { change, source });
                }
            }
        }
        self.journal.save()?;
        Ok(failures)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_send<T: Send>(_: T) -> bool {
        true
    }

    #[tokio::test]
    async fn its_futures_may_move_between_threads() {
        let path = Path::new("/nonexistent/journal");
        let mut names = Names::default();
        assert!(is_send(Netconf::open(names.clone(), path.to_owned())));
        assert!(is_send(Netconf::cleanup(names.clone(), path)));
        let methods = |mut netconf: Netconf| async move {
            let _ = netconf.apply(&Desired::default()).await;
            let _ = netconf.connected(&[]).await;
            netconf.changed().await;
        };
        fn returns_send<F: Future + Send>(_: impl Fn(Netconf) -> F) -> bool {
            true
        }
        assert!(returns_send(methods));
        names.device = "a\" drop".to_owned();
        let refused = Netconf::open(names, path.to_owned()).await;
        assert!(matches!(refused, Err(OpenError::Names)));
    }
}
