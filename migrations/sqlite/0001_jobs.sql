-- Jobs, their payloads and their logs. Times are microseconds since the epoch, UTC, but for leases,
-- which are by the steady clock of the process that wrote them and mean nothing to another one.
--
-- No column checks its values against a list: SQLite builds a table of the list for every row written.

-- The narrow row: everything a claim, a filter or a guard looks at. Without rowid: its primary key is
-- also the order in which jobs are listed.
create table jobs (
    tenant text not null,
    id blob not null check (length(id) = 16),
    job_type text not null,
    queue text not null,
    state text not null,
    priority integer not null,
    run_at_us integer not null,
    attempt integer not null,
    attempts_charged integer not null,
    attempts_lost integer not null,
    lease_expires_at_us integer,
    stall_at_us integer,
    stalled_since_us integer,
    deadline_at_us integer,
    first_sequence integer not null,
    last_sequence integer not null,
    created_at_us integer not null,
    updated_at_us integer not null,
    ended_at_us integer,
    purge_at_us integer,
    events_purge_at_us integer,
    batch_id blob,
    concurrency_key text,
    unique_key blob,
    -- A blob: keys are any bytes, and JSON functions cut text at U+0000.
    idempotency_key blob,
    version integer not null,
    -- JSON. What else never changes, and what is shown but never searched.
    spec blob not null,
    detail blob not null,
    primary key (tenant, id)
) strict, without rowid;

-- Serves claims: begins with what can be blocked as a whole, so that no backlog costs another's claim.
-- The key says whether a job could be claimed, without a look at its row.
create index jobs_ready on jobs
    (queue, job_type, tenant, priority desc, run_at_us, id, concurrency_key)
    where state = 'queued';
-- Serves whoever makes room for the next jobs with a concurrency key, of each type the first, and whoever
-- gives a queue more room.
create index jobs_blocked on jobs
    (queue, tenant, concurrency_key, job_type, priority desc, run_at_us, id)
    where state = 'blocked';
-- Serves the timer of jobs that are not due yet.
create index jobs_scheduled on jobs (run_at_us) where state = 'scheduled';
-- Serves whoever ends what waits in a queue and is not yet to be claimed.
create index jobs_set_aside on jobs (tenant, queue, job_type, state, id)
    where state in ('scheduled', 'blocked');
-- Serves the timer of jobs that expire while they wait.
create index jobs_deadline on jobs (deadline_at_us) where deadline_at_us is not null;
-- Serves retention.
create index jobs_purge on jobs (purge_at_us) where purge_at_us is not null;
-- Serves retention of what came before the end: only jobs of types that ask for it are written here.
create index jobs_events_purge on jobs (events_purge_at_us) where events_purge_at_us is not null;
-- Serves the search for leases that ended, and for attempts that are silent.
create index jobs_leased on jobs (lease_expires_at_us) where state in ('running', 'cancelling');
-- Serves idempotent submits, and holds their promise: one job a key.
create unique index jobs_key on jobs (tenant, idempotency_key) where idempotency_key is not null;

-- Serves unique submits: the newest job of a place is the last one.
create index jobs_unique on jobs (tenant, job_type, unique_key, id) where unique_key is not null;
-- Serves them as well: whoever is not over has its place, be it the newest or not.
create index jobs_in_place on jobs (tenant, job_type, unique_key, id)
    where unique_key is not null and ended_at_us is null;
-- Serves looking at a batch.
create index jobs_batch on jobs (tenant, batch_id, id) where batch_id is not null;
-- Serves looking at what went wrong among however many jobs: only those that do are written here.
create index jobs_retryable on jobs (tenant, state, id)
    where state = 'failed' or state = 'cancelled' or state = 'expired';

-- Input, result and checkpoint, beside the narrow row, so that claiming and finishing dirty few pages.
create table payloads (
    tenant text not null,
    job_id blob not null,
    role text not null, -- input, result or checkpoint
    kind text not null, -- json, text or data
    media_type text,
    body blob not null,
    primary key (tenant, job_id, role)
) strict, without rowid;

-- The log: a row is a segment, the events that one job got in one commit, encoded as they are sent
-- (pacenote.v1.EventBatch). The key is the position of its first event, which orders the events of all
-- jobs and is never given twice.
create table segments (
    first_position integer primary key,
    tenant text not null,
    job_id blob not null,
    first_sequence integer not null,
    last_sequence integer not null check (last_sequence >= first_sequence),
    -- One byte an event: its kind.
    tags blob not null check (length(tags) = last_sequence - first_sequence + 1),
    body blob not null
) strict;

-- Serves reading a job's log in order, and holds that no sequence begins two segments.
create unique index segments_of_job on segments (tenant, job_id, first_sequence);

-- The highest position at which an event of a tenant was ever purged: whoever reads on from before it has
-- to be told that something is missing.
create table purged (
    tenant text primary key,
    position integer not null,
    -- How often: it rises with every purge, also with one further back.
    purges integer not null
) strict, without rowid;

-- Jobs that are gone and have left part of a long log: it goes in pieces, each a short transaction.
create table log_rests (
    tenant text not null,
    job_id blob not null,
    primary key (tenant, job_id)
) strict, without rowid;

-- How many jobs there are, by lane and state: exact at every commit, so that nothing is ever counted. No
-- row says zero: callers name the lanes, and would fill the table.
create table depths (
    tenant text not null,
    queue text not null,
    job_type text not null,
    state text not null,
    jobs integer not null,
    primary key (tenant, queue, job_type, state)
) strict, without rowid;

-- What was set while a server ran, and holds until it is set again: by what it is for and its name.
create table settings (
    kind text not null, -- queue or job_type
    name text not null,
    -- JSON.
    value blob not null,
    primary key (kind, name)
) strict, without rowid;

-- One value a name: the id of the store, the key of its tokens, the position of the next event as of the
-- last purge (what is still in the log is counted there).
create table meta (
    name text primary key,
    value any not null
) strict, without rowid;

insert into meta (name, value) values
    ('store_id', randomblob(16)),
    ('secret', randomblob(32)),
    ('next_position', 1);
