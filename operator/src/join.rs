//! Joining: what an inviter answers, and when and how this cluster tries to join.

mod failure;
mod inviter;
mod joiner;
mod private;

#[cfg(test)]
mod tests;

pub use inviter::answer;
pub(crate) use joiner::plan_join;
