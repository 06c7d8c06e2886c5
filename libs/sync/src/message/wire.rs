//! The JSON of messages.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use thiserror::Error;

use super::record::{MAX_NODE_PREFIXES, NodeRecord, RecordError, Refusal};
use super::{Delta, Hello, MAX_LIST, Message, NameError, NodeName, StatePart, is_statement};

/// What the records of one message may take; the rest is room for what is around them.
pub(crate) const PART_BYTES: usize = 192 << 10;
/// `{"name":"","publicKey":"","homeRelay":"","prefixes":[],"generation":18446744073709551615},`, and some more.
const RECORD_FRAME: usize = 128;
const KEY_LENGTH: usize = 44;
/// The longest prefix in text, its quotes and comma.
const PREFIX_LENGTH: usize = 46;
/// The longest text of a relay's URL around its host.
const URL_FRAME: usize = 20;

/// Why bytes are not a message.
#[derive(Debug, Error)]
pub enum DecodeError {
    /// Longer than any message.
    #[error("a message of more than 256 KiB")]
    Long,
    /// Not the JSON that is expected.
    #[error("not a message: {0}")]
    Json(#[from] serde_json::Error),
    /// The greeting bears no name.
    #[error("the cluster's name: {0}")]
    Name(#[from] NameError),
    /// A version that never was.
    #[error("version 0")]
    Version,
    /// A message that has no place in this conversation.
    #[error("a message that does not belong here")]
    Kind,
}

/// At least as long as the record is in JSON.
pub(crate) fn encoded_length(name: &NodeName, record: &NodeRecord) -> usize {
    let relay = record
        .home_relay()
        .map_or(0, |url| url.host().len() + URL_FRAME);
    RECORD_FRAME
        + KEY_LENGTH
        + name.as_str().len()
        + relay
        + record.prefixes().len() * PREFIX_LENGTH
}

/// What is written of a message, if anything is.
pub(super) fn envelope(message: &Message) -> Option<EnvelopeOut<'_>> {
    let mut envelope = EnvelopeOut::default();
    match message {
        Message::Hello(hello) => {
            envelope.hello = Some(HelloOut {
                version: hello.version,
                cluster_name: hello.cluster_name.as_str(),
                generation: hello.generation,
            });
        }
        Message::State(part) => {
            envelope.state = Some(StateOut {
                sequence: part.sequence,
                first: part.first,
                last: part.last,
                nodes: nodes_out(&part.nodes),
            });
        }
        Message::Delta(delta) => {
            envelope.delta = Some(DeltaOut {
                sequence: delta.sequence,
                nodes: nodes_out(&delta.nodes),
                removed_nodes: delta.removed_nodes.iter().map(NodeName::as_str).collect(),
            });
        }
        Message::Ack { sequence } => {
            envelope.ack = Some(Ack {
                sequence: *sequence,
            });
        }
        Message::Membership { text } => {
            envelope.membership = Some(Membership { text: text.clone() });
        }
        Message::Unknown => return None,
    }
    Some(envelope)
}

pub(super) fn decode(bytes: &[u8]) -> Result<Message, DecodeError> {
    let envelope: EnvelopeIn = serde_json::from_slice(bytes)?;
    Ok(match envelope {
        EnvelopeIn {
            hello: Some(hello), ..
        } => Message::Hello(hello.parse()?),
        EnvelopeIn {
            state: Some(state), ..
        } => Message::State(state.parse()),
        EnvelopeIn {
            delta: Some(delta), ..
        } => Message::Delta(delta.parse()),
        EnvelopeIn { ack: Some(ack), .. } => Message::Ack {
            sequence: ack.sequence,
        },
        EnvelopeIn {
            membership: Some(membership),
            ..
        } => Message::Membership {
            text: membership.text.filter(|text| is_statement(text)),
        },
        EnvelopeIn { .. } => Message::Unknown,
    })
}

#[derive(Serialize, Default)]
pub(super) struct EnvelopeOut<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    hello: Option<HelloOut<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<StateOut<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delta: Option<DeltaOut<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ack: Option<Ack>,
    #[serde(skip_serializing_if = "Option::is_none")]
    membership: Option<Membership>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct HelloOut<'a> {
    version: u32,
    cluster_name: &'a str,
    generation: u64,
}

#[derive(Serialize)]
struct StateOut<'a> {
    sequence: u64,
    first: bool,
    last: bool,
    nodes: Vec<NodeOut<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DeltaOut<'a> {
    sequence: u64,
    nodes: Vec<NodeOut<'a>>,
    removed_nodes: Vec<&'a str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeOut<'a> {
    name: &'a str,
    public_key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    home_relay: Option<String>,
    prefixes: Vec<String>,
    generation: u64,
}

#[derive(Serialize, Deserialize)]
struct Ack {
    sequence: u64,
}

/// A text that is no statement counts as none: a newer side may mean something by it.
#[derive(Serialize, Deserialize)]
struct Membership {
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
}

#[derive(Deserialize)]
struct EnvelopeIn {
    hello: Option<HelloIn>,
    state: Option<StateIn>,
    delta: Option<DeltaIn>,
    ack: Option<Ack>,
    membership: Option<Membership>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct HelloIn {
    version: u32,
    cluster_name: String,
    generation: u64,
}

#[derive(Deserialize)]
struct StateIn {
    sequence: u64,
    first: bool,
    last: bool,
    #[serde(default)]
    nodes: Capped<NodeIn, MAX_LIST>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct DeltaIn {
    sequence: u64,
    #[serde(default)]
    nodes: Capped<NodeIn, MAX_LIST>,
    #[serde(default)]
    removed_nodes: Capped<String, MAX_LIST>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct NodeIn {
    name: String,
    public_key: String,
    home_relay: Option<String>,
    #[serde(default)]
    prefixes: Capped<String, MAX_LIST>,
    #[serde(default)]
    generation: u64,
}

impl HelloIn {
    fn parse(self) -> Result<Hello, DecodeError> {
        if self.version == 0 {
            return Err(DecodeError::Version);
        }
        Ok(Hello {
            version: self.version,
            cluster_name: self.cluster_name.parse()?,
            generation: self.generation,
        })
    }
}

impl StateIn {
    fn parse(self) -> StatePart {
        let nodes = ParsedNodes::from(self.nodes);
        StatePart {
            sequence: self.sequence,
            first: self.first,
            last: self.last,
            nodes: nodes.good,
            refused: nodes.refused,
        }
    }
}

impl DeltaIn {
    fn parse(self) -> Delta {
        let removed = self.removed_nodes.0.iter();
        let removed = removed.filter_map(|name| name.parse().ok());
        let mut removed_nodes: Vec<NodeName> = removed.collect();
        let nodes = ParsedNodes::from(self.nodes);
        removed_nodes.extend(nodes.void);
        Delta {
            sequence: self.sequence,
            nodes: nodes.good,
            removed_nodes,
            refused: nodes.refused,
        }
    }
}

impl NodeIn {
    fn parse(&self) -> Result<(NodeName, Arc<NodeRecord>), RecordError> {
        let name = self.name.parse().map_err(RecordError::Name)?;
        let key = self.public_key.parse().map_err(RecordError::Key)?;
        let relay = self.home_relay.as_deref().map(str::parse);
        let relay = relay.transpose().map_err(RecordError::Relay)?;
        if self.prefixes.0.len() > MAX_NODE_PREFIXES {
            return Err(RecordError::Prefixes);
        }
        let prefixes = self
            .prefixes
            .0
            .iter()
            .enumerate()
            .map(|(index, text)| text.parse().map_err(|_| RecordError::Prefix { index }));
        let prefixes = prefixes.collect::<Result<Vec<_>, _>>()?;
        let record = NodeRecord::new(key, relay, prefixes, self.generation)?;
        Ok((name, Arc::new(record)))
    }
}

fn nodes_out(nodes: &[(NodeName, Arc<NodeRecord>)]) -> Vec<NodeOut<'_>> {
    let out = nodes.iter().map(|(name, record)| NodeOut {
        name: name.as_str(),
        public_key: record.public_key().to_string(),
        home_relay: record.home_relay().map(ToString::to_string),
        prefixes: record.prefixes().iter().map(ToString::to_string).collect(),
        generation: record.generation(),
    });
    out.collect()
}

/// The nodes of a message, sorted.
#[derive(Default)]
struct ParsedNodes {
    good: Vec<(NodeName, Arc<NodeRecord>)>,
    refused: Vec<Refusal>,
    /// Those of the refused whose name is one: what was said of them before is no longer true.
    void: Vec<NodeName>,
}

impl From<Capped<NodeIn, MAX_LIST>> for ParsedNodes {
    fn from(nodes: Capped<NodeIn, MAX_LIST>) -> Self {
        let mut parsed = Self::default();
        for node in nodes.0 {
            match node.parse() {
                Ok(record) => parsed.good.push(record),
                Err(error) => {
                    parsed.void.extend(node.name.parse().ok());
                    parsed.refused.push(Refusal::new(&node.name, error));
                }
            }
        }
        parsed
    }
}

/// A list that ends the parsing as soon as it is too long.
#[derive(Serialize)]
#[serde(transparent)]
pub(crate) struct Capped<T, const MAX: usize>(pub(crate) Vec<T>);

impl<T, const MAX: usize> Default for Capped<T, MAX> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T, const MAX: usize> Capped<T, MAX> {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for Capped<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(CappedVisitor(PhantomData))
    }
}

struct CappedVisitor<T, const MAX: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for CappedVisitor<T, MAX> {
    type Value = Capped<T, MAX>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {MAX}")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            if items.len() == MAX {
                return Err(serde::de::Error::invalid_length(MAX + 1, &self));
            }
            items.push(item);
        }
        Ok(Capped(items))
    }
}
