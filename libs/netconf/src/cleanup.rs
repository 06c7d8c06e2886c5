//! Leaving the host as it was before: by owner mark, and by journal for what carries no mark.

use crate::actual::Actual;
use crate::apply::{self, Context};
use crate::condition;
use crate::desired::{Desired, Names};
use crate::journal::{Entries, Journal};
use crate::netlink::Netlink;
use crate::nft::Table;
use crate::plan::plan;
use crate::read::read;
use crate::report::{CleanupError, CleanupReport, Condition, ConditionCode};
use crate::sysctl;

/// Removes everything of ours, then the journal.
pub(crate) async fn cleanup(
    names: &Names,
    mut journal: Journal,
) -> Result<CleanupReport, CleanupError> {
    let netlink = Netlink::open()?;
    let idle = Desired::default();
    let mut report = CleanupReport::default();
    let reading = read(&netlink, names, &journal.entries, 0).await?;
    let context = Context {
        netlink: &netlink,
        names,
        desired: &idle,
        actual: &reading.actual,
    };
    for change in plan(names, &idle, &reading.actual) {
        match apply::apply(&change, &context, &mut journal).await {
            Ok(_) => report.removed.push(change.to_string()),
            Err(error) => {
                let message = format!("{change}: {error}");
                report
                    .left
                    .push(Condition::new(ConditionCode::Conflict, message));
            }
        }
    }
    report.left.extend(untouched(names, &reading.actual));
    restore(&journal, &mut report);
    if report.left.is_empty() && journal.remove()? {
        tracing::debug!("journal removed");
    }
    Ok(report)
}

/// What [`cleanup`] without a journal would remove, and what it would leave. Changes nothing.
pub(crate) async fn foresee(names: &Names) -> Result<CleanupReport, CleanupError> {
    let netlink = Netlink::open()?;
    let reading = read(&netlink, names, &Entries::default(), 0).await?;
    let changes = plan(names, &Desired::default(), &reading.actual);
    Ok(CleanupReport {
        removed: changes.iter().map(ToString::to_string).collect(),
        left: untouched(names, &reading.actual),
    })
}

/// What is somebody else's, or cannot be looked at.
fn untouched(names: &Names, actual: &Actual) -> Vec<Condition> {
    let foreign = condition::conflicts(names, actual).into_iter();
    let mut left: Vec<_> = foreign
        .map(|message| Condition::new(ConditionCode::Conflict, message))
        .collect();
    if let Table::Unknown(error) = &actual.table {
        left.push(Condition::new(ConditionCode::NftMissing, error.clone()));
    }
    let missing = actual.missing.iter().map(|program| {
        let message = format!("{program} is not installed, so its rules cannot be looked at; on Debian: apt-get install iptables");
        Condition::new(ConditionCode::IptablesMissing, message)
    });
    left.extend(missing);
    left
}

/// Sysctls turned by us go back, if they are still as we set them.
fn restore(journal: &Journal, report: &mut CleanupReport) {
    for (switch, turned) in &journal.entries.sysctls {
        let (Some(now), Some(before)) = (sysctl::read(switch), turned.before.get(switch)) else {
            continue;
        };
        if now != turned.to || now == *before {
            continue;
        }
        match sysctl::write(switch, before) {
            Ok(()) => report
                .removed
                .push(format!("set {switch} back to {before}")),
            Err(error) => {
                let dotted = switch.replace('/', ".");
                let message = format!("{error}; run on the host: sysctl -w {dotted}={before}");
                report
                    .left
                    .push(Condition::new(ConditionCode::ForwardingOff, message));
                continue;
            }
        }
        for (key, before) in &turned.before {
            // Followers of interfaces that are gone have no file any more.
            if sysctl::read(key).is_some_and(|now| now != *before)
                && let Err(error) = sysctl::write(key, before)
            {
                tracing::debug!(key, %error, "not restored");
            }
        }
    }
}
