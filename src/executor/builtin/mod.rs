//! The job types that every server has: `sleep`, and `checksum` of the files under one folder.
//!
//! Both are ordinary handlers. `checksum` reads what its root holds and nothing else: no `..`, no
//! absolute path elsewhere, and no symbolic link is followed, whatever is exchanged while it walks.

mod checksum;
mod sleep;

pub use crate::executor::builtin::checksum::checksum;
pub use crate::executor::builtin::sleep::sleep;
