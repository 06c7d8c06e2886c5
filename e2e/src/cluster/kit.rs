//! What clusters are made of: Kubernetes and its friends, built once from their published Go modules into a cache.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use ring::digest::{self, SHA256};

use crate::exec;
use crate::image::Image;

/// The version of Kubernetes; `go.mod` says the same, and pins each of its staging modules to the release that goes with it.
/// CoreDNS and Helm are the newest that need no module newer than Kubernetes does: else all would be compiled twice.
const KUBERNETES: &str = "v1.37.2";

/// The image of a pod's first container.
pub(super) const PAUSE: &str = "culvert.test/pause:1";
/// The image of the tests' pods: echo server, client and the like. Its entry point is `/podtool`.
pub const PODTOOL: &str = "culvert.test/podtool:1";
pub(super) const COREDNS: &str = "culvert.test/coredns:1";

/// The programs that `kubeall` is, each by its own name.
const FACES: [&str; 7] = [
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-proxy",
    "kube-scheduler",
    "kubectl",
    "kubelet",
];

/// Files that decide what is built.
const INPUTS: [&str; 8] = [
    "go.mod",
    "go.sum",
    "kubeall/main.go",
    "coredns/main.go",
    "podtool/main.go",
    "podtool/client.go",
    "podtool/ping.go",
    "podtool/server.go",
];

/// A folder with everything: programs and images.
#[derive(Clone, Debug)]
pub struct Kit {
    folder: PathBuf,
}

/// Where this project keeps what takes long to build, across checkouts.
pub fn cache_folder() -> Result<PathBuf> {
    let base = match std::env::var_os("XDG_CACHE_HOME").filter(|path| !path.is_empty()) {
        Some(path) => PathBuf::from(path),
        None => PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?).join(".cache"),
    };
    Ok(base.join("culvert"))
}

impl Kit {
    /// The kit, if it has been built for these sources.
    pub fn find() -> Result<Self> {
        let folder = Self::place()?;
        ensure!(
            folder.exists(),
            "Kubernetes has not been built yet: run scripts/clusters.sh (10 minutes, once)"
        );
        Ok(Self { folder })
    }

    /// Builds the kit unless it is there. `tell` gets a line for each part that was built. Of two at the same time, one waits.
    pub fn build(tell: &mut dyn FnMut(&str)) -> Result<Self> {
        let folder = Self::place()?;
        let parent = folder.parent().context("a place in the cache")?;
        fs::create_dir_all(parent)?;
        let lock = File::create(parent.join("kubernetes.lock"))?;
        lock.lock().context("cannot lock the cache")?;
        if !folder.exists() {
            let building = folder.with_extension("building");
            if building.exists() {
                fs::remove_dir_all(&building)?;
            }
            fill(&building, tell)?;
            fs::rename(&building, &folder)?;
        }
        Ok(Self { folder })
    }

    /// The folder of all programs.
    pub fn programs(&self) -> PathBuf {
        self.folder.join("bin")
    }

    /// One program: `kubectl`, `helm`, `podtool` and those of a cluster.
    pub fn program(&self, name: &str) -> PathBuf {
        self.programs().join(name)
    }

    /// Archives of the images that every node has.
    pub(super) fn images(&self) -> Vec<PathBuf> {
        let file = |name| self.folder.join("images").join(format!("{name}.tar"));
        ["pause", "podtool", "coredns"].map(file).to_vec()
    }

    fn place() -> Result<PathBuf> {
        let mut sum = digest::Context::new(&SHA256);
        sum.update(format!("{KUBERNETES} {}", std::env::consts::ARCH).as_bytes());
        for input in INPUTS {
            let path = sources().join(input);
            sum.update(
                &fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?,
            );
        }
        let sum = sum.finish();
        let digits = sum
            .as_ref()
            .iter()
            .take(6)
            .map(|byte| format!("{byte:02x}"));
        let name = format!("kubernetes-{}", digits.collect::<String>());
        Ok(cache_folder()?.join(name))
    }
}

fn sources() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/kubernetes"))
}

fn fill(folder: &Path, tell: &mut dyn FnMut(&str)) -> Result<()> {
    let (programs, images) = (folder.join("bin"), folder.join("images"));
    fs::create_dir_all(&programs)?;
    fs::create_dir_all(&images)?;
    let mut timed = |what: &str, work: &dyn Fn() -> Result<()>| {
        let start = Instant::now();
        work().with_context(|| format!("cannot build {what}"))?;
        tell(&format!("{what} ({} s)", start.elapsed().as_secs()));
        Ok::<_, anyhow::Error>(())
    };
    timed("Go modules downloaded", &|| {
        let all = "./...\nhelm.sh/helm/v4/cmd/helm";
        go(&["list", "-deps"], all.split('\n')).map(drop)
    })?;
    let build = |name: &str, package: &str, flags: &str| {
        let out = programs.join(name).display().to_string();
        let flags = format!("-s -w {flags}");
        go(
            &["build", "-ldflags", &flags, "-o", &out],
            [package].into_iter(),
        )
    };
    timed("the tool for pods", &|| build("podtool", "./podtool", ""))?;
    timed("Kubernetes and etcd", &|| {
        build("kubeall", "./kubeall", &version_flags()?)
    })?;
    timed("CoreDNS", &|| build("coredns", "./coredns", ""))?;
    timed("Helm", &|| build("helm", "helm.sh/helm/v4/cmd/helm", ""))?;
    for face in FACES {
        symlink("kubeall", programs.join(face))?;
    }
    write_images(&programs, &images)
}

fn write_images(programs: &Path, images: &Path) -> Result<()> {
    for (file, name, program) in [
        ("pause", PAUSE, "podtool"),
        ("podtool", PODTOOL, "podtool"),
        ("coredns", COREDNS, "coredns"),
    ] {
        let mut image = Image::of_program(name, &programs.join(program), "0:0", images)?;
        if file == "pause" {
            image.entrypoint.push("pause".to_owned());
        }
        image.write(&images.join(format!("{file}.tar")))?;
        fs::remove_file(images.join(format!("{program}.layer")))?;
    }
    Ok(())
}

fn go<'a>(arguments: &[&str], packages: impl Iterator<Item = &'a str>) -> Result<()> {
    let mut command = Command::new("go");
    command
        .current_dir(sources())
        .env("CGO_ENABLED", "0")
        .env("GOFLAGS", "-trimpath -buildvcs=false")
        .args(arguments)
        .args(packages);
    exec::output(command).map(drop)
}

/// What makes server, kubelet and Helm agree on the version.
fn version_flags() -> Result<String> {
    let mut parts = KUBERNETES.trim_start_matches('v').split('.');
    let (Some(major), Some(minor)) = (parts.next(), parts.next()) else {
        bail!("{KUBERNETES} is no version");
    };
    let values = [
        ("gitVersion", KUBERNETES),
        ("gitMajor", major),
        ("gitMinor", minor),
        ("gitTreeState", "clean"),
        ("gitCommit", "none"),
        ("buildDate", "1970-01-01T00:00:00Z"),
    ];
    let modules = ["k8s.io/component-base", "k8s.io/client-go/pkg"];
    let flags = modules.iter().flat_map(|module| {
        values.map(|(name, value)| format!("-X {module}/version.{name}={value}"))
    });
    Ok(flags.collect::<Vec<_>>().join(" "))
}

/// The programs of the system that clusters need and that are missing.
pub fn missing_programs() -> Vec<&'static str> {
    let found = |name: &str| {
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "PATH=$PATH:/usr/sbin:/sbin command -v \"$1\"",
            "sh",
            name,
        ]);
        exec::output(command).is_ok()
    };
    let mut missing: Vec<_> = ["containerd", "ctr", "runc"]
        .into_iter()
        .filter(|name| !found(name))
        .collect();
    if !Path::new("/usr/lib/cni/bridge").exists() {
        missing.push("/usr/lib/cni/bridge");
    }
    missing
}
