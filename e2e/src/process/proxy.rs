//! Debian's nginx and haproxy, with TLS and in front of one service, as an ingress controller stands there.
//!
//! Every time-out is the one that a user gets without asking for another.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::daemon::{Daemon, DaemonSpec};
use crate::lab::Lab;
use crate::namespace::Namespace;
use crate::wait::wait_for;

/// Which program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyProgram {
    /// nginx: gives a connection up that is silent for 60 s (`proxy_read_timeout`).
    Nginx,
    /// haproxy: gives a connection up that is silent for 50 s (`timeout client` and `timeout server` of Debian's file).
    Haproxy,
}

/// What a proxy has to do, as an Ingress tells it.
#[derive(Clone, Debug)]
pub struct ReverseProxySpec {
    /// Which program.
    pub program: ProxyProgram,
    /// Where it runs.
    pub ns: Namespace,
    /// Where it listens.
    pub listen: SocketAddr,
    /// The only host that it knows.
    pub host: String,
    /// Where requests for that host go, in plain HTTP.
    pub backend: SocketAddr,
    /// The host's certificate, PEM.
    pub certificate: String,
    /// Its key, PEM.
    pub key: String,
}

/// A running proxy.
#[derive(Debug)]
pub struct ReverseProxy {
    spec: DaemonSpec,
    listen: SocketAddr,
    daemon: Option<Daemon>,
}

impl ProxyProgram {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
        }
    }

    /// What makes it read a file and stay one process in the foreground: its end is then the end of all of it.
    fn arguments(self, config: &Path) -> Vec<String> {
        let config = config.display().to_string();
        let words = match self {
            Self::Nginx => vec!["-e", "stderr", "-c", &config],
            Self::Haproxy => vec!["-db", "-f", &config],
        };
        words.into_iter().map(str::to_owned).collect()
    }

    fn config(self, spec: &ReverseProxySpec, folder: &Path) -> String {
        match self {
            Self::Nginx => nginx(spec, folder),
            Self::Haproxy => haproxy(spec, folder),
        }
    }
}

impl ReverseProxy {
    /// Starts it, and waits until it listens.
    pub fn start(lab: &Lab, spec: &ReverseProxySpec) -> Result<Self> {
        let name = spec.program.name();
        let folder = lab.folder().join(name);
        fs::create_dir_all(&folder)?;
        fs::write(certificate(&folder), &spec.certificate)?;
        fs::write(key(&folder), &spec.key)?;
        fs::write(both(&folder), spec.certificate.clone() + &spec.key)?;
        let config = folder.join("config");
        fs::write(&config, spec.program.config(spec, &folder))?;
        let mut proxy = Self {
            spec: DaemonSpec {
                ns: spec.ns.clone(),
                program: Path::new("/usr/sbin").join(name),
                arguments: spec.program.arguments(&config),
                log: lab.folder().join("logs").join(format!("{name}.log")),
                keep: lab.is_kept(),
            },
            listen: spec.listen,
            daemon: None,
        };
        proxy.resume()?;
        Ok(proxy)
    }

    /// Starts it again after [`Self::stop`].
    pub fn resume(&mut self) -> Result<()> {
        let mut daemon = Daemon::start(&self.spec)?;
        let (ns, listen) = (&self.spec.ns, self.listen);
        wait_for(Duration::from_secs(10), "the proxy listens", || {
            daemon.ensure_running()?;
            let connected =
                ns.run(|| TcpStream::connect_timeout(&listen, Duration::from_secs(1)))?;
            connected.map(drop).context("no connection")
        })?;
        self.daemon = Some(daemon);
        Ok(())
    }

    /// Ends it, and with it every connection.
    pub fn stop(&mut self) -> Result<()> {
        let mut daemon = self.daemon.take().context("the proxy is not running")?;
        daemon.terminate().map(drop)
    }
}

fn certificate(folder: &Path) -> PathBuf {
    folder.join("tls.crt")
}

fn key(folder: &Path) -> PathBuf {
    folder.join("tls.key")
}

/// Certificate and key in one file.
fn both(folder: &Path) -> PathBuf {
    folder.join("tls.pem")
}

/// What ingress-nginx writes for a host: HTTP/2 offered, upgrades passed on, no time-out other than nginx's own.
fn nginx(spec: &ReverseProxySpec, folder: &Path) -> String {
    let (listen, host, backend) = (spec.listen, &spec.host, spec.backend);
    let (certificate, key) = (certificate(folder), key(folder));
    let (certificate, key) = (certificate.display(), key.display());
    let folder = folder.display();
    format!(
        r#"daemon off;
master_process off;
pid {folder}/pid;
error_log stderr notice;
events {{}}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    map $http_upgrade $connection_upgrade {{
        default upgrade;
        "" close;
    }}
    server {{
        listen {listen} ssl http2 default_server;
        ssl_reject_handshake on;
    }}
    server {{
        listen {listen} ssl http2;
        server_name {host};
        ssl_certificate {certificate};
        ssl_certificate_key {key};
        location / {{
            proxy_pass http://{backend};
            proxy_http_version 1.1;
            proxy_buffering off;
            proxy_set_header Host $http_host;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
            proxy_set_header X-Forwarded-For $remote_addr;
        }}
    }}
}}
"#
    )
}

/// `defaults` as in Debian's `/etc/haproxy/haproxy.cfg`: no `timeout tunnel`.
fn haproxy(spec: &ReverseProxySpec, folder: &Path) -> String {
    let (listen, host, backend) = (spec.listen, &spec.host, spec.backend);
    let both = both(folder);
    let both = both.display();
    format!(
        "global
    log stdout format raw local0
    maxconn 1000
defaults
    log global
    mode http
    option httplog
    option dontlognull
    timeout connect 5000
    timeout client 50000
    timeout server 50000
frontend https
    bind {listen} ssl crt {both} strict-sni alpn h2,http/1.1
    use_backend relay if {{ hdr(host),field(1,:) -i {host} }}
backend relay
    server relay {backend}
"
    )
}
