//! Peers that may use less than they ask for.

use ipnet::IpNet;
use serde_json::Value;

/// What two lists of prefixes have in common, in the order of the first.
pub(crate) fn within(asked: &[IpNet], granted: &[IpNet]) -> Vec<IpNet> {
    let mut common = Vec::new();
    for one in asked {
        for both in granted.iter().filter_map(|other| narrower(*one, *other)) {
            if !common.contains(&both) {
                common.push(both);
            }
        }
    }
    common
}

/// The spec of a Peer without what lies outside `granted`: prefixes of written nodes, too. What is no prefix is left for the
/// checks to complain about.
pub(crate) fn clipped(spec: &Value, granted: &[IpNet]) -> Value {
    let mut spec = spec.clone();
    let Some(list) = spec.get_mut("allowedCIDRs").and_then(Value::as_array_mut) else {
        return spec;
    };
    let (asked, rest): (Vec<Value>, Vec<Value>) = std::mem::take(list)
        .into_iter()
        .partition(|one| prefix(one).is_some());
    let asked: Vec<IpNet> = asked.iter().filter_map(prefix).collect();
    let allowed = within(&asked, granted);
    list.extend(allowed.iter().map(|one| Value::from(one.to_string())));
    list.extend(rest);
    let nodes = spec.get_mut("nodes").and_then(Value::as_array_mut);
    for node in nodes.into_iter().flatten() {
        if let Some(prefixes) = node.get_mut("prefixes").and_then(Value::as_array_mut) {
            prefixes.retain(|one| prefix(one).is_none_or(|one| is_within(one, &allowed)));
        }
    }
    spec
}

/// Whether one of the ranges holds all of the prefix.
pub(crate) fn is_within(prefix: IpNet, ranges: &[IpNet]) -> bool {
    ranges.iter().any(|range| range.contains(&prefix))
}

fn narrower(a: IpNet, b: IpNet) -> Option<IpNet> {
    if b.contains(&a) {
        Some(a)
    } else {
        a.contains(&b).then_some(b)
    }
}

fn prefix(value: &Value) -> Option<IpNet> {
    value.as_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        let parse = |text: &&str| text.parse().expect("a prefix");
        texts.iter().map(parse).collect()
    }

    #[test]
    fn what_two_lists_have_in_common() {
        let asked = nets(&["10.2.0.0/16", "10.3.1.0/24", "fd00:2::/48"]);
        let granted = nets(&["10.2.4.0/24", "10.2.9.0/24", "10.3.0.0/16", "10.9.0.0/16"]);
        let common = nets(&["10.2.4.0/24", "10.2.9.0/24", "10.3.1.0/24"]);
        assert_eq!(within(&asked, &granted), common);
        assert_eq!(within(&asked, &asked), asked);
        assert!(within(&asked, &[]).is_empty());
    }

    #[test]
    fn a_spec_keeps_what_is_granted_and_what_is_no_prefix() {
        let spec = json!({
            "allowedCIDRs": ["10.2.0.0/16", "x"], "later": 1,
            "nodes": [{"name": "a", "prefixes": ["10.2.4.0/25", "10.2.5.0/24", 7]}, {"name": "b"}],
        });
        assert_eq!(
            clipped(&spec, &nets(&["10.2.4.0/24"])),
            json!({
                "allowedCIDRs": ["10.2.4.0/24", "x"], "later": 1,
                "nodes": [{"name": "a", "prefixes": ["10.2.4.0/25", 7]}, {"name": "b"}],
            })
        );
        assert_eq!(clipped(&spec, &nets(&["10.0.0.0/8"])), spec);
        assert_eq!(clipped(&json!(null), &[]), json!(null));
    }
}
