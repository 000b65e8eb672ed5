//! Generates the JSON Schemas of all frames, records and HTTP bodies, for `docs/asyncapi.yaml` and
//! `docs/openapi.yaml`.

use std::collections::BTreeMap;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::{classic, http, v1};
use crate::protocol::record::{QuestionRecord, TerminalRecord};

/// JSON pointer to the schemas inside `docs/asyncapi.yaml` and `docs/openapi.yaml`.
const DEFINITIONS_PATH: &str = "/components/schemas";

/// Collects the schemas of one document.
struct SchemaCollector {
    generator: SchemaGenerator,
    /// The name of each schema of a frame, with the value of the field `type` in these frames.
    frame_types: Vec<(String, &'static str)>,
}

impl SchemaCollector {
    fn new() -> Self {
        let settings = SchemaSettings::draft2020_12().with(|settings| {
            settings.definitions_path = DEFINITIONS_PATH.into();
            settings.meta_schema = None;
        });
        Self {
            generator: settings.into_generator(),
            frame_types: Vec::new(),
        }
    }

    /// Adds the schema of a type whose Rust fields are all fields of its JSON objects.
    fn add<T: JsonSchema>(&mut self) {
        self.generator.subschema_for::<T>();
    }

    /// Adds the schema of a type whose JSON objects have the field `type`, with the value
    /// `frame_type`, besides the Rust fields.
    fn add_frame<T: JsonSchema>(&mut self, frame_type: &'static str) {
        self.add::<T>();
        self.frame_types
            .push((T::schema_name().into_owned(), frame_type));
    }

    /// Returns all schemas by name, with the field `type` in the schemas of frames.
    fn finish(mut self) -> BTreeMap<String, Value> {
        let mut schemas: BTreeMap<String, Value> =
            self.generator.take_definitions(true).into_iter().collect();
        for (name, frame_type) in self.frame_types {
            let Some(Value::Object(schema)) = schemas.get_mut(&name) else {
                continue;
            };
            let mut properties = Map::new();
            properties.insert("type".into(), json!({"const": frame_type}));
            if let Some(Value::Object(field_properties)) = schema.remove("properties") {
                properties.extend(field_properties);
            }
            let mut required = vec![json!("type")];
            if let Some(Value::Array(required_fields)) = schema.remove("required") {
                required.extend(required_fields);
            }
            schema.insert("properties".into(), properties.into());
            schema.insert("required".into(), required.into());
        }
        schemas
    }
}

/// The schemas of the HTTP bodies, by name. References between them begin with
/// `#/components/schemas/`.
pub fn http_schemas() -> BTreeMap<String, Value> {
    let mut schemas = SchemaCollector::new();
    schemas.add::<http::IssuedToken>();
    schemas.add::<http::RevokedTokens>();
    schemas.add::<http::ConversationList>();
    schemas.add::<http::MessageList>();
    schemas.add_frame::<http::ErrorBody>("error");
    schemas.add::<http::Health>();
    schemas.add::<http::Liveness>();
    schemas.add::<http::Readiness>();
    schemas.finish()
}

/// The schemas of WebSocket frames and log records, by name. References between them begin with
/// `#/components/schemas/`.
pub fn message_schemas() -> BTreeMap<String, Value> {
    let mut schemas = SchemaCollector::new();
    schemas.add_frame::<classic::Message>("message");
    schemas.add_frame::<classic::Response>("response");
    schemas.add_frame::<classic::ErrorFrame>("error");
    schemas.add_frame::<v1::Message>("message");
    schemas.add_frame::<v1::Cancel>("cancel");
    schemas.add_frame::<v1::Ping>("ping");
    schemas.add_frame::<v1::Welcome>("welcome");
    schemas.add_frame::<v1::Accepted>("accepted");
    schemas.add_frame::<v1::Delta>("delta");
    schemas.add_frame::<v1::Snapshot>("snapshot");
    schemas.add_frame::<v1::Restarted>("restarted");
    schemas.add_frame::<v1::Response>("response");
    schemas.add_frame::<v1::Cancelled>("cancelled");
    schemas.add_frame::<v1::ErrorFrame>("error");
    schemas.add_frame::<v1::CancelResult>("cancel_result");
    schemas.add_frame::<v1::Closing>("closing");
    schemas.add_frame::<v1::Pong>("pong");
    schemas.add::<QuestionRecord<'_>>();
    schemas.add::<TerminalRecord>();
    schemas.finish()
}
