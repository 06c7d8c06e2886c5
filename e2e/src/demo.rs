//! The demonstration: two sites behind NAT, linked before the eyes of whoever runs it.

mod screen;
mod story;

use std::io::{self, IsTerminal};

use anyhow::Result;

pub use screen::Screen;

use crate::profile::Profile;

/// What to show.
#[derive(Clone, Copy, Debug)]
pub struct Demo {
    /// The first site's router.
    pub a: Profile,
    /// The second site's router.
    pub b: Profile,
    /// Whether everything stays up afterwards.
    pub keep: bool,
}

impl Demo {
    /// Shows it on stdout, in colour on a terminal. Fails when any step does; everything is down again then.
    pub fn run(self) -> Result<()> {
        let stdout = io::stdout();
        let colour = stdout.is_terminal() && std::env::var_os("NO_COLOR").is_none();
        self.show(&mut Screen::new(Box::new(stdout), colour))
    }

    /// Shows it on a screen.
    pub fn show(self, screen: &mut Screen) -> Result<()> {
        let told = story::tell(self, screen);
        match &told {
            Ok(()) => {}
            Err(error) => {
                screen.failed(&format!("{error:#}"))?;
                if self.keep {
                    crate::lab::take_down_kept()?;
                }
            }
        }
        told
    }
}
