//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{ArgGroup, Parser};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serve::LogArgs;

use crate::admit::AdmitRule;
use crate::server::{Config, Limits, Timing, TlsFiles};

/// Relay for nodes that cannot reach each other: forwards sealed packets between node keys (DERP) and tells nodes the
/// address they are seen at (STUN). It cannot read what it forwards.
///
/// Plain HTTP on port 8080, behind an ingress that ends TLS, for whom a file names:
///   culvert-relay --listen 0.0.0.0:8080 --admit /etc/culvert/admit
///
/// With TLS and STUN on a public host:
///   culvert-relay --listen 0.0.0.0:443 --tls-cert cert.pem --tls-key key.pem \
///     --stun 203.0.113.20:3478 --stun 203.0.113.21:3478 --admit /etc/culvert/admit
///
/// The file names node keys, and clusters that own this relay. An owner lets in further nodes and clusters by passes that
/// it signs: nobody has to change the file for them. It takes them back with PUT /denylist (signed JSON); that list is
/// kept in memory, so owners send it again after a restart.
///
/// Paths on --listen: /derp (DERP, or DERP in a WebSocket), /denylist, /healthz, /generate_204. Open TCP for --listen and
/// UDP for --stun in the firewall. SIGTERM tells all clients to come back soon.
#[derive(Debug, Parser)]
#[command(name = "culvert-relay", version, verbatim_doc_comment, group = ArgGroup::new("who").required(true))]
pub struct Args {
    /// Address and port for DERP over HTTP, or HTTPS with --tls-cert.
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: SocketAddr,
    /// Certificate chain (PEM), the server's own first. Read again every hour.
    #[arg(long, value_name = "PEM", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Private key (PEM) of the certificate.
    #[arg(long, value_name = "PEM", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Address and port for STUN (UDP); may be given several times. With two addresses of one family, nodes can also
    /// find out how their NAT filters. Give addresses, not 0.0.0.0, so that answers leave from where they are expected.
    #[arg(long, value_name = "ADDR:PORT")]
    pub stun: Vec<SocketAddr>,
    /// File of those who may use the relay, one a line, `#` begins a comment. Node keys: `node:` and base64, base64 alone,
    /// or `nodekey:` and hex. Owners, who let in others by passes: `cluster:` and base64, as in the status of a Mesh. Read
    /// again when it changes; who is taken out is disconnected, and an owner with all whom its passes let in.
    #[arg(long, value_name = "FILE", group = "who")]
    pub admit: Option<PathBuf>,
    /// Let anybody use the relay who proves to have a key. Passes mean nothing then: there is no lobby and no deny list.
    #[arg(long, group = "who")]
    pub admit_any: bool,
    /// File of the relay's own key; made if it is missing. Without, the relay has a new key at each start.
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,
    /// Address and port for metrics (OpenMetrics over HTTP, any path). All names begin with `culvert_relay_`, and each is
    /// explained where it is served.
    #[arg(long, value_name = "ADDR:PORT")]
    pub metrics: Option<SocketAddr>,
    /// What to log, and how.
    #[command(flatten)]
    pub log: LogArgs,
}

impl Args {
    /// The relay that these arguments describe, with as many connections as the process may have files open.
    #[must_use]
    pub fn into_config(self, max_open_files: usize) -> Config {
        let limits = Limits::default();
        Config {
            listen: self.listen,
            tls: self
                .tls_cert
                .zip(self.tls_key)
                .map(|(certificate, key)| TlsFiles { certificate, key }),
            stun: self.stun,
            admit: self.admit.map_or(AdmitRule::Any, AdmitRule::File),
            key: self.key,
            metrics: self.metrics,
            timing: Timing::default(),
            limits: Limits {
                connections: limits
                    .connections
                    .min(max_open_files.saturating_sub(64).max(1)),
                ..limits
            },
        }
    }
}

/// Lets the process open as many files as it may, and says how many that is.
#[must_use]
pub fn raise_file_limit() -> usize {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return 1024;
    };
    let raised = setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_or(soft, |()| hard);
    usize::try_from(raised).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Args::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_definition_is_sound() {
        use clap::CommandFactory as _;
        Args::command().debug_assert();
    }

    #[test]
    fn who_is_admitted_must_be_said() {
        let error = parse("culvert-relay --listen 127.0.0.1:0").unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("--admit <FILE>") && text.contains("--admit-any"),
            "{text}"
        );
        assert_eq!(error.exit_code(), 2);
        assert!(parse("culvert-relay --listen 127.0.0.1:0 --admit x --admit-any").is_err());
    }

    #[test]
    fn certificate_and_key_come_together() {
        assert!(parse("culvert-relay --listen 127.0.0.1:0 --admit-any --tls-cert c").is_err());
        assert!(parse("culvert-relay --listen 127.0.0.1:0 --admit-any --tls-key k").is_err());
        let args = parse("culvert-relay --listen 127.0.0.1:0 --admit-any --tls-cert c --tls-key k")
            .unwrap();
        assert!(args.into_config(100).tls.is_some());
    }

    #[test]
    fn a_wrong_filter_is_wrong_usage() {
        let line = "culvert-relay --listen 127.0.0.1:0 --admit-any --log-level culvert_relay=loud";
        assert_eq!(parse(line).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn stun_may_come_several_times_and_files_bound_connections() {
        let args =
            parse("culvert-relay --listen [::1]:0 --admit f --stun 127.0.0.1:1 --stun 127.0.0.2:1")
                .unwrap();
        let config = args.into_config(164);
        assert_eq!(config.stun.len(), 2);
        assert_eq!(config.limits.connections, 100);
        assert_eq!(config.admit, AdmitRule::File("f".into()));
    }
}
