//! A running `culvert-operator`.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Namespace of the operators under test.
pub(crate) const NAMESPACE: &str = "culvert";

/// One replica; killed with this.
pub(crate) struct Operator {
    child: Child,
    health: SocketAddr,
    log: Arc<Mutex<Vec<String>>>,
}

impl Operator {
    /// Starts a replica of this name.
    pub(crate) fn start(kubeconfig: &Path, name: &str) -> Self {
        let health = free_address();
        let mut child = command(kubeconfig)
            .args([
                "run",
                "--namespace",
                NAMESPACE,
                "--name",
                name,
                "--log-level",
                "debug",
            ])
            .args(["--health", &health.to_string()])
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        let log = Arc::new(Mutex::new(Vec::new()));
        let (lines, stderr) = (Arc::clone(&log), child.stderr.take().expect("piped"));
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                lines.lock().expect("a log").push(line);
            }
        });
        Self { child, health, log }
    }

    /// What its health server answers: the status code.
    pub(crate) fn probe(&self, path: &str) -> Option<u16> {
        let mut stream = TcpStream::connect_timeout(&self.health, Duration::from_secs(1)).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.split(' ').nth(1)?.parse().ok()
    }

    /// Kills it outright.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("kills");
        self.child.wait().expect("ends");
    }

    /// Asks it to stop, and says whether it ended well.
    pub(crate) fn stop(mut self) -> bool {
        let pid = i32::try_from(self.child.id()).expect("a pid");
        kill(Pid::from_raw(pid), Signal::SIGTERM).expect("signals");
        self.child.wait().expect("ends").success()
    }

    /// What the API server has refused for want of a right, by its log. Where there is no flannel there is no role for it.
    pub(crate) fn refused(&self) -> Vec<String> {
        let log = self.log.lock().expect("a log");
        let refused = log
            .iter()
            .filter(|line| line.contains("forbidden") && !line.contains("kube-flannel"));
        refused.cloned().collect()
    }
}

impl Drop for Operator {
    #[expect(clippy::print_stderr, reason = "its log says why the test failed")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log.lock().expect("a log");
            let tail = &log[log.len().saturating_sub(40)..];
            eprintln!("an operator's last words:\n{}", tail.join("\n"));
        }
        // One that has ended already needs no more.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs `culvert-operator cleanup`.
pub(crate) fn cleanup(kubeconfig: &Path, arguments: &[&str]) -> Output {
    command(kubeconfig)
        .args(["cleanup", "--namespace", NAMESPACE])
        .args(arguments)
        .output()
        .expect("runs")
}

fn command(kubeconfig: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_culvert-operator"));
    command.env("KUBECONFIG", kubeconfig).stdin(Stdio::null());
    command
}

fn free_address() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    listener.local_addr().expect("an address")
}
