//! Making one change.

use crate::actual::Actual;
use crate::condition;
use crate::desired::{Desired, Names};
use crate::journal::{Journal, Turned};
use crate::netfilter;
use crate::netlink::Netlink;
use crate::nft::{self, Sets};
use crate::plan::Change;
use crate::report::{ChangeCause, CommandError, Condition, ConditionCode, JournalError};
use crate::sysctl;

/// Everything a change may need.
pub(crate) struct Context<'a> {
    pub(crate) netlink: &'a Netlink,
    pub(crate) names: &'a Names,
    pub(crate) desired: &'a Desired,
    pub(crate) actual: &'a Actual,
}

/// Writes down what `changes` will do, before any is made.
pub(crate) fn announce(
    changes: &[Change],
    names: &Names,
    journal: &mut Journal,
) -> Result<(), JournalError> {
    for change in changes {
        if let Change::Turn { key, value } = change {
            let fresh = || Turned {
                to: value.clone(),
                before: sysctl::turned_by(key, &names.device),
            };
            journal
                .entries
                .sysctls
                .entry(key.clone())
                .or_insert_with(fresh);
        }
    }
    journal.entries.flows_pending |= changes.contains(&Change::ForgetFlows);
    if changes
        .iter()
        .any(|change| matches!(change, Change::MakeTable))
    {
        journal.entries.table_digest = None;
    }
    journal.save()
}

/// Makes `change`. A condition is an outcome the caller is told of and that repeating would not mend.
pub(crate) async fn apply(
    change: &Change,
    context: &Context<'_>,
    journal: &mut Journal,
) -> Result<Option<Condition>, ChangeCause> {
    let Context {
        netlink,
        names,
        desired,
        actual,
    } = context;
    let device = actual.device.as_ref().map_or(0, |device| device.index);
    match change {
        Change::Turn { key, value } => return Ok(turn(key, value)),
        Change::Sysctl { key, value } => {
            return Ok(device_sysctl(netlink, names, device, key, value).await);
        }
        Change::SetDevice => netlink.set_device(device, desired.mtu).await?,
        Change::AddAddress(address) => netlink.add_address(device, *address).await?,
        Change::DeleteAddress(address) => netlink.delete_address(device, *address).await?,
        Change::MakeTable => make_table(names, desired, journal).await?,
        Change::SetElements { from, to } => set_elements(names, from, to).await?,
        Change::DeleteTable => nft::load(&nft::render_delete(names)).await?,
        Change::Insert {
            backend,
            hook,
            accept,
            position,
        } => {
            backend.insert(*hook, *accept, *position, names).await?;
        }
        Change::Delete {
            backend,
            hook,
            accept,
        } => backend.delete(*hook, *accept, names).await?,
        Change::PutRoute(route) => netlink.put_route(route, names, device).await?,
        Change::DeleteRoute(route) => netlink.delete_route(route, names, device).await?,
        Change::AddRule(rule) => netlink.add_rule(*rule, names).await?,
        Change::DeleteRule(rule) => netlink.delete_rule(*rule, names).await?,
        Change::DeleteDevice => netlink.delete_device(device).await?,
        Change::ForgetFlows => return Ok(forget_flows(desired, actual.v6, journal).await),
    }
    Ok(None)
}

fn turn(key: &str, value: &str) -> Option<Condition> {
    match sysctl::write(key, value) {
        Ok(()) => {
            tracing::info!(key, value, "forwarding turned on");
            None
        }
        Err(error) => Some(condition::forwarding_off(key, value, &error.to_string())),
    }
}

async fn device_sysctl(
    netlink: &Netlink,
    names: &Names,
    device: u32,
    key: &str,
    value: &str,
) -> Option<Condition> {
    let error = match sysctl::attribute(key, &names.device, value) {
        Some(attribute) => netlink
            .set_attribute(device, attribute)
            .await
            .err()?
            .to_string(),
        None => sysctl::write(key, value).err()?.to_string(),
    };
    Some(condition::device_sysctl(key, value, &error))
}

async fn make_table(
    names: &Names,
    desired: &Desired,
    journal: &mut Journal,
) -> Result<(), CommandError> {
    nft::load(&nft::render(names, desired)).await?;
    // Taken from the kernel's own listing: its spelling differs between versions of nft.
    journal.entries.table_digest = Some(nft::rules_digest(&nft::list(names).await?));
    Ok(())
}

/// If the table went in between, the transaction fails and the next reading starts over.
async fn set_elements(names: &Names, from: &Sets, to: &Sets) -> Result<(), CommandError> {
    nft::load(&nft::render_sets(names, from, to)).await
}

async fn forget_flows(desired: &Desired, v6: bool, journal: &mut Journal) -> Option<Condition> {
    let sets = Sets::of(desired);
    let local: Vec<_> = sets.local.into_iter().collect();
    let remote: Vec<_> = sets.remote.into_iter().collect();
    match netfilter::forget_translated(&local, &remote, v6).await {
        Ok(count) => {
            tracing::debug!(count, "forgot translated flows");
            journal.entries.flows_pending = false;
            None
        }
        Err(error) => {
            let message = format!(
                "flows begun before the mesh may keep a translated source until they end: connection tracking cannot be edited ({error}); load the module nf_conntrack_netlink"
            );
            Some(Condition::new(ConditionCode::OldFlows, message))
        }
    }
}
