//! The definitions in `crds/` are those of the types. `UPDATE_CRDS=1` rewrites them.

use std::fs;
use std::path::Path;

#[test]
fn checked_in_definitions_are_those_of_the_types() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crds");
    for crd in api::crds() {
        let path = folder.join(format!("{}.yaml", crd.spec.names.plural));
        let rendered = api::render(&crd).expect("renders");
        if std::env::var_os("UPDATE_CRDS").is_some() {
            fs::create_dir_all(&folder).expect("folder");
            fs::write(&path, &rendered).expect("written");
        }
        let found = fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(
            found,
            rendered,
            "{} is out of date: run the test once with UPDATE_CRDS=1",
            path.display()
        );
    }
}

#[test]
fn the_reference_is_that_of_the_types() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference.md");
    let rendered = api::reference();
    if std::env::var_os("UPDATE_CRDS").is_some() {
        fs::create_dir_all(path.parent().expect("a folder")).expect("folder");
        fs::write(&path, &rendered).expect("written");
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == rendered,
        "docs/reference.md is out of date: run the test once with UPDATE_CRDS=1"
    );
}

#[test]
fn definitions_follow_the_conventions() {
    for crd in api::crds() {
        let names = &crd.spec.names;
        assert_eq!(crd.spec.scope, "Cluster");
        assert_eq!(
            names.categories.as_deref(),
            Some(&["culvert".to_owned()][..])
        );
        assert_eq!(names.short_names.iter().flatten().count(), 1);
        let version = crd.spec.versions.first().expect("a version");
        assert!(
            version
                .subresources
                .as_ref()
                .is_some_and(|subresources| subresources.status.is_some())
        );
        let columns: Vec<_> = version
            .additional_printer_columns
            .iter()
            .flatten()
            .map(|column| column.name.as_str())
            .collect();
        assert!(
            columns.contains(&"Ready") && columns.contains(&"Age"),
            "{columns:?}"
        );
    }
}

#[test]
fn every_field_is_described_and_every_list_and_text_bounded() {
    for crd in api::crds() {
        let crd = serde_json::to_value(&crd).expect("serialises");
        let spec = crd
            .pointer("/spec/versions/0/schema/openAPIV3Schema/properties/spec")
            .expect("a spec");
        check_field(spec, "spec");
    }
}

fn check_field(schema: &serde_json::Value, path: &str) {
    let has = |name: &str| schema.get(name).is_some();
    let kind = schema
        .get("type")
        .and_then(|kind| kind.as_str())
        .unwrap_or_default();
    match kind {
        "string" => assert!(
            has("maxLength") || has("enum") || has("pattern"),
            "{path} is not bounded"
        ),
        "array" => assert!(has("maxItems"), "{path} is not bounded"),
        "integer" => assert!(has("minimum") && has("maximum"), "{path} is not bounded"),
        "boolean" => {}
        "object" => assert!(has("properties") || has("maxProperties"), "{path} is open"),
        other => panic!("{path} is of type {other:?}"),
    }
    if let Some(items) = schema.get("items") {
        check_field(items, &format!("{path}[]"));
    }
    for (name, field) in schema
        .get("properties")
        .and_then(|fields| fields.as_object())
        .into_iter()
        .flatten()
    {
        assert!(
            field.get("description").is_some(),
            "{path}.{name} is not described"
        );
        check_field(field, &format!("{path}.{name}"));
    }
}
