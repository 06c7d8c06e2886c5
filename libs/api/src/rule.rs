//! Rules in CEL that the API server checks, for what a pattern cannot say. They repeat, for the person who writes an
//! object, what the reader and the operator check again.

use serde_json::{Value, json};

/// Every item of a list of prefixes: no host bits, not everything, nothing special.
pub(crate) fn prefixes() -> Value {
    json!([
        {
            "rule": "self.all(c, isCIDR(c) && cidr(c).masked() == cidr(c))",
            "message": "write address/length with no bits set behind the length, such as 10.2.0.0/16",
        },
        {
            "rule": "self.all(c, !isCIDR(c) || (cidr(c).prefixLength() > 0 && !cidr(c).ip().isLoopback() && !cidr(c).ip().isLinkLocalUnicast() && !cidr('224.0.0.0/4').containsCIDR(cidr(c)) && !cidr('ff00::/8').containsCIDR(cidr(c)) && !cidr(c).ip().isUnspecified()))",
            "message": "a default route, loopback, link-local and multicast cannot be reached through a mesh",
        },
    ])
}

/// A value that is given once.
pub(crate) fn immutable(what: &str) -> Value {
    json!([{"rule": "self == oldSelf", "message": format!("{what} cannot be changed; delete the object and make it anew")}])
}

/// An optional field that is given once: it may be added, and neither changed nor removed.
pub(crate) fn set_once(field: &str) -> Value {
    json!([{
        "rule": format!("!has(oldSelf.{field}) || (has(self.{field}) && self.{field} == oldSelf.{field})"),
        "message": format!("{field} cannot be changed; delete the object and make it anew"),
    }])
}

/// A member that a union's variant needs.
pub(crate) fn needs(rules: &[(&str, &str, &str)]) -> Value {
    let rule = |(kind, member, message): &(&str, &str, &str)| json!({"rule": format!("self.type != '{kind}' || has(self.{member})"), "message": message});
    rules.iter().map(rule).collect()
}
