//! Lease tokens: opaque, authenticated, and good for one attempt of one job.
//!
//! They say what the holder of a lease has to say to be heard: whose job, which attempt, who holds it and
//! for how long each renewal holds. So a worker of another program can be told from every other, and a
//! restart of the server changes nothing.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::job::name::{JobId, JobKey, Name};
use crate::queue::Lease;
use crate::queue::seal::Seal;

/// What a token says.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Holder {
    pub(super) lease: Lease,
    pub(super) worker_id: String,
    pub(super) term: Duration,
}

/// The same as it is written.
#[derive(Serialize, Deserialize)]
struct Written(Name, JobId, u32, String, u64);

/// The token of a lease.
pub(super) fn token(secret: &[u8; 32], holder: &Holder) -> String {
    let Lease { key, attempt } = &holder.lease;
    let term = u64::try_from(holder.term.as_millis()).unwrap_or(u64::MAX);
    let written = Written(
        key.tenant.clone(),
        key.id,
        *attempt,
        holder.worker_id.clone(),
        term,
    );
    let body = serde_json::to_vec(&written).expect("plain values are JSON");
    seal(secret).seal(&body)
}

/// What a token says, where it was made here for this tenant.
///
/// # Errors
/// A sentence.
pub(super) fn parse(secret: &[u8; 32], tenant: &Name, token: &str) -> Result<Holder, String> {
    let wrong = || "is no lease token of this server".to_owned();
    let body = seal(secret).open(token).ok_or_else(wrong)?;
    let Written(of_tenant, id, attempt, worker_id, term) =
        serde_json::from_slice(&body).map_err(|_| wrong())?;
    if of_tenant != *tenant {
        return Err(wrong());
    }
    let key = JobKey {
        tenant: of_tenant,
        id,
    };
    Ok(Holder {
        lease: Lease { key, attempt },
        worker_id,
        term: Duration::from_millis(term),
    })
}

fn seal(secret: &[u8; 32]) -> Seal {
    Seal::new(secret, "lease", b"")
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn holder(tenant: &'static str) -> Holder {
        Holder {
            lease: Lease {
                key: JobKey {
                    tenant: Name::of(tenant),
                    id: JobId::new(Uuid::from_u128(7)),
                },
                attempt: 3,
            },
            worker_id: "worker \"one\" é".to_owned(),
            term: Duration::from_millis(5_500),
        }
    }

    #[test]
    fn a_token_says_to_its_own_tenant_what_it_was_made_of() {
        let secret = [7; 32];
        let token = token(&secret, &holder("a"));
        assert_eq!(parse(&secret, &Name::of("a"), &token), Ok(holder("a")));
        assert!(parse(&secret, &Name::of("b"), &token).is_err());
        assert!(parse(&[8; 32], &Name::of("a"), &token).is_err());
    }
}
