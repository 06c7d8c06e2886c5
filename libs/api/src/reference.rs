//! The reference of the kinds, made from their definitions: `docs/reference.md`.

use std::fmt::Write as _;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::Value;

/// The whole reference as Markdown.
#[must_use]
pub fn reference() -> String {
    let mut text = String::from(
        "# Reference of the kinds\n\nMade from the types; do not edit. All kinds are cluster-scoped, of `culvert.dev/v1alpha1`, and listed together by\n`kubectl get culvert`. A field without default that is not marked optional must be given.\n",
    );
    for crd in crate::crds() {
        kind(&mut text, &crd);
    }
    text
}

fn kind(text: &mut String, crd: &CustomResourceDefinition) {
    let value = serde_json::to_value(crd).unwrap_or_default();
    let names = &crd.spec.names;
    let short = names.short_names.as_deref().unwrap_or_default().join(", ");
    let _ = write!(
        text,
        "\n## {}\n\n`kubectl get {}`, in short `{short}`. ",
        names.kind, names.plural
    );
    let schema = value.pointer("/spec/versions/0/schema/openAPIV3Schema");
    let schema = schema.unwrap_or(&Value::Null);
    let _ = writeln!(text, "{}", description(schema));
    for part in ["spec", "status"] {
        let pointer = format!("/properties/{part}");
        if let Some(schema) = schema.pointer(&pointer) {
            let _ = write!(
                text,
                "\n### {} {part}\n\n| field | type | what it is |\n|---|---|---|\n",
                names.kind
            );
            fields(text, schema, part);
        }
    }
}

/// One row for each field, depth first. The fields of a condition are Kubernetes' own and left out.
fn fields(text: &mut String, schema: &Value, path: &str) {
    let properties = schema.get("properties").and_then(Value::as_object);
    for (name, field) in properties.into_iter().flatten() {
        let path = format!("{path}.{name}");
        let required = is_required(schema, name);
        let _ = writeln!(
            text,
            "| `{path}` | {} | {} |",
            describe_type(field, required),
            description(field)
        );
        if name == "conditions" {
            continue;
        }
        fields(text, field, &path);
        if let Some(items) = field.get("items") {
            fields(text, items, &format!("{path}[]"));
        }
    }
}

fn is_required(schema: &Value, name: &str) -> bool {
    let required = schema.get("required").and_then(Value::as_array);
    required.is_some_and(|names| names.iter().any(|one| one.as_str() == Some(name)))
}

fn describe_type(field: &Value, required: bool) -> String {
    let mut text = match (field.get("enum").and_then(Value::as_array), type_of(field)) {
        (Some(values), _) => {
            let names: Vec<_> = values.iter().filter_map(Value::as_str).collect();
            names.join(" \\| ")
        }
        (None, "array") => format!("list of {}", items_of(field)),
        (None, other) => other.to_owned(),
    };
    for (key, word) in [
        ("minimum", "from"),
        ("maximum", "to"),
        ("maxItems", "at most"),
    ] {
        if let Some(bound) = field.get(key).and_then(Value::as_f64) {
            let _ = write!(text, " {word} {bound}");
        }
    }
    if !required {
        text.push_str(", optional");
    }
    if let Some(default) = field.get("default").filter(|value| !is_empty(value)) {
        let _ = write!(text, ", default `{default}`");
    }
    text
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

fn items_of(field: &Value) -> &str {
    field.get("items").map_or("values", type_of)
}

fn type_of(field: &Value) -> &str {
    field.get("type").and_then(Value::as_str).unwrap_or("value")
}

/// On one line, safe in a table.
fn description(schema: &Value) -> String {
    let text = schema.get("description").and_then(Value::as_str);
    let words: Vec<_> = text.unwrap_or_default().split_whitespace().collect();
    words.join(" ").replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_and_field_is_there() {
        let text = reference();
        for row in [
            "\n## Mesh\n",
            "\n## PeerSlice\n",
            "| `spec.clusterName` | string |",
            "| `spec.relays.managed[].exposure.type` | LoadBalancer \\| NodePort",
            "| `spec.mtu` | integer from 576 to 9000, optional |",
        ] {
            assert!(text.contains(row), "{row}");
        }
        assert!(!text.contains("conditions[].type"));
    }
}
