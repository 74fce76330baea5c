//! Page tokens: opaque, authenticated, and good for one tenant and one filter only.

use uuid::Uuid;

use crate::job::name::{JobId, Name};
use crate::queue::seal::Seal;
use crate::store::ListQuery;

/// The token that goes on behind a job.
pub(super) fn token(secret: &[u8; 32], query: &ListQuery, last: JobId) -> String {
    seal(secret, query).seal(last.as_uuid().as_bytes())
}

/// Where a token goes on.
///
/// # Errors
/// A sentence, where it was not made here for this tenant and filter.
pub(super) fn parse(secret: &[u8; 32], query: &ListQuery, token: &str) -> Result<JobId, String> {
    let id = seal(secret, query).open(token);
    let id = id.and_then(|id| Uuid::from_slice(&id).ok()).map(JobId::new);
    id.ok_or_else(|| "was not made for this filter by this server".to_owned())
}

fn seal(secret: &[u8; 32], query: &ListQuery) -> Seal {
    // The page's size may change from page to page; everything else is part of the filter.
    let filter = ListQuery {
        before_id: None,
        limit: 0,
        rows: 0,
        ..query.clone()
    };
    Seal::new(secret, "page", format!("{filter:?}").as_bytes())
}

/// The token that goes on behind a queue.
pub(super) fn name_token(secret: &[u8; 32], tenant: &Name, last: &Name) -> String {
    name_seal(secret, tenant).seal(last.as_str().as_bytes())
}

/// Behind which queue a token goes on.
///
/// # Errors
/// A sentence, where it was not made here for this tenant.
pub(super) fn parse_name(secret: &[u8; 32], tenant: &Name, token: &str) -> Result<Name, String> {
    let name = name_seal(secret, tenant).open(token);
    let name = name.and_then(|name| String::from_utf8(name).ok());
    let name = name.and_then(|name| Name::new(name).ok());
    name.ok_or_else(|| "was not made for this list by this server".to_owned())
}

fn name_seal(secret: &[u8; 32], tenant: &Name) -> Seal {
    Seal::new(secret, "queues", tenant.as_str().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::JobState;

    fn query(tenant: &'static str) -> ListQuery {
        ListQuery::all(Name::of(tenant))
    }

    #[test]
    fn a_token_is_good_for_its_own_tenant_and_filter_only() {
        let secret = [7; 32];
        let last = JobId::new(Uuid::from_u128(1));
        let token = token(&secret, &query("a"), last);
        let next_page = ListQuery {
            limit: 9,
            ..query("a")
        };
        assert_eq!(parse(&secret, &next_page, &token), Ok(last));
        let other_filter = ListQuery {
            states: vec![JobState::Failed],
            ..query("a")
        };
        assert!(parse(&secret, &other_filter, &token).is_err());
        assert!(parse(&secret, &query("b"), &token).is_err());
        assert!(parse(&[8; 32], &query("a"), &token).is_err());
    }

    #[test]
    fn a_token_of_queues_is_good_for_its_own_tenant_and_as_it_was_made() {
        let (secret, tenant, name) = ([7; 32], Name::of("a"), Name::of("reports/daily"));
        let token = name_token(&secret, &tenant, &name);
        assert_eq!(parse_name(&secret, &tenant, &token), Ok(name));
        assert!(parse_name(&secret, &Name::of("b"), &token).is_err());
        assert!(parse_name(&[8; 32], &tenant, &token).is_err());
    }
}
