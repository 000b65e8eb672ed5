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

/// Modules of one layer that may import each other in this direction.
const WITHIN_A_LAYER: &[(&str, &str)] = &[("pipeline", "dead_letters")];

/// Modules beside the layers: what each may import of the crate.
const BESIDE: &[(&str, &[&str])] = &[
    ("client", &["protocol", "backoff", "http_client"]),
    ("store", &["backoff"]),
    ("health", &[]),
    ("http_client", &[]),
    ("signals", &[]),
    ("backoff", &[]),
];

/// Lines of code that a file may have, without comments and blank lines.
const FILE_LINES: usize = 500;

/// Files that may be longer. `chatmesh.js` is a single file by contract: users copy it alone, pages
/// of other origins import it as one resource, and a page must not mix parts of two versions while
/// gateways are updated one after the other.
const LONG_FILES: &[&str] = &["web/chatmesh.js"];

/// Lines that a function may have.
const FUNCTION_LINES: usize = 80;

fn modules() -> BTreeMap<ModulePath, Module> {
    read_modules(Path::new(env!("CARGO_MANIFEST_DIR")))
}

fn layer(top: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&top))
}

/// Why a module of `from` must not import one of `to`; `None` where it may.
fn forbidden(from: &str, to: &str) -> Option<String> {
    if from == to {
        return None;
    }
    if let Some((_, allowed)) = BESIDE.iter().find(|(name, _)| *name == from) {
        return (!allowed.contains(&to)).then(|| format!("{from} may import {allowed:?} only"));
    }
    let Some(own) = layer(from) else {
        return Some(format!(
            "{from} is in no layer: add it to this test and to ARCHITECTURE.md"
        ));
    };
    let Some(other) = layer(to) else {
        let is_beside = BESIDE.iter().any(|(name, _)| *name == to);
        return (!is_beside).then(|| format!("{to} is in no layer"));
    };
    if other < own {
        return Some(format!("{to} is in a higher layer"));
    }
    if other == own && !WITHIN_A_LAYER.contains(&(from, to)) {
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
            if let Some(reason) = forbidden(from, to) {
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

/// Groups of modules that import each other in a circle. A folder's `mod.rs` and its children are
/// one unit in this count: a child may use what its `mod.rs` defines, and the other way round.
fn cycles(modules: &BTreeMap<ModulePath, Module>) -> Vec<Vec<ModulePath>> {
    let reach: BTreeMap<&ModulePath, BTreeSet<&ModulePath>> = modules
        .keys()
        .map(|start| {
            let mut seen = BTreeSet::new();
            let mut open = vec![start];
            while let Some(path) = open.pop() {
                for next in modules[path]
                    .imports
                    .iter()
                    .filter(|next| !is_family(path, next))
                {
                    if let Some((next, _)) = modules.get_key_value(next)
                        && seen.insert(next)
                    {
                        open.push(next);
                    }
                }
            }
            (start, seen)
        })
        .collect();
    let mut groups = BTreeSet::new();
    for (path, reached) in &reach {
        if reached.contains(path) {
            let group: Vec<ModulePath> = modules
                .keys()
                .filter(|other| reached.contains(other) && reach[other].contains(path))
                .cloned()
                .collect();
            groups.insert(group);
        }
    }
    groups.into_iter().collect()
}

/// Whether one of the two is the other's `mod.rs`.
fn is_family(one: &ModulePath, other: &ModulePath) -> bool {
    one.starts_with(other) || other.starts_with(one)
}

#[test]
fn files_are_short() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut long = Vec::new();
    for folder in ["src", "tests", "benches", "fuzz", "web"] {
        let mut files = Vec::new();
        imports::find_sources(&root.join(folder), &mut files);
        assert!(!files.is_empty(), "{folder} has sources");
        for file in files {
            let lines = lines_of_code(&imports::strip_text(&fs::read_to_string(&file).unwrap()));
            let file = file.strip_prefix(root).unwrap();
            if lines > FILE_LINES && !LONG_FILES.iter().any(|long| file == Path::new(long)) {
                long.push(format!("{}: {lines} lines", file.display()));
            }
        }
    }
    assert!(
        long.is_empty(),
        "over {FILE_LINES} lines of code:\n{}",
        long.join("\n")
    );
}

fn lines_of_code(code: &str) -> usize {
    code.lines().filter(|line| !line.trim().is_empty()).count()
}

#[test]
fn functions_are_short() {
    let mut long = Vec::new();
    for module in modules().values() {
        for (name, lines) in function_lengths(&module.code) {
            if lines > FUNCTION_LINES {
                long.push(format!("{} {name}: {lines} lines", module.file.display()));
            }
        }
    }
    assert!(
        long.is_empty(),
        "over {FUNCTION_LINES} lines:\n{}",
        long.join("\n")
    );
}

/// The lines of each function from its signature to its closing brace, without blank ones.
fn function_lengths(code: &str) -> Vec<(String, usize)> {
    let mut lengths = Vec::new();
    let mut from = 0;
    while let Some(found) = code[from..].find("fn ") {
        let at = from + found;
        from = at + 3;
        if at > 0 && !code[..at].ends_with([' ', '\n', '(']) {
            continue;
        }
        let name: String = code[from..]
            .chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect();
        if name.is_empty() {
            continue;
        }
        // A declaration of a trait ends at a semicolon before any brace.
        let Some(open) = code[from..].find(['{', ';']).map(|at| from + at) else {
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
        lengths.push((name, lines_of_code(&code[at..end])));
    }
    lengths
}

#[test]
fn the_reader_finds_imports_in_every_form() {
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
            "the gateway imports {expected}: {imports:?}"
        );
    }
}
