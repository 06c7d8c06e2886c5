//! Whether an object is as it is wanted: the API server fills in much that nobody asked for.

use ring::digest::{SHA256, digest};
use serde_json::Value;

/// Whether everything that is wanted is there. What is there besides is others' or a default; lists must be as long as
/// wanted.
pub(crate) fn covers(found: &Value, wanted: &Value) -> bool {
    match (found, wanted) {
        (_, Value::Null) => true,
        (Value::Null, Value::Array(wanted)) => wanted.is_empty(),
        (Value::Null, Value::Object(wanted)) => wanted.is_empty(),
        (Value::Object(found), Value::Object(wanted)) => wanted.iter().all(|(key, wanted)| {
            let found = found.get(key).unwrap_or(&Value::Null);
            covers(found, wanted)
        }),
        (Value::Array(found), Value::Array(wanted)) => {
            found.len() == wanted.len() && found.iter().zip(wanted).all(|(a, b)| covers(a, b))
        }
        (found, wanted) => found == wanted,
    }
}

/// A short text that differs for different content.
pub(crate) fn checksum(content: &[u8]) -> String {
    let hash = digest(&SHA256, content);
    let bytes = hash.as_ref().iter().take(16);
    bytes.map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn more_than_is_wanted_covers_it_and_less_does_not() {
        let found = json!({"a": 1, "b": {"c": [{"d": 1, "default": 2}]}, "e": null});
        for wanted in [
            json!({}),
            json!({"a": 1}),
            json!({"b": {"c": [{"d": 1}]}}),
            json!({"x": null, "y": [], "z": {}}),
        ] {
            assert!(covers(&found, &wanted), "{wanted}");
        }
        for wanted in [
            json!({"a": 2}),
            json!({"b": {"c": []}}),
            json!({"b": {"c": [{"d": 1}, {"d": 1}]}}),
            json!({"e": "x"}),
            json!({"x": {"y": 1}}),
        ] {
            assert!(!covers(&found, &wanted), "{wanted}");
        }
    }

    #[test]
    fn checksums_tell_contents_apart() {
        assert_eq!(checksum(b"a").len(), 32);
        assert_ne!(checksum(b"a"), checksum(b"b"));
    }
}
