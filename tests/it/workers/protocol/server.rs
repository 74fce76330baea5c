//! The server's part of the model: the real rules behind an abstract store, and a look at each step that
//! says which promise it breaks.

use std::hash::{Hash, Hasher};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use pacenote::job::event::{EventKind, JobError, LogLevel, LogLine};
use pacenote::job::name::{JobId, JobKey, Name};
use pacenote::job::payload::Payload;
use pacenote::job::time::Timestamp;
use pacenote::job::{
    Applied, CancelCause, Change, Job, JobFields, JobSpec, JobState, NewJob, Outcome, Refusal,
    Report,
};
use uuid::Uuid;

use super::{Bug, End, Rule, Token, Word};

/// The unit of the steady clock. What counts is how often it beats, not how long it is.
const TICK: Duration = Duration::from_secs(1);
/// Where every server's steady clock begins that was started again: before the one that was killed, so that
/// a lease which is kept as it stands would hold for ever.
const STARTED: Timestamp = Timestamp::from_micros(1_000_000_000);
/// The wall clock, which nothing here depends on.
const WALL: Timestamp = Timestamp::from_micros(1_700_000_000_000_000);

/// One more than may be lost in a row, so that it is not the budget that ends a job nobody survives.
const ATTEMPTS: u32 = 4;

static SPEC: LazyLock<Arc<JobSpec>> = LazyLock::new(|| {
    let mut spec = JobSpec::of(Name::of("work"));
    spec.retry_policy.max_attempts = ATTEMPTS;
    Arc::new(spec)
});

/// What a step came to that is worth being seen once.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Effect {
    StaleFinishRefused,
    StaleReportRefused,
    EndAnsweredAgain,
    DoubledReportSkipped,
    SweepCameTooLate,
    CancelBeatAResult,
}

/// The job in its store, and what was promised about it.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Server {
    pub(super) job: Job,
    steady: Timestamp,
    /// What the sweeper saw when it looked last, and has not acted on.
    sweep: Option<(u32, Timestamp)>,
    pub(super) crashed: bool,
    /// The tokens that were given out, the newest last.
    given: Vec<Token>,
    /// The reports of the newest attempt that were stored, as bits.
    stored: u8,
    /// The newest end that was accepted.
    ended: Option<(Token, End)>,
    has_result: bool,
    /// The state in the answer to the first cancel.
    cancel: Option<JobState>,
    /// Ticks since the holder was heard last, or could not be.
    quiet: u64,
}

impl Hash for Server {
    fn hash<H: Hasher>(&self, hash: &mut H) {
        // Times only as they stand to each other, or time itself would make every state a new one.
        let left = |at: Timestamp| (at.as_micros() - self.steady.as_micros()).max(-1);
        let job = &self.job;
        (
            job.state,
            job.attempt,
            job.attempts_charged,
            job.attempts_lost,
        )
            .hash(hash);
        job.lease_expires_at.map(left).hash(hash);
        job.detail
            .remote_lease
            .map(|lease| lease.last_report)
            .hash(hash);
        let told = job.detail.told_end.as_ref();
        told.map(|told| (told.attempt, &told.fingerprint))
            .hash(hash);
        job.detail
            .error
            .as_ref()
            .map(|error| &error.reason)
            .hash(hash);
        let due = |before| job.lease_expires_at.is_some_and(|ends| ends < before);
        self.sweep
            .map(|(attempt, before)| (attempt, due(before)))
            .hash(hash);
        let promises = (&self.given, self.stored, self.ended, self.has_result);
        (promises, self.crashed, self.cancel, self.quiet).hash(hash);
    }
}

/// What the server answers to a word, and which promise it broke on the way.
pub(super) struct Handled {
    pub(super) answer: Option<Answer>,
    pub(super) broken: Option<Rule>,
    pub(super) effect: Option<Effect>,
}

impl Handled {
    pub(super) fn nothing() -> Self {
        Self {
            answer: None,
            broken: None,
            effect: None,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Answer {
    Leased { attempt: u32 },
    Heard { cancel: bool },
    Ended,
    Stale,
}

/// The rules, with or without a bug planted in front of them.
pub(super) struct Rules {
    pub(super) bug: Option<Bug>,
    pub(super) term: u64,
}

impl Rules {
    pub(super) fn submitted() -> Server {
        let key = JobKey {
            tenant: Name::of("default"),
            id: JobId::new(Uuid::from_u128(1)),
        };
        let spec = JobSpec::clone(&SPEC);
        let (job, _) = Job::submit(&NewJob::new(key, spec, None), WALL);
        Server {
            job,
            steady: STARTED,
            sweep: None,
            crashed: false,
            given: Vec::new(),
            stored: 0,
            ended: None,
            has_result: false,
            cancel: None,
            quiet: 0,
        }
    }

    fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    fn until(&self, server: &Server) -> Timestamp {
        server
            .steady
            .after(TICK * u32::try_from(self.term).expect("a few"))
    }

    pub(super) fn tick(&self, server: &mut Server) {
        server.steady = server.steady.after(TICK);
        server.quiet = (server.quiet + 1).min(self.term + 1);
    }

    /// Something that a program said has come. It may have come before.
    pub(super) fn hear(&self, server: &mut Server, word: Word) -> Handled {
        match word {
            Word::Lease(worker) => self.lease(server, worker),
            Word::Report(token, number) => self.report(server, token, number),
            Word::Finish(token, end) => self.finish(server, token, end),
            Word::Cancel => self.cancel(server),
        }
    }

    fn lease(&self, server: &mut Server, worker: u8) -> Handled {
        let before = server.job.clone();
        if self.has(Bug::RunningJobIsClaimed) && server.job.state == JobState::Running {
            bend(&mut server.job, |job| job.state = JobState::Queued);
        }
        let claimed = server.job.apply(
            Change::Claim {
                worker_id: worker.to_string(),
                heard_at: server.steady,
                lease_until: self.until(server),
                term: Some(TICK),
            },
            WALL,
        );
        let Ok(applied) = claimed else {
            server.job = before;
            return Handled::nothing();
        };
        let attempt = server.job.attempt;
        server.given.push(Token { worker, attempt });
        (server.stored, server.quiet) = (0, 0);
        Handled {
            answer: Some(Answer::Leased { attempt }),
            broken: self.look(server, &before, &applied),
            effect: None,
        }
    }

    fn report(&self, server: &mut Server, token: Token, number: u8) -> Handled {
        let before = server.job.clone();
        let told = self.told(server, token, number);
        let is_holder = server.is_holder(&before, token);
        let mut handled = self.judge(server, &before, token, &told);
        if let Ok(applied) = &told {
            let bit = 1 << number;
            let (was_stored, is_stored) = (server.stored & bit != 0, !applied.events.is_empty());
            if number > 0 && is_holder && was_stored == is_stored {
                handled.broken = handled.broken.or(Some(Rule::ReportsAreStoredOnce));
            }
            if was_stored && !is_stored {
                handled.effect = Some(Effect::DoubledReportSkipped);
            }
            server.stored |= if number > 0 { bit } else { 0 };
            let cancel = server.job.state == JobState::Cancelling;
            handled.answer = Some(Answer::Heard { cancel });
        } else {
            handled.effect = Some(Effect::StaleReportRefused);
        }
        handled
    }

    /// A report, or a heartbeat, on its way into the rules.
    fn told(&self, server: &mut Server, token: Token, number: u8) -> Result<Applied, Refusal> {
        let line = || Report::Log(LogLine::new(LogLevel::Info, "hello"));
        let job = &mut server.job;
        let is_late = job.state == JobState::Queued && job.attempt == token.attempt;
        if self.has(Bug::LostLeaseIsRenewed) && is_late {
            bend(job, |job| job.state = JobState::Running);
        }
        let attempt = self.fence(job, token);
        let counts = !self.has(Bug::ReportNumberIsNotCompared);
        let (heard_at, lease_until) = (server.steady, self.until(server));
        let report = Change::Report {
            attempt,
            reports: (number > 0).then(line).into_iter().collect(),
            heard_at,
            lease_until,
            number: if counts { i64::from(number) } else { 0 },
        };
        server.job.apply(report, WALL)
    }

    fn fence(&self, job: &Job, token: Token) -> u32 {
        match self.bug {
            Some(Bug::FenceIsNotCompared) => job.attempt,
            _ => token.attempt,
        }
    }

    fn finish(&self, server: &mut Server, token: Token, end: End) -> Handled {
        let before = server.job.clone();
        let job = &mut server.job;
        let is_over = job.state.is_terminal() && job.attempt == token.attempt;
        if is_over && self.has(Bug::EndIsNotForEver) {
            bend(job, |job| {
                job.state = JobState::Running;
                job.detail.told_end = None;
            });
        }
        if self.has(Bug::EndIsNotRecognised) {
            bend(job, |job| job.detail.told_end = None);
        }
        let finish = Change::Finish {
            attempt: self.fence(job, token),
            outcome: outcome(end),
            chance: 0.5,
            fingerprint: Some(format!("{end:?}")),
        };
        let finished = job.apply(finish, WALL);
        if finished.is_err() {
            server.job = before.clone();
        }
        let was_told = server.ended == Some((token, end));
        let mut handled = self.judge(server, &before, token, &finished);
        match finished {
            Ok(applied) if was_told => {
                let happened_again = !applied.events.is_empty();
                handled.broken = handled
                    .broken
                    .or(happened_again.then_some(Rule::AnEndToldAgainIsAnsweredAgain));
                handled.effect = Some(Effect::EndAnsweredAgain);
                handled.answer = Some(Answer::Ended);
            }
            Ok(applied) => {
                if applied.result.is_some() && std::mem::replace(&mut server.has_result, true) {
                    handled.broken = Some(Rule::OneResult);
                }
                if end == End::Done && server.job.state == JobState::Cancelled {
                    handled.effect = Some(Effect::CancelBeatAResult);
                    if applied.result.is_some() {
                        handled.broken = Some(Rule::ACancelHolds);
                    }
                }
                server.ended = Some((token, end));
                handled.answer = Some(Answer::Ended);
            }
            Err(_) if was_told => {
                handled.broken = Some(Rule::AnEndToldAgainIsAnsweredAgain);
            }
            Err(_) => {
                handled.effect = Some(Effect::StaleFinishRefused);
                handled.answer = Some(Answer::Stale);
            }
        }
        handled
    }

    fn cancel(&self, server: &mut Server) -> Handled {
        let before = server.job.clone();
        let cancel = Change::Cancel {
            cause: CancelCause::Requested,
            reason: String::new(),
            requested_by: String::new(),
        };
        let Ok(applied) = server.job.apply(cancel, WALL) else {
            return Handled {
                broken: Some(Rule::ACancelHolds),
                ..Handled::nothing()
            };
        };
        server.cancel.get_or_insert(server.job.state);
        Handled {
            broken: self.look(server, &before, &applied),
            ..Handled::nothing()
        }
    }

    /// Whether the sweeper would find something.
    pub(super) fn sees_ended_lease(&self, server: &Server) -> bool {
        let ends = server.job.lease_expires_at;
        server.sweep.is_none() && ends.is_some_and(|ends| ends < server.steady)
    }

    /// The sweeper looks, which it acts upon later.
    pub(super) fn look_for_ended_lease(&self, server: &mut Server) {
        server.sweep = Some((server.job.attempt, server.steady));
    }

    /// Whether the sweeper has seen something.
    pub(super) fn will_sweep(&self, server: &Server) -> bool {
        server.sweep.is_some()
    }

    /// It acts upon what it saw, which may not be so any more.
    pub(super) fn sweep(&self, server: &mut Server) -> Handled {
        let Some((attempt, mut before)) = server.sweep.take() else {
            return Handled::nothing();
        };
        let was = server.job.clone();
        if self.has(Bug::SweepTrustsItsLook) {
            before = Timestamp::from_micros(i64::MAX);
        }
        if self.has(Bug::CancelIsForgotten) && was.state == JobState::Cancelling {
            bend(&mut server.job, |job| job.state = JobState::Running);
        }
        match server.job.apply(Change::Lose { attempt, before }, WALL) {
            Ok(applied) => Handled {
                broken: self
                    .look(server, &was, &applied)
                    .or(self.is_too_soon(server)),
                ..Handled::nothing()
            },
            Err(_) => {
                server.job = was;
                Handled {
                    effect: Some(Effect::SweepCameTooLate),
                    ..Handled::nothing()
                }
            }
        }
    }

    fn is_too_soon(&self, server: &Server) -> Option<Rule> {
        (server.quiet <= self.term).then_some(Rule::NoLeaseEndsEarly)
    }

    /// kill -9, and a start on the same store. Leases of workers get a fresh full term.
    pub(super) fn crash(&self, server: &mut Server) -> Handled {
        let before = server.job.clone();
        (server.crashed, server.sweep) = (true, None);
        // Where the lease stood, by a clock that means nothing any more.
        server.steady = STARTED.before(TICK * 100);
        if self.has(Bug::NoFreshTerm) {
            server.steady = STARTED.after(TICK * 100);
        } else if self.has(Bug::FenceIsForgotten) && before.state == JobState::Running {
            bend(&mut server.job, |job| {
                job.state = JobState::Queued;
                job.attempt -= 1;
            });
        } else if before.state.is_leased() {
            let renewal = Change::Report {
                attempt: before.attempt,
                reports: Vec::new(),
                heard_at: server.steady,
                lease_until: self.until(server),
                number: 0,
            };
            if server.job.apply(renewal, WALL).is_err() {
                return Handled {
                    broken: Some(Rule::TheHolderIsHeard),
                    ..Handled::nothing()
                };
            }
        }
        server.quiet = 0;
        Handled::nothing()
    }

    /// What holds of everything that comes with a token.
    fn judge(
        &self,
        server: &mut Server,
        before: &Job,
        token: Token,
        result: &Result<Applied, Refusal>,
    ) -> Handled {
        let is_holder = server.is_holder(before, token);
        let broken = match result {
            Ok(applied) => {
                let has_changed = !applied.events.is_empty() || server.job != *before;
                let is_old = has_changed && !is_holder;
                if is_holder {
                    server.quiet = 0;
                }
                let looked = self.look(server, before, applied);
                looked.or(is_old.then_some(Rule::AnOldFenceChangesNothing))
            }
            Err(_) if is_holder => Some(Rule::TheHolderIsHeard),
            Err(_) if server.job != *before => Some(Rule::AnOldFenceChangesNothing),
            Err(_) => None,
        };
        Handled {
            broken,
            ..Handled::nothing()
        }
    }

    /// What holds of every step.
    fn look(&self, server: &Server, before: &Job, applied: &Applied) -> Option<Rule> {
        let job = &server.job;
        let ends = applied.events.iter().filter(|event| match &event.kind {
            EventKind::StateChange { to, .. } => to.is_terminal(),
            _ => false,
        });
        let moves = !applied.events.is_empty();
        let is_second_end = before.state.is_terminal() && (moves || job.state != before.state);
        let ends = ends.count();
        if is_second_end || ends != usize::from(job.state.is_terminal() && moves) {
            return Some(Rule::TerminalIsForEver);
        }
        let sequences = applied.events.iter().map(|event| event.sequence);
        if !sequences.eq(before.last_sequence + 1..=job.last_sequence) {
            return Some(Rule::TheLogIsDense);
        }
        let holds = match server.cancel {
            None => true,
            Some(JobState::Cancelling) => {
                matches!(job.state, JobState::Cancelling | JobState::Cancelled)
            }
            Some(state) => state.is_terminal() && job.state == state,
        };
        if !holds {
            return Some(Rule::ACancelHolds);
        }
        let live = server.given.iter().filter(|token| {
            // Whether it would be heard, if it spoke now.
            let mut server = server.clone();
            self.told(&mut server, **token, 0).is_ok()
        });
        (live.count() > 1).then_some(Rule::OneLease)
    }
}

impl Server {
    /// Whether a worker holds what the other has lost.
    pub(super) fn was_taken_over(&self) -> bool {
        let last_two = self.given.last_chunk::<2>();
        let is_other = last_two.is_some_and(|[old, new]| old.worker != new.worker);
        self.job.state.is_leased() && self.job.attempts_lost > 0 && is_other
    }

    /// Whether a token is that of the live lease.
    fn is_holder(&self, job: &Job, token: Token) -> bool {
        job.state.is_leased() && job.attempt == token.attempt && self.given.last() == Some(&token)
    }
}

fn outcome(end: End) -> Outcome {
    match end {
        End::Done => Outcome::Succeeded(Some(Payload::text("done"))),
        End::Failed => {
            let error = JobError::retryable("BROKEN", "it broke");
            Outcome::Failed(error.with_retry_after(Duration::ZERO))
        }
        End::Cancelled => Outcome::Cancelled,
    }
}

/// What no rule does: the way in for a planted bug.
fn bend(job: &mut Job, change: impl FnOnce(&mut JobFields)) {
    let mut fields = JobFields::clone(job);
    change(&mut fields);
    *job = Job::from_fields(fields);
}
