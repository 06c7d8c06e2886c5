//! What our programs that run for long have in common: flags for the log, and pages over HTTP that tell how they are.
//!
//! [`LogArgs`] is flattened into a command line. A [`Site`] says which [`Page`] is at which path, and [`serve`] answers:
//! bounded in connections, bytes and time, so that whoever reaches the port can do no harm. It is no web server: one GET a
//! connection, whole answers, nothing else.

mod log;
mod pages;

pub use log::{LogArgs, LogFormat};
pub use pages::{Page, Site, serve};
