//! `docs/operations.md`: every alert has its chapter, and the targets of links, the commands, the
//! settings and the metrics exist.

use std::collections::BTreeSet;
use std::path::Path;

use crate::support::process::ProcessSpec;

fn read_file(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The anchor of a heading, in the form that GitHub uses.
fn anchor(heading: &str) -> String {
    let is_kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
    let text: String = heading.to_lowercase().chars().filter(is_kept).collect();
    text.replace(' ', "-")
}

fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|line| anchor(line.trim_start_matches('#').trim()))
        .collect()
}

#[test]
fn every_alert_leads_to_its_chapter_and_every_chapter_has_its_alert() {
    let (rules, manual) = (
        read_file("deploy/prometheus/rules.yml"),
        read_file("docs/operations.md"),
    );
    let anchors = anchors(&manual);
    let alerts: Vec<&str> = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect();
    assert!(alerts.len() > 10, "{alerts:?}");
    for alert in &alerts {
        let chapter = alert.to_lowercase();
        assert!(anchors.contains(&chapter), "expected a chapter of {alert}");
        let link = format!("runbook: \"docs/operations.md#{chapter}\"");
        assert_eq!(
            rules.matches(&link).count(),
            1,
            "expected {link} at {alert}"
        );
    }
    let runbooks = rules.matches("runbook: ").count();
    assert_eq!(runbooks, alerts.len());
    for heading in manual
        .lines()
        .filter_map(|line| line.strip_prefix("### Chatmesh"))
    {
        assert!(
            alerts.contains(&format!("Chatmesh{heading}").as_str()),
            "expected an alert for the chapter {heading}"
        );
    }
}

#[test]
fn every_link_of_the_documents_has_a_target() {
    for document in [
        "docs/operations.md",
        "README.md",
        "ARCHITECTURE.md",
        "docs/protocol.md",
    ] {
        let text = read_file(document);
        for (_, rest) in text
            .match_indices("](")
            .map(|(index, _)| text.split_at(index + 2))
        {
            let target = rest.split(')').next().unwrap();
            if target.contains("://") {
                continue;
            }
            let (path, chapter) = target.split_once('#').unwrap_or((target, ""));
            let folder = Path::new(document).parent().unwrap();
            let path = if path.is_empty() {
                document.into()
            } else {
                folder.join(path)
            };
            let path = path.to_str().unwrap().to_owned();
            let exists = Path::new(env!("CARGO_MANIFEST_DIR")).join(&path).exists();
            assert!(exists, "{document}: expected the file of {target}");
            if !chapter.is_empty() {
                assert!(
                    anchors(&read_file(&path)).contains(chapter),
                    "{document}: expected the chapter of {target}"
                );
            }
        }
    }
}

/// The words after `chatmesh` of every command of the manual, in blocks and in the text.
fn commands(manual: &str) -> BTreeSet<Vec<String>> {
    let mut commands = BTreeSet::new();
    let mut in_block = false;
    for line in manual.lines() {
        if line.starts_with("```") {
            in_block = !in_block;
        }
        let pieces: Vec<&str> = if in_block {
            vec![line]
        } else {
            line.split('`').skip(1).step_by(2).collect()
        };
        for piece in pieces {
            let piece = piece.split(" # ").next().unwrap();
            let mut words = piece.split_whitespace().map(str::to_owned);
            if words.by_ref().find(|word| !word.contains('=')).as_deref() == Some("chatmesh") {
                commands.insert(words.collect());
            }
        }
    }
    commands
}

#[test]
fn every_command_of_the_manual_exists() {
    let manual = read_file("docs/operations.md");
    let commands = commands(&manual);
    assert!(commands.len() > 12, "{commands:?}");
    for words in commands {
        // The parser checks the subcommands and flags before `--help`, so no command runs.
        let words = words.iter().map(|word| match word.as_str() {
            "ROLE" | "<command>" => "config",
            word => word,
        });
        let mut words: Vec<&str> = words.collect();
        if words.first() == Some(&"config") && words.len() == 3 && words[2] == "config" {
            words[2] = "relay";
        }
        words.push("--help");
        let (code, out, err) = ProcessSpec::new(&words).run();
        assert_eq!(code, Some(0), "chatmesh {words:?}: {out}{err}");
    }
    let justfile = read_file("Justfile");
    for recipe in manual
        .split("just ")
        .skip(1)
        .filter_map(|rest| rest.split_whitespace().next())
    {
        let recipe = recipe.trim_matches(|c: char| !c.is_alphanumeric() && c != '-');
        let exists = justfile.lines().any(|line| line.starts_with(recipe));
        assert!(exists, "expected the recipe {recipe} in the Justfile");
    }
}

#[test]
fn every_setting_and_metric_of_the_manual_exists() {
    let manual = read_file("docs/operations.md");
    let (_, defaults, _) = ProcessSpec::new(&["config", "default"]).run();
    let metrics: BTreeSet<&str> = crate::monitoring::declared_metrics()
        .iter()
        .map(|metric| metric.name)
        .collect();
    for (index, code) in manual
        .split('`')
        .enumerate()
        .filter(|(index, _)| index % 2 == 1)
    {
        let name = code.split(['=', '{', ' ', '(']).next().unwrap();
        let is_setting = name.len() > 3
            && name.contains('_')
            && name.chars().all(|c| c.is_ascii_uppercase() || c == '_');
        if is_setting {
            assert!(
                defaults.contains(name),
                "expected a setting, got {name} in code span {index}"
            );
        }
        let metric_prefixes = [
            "websocket_",
            "ai_consumer_",
            "message_relay_",
            "chatmesh_",
            "process_",
        ];
        if metric_prefixes
            .iter()
            .any(|prefix| name.starts_with(prefix))
        {
            assert!(metrics.contains(name), "expected a metric, got {name}");
        }
    }
}
