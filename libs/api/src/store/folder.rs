//! A manifest folder that has been read: which document speaks for which object.

use std::collections::{BTreeMap, BTreeSet};

use derp::NodeKey;

use super::Held;
use crate::{
    Code, Document, FileRead, FolderRead, Kind, ManifestError, ManifestStatus, ObjectId, Problem,
    read_manifests,
};

/// The folder, files in the order of their names.
#[derive(Debug)]
pub(super) struct Folder {
    /// Set if the folder, or the API server, cannot be read; there are no files then.
    unreadable: Option<ManifestError>,
    files: BTreeMap<String, File>,
}

#[derive(Debug)]
struct File {
    entries: Vec<Entry>,
    /// The first error that leaves open which objects the file holds. Nothing is revoked because it is missing here.
    unclear: Option<ManifestError>,
}

/// One document and what is wrong with it.
#[derive(Debug)]
struct Entry {
    document: Document,
    problems: Vec<Problem>,
    /// Whether another document speaks for the object.
    passed_over: bool,
}

impl Folder {
    /// Reads all files.
    pub(super) fn read(read: &FolderRead, own_key: NodeKey) -> Self {
        match read {
            FolderRead::Unreadable { folder, error } => {
                let message = format!(
                    "cannot list the manifest folder: {error}; create it, or correct --manifests"
                );
                let problem = Problem::new("", Code::FolderUnreadable, message);
                Self {
                    unreadable: Some(ManifestError::new(folder, 0, &problem)),
                    files: BTreeMap::new(),
                }
            }
            FolderRead::Waiting { what } => {
                let message = format!("waiting for {what}; what was in force stays");
                let problem = Problem::new("", Code::NotReadYet, message);
                Self {
                    unreadable: Some(ManifestError::new("", 0, &problem)),
                    files: BTreeMap::new(),
                }
            }
            FolderRead::Objects(objects) => Self {
                unreadable: None,
                files: objects
                    .documents(own_key)
                    .map(|(name, document)| (name.clone(), File::stored(&name, document)))
                    .collect(),
            },
            FolderRead::Files(files) => Self {
                unreadable: None,
                files: files
                    .iter()
                    .map(|file| (file.name.clone(), File::read(file, own_key)))
                    .collect(),
            },
        }
    }

    /// Whether the last good state of an object, read from `file`, lives on.
    pub(super) fn keeps(&self, id: &ObjectId, file: &str) -> bool {
        self.unreadable.is_some()
            || self.is_unclear(file)
            || self
                .entries()
                .any(|(_, entry)| entry.document.id.as_ref() == Some(id))
    }

    /// Of several documents for one object lets one speak: that in force, else the first good one, else the first.
    pub(super) fn settle_duplicates(&mut self, held: &BTreeMap<ObjectId, Held>) {
        let mut places: BTreeMap<ObjectId, Vec<Claim>> = BTreeMap::new();
        for (file, entry) in self.entries() {
            let Some(id) = entry.document.id.clone() else {
                continue;
            };
            let claim = Claim::new(file, entry, held.get(&id));
            places.entry(id).or_default().push(claim);
        }
        for (id, claims) in places {
            let absent = held.get(&id).map(|held| held.file.as_str()).filter(|file| {
                self.is_unclear(file) && !claims.iter().any(|claim| claim.file == *file)
            });
            let first = claims.iter().min_by_key(|claim| claim.rank);
            let speaker = first
                .filter(|_| absent.is_none())
                .map(|claim| (claim.file.clone(), claim.document));
            let holder = speaker
                .as_ref()
                .map_or_else(|| absent.unwrap_or_default(), |(file, _)| file)
                .to_owned();
            for claim in claims {
                if speaker.as_ref() != Some(&(claim.file.clone(), claim.document)) {
                    self.pass_over(&claim, &id, &holder);
                }
            }
        }
    }

    /// Refuses every Mesh but the elected one.
    pub(super) fn refuse_meshes_besides(&mut self, elected: &ObjectId) {
        for entry in self.files.values_mut().flat_map(|file| &mut file.entries) {
            let other = entry
                .document
                .id
                .as_ref()
                .is_some_and(|id| id.kind == Kind::Mesh && id != elected);
            if other && !entry.passed_over {
                let message = format!(
                    "there is a Mesh already, {}, and only one can be; remove one of them",
                    elected.name
                );
                entry
                    .problems
                    .push(Problem::new("kind", Code::SecondMesh, message));
            }
        }
    }

    /// Notes more problems of the document that speaks for an object.
    pub(super) fn refuse(&mut self, id: &ObjectId, problems: Vec<Problem>) {
        let mut entries = self.files.values_mut().flat_map(|file| &mut file.entries);
        if let Some(entry) =
            entries.find(|entry| !entry.passed_over && entry.document.id.as_ref() == Some(id))
        {
            entry.problems.extend(problems);
        }
    }

    /// Objects of a kind whose document speaks for them and has no problem, in the order of files and documents.
    pub(super) fn good(&self, kind: Kind) -> impl Iterator<Item = (&ObjectId, Held)> {
        self.entries().filter_map(move |(file, entry)| {
            let id = entry.document.id.as_ref().filter(|id| id.kind == kind)?;
            let good = !entry.passed_over && entry.problems.is_empty();
            let config = entry
                .document
                .object
                .as_ref()
                .ok()
                .filter(|_| good)?
                .clone();
            let spec = entry.document.spec.clone();
            let held = Held::new(file.to_owned(), spec, entry.document.form, config);
            Some((id, held))
        })
    }

    /// One status for every document, every unreadable file, and every object that is kept without its document.
    pub(super) fn statuses(&self, held: &BTreeMap<ObjectId, Held>) -> Vec<ManifestStatus> {
        let mut statuses: Vec<ManifestStatus> = self.unreadable.iter().map(unnamed).collect();
        for (name, file) in &self.files {
            if file.entries.is_empty() {
                statuses.extend(file.unclear.iter().map(unnamed));
            }
            statuses.extend(file.entries.iter().map(|entry| entry.status(name)));
        }
        let present: BTreeSet<&ObjectId> = self
            .entries()
            .filter_map(|(_, entry)| entry.document.id.as_ref())
            .collect();
        for (id, held) in held.iter().filter(|(id, _)| !present.contains(id)) {
            let unclear = self
                .files
                .get(&held.file)
                .and_then(|file| file.unclear.as_ref());
            statuses.push(ManifestStatus {
                kind: Some(id.kind.name().to_owned()),
                name: Some(id.name.clone()),
                accepted: false,
                errors: unclear
                    .or(self.unreadable.as_ref())
                    .into_iter()
                    .cloned()
                    .collect(),
            });
        }
        statuses
    }

    fn entries(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.files
            .iter()
            .flat_map(|(name, file)| file.entries.iter().map(move |entry| (name.as_str(), entry)))
    }

    fn is_unclear(&self, file: &str) -> bool {
        self.files
            .get(file)
            .is_some_and(|file| file.unclear.is_some())
    }

    fn pass_over(&mut self, claim: &Claim, id: &ObjectId, holder: &str) {
        let entries = self
            .files
            .get_mut(&claim.file)
            .map(|file| &mut file.entries);
        let entry = entries.and_then(|entries| {
            entries
                .iter_mut()
                .find(|entry| entry.document.index == claim.document)
        });
        if let Some(entry) = entry {
            entry.passed_over = true;
            let message = format!(
                "{} {} is defined in {holder} already; remove one, or give it another name",
                id.kind.name(),
                id.name
            );
            entry.problems.push(Problem::new(
                "metadata.name",
                Code::DuplicateObject,
                message,
            ));
        }
    }
}

impl File {
    /// One object of the API server, as if it were a file of its own.
    fn stored(name: &str, document: Result<Document, Problem>) -> Self {
        match document {
            Ok(document) => Self {
                entries: vec![Entry::new(document)],
                unclear: None,
            },
            Err(problem) => Self {
                entries: Vec::new(),
                unclear: Some(ManifestError::new(name, 0, &problem)),
            },
        }
    }

    fn read(file: &FileRead, own_key: NodeKey) -> Self {
        match read_manifests(file, own_key) {
            Err(problem) => Self {
                entries: Vec::new(),
                unclear: Some(ManifestError::new(&file.name, 0, &problem)),
            },
            Ok(documents) => {
                let entries: Vec<Entry> = documents.into_iter().map(Entry::new).collect();
                let unclear = entries.iter().find(|entry| entry.document.id.is_none());
                let error = unclear.and_then(|entry| {
                    Some(ManifestError::new(
                        &file.name,
                        entry.document.index,
                        entry.problems.first()?,
                    ))
                });
                Self {
                    unclear: error,
                    entries,
                }
            }
        }
    }
}

impl Entry {
    fn new(document: Document) -> Self {
        let problems = document.object.as_ref().err().cloned().unwrap_or_default();
        Self {
            document,
            problems,
            passed_over: false,
        }
    }

    fn status(&self, file: &str) -> ManifestStatus {
        let errors = self
            .problems
            .iter()
            .map(|problem| ManifestError::new(file, self.document.index, problem));
        ManifestStatus {
            kind: self.document.kind.clone(),
            name: self.document.name.clone(),
            accepted: self.problems.is_empty(),
            errors: errors.collect(),
        }
    }
}

/// A document that claims to be an object.
struct Claim {
    file: String,
    document: usize,
    /// The lower, the better. Equal ranks: the earlier one.
    rank: u8,
}

impl Claim {
    fn new(file: &str, entry: &Entry, held: Option<&Held>) -> Self {
        let good = entry.document.object.is_ok();
        let same_file = held.is_some_and(|held| held.file == file);
        let same = good && same_file && held.is_some_and(|held| entry.document.spec == held.spec);
        Self {
            file: file.to_owned(),
            document: entry.document.index,
            rank: if same {
                0
            } else if same_file && good {
                1
            } else if same_file {
                2
            } else if good {
                3
            } else {
                4
            },
        }
    }
}

fn unnamed(error: &ManifestError) -> ManifestStatus {
    ManifestStatus {
        kind: None,
        name: None,
        accepted: false,
        errors: vec![error.clone()],
    }
}
