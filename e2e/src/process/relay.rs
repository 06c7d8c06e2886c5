//! A relay in the lab.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;
use std::{fs, net::TcpStream};

use anyhow::{Context, Result};

use super::binary;
use super::daemon::{Daemon, DaemonSpec};
use crate::lab::{Host, Lab};
use crate::wait::wait_for;

/// What a relay listens on and whom it admits.
#[derive(Clone, Debug)]
pub struct RelayOptions {
    /// TCP port.
    pub port: u16,
    /// STUN port on each of the host's IPv4 addresses; none without it.
    pub stun: Option<u16>,
    /// Lines of the admit file; without, everybody is admitted.
    pub admit: Option<Vec<String>>,
}

impl Default for RelayOptions {
    fn default() -> Self {
        Self {
            port: 8080,
            stun: Some(3478),
            admit: None,
        }
    }
}

/// A running relay.
#[derive(Debug)]
pub struct Relay {
    spec: DaemonSpec,
    host: Host,
    options: RelayOptions,
    daemon: Option<Daemon>,
}

impl Relay {
    /// Starts a relay on a host and waits until it listens.
    pub fn start(lab: &Lab, host: &Host, options: RelayOptions) -> Result<Self> {
        let main = *host.v4.first().context("the relay's host has no address")?;
        let listen = SocketAddr::new(IpAddr::V4(main), options.port);
        let mut arguments = vec![format!("--listen={listen}"), "--log-format=json".to_owned()];
        for ip in host.v4.iter().filter(|_| options.stun.is_some()) {
            arguments.push(format!("--stun={ip}:{}", options.stun.unwrap_or_default()));
        }
        match &options.admit {
            None => arguments.push("--admit-any".to_owned()),
            Some(lines) => {
                let file = admit_file(lab);
                fs::write(&file, lines.join("\n") + "\n")?;
                arguments.push(format!("--admit={}", file.display()));
            }
        }
        let spec = DaemonSpec {
            ns: host.ns.clone(),
            program: binary("culvert-relay")?,
            arguments,
            log: lab.folder().join("logs/relay.log"),
            keep: lab.is_kept(),
        };
        let mut relay = Self {
            spec,
            host: host.clone(),
            options,
            daemon: None,
        };
        relay.resume()?;
        Ok(relay)
    }

    /// Replaces the lines of the admit file, which the relay reads again by itself.
    pub fn admit(&self, lab: &Lab, lines: &[String]) -> Result<()> {
        Ok(fs::write(admit_file(lab), lines.join("\n") + "\n")?)
    }

    /// Starts it again after [`Self::kill`].
    pub fn resume(&mut self) -> Result<()> {
        let mut daemon = Daemon::start(&self.spec)?;
        let listen = self.address();
        wait_for(Duration::from_secs(10), "the relay listens", || {
            daemon.ensure_running()?;
            let connected = self
                .host
                .ns
                .run(|| TcpStream::connect_timeout(&listen, Duration::from_secs(1)))?;
            connected.map(drop).context("no connection")
        })?;
        self.daemon = Some(daemon);
        Ok(())
    }

    /// Kills it.
    pub fn kill(&mut self) -> Result<()> {
        self.daemon
            .take()
            .context("the relay is not running")?
            .kill()
    }

    /// Its process.
    pub fn daemon(&mut self) -> Result<&mut Daemon> {
        self.daemon.as_mut().context("the relay is not running")
    }

    /// Where it listens for TCP.
    pub fn address(&self) -> SocketAddr {
        let main = self
            .host
            .v4
            .first()
            .copied()
            .unwrap_or(std::net::Ipv4Addr::UNSPECIFIED);
        SocketAddr::new(IpAddr::V4(main), self.options.port)
    }

    /// Its STUN port.
    pub fn stun(&self) -> SocketAddr {
        SocketAddr::new(self.address().ip(), self.options.stun.unwrap_or_default())
    }

    /// Its URL, as manifests name it.
    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    /// The host it runs on.
    pub fn host(&self) -> &Host {
        &self.host
    }
}

fn admit_file(lab: &Lab) -> PathBuf {
    lab.folder().join("admit")
}
