//! JSON Schemas of everything that other programs see, for the documents.

use std::collections::BTreeMap;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::{classic, http, v1};
use crate::protocol::record::{QuestionRecord, Terminal};

/// Where the documents keep schemas.
const PLACE: &str = "/components/schemas";

struct Collected {
    generator: SchemaGenerator,
    /// Name of a schema, and the `type` that its frames have.
    tags: Vec<(String, &'static str)>,
}

impl Collected {
    fn plain<T: JsonSchema>(&mut self) {
        self.generator.subschema_for::<T>();
    }

    fn frame<T: JsonSchema>(&mut self, tag: &'static str) {
        self.plain::<T>();
        self.tags.push((T::schema_name().into_owned(), tag));
    }

    /// The definitions; every frame's begins with its `type`.
    fn finish(mut self) -> BTreeMap<String, Value> {
        let mut schemas: BTreeMap<String, Value> =
            self.generator.take_definitions(true).into_iter().collect();
        for (name, tag) in self.tags {
            let Some(Value::Object(schema)) = schemas.get_mut(&name) else {
                continue;
            };
            let mut properties = Map::new();
            properties.insert("type".into(), json!({"const": tag}));
            if let Some(Value::Object(own)) = schema.remove("properties") {
                properties.extend(own);
            }
            let mut required = vec![json!("type")];
            if let Some(Value::Array(own)) = schema.remove("required") {
                required.extend(own);
            }
            schema.insert("properties".into(), properties.into());
            schema.insert("required".into(), required.into());
        }
        schemas
    }
}

fn collect(add: impl FnOnce(&mut Collected)) -> BTreeMap<String, Value> {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = PLACE.into();
        settings.meta_schema = None;
    });
    let mut collected = Collected {
        generator: settings.into_generator(),
        tags: Vec::new(),
    };
    add(&mut collected);
    collected.finish()
}

/// The schemas of sockets, topics and channels (`true`), or of the HTTP routes (`false`), by name.
/// They refer to each other below `#/components/schemas`.
pub fn schemas(sockets_and_topics: bool) -> BTreeMap<String, Value> {
    if !sockets_and_topics {
        return collect(|all| {
            all.plain::<http::IssuedToken>();
            all.plain::<http::RevokedTokens>();
            all.plain::<http::ConversationList>();
            all.plain::<http::MessageList>();
            all.frame::<http::Refused>("error");
            all.plain::<http::Health>();
            all.plain::<http::Alive>();
            all.plain::<http::Ready>();
        });
    }
    collect(|all| {
        all.frame::<classic::Message>("message");
        all.frame::<classic::Response>("response");
        all.frame::<classic::Failure>("error");
        all.frame::<v1::Message>("message");
        all.frame::<v1::Cancel>("cancel");
        all.frame::<v1::Ping>("ping");
        all.frame::<v1::Welcome>("welcome");
        all.frame::<v1::Accepted>("accepted");
        all.frame::<v1::Delta>("delta");
        all.frame::<v1::Snapshot>("snapshot");
        all.frame::<v1::Restarted>("restarted");
        all.frame::<v1::Response>("response");
        all.frame::<v1::Cancelled>("cancelled");
        all.frame::<v1::Failure>("error");
        all.frame::<v1::CancelResult>("cancel_result");
        all.frame::<v1::Closing>("closing");
        all.frame::<v1::Pong>("pong");
        all.plain::<QuestionRecord<'_>>();
        all.plain::<Terminal>();
    })
}
