//! The membership that the other side is given: only the latest counts, and it is said once.

use crate::message::is_statement;

#[derive(Debug, Default)]
pub(super) struct Gift {
    now: Option<String>,
    told: Option<String>,
}

impl Gift {
    pub(super) fn set(&mut self, text: Option<&str>) {
        self.now = text.filter(|text| is_statement(text)).map(str::to_owned);
    }

    /// What has to be said.
    pub(super) fn poll(&mut self) -> Option<Option<String>> {
        if self.now == self.told {
            return None;
        }
        self.told.clone_from(&self.now);
        Some(self.now.clone())
    }
}
