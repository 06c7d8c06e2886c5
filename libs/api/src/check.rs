//! From a spec as written to a configuration that cannot be wrong: the rules that need nothing but the object itself.

mod mesh;
mod peer;
mod prefix;

pub(crate) use mesh::{check_mesh, too_small_for_v6};
pub(crate) use peer::{accept_nodes, check_peer};
pub use prefix::{check_prefix, overlap};

use crate::{Code, Problem};

/// Longest name of an object or node.
const MAX_NAME: usize = 253;
/// Longest DNS label.
const MAX_LABEL: usize = 63;

/// Problems found so far in one object.
#[derive(Debug, Default)]
pub(crate) struct Findings(Vec<Problem>);

impl Findings {
    /// Notes a problem.
    pub(crate) fn add(&mut self, field: impl Into<String>, code: Code, message: impl Into<String>) {
        self.0.push(Problem::new(field, code, message));
    }

    /// Notes the problem, if there is one.
    pub(crate) fn take<T>(&mut self, result: Result<T, Problem>) -> Option<T> {
        result.map_err(|problem| self.0.push(problem)).ok()
    }

    /// Whether nothing was found.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What was found.
    pub(crate) fn into_problems(self) -> Vec<Problem> {
        self.0
    }

    /// `value`, unless something was found.
    pub(crate) fn finish<T>(self, value: T) -> Result<T, Vec<Problem>> {
        if self.0.is_empty() {
            Ok(value)
        } else {
            Err(self.0)
        }
    }
}

/// Checks a single DNS label.
///
/// # Errors
/// [`Code::BadName`]
pub fn check_label(field: &str, text: &str) -> Result<(), Problem> {
    if is_label(text) {
        return Ok(());
    }
    let message = format!(
        "{} is not a DNS label; use 1 to 63 lower-case letters, digits and -, beginning and ending with a letter or digit",
        quote(text)
    );
    Err(Problem::new(field, Code::BadName, message))
}

/// Checks a name made of DNS labels joined by dots, as Kubernetes has them.
pub(crate) fn check_name(field: &str, text: &str) -> Result<(), Problem> {
    if text.len() <= MAX_NAME && text.split('.').all(is_label) {
        return Ok(());
    }
    let message = format!(
        "{} is not a name; use lower-case letters, digits, - and ., each part beginning and ending with a letter or digit",
        quote(text)
    );
    Err(Problem::new(field, Code::BadName, message))
}

/// Text of a user for a message: quoted, control characters escaped, cut.
pub(crate) fn quote(text: &str) -> String {
    const MOST: usize = 80;
    match text.char_indices().nth(MOST) {
        Some((at, _)) => format!("{:?}...", text.split_at(at).0),
        None => format!("{text:?}"),
    }
}

fn is_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let ends_well = !text.starts_with('-') && !text.ends_with('-');
    (1..=MAX_LABEL).contains(&text.len()) && ends_well && text.bytes().all(inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels() {
        let long = "a".repeat(64);
        for good in ["a", "berlin", "b-1", "0", &long[..63]] {
            assert!(check_label("f", good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a_b", "ä", "a b", "a\n", &long] {
            assert_eq!(check_label("f", bad).expect_err(bad).code, Code::BadName);
        }
        assert!(check_name("f", "a.b-c.d").is_ok());
        assert!(check_name("f", "a..b").is_err());
        assert!(check_name("f", &vec!["a"; 200].join(".")).is_err());
    }

    #[test]
    fn quoted_text_is_bounded_and_on_one_line() {
        let text = quote(&"ü\n".repeat(500));
        assert!(text.len() < 400 && !text.contains('\n'), "{text}");
    }
}
