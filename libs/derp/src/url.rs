//! The address of a relay: scheme, host and port, and nothing else.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

const MAX_LENGTH: usize = 300;
const MAX_HOST: usize = 253;

/// Why something is not the URL of a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum UrlError {
    /// Neither http nor https.
    #[error("expected http://HOST[:PORT] or https://HOST[:PORT]")]
    Scheme,
    /// No host, or one that is neither a DNS name nor an address.
    #[error("expected a DNS name, an IPv4 address or an IPv6 address in brackets as the host")]
    Host,
    /// Not a port.
    #[error("expected a port from 1 to 65535")]
    Port,
    /// More than scheme, host and port.
    #[error("expected nothing after the host and port: no path, query, fragment or user name")]
    Extra,
}

/// `http://host:port` or `https://host:port` of a relay. Compares by what it means: a default port equals none.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RelayUrl {
    tls: bool,
    host: String,
    port: u16,
}

impl RelayUrl {
    /// Whether the connection is TLS.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    /// DNS name in lower case, or address; IPv6 without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The host as an address, when it is one.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }

    /// TCP port; 80 or 443 where the URL has none.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `host:port` as a `Host` header has it: default ports are left out.
    #[must_use]
    pub fn authority(&self) -> String {
        let host = match self.host.parse::<Ipv6Addr>() {
            Ok(v6) => format!("[{v6}]"),
            Err(_) => self.host.clone(),
        };
        if self.port == default_port(self.tls) {
            return host;
        }
        format!("{host}:{}", self.port)
    }
}

impl fmt::Display for RelayUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}", self.authority())
    }
}

impl fmt::Debug for RelayUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for RelayUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        if text.len() > MAX_LENGTH {
            return Err(UrlError::Host);
        }
        let (scheme, rest) = text.split_once("://").ok_or(UrlError::Scheme)?;
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "http" => false,
            "https" => true,
            _ => return Err(UrlError::Scheme),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains(['/', '?', '#', '@', '\\']) {
            return Err(UrlError::Extra);
        }
        let (host, port) = split_port(rest)?;
        let port = port.map_or_else(|| Ok(default_port(tls)), parse_port)?;
        Ok(Self {
            tls,
            host: parse_host(host)?,
            port,
        })
    }
}

impl TryFrom<String> for RelayUrl {
    type Error = UrlError;

    fn try_from(text: String) -> Result<Self, UrlError> {
        text.parse()
    }
}

impl From<RelayUrl> for String {
    fn from(url: RelayUrl) -> Self {
        url.to_string()
    }
}

fn default_port(tls: bool) -> u16 {
    if tls { 443 } else { 80 }
}

fn split_port(authority: &str) -> Result<(&str, Option<&str>), UrlError> {
    if let Some(rest) = authority.strip_prefix('[') {
        let (host, after) = rest.split_once(']').ok_or(UrlError::Host)?;
        return match after.strip_prefix(':') {
            Some(port) if host.contains(':') => Ok((host, Some(port))),
            None if after.is_empty() && host.contains(':') => Ok((host, None)),
            _ => Err(UrlError::Host),
        };
    }
    match authority.split_once(':') {
        Some((_, port)) if port.contains(':') => Err(UrlError::Host),
        Some((host, port)) => Ok((host, Some(port))),
        None => Ok((authority, None)),
    }
}

fn parse_port(text: &str) -> Result<u16, UrlError> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(port) if digits && port != 0 => Ok(port),
        Ok(_) | Err(_) => Err(UrlError::Port),
    }
}

fn parse_host(text: &str) -> Result<String, UrlError> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(address.to_string());
    }
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let all_digits = name
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b'.');
    let good =
        !name.is_empty() && name.len() <= MAX_HOST && !all_digits && name.split('.').all(is_label);
    good.then_some(name).ok_or(UrlError::Host)
}

/// A label of a host name (RFC 1123 section 2.1).
fn is_label(label: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&label.len())
        && label.bytes().all(inner)
        && !label.starts_with('-')
        && !label.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> RelayUrl {
        text.parse().unwrap()
    }

    #[test]
    fn what_is_written_is_what_is_shown() {
        for text in [
            "http://203.0.113.20:8080",
            "https://relay.example",
            "http://[2001:db8::1]:8080",
            "https://[2001:db8::1]",
        ] {
            assert_eq!(parsed(text).to_string(), text);
        }
    }

    #[test]
    fn equal_addresses_are_equal_urls() {
        assert_eq!(
            parsed("https://Relay.Example:443/"),
            parsed("https://relay.example")
        );
        assert_ne!(
            parsed("http://relay.example"),
            parsed("https://relay.example")
        );
        assert_eq!(parsed("http://[2001:DB8:0::1]").host(), "2001:db8::1");
    }

    #[test]
    fn everything_else_is_refused_with_its_reason() {
        for (text, error) in [
            ("relay.example", UrlError::Scheme),
            ("ftp://relay.example", UrlError::Scheme),
            ("http://", UrlError::Host),
            ("http://a_b", UrlError::Host),
            ("http://300.1.1.1", UrlError::Host),
            ("http://2001:db8::1", UrlError::Host),
            ("http://[1.2.3.4]", UrlError::Host),
            ("http://a:0", UrlError::Port),
            ("http://a:65536", UrlError::Port),
            ("http://a:+80", UrlError::Port),
            ("http://a/derp", UrlError::Extra),
            ("http://u@a", UrlError::Extra),
            ("http://a?b", UrlError::Extra),
        ] {
            assert_eq!(text.parse::<RelayUrl>(), Err(error), "{text}");
        }
    }
}
