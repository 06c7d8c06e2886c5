//! The prober against servers that misbehave.
