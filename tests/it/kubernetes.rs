//! The shipped Kubernetes manifests: relations between objects, which schemas can't express, and
//! the structure of KEDA's objects. Continuous integration also validates them against published
//! schemas.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Map, Value};

/// A parser for the subset of YAML that the manifests use: mappings and lists by indentation,
/// scalars, quoted text, lists in brackets and empty mappings.
mod yaml {
    use super::{Map, Value};

    type Lines<'a> = std::iter::Peekable<std::vec::IntoIter<(usize, &'a str)>>;

    pub(super) fn parse_documents(text: &str) -> Vec<Value> {
        let parts = text.split("\n---");
        parts
            .map(parse_document)
            .filter(|value| !value.is_null())
            .collect()
    }

    fn parse_document(text: &str) -> Value {
        let lines: Vec<(usize, &str)> = text
            .lines()
            .map(|line| line.split(" #").next().unwrap_or_default().trim_end())
            .filter(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#'))
            .map(|line| (line.len() - line.trim_start().len(), line.trim_start()))
            .collect();
        let mut lines = lines.into_iter().peekable();
        match lines.peek().copied() {
            Some((indent, _)) => parse_block(&mut lines, indent),
            None => Value::Null,
        }
    }

    fn parse_block(lines: &mut Lines<'_>, indent: usize) -> Value {
        if lines.peek().is_some_and(|(_, line)| line.starts_with("- ")) {
            return parse_list(lines, indent);
        }
        let mut map = Map::new();
        while let Some((_, line)) =
            lines.next_if(|(line_indent, line)| *line_indent == indent && !line.starts_with("- "))
        {
            parse_entry(&mut map, lines, indent, line);
        }
        Value::Object(map)
    }

    fn parse_list(lines: &mut Lines<'_>, indent: usize) -> Value {
        let mut items = Vec::new();
        while let Some((_, line)) =
            lines.next_if(|(line_indent, line)| *line_indent == indent && line.starts_with("- "))
        {
            let first = &line[2..];
            if split_key(first).is_none() {
                items.push(parse_scalar(first));
                continue;
            }
            let mut map = Map::new();
            parse_entry(&mut map, lines, indent + 2, first);
            while let Some((_, line)) = lines.next_if(|(line_indent, line)| {
                *line_indent == indent + 2 && !line.starts_with("- ")
            }) {
                parse_entry(&mut map, lines, indent + 2, line);
            }
            items.push(Value::Object(map));
        }
        Value::Array(items)
    }

    fn split_key(line: &str) -> Option<(&str, &str)> {
        if let Some(name) = line.strip_suffix(':') {
            return Some((name, ""));
        }
        line.split_once(": ")
            .filter(|(name, _)| !name.starts_with('"'))
    }

    fn parse_entry(map: &mut Map<String, Value>, lines: &mut Lines<'_>, indent: usize, line: &str) {
        let (name, rest) = split_key(line).unwrap_or_else(|| panic!("unsupported YAML: {line}"));
        let value = if rest.is_empty() {
            match lines.peek().copied() {
                Some((next_indent, _)) if next_indent > indent => parse_block(lines, next_indent),
                Some((next_indent, next)) if next_indent == indent && next.starts_with("- ") => {
                    parse_list(lines, next_indent)
                }
                _ => Value::Null,
            }
        } else {
            parse_scalar(rest)
        };
        assert!(
            map.insert(name.to_owned(), value).is_none(),
            "{name} is a duplicate key"
        );
    }

    fn parse_scalar(text: &str) -> Value {
        let text = text.trim();
        if let Some(items) = text
            .strip_prefix('[')
            .and_then(|text| text.strip_suffix(']'))
        {
            return items.split(',').map(parse_scalar).collect();
        }
        if text == "{}" {
            return Value::Object(Map::new());
        }
        if let Some(quoted) = text
            .strip_prefix('"')
            .and_then(|text| text.strip_suffix('"'))
        {
            return quoted.into();
        }
        match text {
            "true" => true.into(),
            "false" => false.into(),
            _ => text
                .parse::<i64>()
                .map_or_else(|_| text.into(), Value::from),
        }
    }
}

fn read_manifest(file: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/kubernetes");
    std::fs::read_to_string(folder.join(file)).unwrap_or_else(|e| panic!("{file}: {e}"))
}

fn load_objects() -> Vec<Value> {
    let kustomization = yaml::parse_documents(&read_manifest("kustomization.yaml")).remove(0);
    let files = kustomization["resources"].as_array().unwrap().clone();
    files
        .iter()
        .flat_map(|file| yaml::parse_documents(&read_manifest(file.as_str().unwrap())))
        .collect()
}

fn find_object<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let found = objects
        .iter()
        .find(|o| o["kind"] == kind && o["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("there is no {kind} {name}"))
}

const ROLES: [(&str, i64); 3] = [("gateway", 8000), ("ai-worker", 8002), ("relay", 8001)];

#[test]
fn probes_use_the_listening_port_and_the_grace_period_covers_the_drain() {
    let objects = load_objects();
    let drain_ms: i64 = read_manifest("chatmesh.env")
        .lines()
        .find_map(|line| line.strip_prefix("DRAIN_TIMEOUT_MS="))
        .map(|value| value.parse().unwrap())
        .expect("DRAIN_TIMEOUT_MS in chatmesh.env");
    for (role, port) in ROLES {
        let deployment = find_object(&objects, "Deployment", role);
        let pod = &deployment["spec"]["template"]["spec"];
        let container = &pod["containers"][0];
        assert_eq!(container["args"], serde_json::json!([role]));
        assert_eq!(container["ports"][0]["containerPort"], port, "{role}");
        for (probe, path) in [
            ("livenessProbe", "/health/live"),
            ("readinessProbe", "/health/ready"),
        ] {
            assert_eq!(container[probe]["httpGet"]["path"], path, "{role}");
            assert_eq!(
                container[probe]["httpGet"]["port"],
                container["ports"][0]["name"]
            );
        }
        let pre_stop_seconds = container["lifecycle"]["preStop"]["sleep"]["seconds"]
            .as_i64()
            .unwrap_or(0);
        let grace_seconds = pod["terminationGracePeriodSeconds"].as_i64().unwrap();
        assert!(
            grace_seconds >= pre_stop_seconds + drain_ms / 1000 + 5,
            "{role}: {grace_seconds} s is too short"
        );
        let security = &container["securityContext"];
        assert_eq!(security["readOnlyRootFilesystem"], true, "{role}");
        assert_eq!(security["allowPrivilegeEscalation"], false, "{role}");
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true, "{role}");
        let selector = &deployment["spec"]["selector"]["matchLabels"];
        assert_eq!(
            selector, &deployment["spec"]["template"]["metadata"]["labels"],
            "{role}"
        );
        let budget = find_object(&objects, "PodDisruptionBudget", role);
        assert_eq!(
            &budget["spec"]["selector"]["matchLabels"], selector,
            "{role}"
        );
    }
}

fn assert_known_fields(value: &Value, known: &[&str]) {
    let known: BTreeSet<&str> = known.iter().copied().collect();
    for name in value.as_object().unwrap().keys() {
        assert!(
            known.contains(name.as_str()),
            "KEDA has no field {name}: {value}"
        );
    }
}

#[test]
fn autoscalers_are_valid_for_keda_and_name_existing_topics_and_metrics() {
    let objects = load_objects();
    let autoscalers: Vec<&Value> = objects
        .iter()
        .filter(|o| o["kind"] == "ScaledObject")
        .collect();
    assert_eq!(autoscalers.len(), 2);
    for object in &autoscalers {
        assert_eq!(object["apiVersion"], "keda.sh/v1alpha1");
        let spec = &object["spec"];
        assert_known_fields(
            spec,
            &[
                "scaleTargetRef",
                "pollingInterval",
                "initialCooldownPeriod",
                "cooldownPeriod",
                "idleReplicaCount",
                "minReplicaCount",
                "maxReplicaCount",
                "fallback",
                "advanced",
                "triggers",
            ],
        );
        assert_known_fields(
            &spec["scaleTargetRef"],
            &["apiVersion", "kind", "name", "envSourceContainerName"],
        );
        find_object(
            &objects,
            "Deployment",
            spec["scaleTargetRef"]["name"].as_str().unwrap(),
        );
        let (min, max) = (&spec["minReplicaCount"], &spec["maxReplicaCount"]);
        assert!(
            min.as_i64() >= Some(2) && max.as_i64() > min.as_i64(),
            "{spec}"
        );
        assert!(!spec["triggers"].as_array().unwrap().is_empty());
        for trigger in spec["triggers"].as_array().unwrap() {
            assert_known_fields(
                trigger,
                &[
                    "type",
                    "name",
                    "metadata",
                    "authenticationRef",
                    "metricType",
                    "useCachedMetrics",
                ],
            );
            // KEDA accepts only strings here: an unquoted number is rejected.
            for (name, value) in trigger["metadata"].as_object().unwrap() {
                assert!(value.is_string(), "{name} must be quoted: {value}");
            }
        }
    }
    let worker = find_object(&objects, "ScaledObject", "ai-worker");
    let trigger = &worker["spec"]["triggers"][0];
    assert_eq!(trigger["type"], "kafka");
    assert_eq!(trigger["metadata"]["consumerGroup"], "ai-consumer-group");
    assert_eq!(trigger["metadata"]["topic"], "incoming_messages");
    // More workers than partitions (12 by default) would be idle.
    assert_eq!(worker["spec"]["maxReplicaCount"], 12);
    assert!(!read_manifest("chatmesh.env").contains("KAFKA_TOPIC_PARTITIONS"));
    let query = &find_object(&objects, "ScaledObject", "gateway")["spec"]["triggers"][0]["metadata"]
        ["query"];
    let metrics = crate::monitoring::declared_metrics();
    let is_declared = metrics
        .iter()
        .any(|metric| query.as_str().unwrap().contains(metric.name));
    assert!(is_declared, "{query} names no declared metric");
}
