//! `culvert-agent join`.

use std::fmt::Write as _;
use std::io::Read as _;
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context, bail, ensure};
use api::{
    API_VERSION, ExternalRelay, FileRead, FolderRead, Mesh, MeshSpec, Peer, PeerSpec, Store,
    Surroundings,
};
use derp::ClusterIdentity;
use ipnet::IpNet;
use sync::{
    Audience, ClusterName, JoinError, JoinOffer, JoinTiming, MAX_TOKEN, RefusedCode, Token, Welcome,
};
use zeroize::Zeroizing;

use crate::args::JoinArgs;
use crate::{StateFolder, output};

const MESH_FILE: &str = "mesh.yaml";

/// Redeems a token, keeps what was agreed, and says so.
pub(crate) fn join(args: &JoinArgs) -> anyhow::Result<()> {
    let token = read_token(args)?;
    check_token(&token, SystemTime::now())?;
    let state = StateFolder::open(&args.state.folder)?;
    let us = Ourselves::of(args, mesh_before(&state)?)?;
    let secret = state.make_identity()?;
    let key = state.key()?.public();
    foresee(&us, &token, &state, key)?;
    let offer = JoinOffer {
        audience: Audience::Host,
        cluster_name: us.name.clone(),
        cidrs: us.addresses.clone(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("cannot start")?;
    let timing = JoinTiming::default();
    tracing::info!(cluster = token.cluster_name.as_str(), invite = ?token.secret.identity(), at_most = ?timing.total, "joining");
    let joined = runtime.block_on(sync::join(&token, &secret, offer, timing));
    let welcome = joined.map_err(|error| explain(&error))?;
    let agreed = Agreed::new(&us, &token, &welcome)?;
    agreed.check(&state, key)?;
    agreed.keep(&state, token.inviter, welcome.membership)?;
    output::print(&agreed.summary(&args.state.folder, secret.identity()))
}

/// Whether this host could have the inviter as a peer, by what the token says of it: if not, the token is not used up.
fn foresee(
    us: &Ourselves,
    token: &Token,
    state: &StateFolder,
    key: derp::NodeKey,
) -> anyhow::Result<()> {
    if token.cidrs.is_empty() {
        return Ok(());
    }
    let welcome = Welcome {
        cluster_name: token.cluster_name.clone(),
        cidrs: token.cidrs.clone(),
        accepted: us.addresses.clone(),
        membership: None,
    };
    Agreed::new(us, token, &welcome)?.check(state, key)
}

/// What this host is in the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Ourselves {
    name: ClusterName,
    addresses: Vec<IpNet>,
}

impl Ourselves {
    /// From the command line, and from the Mesh of an earlier join, with which it has to agree.
    fn of(args: &JoinArgs, before: Option<MeshSpec>) -> anyhow::Result<Self> {
        let name = match (&args.name, &before) {
            (Some(name), _) => name.clone(),
            (None, Some(mesh)) => mesh.cluster_name.clone(),
            (None, None) => host_name()?,
        };
        let addresses = match &before {
            Some(mesh) if args.addresses.is_empty() => parse_addresses(&mesh.addresses)?,
            Some(_) | None => args.addresses.clone(),
        };
        ensure!(
            !addresses.is_empty(),
            "name the address that this host shall have in the mesh, outside all clusters' ranges, such as --address 10.99.0.7/32"
        );
        let us = Self {
            name: name.parse().with_context(|| {
                format!("{name:?} cannot be this host's name in the mesh; choose one with --name")
            })?,
            addresses,
        };
        if let Some(mesh) = before {
            let same = mesh.cluster_name == us.name.as_str()
                && parse_addresses(&mesh.addresses)? == us.addresses;
            ensure!(
                same,
                "this host has joined as {} with {} already; leave --name and --address out, or forget that with `culvert-agent cleanup --state {} --purge`",
                mesh.cluster_name,
                mesh.addresses.join(", "),
                args.state.folder.display()
            );
        }
        Ok(us)
    }

    /// An address in a cluster's ranges would be that of a pod, too.
    fn check_outside(&self, ranges: &[IpNet], cluster: &ClusterName) -> anyhow::Result<()> {
        for address in &self.addresses {
            if let Some(range) = ranges.iter().find(|range| range.contains(address)) {
                bail!(
                    "--address {address} lies in {range} of {}; choose one outside all clusters' ranges",
                    cluster.as_str()
                );
            }
        }
        Ok(())
    }
}

/// What both sides agreed on, as manifests.
#[derive(Debug)]
struct Agreed {
    mesh: Mesh,
    peer_name: String,
    peer: Peer,
    /// Addresses that the other side does not take.
    refused: Vec<IpNet>,
}

impl Agreed {
    fn new(us: &Ourselves, token: &Token, welcome: &Welcome) -> anyhow::Result<Self> {
        us.check_outside(&welcome.cidrs, &welcome.cluster_name)?;
        let taken = |address: &&IpNet| welcome.accepted.iter().any(|net| net.contains(*address));
        let (accepted, refused): (Vec<IpNet>, Vec<IpNet>) = us.addresses.iter().partition(taken);
        ensure!(
            !accepted.is_empty(),
            "{} accepts none of this host's addresses; ask for an invite that allows them with --cidrs",
            welcome.cluster_name.as_str()
        );
        ensure!(
            !welcome.cidrs.is_empty(),
            "{} has no pod CIDRs yet, so there is nothing to reach; look at its Mesh, then join again with a new token",
            welcome.cluster_name.as_str()
        );
        let peer_name = welcome.cluster_name.as_str().to_owned();
        Ok(Self {
            mesh: Mesh::new("default", mesh_spec(us, accepted)),
            peer: Peer::new(&peer_name, peer_spec(token, welcome)),
            peer_name,
            refused,
        })
    }

    /// What a peer says is checked like what a person writes, before it is kept.
    fn check(&self, state: &StateFolder, own_key: derp::NodeKey) -> anyhow::Result<()> {
        let mut files = others(&state.joined(), &[MESH_FILE, &self.peer_file()])?;
        for (name, text) in [
            (
                MESH_FILE.to_owned(),
                document("Mesh", "default", &self.mesh.spec)?,
            ),
            (
                self.peer_file(),
                document("Peer", &self.peer_name, &self.peer.spec)?,
            ),
        ] {
            files.push(FileRead {
                name,
                content: Ok(text.into_bytes()),
            });
        }
        let mut store = Store::new(own_key, None);
        store.update(&FolderRead::Files(files), &Surroundings::default());
        let errors = store.statuses().iter().flat_map(|status| &status.errors);
        let lines: Vec<String> = errors
            .map(|error| format!("{}: {}", error.field, error.message))
            .collect();
        if !lines.is_empty() {
            bail!(
                "what {} brings cannot be used on this host, so nothing was kept: {}",
                self.peer_name,
                lines.join("; ")
            );
        }
        Ok(())
    }

    fn keep(
        &self,
        state: &StateFolder,
        inviter: ClusterIdentity,
        membership: Option<String>,
    ) -> anyhow::Result<()> {
        if let Some(membership) = membership {
            let mut memberships = state.memberships()?;
            memberships.by_owner.insert(inviter, membership);
            state.save_memberships(&memberships)?;
        }
        state.save_joined(MESH_FILE, &document("Mesh", "default", &self.mesh.spec)?)?;
        let peer = document("Peer", &self.peer_name, &self.peer.spec)?;
        state.save_joined(&self.peer_file(), &peer)?;
        Ok(())
    }

    fn peer_file(&self) -> String {
        format!("peer-{}.yaml", self.peer_name)
    }

    fn summary(&self, state: &Path, identity: ClusterIdentity) -> String {
        let relays = self.peer.spec.relays.iter().map(|relay| relay.url.as_str());
        let relays: Vec<&str> = relays.collect();
        let mut text = format!(
            "joined {} as {}\n  this host     {}\n  may reach     {}\n  over          {}\n  identity      {identity}\n",
            self.peer_name,
            self.mesh.spec.cluster_name,
            self.mesh.spec.addresses.join(", "),
            self.peer.spec.allowed_cidrs.join(", "),
            relays.join(", "),
        );
        if !self.refused.is_empty() {
            let refused: Vec<String> = self.refused.iter().map(ToString::to_string).collect();
            // Writing to a String cannot fail.
            let _ = writeln!(text, "  not accepted  {}", refused.join(", "));
        }
        let _ = write!(
            text,
            "\nkept in {}; now start the agent, unless it runs already:\n  culvert-agent run --state {}\n",
            state.join("joined").display(),
            state.display()
        );
        text
    }
}

fn mesh_spec(us: &Ourselves, addresses: Vec<IpNet>) -> MeshSpec {
    MeshSpec {
        cluster_name: us.name.as_str().to_owned(),
        pod_cidrs: Vec::new(),
        addresses: addresses.iter().map(ToString::to_string).collect(),
        listen_port: None,
        mtu: None,
        relays: None,
        traversal: None,
    }
}

fn peer_spec(token: &Token, welcome: &Welcome) -> PeerSpec {
    let relay = |relay: &sync::TokenRelay| ExternalRelay {
        url: relay.url.to_string(),
        stun_port: Some(relay.stun_port.map_or(0, i64::from)),
        ca_bundle: relay.ca_bundle.clone(),
        dial: None,
        owner: Some(token.inviter.to_string()),
        pass: None,
    };
    PeerSpec {
        mesh_ref: None,
        identity: Some(token.inviter.to_string()),
        allowed_cidrs: welcome.cidrs.iter().map(ToString::to_string).collect(),
        relays: token.relays.iter().map(relay).collect(),
        nodes: Vec::new(),
    }
}

fn document(kind: &str, name: &str, spec: &impl serde::Serialize) -> anyhow::Result<String> {
    let document = serde_json::json!({
        "apiVersion": API_VERSION,
        "kind": kind,
        "metadata": {"name": name},
        "spec": spec,
    });
    Ok(api::render(&document)?)
}

/// Manifests of earlier joins, but for those named.
fn others(folder: &Path, but: &[&str]) -> anyhow::Result<Vec<FileRead>> {
    match crate::Watcher::new(folder).look() {
        Some(FolderRead::Files(mut files)) => {
            files.retain(|file| !but.contains(&file.name.as_str()));
            Ok(files)
        }
        Some(FolderRead::Unreadable { error, .. }) if folder.exists() => {
            bail!("cannot read {}: {error}", folder.display())
        }
        Some(
            FolderRead::Unreadable { .. } | FolderRead::Objects(_) | FolderRead::Waiting { .. },
        )
        | None => Ok(Vec::new()),
    }
}

/// The Mesh of an earlier join.
fn mesh_before(state: &StateFolder) -> anyhow::Result<Option<MeshSpec>> {
    let folder = state.joined();
    let files = others(&folder, &[])?;
    let Some(file) = files.into_iter().find(|file| file.name == MESH_FILE) else {
        return Ok(None);
    };
    let key = state.key()?.public();
    let mut store = Store::new(key, None);
    store.update(&FolderRead::Files(vec![file]), &Surroundings::default());
    let mesh = store.accepted().mesh.as_ref().with_context(|| {
        format!(
            "{} is damaged; correct it, or remove it to join anew",
            folder.join(MESH_FILE).display()
        )
    })?;
    Ok(Some(MeshSpec {
        cluster_name: mesh.cluster_name.clone(),
        pod_cidrs: Vec::new(),
        addresses: mesh.addresses.iter().map(ToString::to_string).collect(),
        listen_port: None,
        mtu: None,
        relays: None,
        traversal: None,
    }))
}

fn parse_addresses(texts: &[String]) -> anyhow::Result<Vec<IpNet>> {
    let parsed = texts.iter().map(|text| text.parse());
    parsed.collect::<Result<_, _>>().context("addresses")
}

fn host_name() -> anyhow::Result<String> {
    let name = nix::unistd::gethostname().context("this host has no name; give one with --name")?;
    let name = name.to_string_lossy().to_lowercase();
    Ok(name.split('.').next().unwrap_or_default().to_owned())
}

fn read_token(args: &JoinArgs) -> anyhow::Result<Token> {
    let text = match (&args.token_file, &args.token) {
        (Some(path), _) => read_all(
            std::fs::File::open(path)
                .with_context(|| format!("cannot read the token from {}", path.display()))?,
        )?,
        (None, Some(token)) if token.0.as_str() == "-" => read_all(std::io::stdin().lock())?,
        (None, Some(token)) => token.0.clone(),
        (None, None) => bail!("give the token, a file with --token-file, or - for standard input"),
    };
    Ok(text.parse::<Token>()?)
}

/// A little more than a token may have, for spaces around it.
fn read_all(from: impl std::io::Read) -> anyhow::Result<Zeroizing<String>> {
    let most = u64::try_from(MAX_TOKEN)?.saturating_mul(2);
    let mut text = Zeroizing::new(String::new());
    from.take(most)
        .read_to_string(&mut text)
        .context("cannot read the token")?;
    Ok(text)
}

fn check_token(token: &Token, now: SystemTime) -> anyhow::Result<()> {
    ensure!(
        token.audience == Audience::Host,
        "this token is for a cluster; make one for a host with `kubectl culvert invite --host`"
    );
    ensure!(
        !token.is_expired(now),
        "the token has expired; ask for a new one and use it within its time (is this host's clock right?)"
    );
    Ok(())
}

/// The error with what to do about it.
fn explain(error: &JoinError) -> anyhow::Error {
    let hint = match error {
        JoinError::RelayUnreachable { refusal: None, .. } => {
            "check that this host reaches the relay by outbound TCP, then run the same command again"
        }
        JoinError::RelayUnreachable { .. } => {
            "the relay does not take the token: it has expired, or the invite was deleted; ask for a new one"
        }
        JoinError::InviterUnreachable => {
            "look at that cluster's operator and its Invite, then run the same command again"
        }
        JoinError::Refused(refused) => hint(refused.code),
        JoinError::WrongKey
        | JoinError::Misbehaved
        | JoinError::Ourselves
        | JoinError::TooMuch
        | JoinError::Setup(_) => "nothing was changed on this host",
    };
    anyhow::anyhow!("{error}; {hint}")
}

fn hint(code: RefusedCode) -> &'static str {
    match code {
        RefusedCode::Expired | RefusedCode::Used => {
            "a token is good once, and not for long; ask for a new one"
        }
        RefusedCode::NameTaken => "choose another name with --name",
        RefusedCode::Overlap => "choose another --address, outside all ranges of the mesh",
        RefusedCode::NotAllowed => {
            "the invite allows other ranges than --address; ask for one with --cidrs"
        }
        RefusedCode::WrongAudience => "ask for a token for a host: kubectl culvert invite --host",
        RefusedCode::Busy => "run the same command again in a minute",
        RefusedCode::BadProof | RefusedCode::Other => {
            "use the same release on both sides, and a new token"
        }
    }
}

#[cfg(test)]
mod tests;
