//! Lease tokens: opaque, authenticated, and good for one attempt of one job.
//!
//! They say what the holder of a lease has to say to be heard: whose job, which attempt, who holds it and
//! for how long each renewal holds. So a worker of another program can be told from every other, and a
//! restart of the server changes nothing.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use crate::job::name::{JobId, JobKey, Name};
use crate::queue::Lease;

/// Bytes of the tag that a token begins with. Chosen: 128 bits are beyond guessing.
const TAG_BYTES: usize = 16;

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
    let mut bytes = tag(secret, &body).finalize().into_bytes()[..TAG_BYTES].to_vec();
    bytes.extend_from_slice(&body);
    URL_SAFE_NO_PAD.encode(bytes)
}

/// What a token says, where it was made here for this tenant.
///
/// # Errors
/// A sentence.
pub(super) fn parse(secret: &[u8; 32], tenant: &Name, token: &str) -> Result<Holder, String> {
    let wrong = || "is no lease token of this server".to_owned();
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| wrong())?;
    let (given, body) = bytes.split_at_checked(TAG_BYTES).ok_or_else(wrong)?;
    let tag = tag(secret, body);
    tag.verify_truncated_left(given).map_err(|_| wrong())?;
    let Written(of_tenant, id, attempt, worker_id, term) =
        serde_json::from_slice(body).map_err(|_| wrong())?;
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

fn tag(secret: &[u8; 32], body: &[u8]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("a key of any length can be used");
    mac.update(b"lease ");
    mac.update(body);
    mac
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

    #[test]
    fn no_forged_or_damaged_token_is_taken() {
        let (secret, tenant) = ([7; 32], Name::of("a"));
        let token = token(&secret, &holder("a"));
        for end in 0..token.len() {
            assert!(parse(&secret, &tenant, &token[..end]).is_err());
            let mut forged = token.clone().into_bytes();
            forged[end] = if forged[end] == b'A' { b'B' } else { b'A' };
            let forged = String::from_utf8(forged).expect("still text");
            assert_ne!(
                parse(&secret, &tenant, &forged),
                Ok(holder("a")),
                "{forged}"
            );
        }
        assert!(parse(&secret, &tenant, "ü").is_err());
    }
}
