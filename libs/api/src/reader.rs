//! Reads manifest files: bytes in, checked objects or problems out.
//!
//! Two stages. First YAML becomes a tree within a budget, and the tree is held against the schema of its kind, which
//! names every field that is unknown, missing or of the wrong type. Then the typed spec is checked for sense.

mod cluster;
mod schema;
mod split;
mod tree;

pub(crate) use cluster::MAX_NODES;
pub use cluster::{ClusterObjects, StoredObject};
pub(crate) use cluster::{clipped, is_within, within};
pub use tree::{RenderError, render};

use derp::NodeKey;
use serde_json::{Map, Value};

use crate::check::{check_mesh, check_name, check_peer, quote};
use crate::{API_VERSION, Code, MeshConfig, PeerConfig, Problem};

/// Largest file that is read, in bytes.
pub const MAX_FILE_BYTES: usize = 1 << 20;
/// Most documents in a file.
pub const MAX_DOCUMENTS: usize = 4096;

/// A manifest folder as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FolderRead {
    /// It cannot be listed.
    Unreadable {
        /// Path of the folder, for people.
        folder: String,
        /// What the system says.
        error: String,
    },
    /// Its manifest files, in any order.
    Files(Vec<FileRead>),
    /// On Kubernetes, instead of a folder: all objects that this node is concerned with.
    Objects(ClusterObjects),
    /// On Kubernetes, before the API server has told all objects once. Everything stays as it was.
    Waiting {
        /// For what, for people.
        what: String,
    },
}

/// One manifest file as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileRead {
    /// Name within the folder.
    pub name: String,
    /// Its bytes (more than [`MAX_FILE_BYTES`] are not needed to refuse it), or what the system says.
    pub content: Result<Vec<u8>, String>,
}

/// The kinds that a manifest may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// [`Mesh`](crate::Mesh).
    Mesh,
    /// [`Peer`](crate::Peer).
    Peer,
}

impl Kind {
    /// The kind as it stands in a manifest.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mesh => "Mesh",
            Self::Peer => "Peer",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        [Self::Mesh, Self::Peer]
            .into_iter()
            .find(|kind| kind.name() == name)
    }
}

/// Where an object was written, which decides how strictly it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// In a file, by a person: also what nobody would mean is an error.
    Manifest,
    /// In the API server, which has held it against the schema already; perhaps one that is newer than ours.
    Stored,
}

/// What identifies an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId {
    /// Its kind.
    pub kind: Kind,
    /// `metadata.name`.
    pub name: String,
}

/// One document of a file.
#[derive(Clone, Debug)]
pub struct Document {
    /// Position in the file, from 0.
    pub index: usize,
    /// `kind` as written, if it is a text of bearable length.
    pub kind: Option<String>,
    /// `metadata.name` as written, if it is a text of bearable length.
    pub name: Option<String>,
    /// Which object it is; `None` where the document does not say so in a valid way.
    pub id: Option<ObjectId>,
    /// The object, or everything that is wrong with it.
    pub object: Result<Config, Vec<Problem>>,
    /// The spec as written, for the saved state.
    pub(crate) spec: Value,
    pub(crate) form: Form,
}

/// A checked object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Config {
    /// A Mesh.
    Mesh(MeshConfig),
    /// A Peer.
    Peer(PeerConfig),
}

/// Reads one file. `own_key` is the key of this node, which no Peer may have.
///
/// # Errors
///
/// The file as a whole cannot be read: the problem's field is empty. What is wrong with single documents is in them.
pub fn read_manifests(file: &FileRead, own_key: NodeKey) -> Result<Vec<Document>, Problem> {
    let bytes = file.content.as_ref().map_err(|error| {
        Problem::new(
            "",
            Code::FileUnreadable,
            format!("cannot read the file: {error}; what was last read from it stays in force"),
        )
    })?;
    if bytes.len() > MAX_FILE_BYTES {
        let message = format!("the file is larger than {MAX_FILE_BYTES} bytes; split it");
        return Err(Problem::new("", Code::FileTooLarge, message));
    }
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let message = format!(
            "byte {} is not UTF-8; save the file as UTF-8",
            error.valid_up_to()
        );
        Problem::new("", Code::NotUtf8, message)
    })?;
    let parts = split::documents(text);
    if parts.len() > MAX_DOCUMENTS {
        let message = format!("the file has more than {MAX_DOCUMENTS} documents; split it");
        return Err(Problem::new("", Code::TooManyDocuments, message));
    }
    let documents = parts.iter().enumerate();
    Ok(documents
        .filter_map(|(index, text)| read_document(index, text, own_key))
        .collect())
}

/// Checks a spec that is known to be of `id`, as when it comes from the saved state.
pub(crate) fn read_spec(
    id: &ObjectId,
    spec: &Value,
    form: Form,
    own_key: NodeKey,
) -> Result<Config, Vec<Problem>> {
    let mut problems = Vec::new();
    let spec = match form {
        Form::Manifest => schema::check(id.kind, spec, &mut problems),
        Form::Stored => spec.clone(),
    };
    // A spec with an unknown field is still worth checking for sense: all problems are told at once.
    let checked = match id.kind {
        Kind::Mesh => typed(spec).map(|spec| check_mesh(&id.name, &spec, form).map(Config::Mesh)),
        Kind::Peer => {
            typed(spec).map(|spec| check_peer(&id.name, &spec, own_key).map(Config::Peer))
        }
    };
    match checked {
        Some(Ok(config)) if problems.is_empty() => return Ok(config),
        Some(Ok(_)) => {}
        Some(Err(more)) => problems.extend(more),
        None if problems.is_empty() => {
            problems.push(Problem::new(
                "spec",
                Code::WrongType,
                "the spec does not fit its kind; see the documentation of its fields",
            ));
        }
        None => {}
    }
    problems.truncate(schema::MAX_PROBLEMS);
    Err(problems)
}

fn typed<T: serde::de::DeserializeOwned>(spec: Value) -> Option<T> {
    serde_json::from_value(spec).ok()
}

/// `None` for an empty document.
fn read_document(index: usize, text: &str, own_key: NodeKey) -> Option<Document> {
    let mut document = Document {
        index,
        kind: None,
        name: None,
        id: None,
        object: Err(Vec::new()),
        spec: Value::Null,
        form: Form::Manifest,
    };
    match tree::parse(text) {
        Err(problem) => document.object = Err(vec![problem]),
        Ok(Value::Null) => return None,
        Ok(Value::Object(fields)) => read_object(&mut document, fields, own_key),
        Ok(_) => {
            let message =
                format!("the document is not a mapping; begin it with apiVersion: {API_VERSION}");
            document.object = Err(vec![Problem::new("", Code::NotAnObject, message)]);
        }
    }
    Some(document)
}

fn read_object(document: &mut Document, mut fields: Map<String, Value>, own_key: NodeKey) {
    let mut problems = Vec::new();
    document.kind = short_text(fields.get("kind"));
    document.name = short_text(
        fields
            .get("metadata")
            .and_then(|metadata| metadata.get("name")),
    );
    check_version(fields.get("apiVersion"), &mut problems);
    let kind = check_kind(fields.get("kind"), &mut problems);
    let name = check_metadata(fields.get("metadata"), &mut problems);
    if kind.is_some() {
        check_keys(
            &fields,
            "",
            &["apiVersion", "kind", "metadata", "spec", "status"],
            &mut problems,
        );
    }
    document.id = kind.zip(name).map(|(kind, name)| ObjectId { kind, name });
    document.spec = fields.remove("spec").unwrap_or(Value::Null);
    // The spec is checked even where the name is bad, so that all problems are told at once.
    let checked = kind.map(|kind| {
        let name = document.name.clone().unwrap_or_default();
        read_spec(
            &ObjectId { kind, name },
            &document.spec,
            Form::Manifest,
            own_key,
        )
    });
    document.object = match checked {
        Some(Ok(config)) if problems.is_empty() => Ok(config),
        Some(Ok(_)) | None => Err(problems),
        Some(Err(more)) => {
            problems.extend(more);
            Err(problems)
        }
    };
}

fn check_version(value: Option<&Value>, problems: &mut Vec<Problem>) {
    if value.and_then(Value::as_str) == Some(API_VERSION) {
        return;
    }
    let message = format!("{}; write apiVersion: {API_VERSION}", found(value));
    problems.push(Problem::new("apiVersion", Code::BadApiVersion, message));
}

fn check_kind(value: Option<&Value>, problems: &mut Vec<Problem>) -> Option<Kind> {
    let kind = value.and_then(Value::as_str).and_then(Kind::from_name);
    if kind.is_none() {
        let message = format!("{}; write kind: Mesh or kind: Peer", found(value));
        problems.push(Problem::new("kind", Code::UnknownKind, message));
    }
    kind
}

/// The name, if it is a valid one.
fn check_metadata(value: Option<&Value>, problems: &mut Vec<Problem>) -> Option<String> {
    let Some(value) = value.filter(|value| !value.is_null()) else {
        problems.push(Problem::new(
            "metadata",
            Code::MissingField,
            "write metadata: {name: ...}",
        ));
        return None;
    };
    let Some(metadata) = value.as_object() else {
        let message = format!(
            "{}, not a mapping; write metadata: {{name: ...}}",
            found(Some(value))
        );
        problems.push(Problem::new("metadata", Code::WrongType, message));
        return None;
    };
    check_keys(
        metadata,
        "metadata.",
        &["annotations", "labels", "name"],
        problems,
    );
    let problem = match metadata.get("name") {
        Some(Value::String(name)) => match check_name("metadata.name", name) {
            Ok(()) => return Some(name.clone()),
            Err(problem) => problem,
        },
        None | Some(Value::Null) => Problem::new(
            "metadata.name",
            Code::MissingField,
            "every object has a name; write metadata: {name: ...}",
        ),
        other => {
            let message = format!("{}, not a text; put the name in quotes", found(other));
            Problem::new("metadata.name", Code::WrongType, message)
        }
    };
    problems.push(problem);
    None
}

fn check_keys(
    fields: &Map<String, Value>,
    path: &str,
    known: &[&str],
    problems: &mut Vec<Problem>,
) {
    for key in fields.keys().filter(|key| !known.contains(&key.as_str())) {
        problems.push(schema::unknown_field(path, key, known));
    }
}

fn found(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "it is missing".to_owned(),
        Some(Value::String(text)) => format!("it is {}", quote(text)),
        Some(Value::Bool(_)) => "it is a truth value".to_owned(),
        Some(Value::Number(number)) => format!("it is the number {number}"),
        Some(Value::Array(_)) => "it is a list".to_owned(),
        Some(Value::Object(_)) => "it is a mapping".to_owned(),
    }
}

/// A text for display, if it is one and not absurdly long.
fn short_text(value: Option<&Value>) -> Option<String> {
    const MOST: usize = 253;
    let text = value.and_then(Value::as_str)?;
    (text.len() <= MOST).then(|| text.to_owned())
}
