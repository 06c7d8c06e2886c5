//! `kubectl culvert invite`.

mod state;

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use api::{Audience, Invite, InviteSpec};
use futures_util::TryStreamExt;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, PostParams};
use kube::runtime::watcher::watch_object;
use kube::{Api, ResourceExt};

use crate::args::{ConnectionArgs, InviteArgs};
use crate::cluster::{Cluster, code, explain, unless_interrupted};
use crate::identity::mesh;
use crate::output::{self, Progress, Terminal};
use state::{Offer, State};

pub(crate) use state::{check_prefix, check_ttl};

/// Makes an invite, waits for its token, and prints it.
pub(crate) async fn run(
    connection: &ConnectionArgs,
    args: &InviteArgs,
    terminal: Terminal,
) -> anyhow::Result<()> {
    let cluster = Cluster::connect(connection).await?;
    let namespace = cluster.namespace().await?;
    let mesh = mesh(&cluster).await?;
    state::check_ranges(&args.cidrs, &mesh)?;
    // Before the invite, so that none is left over when the file cannot be written.
    let file = args.output.as_deref().map(create).transpose()?;
    let done = issue(&cluster, &namespace, args, terminal).await;
    let (offer, token) = match done {
        Ok(done) => done,
        Err(error) => {
            discard(args.output.as_deref());
            return Err(error);
        }
    };
    deliver(file, &token)?;
    let what = state::instructions(args, &offer, &mesh.spec.cluster_name, &namespace);
    output::hint(&what);
    Ok(())
}

/// Makes the Invite and waits for its token. Takes the Invite back if none comes.
async fn issue(
    cluster: &Cluster,
    namespace: &str,
    args: &InviteArgs,
    terminal: Terminal,
) -> anyhow::Result<(Offer, String)> {
    let invites = Api::<Invite>::all(cluster.client.clone());
    let made = invites
        .create(&PostParams::default(), &invite(args))
        .await
        .map_err(|error| refused(error, args))?;
    let name = made.name_any();
    let token = unless_interrupted(token(cluster, namespace, &name, args, terminal)).await;
    if token.is_err() {
        // It is of no use to anybody, and expires by itself if this fails.
        let _ = invites.delete(&name, &DeleteParams::default()).await;
    }
    token
}

async fn token(
    cluster: &Cluster,
    namespace: &str,
    name: &str,
    args: &InviteArgs,
    terminal: Terminal,
) -> anyhow::Result<(Offer, String)> {
    let offer = wait(cluster, name, args, terminal).await?;
    let secrets = Api::<Secret>::namespaced(cluster.client.clone(), namespace);
    let secret = secrets.get(&offer.secret).await.map_err(|error| {
        let gone = code(&error) == Some(404);
        let error = explain(error);
        if gone {
            error.context(format!("the token is not in namespace {namespace:?}; name Culvert's namespace with --namespace"))
        } else {
            error
        }
    })?;
    let token = secret
        .data
        .as_ref()
        .and_then(|data| data.get("token"))
        .and_then(|bytes| String::from_utf8(bytes.0.clone()).ok())
        .ok_or_else(|| anyhow!("Secret {:?} holds no token", offer.secret))?;
    Ok((offer, token.trim().to_owned()))
}

/// Waits until the operator has made the token.
async fn wait(
    cluster: &Cluster,
    name: &str,
    args: &InviteArgs,
    terminal: Terminal,
) -> anyhow::Result<Offer> {
    let invites = Api::<Invite>::all(cluster.client.clone());
    let mut progress = Progress::new(terminal);
    let mut last = State::NOT_SEEN.to_owned();
    progress.say(&last);
    let look = async {
        let mut seen = pin!(watch_object(invites, name));
        while let Some(invite) = seen.try_next().await.context("cannot watch it")? {
            match state::state(invite.as_ref()) {
                State::Offered(offer) => return Ok(offer),
                State::Over(why) => bail!(why),
                State::Waiting(why) => {
                    progress.say(&why);
                    last = why;
                }
            }
        }
        bail!("the API server ended the watch; try again")
    };
    let bound = Duration::from_secs(args.timeout);
    let found = tokio::time::timeout(bound, look).await;
    progress.end();
    found.unwrap_or_else(|_| {
        bail!(
            "no token after {} s: {last}; see what the operator says: kubectl describe mesh, and its log",
            args.timeout
        )
    })
}

fn invite(args: &InviteArgs) -> Invite {
    let audience = if args.host {
        Audience::Host
    } else {
        Audience::Cluster
    };
    let spec = InviteSpec {
        audience,
        ttl: Some(args.ttl.clone()),
        cidrs: args.cidrs.clone(),
        ..InviteSpec::default()
    };
    let mut invite = Invite::new(args.name.as_deref().unwrap_or_default(), spec);
    if args.name.is_none() {
        invite.metadata.name = None;
        invite.metadata.generate_name = Some("invite-".to_owned());
    }
    invite
}

fn refused(error: kube::Error, args: &InviteArgs) -> anyhow::Error {
    match (code(&error), &args.name) {
        (Some(409), Some(name)) => {
            anyhow!("there is an Invite named {name:?} already; choose another name, or delete it")
        }
        _ => explain(error),
    }
}

/// A new file that only its owner can read.
fn create(path: &Path) -> anyhow::Result<File> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .with_context(|| {
            format!(
                "cannot make {}; name a new file in a folder that is there",
                path.display()
            )
        })
}

/// Removes the file that `create` made.
fn discard(path: Option<&Path>) {
    if let Some(path) = path {
        // An empty file that stays is no harm.
        let _ = std::fs::remove_file(path);
    }
}

fn deliver(file: Option<File>, token: &str) -> anyhow::Result<()> {
    match file {
        Some(mut file) => writeln!(file, "{token}").context("cannot write the token"),
        None => output::print(&format!("{token}\n")),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: InviteArgs,
    }

    fn args(line: &[&str]) -> InviteArgs {
        Line::try_parse_from(["x"].iter().chain(line))
            .unwrap_or_else(|error| panic!("{error}"))
            .args
    }

    #[test]
    fn the_object_says_what_the_options_say() {
        let made = invite(&args(&["--host", "--ttl", "1h", "--cidrs", "10.9.0.1/32"]));
        assert_eq!(made.spec.audience, Audience::Host);
        assert_eq!(made.spec.ttl.as_deref(), Some("1h"));
        assert_eq!(made.spec.cidrs, ["10.9.0.1/32"]);
        assert_eq!(made.metadata.name, None);
        assert_eq!(made.metadata.generate_name.as_deref(), Some("invite-"));
        let named = invite(&args(&["--name", "for-tokyo"]));
        assert_eq!(named.metadata.name.as_deref(), Some("for-tokyo"));
        assert_eq!(named.metadata.generate_name, None);
        assert_eq!(named.spec.audience, Audience::Cluster);
    }

    #[test]
    fn a_token_file_is_new_and_private() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("token");
        deliver(Some(create(&path).expect("made")), "cvt1.x").expect("written");
        assert_eq!(std::fs::read_to_string(&path).expect("read"), "cvt1.x\n");
        let mode = std::fs::metadata(&path)
            .expect("there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(create(&path).is_err());
        discard(Some(&path));
        assert!(!path.exists());
    }
}
