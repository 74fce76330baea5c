//! The lease protocol, looked through from end to end: one job, two workers, a client that cancels, a server
//! that is killed once, and a network that loses, doubles and reorders what is said.
//!
//! The rules are the server's own, [`Job::apply`](pacenote::job::Job::apply); what is between them is modelled
//! here, with abstract time. Whatever was said once may come at any time, any number of times, or never: so a
//! worker that is paused and comes back is one whose words come late, one that vanishes is one that says
//! nothing more, and nobody has to be told apart. Nothing here knows the store, or how the writer groups what
//! comes: `model` and the drills do.

mod promises;
mod server;

use std::collections::BTreeSet;

use stateright::{Checker, HasDiscoveries, Model, Property};

use self::promises::{name_of, promises, sights};
use self::server::{Answer, Effect, Handled, Rules, Server};
use crate::harness::count_of;

/// What a worker shows with everything that it tells of an attempt.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
struct Token {
    worker: u8,
    attempt: u32,
}

/// How an attempt ends.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum End {
    Done,
    Failed,
    Cancelled,
}

/// What is said to the server.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Word {
    Lease(u8),
    /// With its number; 0 is a heartbeat.
    Report(Token, u8),
    Finish(Token, End),
    Cancel,
}

/// A promise, and the property that is named after it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Rule {
    OneResult,
    OneLease,
    OneAtWork,
    AnOldFenceChangesNothing,
    TheHolderIsHeard,
    TerminalIsForEver,
    TheLogIsDense,
    ACancelHolds,
    AnEndToldAgainIsAnsweredAgain,
    ReportsAreStoredOnce,
    NoLeaseEndsEarly,
}

/// A bug to be found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Bug {
    FenceIsNotCompared,
    ReportNumberIsNotCompared,
    /// A start takes back a claim that was acknowledged, and its number is given to the next.
    FenceIsForgotten,
    /// A lost lease ends a CANCELLING attempt as if nobody had asked.
    CancelIsForgotten,
    EndIsNotRecognised,
    /// The end of a job may be told once more.
    EndIsNotForEver,
    LostLeaseIsRenewed,
    /// The sweeper ends what it saw, whatever came meanwhile.
    SweepTrustsItsLook,
    /// A start judges leases by the time that was stored.
    NoFreshTerm,
    RunningJobIsClaimed,
    /// A worker counts its term from the answer, not from when it asked.
    TermFromTheAnswer,
}

/// A worker, by its own clock.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Worker {
    Idle,
    /// Since so many ticks.
    Asks {
        age: u64,
        answer: Option<Answer>,
    },
    Works(Work),
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Work {
    attempt: u32,
    /// Ticks of its term that are left. At its end it stops.
    left: u64,
    /// Reports that were answered.
    told: u8,
    /// It knows of a cancel.
    cancel: bool,
    /// It is over, and only its end has to be told.
    end: Option<End>,
    call: Option<Call>,
}

/// A call whose answer has not come.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Call {
    word: Word,
    age: u64,
    answer: Option<Answer>,
}

#[derive(Clone, PartialEq, Hash, Debug)]
struct State {
    server: Server,
    /// All that was ever said.
    said: BTreeSet<Word>,
    workers: [Worker; 2],
    broken: Option<Rule>,
    /// Of the step that led here, where it is one to be seen.
    effect: Option<Effect>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Ask(u8),
    Say(u8, Word),
    /// Something that was said comes to the server.
    Come(Word),
    /// The newest answer comes to the worker.
    Hear(u8),
    /// A worker waits no longer for an answer.
    GiveUp(u8),
    LookForEndedLease,
    Sweep,
    Crash,
    Tick,
}

struct Protocol {
    rules: Rules,
    /// Attempts of the job.
    attempts: u32,
    /// Reports of an attempt.
    reports: u8,
}

impl Protocol {
    /// `PACENOTE_TEST_PROTOCOL` says how many ticks a lease has (1); from 2 on there is one more attempt.
    fn with(bug: Option<Bug>) -> Self {
        let term = count_of("PACENOTE_TEST_PROTOCOL", 1).max(1) as u64;
        Self {
            rules: Rules { bug, term },
            attempts: if term > 1 { 4 } else { 3 },
            reports: 1,
        }
    }

    fn term_left(&self, age: u64) -> u64 {
        match self.rules.bug {
            Some(Bug::TermFromTheAnswer) => self.rules.term,
            _ => self.rules.term.saturating_sub(age),
        }
    }

    fn words(&self, number: u8, worker: &Worker, attempt_now: u32, steps: &mut Vec<Step>) {
        let Worker::Works(work) = worker else { return };
        if work.call.is_some() {
            return;
        }
        let token = Token {
            worker: number,
            attempt: work.attempt,
        };
        let mut say = |word| steps.push(Step::Say(number, word));
        let mut finish = |end| say(Word::Finish(token, end));
        match work.end {
            Some(end) => finish(end),
            None => {
                finish(End::Done);
                // Others would say nothing new, and each makes every state several.
                if work.cancel {
                    finish(End::Cancelled);
                } else if attempt_now == 1 {
                    finish(End::Failed);
                }
                // A report renews its lease as a heartbeat does.
                let is_told = work.told == self.reports;
                say(Word::Report(token, if is_told { 0 } else { work.told + 1 }));
            }
        }
    }

    fn hear(&self, state: &mut State, word: Word) {
        let handled = self.rules.hear(&mut state.server, word);
        let (Word::Lease(worker)
        | Word::Report(Token { worker, .. }, _)
        | Word::Finish(Token { worker, .. }, _)) = word
        else {
            return state.take(handled);
        };
        match &mut state.workers[usize::from(worker)] {
            Worker::Asks { answer, .. } if matches!(word, Word::Lease(_)) => {
                *answer = handled.answer.or(*answer);
            }
            Worker::Works(Work {
                call: Some(call), ..
            }) if call.word == word => call.answer = handled.answer.or(call.answer),
            _ => {}
        }
        state.take(handled);
    }

    /// The answer that a worker waits for has come.
    fn answered(&self, worker: &mut Worker) -> Option<()> {
        match worker {
            Worker::Asks { age, answer } => {
                let Some(Answer::Leased { attempt }) = *answer else {
                    return None;
                };
                *worker = match self.term_left(*age) {
                    0 => Worker::Idle,
                    left => Worker::Works(Work {
                        attempt,
                        left,
                        told: 0,
                        cancel: false,
                        end: None,
                        call: None,
                    }),
                };
            }
            Worker::Works(work) => {
                let call = work.call.take()?;
                match (call.answer?, call.word) {
                    (Answer::Heard { cancel }, Word::Report(_, number)) => {
                        work.cancel |= cancel;
                        work.told = work.told.max(number);
                        work.left = work.left.max(self.term_left(call.age));
                    }
                    (Answer::Stale | Answer::Ended, _) => *worker = Worker::Idle,
                    (answer, word) => panic!("{answer:?} to {word:?}"),
                }
            }
            Worker::Idle => return None,
        }
        Some(())
    }

    fn tick(&self, state: &mut State) {
        self.rules.tick(&mut state.server);
        for worker in &mut state.workers {
            match worker {
                Worker::Idle => {}
                Worker::Asks { age, .. } => *age = (*age + 1).min(self.rules.term),
                Worker::Works(work) => {
                    work.left -= 1;
                    if let Some(call) = &mut work.call {
                        call.age = (call.age + 1).min(self.rules.term);
                    }
                    if work.left == 0 {
                        *worker = Worker::Idle;
                    }
                }
            }
        }
    }
}

impl State {
    /// What is said of attempts long gone says nothing new.
    fn forget(&mut self) {
        let newest = self.server.job.attempt;
        self.said.retain(|word| match word {
            Word::Report(token, 0) => token.attempt == newest,
            Word::Report(token, _) | Word::Finish(token, _) => token.attempt + 1 >= newest,
            Word::Lease(_) | Word::Cancel => true,
        });
        if self.server.job.state.is_terminal() {
            // Nobody's clock matters any more.
            self.workers = [Worker::Idle, Worker::Idle];
        }
    }

    fn take(&mut self, handled: Handled) {
        self.forget();
        self.effect = handled.effect;
        self.broken = handled.broken;
        let at_work = self.workers.iter().filter(|worker| match worker {
            Worker::Works(work) => work.end.is_none(),
            Worker::Idle | Worker::Asks { .. } => false,
        });
        if at_work.count() > 1 {
            self.broken.get_or_insert(Rule::OneAtWork);
        }
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            server: Rules::submitted(),
            said: BTreeSet::new(),
            workers: [Worker::Idle, Worker::Idle],
            broken: None,
            effect: None,
        }]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        // What is broken stays so; and what has an effect to be seen and nothing else goes on without it.
        if state.broken.is_some() || state.effect.is_some() {
            return;
        }
        let (server, rules) = (&state.server, &self.rules);
        steps.extend(state.said.iter().map(|word| Step::Come(*word)));
        // Whoever may ask may have asked long ago.
        steps.push(Step::Come(Word::Cancel));
        // Once it is over, what was said still comes; time, and what else could be said, change nothing.
        if server.job.state.is_terminal() {
            return;
        }
        for (number, worker) in (0..).zip(&state.workers) {
            self.words(number, worker, server.job.attempt, steps);
            if *worker != Worker::Idle {
                steps.extend([Step::Hear(number), Step::GiveUp(number)]);
            }
        }
        for (number, worker) in (0..).zip(&state.workers) {
            // Neither is special: the first to be given the job is the first.
            let may_ask = number == 0 || server.job.attempt > 0;
            if may_ask && server.job.attempt < self.attempts {
                steps.push(Step::Come(Word::Lease(number)));
                steps.extend((*worker == Worker::Idle).then_some(Step::Ask(number)));
            }
        }
        if rules.sees_ended_lease(server) {
            steps.push(Step::LookForEndedLease);
        }
        if rules.will_sweep(server) {
            steps.push(Step::Sweep);
        }
        if !server.crashed {
            steps.push(Step::Crash);
        }
        steps.push(Step::Tick);
    }

    fn next_state(&self, before: &State, step: Step) -> Option<State> {
        let mut state = before.clone();
        state.effect = None;
        match step {
            Step::Ask(number) => {
                state.workers[usize::from(number)] = Worker::Asks {
                    age: 0,
                    answer: None,
                };
            }
            Step::Say(number, word) => {
                state.said.insert(word);
                let Worker::Works(work) = &mut state.workers[usize::from(number)] else {
                    return None;
                };
                if let Word::Finish(_, end) = word {
                    work.end = Some(end);
                }
                work.call = Some(Call {
                    word,
                    age: 0,
                    answer: None,
                });
            }
            Step::Come(word) => {
                self.hear(&mut state, word);
            }
            Step::Hear(number) => {
                self.answered(&mut state.workers[usize::from(number)])?;
                state.take(Handled::nothing());
            }
            Step::GiveUp(number) => match &mut state.workers[usize::from(number)] {
                Worker::Works(work) => {
                    work.call.take()?;
                }
                asks => *asks = Worker::Idle,
            },
            Step::LookForEndedLease => self.rules.look_for_ended_lease(&mut state.server),
            Step::Sweep => {
                let handled = self.rules.sweep(&mut state.server);
                state.take(handled);
            }
            Step::Crash => {
                let handled = self.rules.crash(&mut state.server);
                state.take(handled);
            }
            Step::Tick => self.tick(&mut state),
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = promises();
        properties.extend(sights());
        properties
    }
}

/// Goal: the lease protocol keeps its promises in every order of events. Method: all of them. What could make
/// no difference is left out: a word of an attempt before the last one, a heartbeat of one that is over, and
/// what workers think once the job is.
#[test]
fn the_lease_protocol_keeps_its_promises_whatever_is_lost_doubled_or_killed() {
    let checked = Protocol::with(None).checker().threads(2).spawn_bfs().join();
    eprintln!(
        "{} states, {} of them different, {} steps deep",
        checked.state_count(),
        checked.unique_state_count(),
        checked.max_depth(),
    );
    checked.assert_properties();
}

/// Goal: a bug is found, and by the promise that it breaks.
fn assert_found(bug: Bug, rule: Rule) {
    let checker = Protocol::with(Some(bug)).checker();
    let checked = checker.finish_when(HasDiscoveries::AnyFailures).spawn_bfs();
    let checked = checked.join();
    let found = checked.assert_any_discovery(name_of(rule));
    eprintln!("{bug:?}: {:?}", found.into_actions());
}

macro_rules! every_bug_is_found {
    ($($name:ident: $bug:ident, $rule:ident;)*) => {
        $(
            #[test]
            fn $name() {
                assert_found(Bug::$bug, Rule::$rule);
            }
        )*
    };
}

every_bug_is_found! {
    a_fence_that_is_not_compared_is_found: FenceIsNotCompared, OneLease;
    a_report_number_that_is_not_compared_is_found: ReportNumberIsNotCompared, ReportsAreStoredOnce;
    a_fence_that_a_start_forgets_is_found: FenceIsForgotten, OneLease;
    a_cancel_that_is_forgotten_with_its_attempt_is_found: CancelIsForgotten, ACancelHolds;
    an_end_that_is_not_recognised_is_found: EndIsNotRecognised, AnEndToldAgainIsAnsweredAgain;
    an_end_that_is_not_for_ever_is_found: EndIsNotForEver, TerminalIsForEver;
    a_lost_lease_that_is_renewed_is_found: LostLeaseIsRenewed, AnOldFenceChangesNothing;
    a_sweep_that_trusts_its_look_is_found: SweepTrustsItsLook, NoLeaseEndsEarly;
    a_start_without_a_fresh_term_is_found: NoFreshTerm, NoLeaseEndsEarly;
    a_running_job_that_is_claimed_is_found: RunningJobIsClaimed, OneAtWork;
    a_term_that_is_counted_from_the_answer_is_found: TermFromTheAnswer, OneAtWork;
}
