//! Reading the host.

use std::collections::BTreeSet;

use crate::actual::{Actual, Device};
use crate::desired::Names;
use crate::iptables::{self, Backend, Chain};
use crate::journal::Entries;
use crate::netlink::Netlink;
use crate::nft::{self, BaseChain, NativeDrop, Table};
use crate::report::{CommandError, HostAddress, ReadError};
use crate::sysctl;

/// A reading, and what it leaves out of [`Actual`].
#[derive(Debug)]
pub(crate) struct Reading {
    pub(crate) actual: Actual,
    /// With their interfaces.
    pub(crate) addresses: Vec<HostAddress>,
}

/// Reads everything a plan needs. `port` is that of the tunnel, to judge firewalls by.
pub(crate) async fn read(
    netlink: &Netlink,
    names: &Names,
    entries: &Entries,
    port: u16,
) -> Result<Reading, ReadError> {
    let v6 = sysctl::has_v6();
    let interfaces = netlink.interfaces(names).await?;
    let index = interfaces.device.as_ref().map(|device| device.index);
    let routes = netlink.routes(names, index, v6).await?;
    let rules = netlink.rules(names, v6).await?;
    let firewalls = firewalls(names, entries.table_digest, port).await?;
    let sysctls = sysctl::read_all(names);
    let locked = sysctl::locked(sysctls.keys());
    let disabled = format!("net/ipv6/conf/{}/disable_ipv6", names.device);
    let no_v6 =
        locked.contains(&disabled) && sysctls.get(&disabled).is_some_and(|value| value != "0");
    let actual = Actual {
        v6,
        device: interfaces.device.map(|device| Device { no_v6, ..device }),
        addresses: interfaces
            .addresses
            .iter()
            .map(|found| found.address)
            .collect(),
        routes: routes.ours,
        foreign_routes: routes.foreign,
        rules: rules.ours,
        foreign_rules: rules.foreign,
        table: firewalls.table,
        chains: firewalls.chains,
        native_drops: firewalls.native_drops,
        missing: firewalls.missing,
        sysctls,
        locked,
        unlocked_iptables: firewalls.unlocked_iptables,
        flows_pending: entries.flows_pending,
    };
    Ok(Reading {
        actual,
        addresses: interfaces.addresses,
    })
}

#[derive(Default)]
struct Firewalls {
    table: Table,
    chains: Vec<Chain>,
    native_drops: Vec<NativeDrop>,
    missing: BTreeSet<&'static str>,
    unlocked_iptables: bool,
}

async fn firewalls(names: &Names, digest: Option<u64>, port: u16) -> Result<Firewalls, ReadError> {
    let mut found = Firewalls::default();
    let mut native = Vec::new();
    match nft::NFT.run(&["list", "chains"], "").await {
        Ok(listing) => {
            native = nft::base_chains(&listing, names);
            found.table = nft::parse(&nft::list(names).await?, digest);
        }
        Err(error) => found.table = Table::Unknown(error.to_string()),
    }
    for backend in iptables::in_use(&native) {
        found.unlocked_iptables |= backend.lacks_lock();
        match backend.list().await {
            Ok(listing) => {
                native.retain(|chain| !is_held_by(chain, backend));
                found
                    .chains
                    .extend(iptables::analyse(backend, &listing, names));
            }
            Err(CommandError::Missing { program, .. }) => drop(found.missing.insert(program)),
            // An `ip filter` table that iptables did not make: native after all.
            Err(error) => tracing::debug!(%error, "not an iptables table"),
        }
    }
    for chain in &native {
        let args = [
            "-s",
            "list",
            "chain",
            &chain.family,
            &chain.table,
            &chain.name,
        ];
        if let Ok(listing) = nft::NFT.run(&args, "").await {
            let drop = nft::native_drop(chain, &listing, &names.device, port);
            found.native_drops.extend(drop);
        }
    }
    Ok(found)
}

fn is_held_by(chain: &BaseChain, backend: Backend) -> bool {
    backend.flavour == iptables::Flavour::Nft
        && chain.is_iptables()
        && chain.family == backend.family()
}
