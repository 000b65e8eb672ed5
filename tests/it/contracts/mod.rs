//! Compares `docs/asyncapi.yaml` and `docs/openapi.yaml` with the Rust types and with a running
//! server.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use chatmesh::protocol::wire::{http_schemas, message_schemas};
use serde_json::{Value, json};

mod http;
mod sockets;
mod topics;

/// The line after which [`schemas_are_generated_from_the_types`] writes the generated schemas.
const GENERATED_MARK: &str = "  # Generated from the Rust types, do not edit below:";

/// A document in `docs/`, as text and as a parsed value.
struct Document {
    name: &'static str,
    text: String,
    root: Value,
}

impl Document {
    fn read(name: &'static str) -> Self {
        let text = std::fs::read_to_string(document_path(name)).unwrap();
        let root = serde_norway::from_str(&text).unwrap_or_else(|e| panic!("docs/{name}: {e}"));
        Self { name, text, root }
    }

    fn asyncapi() -> Self {
        Self::read("asyncapi.yaml")
    }

    fn openapi() -> Self {
        Self::read("openapi.yaml")
    }

    /// Follows `$ref` until the value is not a reference, and returns that value.
    fn resolve<'a>(&'a self, value: &'a Value) -> &'a Value {
        let mut value = value;
        while let Some(target) = value.get("$ref") {
            let target = target.as_str().expect("a text in $ref");
            let pointer = target.strip_prefix('#').unwrap_or_else(|| {
                panic!("docs/{}: {target} refers to another document", self.name)
            });
            value = self
                .root
                .pointer(pointer)
                .unwrap_or_else(|| panic!("docs/{}: {target} does not exist", self.name));
        }
        value
    }

    /// The violations of a schema by an instance. A field that the schema does not name is a
    /// violation as well: clients ignore such fields, but every field that is sent must be
    /// documented.
    fn violations(&self, schema: &Value, instance: &Value) -> Vec<String> {
        let mut root_schema = json!({"components": self.root["components"]});
        root_schema["allOf"] = json!([schema]);
        let validator = jsonschema::draft202012::new(&root_schema)
            .unwrap_or_else(|e| panic!("docs/{}: a schema is invalid: {e}", self.name));
        let mut violations: Vec<String> = validator
            .iter_errors(instance)
            .map(|error| format!("{}: {error}", error.instance_path()))
            .collect();
        let documented_fields = self
            .resolve(schema)
            .get("properties")
            .and_then(Value::as_object);
        if let (Some(documented_fields), Some(fields)) = (documented_fields, instance.as_object()) {
            let undocumented = fields
                .keys()
                .filter(|name| !documented_fields.contains_key(*name));
            violations.extend(undocumented.map(|name| format!("{name} is not documented")));
        }
        violations
    }

    fn assert_valid(&self, schema: &Value, instance: &Value, description: &str) {
        let violations = self.violations(schema, instance);
        assert!(
            violations.is_empty(),
            "docs/{}: {description} violates its schema: {violations:#?}\n{instance:#}",
            self.name
        );
    }
}

fn document_path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("docs")
        .join(name)
}

/// Converts a value to YAML with sorted keys.
fn to_sorted_yaml(value: &Value) -> serde_norway::Value {
    match value {
        Value::Object(fields) => {
            let sorted_fields: BTreeMap<&String, &Value> = fields.iter().collect();
            let entries = sorted_fields
                .into_iter()
                .map(|(name, value)| (name.as_str().into(), to_sorted_yaml(value)));
            serde_norway::Value::Mapping(entries.collect())
        }
        Value::Array(entries) => {
            serde_norway::Value::Sequence(entries.iter().map(to_sorted_yaml).collect())
        }
        other => serde_norway::to_value(other).unwrap(),
    }
}

#[test]
fn schemas_are_generated_from_the_types() {
    for (name, schemas) in [
        ("asyncapi.yaml", message_schemas()),
        ("openapi.yaml", http_schemas()),
    ] {
        let document = Document::read(name);
        let schemas = serde_json::to_value(schemas).unwrap();
        let yaml = serde_norway::to_string(&to_sorted_yaml(&schemas)).unwrap();
        let mut section = String::from("  schemas:\n");
        for line in yaml.lines() {
            section.push_str("    ");
            section.push_str(line);
            section.push('\n');
        }
        let (head, _) = document
            .text
            .split_once(GENERATED_MARK)
            .unwrap_or_else(|| panic!("docs/{name} has no line {GENERATED_MARK:?}"));
        let expected = format!("{head}{GENERATED_MARK}\n{section}");
        if std::env::var_os("UPDATE_CONTRACTS").is_some() {
            std::fs::write(document_path(name), &expected).unwrap();
        } else {
            assert!(
                expected == document.text,
                "docs/{name} does not match the types in src/protocol. Regenerate it: \
                 UPDATE_CONTRACTS=1 cargo test --test it contracts::schemas. Check that the \
                 change is compatible with existing clients"
            );
        }
    }
}

/// Collects all objects with a `$ref`.
fn collect_references<'a>(value: &'a Value, references: &mut Vec<&'a Value>) {
    match value {
        Value::Object(fields) => {
            if fields.get("$ref").is_some_and(Value::is_string) {
                references.push(value);
            }
            fields
                .values()
                .for_each(|value| collect_references(value, references));
        }
        Value::Array(entries) => entries
            .iter()
            .for_each(|value| collect_references(value, references)),
        _ => {}
    }
}

/// Checks the rules of AsyncAPI 3.0 and OpenAPI 3.1 that edits by hand may violate: required fields
/// are present, and references point to objects of the right kind.
#[test]
fn documents_follow_their_standards() {
    for document in [Document::asyncapi(), Document::openapi()] {
        let mut references = Vec::new();
        collect_references(&document.root, &mut references);
        for reference in &references {
            document.resolve(reference);
        }
        for field in ["title", "version"] {
            assert!(
                document.root["info"][field].is_string(),
                "{}: info.{field} is missing",
                document.name
            );
        }
        assert_eq!(document.root["info"]["version"], env!("CARGO_PKG_VERSION"));
        let schemas = document.root["components"]["schemas"].as_object().unwrap();
        let referenced: BTreeSet<&str> = references
            .iter()
            .filter_map(|reference| reference["$ref"].as_str())
            .collect();
        for (name, schema) in schemas {
            // Compiling the schema panics if the schema is invalid.
            document.violations(schema, &json!({}));
            let pointer = format!("#/components/schemas/{name}");
            assert!(
                referenced.contains(pointer.as_str()),
                "{}: {name} is not used",
                document.name
            );
        }
    }

    let asyncapi = Document::asyncapi();
    let root = &asyncapi.root;
    assert_eq!(root["asyncapi"], "3.0.0");
    let field_names = |value: &Value| -> Vec<String> {
        let fields = value.as_object().into_iter().flatten();
        fields.map(|(name, _)| name.clone()).collect()
    };
    for (name, server) in root["servers"].as_object().unwrap() {
        assert!(
            server["host"].is_string() && server["protocol"].is_string(),
            "the server {name} has no host or no protocol"
        );
    }
    let mut operation_messages = BTreeSet::new();
    for (name, operation) in root["operations"].as_object().unwrap() {
        let action = operation["action"].as_str().unwrap();
        assert!(matches!(action, "send" | "receive"), "{name}: {action}");
        let channel = operation["channel"]["$ref"].as_str().unwrap();
        assert!(channel.starts_with("#/channels/"), "{name}: {channel}");
        for message in operation["messages"].as_array().unwrap() {
            let pointer = message["$ref"].as_str().unwrap();
            // The messages of an operation must be referenced through its channel.
            assert!(
                pointer.starts_with(&format!("{channel}/messages/")),
                "{name}: {pointer}"
            );
            operation_messages.insert(pointer.to_owned());
        }
    }
    for (channel_name, channel) in root["channels"].as_object().unwrap() {
        assert!(
            channel["address"].is_string(),
            "{channel_name} has no address"
        );
        for name in field_names(&channel["messages"]) {
            let pointer = format!("#/channels/{channel_name}/messages/{name}");
            assert!(
                operation_messages.contains(&pointer),
                "no operation sends or receives {pointer}"
            );
            let message = asyncapi.resolve(&channel["messages"][&name]);
            assert!(message["payload"].is_object(), "{name} has no payload");
            for example in message["examples"].as_array().into_iter().flatten() {
                asyncapi.assert_valid(&message["payload"], &example["payload"], &name);
                if let Some(headers) = message.get("headers") {
                    asyncapi.assert_valid(headers, &example["headers"], &name);
                }
            }
        }
    }

    let openapi = Document::openapi();
    assert_eq!(openapi.root["openapi"], "3.1.0");
    let mut operation_ids = BTreeSet::new();
    for (path, item) in openapi.root["paths"].as_object().unwrap() {
        assert!(path.starts_with('/'), "{path}");
        for (method, operation) in item.as_object().unwrap() {
            if !matches!(method.as_str(), "get" | "post" | "delete") {
                continue;
            }
            let id = operation["operationId"].as_str().unwrap();
            assert!(
                operation_ids.insert(id.to_owned()),
                "two operations have the id {id}"
            );
            assert!(
                operation["responses"]
                    .as_object()
                    .is_some_and(|responses| !responses.is_empty()),
                "{id} has no responses"
            );
            let parameters = operation["parameters"].as_array().into_iter().flatten();
            for parameter in parameters {
                let parameter = openapi.resolve(parameter);
                for field in ["name", "in", "schema"] {
                    assert!(
                        !parameter[field].is_null(),
                        "{id}: a parameter has no {field}"
                    );
                }
                assert!(
                    parameter["in"] != "path" || parameter["required"] == true,
                    "{id}: a path parameter must be required"
                );
            }
        }
    }
}
