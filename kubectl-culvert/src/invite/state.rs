//! What an Invite says, and what to tell whoever made it.

use std::fmt::Write;

use anyhow::bail;
use api::{Invite, Mesh};
use ipnet::IpNet;
use jiff::Timestamp;

use crate::args::InviteArgs;

/// Longest lifetime of an invite.
const MAX_TTL_SECONDS: u64 = 168 * 3600;

/// How far an Invite has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Its token can be had.
    Offered(Offer),
    /// Not yet; why.
    Waiting(String),
    /// It never will; why.
    Over(String),
}

/// A token that can be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Offer {
    /// Secret that holds it.
    pub(super) secret: String,
    /// Until when it is good.
    pub(super) expires: Option<Timestamp>,
}

impl State {
    /// What is said before the operator has said anything.
    pub(super) const NOT_SEEN: &'static str = "waiting for the operator to answer the invite";
}

/// What the Invite says; `None`: there is none.
pub(super) fn state(invite: Option<&Invite>) -> State {
    let Some(invite) = invite else {
        return State::Over("somebody has deleted the Invite".to_owned());
    };
    let waiting = || State::Waiting(State::NOT_SEEN.to_owned());
    let Some(status) = &invite.status else {
        return waiting();
    };
    let Some(ready) = api::find_condition(&status.conditions, "Ready") else {
        return waiting();
    };
    match (ready.status.as_str(), ready.reason.as_str()) {
        ("True", _) => status.secret_name.clone().map_or_else(waiting, |secret| {
            let expires = status.expires_at.as_ref().map(|time| time.0);
            State::Offered(Offer { secret, expires })
        }),
        (_, "Used" | "Expired") => State::Over(format!("the invite is over: {}", ready.message)),
        (_, reason) => State::Waiting(format!("{reason}: {}", ready.message)),
    }
}

/// What to do with the token, for people.
pub(super) fn instructions(
    args: &InviteArgs,
    offer: &Offer,
    cluster_name: &str,
    namespace: &str,
) -> String {
    let file = args
        .output
        .as_ref()
        .map_or_else(|| "FILE".to_owned(), |path| path.display().to_string());
    let until = offer.expires.map_or_else(
        || format!("for {}", args.ttl),
        |at| format!("until {}", at.strftime("%Y-%m-%d %H:%M:%S UTC")),
    );
    let mut text =
        format!("This token is good once, {until}. Whoever has it can join {cluster_name}.\n");
    if args.output.is_none() {
        text += "Put it into a file, FILE below, and take that to the other side.\n";
    }
    let commands = if args.host {
        format!(
            "On the host:\n\n  culvert-agent join --token-file {file} --state /var/lib/culvert --address ADDRESS\n\nADDRESS is the host's in the mesh, outside all clusters' ranges, such as 10.99.0.7/32.\n"
        )
    } else {
        format!(
            "In the other cluster:\n\n  helm install culvert charts/culvert --namespace {namespace} --create-namespace \\\n    --set mesh.clusterName=NAME --set-file join.token={file}\n"
        )
    };
    let _ = write!(
        text,
        "\n{commands}\nThen, here:\n\n  kubectl get peers --watch"
    );
    text
}

/// What whoever joins may bring must be none of what this cluster uses itself: the operator would refuse it then.
pub(super) fn check_ranges(cidrs: &[String], mesh: &Mesh) -> anyhow::Result<()> {
    let ranges = mesh
        .status
        .as_ref()
        .and_then(|status| status.ranges.clone());
    let ranges = ranges.unwrap_or_default();
    for cidr in cidrs {
        if let Some(own) = rival(cidr, &ranges.pod_cidrs) {
            bail!(
                "--cidrs {cidr} overlaps {own}, which this cluster uses for pods; name ranges of whoever is to join"
            );
        }
        if let Some(own) = rival(cidr, &ranges.service_cidrs) {
            bail!(
                "--cidrs {cidr} overlaps {own}, which this cluster uses for Services; name ranges of whoever is to join"
            );
        }
    }
    Ok(())
}

fn rival<'a>(cidr: &str, own: &'a [String]) -> Option<&'a String> {
    let cidr: IpNet = cidr.parse().ok()?;
    let overlaps = |own: &&String| own.parse().is_ok_and(|own| api::overlap(cidr, own));
    own.iter().find(overlaps)
}

/// Checks a prefix as the API server will.
pub(crate) fn check_prefix(text: &str) -> Result<String, String> {
    api::check_prefix("--cidrs", text)
        .map(|prefix| prefix.to_string())
        .map_err(|problem| problem.message)
}

/// Checks a lifetime: hours, minutes, seconds, in this order, at most 168 hours together.
pub(crate) fn check_ttl(text: &str) -> Result<String, String> {
    let seconds = seconds(text).ok_or("write hours, minutes or seconds, such as 15m or 1h30m")?;
    match seconds {
        0 => Err("an invite that is over at once is of no use".to_owned()),
        1..=MAX_TTL_SECONDS => Ok(text.to_owned()),
        _ => Err("at most 168h".to_owned()),
    }
}

fn seconds(text: &str) -> Option<u64> {
    let mut rest = text;
    let mut sum = 0;
    for (unit, seconds) in [('h', 3600), ('m', 60), ('s', 1)] {
        if let Some((digits, behind)) = rest.split_once(unit) {
            let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
            let number: u64 = plain.then(|| digits.parse().ok()).flatten()?;
            sum += number.checked_mul(seconds)?;
            rest = behind;
        }
    }
    (rest.is_empty() && !text.is_empty() && text.len() <= 16).then_some(sum)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn of(status: Value) -> State {
        let invite: Invite = serde_json::from_value(json!({
            "apiVersion": api::API_VERSION, "kind": "Invite", "metadata": {"name": "a"},
            "spec": {}, "status": status,
        }))
        .expect("an Invite");
        state(Some(&invite))
    }

    fn ready(status: &str, reason: &str) -> Value {
        json!([{"type": "Ready", "status": status, "reason": reason, "message": "words",
            "lastTransitionTime": "2026-01-01T00:00:00Z"}])
    }

    #[test]
    fn a_token_is_waited_for_until_it_is_there_or_never_will_be() {
        let not_seen = State::Waiting(State::NOT_SEEN.to_owned());
        assert_eq!(of(json!(null)), not_seen);
        assert_eq!(of(json!({"identity": "cluster:x"})), not_seen);
        assert_eq!(
            of(json!({"conditions": ready("True", "Pending")})),
            not_seen
        );
        assert_eq!(
            of(json!({"conditions": ready("False", "NoRelay")})),
            State::Waiting("NoRelay: words".to_owned())
        );
        assert_eq!(
            of(
                json!({"secretName": "s", "expiresAt": "2026-01-01T00:15:00Z", "conditions": ready("True", "Pending")})
            ),
            State::Offered(Offer {
                secret: "s".to_owned(),
                expires: Some("2026-01-01T00:15:00Z".parse().expect("a time")),
            })
        );
        for reason in ["Used", "Expired"] {
            assert!(matches!(
                of(json!({"secretName": "s", "conditions": ready("False", reason)})),
                State::Over(_)
            ));
        }
        assert!(matches!(state(None), State::Over(_)));
    }

    #[test]
    fn ranges_of_this_cluster_are_not_for_others() {
        let mesh = |status| -> Mesh {
            serde_json::from_value(json!({
                "apiVersion": api::API_VERSION, "kind": "Mesh", "metadata": {"name": "default"},
                "spec": {"clusterName": "berlin"}, "status": status,
            }))
            .expect("a Mesh")
        };
        let known = mesh(json!({"ranges": {
            "podCIDRs": ["10.101.1.0/24", "10.101.2.0/24"], "serviceCIDRs": ["fd96::/108"], "source": "Nodes"}}));
        let check = |cidr: &str, mesh: &Mesh| {
            check_ranges(&["10.9.0.0/16".to_owned(), cidr.to_owned()], mesh)
                .map_err(|error| error.to_string())
        };
        assert_eq!(check("10.102.0.0/16", &known), Ok(()));
        for (bad, own) in [
            (
                "10.101.0.0/16",
                "10.101.1.0/24, which this cluster uses for pods",
            ),
            (
                "10.101.2.7/32",
                "10.101.2.0/24, which this cluster uses for pods",
            ),
            (
                "fd96::/64",
                "fd96::/108, which this cluster uses for Services",
            ),
        ] {
            let error = check(bad, &known).expect_err(bad);
            assert!(error.contains(&format!("{bad} overlaps {own}")), "{error}");
            assert_eq!(check(bad, &mesh(json!(null))), Ok(()), "nothing known");
        }
    }

    #[test]
    fn lifetimes() {
        for good in ["15m", "1h30m", "90s", "168h", "1h1m1s"] {
            assert_eq!(check_ttl(good).as_deref(), Ok(good));
        }
        for bad in [
            "",
            "15",
            "0m",
            "169h",
            "-1m",
            "+1m",
            "m",
            "1m1h",
            "1.5h",
            "99999999999999999999h",
        ] {
            assert!(check_ttl(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn instructions_name_the_next_command() {
        let args = |host, output: Option<&str>| InviteArgs {
            cidrs: Vec::new(),
            ttl: "15m".to_owned(),
            host,
            name: None,
            output: output.map(Into::into),
            timeout: 60,
        };
        let offer = Offer {
            secret: "s".to_owned(),
            expires: Some("2026-01-01T00:15:00Z".parse().expect("a time")),
        };
        let text = instructions(&args(false, Some("t")), &offer, "berlin", "links");
        for part in [
            "until 2026-01-01 00:15:00 UTC",
            "can join berlin",
            "--namespace links",
            "join.token=t\n",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        let text = instructions(&args(true, None), &offer, "berlin", "links");
        assert!(
            text.contains("culvert-agent join --token-file FILE"),
            "{text}"
        );
    }
}
