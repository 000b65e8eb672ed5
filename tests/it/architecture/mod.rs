//! The structure that ARCHITECTURE.md describes, read from the source: layers import downwards
//! only, no import cycle joins two folders, files and functions stay short.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use imports::{Module, ModulePath, read_modules};

mod imports;

/// The layers from top to bottom. A module may import from its own layer and from those below it.
const LAYERS: &[&[&str]] = &[
    &["cli"],
    &["tools"],
    &["app"],
    &["gateway", "ai_worker", "relay"],
    &["pipeline", "dead_letters"],
    &["log", "fanout"],
    &["telemetry"],
    &["config"],
    &["protocol"],
];

/// Pairs of modules of one layer, of which the first may import the second.
const ALLOWED_WITHIN_A_LAYER: &[(&str, &str)] = &[("pipeline", "dead_letters")];

/// The modules beside the layers, each with the modules of the crate that it may import.
const BESIDE_LAYERS: &[(&str, &[&str])] = &[
    ("client", &["protocol", "backoff", "http_client"]),
    ("store", &["backoff"]),
    ("health", &[]),
    ("http_client", &[]),
    ("signals", &[]),
    ("backoff", &[]),
];

/// Maximum number of lines of code in a file, without comments and blank lines.
const MAX_FILE_LINES: usize = 500;

/// Files that may be longer. `chatmesh.js` is a single file by contract: users copy it alone, pages
/// of other origins import it as one resource, and a page must not mix parts of two versions while
/// gateways are updated one after the other.
const LONG_FILES: &[&str] = &["web/chatmesh.js"];

/// Maximum number of lines in a function, without comments and blank lines.
const MAX_FUNCTION_LINES: usize = 80;

fn modules() -> BTreeMap<ModulePath, Module> {
    read_modules(Path::new(env!("CARGO_MANIFEST_DIR")))
}

fn layer(top: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&top))
}

/// The reason why a module of `from` must not import one of `to`, or `None` if it may.
fn import_violation(from: &str, to: &str) -> Option<String> {
    if from == to {
        return None;
    }
    if let Some((_, allowed)) = BESIDE_LAYERS.iter().find(|(name, _)| *name == from) {
        return (!allowed.contains(&to)).then(|| format!("{from} may import {allowed:?} only"));
    }
    let Some(from_layer) = layer(from) else {
        return Some(format!(
            "{from} is in no layer: add it to this test and to ARCHITECTURE.md"
        ));
    };
    let Some(to_layer) = layer(to) else {
        let is_beside = BESIDE_LAYERS.iter().any(|(name, _)| *name == to);
        return (!is_beside).then(|| format!("{to} is in no layer"));
    };
    if to_layer < from_layer {
        return Some(format!("{to} is in a higher layer"));
    }
    if to_layer == from_layer && !ALLOWED_WITHIN_A_LAYER.contains(&(from, to)) {
        return Some(format!("{to} is in the same layer"));
    }
    None
}

#[test]
fn modules_import_from_lower_layers_only() {
    let mut violations = Vec::new();
    for (path, module) in modules() {
        let Some(from) = path.first() else {
            continue;
        };
        for target in &module.imports {
            let Some(to) = target.first() else {
                continue;
            };
            if let Some(reason) = import_violation(from, to) {
                let file = module.file.display();
                violations.push(format!("{file} imports {}: {reason}", target.join("::")));
            }
        }
    }
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}

#[test]
fn import_cycles_stay_within_one_folder() {
    let modules = modules();
    let cycles: Vec<String> = cycles(&modules)
        .into_iter()
        .map(|cycle| {
            let files = cycle
                .iter()
                .map(|path| modules[path].file.display().to_string());
            files.collect::<Vec<_>>().join(" <-> ")
        })
        .collect();
    assert!(cycles.is_empty(), "import cycles:\n{}", cycles.join("\n"));
}

/// Groups of modules that import each other in a circle. Imports between a folder's `mod.rs` and
/// the modules in the folder do not count, because they may use each other's items.
fn cycles(modules: &BTreeMap<ModulePath, Module>) -> Vec<Vec<ModulePath>> {
    let reachable: BTreeMap<&ModulePath, BTreeSet<&ModulePath>> = modules
        .keys()
        .map(|start| {
            let mut reached = BTreeSet::new();
            let mut unvisited = vec![start];
            while let Some(path) = unvisited.pop() {
                for next in modules[path]
                    .imports
                    .iter()
                    .filter(|next| !is_parent_or_child(path, next))
                {
                    if let Some((next, _)) = modules.get_key_value(next)
                        && reached.insert(next)
                    {
                        unvisited.push(next);
                    }
                }
            }
            (start, reached)
        })
        .collect();
    let mut groups = BTreeSet::new();
    for (path, reached) in &reachable {
        if reached.contains(path) {
            let group: Vec<ModulePath> = modules
                .keys()
                .filter(|other| reached.contains(other) && reachable[other].contains(path))
                .cloned()
                .collect();
            groups.insert(group);
        }
    }
    groups.into_iter().collect()
}

/// Whether the folder of one module contains the other module.
fn is_parent_or_child(first: &ModulePath, second: &ModulePath) -> bool {
    first.starts_with(second) || second.starts_with(first)
}

#[test]
fn files_are_short() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut long_files = Vec::new();
    for folder in ["src", "tests", "benches", "fuzz", "web"] {
        let mut files = Vec::new();
        imports::find_sources(&root.join(folder), &mut files);
        assert!(!files.is_empty(), "expected sources in {folder}");
        for file in files {
            let lines = lines_of_code(&imports::strip_text(&fs::read_to_string(&file).unwrap()));
            let file = file.strip_prefix(root).unwrap();
            if lines > MAX_FILE_LINES && !LONG_FILES.iter().any(|exempt| file == Path::new(exempt))
            {
                long_files.push(format!("{}: {lines} lines", file.display()));
            }
        }
    }
    assert!(
        long_files.is_empty(),
        "over {MAX_FILE_LINES} lines of code:\n{}",
        long_files.join("\n")
    );
}

fn lines_of_code(code: &str) -> usize {
    code.lines().filter(|line| !line.trim().is_empty()).count()
}

#[test]
fn functions_are_short() {
    let mut long_functions = Vec::new();
    for module in modules().values() {
        for (name, lines) in function_lengths(&module.code) {
            if lines > MAX_FUNCTION_LINES {
                long_functions.push(format!("{} {name}: {lines} lines", module.file.display()));
            }
        }
    }
    assert!(
        long_functions.is_empty(),
        "over {MAX_FUNCTION_LINES} lines:\n{}",
        long_functions.join("\n")
    );
}

/// The lines of each function from its signature to its closing brace, without blank ones.
fn function_lengths(code: &str) -> Vec<(String, usize)> {
    let mut lengths = Vec::new();
    let mut search_start = 0;
    while let Some(index) = code[search_start..].find("fn ") {
        let start = search_start + index;
        search_start = start + 3;
        if start > 0 && !code[..start].ends_with([' ', '\n', '(']) {
            continue;
        }
        let name: String = code[search_start..]
            .chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect();
        if name.is_empty() {
            continue;
        }
        // A declaration of a trait ends at a semicolon before any brace.
        let Some(open) = code[search_start..]
            .find(['{', ';'])
            .map(|index| search_start + index)
        else {
            break;
        };
        if code.as_bytes()[open] == b';' {
            continue;
        }
        let mut depth = 0;
        let end = code[open..]
            .bytes()
            .position(|byte| {
                depth += match byte {
                    b'{' => 1,
                    b'}' => -1,
                    _ => 0,
                };
                depth == 0
            })
            .map_or(code.len(), |length| open + length);
        lengths.push((name, lines_of_code(&code[start..end])));
    }
    lengths
}

#[test]
fn comments_and_strings_are_stripped_and_imports_are_found() {
    let stripped =
        imports::strip_text("let a = \"crate::x\"; // crate::y\nlet b = 'c'; use crate::z;");
    assert!(!stripped.contains("crate::x") && !stripped.contains("crate::y"));
    assert!(stripped.contains("use crate::z"));
    let modules = modules();
    let imports: BTreeSet<&str> = modules
        .iter()
        .filter(|(path, _)| path.first().is_some_and(|top| top == "gateway"))
        .flat_map(|(_, module)| &module.imports)
        .filter_map(|path| path.first().map(String::as_str))
        .collect();
    for expected in ["config", "fanout", "log", "protocol"] {
        assert!(
            imports.contains(expected),
            "expected the import of {expected} by the gateway: {imports:?}"
        );
    }
}
