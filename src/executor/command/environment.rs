//! What a program sees of its surroundings: a small environment, and which file its name means.
//!
//! The server's own environment, secrets included, is not inherited: only what programs commonly need.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::Access;

/// What is taken over from the server's own environment.
const INHERITED: [&str; 9] = [
    "PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR",
];
/// Where programs are looked up when nobody says.
const PATH_DEFAULT: &str = "/usr/local/bin:/usr/bin:/bin";
/// Where a program writes its events; also how its processes are recognised.
pub(super) const EVENTS_VARIABLE: &str = "PACENOTE_EVENTS";

/// A child's environment, complete.
pub(super) type Environment = BTreeMap<OsString, OsString>;

/// The environment that every attempt of a type has: inherited by name, then the type's own.
pub(super) fn of_type(own: &BTreeMap<String, String>) -> Environment {
    let mut environment: Environment = INHERITED
        .iter()
        .filter_map(|name| Some((OsString::from(name), std::env::var_os(name)?)))
        .collect();
    environment
        .entry(OsString::from("PATH"))
        .or_insert_with(|| OsString::from(PATH_DEFAULT));
    // Programs in Python would otherwise hold their output back until they end.
    environment.insert("PYTHONUNBUFFERED".into(), "1".into());
    let own = own.iter().map(|(name, value)| (name.into(), value.into()));
    environment.extend(own);
    environment
}

/// Checks the type's own variables.
///
/// # Errors
/// A sentence that names the variable.
pub(super) fn check(own: &BTreeMap<String, String>) -> Result<(), String> {
    for (name, value) in own {
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(format!(
                "env has the name {name:?}, which no environment can hold"
            ));
        }
        if value.contains('\0') {
            return Err(format!(
                "env.{name} has a NUL character; no environment can hold one"
            ));
        }
        if name.starts_with("PACENOTE_") {
            return Err(format!(
                "env.{name}: names that begin with PACENOTE_ are the server's own"
            ));
        }
    }
    Ok(())
}

/// The file that a program's name means: looked up in the child's `PATH`, or relative to its working
/// folder where it has a slash.
///
/// # Errors
/// Not found, with where it was looked for.
pub(super) fn find_program(
    name: &str,
    environment: &Environment,
    dir: &Path,
) -> io::Result<PathBuf> {
    if name.contains('/') {
        return Ok(dir.join(name));
    }
    let path = environment
        .get(OsStr::new("PATH"))
        .map_or(OsStr::new(PATH_DEFAULT), OsString::as_os_str);
    let mut without_permission = None;
    for folder in std::env::split_paths(path) {
        let candidate = dir.join(folder).join(name);
        if candidate.is_file() {
            if rustix::fs::access(&candidate, Access::EXEC_OK).is_ok() {
                return Ok(candidate);
            }
            without_permission.get_or_insert(candidate);
        }
    }
    without_permission.ok_or_else(|| {
        let message = format!(
            "{name:?} is in no folder of PATH ({})",
            path.to_string_lossy()
        );
        io::Error::new(io::ErrorKind::NotFound, message)
    })
}
