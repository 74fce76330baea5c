//! Checked names and ids: parsed at the edge, trusted inside.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;
use uuid::fmt::Hyphenated;

use crate::job::limits::NAME_BYTES_MAX;

/// A type, queue, label, stream or tenant name: 1 to 128 of `[A-Za-z0-9._/-]`, without leading,
/// trailing or double slash or `..`, so that it can stand in a path, a URL and a log line as it is.
/// Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(Arc<str>);

impl Name {
    /// Checks and takes a name.
    ///
    /// # Errors
    /// A sentence that says what is wrong with it and what is allowed.
    pub fn new(text: impl AsRef<str>) -> Result<Self, String> {
        let text = text.as_ref();
        if text.is_empty() {
            return Err("is required".to_owned());
        }
        if text.len() > NAME_BYTES_MAX {
            return Err(format!(
                "is {} bytes; at most {NAME_BYTES_MAX} are accepted",
                text.len()
            ));
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._/-".contains(c);
        if let Some(c) = text.chars().find(|c| !allowed(*c)) {
            return Err(format!(
                "has the character {c:?}; only A-Z a-z 0-9 . _ / - are accepted"
            ));
        }
        if text.starts_with('/') || text.ends_with('/') || text.contains("//") {
            return Err("has a leading, trailing or double slash".to_owned());
        }
        if text.contains("..") {
            return Err("has two dots in a row".to_owned());
        }
        Ok(Self(Arc::from(text)))
    }

    /// A name known to be valid when the program was written.
    ///
    /// # Panics
    /// Where it is not.
    pub fn of(text: &'static str) -> Self {
        Self::new(text).expect("a valid name in the source")
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl TryFrom<String> for Name {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::new(text)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0.as_ref().to_owned()
    }
}

/// The id of a job: a UUIDv7, written in lower case with hyphens.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct JobId(Uuid);

impl JobId {
    /// From a UUID.
    pub const fn new(id: Uuid) -> Self {
        Self(id)
    }

    /// Parses an id as it is written, or the same in upper case.
    ///
    /// # Errors
    /// A sentence that says what is expected.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("is required".to_owned());
        }
        // The crate also reads braces, `urn:uuid:` and no hyphens. All are of other lengths.
        if text.len() == Hyphenated::LENGTH
            && let Ok(id) = Uuid::parse_str(text)
        {
            return Ok(Self(id));
        }
        Err("is not a UUID with hyphens, such as 0198c0de-0000-7000-8000-000000000001".to_owned())
    }

    /// The UUID itself.
    pub const fn as_uuid(&self) -> &Uuid {
        &self.0
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl TryFrom<String> for JobId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text)
    }
}

impl From<JobId> for String {
    fn from(id: JobId) -> Self {
        id.to_string()
    }
}

/// The id of a batch of jobs: a UUIDv7, written in lower case with hyphens.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct BatchId(JobId);

impl BatchId {
    /// From a UUID.
    pub const fn new(id: Uuid) -> Self {
        Self(JobId::new(id))
    }

    /// Parses an id as it is written, or the same in upper case.
    ///
    /// # Errors
    /// A sentence that says what is expected.
    pub fn parse(text: &str) -> Result<Self, String> {
        JobId::parse(text).map(Self)
    }

    /// The UUID itself.
    pub const fn as_uuid(&self) -> &Uuid {
        self.0.as_uuid()
    }
}

impl fmt::Display for BatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Who owns what nobody else does: the one tenant there is until keys exist.
pub fn default_tenant() -> Name {
    Name::of("default")
}

/// Which job, and whose: every look-up takes both, so that one tenant can never reach another's.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct JobKey {
    /// Who owns it.
    pub tenant: Name,
    /// Which one.
    pub id: JobId,
}

/// Where claims look for work: one line of waiting jobs that can be blocked as a whole.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Lane {
    /// The queue.
    pub queue: Name,
    /// The job type.
    pub job_type: Name,
    /// The tenant.
    pub tenant: Name,
}

/// What jobs of one queue share that must not run at once, or only so many of them.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ConcurrencyKey {
    /// Who owns the jobs.
    pub tenant: Name,
    /// Where they wait.
    pub queue: Name,
    /// What the caller gave.
    pub key: Name,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_refused_with_the_bound_it_breaks() {
        let longest = "a".repeat(NAME_BYTES_MAX);
        assert!(Name::new(&longest).is_ok());
        for good in ["a", "A.b_c/d-9", "v1/thumbnail"] {
            assert!(Name::new(good).is_ok(), "{good}");
        }
        let too_long = "a".repeat(NAME_BYTES_MAX + 1);
        for (bad, why) in [
            ("", "required"),
            (too_long.as_str(), "129 bytes"),
            ("a b", "' '"),
            ("a\0", "'\\0'"),
            ("a\u{1b}[0m", "'\\u{1b}'"),
            ("ü", "'ü'"),
            ("/a", "slash"),
            ("a/", "slash"),
            ("a//b", "slash"),
            ("a..b", "two dots"),
        ] {
            let error = Name::new(bad).expect_err(bad);
            assert!(error.contains(why), "{bad:?}: {error}");
        }
    }

    #[test]
    fn an_id_is_taken_with_its_hyphens_and_in_no_other_form() {
        let text = "0198c0de-0000-7000-8000-00000000000a";
        let id = JobId::parse(text).expect("the form that Submit answers");
        assert_eq!(id.to_string(), text);
        assert_eq!(JobId::parse(&text.to_uppercase()), Ok(id));
        let json = format!("{text:?}");
        assert_eq!(serde_json::to_string(&id).expect("it is text"), json);
        assert_eq!(serde_json::from_str::<JobId>(&json).expect("an id"), id);
        for bad in [
            text.replace('-', ""),
            format!("{{{text}}}"),
            format!("urn:uuid:{text}"),
            format!(" {text}"),
            text.replace('-', "_"),
            text.replacen('-', "", 1) + "-",
            text.replace('a', "g"),
            text.replace('a', ""),
            text.replace("0a", "ä"),
        ] {
            let error = JobId::parse(&bad).expect_err(&bad);
            assert!(error.contains("such as 0198c0de-"), "{bad:?}: {error}");
            let json = format!("{bad:?}");
            assert!(serde_json::from_str::<JobId>(&json).is_err(), "{bad:?}");
        }
        assert_eq!(JobId::parse(""), Err("is required".to_owned()));
    }
}
