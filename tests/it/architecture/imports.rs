//! Reads the modules of `src` and their imports of each other.
//!
//! The reader works on text. It recognizes `use` trees, paths that begin with `crate::`, `super::`
//! or `self::`, and re-exports by `pub use`. It ignores test code, and paths that macros expand to.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A module's path below the crate, such as `["gateway", "http", "routes"]`; empty for `lib.rs`.
pub(super) type ModulePath = Vec<String>;

/// One source file that is a module of the crate.
pub(super) struct Module {
    /// The file, relative to the repository's root.
    pub(super) file: PathBuf,
    /// The text of the file with the same line numbers, without comments, the contents of strings,
    /// and test modules.
    pub(super) code: String,
    /// The modules that it imports. Re-exports do not count.
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

/// Appends the Rust and JavaScript files below `folder`, except built and installed files.
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
            .is_some_and(|extension| extension == "rs" || extension == "js" || extension == "mjs")
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
        } else if entry.extension().is_some_and(|extension| extension == "rs") && name != "main" {
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
    let push_blank =
        |output: &mut Vec<u8>, byte: u8| output.push(if byte == b'\n' { b'\n' } else { b' ' });
    while i < bytes.len() {
        let rest = &bytes[i..];
        if rest.starts_with(b"//") {
            while i < bytes.len() && bytes[i] != b'\n' {
                output.push(b' ');
                i += 1;
            }
        } else if rest.starts_with(b"/*") {
            let end = source[i..]
                .find("*/")
                .map_or(bytes.len(), |index| i + index + 2);
            while i < end {
                push_blank(&mut output, bytes[i]);
                i += 1;
            }
        } else if let Some(hashes) = raw_string_hashes(rest) {
            let closing = format!("\"{}", "#".repeat(hashes));
            let start = i + source[i..].find('"').unwrap() + 1;
            let end = source[start..]
                .find(&closing)
                .map_or(bytes.len(), |index| start + index + closing.len());
            while i < end {
                push_blank(&mut output, bytes[i]);
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
                    push_blank(&mut output, bytes[i]);
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

/// The length in bytes of a character literal that begins here. A lifetime is no literal.
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
    let mut search_start = 0;
    while let Some(index) = code[search_start..].find("#[cfg(test)]") {
        let start = search_start + index;
        let end = end_of_item(code, start);
        for byte in &mut output[start..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        search_start = end.max(start + 1);
    }
    String::from_utf8_lossy(&output).into_owned()
}

/// The end of the item that begins at `start`: the first `;` outside of braces, or the brace that
/// closes the first one.
fn end_of_item(code: &str, start: usize) -> usize {
    let mut depth = 0_i32;
    for (index, byte) in code.bytes().enumerate().skip(start) {
        match byte {
            b'{' => depth += 1,
            b'}' => {
                depth -= 1;
                if depth <= 0 {
                    return index + 1;
                }
            }
            b';' if depth == 0 => return index + 1,
            _ => {}
        }
    }
    code.len()
}

/// The paths in the code: those of `use` items, and qualified paths in expressions.
fn imported_paths(code: &str) -> Vec<Vec<String>> {
    let mut paths = Vec::new();
    let mut rest = code.to_owned();
    for (is_reexport, tree, range) in use_items(code) {
        rest.replace_range(range.clone(), &" ".repeat(range.len()));
        let mut leaves = Vec::new();
        expand_tree(&tree, &mut Vec::new(), &mut leaves);
        // A re-export offers an item of a child. It does not make the module depend on the child.
        if !is_reexport {
            paths.extend(leaves);
        }
    }
    let mut search_start = 0;
    while search_start < rest.len() {
        let Some(start) = ["crate::", "super::", "self::"]
            .iter()
            .filter_map(|prefix| rest[search_start..].find(prefix))
            .map(|index| search_start + index)
            .min()
        else {
            break;
        };
        let is_path_start = start == 0
            || !rest[..start]
                .ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':' || c == '$');
        let text: String = rest[start..]
            .chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_' || *c == ':')
            .collect();
        if is_path_start {
            paths.push(segments(&text));
        }
        search_start = start + text.len().max(1);
    }
    paths
}

fn segments(path: &str) -> Vec<String> {
    path.split("::")
        .map(|segment| segment.trim().trim_start_matches("r#").to_owned())
        .filter(|segment| !segment.is_empty())
        .collect()
}

/// For each `use` item: whether it is a re-export, its tree, and its range of bytes.
fn use_items(code: &str) -> Vec<(bool, String, std::ops::Range<usize>)> {
    let mut items = Vec::new();
    let mut search_start = 0;
    while let Some(index) = code[search_start..].find("use ") {
        let start = search_start + index;
        search_start = start + 4;
        let line_start = code[..start]
            .rfind(['\n', ';', '{', '}'])
            .map_or(0, |index| index + 1);
        let before = code[line_start..start].trim();
        let is_item = before.is_empty() || before.starts_with("pub") || before.ends_with(']');
        let Some(length) = code[start..].find(';') else {
            break;
        };
        if is_item {
            let is_reexport = before.contains("pub");
            items.push((
                is_reexport,
                code[start + 4..start + length].to_owned(),
                start..start + length,
            ));
            search_start = start + length;
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
        for (index, c) in inner.char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 0 => {
                    expand_tree(&inner[start..index], prefix, leaves);
                    start = index + 1;
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

/// The absolute form of a path in the module `from`, or `None` if the path has more `super` than
/// the module has parents.
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

/// The modules of the crate whose items a module re-exports, by the name of the re-export.
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
            if let Some(module) = longest_module_prefix(&absolute, paths) {
                names.insert(name, module);
            }
        }
    }
    names
}

/// The longest prefix of a path that is a module.
fn longest_module_prefix(path: &[String], paths: &BTreeSet<ModulePath>) -> Option<ModulePath> {
    (1..=path.len())
        .rev()
        .map(|length| path[..length].to_vec())
        .find(|prefix| paths.contains(prefix))
}

/// The module that defines the item at `path`.
fn resolve(
    path: &[String],
    paths: &BTreeSet<ModulePath>,
    reexports: &BTreeMap<ModulePath, BTreeMap<String, ModulePath>>,
) -> Option<ModulePath> {
    let mut module = longest_module_prefix(path, paths)?;
    let mut name = path.get(module.len()).cloned();
    // A chain of re-exports is short. The bound ends a circle of re-exports.
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
