//! The lab from the command line.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};
use e2e::demo::{ClusterDemo, Demo};
use e2e::{Kit, Profile, cluster, image, lab};

/// Two sites behind NAT in network namespaces, linked by Culvert. Needs root.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build two sites, link them, show what happens, take everything down.
    Demo {
        /// The sites' routers, one for both or A,B: public, full-cone, port-restricted, symmetric, udp-blocked, poisoned.
        #[arg(
            long,
            value_delimiter = ',',
            num_args = 1,
            default_value = "port-restricted"
        )]
        nat: Vec<Profile>,
        /// Leave everything up, and say how to enter a pod and how to stop it.
        #[arg(long)]
        keep: bool,
    },
    /// Stop a demo that was left up.
    Down,
    /// Build Kubernetes for the clusters of the tests, once, into a cache.
    Tools,
    /// Write the images of the programs in a folder as OCI archives.
    Images {
        /// Where the programs are, built for distribution.
        #[arg(long)]
        programs: PathBuf,
        /// Where the archives go.
        #[arg(long, default_value = "target/images")]
        out: PathBuf,
    },
    /// Bring up two real clusters with the images loaded, and leave them up.
    ClusterDemo {
        /// The clusters' routers, one for both or A,B.
        #[arg(
            long,
            value_delimiter = ',',
            num_args = 1,
            default_value = "port-restricted"
        )]
        nat: Vec<Profile>,
        /// Where the images are.
        #[arg(long, default_value = "target/images")]
        images: PathBuf,
    },
    /// Remove the clusters that were left up.
    ClusterDown,
    /// Be the first process of a machine of a cluster.
    #[command(hide = true)]
    Machine {
        /// What the machine is like.
        description: PathBuf,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(code) => code,
        Err(error) => fail(&format!("{error:#}")),
    }
}

fn run(arguments: Arguments) -> Result<ExitCode> {
    match arguments.command {
        Command::Demo { nat, keep } => {
            let (a, b) = two(&nat)?;
            // The demo has told what failed.
            Ok(Demo { a, b, keep }
                .run()
                .map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS))
        }
        Command::Down | Command::ClusterDown => down(),
        Command::ClusterDemo { nat, images } => {
            let (a, b) = two(&nat)?;
            Ok(ClusterDemo { a, b, images }
                .run()
                .map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS))
        }
        Command::Tools => tools(),
        Command::Images { programs, out } => images(&programs, &out),
        Command::Machine { description } => match cluster::machine_init(&description)? {},
    }
}

fn two(nat: &[Profile]) -> Result<(Profile, Profile)> {
    match nat {
        [both] => Ok((*both, *both)),
        [a, b] => Ok((*a, *b)),
        _ => bail!("--nat takes one profile or two, such as symmetric,port-restricted"),
    }
}

fn down() -> Result<ExitCode> {
    say("removing the demo that was left up ...");
    let names = lab::take_down_kept()?;
    if names.is_empty() {
        say("nothing was up");
    } else {
        say(&format!("removed {} namespaces", names.len()));
    }
    Ok(ExitCode::SUCCESS)
}

fn tools() -> Result<ExitCode> {
    let kit = Kit::build(&mut |part| say(part))?;
    say(&format!("Kubernetes is in {}", kit.programs().display()));
    Ok(ExitCode::SUCCESS)
}

fn images(programs: &Path, out: &Path) -> Result<ExitCode> {
    for product in image::PRODUCTS {
        if !programs.join(product.program).exists() {
            say(&format!(
                "skipped {}: there is no {}",
                product.image(),
                product.program
            ));
            continue;
        }
        let start = Instant::now();
        let archive = product.write(programs, out)?;
        let (size, took) = (
            fs::metadata(&archive)?.len() >> 20,
            start.elapsed().as_secs_f32(),
        );
        say(&format!(
            "{} in {} ({size} MB, {took:.1} s)",
            product.image(),
            archive.display()
        ));
    }
    Ok(ExitCode::SUCCESS)
}

#[expect(clippy::print_stdout, reason = "a command line tool")]
fn say(line: &str) {
    println!("{line}");
}

#[expect(clippy::print_stderr, reason = "a command line tool")]
fn fail(message: &str) -> ExitCode {
    eprintln!("culvert-lab: {message}");
    ExitCode::from(2)
}
