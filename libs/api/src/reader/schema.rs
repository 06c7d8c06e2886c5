//! Holds a tree against the schema of its kind: the very schema that stands in the CRD.

use std::sync::LazyLock;

use kube::CustomResourceExt;
use serde_json::{Map, Value};

use super::{Kind, found};
use crate::check::quote;
use crate::{Code, Mesh, Peer, Problem};

/// Most problems that are reported for one object.
pub(super) const MAX_PROBLEMS: usize = 20;

/// Checks the spec, and returns it without nulls, which stand for absence.
pub(super) fn check(kind: Kind, spec: &Value, problems: &mut Vec<Problem>) -> Value {
    static MESH: LazyLock<Value> = LazyLock::new(|| spec_schema(Mesh::crd()));
    static PEER: LazyLock<Value> = LazyLock::new(|| spec_schema(Peer::crd()));
    let schema: &Value = match kind {
        Kind::Mesh => &MESH,
        Kind::Peer => &PEER,
    };
    if spec.is_null() {
        let message = format!(
            "a {} has a spec; see the documentation of its fields",
            kind.name()
        );
        problems.push(Problem::new("spec", Code::MissingField, message));
        return Value::Null;
    }
    walk(schema, spec, "spec", problems)
}

/// A field that its mapping does not have; `path` ends with the dot.
pub(super) fn unknown_field(path: &str, key: &str, known: &[&str]) -> Problem {
    let key: String = key.chars().filter(|c| !c.is_control()).take(80).collect();
    let known = known.join(", ");
    let message = format!(
        "there is no field {}; remove it or correct its name (known: {known})",
        quote(&key)
    );
    Problem::new(format!("{path}{key}"), Code::UnknownField, message)
}

fn spec_schema(crd: impl serde::Serialize) -> Value {
    let mut crd = serde_json::to_value(crd).unwrap_or_default();
    let spec = crd.pointer_mut("/spec/versions/0/schema/openAPIV3Schema/properties/spec");
    spec.map(Value::take).unwrap_or_default()
}

fn walk(schema: &Value, value: &Value, path: &str, problems: &mut Vec<Problem>) -> Value {
    if problems.len() >= MAX_PROBLEMS {
        return value.clone();
    }
    let expected = schema
        .get("type")
        .and_then(Value::as_str)
        .unwrap_or_default();
    match (expected, value) {
        ("object", Value::Object(fields)) => {
            return Value::Object(walk_object(schema, fields, path, problems));
        }
        ("array", Value::Array(items)) => {
            return Value::Array(walk_array(schema, items, path, problems));
        }
        ("boolean", Value::Bool(_)) => {}
        ("string", Value::String(text)) => check_text(schema, text, path, problems),
        ("integer", Value::Number(number)) if number.as_i64().is_some() => {}
        _ => {
            let message = format!("{}, not {}", found(Some(value)), describe(expected));
            problems.push(Problem::new(path, Code::WrongType, message));
        }
    }
    value.clone()
}

fn describe(expected: &str) -> &'static str {
    match expected {
        "object" => "a mapping; write its fields one level deeper",
        "array" => "a list; write [a, b], or one item a line behind -",
        "integer" => "a whole number; write it with digits and without quotes",
        "boolean" => "a truth value; write true or false",
        _ => "a text; put it in quotes",
    }
}

fn walk_object(
    schema: &Value,
    fields: &Map<String, Value>,
    path: &str,
    problems: &mut Vec<Problem>,
) -> Map<String, Value> {
    let empty = Map::new();
    let properties = schema
        .get("properties")
        .and_then(Value::as_object)
        .unwrap_or(&empty);
    let mut kept = Map::new();
    for (key, value) in fields {
        match properties
            .get(key)
            .or_else(|| schema.get("additionalProperties"))
        {
            None => {
                let known: Vec<&str> = properties.keys().map(String::as_str).collect();
                problems.push(unknown_field(&format!("{path}."), key, &known));
            }
            Some(_) if value.is_null() => {}
            Some(schema) => {
                kept.insert(
                    key.clone(),
                    walk(schema, value, &format!("{path}.{key}"), problems),
                );
            }
        }
    }
    let required = schema
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    for key in required
        .filter_map(Value::as_str)
        .filter(|key| !kept.contains_key(*key))
    {
        let purpose = properties
            .get(key)
            .and_then(|schema| schema.get("description"))
            .and_then(Value::as_str);
        let message = format!("it is missing; {}", purpose.unwrap_or("add it"));
        problems.push(Problem::new(
            format!("{path}.{key}"),
            Code::MissingField,
            message,
        ));
    }
    kept
}

fn walk_array(
    schema: &Value,
    items: &[Value],
    path: &str,
    problems: &mut Vec<Problem>,
) -> Vec<Value> {
    let most = limit(schema, "maxItems");
    if items.len() > most {
        let message = format!("{} items are too many; use {most} at most", items.len());
        problems.push(Problem::new(path, Code::TooMany, message));
        return items.to_vec();
    }
    let schema = schema.get("items").unwrap_or(&Value::Null);
    let items = items.iter().enumerate();
    items
        .map(|(index, item)| walk(schema, item, &format!("{path}[{index}]"), problems))
        .collect()
}

fn check_text(schema: &Value, text: &str, path: &str, problems: &mut Vec<Problem>) {
    let most = limit(schema, "maxLength");
    if text.chars().count() > most {
        let message = format!("the text is longer than {most} characters; shorten it");
        problems.push(Problem::new(path, Code::TooLong, message));
    }
    let Some(values) = schema.get("enum").and_then(Value::as_array) else {
        return;
    };
    if !values.iter().any(|value| value.as_str() == Some(text)) {
        let values: Vec<&str> = values.iter().filter_map(Value::as_str).collect();
        let message = format!(
            "{} is not known here; use one of {}",
            quote(text),
            values.join(", ")
        );
        problems.push(Problem::new(path, Code::UnknownValue, message));
    }
}

fn limit(schema: &Value, name: &str) -> usize {
    let limit = schema.get(name).and_then(Value::as_u64);
    limit
        .and_then(|limit| usize::try_from(limit).ok())
        .unwrap_or(usize::MAX)
}
