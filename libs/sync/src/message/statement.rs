//! Signed statements about relays, which this crate passes on and does not look into.

/// The longest pass or membership.
pub const MAX_STATEMENT: usize = 4096;

/// Whether a text may be a pass or a membership: short, and of characters that need no care anywhere.
pub(crate) fn is_statement(text: &str) -> bool {
    let is_harmless = |byte: u8| {
        byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'=' | b'+' | b'/')
    };
    (1..=MAX_STATEMENT).contains(&text.len()) && text.bytes().all(is_harmless)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_are_short_and_harmless() {
        for text in ["a", "eyJ2IjoxfQ", "a.b-c_d==", &"x".repeat(MAX_STATEMENT)] {
            assert!(is_statement(text), "{text}");
        }
        for text in [
            "",
            "a b",
            "a\n",
            "\"",
            "{}",
            "\\",
            "ä",
            &"x".repeat(MAX_STATEMENT + 1),
        ] {
            assert!(!is_statement(text), "{text}");
        }
    }
}
