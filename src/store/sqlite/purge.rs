//! Removing what is over.

use sqlx::Row;

use crate::job::name::JobKey;
use crate::store::sqlite::write::Writer;
use crate::store::{Purge, Purged, StoreError};

/// `$1` tenant, `$2` id. Answers the lane and state that it was counted in; nothing where the job is
/// not there, or not finished.
pub(super) const DELETE_JOB: &str = "
delete from jobs
where tenant = $1 and id = $2 and state in ('succeeded', 'failed', 'cancelled', 'expired')
returning queue, job_type, state";

/// What stood beside a deleted job. `$1` tenant, `$2` id, `$3` queue, `$4` type, `$5` state.
const DELETE_THE_REST: &str = "
delete from payloads where tenant = $1 and job_id = $2;
delete from segments where tenant = $1 and job_id = $2;
update depths set jobs = jobs - 1
where tenant = $1 and queue = $3 and job_type = $4 and state = $5;
delete from depths
where tenant = $1 and queue = $3 and job_type = $4 and state = $5 and jobs = 0";

/// `$1` tenant, `$2` id, `$3` through which sequence. The last segment always stays.
pub(super) const DELETE_SEGMENTS: &str = "
delete from segments where tenant = $1 and job_id = $2 and last_sequence <= $3 and exists (
    select 1 from jobs j
    where j.tenant = $1 and j.id = $2 and j.state in ('succeeded', 'failed', 'cancelled', 'expired')
        and segments.last_sequence < j.last_sequence)";

const SET_FIRST_SEQUENCE: &str = "
update jobs set version = version + 1,
    first_sequence = (
        select min(first_sequence) from segments where tenant = $1 and job_id = $2)
where tenant = $1 and id = $2 returning first_sequence";

impl Writer {
    pub(super) async fn purge(&mut self, purges: Vec<Purge>) -> Result<Vec<Purged>, StoreError> {
        match self.purge_all(purges).await {
            Ok(purged) => Ok(purged),
            Err(error) => Err(self.roll_back(error).await),
        }
    }

    async fn purge_all(&mut self, purges: Vec<Purge>) -> Result<Vec<Purged>, sqlx::Error> {
        sqlx::query("begin immediate")
            .execute(&mut self.connection)
            .await?;
        let mut purged = Vec::with_capacity(purges.len());
        for purge in purges {
            purged.push(match purge {
                Purge::Job(key) => self.purge_job(key).await?,
                Purge::Events(key, through) => self.purge_events(key, through).await?,
            });
        }
        sqlx::query("commit").execute(&mut self.connection).await?;
        Ok(purged)
    }

    async fn purge_job(&mut self, key: JobKey) -> Result<Purged, sqlx::Error> {
        let id = key.id.as_uuid().as_bytes().to_vec();
        let deleted = sqlx::query(DELETE_JOB)
            .bind(key.tenant.to_string())
            .bind(id.clone())
            .fetch_optional(&mut self.connection)
            .await?;
        let Some(row) = deleted else {
            return Ok(Purged::Nothing);
        };
        sqlx::query(DELETE_THE_REST)
            .bind(key.tenant.to_string())
            .bind(id)
            .bind(row.try_get::<String, _>(0)?)
            .bind(row.try_get::<String, _>(1)?)
            .bind(row.try_get::<String, _>(2)?)
            .execute(&mut self.connection)
            .await?;
        Ok(Purged::Job(key))
    }

    async fn purge_events(&mut self, key: JobKey, through: i64) -> Result<Purged, sqlx::Error> {
        let id = key.id.as_uuid().as_bytes().to_vec();
        let deleted = sqlx::query(DELETE_SEGMENTS)
            .bind(key.tenant.to_string())
            .bind(id.clone())
            .bind(through)
            .execute(&mut self.connection)
            .await?;
        if deleted.rows_affected() == 0 {
            return Ok(Purged::Nothing);
        }
        let row = sqlx::query(SET_FIRST_SEQUENCE)
            .bind(key.tenant.to_string())
            .bind(id)
            .fetch_one(&mut self.connection)
            .await?;
        Ok(Purged::Events(key, row.try_get(0)?))
    }
}
