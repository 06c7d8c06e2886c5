//! Manifests that are wrong: each is refused in its own place, and traffic to a good peer does not notice.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::status::ManifestError;
use e2e::{Agent, Pair, Profile, Side, figure, wait_for};

/// A file's content, and the error that its status must hold.
struct Case {
    content: Vec<u8>,
    expected: ManifestError,
}

/// Changes are read within two seconds; the rest is the machine's slowness.
const PATIENCE: Duration = Duration::from_secs(6);

#[test]
fn every_code_is_refused_and_traffic_goes_on() -> Result<()> {
    let mut pair = Pair::behind("refuse", Profile::PortRestricted, Profile::PortRestricted)?;
    pair.establish("direct")?;
    let mut cases = written(&pair)?;
    cases.extend(made());
    let there = pair.ping_from_a(100)?;
    let back = pair.ping_from_b(100)?;
    let agent = &pair.a.agent;
    for case in &cases {
        let path = agent.manifests().join(&case.expected.file);
        fs::write(&path, &case.content)?;
        refused(agent, &case.expected)?;
        fs::remove_file(&path)?;
        no_errors(agent).with_context(|| format!("after {}", case.expected.file))?;
    }
    let mut codes: BTreeSet<_> = cases.into_iter().map(|case| case.expected.code).collect();
    codes.insert(unreadable_file(agent)?);
    codes.insert(unreadable_folder(agent)?);
    for (pinger, receiver) in [(there, &pair.b), (back, &pair.a)] {
        let sent = pinger.stop();
        let lost = receiver.echo.arrivals(sent.flow).missing(0..sent.count());
        figure(
            "refusals: pings lost",
            format!("{} of {}", lost.len(), sent.count()),
        );
        ensure!(lost.is_empty(), "lost {lost:?}");
    }
    let missing: Vec<_> = api::Code::ALL
        .iter()
        // Objects of an API server are waited for and admitted; a folder is there or is not.
        .filter(|code| !matches!(code, api::Code::NotReadYet | api::Code::NotAdmitted))
        .map(ToString::to_string)
        .filter(|code| !codes.contains(code))
        .collect();
    figure("refusals: codes seen", codes.len());
    assert!(codes.len() >= 25, "{codes:?}");
    assert!(missing.is_empty(), "no case for {missing:?}");
    pair.finish()
}

fn refused(agent: &Agent, expected: &ManifestError) -> Result<()> {
    wait_for(PATIENCE, &format!("{expected:?}"), || {
        let errors = agent.status()?.manifest_errors()?;
        ensure!(errors.contains(expected), "{errors:?}");
        Ok(())
    })
}

fn no_errors(agent: &Agent) -> Result<()> {
    wait_for(PATIENCE, "no errors", || {
        let errors = agent.status()?.manifest_errors()?;
        ensure!(errors.is_empty(), "{errors:?}");
        Ok(())
    })
}

/// The cases that the manifest reader's own tests use too.
fn written(pair: &Pair) -> Result<Vec<Case>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../libs/api/testdata/refusals");
    let mut paths: Vec<PathBuf> = fs::read_dir(folder)?
        .flatten()
        .map(|entry| entry.path())
        .collect();
    paths.sort_unstable();
    let words = placeholders(pair)?;
    paths
        .iter()
        .map(|path| case(path, &words).with_context(|| path.display().to_string()))
        .collect()
}

fn case(path: &Path, words: &[(&str, String)]) -> Result<Case> {
    let mut content = fs::read(path)?;
    for (name, value) in words {
        content = replace(
            &content,
            format!("${{{name}}}").as_bytes(),
            value.as_bytes(),
        );
    }
    let first = content
        .split(|&byte| byte == b'\n')
        .next()
        .context("an empty file")?;
    let expected = expectation(std::str::from_utf8(first)?)?;
    Ok(Case { content, expected })
}

/// `# expect: file=NAME document=INDEX field=PATH code=CODE`
fn expectation(line: &str) -> Result<ManifestError> {
    let line = line
        .strip_prefix("# expect: ")
        .context("the first line expects nothing")?;
    let word = |key: &str| {
        let found = line
            .split(' ')
            .find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        found
            .map(str::to_owned)
            .with_context(|| format!("no {key}"))
    };
    Ok(ManifestError {
        file: word("file")?,
        document: word("document")?.parse()?,
        field: word("field")?,
        code: word("code")?,
    })
}

fn placeholders(pair: &Pair) -> Result<Vec<(&'static str, String)>> {
    let cidr = |side: &Side| side.site.pod_cidr.to_string();
    let nobody = Agent::new(&pair.lab, &pair.b.site)?;
    let spare = pair.lab.folder().join("nobody");
    Ok(vec![
        ("MESH", "default".to_owned()),
        ("PEER", pair.a.other.clone()),
        ("OWN_KEY", pair.a.agent.key()?),
        ("PEER_KEY", pair.b.agent.key()?),
        ("FREE_KEY", nobody.key_in(&spare)?),
        ("OWN_CIDR", cidr(&pair.a)),
        ("PEER_CIDR", cidr(&pair.b)),
        ("FREE_CIDR", "10.77.0.0/16".to_owned()),
        ("CONNECTED_CIDR", "192.168.11.0/24".to_owned()),
        ("RELAY_URL", pair.relay.url()),
        ("RELAY_CIDR", "203.0.113.20/32".to_owned()),
    ])
}

fn replace(text: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(&byte) = rest.first() {
        if let Some(behind) = rest.strip_prefix(from) {
            out.extend_from_slice(to);
            rest = behind;
        } else {
            out.push(byte);
            rest = &rest[1..];
        }
    }
    out
}

/// Cases too large to be kept as files.
fn made() -> Vec<Case> {
    let whole = |file: &str, code: &str, content| Case {
        content,
        expected: ManifestError {
            file: file.to_owned(),
            document: 0,
            field: String::new(),
            code: code.to_owned(),
        },
    };
    vec![
        whole(
            "large.yaml",
            "FileTooLarge",
            vec![b'#'; api::MAX_FILE_BYTES + 1],
        ),
        whole(
            "many.yaml",
            "TooManyDocuments",
            b"---\na: b\n".repeat(api::MAX_DOCUMENTS + 1),
        ),
    ]
}

/// A link to nowhere: even root cannot read it.
fn unreadable_file(agent: &Agent) -> Result<String> {
    let expected = ManifestError {
        file: "dangling.yaml".to_owned(),
        document: 0,
        field: String::new(),
        code: "FileUnreadable".to_owned(),
    };
    let path = agent.manifests().join(&expected.file);
    std::os::unix::fs::symlink("/nonexistent/manifest", &path)?;
    refused(agent, &expected)?;
    fs::remove_file(path)?;
    no_errors(agent)?;
    Ok(expected.code)
}

/// The folder goes away for a while; what was read from it stays in force.
fn unreadable_folder(agent: &Agent) -> Result<String> {
    let code = "FolderUnreadable";
    let away = agent.manifests().with_extension("away");
    fs::rename(agent.manifests(), &away)?;
    wait_for(PATIENCE, code, || {
        let errors = agent.status()?.manifest_errors()?;
        ensure!(errors.iter().any(|error| error.code == code), "{errors:?}");
        Ok(())
    })?;
    fs::rename(&away, agent.manifests())?;
    no_errors(agent)?;
    Ok(code.to_owned())
}
