//! A page of jobs, newest first: by whatever index leads to few of them, and a stretch at a time, so that
//! no statement is long however rare the jobs are that a filter lets through.

use std::sync::Arc;

use sqlx::query::Query;
use sqlx::sqlite::{Sqlite, SqliteArguments, SqliteRow};

use crate::job::name::JobId;
use crate::job::time::Timestamp;
use crate::job::{Job, JobState};
use crate::store::sqlite::read::JOB_OF_KEY;
use crate::store::sqlite::readers::Readers;
use crate::store::sqlite::rows::{self, job_columns};
use crate::store::{ListQuery, Listed, ReadError, StoreError};

/// Jobs of the first stretch; each one after it is four times as long. Chosen: most pages are full by then.
const STRETCH: usize = 256;

/// The columns, and what every way has in common. `$1` tenant; below `$2`, without which it begins above
/// every id, which is 16 bytes: a condition with `or` would read every newer job to reach an old page; and
/// not below `$3`.
macro_rules! from_jobs {
    ($index:literal) => {
        concat!(
            "select ",
            job_columns!(),
            " from jobs j ",
            $index,
            " where j.tenant = $1
                and j.id < coalesce($2, x'ffffffffffffffffffffffffffffffffff')
                and j.id >= coalesce($3, x'')"
        )
    };
}

/// Labels and reasons are looked for in the JSON as it is written, which finds all that there is, and, where
/// another member is written the same, more: whoever reads the rows looks again.
macro_rules! filters {
    () => {
        " and ($4 = '[]' or j.state in (select value from json_each($4)))
          and ($5 = '[]' or j.job_type in (select value from json_each($5)))
          and ($6 = '[]' or j.queue in (select value from json_each($6)))
          and ($9 is null or j.created_at_us >= $9)
          and ($10 is null or j.created_at_us < $10)
          and ($11 is null or j.ended_at_us >= $11)
          and ($12 is null or j.ended_at_us < $12)
          and ($13 = 0 or j.stalled_since_us is not null)
          and ($7 = '[]' or not exists (
              select 1 from json_each($7) l where instr(j.spec, cast(l.value as blob)) = 0))
          and ($8 = '[]' or exists (
              select 1 from json_each($8) r where instr(j.detail, cast(r.value as blob)) > 0))
          order by j.id desc limit $14 + 0"
    };
}

/// The id that ends a stretch: that of the job with so many before it. `$3` how many.
macro_rules! end_of_stretch {
    ($index:literal, $which:literal) => {
        concat!(
            "select j.id from jobs j ",
            $index,
            " where j.tenant = $1
                and j.id < coalesce($2, x'ffffffffffffffffffffffffffffffffff')",
            $which,
            " order by j.id desc limit 1 offset $3 + 0"
        )
    };
}

/// By the primary key, backwards.
pub(super) const ALL: &str = concat!(from_jobs!(""), filters!());
pub(super) const ALL_END: &str = end_of_stretch!("", "");

/// Of the batch `$15`.
pub(super) const BATCH: &str = concat!(
    from_jobs!("indexed by jobs_batch"),
    " and j.batch_id = $15",
    filters!()
);
pub(super) const BATCH_END: &str = end_of_stretch!("indexed by jobs_batch", " and j.batch_id = $4");

/// In the state `$15`, which is one of three.
pub(super) const RETRYABLE: &str = concat!(
    from_jobs!("indexed by jobs_retryable"),
    " and j.state = $15 and (j.state = 'failed' or j.state = 'cancelled' or j.state = 'expired')",
    filters!()
);
pub(super) const RETRYABLE_END: &str = end_of_stretch!(
    "indexed by jobs_retryable",
    " and j.state = $4 and (j.state = 'failed' or j.state = 'cancelled' or j.state = 'expired')"
);

/// With a living attempt. There are never many: all of them are looked at, and sorted.
pub(super) const LEASED: &str = concat!(
    from_jobs!("indexed by jobs_leased"),
    " and j.state in ('running', 'cancelling')",
    filters!()
);

/// How to come by jobs, newest first.
#[derive(Clone, Copy)]
enum Way {
    All,
    Batch,
    Retryable(JobState),
    Leased,
}

impl Way {
    /// Those that together lead to all that a query wants, and to as little else as there is an index for.
    fn all_of(query: &ListQuery) -> Vec<Self> {
        let states = &query.states;
        let only =
            |is: fn(JobState) -> bool| !states.is_empty() && states.iter().all(|state| is(*state));
        if query.batch_id.is_some() {
            vec![Self::Batch]
        } else if query.stalled_only || only(JobState::is_leased) {
            vec![Self::Leased]
        } else if only(JobState::is_retryable) {
            states.iter().copied().map(Self::Retryable).collect()
        } else {
            vec![Self::All]
        }
    }

    fn page_sql(self) -> &'static str {
        match self {
            Self::All => ALL,
            Self::Batch => BATCH,
            Self::Retryable(_) => RETRYABLE,
            Self::Leased => LEASED,
        }
    }

    /// `None` where all of them are one stretch.
    fn end_sql(self) -> Option<&'static str> {
        match self {
            Self::All => Some(ALL_END),
            Self::Batch => Some(BATCH_END),
            Self::Retryable(_) => Some(RETRYABLE_END),
            Self::Leased => None,
        }
    }

    /// What the way itself needs to know.
    fn bind<'q>(
        self,
        sql: Query<'q, Sqlite, SqliteArguments>,
        query: &ListQuery,
    ) -> Query<'q, Sqlite, SqliteArguments> {
        match self {
            Self::Batch => sql.bind(query.batch_id.map(|id| id.as_uuid().as_bytes().to_vec())),
            Self::Retryable(state) => sql.bind(state.as_str()),
            Self::All | Self::Leased => sql,
        }
    }
}

pub(super) async fn list(readers: &Readers, query: &ListQuery) -> Result<Listed, ReadError> {
    if let Some(key) = &query.idempotency_key {
        let select = sqlx::query(JOB_OF_KEY)
            .bind(query.tenant.as_str())
            .bind(key.as_bytes());
        let mut found = jobs(&readers.all(select).await?)?;
        found.retain(|job| query.admits(job));
        found.truncate(query.limit);
        return Ok(Listed {
            jobs: found,
            through: None,
        });
    }
    let mut search = Search {
        readers,
        query,
        ways: Way::all_of(query),
        filter: Filter::of(query),
        found: Vec::new(),
        before: query.before_id,
    };
    let (mut left, mut stretch) = (query.rows, STRETCH.max(query.limit));
    while search.found.len() < query.limit && left > 0 {
        let rows = stretch.min(left);
        match search.look_at(rows).await {
            Ok(true) => {}
            Ok(false) => {
                return Ok(Listed {
                    jobs: search.found,
                    through: None,
                });
            }
            // What was found so far is an answer, too.
            Err(ReadError::TooLong) if search.before != query.before_id => break,
            Err(error) => return Err(error),
        }
        left -= rows;
        stretch = stretch.saturating_mul(4);
    }
    Ok(Listed {
        jobs: search.found,
        through: search.before,
    })
}

/// A list on its way down.
struct Search<'a> {
    readers: &'a Readers,
    query: &'a ListQuery,
    ways: Vec<Way>,
    filter: Filter,
    found: Vec<Arc<Job>>,
    /// Every job from this one up was looked at.
    before: Option<JobId>,
}

impl Search<'_> {
    /// Looks at about so many jobs. Answers whether there may be more below them.
    async fn look_at(&mut self, rows: usize) -> Result<bool, ReadError> {
        let each = (rows / self.ways.len()).max(1);
        let mut end = None;
        // The shortest of the stretches is the one that all ways have been through.
        for way in &self.ways {
            end = end.max(self.end_of_stretch(*way, each).await?);
        }
        let limit = self.query.limit - self.found.len();
        let mut found = Vec::new();
        for way in &self.ways {
            found.extend(self.page(*way, end, limit).await?);
        }
        found.sort_unstable_by_key(|job| std::cmp::Reverse(job.key.id));
        found.truncate(limit);
        // Where there was room for no more, what is below the last one was not looked at.
        let last = (found.len() == limit).then(|| found.last()).flatten();
        let through = last.map(|job| job.key.id).or(end);
        self.before = through.or(self.before);
        found.retain(|job| self.query.admits(job));
        self.found.extend(found);
        Ok(through.is_some())
    }

    /// The job that has so many before it; `None` where there are not so many, or where nothing bounds them
    /// but the page itself.
    async fn end_of_stretch(&self, way: Way, rows: usize) -> Result<Option<JobId>, ReadError> {
        let Some(sql) = way.end_sql().filter(|_| !self.filter.is_empty()) else {
            return Ok(None);
        };
        let select = sqlx::query(sql)
            .bind(self.query.tenant.as_str())
            .bind(bytes_of(self.before))
            .bind(i64::try_from(rows - 1).unwrap_or(i64::MAX));
        let select = way.bind(select, self.query);
        let rows = self.readers.all_of_long(select).await?;
        let id = rows.first().map(|row| rows::job_id(rows::blob(row, 0)?));
        Ok(id.transpose()?)
    }

    async fn page(
        &self,
        way: Way,
        end: Option<JobId>,
        limit: usize,
    ) -> Result<Vec<Arc<Job>>, ReadError> {
        let (query, filter) = (self.query, &self.filter);
        let select = sqlx::query(way.page_sql())
            .bind(query.tenant.as_str())
            .bind(bytes_of(self.before))
            .bind(bytes_of(end))
            .bind(filter.states.as_str())
            .bind(filter.types.as_str())
            .bind(filter.queues.as_str())
            .bind(filter.labels.as_str())
            .bind(filter.reasons.as_str())
            .bind(query.created_after.map(Timestamp::as_micros))
            .bind(query.created_before.map(Timestamp::as_micros))
            .bind(query.ended_after.map(Timestamp::as_micros))
            .bind(query.ended_before.map(Timestamp::as_micros))
            .bind(query.stalled_only)
            .bind(i64::try_from(limit).unwrap_or(i64::MAX));
        let select = way.bind(select, query);
        Ok(jobs(&self.readers.all_of_long(select).await?)?)
    }
}

/// A query's lists as JSON.
struct Filter {
    states: String,
    types: String,
    queues: String,
    labels: String,
    reasons: String,
    has_times: bool,
}

impl Filter {
    fn of(query: &ListQuery) -> Self {
        let states: Vec<&str> = query.states.iter().map(|state| state.as_str()).collect();
        let labels = query.labels.iter();
        let labels: Vec<String> = labels.map(|(name, value)| member(name, value)).collect();
        let reasons = query.reasons.iter();
        let reasons: Vec<String> = reasons.map(|reason| member("reason", reason)).collect();
        let times = [
            query.created_after,
            query.created_before,
            query.ended_after,
            query.ended_before,
        ];
        Self {
            states: json(&states),
            types: json(&query.types),
            queues: json(&query.queues),
            labels: json(&labels),
            reasons: json(&reasons),
            has_times: times.iter().any(Option::is_some),
        }
    }

    /// Lets everything through.
    fn is_empty(&self) -> bool {
        let lists = [
            &self.states,
            &self.types,
            &self.queues,
            &self.labels,
            &self.reasons,
        ];
        !self.has_times && lists.iter().all(|list| *list == "[]")
    }
}

/// A member of an object, as the columns of JSON have it.
fn member(name: &str, value: &str) -> String {
    format!("{}:{}", json(&name), json(&value))
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("texts are JSON")
}

fn bytes_of(id: Option<JobId>) -> Option<Vec<u8>> {
    id.map(|id| id.as_uuid().as_bytes().to_vec())
}

fn jobs(rows: &[SqliteRow]) -> Result<Vec<Arc<Job>>, StoreError> {
    rows.iter()
        .map(|row| rows::job(row).map(Arc::new))
        .collect()
}
