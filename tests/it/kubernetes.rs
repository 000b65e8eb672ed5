//! The shipped Kubernetes manifests: what no schema sees, and of KEDA's objects the structure too.
//! Continuous integration validates all of them against the published schemas.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Map, Value};

/// The part of YAML that the manifests are written in: mappings and lists by indentation, scalars,
/// quoted text, lists in brackets and empty mappings.
mod yaml {
    use super::{Map, Value};

    type Lines<'a> = std::iter::Peekable<std::vec::IntoIter<(usize, &'a str)>>;

    pub(super) fn documents(text: &str) -> Vec<Value> {
        let parts = text.split("\n---");
        parts
            .map(document)
            .filter(|value| !value.is_null())
            .collect()
    }

    fn document(text: &str) -> Value {
        let lines: Vec<(usize, &str)> = text
            .lines()
            .map(|line| line.split(" #").next().unwrap_or_default().trim_end())
            .filter(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#'))
            .map(|line| (line.len() - line.trim_start().len(), line.trim_start()))
            .collect();
        let mut lines = lines.into_iter().peekable();
        match lines.peek().copied() {
            Some((indent, _)) => block(&mut lines, indent),
            None => Value::Null,
        }
    }

    fn block(lines: &mut Lines<'_>, indent: usize) -> Value {
        if lines.peek().is_some_and(|(_, line)| line.starts_with("- ")) {
            return list(lines, indent);
        }
        let mut map = Map::new();
        while let Some((_, line)) =
            lines.next_if(|(at, line)| *at == indent && !line.starts_with("- "))
        {
            entry(&mut map, lines, indent, line);
        }
        Value::Object(map)
    }

    fn list(lines: &mut Lines<'_>, indent: usize) -> Value {
        let mut items = Vec::new();
        while let Some((_, line)) =
            lines.next_if(|(at, line)| *at == indent && line.starts_with("- "))
        {
            let first = &line[2..];
            if key(first).is_none() {
                items.push(scalar(first));
                continue;
            }
            let mut map = Map::new();
            entry(&mut map, lines, indent + 2, first);
            while let Some((_, line)) =
                lines.next_if(|(at, line)| *at == indent + 2 && !line.starts_with("- "))
            {
                entry(&mut map, lines, indent + 2, line);
            }
            items.push(Value::Object(map));
        }
        Value::Array(items)
    }

    fn key(line: &str) -> Option<(&str, &str)> {
        if let Some(name) = line.strip_suffix(':') {
            return Some((name, ""));
        }
        line.split_once(": ")
            .filter(|(name, _)| !name.starts_with('"'))
    }

    fn entry(map: &mut Map<String, Value>, lines: &mut Lines<'_>, indent: usize, line: &str) {
        let (name, rest) = key(line).unwrap_or_else(|| panic!("not understood: {line}"));
        let value = if rest.is_empty() {
            match lines.peek().copied() {
                Some((deeper, _)) if deeper > indent => block(lines, deeper),
                Some((at, next)) if at == indent && next.starts_with("- ") => list(lines, at),
                _ => Value::Null,
            }
        } else {
            scalar(rest)
        };
        assert!(
            map.insert(name.to_owned(), value).is_none(),
            "{name} is there twice"
        );
    }

    fn scalar(text: &str) -> Value {
        let text = text.trim();
        if let Some(items) = text
            .strip_prefix('[')
            .and_then(|text| text.strip_suffix(']'))
        {
            return items.split(',').map(scalar).collect();
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

fn text(file: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/kubernetes");
    std::fs::read_to_string(folder.join(file)).unwrap_or_else(|e| panic!("{file}: {e}"))
}

fn objects() -> Vec<Value> {
    let kustomization = yaml::documents(&text("kustomization.yaml")).remove(0);
    let files = kustomization["resources"].as_array().unwrap().clone();
    files
        .iter()
        .flat_map(|file| yaml::documents(&text(file.as_str().unwrap())))
        .collect()
}

fn named<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let found = objects
        .iter()
        .find(|o| o["kind"] == kind && o["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("there is no {kind} {name}"))
}

const ROLES: [(&str, i64); 3] = [("gateway", 8000), ("ai-worker", 8002), ("relay", 8001)];

#[test]
fn every_role_is_probed_where_it_listens_and_has_time_to_drain() {
    let objects = objects();
    let drain_ms: i64 = text("chatmesh.env")
        .lines()
        .find_map(|line| line.strip_prefix("DRAIN_TIMEOUT_MS="))
        .map(|value| value.parse().unwrap())
        .expect("DRAIN_TIMEOUT_MS in chatmesh.env");
    for (role, port) in ROLES {
        let deployment = named(&objects, "Deployment", role);
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
        let before = container["lifecycle"]["preStop"]["sleep"]["seconds"]
            .as_i64()
            .unwrap_or(0);
        let grace = pod["terminationGracePeriodSeconds"].as_i64().unwrap();
        assert!(
            grace >= before + drain_ms / 1000 + 5,
            "{role}: {grace} s is too short"
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
        let budget = named(&objects, "PodDisruptionBudget", role);
        assert_eq!(
            &budget["spec"]["selector"]["matchLabels"], selector,
            "{role}"
        );
    }
}

fn assert_known(value: &Value, known: &[&str]) {
    let known: BTreeSet<&str> = known.iter().copied().collect();
    for name in value.as_object().unwrap().keys() {
        assert!(
            known.contains(name.as_str()),
            "KEDA knows no {name} in {value}"
        );
    }
}

#[test]
fn the_autoscalers_are_as_keda_reads_them_and_follow_our_topic_and_metric() {
    let objects = objects();
    let scaled: Vec<&Value> = objects
        .iter()
        .filter(|o| o["kind"] == "ScaledObject")
        .collect();
    assert_eq!(scaled.len(), 2);
    for object in &scaled {
        assert_eq!(object["apiVersion"], "keda.sh/v1alpha1");
        let spec = &object["spec"];
        assert_known(
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
        assert_known(
            &spec["scaleTargetRef"],
            &["apiVersion", "kind", "name", "envSourceContainerName"],
        );
        named(
            &objects,
            "Deployment",
            spec["scaleTargetRef"]["name"].as_str().unwrap(),
        );
        let (least, most) = (&spec["minReplicaCount"], &spec["maxReplicaCount"]);
        assert!(
            least.as_i64() >= Some(2) && most.as_i64() > least.as_i64(),
            "{spec}"
        );
        assert!(!spec["triggers"].as_array().unwrap().is_empty());
        for trigger in spec["triggers"].as_array().unwrap() {
            assert_known(
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
            // Its metadata are a map of texts: a bare number is refused.
            for (name, value) in trigger["metadata"].as_object().unwrap() {
                assert!(value.is_string(), "{name} must be quoted: {value}");
            }
        }
    }
    let worker = named(&objects, "ScaledObject", "ai-worker");
    let trigger = &worker["spec"]["triggers"][0];
    assert_eq!(trigger["type"], "kafka");
    assert_eq!(trigger["metadata"]["consumerGroup"], "ai-consumer-group");
    assert_eq!(trigger["metadata"]["topic"], "incoming_messages");
    // More workers than partitions (12, where nobody says another number) would only wait.
    assert_eq!(worker["spec"]["maxReplicaCount"], 12);
    assert!(!text("chatmesh.env").contains("KAFKA_TOPIC_PARTITIONS"));
    let query =
        &named(&objects, "ScaledObject", "gateway")["spec"]["triggers"][0]["metadata"]["query"];
    let metrics = crate::monitoring::declared();
    let ours = metrics
        .iter()
        .any(|metric| query.as_str().unwrap().contains(metric.name));
    assert!(ours, "{query} is of no metric of ours");
}
