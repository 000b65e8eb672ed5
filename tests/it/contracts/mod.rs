//! Compares `docs/asyncapi.yaml` and `docs/openapi.yaml` with the types and with a running server.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use chatmesh::protocol::wire::{http_schemas, message_schemas};
use serde_json::{Value, json};

mod http;
mod sockets;
mod topics;

/// The line behind which schemas are written by [`schemas_are_generated_from_the_types`].
const MARK: &str = "  # From here on written from the Rust types:";

struct Document {
    name: &'static str,
    text: String,
    root: Value,
}

impl Document {
    fn read(name: &'static str) -> Self {
        let text = std::fs::read_to_string(path(name)).unwrap();
        let root = serde_norway::from_str(&text).unwrap_or_else(|e| panic!("docs/{name}: {e}"));
        Self { name, text, root }
    }

    fn asyncapi() -> Self {
        Self::read("asyncapi.yaml")
    }

    fn openapi() -> Self {
        Self::read("openapi.yaml")
    }

    /// What a value is, where it is a reference.
    fn follow<'a>(&'a self, value: &'a Value) -> &'a Value {
        let mut value = value;
        while let Some(target) = value.get("$ref") {
            let target = target.as_str().expect("a $ref is a text");
            let pointer = target.strip_prefix('#').unwrap_or_else(|| {
                panic!("docs/{}: {target} leads out of the document", self.name)
            });
            value = self
                .root
                .pointer(pointer)
                .unwrap_or_else(|| panic!("docs/{}: {target} leads nowhere", self.name));
        }
        value
    }

    /// Why an instance does not fit a schema of this document; nothing where it does. Fields that
    /// the schema does not name are reported too: readers pass over them, but what is sent is to
    /// be documented.
    fn faults(&self, schema: &Value, instance: &Value) -> Vec<String> {
        let mut whole = json!({"components": self.root["components"]});
        whole["allOf"] = json!([schema]);
        let validator = jsonschema::draft202012::new(&whole)
            .unwrap_or_else(|e| panic!("docs/{}: a schema is none: {e}", self.name));
        let mut faults: Vec<String> = validator
            .iter_errors(instance)
            .map(|error| format!("{}: {error}", error.instance_path()))
            .collect();
        let known = self
            .follow(schema)
            .get("properties")
            .and_then(Value::as_object);
        if let (Some(known), Some(fields)) = (known, instance.as_object()) {
            let unknown = fields.keys().filter(|name| !known.contains_key(*name));
            faults.extend(unknown.map(|name| format!("{name} is not documented")));
        }
        faults
    }

    fn holds(&self, schema: &Value, instance: &Value, what: &str) {
        let faults = self.faults(schema, instance);
        assert!(
            faults.is_empty(),
            "docs/{}: {what} is not as documented: {faults:#?}\n{instance:#}",
            self.name
        );
    }
}

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("docs")
        .join(name)
}

/// With keys in order, whatever map the values are kept in.
fn sorted(value: &Value) -> serde_norway::Value {
    match value {
        Value::Object(fields) => {
            let ordered: BTreeMap<&String, &Value> = fields.iter().collect();
            let entries = ordered
                .into_iter()
                .map(|(name, value)| (name.as_str().into(), sorted(value)));
            serde_norway::Value::Mapping(entries.collect())
        }
        Value::Array(entries) => {
            serde_norway::Value::Sequence(entries.iter().map(sorted).collect())
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
        let all = serde_json::to_value(schemas).unwrap();
        let yaml = serde_norway::to_string(&sorted(&all)).unwrap();
        let mut written = String::from("  schemas:\n");
        for line in yaml.lines() {
            written.push_str("    ");
            written.push_str(line);
            written.push('\n');
        }
        let (head, _) = document
            .text
            .split_once(MARK)
            .unwrap_or_else(|| panic!("docs/{name} has no line {MARK:?}"));
        let whole = format!("{head}{MARK}\n{written}");
        if std::env::var_os("UPDATE_CONTRACTS").is_some() {
            std::fs::write(path(name), &whole).unwrap();
        } else {
            assert!(
                whole == document.text,
                "docs/{name} is not what the types in src/protocol say. Write it anew with \
                 UPDATE_CONTRACTS=1 cargo test --test it contracts::schemas, and look at the \
                 difference: is it a change that clients can bear?"
            );
        }
    }
}

fn references<'a>(value: &'a Value, found: &mut Vec<&'a Value>) {
    match value {
        Value::Object(fields) => {
            if fields.get("$ref").is_some_and(Value::is_string) {
                found.push(value);
            }
            fields.values().for_each(|value| references(value, found));
        }
        Value::Array(entries) => entries.iter().for_each(|value| references(value, found)),
        _ => {}
    }
}

/// The rules of AsyncAPI 3.0 and OpenAPI 3.1 that can be broken by hand: what must be there is, and
/// every reference leads to the kind of thing that it stands for.
#[test]
fn documents_follow_their_standards() {
    for document in [Document::asyncapi(), Document::openapi()] {
        let mut found = Vec::new();
        references(&document.root, &mut found);
        for reference in found {
            document.follow(reference);
        }
        for field in ["title", "version"] {
            assert!(
                document.root["info"][field].is_string(),
                "{}: info.{field}",
                document.name
            );
        }
        assert_eq!(document.root["info"]["version"], env!("CARGO_PKG_VERSION"));
        let schemas = document.root["components"]["schemas"].as_object().unwrap();
        let mut used = Vec::new();
        references(&document.root, &mut used);
        let used: BTreeSet<&str> = used.iter().filter_map(|one| one["$ref"].as_str()).collect();
        for (name, schema) in schemas {
            document.faults(schema, &json!({}));
            let place = format!("#/components/schemas/{name}");
            assert!(
                used.contains(place.as_str()),
                "{}: {name} is not used",
                document.name
            );
        }
    }

    let asyncapi = Document::asyncapi();
    let root = &asyncapi.root;
    assert_eq!(root["asyncapi"], "3.0.0");
    let names = |value: &Value| -> Vec<String> {
        let fields = value.as_object().into_iter().flatten();
        fields.map(|(name, _)| name.clone()).collect()
    };
    for (name, server) in root["servers"].as_object().unwrap() {
        assert!(
            server["host"].is_string() && server["protocol"].is_string(),
            "{name}"
        );
    }
    let mut operated = BTreeSet::new();
    for (name, operation) in root["operations"].as_object().unwrap() {
        let action = operation["action"].as_str().unwrap();
        assert!(matches!(action, "send" | "receive"), "{name}: {action}");
        let channel = operation["channel"]["$ref"].as_str().unwrap();
        assert!(channel.starts_with("#/channels/"), "{name}: {channel}");
        for message in operation["messages"].as_array().unwrap() {
            let message = message["$ref"].as_str().unwrap();
            // A message of an operation is one of its channel's, by that way.
            assert!(
                message.starts_with(&format!("{channel}/messages/")),
                "{name}: {message}"
            );
            operated.insert(message.to_owned());
        }
    }
    for (channel_name, channel) in root["channels"].as_object().unwrap() {
        assert!(channel["address"].is_string(), "{channel_name}");
        for name in names(&channel["messages"]) {
            let place = format!("#/channels/{channel_name}/messages/{name}");
            assert!(
                operated.contains(&place),
                "{place} is neither sent nor received"
            );
            let message = asyncapi.follow(&channel["messages"][&name]);
            assert!(message["payload"].is_object(), "{name} has no payload");
            for example in message["examples"].as_array().into_iter().flatten() {
                asyncapi.holds(&message["payload"], &example["payload"], &name);
                if let Some(headers) = message.get("headers") {
                    asyncapi.holds(headers, &example["headers"], &name);
                }
            }
        }
    }

    let openapi = Document::openapi();
    assert_eq!(openapi.root["openapi"], "3.1.0");
    let mut operations = BTreeSet::new();
    for (path, item) in openapi.root["paths"].as_object().unwrap() {
        assert!(path.starts_with('/'), "{path}");
        for (method, operation) in item.as_object().unwrap() {
            if !matches!(method.as_str(), "get" | "post" | "delete") {
                continue;
            }
            let id = operation["operationId"].as_str().unwrap();
            assert!(operations.insert(id.to_owned()), "{id} is there twice");
            assert!(
                operation["responses"]
                    .as_object()
                    .is_some_and(|all| !all.is_empty()),
                "{id}"
            );
            let named = operation["parameters"].as_array().into_iter().flatten();
            for parameter in named {
                let parameter = openapi.follow(parameter);
                for field in ["name", "in", "schema"] {
                    assert!(
                        !parameter[field].is_null(),
                        "{id}: a parameter without {field}"
                    );
                }
                assert!(
                    parameter["in"] != "path" || parameter["required"] == true,
                    "{id}"
                );
            }
        }
    }
}
