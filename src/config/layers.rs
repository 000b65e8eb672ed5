//! The layers under a configuration (defaults, file, `.env`, environment, flags), laid over each
//! other by the `config` crate, each value with its source.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use config::{FileFormat, Map, Source, Value as Raw, ValueKind};

use super::error::Problem;
use super::keys::{self, Key};
use super::kind::{Kind, Value};
use super::{Role, dotenv};

/// The source of a value that nobody set.
pub(super) const DEFAULT: &str = "default";

/// A value from the command line.
#[derive(Debug, Clone)]
pub struct Flag {
    /// As it was written, without its value: `--port`, `--set log.level`.
    pub flag: String,
    /// Key of the file, or name of the variable.
    pub key: String,
    /// As text.
    pub value: String,
}

/// Where a configuration comes from. Tests make their own; a process uses [`Sources::of_process`].
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// `--config`; without it `CHATMESH_CONFIG` is looked at.
    pub file: Option<PathBuf>,
    /// The `.env` file; nothing is read where it is missing.
    pub dotenv: Option<PathBuf>,
    /// The environment.
    pub environment: Vec<(String, String)>,
    /// Flags, in order; a later one wins.
    pub flags: Vec<Flag>,
}

impl Sources {
    /// The environment of this process and `.env` in its working directory. Variables that are
    /// not UTF-8 are read with replacement characters.
    pub fn of_process(file: Option<PathBuf>, flags: Vec<Flag>) -> Self {
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

/// A layer: dotted keys and values that know their source.
#[derive(Debug, Clone, Default)]
struct Layer(BTreeMap<String, Raw>);

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Raw>, config::ConfigError> {
        Ok(self.0.clone().into_iter().collect())
    }
}

/// What came out on top for each key, and what was wrong on the way.
#[derive(Debug, Default)]
pub(super) struct Merged {
    /// By key name; nothing where a key is unset and has no default.
    pub(super) values: BTreeMap<&'static str, Raw>,
    pub(super) problems: Vec<Problem>,
    /// Variables that were set, with their values and sources, `.env` and environment together.
    pub(super) variables: BTreeMap<String, (String, String)>,
}

fn raw(source: &str, kind: impl Into<ValueKind>) -> Raw {
    Raw::new(Some(&source.to_owned()), kind)
}

pub(super) fn merge(role: Role, sources: &Sources) -> Merged {
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
        defaults(role),
        file.map_or_else(Layer::default, |path| read_file(&path, &mut problems)),
        of_variables(role, &variables, &mut problems),
        of_flags(&sources.flags, &mut problems),
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
        if let Some(Raw {
            kind: ValueKind::Table(section),
            ..
        }) = table.get(section)
            && let Some(value) = section.get(name)
        {
            values.insert(key.name, value.clone());
        }
    }
    Merged {
        values,
        problems,
        variables,
    }
}

/// Adds what is not empty over what is there.
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
    let trouble = |text: String| Problem {
        key: ".env".into(),
        source: path.display().to_string(),
        text,
    };
    match std::fs::read_to_string(path) {
        Ok(text) => {
            let (pairs, unfinished) = dotenv::parse(&text);
            if let Some(line) = unfinished {
                problems.push(trouble(format!("line {line}: a quote has no end")));
            }
            pairs
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => {
            problems.push(trouble(format!("can't be read: {error}")));
            Vec::new()
        }
    }
}

fn defaults(role: Role) -> Layer {
    let mut layer = Layer::default();
    for key in keys::TABLE {
        // An empty table merges with nothing, so a map has no default to lay down.
        if let (Some(text), false) = (key.default_text(role), matches!(key.kind, Kind::Map)) {
            layer.0.insert(key.name.to_owned(), raw(DEFAULT, text));
        }
    }
    layer
}

fn read_file(path: &Path, problems: &mut Vec<Problem>) -> Layer {
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
            text: format!("is not TOML: {}", fault(&text)),
        });
        return Layer::default();
    };
    let mut layer = Layer::default();
    for (section, value) in table {
        let ValueKind::Table(entries) = value.kind else {
            problems.push(unknown(&section, &source));
            continue;
        };
        for (name, value) in entries {
            let name = format!("{section}.{name}");
            match keys::TABLE.iter().find(|key| key.name == name) {
                Some(key) => put(&mut layer, key, &source, value.kind, problems),
                None => problems.push(unknown(&name, &source)),
            }
        }
    }
    layer
}

/// What keeps a text from being TOML, and where. The parser's own report would print the line,
/// and with it perhaps a password.
fn fault(text: &str) -> String {
    let Err(error) = toml::from_str::<toml::Table>(text) else {
        return "a value is of a type that is not known here".to_owned();
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

fn of_variables(
    role: Role,
    variables: &BTreeMap<String, (String, String)>,
    problems: &mut Vec<Problem>,
) -> Layer {
    let mut layer = Layer::default();
    let mut ours = vec!["CHATMESH_CONFIG".to_owned()];
    for key in keys::TABLE {
        let mut taken = false;
        for var in key.vars(role) {
            // The long name is for hosts where something else owns the short one (PORT, HOST).
            let long = format!("CHATMESH_{var}");
            let found = variables.get(&long).or_else(|| variables.get(var));
            if let (Some((value, source)), false) = (found, taken) {
                let value = unwrapped(key, value);
                put(&mut layer, key, source, value.into(), problems);
                taken = true;
            }
        }
        let every = key.role_vars.iter().map(|(_, var)| *var);
        ours.extend(every.chain([key.var]).map(|var| format!("CHATMESH_{var}")));
    }
    ours.extend(
        keys::NOT_USED
            .iter()
            .map(|(var, _, _)| format!("CHATMESH_{var}")),
    );
    ours.extend(keys::OF_CHAT.map(str::to_owned));
    for (name, (_, source)) in variables {
        if name.starts_with("CHATMESH_") && !ours.contains(name) {
            problems.push(unknown(name, source));
        }
    }
    layer
}

/// Without the quotes that `docker run --env-file` leaves in place; a secret may have its own.
fn unwrapped<'a>(key: &Key, value: &'a str) -> &'a str {
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

fn of_flags(flags: &[Flag], problems: &mut Vec<Problem>) -> Layer {
    let mut layer = Layer::default();
    for Flag { flag, key, value } in flags {
        let source = format!("flag {flag}");
        match keys::find(key) {
            Some(key) => put(&mut layer, key, &source, value.as_str().into(), problems),
            None => problems.push(unknown(key, &source)),
        }
    }
    layer
}

/// Puts a value into a layer; an empty one counts as unset where empty is no value.
fn put(layer: &mut Layer, key: &Key, source: &str, value: ValueKind, problems: &mut Vec<Problem>) {
    if let ValueKind::String(text) = &value
        && text.trim().is_empty()
        && !matches!(key.kind, Kind::Prose)
    {
        return;
    }
    if !matches!(key.kind, Kind::Map) {
        layer.0.insert(key.name.to_owned(), raw(source, value));
        return;
    }
    // Tables are laid over each other name by name, so a map becomes one here already.
    match key.kind.read(&value) {
        Some(Value::Map(map)) => {
            let table: Map<String, Raw> = map
                .into_iter()
                .map(|(name, value)| (name, raw(source, value)))
                .collect();
            layer.0.insert(key.name.to_owned(), raw(source, table));
        }
        _ => problems.push(Problem {
            key: key.name.into(),
            source: source.into(),
            text: format!("the value is not allowed; allowed: {}", key.kind.allowed()),
        }),
    }
}

fn unknown(name: &str, source: &str) -> Problem {
    let variable = name.strip_prefix("CHATMESH_");
    let candidates = keys::TABLE.iter().map(|key| match variable {
        Some(_) => format!("CHATMESH_{}", key.var),
        None => key.name.to_owned(),
    });
    let nearest = candidates.min_by_key(|candidate| distance(name, candidate));
    let hint = match nearest.filter(|nearest| distance(name, nearest) <= 3) {
        Some(nearest) => format!("did you mean {nearest}?"),
        None => "`chatmesh config default` lists all keys".to_owned(),
    };
    Problem {
        key: name.into(),
        source: source.into(),
        text: format!("there is no such key; {hint}"),
    }
}

/// Levenshtein's.
fn distance(a: &str, b: &str) -> usize {
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
