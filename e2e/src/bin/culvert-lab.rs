//! The lab from the command line.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use e2e::demo::Demo;
use e2e::{Profile, lab};

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
            let (a, b) = match nat.as_slice() {
                [both] => (*both, *both),
                [a, b] => (*a, *b),
                _ => {
                    return Ok(fail(
                        "--nat takes one profile or two, such as symmetric,port-restricted",
                    ));
                }
            };
            // The demo has told what failed.
            Ok(Demo { a, b, keep }
                .run()
                .map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS))
        }
        Command::Down => down(),
    }
}

#[expect(clippy::print_stdout, reason = "a command line tool")]
fn down() -> Result<ExitCode> {
    let names = lab::take_down_kept()?;
    println!("removed {} namespaces", names.len());
    Ok(ExitCode::SUCCESS)
}

#[expect(clippy::print_stderr, reason = "a command line tool")]
fn fail(message: &str) -> ExitCode {
    eprintln!("culvert-lab: {message}");
    ExitCode::from(2)
}
