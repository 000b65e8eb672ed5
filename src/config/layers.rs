//! Reads the sources of a configuration (defaults, file, `.env`, environment, flags) and merges
//! them with the `config` crate. Every value keeps its source.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use config::{FileFormat, Map, Source, Value as RawValue, ValueKind};

use super::error::Problem;
use super::keys::{self, Key};
use super::kind::{Kind, Value};
use super::{Role, dotenv};

/// Name of the source of a value that no other source sets.
pub(super) const DEFAULT_SOURCE: &str = "default";

/// A setting from the command line.
#[derive(Debug, Clone)]
pub struct Flag {
    /// The flag without its value, such as `--port`, for error texts.
    pub flag: String,
    /// The key or the variable of the setting.
    pub key: String,
    /// The value as text.
    pub value: String,
}

/// The sources of a configuration. A process uses [`Sources::from_process`]; tests build their own.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The TOML file (`--config`). If `None`, the variable `CHATMESH_CONFIG` may name a file.
    pub file: Option<PathBuf>,
    /// The `.env` file. It need not exist.
    pub dotenv: Option<PathBuf>,
    /// Environment variables.
    pub environment: Vec<(String, String)>,
    /// Flags in order; a later flag takes precedence over an earlier flag of the same setting.
    pub flags: Vec<Flag>,
}

impl Sources {
    /// The environment of this process, and `.env` in its working directory. Characters that are
    /// not UTF-8 are replaced.
    pub fn from_process(file: Option<PathBuf>, flags: Vec<Flag>) -> Self {
        let text = |os: std::ffi::OsString| os.to_string_lossy().into_owned();
        Self {
            file,
            dotenv: Some(PathBuf::from(".env")),
            environment: std::env::vars_os()
                .map(|(name, value)| (text(name), text(value)))
                .collect(),
            flags,
        }
    }
}

/// The values of one source, by dotted key.
#[derive(Debug, Clone, Default)]
struct Layer(BTreeMap<String, RawValue>);

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, RawValue>, config::ConfigError> {
        Ok(self.0.clone().into_iter().collect())
    }
}

/// The result of merging all sources.
#[derive(Debug, Default)]
pub(super) struct MergedLayers {
    /// The value of highest precedence, by key. A setting without value and default is absent.
    pub(super) values: BTreeMap<&'static str, RawValue>,
    /// What is wrong with the sources: files that can't be read, and keys that do not exist.
    pub(super) problems: Vec<Problem>,
    /// All variables of `.env` and the environment that are not empty: the value and its source, by
    /// name.
    pub(super) variables: BTreeMap<String, (String, String)>,
}

fn with_source(source: &str, kind: impl Into<ValueKind>) -> RawValue {
    RawValue::new(Some(&source.to_owned()), kind)
}

/// Reads the sources and merges them. A later source takes precedence: defaults, file, `.env`,
/// environment, flags.
pub(super) fn merge(role: Role, sources: &Sources) -> MergedLayers {
    let mut problems = Vec::new();
    let mut variables = BTreeMap::new();
    if let Some(path) = &sources.dotenv {
        let pairs = read_dotenv(path, &mut problems);
        add_variables(&mut variables, pairs, |name| {
            format!("{}, {name}", path.display())
        });
    }
    add_variables(&mut variables, sources.environment.clone(), |name| {
        format!("environment variable {name}")
    });

    let file = sources.file.clone().or_else(|| {
        let (path, _) = variables.get("CHATMESH_CONFIG")?;
        Some(PathBuf::from(path))
    });
    let layers = [
        default_layer(role),
        file.map_or_else(Layer::default, |path| file_layer(&path, &mut problems)),
        variable_layer(role, &variables, &mut problems),
        flag_layer(&sources.flags, &mut problems),
    ];
    let mut builder = config::Config::builder();
    for layer in layers {
        builder = builder.add_source(layer);
    }
    let table = builder.build().and_then(|config| config.collect());
    let table = table.unwrap_or_else(|error| {
        problems.push(Problem {
            key: "configuration".into(),
            source: "all sources".into(),
            text: error.to_string(),
        });
        Map::new()
    });
    let mut values = BTreeMap::new();
    for key in keys::TABLE {
        let (section, name) = key.name.split_once('.').unwrap_or((key.name, ""));
        if let Some(RawValue {
            kind: ValueKind::Table(section),
            ..
        }) = table.get(section)
            && let Some(value) = section.get(name)
        {
            values.insert(key.name, value.clone());
        }
    }
    MergedLayers {
        values,
        problems,
        variables,
    }
}

/// Inserts the variables in `pairs` that are not empty. They replace variables of the same name.
fn add_variables(
    variables: &mut BTreeMap<String, (String, String)>,
    pairs: Vec<(String, String)>,
    source: impl Fn(&str) -> String,
) {
    for (name, value) in pairs {
        if !value.trim().is_empty() {
            let source = source(&name);
            variables.insert(name, (value, source));
        }
    }
}

fn read_dotenv(path: &Path, problems: &mut Vec<Problem>) -> Vec<(String, String)> {
    let problem = |text: String| Problem {
        key: ".env".into(),
        source: path.display().to_string(),
        text,
    };
    match std::fs::read_to_string(path) {
        Ok(text) => {
            let (pairs, unclosed_quote) = dotenv::parse(&text);
            if let Some(line) = unclosed_quote {
                problems.push(problem(format!("line {line}: a quote is not closed")));
            }
            pairs
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => {
            problems.push(problem(format!("can't be read: {error}")));
            Vec::new()
        }
    }
}

fn default_layer(role: Role) -> Layer {
    let mut layer = Layer::default();
    for key in keys::TABLE {
        // Maps are left out: the default of every map is empty, and an empty table changes nothing
        // when it is merged.
        if let (Some(text), false) = (key.default_text(role), matches!(key.kind, Kind::Map)) {
            layer
                .0
                .insert(key.name.to_owned(), with_source(DEFAULT_SOURCE, text));
        }
    }
    layer
}

fn file_layer(path: &Path, problems: &mut Vec<Problem>) -> Layer {
    let source = format!("file {}", path.display());
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => {
            problems.push(Problem {
                key: "--config".into(),
                source,
                text: format!("can't be read: {error}"),
            });
            return Layer::default();
        }
    };
    let Ok(table) = config::File::from_str(&text, FileFormat::Toml).collect() else {
        problems.push(Problem {
            key: "--config".into(),
            source,
            text: format!("is not TOML: {}", describe_toml_error(&text)),
        });
        return Layer::default();
    };
    let mut layer = Layer::default();
    for (section, value) in table {
        let ValueKind::Table(entries) = value.kind else {
            problems.push(unknown_key(&section, &source));
            continue;
        };
        for (name, value) in entries {
            let name = format!("{section}.{name}");
            match keys::TABLE.iter().find(|key| key.name == name) {
                Some(key) => insert(&mut layer, key, &source, value.kind, problems),
                None => problems.push(unknown_key(&name, &source)),
            }
        }
    }
    layer
}

/// Describes the TOML error in `text` by line and reason. The parser's own report is not used,
/// because it prints the line, which may contain a password.
fn describe_toml_error(text: &str) -> String {
    let Err(error) = toml::from_str::<toml::Table>(text) else {
        return "a value has a type that settings do not have".to_owned();
    };
    let before = error.span().and_then(|span| text.get(..span.start));
    match before {
        Some(before) => format!(
            "line {}: {}",
            before.matches('\n').count() + 1,
            error.message()
        ),
        None => error.message().to_owned(),
    }
}

/// The values that variables set. A variable that begins with `CHATMESH_` and names no setting is a
/// problem.
fn variable_layer(
    role: Role,
    variables: &BTreeMap<String, (String, String)>,
    problems: &mut Vec<Problem>,
) -> Layer {
    let mut layer = Layer::default();
    let mut known_variables = vec!["CHATMESH_CONFIG".to_owned()];
    for key in keys::TABLE {
        let value_and_source = key.variables(role).find_map(|variable| {
            // The prefixed name is for hosts where the short name, such as PORT, has another
            // meaning.
            let prefixed = variables.get(&format!("CHATMESH_{variable}"));
            prefixed.or_else(|| variables.get(variable))
        });
        if let Some((value, source)) = value_and_source {
            let value = strip_quotes(key, value);
            insert(&mut layer, key, source, value.into(), problems);
        }
        let role_variables = key.role_variables.iter().map(|(_, variable)| *variable);
        let all_variables = role_variables.chain([key.variable]);
        known_variables.extend(all_variables.map(|variable| format!("CHATMESH_{variable}")));
    }
    let ignored = keys::IGNORED_VARIABLES.iter();
    known_variables.extend(ignored.map(|(variable, _, _)| format!("CHATMESH_{variable}")));
    known_variables.extend(keys::CHAT_VARIABLES.map(str::to_owned));
    for (name, (_, source)) in variables {
        if name.starts_with("CHATMESH_") && !known_variables.contains(name) {
            problems.push(unknown_key(name, source));
        }
    }
    layer
}

/// Removes the quotes that `docker run --env-file` leaves around a value. A secret keeps them,
/// because they may be part of it.
fn strip_quotes<'a>(key: &Key, value: &'a str) -> &'a str {
    let trimmed = value.trim();
    for quote in ['"', '\''] {
        let inner = trimmed
            .strip_prefix(quote)
            .and_then(|v| v.strip_suffix(quote));
        if let (Some(inner), false) = (inner, key.secret) {
            return inner;
        }
    }
    value
}

fn flag_layer(flags: &[Flag], problems: &mut Vec<Problem>) -> Layer {
    let mut layer = Layer::default();
    for Flag { flag, key, value } in flags {
        let source = format!("flag {flag}");
        match keys::find(key) {
            Some(key) => insert(&mut layer, key, &source, value.as_str().into(), problems),
            None => problems.push(unknown_key(key, &source)),
        }
    }
    layer
}

/// Inserts a value into a layer. An empty text is not inserted, unless the setting may be empty.
fn insert(
    layer: &mut Layer,
    key: &Key,
    source: &str,
    value: ValueKind,
    problems: &mut Vec<Problem>,
) {
    if let ValueKind::String(text) = &value
        && text.trim().is_empty()
        && !matches!(key.kind, Kind::TextOrEmpty)
    {
        return;
    }
    if !matches!(key.kind, Kind::Map) {
        layer
            .0
            .insert(key.name.to_owned(), with_source(source, value));
        return;
    }
    // A map becomes a table here, because the `config` crate merges tables of several layers entry
    // by entry.
    match key.kind.parse(&value) {
        Some(Value::Map(map)) => {
            let table: Map<String, RawValue> = map
                .into_iter()
                .map(|(name, value)| (name, with_source(source, value)))
                .collect();
            layer
                .0
                .insert(key.name.to_owned(), with_source(source, table));
        }
        _ => problems.push(Problem {
            key: key.name.into(),
            source: source.into(),
            text: format!("the value is not allowed; allowed: {}", key.kind.allowed()),
        }),
    }
}

/// The problem of a key or variable that does not exist, with the most similar name as a hint.
fn unknown_key(name: &str, source: &str) -> Problem {
    let variable = name.strip_prefix("CHATMESH_");
    let candidates = keys::TABLE.iter().map(|key| match variable {
        Some(_) => format!("CHATMESH_{}", key.variable),
        None => key.name.to_owned(),
    });
    let nearest = candidates.min_by_key(|candidate| edit_distance(name, candidate));
    let hint = match nearest.filter(|nearest| edit_distance(name, nearest) <= 3) {
        Some(nearest) => format!("did you mean {nearest}?"),
        None => "`chatmesh config default` lists all keys".to_owned(),
    };
    Problem {
        key: name.into(),
        source: source.into(),
        text: format!("there is no such key; {hint}"),
    }
}

/// The Levenshtein distance: how many characters must be inserted, removed or replaced.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
