//! Conditions of the kinds, by the conventions of the Kubernetes API.

use std::fmt;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// Longest message of a condition.
const MAX_MESSAGE: usize = 1024;

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConditionStatus {
    /// It does.
    True,
    /// It does not.
    False,
    /// Nobody can tell now.
    Unknown,
}

/// A condition as it should be, before it is compared with what it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Its type, such as `Ready`.
    pub kind: &'static str,
    /// Whether it holds.
    pub status: ConditionStatus,
    /// Why, in one CamelCase word; each is documented with what to do.
    pub reason: &'static str,
    /// The same for people.
    pub message: String,
}

impl ConditionStatus {
    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

impl From<bool> for ConditionStatus {
    fn from(holds: bool) -> Self {
        if holds { Self::True } else { Self::False }
    }
}

impl fmt::Display for ConditionStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Finding {
    /// A finding.
    pub fn new(
        kind: &'static str,
        status: impl Into<ConditionStatus>,
        reason: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self {
            kind,
            status: status.into(),
            reason,
            message: message.into(),
        }
    }

    /// The condition for an object of this generation. `lastTransitionTime` stays that of `before` while the status stays.
    #[must_use]
    pub fn condition(
        &self,
        before: &[Condition],
        generation: Option<i64>,
        now: Timestamp,
    ) -> Condition {
        let same = find_condition(before, self.kind)
            .filter(|old| old.status == self.status.as_str())
            .map(|old| old.last_transition_time.clone());
        Condition {
            type_: self.kind.to_owned(),
            status: self.status.as_str().to_owned(),
            reason: self.reason.to_owned(),
            message: self.message.chars().take(MAX_MESSAGE).collect(),
            observed_generation: generation,
            last_transition_time: same.unwrap_or(Time(now)),
        }
    }
}

/// All findings as conditions, in their order.
#[must_use]
pub fn conditions(
    findings: &[Finding],
    before: &[Condition],
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    let condition = |finding: &Finding| finding.condition(before, generation, now);
    findings.iter().map(condition).collect()
}

/// The condition of this type.
#[must_use]
pub fn find_condition<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == kind)
}

/// Whether the condition of this type is `True`.
#[must_use]
pub fn is_true(conditions: &[Condition], kind: &str) -> bool {
    find_condition(conditions, kind).is_some_and(|condition| condition.status == "True")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    #[test]
    fn the_transition_time_changes_with_the_status_only() {
        let ready = Finding::new("Ready", true, "Programmed", "all well");
        let first = conditions(&[ready], &[], Some(1), at(10));
        let other_words = Finding::new("Ready", true, "Other", "still well");
        let second = conditions(&[other_words], &first, Some(2), at(20));
        assert_eq!(second[0].last_transition_time, Time(at(10)));
        assert_eq!(second[0].observed_generation, Some(2));
        let down = Finding::new("Ready", ConditionStatus::Unknown, "StaleProbe", "?");
        let third = conditions(&[down], &second, Some(2), at(30));
        assert_eq!(third[0].last_transition_time, Time(at(30)));
        assert!(is_true(&second, "Ready") && !is_true(&third, "Ready"));
    }

    #[test]
    fn a_message_is_bounded() {
        let long = Finding::new("Ready", false, "Long", "ü".repeat(5000));
        let condition = long.condition(&[], None, at(0));
        assert_eq!(condition.message.chars().count(), MAX_MESSAGE);
    }
}
