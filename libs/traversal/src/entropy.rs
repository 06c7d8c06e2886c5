//! Randomness as an argument.

/// A source of unpredictable bytes: the operating system's in the agent, a seeded generator in tests.
pub trait Entropy: Send {
    /// Fills all of `bytes`.
    fn fill(&mut self, bytes: &mut [u8]);
}

/// A random number that is never zero, so that zero can mean "none" on the wire.
pub(crate) fn id(entropy: &mut dyn Entropy) -> u64 {
    let mut bytes = [0; 8];
    entropy.fill(&mut bytes);
    u64::from_be_bytes(bytes).max(1)
}
