//! Reads the modules of `src` and which of them each one imports.
//!
//! The reader is textual: it knows `use` trees, paths that begin with `crate::`, `super::` or
//! `self::`, and re-exports by `pub use`. Test code is left out. Macros that expand to paths are
//! not seen.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A module's path below the crate, such as `["gateway", "http", "routes"]`; empty for `lib.rs`.
pub(super) type ModulePath = Vec<String>;

/// One source file that is a module of the crate.
pub(super) struct Module {
    /// The file, relative to the repository's root.
    pub(super) file: PathBuf,
    /// Its text without comments, string contents, and test modules; line numbers are kept.
    pub(super) code: String,
    /// The modules that it imports, except through its own re-exports of its children.
    pub(super) imports: BTreeSet<ModulePath>,
}

/// Every module of the crate by its path.
pub(super) fn read_modules(root: &Path) -> BTreeMap<ModulePath, Module> {
    let mut modules = BTreeMap::new();
    collect(root, &root.join("src"), &mut Vec::new(), &mut modules);
    let paths: BTreeSet<ModulePath> = modules.keys().cloned().collect();
    let reexports: BTreeMap<ModulePath, BTreeMap<String, ModulePath>> = modules
        .iter()
        .map(|(path, module)| (path.clone(), reexports(path, &module.code, &paths)))
        .collect();
    for (path, module) in &mut modules {
        for target in imported_paths(&module.code) {
            let Some(absolute) = absolute_path(path, &target) else {
                continue;
            };
            if let Some(found) = resolve(&absolute, &paths, &reexports)
                && found != *path
            {
                module.imports.insert(found);
            }
        }
    }
    modules
}

/// Appends the Rust and JavaScript files below `folder`, without what is built or installed.
pub(super) fn find_sources(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap().path();
        let name = entry.file_name().unwrap().to_str().unwrap();
        if entry.is_dir() {
            if !matches!(name, "target" | "node_modules" | "corpus" | "artifacts") {
                find_sources(&entry, files);
            }
        } else if entry
            .extension()
            .is_some_and(|ending| ending == "rs" || ending == "js" || ending == "mjs")
        {
            files.push(entry);
        }
    }
}

fn collect(
    root: &Path,
    folder: &Path,
    path: &mut ModulePath,
    modules: &mut BTreeMap<ModulePath, Module>,
) {
    let mut entries: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    entries.sort();
    for entry in entries {
        let name = entry.file_stem().unwrap().to_str().unwrap().to_owned();
        if is_test_module(&name) {
            continue;
        }
        if entry.is_dir() {
            path.push(name);
            collect(root, &entry, path, modules);
            path.pop();
        } else if entry.extension().is_some_and(|ending| ending == "rs") && name != "main" {
            let mut module = path.clone();
            if name != "mod" && name != "lib" {
                module.push(name);
            }
            let code = strip_tests(&strip_text(&fs::read_to_string(&entry).unwrap()));
            let file = entry.strip_prefix(root).unwrap().to_owned();
            modules.insert(
                module,
                Module {
                    file,
                    code,
                    imports: BTreeSet::new(),
                },
            );
        }
    }
}

/// Whether a file or folder of this name holds test code only, by the convention of this crate.
fn is_test_module(name: &str) -> bool {
    matches!(name, "tests" | "sim" | "bench")
        || name.ends_with("_tests")
        || name.ends_with("_bench")
}

/// Replaces comments and the contents of string and character literals by spaces.
pub(super) fn strip_text(source: &str) -> String {
    let bytes = source.as_bytes();
    let mut output = Vec::with_capacity(bytes.len());
    let mut i = 0;
    let blank =
        |output: &mut Vec<u8>, byte: u8| output.push(if byte == b'\n' { b'\n' } else { b' ' });
    while i < bytes.len() {
        let rest = &bytes[i..];
        if rest.starts_with(b"//") {
            while i < bytes.len() && bytes[i] != b'\n' {
                output.push(b' ');
                i += 1;
            }
        } else if rest.starts_with(b"/*") {
            let end = source[i..].find("*/").map_or(bytes.len(), |at| i + at + 2);
            while i < end {
                blank(&mut output, bytes[i]);
                i += 1;
            }
        } else if let Some(hashes) = raw_string_hashes(rest) {
            let closing = format!("\"{}", "#".repeat(hashes));
            let start = i + source[i..].find('"').unwrap() + 1;
            let end = source[start..]
                .find(&closing)
                .map_or(bytes.len(), |at| start + at + closing.len());
            while i < end {
                blank(&mut output, bytes[i]);
                i += 1;
            }
        } else if bytes[i] == b'"' {
            output.push(b'"');
            i += 1;
            while i < bytes.len() && bytes[i] != b'"' {
                if bytes[i] == b'\\' {
                    output.push(b' ');
                    i += 1;
                }
                if i < bytes.len() {
                    blank(&mut output, bytes[i]);
                    i += 1;
                }
            }
            output.push(b'"');
            i += 1;
        } else if let Some(length) = char_literal_length(rest) {
            output.extend(std::iter::repeat_n(b' ', length));
            i += length;
        } else {
            output.push(bytes[i]);
            i += 1;
        }
    }
    String::from_utf8_lossy(&output).into_owned()
}

/// The number of `#` of a raw string literal that begins here.
fn raw_string_hashes(rest: &[u8]) -> Option<usize> {
    let after = rest
        .strip_prefix(b"br")
        .or_else(|| rest.strip_prefix(b"r"))?;
    let hashes = after.iter().take_while(|byte| **byte == b'#').count();
    (after.get(hashes) == Some(&b'"')).then_some(hashes)
}

/// The length in bytes of a character literal that begins here; lifetimes are none.
fn char_literal_length(rest: &[u8]) -> Option<usize> {
    if rest.first() != Some(&b'\'') {
        return None;
    }
    if rest.get(1) == Some(&b'\\') {
        let end = rest[3..].iter().take(12).position(|byte| *byte == b'\'')?;
        return Some(end + 4);
    }
    let text = std::str::from_utf8(&rest[..rest.len().min(8)])
        .or_else(|error| std::str::from_utf8(&rest[..error.valid_up_to()]))
        .ok()?;
    let character = text.chars().nth(1)?;
    (text.chars().nth(2) == Some('\'')).then_some(character.len_utf8() + 2)
}

/// Blanks every item that is compiled for tests only.
fn strip_tests(code: &str) -> String {
    let mut output = code.as_bytes().to_vec();
    let mut from = 0;
    while let Some(found) = code[from..].find("#[cfg(test)]") {
        let start = from + found;
        let end = end_of_item(code, start);
        for byte in &mut output[start..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        from = end.max(start + 1);
    }
    String::from_utf8_lossy(&output).into_owned()
}

/// The end of the item that begins at `start`: its first `;` outside of brackets, or the brace
/// that closes its first one.
fn end_of_item(code: &str, start: usize) -> usize {
    let mut depth = 0_i32;
    for (at, byte) in code.bytes().enumerate().skip(start) {
        match byte {
            b'{' => depth += 1,
            b'}' => {
                depth -= 1;
                if depth <= 0 {
                    return at + 1;
                }
            }
            b';' if depth == 0 => return at + 1,
            _ => {}
        }
    }
    code.len()
}

/// The paths that the code names: those of `use` items, and qualified ones in expressions.
fn imported_paths(code: &str) -> Vec<Vec<String>> {
    let mut paths = Vec::new();
    let mut rest = code.to_owned();
    for (is_reexport, tree, range) in use_items(code) {
        rest.replace_range(range.clone(), &" ".repeat(range.len()));
        let mut leaves = Vec::new();
        expand_tree(&tree, &mut Vec::new(), &mut leaves);
        // A module that re-exports an item of its child offers it, and does not depend on it.
        if !is_reexport {
            paths.extend(leaves);
        }
    }
    let mut from = 0;
    while from < rest.len() {
        let Some((at, _)) = ["crate::", "super::", "self::"]
            .iter()
            .filter_map(|prefix| rest[from..].find(prefix).map(|at| (from + at, prefix)))
            .min()
        else {
            break;
        };
        let is_whole = at == 0
            || !rest[..at]
                .ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':' || c == '$');
        let text: String = rest[at..]
            .chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_' || *c == ':')
            .collect();
        if is_whole {
            paths.push(segments(&text));
        }
        from = at + text.len().max(1);
    }
    paths
}

fn segments(path: &str) -> Vec<String> {
    path.split("::")
        .map(|segment| segment.trim().trim_start_matches("r#").to_owned())
        .filter(|segment| !segment.is_empty())
        .collect()
}

/// Each `use` item: whether it is public, its tree, and where it stands.
fn use_items(code: &str) -> Vec<(bool, String, std::ops::Range<usize>)> {
    let mut items = Vec::new();
    let mut from = 0;
    while let Some(found) = code[from..].find("use ") {
        let at = from + found;
        from = at + 4;
        let line_start = code[..at]
            .rfind(['\n', ';', '{', '}'])
            .map_or(0, |at| at + 1);
        let before = code[line_start..at].trim();
        let is_item = before.is_empty() || before.starts_with("pub") || before.ends_with(']');
        let Some(length) = code[at..].find(';') else {
            break;
        };
        if is_item {
            let is_reexport = before.contains("pub");
            items.push((
                is_reexport,
                code[at + 4..at + length].to_owned(),
                at..at + length,
            ));
            from = at + length;
        }
    }
    items
}

/// Expands `a::{b, c::d as e}` into its leaves.
fn expand_tree(tree: &str, prefix: &mut Vec<String>, leaves: &mut Vec<Vec<String>>) {
    let tree = tree.trim();
    if let Some(open) = tree.find('{') {
        let head = segments(&tree[..open]);
        let length = prefix.len();
        prefix.extend(head);
        let inner = &tree[open + 1..tree.rfind('}').unwrap_or(tree.len())];
        let mut depth = 0;
        let mut start = 0;
        for (at, c) in inner.char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 0 => {
                    expand_tree(&inner[start..at], prefix, leaves);
                    start = at + 1;
                }
                _ => {}
            }
        }
        expand_tree(&inner[start..], prefix, leaves);
        prefix.truncate(length);
    } else if !tree.is_empty() {
        let path = tree.split(" as ").next().unwrap();
        let mut leaf = prefix.clone();
        leaf.extend(
            segments(path)
                .into_iter()
                .filter(|segment| segment != "self"),
        );
        if tree.trim_start().starts_with("self::") && prefix.is_empty() {
            leaf.insert(0, "self".to_owned());
        }
        leaves.push(leaf);
    }
}

/// The path from the crate's root of one that stands in the module `from`; `None` where it leads
/// out of the crate.
fn absolute_path(from: &ModulePath, path: &[String]) -> Option<ModulePath> {
    let mut base = from.clone();
    let mut rest = path;
    match path.first()?.as_str() {
        "crate" => {
            base.clear();
            rest = &rest[1..];
        }
        "self" => rest = &rest[1..],
        "super" => {
            while rest.first().is_some_and(|segment| segment == "super") {
                base.pop()?;
                rest = &rest[1..];
            }
        }
        // An external crate, or a child module that is named without `self::`.
        _ => {}
    }
    base.extend(rest.iter().cloned());
    Some(base)
}

/// What a module re-exports from other modules of the crate, by name.
fn reexports(
    path: &ModulePath,
    code: &str,
    paths: &BTreeSet<ModulePath>,
) -> BTreeMap<String, ModulePath> {
    let mut names = BTreeMap::new();
    for (is_reexport, tree, _) in use_items(code) {
        if !is_reexport {
            continue;
        }
        let mut leaves = Vec::new();
        expand_tree(&tree, &mut Vec::new(), &mut leaves);
        for leaf in leaves {
            let Some(absolute) = absolute_path(path, &leaf) else {
                continue;
            };
            let Some(name) = absolute.last().cloned() else {
                continue;
            };
            if let Some(module) = longest_module(&absolute, paths) {
                names.insert(name, module);
            }
        }
    }
    names
}

fn longest_module(path: &[String], paths: &BTreeSet<ModulePath>) -> Option<ModulePath> {
    (1..=path.len())
        .rev()
        .map(|length| path[..length].to_vec())
        .find(|prefix| paths.contains(prefix))
}

/// The module that defines what `path` names.
fn resolve(
    path: &[String],
    paths: &BTreeSet<ModulePath>,
    reexports: &BTreeMap<ModulePath, BTreeMap<String, ModulePath>>,
) -> Option<ModulePath> {
    let mut module = longest_module(path, paths)?;
    let mut name = path.get(module.len()).cloned();
    // A chain of re-exports is short; the bound is against a circle of them.
    for _ in 0..8 {
        let Some(next) = name
            .as_ref()
            .and_then(|name| reexports.get(&module)?.get(name))
        else {
            break;
        };
        if *next == module {
            break;
        }
        module.clone_from(next);
        if module.last() == name.as_ref() {
            name = None;
        }
    }
    Some(module)
}
