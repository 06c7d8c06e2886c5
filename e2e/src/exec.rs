//! Running programs: to the end with their output, or as children that die with this process.

use std::io::{self, Write};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{self, Sender};
use std::thread;

use anyhow::{Context, Result, bail};

/// Runs a command to its end and returns what it printed. A status other than 0 is an error that holds its stderr.
pub fn output(command: Command) -> Result<String> {
    feed(command, "")
}

/// Like [`output`], with `input` on the command's stdin.
pub fn feed(mut command: Command, input: &str) -> Result<String> {
    let shown = shown(&command);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot run {shown}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A command that ends without reading says why on stderr; that is the better message.
        let _ = stdin.write_all(input.as_bytes());
    }
    let done = child
        .wait_with_output()
        .with_context(|| format!("cannot wait for {shown}"))?;
    if !done.status.success() {
        bail!(
            "{shown}: {}\n{}\n{input}",
            done.status,
            String::from_utf8_lossy(&done.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

/// Starts a command from a thread that lives as long as the process.
///
/// A parent-death signal fires when the *thread* that forked ends, so a test's own thread must not fork a long-lived child.
pub fn spawn(command: Command) -> io::Result<Child> {
    let (answer, answered) = mpsc::channel();
    let gone = || io::Error::other("the spawning thread has ended");
    spawner()
        .send(Order { command, answer })
        .map_err(|_| gone())?;
    answered.recv().map_err(|_| gone())?
}

struct Order {
    command: Command,
    answer: Sender<io::Result<Child>>,
}

fn spawner() -> Sender<Order> {
    static SPAWNER: OnceLock<Sender<Order>> = OnceLock::new();
    let start = || {
        let (orders, queue) = mpsc::channel::<Order>();
        thread::spawn(move || {
            for mut order in queue {
                let _ = order.answer.send(order.command.spawn());
            }
        });
        orders
    };
    SPAWNER.get_or_init(start).clone()
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_tells_the_command_and_its_complaint() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo broken >&2; exit 3"]);
        let error = output(command).expect_err("exit 3").to_string();
        assert!(
            error.contains("sh -c") && error.contains("broken"),
            "{error}"
        );
    }
}
