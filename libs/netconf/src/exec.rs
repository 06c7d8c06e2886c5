//! Running the few programs that have no kernel interface worth speaking: an argument list, never a shell.

use std::io::ErrorKind;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::CommandError;

/// Longest run of one program.
const LIMIT: Duration = Duration::from_secs(20);

/// A program and where Debian has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Program {
    pub(crate) name: &'static str,
    pub(crate) package: &'static str,
}

impl Program {
    /// Runs it with `stdin` and returns what it wrote to its standard output.
    ///
    /// The child inherits the network namespace of the calling thread.
    pub(crate) async fn run(self, args: &[&str], stdin: &str) -> Result<String, CommandError> {
        self.run_with(args, stdin, &[]).await
    }

    /// The same with variables added to its environment.
    pub(crate) async fn run_with(
        self,
        args: &[&str],
        stdin: &str,
        variables: &[(&str, &str)],
    ) -> Result<String, CommandError> {
        tracing::trace!(program = self.name, ?args, "run");
        match tokio::time::timeout(LIMIT, self.output(args, stdin, variables)).await {
            Ok(result) => result,
            Err(_) => Err(CommandError::TimedOut {
                program: self.name,
                seconds: LIMIT.as_secs(),
            }),
        }
    }

    async fn output(
        self,
        args: &[&str],
        stdin: &str,
        variables: &[(&str, &str)],
    ) -> Result<String, CommandError> {
        let mut child = Command::new(self.name)
            .args(args)
            .env("LC_ALL", "C")
            .env("PATH", search_path())
            .envs(variables.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| self.cannot(source))?;
        let pipe = child.stdin.take();
        let feed = async {
            if let Some(mut pipe) = pipe {
                // A program that fails early closes its end; its exit status says why.
                let _ = pipe.write_all(stdin.as_bytes()).await;
            }
        };
        let (output, ()) = tokio::join!(child.wait_with_output(), feed);
        let output = output.map_err(|source| self.cannot(source))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(CommandError::Failed {
            program: self.name,
            stderr: first_line(&output.stderr),
        })
    }

    fn cannot(self, source: std::io::Error) -> CommandError {
        if source.kind() == ErrorKind::NotFound {
            return CommandError::Missing {
                program: self.name,
                package: self.package,
            };
        }
        CommandError::Run {
            program: self.name,
            source,
        }
    }
}

/// Services and users often lack the folders where these programs are.
fn search_path() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{path}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin")
}

fn first_line(stderr: &[u8]) -> String {
    String::from_utf8_lossy(stderr)
        .lines()
        .map(str::trim)
        .find(|line| !line.is_empty())
        .unwrap_or("no message")
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn says_which_package_is_missing() {
        let program = Program {
            name: "culvert-no-such-program",
            package: "some-package",
        };
        let error = program.run(&[], "").await.expect_err("there is none");
        assert!(error.to_string().contains("apt-get install some-package"));
    }

    #[tokio::test]
    async fn passes_arguments_and_input_as_they_are() {
        let cat = Program {
            name: "cat",
            package: "coreutils",
        };
        let text = "a; $(b) `c`\n".repeat(20_000);
        assert_eq!(cat.run(&["-"], &text).await.expect("runs"), text);
    }

    #[tokio::test]
    async fn failure_has_the_first_line_of_stderr() {
        let cat = Program {
            name: "cat",
            package: "coreutils",
        };
        let error = cat.run(&["/no/such/file"], "").await.expect_err("fails");
        assert!(error.to_string().contains("No such file"), "{error}");
    }
}
