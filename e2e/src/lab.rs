//! The lab as a whole: its core, the hosts on the core, and how everything goes away.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use ipnet::{Ipv4Net, Ipv6Net};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};

use crate::cluster;
use crate::exec;
use crate::namespace::{MOUNTS, Namespace};
use crate::process::log_complaints;

/// Start of every name that a lab gives to a namespace or folder; the process id follows.
const PREFIX: &str = "cvl";

/// Start of the names of a lab that outlives the process which made it.
const KEPT_PREFIX: &str = "culvert-demo-";

const RELAY_LINK: u8 = 2;
const PUBLIC_LINK: u8 = 3;
const FIRST_SITE_LINK: u8 = 4;
const LAST_LINK: u8 = 31;

/// An internet in namespaces. Dropping it ends every process inside and removes everything.
#[derive(Debug)]
pub struct Lab {
    prefix: String,
    folder: PathBuf,
    core: Namespace,
    next_link: u8,
    keep: bool,
    finished: bool,
    watchdog: Option<Child>,
}

/// A host on the core with public addresses.
#[derive(Clone, Debug)]
pub struct Host {
    /// Where it lives.
    pub ns: Namespace,
    /// Its IPv4 addresses, the first one being its main one.
    pub v4: Vec<Ipv4Addr>,
    /// Its IPv6 addresses.
    pub v6: Vec<Ipv6Addr>,
}

impl Lab {
    /// Makes the core of a new lab, and removes what labs of processes that are gone have left behind.
    pub fn new(name: &str) -> Result<Self> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        Self::build(
            format!("{PREFIX}{}-{number}{name}-", std::process::id()),
            false,
        )
    }

    /// Makes the core of the one lab on this machine that outlives its maker. Refuses when there is one.
    pub fn new_kept() -> Result<Self> {
        refuse_second_kept()?;
        Self::build(KEPT_PREFIX.to_owned(), true)
    }

    fn build(prefix: String, keep: bool) -> Result<Self> {
        ensure_root()?;
        remove_stale();
        let folder = std::env::temp_dir().join(prefix.trim_end_matches('-'));
        for inner in ["logs", "captures"] {
            fs::create_dir_all(folder.join(inner))
                .with_context(|| format!("cannot make {}", folder.display()))?;
        }
        let watchdog = if keep {
            None
        } else {
            Some(watchdog(&prefix, &folder)?)
        };
        let core = Namespace::named(&format!("{prefix}core"));
        // Made before its namespace, so that a failure below removes what is there.
        let lab = Self {
            prefix,
            folder,
            core,
            next_link: FIRST_SITE_LINK,
            keep,
            finished: false,
            watchdog,
        };
        let core = lab.namespace("core")?;
        core.sysctl("net/ipv4/ip_forward", "1")?;
        core.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        Ok(lab)
    }

    /// Makes a namespace of this lab.
    pub fn namespace(&self, name: &str) -> Result<Namespace> {
        Namespace::create(&format!("{}{name}", self.prefix))
    }

    /// The router between all wide-area links.
    pub fn core(&self) -> &Namespace {
        &self.core
    }

    /// A folder that goes away with the lab.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether this lab outlives the process.
    pub fn is_kept(&self) -> bool {
        self.keep
    }

    /// The start of all this lab's namespace names.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Adds the host for a relay: 203.0.113.20 and 203.0.113.21, `2001:db8:f::2:0:4` and `:5`.
    pub fn relay_host(&self) -> Result<Host> {
        self.host("relay", Link::new(RELAY_LINK), &[4, 5])
    }

    /// Adds a host that is neither relay nor site: 203.0.113.30.
    pub fn public_host(&self) -> Result<Host> {
        self.host("public", Link::new(PUBLIC_LINK), &[6])
    }

    fn host(&self, name: &str, link: Link, places: &[u8]) -> Result<Host> {
        let ns = self.namespace(name)?;
        self.attach(&ns, link, true)?;
        let v4: Vec<_> = places.iter().map(|&place| link.address(place)).collect();
        let v6: Vec<_> = places.iter().map(|&place| link.address6(place)).collect();
        let mut lines: Vec<_> = v4
            .iter()
            .map(|ip| format!("addr add {ip}/29 dev wan"))
            .collect();
        lines.extend(v6.iter().map(|ip| format!("addr add {ip}/112 dev wan")));
        lines.push(format!("route add default via {}", link.core()));
        lines.push(format!("route add ::/0 via {}", link.core6()));
        ns.ip(&lines.iter().map(String::as_str).collect::<Vec<_>>())?;
        Ok(Host { ns, v4, v6 })
    }

    /// Cables `wan` of a namespace to the core, whose end is called `link<n>` and gets its addresses.
    pub(crate) fn attach(&self, ns: &Namespace, link: Link, ipv6: bool) -> Result<()> {
        let port = link.port();
        self.core.ip(&[&format!(
            "link add {port} type veth peer name wan netns {}",
            ns.name()
        )])?;
        if !ipv6 {
            self.core
                .sysctl(&format!("net/ipv6/conf/{port}/disable_ipv6"), "1")?;
            ns.sysctl("net/ipv6/conf/wan/disable_ipv6", "1")?;
        }
        let mut lines = vec![
            format!("addr add {}/29 dev {port}", link.core()),
            format!("link set {port} up"),
        ];
        if ipv6 {
            lines.push(format!("addr add {}/112 dev {port}", link.core6()));
        }
        self.core
            .ip(&lines.iter().map(String::as_str).collect::<Vec<_>>())?;
        ns.ip(&["link set wan up"])
    }

    pub(crate) fn next_link(&mut self) -> Result<Link> {
        ensure!(
            self.next_link <= LAST_LINK,
            "the lab has no room for another site"
        );
        let link = Link::new(self.next_link);
        self.next_link += 1;
        Ok(link)
    }

    /// Everything that has to be gone when the lab is: its folder, its namespaces, the processes in them, and its helpers.
    pub fn census(&self) -> Result<Census> {
        let mut pids = self.watchdog.iter().map(Child::id).collect::<Vec<_>>();
        for name in names_with(&self.prefix) {
            let inside = Namespace::named(&name).pids()?;
            pids.extend(inside.into_iter().filter_map(|pid| u32::try_from(pid).ok()));
        }
        let born = |pid| birth(pid).map(|born| (pid, born));
        Ok(Census {
            prefix: self.prefix.clone(),
            folder: self.folder.clone(),
            processes: pids.into_iter().filter_map(born).collect(),
        })
    }

    /// Ends the lab well: fails if any program of ours logged an error or panicked.
    pub fn finish(mut self) -> Result<()> {
        self.finished = true;
        let complaints = log_complaints(&self.folder.join("logs"))?;
        if !complaints.is_empty() {
            bail!("errors in the logs:\n{}", complaints.join("\n"));
        }
        Ok(())
    }

    #[expect(
        clippy::print_stderr,
        reason = "the logs of a failed test are gone with the lab"
    )]
    fn show_logs(&self) {
        let entries = fs::read_dir(self.folder.join("logs"))
            .into_iter()
            .flatten()
            .flatten();
        for path in entries.map(|entry| entry.path()) {
            let text = fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<_> = text.lines().collect();
            let tail = lines.iter().skip(lines.len().saturating_sub(40));
            eprintln!("--- end of {}", path.display());
            tail.for_each(|line| eprintln!("{line}"));
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if thread::panicking() || !self.finished && std::env::var_os("LAB_LOGS").is_some() {
            self.show_logs();
        }
        if self.keep {
            return;
        }
        remove(&names_with(&self.prefix));
        remove_groups_of(&self.prefix);
        let _ = fs::remove_dir_all(&self.folder);
        if let Some(mut watchdog) = self.watchdog.take() {
            drop(watchdog.stdin.take());
            let _ = watchdog.wait();
        }
    }
}

/// What a lab consisted of.
#[derive(Clone, Debug)]
pub struct Census {
    prefix: String,
    folder: PathBuf,
    /// Process ids and when each process began.
    processes: Vec<(u32, String)>,
}

impl Census {
    /// How many processes there were.
    pub fn processes(&self) -> usize {
        self.processes.len()
    }

    /// What is still there, or has come since; a line each.
    pub fn left(&self) -> Vec<String> {
        let mut left: Vec<_> = names_with(&self.prefix)
            .iter()
            .map(|name| format!("namespace {name}"))
            .collect();
        if self.folder.exists() {
            left.push(format!("folder {}", self.folder.display()));
        }
        let own = |name: &str| name == group_of(&self.prefix);
        let groups = cluster::groups(own).into_iter();
        left.extend(groups.map(|group| format!("control group {}", group.display())));
        let alive = |(pid, born): &&(u32, String)| birth(*pid).as_ref() == Some(born);
        let old = self.processes.iter().filter(alive);
        left.extend(old.map(|(pid, _)| format!("process {pid}")));
        left.extend(named_in_commands(&self.folder).map(|line| format!("process {line}")));
        left
    }
}

/// When a process began, in the kernel's ticks: a process id is used again some day.
fn birth(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, behind_name) = stat.rsplit_once(") ")?;
    let zombie = behind_name.starts_with('Z');
    behind_name
        .split(' ')
        .nth(19)
        .filter(|_| !zombie)
        .map(str::to_owned)
}

/// Processes whose command line names something in a folder.
fn named_in_commands(folder: &Path) -> impl Iterator<Item = String> {
    let wanted = format!("{}/", folder.display());
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(move |entry| {
        let words = fs::read(entry.path().join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&words).replace('\0', " ");
        line.contains(&wanted).then_some(line)
    })
}

/// Removes a lab that was left up. Returns the namespaces that there were.
pub fn take_down_kept() -> Result<Vec<String>> {
    let names = kept_names()?;
    remove(&names);
    remove_groups_of(KEPT_PREFIX);
    let folder = std::env::temp_dir().join(KEPT_PREFIX.trim_end_matches('-'));
    if folder.exists() {
        fs::remove_dir_all(&folder)
            .with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    Ok(names)
}

/// Fails for anybody but root.
pub fn ensure_root() -> Result<()> {
    ensure!(
        Uid::effective().is_root(),
        "the lab makes network namespaces and TUN devices: run as root"
    );
    Ok(())
}

/// Fails when a lab was left up.
pub fn refuse_second_kept() -> Result<()> {
    let up = !kept_names()?.is_empty();
    ensure!(
        !up,
        "a demo is up already; stop it first: make cluster-down (or make demo-down)"
    );
    Ok(())
}

fn kept_names() -> Result<Vec<String>> {
    ensure_root()?;
    Ok(names_with(KEPT_PREFIX))
}

/// One wide-area link: 203.0.113.(8n)/29 and 2001:db8:f::n:0/112, with the core at 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    number: u8,
}

impl Link {
    fn new(number: u8) -> Self {
        Self { number }
    }

    /// The link's number, from 2 to 31.
    pub fn number(self) -> u8 {
        self.number
    }

    /// The interface on the core.
    pub fn port(self) -> String {
        format!("link{}", self.number)
    }

    /// The IPv4 address at a place from 1 to 6.
    pub fn address(self, place: u8) -> Ipv4Addr {
        Ipv4Addr::new(203, 0, 113, self.number * 8 + place)
    }

    /// The IPv6 address at a place.
    pub fn address6(self, place: u8) -> Ipv6Addr {
        Ipv6Addr::new(
            0x2001,
            0xdb8,
            0xf,
            0,
            0,
            u16::from(self.number),
            0,
            u16::from(place),
        )
    }

    /// The core's own address.
    pub fn core(self) -> Ipv4Addr {
        self.address(1)
    }

    /// The core's own IPv6 address.
    pub fn core6(self) -> Ipv6Addr {
        self.address6(1)
    }

    /// The link's IPv4 subnet.
    pub fn subnet(self) -> Ipv4Net {
        Ipv4Net::new_assert(self.address(0), 29)
    }

    /// All IPv6 addresses of the site on the link, those behind its router included.
    pub fn subnet6(self) -> Ipv6Net {
        Ipv6Net::new_assert(self.address6(0), 96)
    }

    /// Whether an address belongs to this link's site.
    pub fn contains(self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(ip) => self.subnet().contains(&ip),
            IpAddr::V6(ip) => self.subnet6().contains(&ip),
        }
    }
}

/// Removes the lab when this process is killed: its input ends with the process, and then it tidies up.
fn watchdog(prefix: &str, folder: &Path) -> Result<Child> {
    // What was started a moment before has no parent-death signal yet, so processes are ended here too.
    let script = r#"
cat >/dev/null
for path in /run/netns/"$1"*; do
  [ -e "$path" ] || continue
  name=${path##*/}
  for pid in $(ip netns pids "$name"); do kill -KILL "$pid"; done
  ip netns del "$name"
done
for wait in 1 2 3 4 5 6 7 8 9 10; do
  groups=$(find /sys/fs/cgroup -mindepth 1 -maxdepth 2 -type d -name "${1%-}")
  [ -n "$groups" ] || break
  find $groups -depth -type d -exec rmdir {} + 2>/dev/null
  sleep 0.2
done
rm -rf "$2"
"#;
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh", prefix]).arg(folder);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // A terminal's Ctrl-C goes to the whole process group.
    command.process_group(0);
    exec::spawn(command).context("cannot start the lab's watchdog")
}

fn names_with(prefix: &str) -> Vec<String> {
    let entries = fs::read_dir(MOUNTS).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with(prefix)).collect()
}

/// The control group that holds those of all machines of a lab.
fn group_of(prefix: &str) -> &str {
    prefix.trim_end_matches('-')
}

fn remove_groups_of(prefix: &str) {
    cluster::remove_groups(&cluster::groups(|name| name == group_of(prefix)));
}

/// Removes what labs of processes that are no more have left behind.
fn remove_stale() {
    let dead: Vec<_> = names_with(PREFIX)
        .into_iter()
        .filter(|name| owner_is_gone(name))
        .collect();
    remove(&dead);
    cluster::remove_groups(&cluster::groups(owner_is_gone));
    let folders = fs::read_dir(std::env::temp_dir())
        .into_iter()
        .flatten()
        .flatten();
    for folder in folders.filter(|entry| entry.file_name().to_str().is_some_and(owner_is_gone)) {
        let _ = fs::remove_dir_all(folder.path());
    }
}

/// Whether a name is one of a lab whose process has ended.
fn owner_is_gone(name: &str) -> bool {
    let owner = name
        .strip_prefix(PREFIX)
        .and_then(|rest| rest.split('-').next());
    let pid = owner.and_then(|owner| owner.parse::<u32>().ok());
    pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
}

/// Ends the processes in the namespaces, and removes these. Goes on whatever fails: it runs also when the test has failed.
fn remove(names: &[String]) {
    let all: Vec<_> = names.iter().map(|name| Namespace::named(name)).collect();
    let pids = all.iter().flat_map(|ns| ns.pids().unwrap_or_default());
    for pid in pids.collect::<Vec<_>>() {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    for name in names {
        let mut command = Command::new("ip");
        command.args(["netns", "del", name]);
        let _ = exec::output(command);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_their_owner() {
        let mine = format!("{PREFIX}{}-0x-core", std::process::id());
        assert!(!owner_is_gone(&mine));
        assert!(owner_is_gone(&format!("{PREFIX}4194999-0x-core")));
        assert!(!owner_is_gone("somebody-elses"));
    }

    #[test]
    fn dropping_removes_everything() {
        let lab = Lab::new("drop").expect("a lab");
        let census = lab.census().expect("a census");
        assert_eq!(census.processes(), 1, "the watchdog");
        assert!(census.left().len() >= 3, "{:?}", census.left());
        let (prefix, folder) = (lab.prefix.clone(), lab.folder.clone());
        assert_eq!(names_with(&prefix).len(), 1);
        drop(lab);
        assert!(names_with(&prefix).is_empty());
        assert!(!folder.exists());
        assert_eq!(census.left(), Vec::<String>::new());
    }
}
