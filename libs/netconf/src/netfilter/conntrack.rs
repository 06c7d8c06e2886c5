//! Old flows. A masqueraded flow keeps its translation for as long as it is tracked, whatever rules come later, so
//! flows between mesh prefixes whose source was rewritten are removed: their next packet starts anew.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::{NLM_F_DUMP, attribute, exchange, push_attribute};
use crate::desired::within;

const CT_GET: u16 = (1 << 8) | 1;
const CT_DELETE: u16 = (1 << 8) | 2;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_TUPLE_IP: u16 = 1;
const NESTED: u16 = 0x8000;
/// `ENOENT`: the flow ended by itself.
const GONE: i32 = 2;

/// The addresses of a tracked flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Flow {
    /// Who began it.
    source: IpAddr,
    /// Who answers it, after any destination translation.
    answerer: IpAddr,
    /// Whom the answerer sees.
    seen: IpAddr,
}

/// Removes flows between `local` and `remote` whose source was translated, in either direction.
/// Returns how many.
pub(crate) async fn forget_translated(
    local: &[IpNet],
    remote: &[IpNet],
    v6: bool,
) -> io::Result<usize> {
    let mut count = 0;
    for family in [AF_INET, AF_INET6] {
        if family == AF_INET6 && !v6 {
            continue;
        }
        let mut stale = Vec::new();
        exchange(CT_GET, NLM_F_DUMP, family, &[], |entry| {
            if parse(entry).is_some_and(|flow| flow.is_stale(local, remote)) {
                stale.extend(identity(entry));
            }
        })
        .await?;
        for identity in stale {
            match exchange(CT_DELETE, 0, family, &identity, |_| ()).await {
                Ok(()) => count += 1,
                Err(error) if error.raw_os_error() == Some(GONE) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(count)
}

impl Flow {
    fn is_stale(&self, local: &[IpNet], remote: &[IpNet]) -> bool {
        let between = |a, b| within(self.source, a) && within(self.answerer, b);
        self.seen != self.source && (between(local, remote) || between(remote, local))
    }
}

fn parse(entry: &[u8]) -> Option<Flow> {
    let (source, _) = tuple(attribute(entry, CTA_TUPLE_ORIG)?)?;
    let (answerer, seen) = tuple(attribute(entry, CTA_TUPLE_REPLY)?)?;
    Some(Flow {
        source,
        answerer,
        seen,
    })
}

/// Source and destination.
fn tuple(tuple: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let ip = attribute(tuple, CTA_TUPLE_IP)?;
    let v4 = |kind| {
        let octets: [u8; 4] = attribute(ip, kind)?.try_into().ok()?;
        Some(IpAddr::V4(Ipv4Addr::from(octets)))
    };
    let v6 = |kind| {
        let octets: [u8; 16] = attribute(ip, kind)?.try_into().ok()?;
        Some(IpAddr::V6(Ipv6Addr::from(octets)))
    };
    Some((v4(1).or_else(|| v6(3))?, v4(2).or_else(|| v6(4))?))
}

/// What names exactly this entry in a request to delete it.
fn identity(entry: &[u8]) -> Option<Vec<u8>> {
    let mut identity = Vec::new();
    push_attribute(
        &mut identity,
        CTA_TUPLE_ORIG | NESTED,
        attribute(entry, CTA_TUPLE_ORIG)?,
    )?;
    for kind in [CTA_ZONE, CTA_ID] {
        if let Some(value) = attribute(entry, kind) {
            push_attribute(&mut identity, kind, value)?;
        }
    }
    Some(identity)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(source: [u8; 4], answerer: [u8; 4], seen: [u8; 4]) -> Vec<u8> {
        let tuple = |from: [u8; 4], to: [u8; 4]| {
            let (mut ip, mut tuple) = (Vec::new(), Vec::new());
            push_attribute(&mut ip, 1, &from).expect("fits");
            push_attribute(&mut ip, 2, &to).expect("fits");
            push_attribute(&mut tuple, CTA_TUPLE_IP | NESTED, &ip).expect("fits");
            tuple
        };
        let mut entry = Vec::new();
        push_attribute(
            &mut entry,
            CTA_TUPLE_ORIG | NESTED,
            &tuple(source, answerer),
        )
        .expect("fits");
        push_attribute(&mut entry, CTA_TUPLE_REPLY | NESTED, &tuple(answerer, seen)).expect("fits");
        entry
    }

    #[test]
    fn only_translated_flows_between_mesh_prefixes_are_stale() {
        let local: Vec<IpNet> = vec!["10.1.0.0/16".parse().expect("prefix")];
        let remote: Vec<IpNet> = vec!["10.2.0.0/16".parse().expect("prefix")];
        let (pod, far, node) = ([10, 1, 0, 5], [10, 2, 0, 7], [192, 168, 1, 5]);
        let cases = [
            (entry(pod, far, node), true),
            (entry(far, pod, node), true),
            (entry(pod, far, pod), false),
            (entry(pod, [8, 8, 8, 8], node), false),
            (entry(node, far, node), false),
        ];
        for (entry, stale) in cases {
            let flow = parse(&entry).expect("parses");
            assert_eq!(flow.is_stale(&local, &remote), stale, "{flow:?}");
            assert!(identity(&entry).is_some());
        }
    }
}
