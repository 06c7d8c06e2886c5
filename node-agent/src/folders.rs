//! The source of a host without Kubernetes: its manifests, those that joining has written, and what its peers tell.

use std::path::PathBuf;

use api::{Accepted, FolderRead};
use derp::RelayUrl;

use crate::member::Member;
use crate::{Read, Source, Watcher};

/// The source of a host without Kubernetes.
pub(crate) struct Folders {
    /// Without it there are only those that joining has written.
    manifests: Option<Watcher>,
    joined: Watcher,
    joined_folder: PathBuf,
    member: Member,
    /// As last seen, each.
    written: Option<FolderRead>,
    agreed: Option<FolderRead>,
}

impl Folders {
    pub(crate) fn new(manifests: Option<Watcher>, joined_folder: PathBuf, member: Member) -> Self {
        Self {
            manifests,
            joined: Watcher::new(&joined_folder),
            joined_folder,
            member,
            written: None,
            agreed: None,
        }
    }

    /// Whether either folder is not as it was.
    fn look_at_folders(&mut self) -> bool {
        let written = self.manifests.as_mut().and_then(Watcher::look);
        let agreed = self.joined.look();
        let changed = written.is_some() || agreed.is_some();
        self.written = written.or_else(|| self.written.take());
        self.agreed = agreed.or_else(|| self.agreed.take());
        changed
    }

    fn folder(&self) -> FolderRead {
        let agreed = self.agreed.clone().filter(|_| self.joined_folder.exists());
        merge(self.written.clone(), agreed)
    }
}

impl Source for Folders {
    async fn changed(&mut self) {
        self.member.changed().await;
    }

    fn look(&mut self) -> Option<Read> {
        let moved = self.look_at_folders();
        let told = self.member.look();
        (moved || told).then(|| Read {
            folder: self.folder(),
            told: self.member.told().to_vec(),
        })
    }

    fn in_force(&mut self, accepted: &Accepted) {
        self.member.follow(accepted);
    }

    fn pass(&self, relay: &RelayUrl) -> Option<String> {
        self.member.pass(relay)
    }
}

/// Both folders as one. What cannot be read leaves everything as it is.
fn merge(written: Option<FolderRead>, agreed: Option<FolderRead>) -> FolderRead {
    let mut files = Vec::new();
    for (folder, prefix) in [(written, ""), (agreed, "joined/")] {
        match folder {
            None => {}
            Some(FolderRead::Files(more)) => {
                let named = more.into_iter().map(|file| api::FileRead {
                    name: format!("{prefix}{}", file.name),
                    ..file
                });
                files.extend(named);
            }
            Some(
                other @ (FolderRead::Unreadable { .. }
                | FolderRead::Objects(_)
                | FolderRead::Waiting { .. }),
            ) => return other,
        }
    }
    FolderRead::Files(files)
}

#[cfg(test)]
mod tests {
    use api::FileRead;

    use super::*;

    fn files(names: &[&str]) -> FolderRead {
        let file = |name: &&str| FileRead {
            name: (*name).to_owned(),
            content: Ok(Vec::new()),
        };
        FolderRead::Files(names.iter().map(file).collect())
    }

    #[test]
    fn two_folders_are_one() {
        let merged = merge(Some(files(&["a.yaml"])), Some(files(&["a.yaml"])));
        assert_eq!(merged, files(&["a.yaml", "joined/a.yaml"]));
        assert_eq!(merge(None, None), files(&[]));
        let broken = FolderRead::Unreadable {
            folder: "/etc/culvert".to_owned(),
            error: "gone".to_owned(),
        };
        assert_eq!(
            merge(Some(broken.clone()), Some(files(&["a.yaml"]))),
            broken
        );
    }
}
