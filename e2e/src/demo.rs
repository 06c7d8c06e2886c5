//! The demonstration: two sites behind NAT, linked before the eyes of whoever runs it.

mod clusters;
mod screen;
mod story;

use std::io::{self, IsTerminal};

use anyhow::Result;

pub use clusters::ClusterDemo;
pub use screen::Screen;

use crate::lab::{ensure_root, refuse_second_kept, take_down_kept};
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
        let told = self.tell(screen);
        if let Err(error) = &told {
            screen.failed(&format!("{error:#}"))?;
        }
        told
    }

    fn tell(self, screen: &mut Screen) -> Result<()> {
        ensure_root()?;
        if !self.keep {
            return story::tell(self, screen);
        }
        refuse_second_kept()?;
        let told = story::tell(self, screen);
        if told.is_err() {
            take_down_kept()?;
        }
        told
    }
}
