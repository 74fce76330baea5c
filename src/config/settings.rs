//! The settings that hold: flag over environment over file over default, for every key alike.
//!
//! Each value remembers where it came from, and a bad one is refused under that name. A bad value in the
//! file is refused even where a flag overrides it: a file is right or wrong as a whole. Flags and
//! variables are handed in, never read here.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::config::file::ConfigFile;
use crate::config::key::{self, CONFIG_VARIABLE, KEYS, Key, RUST_LOG};
use crate::config::problem::{ConfigError, Problem, nearest};
use crate::config::value::{self, LogFormat};

/// The file that is taken from the current folder where none is named.
pub const FILE_DEFAULT: &str = "pacenote.toml";
/// Served on where nobody says.
pub const LISTEN_DEFAULT: &str = "127.0.0.1:7430";
/// Log filter where nobody says.
pub const LOG_DEFAULT: &str = "info";

/// What a server is told, and who said so.
#[derive(Clone, PartialEq, Debug)]
pub struct Settings {
    /// What everything behind the command line trusts.
    pub config: Config,
    /// HOST:PORT. [`super::listen::allowed`] says whether it may be served on.
    pub listen: String,
    /// Whether an address beyond loopback is allowed without keys and TLS.
    pub insecure: bool,
    /// Which records are logged: directives of tracing's `EnvFilter`, known to be valid.
    pub log: String,
    /// How they are written.
    pub log_format: LogFormat,
    /// The file that was read.
    pub file: Option<PathBuf>,
    /// What is odd but no reason to refuse, for people.
    pub warnings: Vec<String>,
    /// Where each value came from, by its path; what is missing is a default.
    origins: BTreeMap<String, Origin>,
}

/// What was said on the command line and in the environment.
#[derive(Clone, Default, Debug)]
pub struct Given {
    /// `--config`.
    pub file: Option<PathBuf>,
    /// The text of each flag that was given, by its key.
    pub flags: BTreeMap<&'static str, String>,
    /// The environment. An empty variable counts as not set: that is what `X=${Y:-}` means to say.
    pub environment: BTreeMap<String, OsString>,
}

/// Where a value came from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    /// The command line.
    Flag(String),
    /// A variable.
    Variable(String),
    /// A line of the file.
    File(String, usize),
    /// Nobody said anything.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => write!(f, "flag {flag}"),
            Self::Variable(name) => f.write_str(name),
            Self::File(name, line) => write!(f, "{name}:{line}"),
            Self::Default => f.write_str("default"),
        }
    }
}

impl Settings {
    /// Brings all sources together.
    ///
    /// # Errors
    /// Every problem that was found, each with its source.
    pub fn resolve(given: &Given) -> Result<Self, ConfigError> {
        let path = named_file(given)?;
        let (file, problems) = match &path {
            Some(path) => ConfigFile::read(path).map(|(file, problems)| (Some(file), problems))?,
            None => (None, Vec::new()),
        };
        let mut layers = Layers {
            given,
            file: file.as_ref(),
            problems,
            origins: BTreeMap::new(),
        };
        let mut settings = layers.settings();
        layers.check_paths(&settings.config);
        let (origins, problems) = (layers.origins, layers.problems);
        if !problems.is_empty() {
            return Err(ConfigError::new(problems));
        }
        settings.file = path;
        settings.warnings = unknown_variables(given);
        settings.origins.extend(origins);
        Ok(settings)
    }

    /// Where a value came from: `workers`, `job_types.thumbnail.queue`.
    pub fn origin(&self, path: &str) -> &Origin {
        self.origins.get(path).unwrap_or(&Origin::Default)
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            config: Config::default(),
            listen: LISTEN_DEFAULT.to_owned(),
            insecure: false,
            log: LOG_DEFAULT.to_owned(),
            log_format: LogFormat::default(),
            file: None,
            warnings: Vec::new(),
            origins: BTreeMap::new(),
        }
    }
}

/// The sources, nearest first, and what was found on the way through them.
struct Layers<'a> {
    given: &'a Given,
    file: Option<&'a ConfigFile>,
    problems: Vec<Problem>,
    origins: BTreeMap<String, Origin>,
}

impl Layers<'_> {
    fn settings(&mut self) -> Settings {
        let default = Settings::default();
        let config = self.config(&default.config);
        let mut settings = Settings {
            config,
            listen: self
                .pick(&key::LISTEN, value::listen)
                .unwrap_or(default.listen),
            insecure: self
                .pick(&key::INSECURE, value::switch)
                .unwrap_or(default.insecure),
            log: self
                .pick(&key::LOG, value::log_filter)
                .unwrap_or(default.log),
            log_format: self
                .pick(&key::LOG_FORMAT, |text| {
                    value::choice(text, &value::LOG_FORMATS)
                })
                .unwrap_or(default.log_format),
            ..Settings::default()
        };
        if let Some(file) = self.file {
            let origin = |line: &usize| Origin::File(file.source.name.clone(), *line);
            let of_types = file.lines.iter().filter(|(path, _)| path.contains('.'));
            settings.origins = of_types
                .map(|(path, line)| (path.clone(), origin(line)))
                .collect();
        }
        settings
    }

    fn config(&mut self, default: &Config) -> Config {
        let store = self.pick(&key::STORE, value::store);
        let checksum_root = self.pick(&key::CHECKSUM_ROOT, value::path);
        Config {
            store: self
                .placed(&key::STORE, store)
                .unwrap_or(default.store.clone()),
            workers: self
                .pick(&key::WORKERS, |text| value::count(text, value::WORKERS))
                .unwrap_or(default.workers),
            checksum_root: self
                .placed(&key::CHECKSUM_ROOT, checksum_root)
                .unwrap_or(default.checksum_root.clone()),
            log_bytes_max: self
                .pick(&key::LOG_BYTES_MAX, value::log_bytes)
                .unwrap_or(default.log_bytes_max),
            watchers_max: self
                .pick(&key::WATCHERS_MAX, |text| {
                    value::count(text, value::WATCHERS)
                })
                .unwrap_or(default.watchers_max),
            waiting_max: self
                .pick(&key::WAITING_MAX, |text| value::count(text, value::WAITING))
                .unwrap_or(default.waiting_max),
            drain_timeout: self
                .pick(&key::DRAIN_TIMEOUT, value::duration)
                .unwrap_or(default.drain_timeout),
            job_types: self
                .file
                .map(|file| file.job_types.clone())
                .unwrap_or_default(),
            queues: self
                .file
                .map(|file| file.queues.clone())
                .unwrap_or_default(),
            tenants: self
                .file
                .map(|file| file.tenants.clone())
                .unwrap_or_default(),
        }
    }

    /// The value of the nearest source that has one. `None` where none has, or where it was refused
    /// and collected.
    fn pick<T>(&mut self, key: &Key, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let in_file = self.in_file(key, &parse);
        let (origin, text) = match self.nearer_than_file(key) {
            Ok(Some(found)) => found,
            Ok(None) => return in_file,
            Err(problem) => {
                self.problems.push(problem);
                return None;
            }
        };
        match parse(&text) {
            Ok(value) => {
                self.origins.insert(key.name.to_owned(), origin);
                Some(value)
            }
            Err(why) => {
                self.problems.push(Problem::new(origin.to_string(), why));
                None
            }
        }
    }

    fn in_file<T>(&mut self, key: &Key, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let file = self.file?;
        let (text, span) = file.values.get(key.name)?;
        match parse(text) {
            Ok(value) => {
                let line = file.source.line_and_column(span.start).0;
                let origin = Origin::File(file.source.name.clone(), line);
                self.origins.insert(key.name.to_owned(), origin);
                Some(value)
            }
            Err(why) => {
                let message = format!("{}: {why}", key.name);
                self.problems
                    .push(Problem::at(&file.source, span.clone(), message));
                None
            }
        }
    }

    /// What a flag or a variable says.
    fn nearer_than_file(&self, key: &Key) -> Result<Option<(Origin, String)>, Problem> {
        if let Some(text) = self.given.flags.get(key.name) {
            return Ok(Some((Origin::Flag(key.flag()), text.clone())));
        }
        let mut names = vec![key.variable()];
        if *key == key::LOG {
            names.push(RUST_LOG.to_owned());
        }
        for name in names {
            if let Some(text) = variable(self.given, &name)? {
                return Ok(Some((Origin::Variable(name), text)));
            }
        }
        Ok(None)
    }

    /// A path of the file starts at the file's folder, any other at the current one.
    fn placed(&self, key: &Key, path: Option<PathBuf>) -> Option<PathBuf> {
        let file = self.file.map(|file| file.folder.as_path());
        match (self.origins.get(key.name), file) {
            (Some(Origin::File(..)), Some(folder)) => {
                path.map(|path| folder.join(path).components().collect())
            }
            _ => path,
        }
    }

    /// Refuses paths that cannot work, as far as that can be seen without touching anything.
    fn check_paths(&mut self, config: &Config) {
        let store_folder = match config.store.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let problems = [
            (&key::CHECKSUM_ROOT, folder_problem(&config.checksum_root)),
            (&key::STORE, folder_problem(store_folder)),
            (
                &key::STORE,
                config
                    .store
                    .is_dir()
                    .then(|| format!("{} is a folder", config.store.display())),
            ),
        ];
        for (key, why) in problems {
            let Some(why) = why else { continue };
            let problem = match self
                .file
                .and_then(|file| Some((file, file.values.get(key.name)?)))
            {
                Some((file, (_, span)))
                    if matches!(self.origins.get(key.name), Some(Origin::File(..))) =>
                {
                    Problem::at(&file.source, span.clone(), format!("{}: {why}", key.name))
                }
                _ => {
                    let origin = self.origins.get(key.name).unwrap_or(&Origin::Default);
                    Problem::new(origin.to_string(), format!("{}: {why}", key.name))
                }
            };
            self.problems.push(problem);
        }
    }
}

/// What is wrong with a path that has to lead to a folder.
fn folder_problem(path: &Path) -> Option<String> {
    match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => None,
        Ok(_) => Some(format!("{} is no folder", path.display())),
        Err(error) => Some(format!("{}: {error}", path.display())),
    }
}

/// The file to read: named by flag or variable, or the one in the current folder if there is one.
fn named_file(given: &Given) -> Result<Option<PathBuf>, ConfigError> {
    let missing = |place: &str, path: &Path| {
        let why = format!("there is no file {}", path.display());
        ConfigError::from(Problem::new(place, why))
    };
    let named = match (&given.file, variable(given, CONFIG_VARIABLE)?) {
        (Some(path), _) => Some(("flag --config", path.clone())),
        (None, Some(path)) => Some((CONFIG_VARIABLE, PathBuf::from(path))),
        (None, None) => None,
    };
    match named {
        // Whatever else is wrong with it is said by whoever reads it.
        Some((place, path)) if !path.exists() => Err(missing(place, &path)),
        Some((_, path)) => Ok(Some(path)),
        None => Ok(Some(PathBuf::from(FILE_DEFAULT)).filter(|path| path.exists())),
    }
}

/// A variable that is set and not empty.
fn variable(given: &Given, name: &str) -> Result<Option<String>, Problem> {
    match given.environment.get(name) {
        Some(value) if !value.is_empty() => match value.to_str() {
            Some(text) => Ok(Some(text.to_owned())),
            None => Err(Problem::new(name, "is not UTF-8 text")),
        },
        _ => Ok(None),
    }
}

/// Variables that look like a mistyped one of ours. No error: container platforms set variables of
/// their own that begin with a service's name.
fn unknown_variables(given: &Given) -> Vec<String> {
    let known: Vec<String> = KEYS
        .iter()
        .map(Key::variable)
        .chain([CONFIG_VARIABLE.to_owned()])
        .collect();
    let suffixes = || {
        known
            .iter()
            .filter_map(|name| name.strip_prefix("PACENOTE_"))
    };
    let suspect = |name: &String| {
        let suffix = name
            .strip_prefix("PACENOTE_")
            .filter(|_| !known.contains(name))?;
        let meant = nearest(suffix, suffixes())?;
        Some(format!(
            "{name} means nothing here; did you mean PACENOTE_{meant}?"
        ))
    };
    given.environment.keys().filter_map(suspect).collect()
}
