//! Drills: the real binary, workers in processes of their own, and everything between them that can fail:
//! networks that are cut both ways or one way, processes that are killed or stand still, a wall clock that is
//! set. What everybody was told is written down, and held against the invariants.
//!
//! `PACENOTE_TEST_PARTITION=long` drills with the default lease and cuts of 5, 20 and 60 s; without it leases
//! are short and a cut lasts a little longer than one.

mod evidence;
mod history;
mod journal;
mod load;
mod proxy;
mod worker;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use pacenote::job::JobState;
use pacenote::pb;
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use self::evidence::{Pace, Silence};
use self::history::Kept;
use self::journal::Word;
use self::load::Load;
use self::proxy::{Cut, Proxy};
use self::worker::Orders;
use crate::crash::process::{Process, Start};
use crate::harness::{Setup, TestClock, folder, submit_request};

/// What happens to a worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Trouble {
    None,
    /// Its network is cut.
    Cut(Cut),
    /// It is killed, and another one comes when the trouble is over.
    Killed,
    /// It stands still.
    Stopped,
    /// The same, for less than a lease.
    StoppedShortly,
}

/// Two have none: what others lose has somewhere to go while the trouble lasts.
const TROUBLES: [Trouble; 8] = [
    Trouble::Cut(Cut::Both),
    Trouble::Cut(Cut::Requests),
    Trouble::Cut(Cut::Answers),
    Trouble::Killed,
    Trouble::Stopped,
    Trouble::StoppedShortly,
    Trouble::None,
    Trouble::None,
];

/// A server, its workers, each behind a network of its own, and its clients.
struct Scene {
    dir: TempDir,
    start: Start,
    server: Option<Process>,
    workers: Vec<Worker>,
    load: Load,
    term: Duration,
    server_was_there: bool,
    silences: Vec<Silence>,
    late: Late,
}

/// Knows how late a busy machine wakes whoever sleeps on it.
struct Late {
    most: Arc<AtomicU64>,
    _watcher: JoinSet<()>,
}

impl Late {
    fn new() -> Self {
        const NAP: Duration = Duration::from_millis(20);
        let most = Arc::new(AtomicU64::default());
        let mut watcher = JoinSet::new();
        watcher.spawn({
            let most = Arc::clone(&most);
            async move {
                loop {
                    let begun = Instant::now();
                    sleep(NAP).await;
                    let late = begun.elapsed().saturating_sub(NAP).as_micros();
                    let late = u64::try_from(late).expect("a short time");
                    most.fetch_max(late, Ordering::Relaxed);
                }
            }
        });
        Self {
            most,
            _watcher: watcher,
        }
    }

    fn most(&self) -> Duration {
        Duration::from_micros(self.most.load(Ordering::Relaxed))
    }
}

struct Worker {
    orders: Orders,
    proxy: Proxy,
    process: Option<worker::Process>,
}

impl Scene {
    async fn new(workers: usize, term: Duration) -> Self {
        let dir = folder();
        let config = "[job_types.work]\nmax_attempts = 50\n";
        std::fs::write(dir.path().join("pacenote.toml"), config).expect("a file");
        let mut start = Start::on(dir.path());
        let server = start.start();
        start.listen.clone_from(&server.address);
        let seed = rand::random();
        eprintln!("seed {seed}");
        let load = Load::begin(&server.address, seed).await;
        let journal = dir.path().join("journal");
        let mut all = Vec::new();
        for number in 0..workers {
            let proxy = Proxy::before(&server.address).await;
            let orders = Orders {
                name: format!("worker-{number}"),
                address: proxy.address.clone(),
                term,
                journal: journal.clone(),
            };
            all.push(Worker {
                process: Some(worker::Process::start(&orders)),
                orders,
                proxy,
            });
        }
        let scene = Self {
            dir,
            start,
            server: Some(server),
            workers: all,
            load,
            term,
            server_was_there: true,
            silences: Vec::new(),
            late: Late::new(),
        };
        scene.all_at_work().await;
        scene
    }

    fn journal(&self) -> PathBuf {
        self.dir.path().join("journal")
    }

    /// Waits until every worker is at a job.
    async fn all_at_work(&self) {
        let until = Instant::now() + crate::harness::DEADLINE;
        loop {
            let lines = journal::read(&self.journal());
            let is_at_work = |worker: &Worker| {
                let mut lines = lines.iter();
                lines.any(|line| line.worker == worker.orders.name && line.word == Word::Told)
            };
            if self.workers.iter().all(is_at_work) {
                return;
            }
            assert!(Instant::now() < until, "not every worker gets work");
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Lets every worker have its trouble for so long.
    async fn trouble(&mut self, for_: Duration) {
        let from = wall();
        for (worker, trouble) in self.workers.iter_mut().zip(TROUBLES) {
            worker.begin(trouble);
        }
        let shortly = (self.term / 3).min(for_);
        sleep(shortly).await;
        let after_a_little = wall();
        for (worker, trouble) in self.workers.iter().zip(TROUBLES) {
            if trouble == Trouble::StoppedShortly {
                worker.signal(Signal::SIGCONT);
            }
        }
        sleep(for_ - shortly).await;
        let to = wall();
        for (worker, trouble) in self.workers.iter_mut().zip(TROUBLES) {
            worker.end(trouble);
            let to = match trouble {
                Trouble::None | Trouble::Killed | Trouble::Cut(Cut::Answers) => continue,
                Trouble::Cut(Cut::Both | Cut::Requests) | Trouble::Stopped => to,
                Trouble::StoppedShortly => after_a_little,
            };
            self.silences.push(Silence {
                worker: worker.orders.name.clone(),
                from,
                to,
            });
        }
    }

    fn server(&self) -> &Process {
        self.server.as_ref().expect("it lives")
    }

    /// The server stands still for so long.
    async fn stop_server(&mut self, for_: Duration) {
        self.server_was_there = false;
        self.server().signal(Signal::SIGSTOP);
        sleep(for_).await;
        self.server().signal(Signal::SIGCONT);
    }

    /// The server is killed, and the next one starts on the same store.
    async fn kill_server(&mut self) {
        self.server_was_there = false;
        self.server.take().expect("it lives").kill().await;
        self.server = Some(self.start.start());
    }

    /// I16: with no fault left everything goes on to its end. Then nothing that was written down may be wrong.
    async fn check(self, name: &str) {
        self.load.stop();
        // A lost lease, and what the jobs behind it take.
        let deadline = self.term * 2 + Duration::from_secs(30);
        let client = self.server().client().await;
        let all_over = timeout(deadline, crate::crash::all_over(&client)).await;
        let heard = timeout(deadline, self.load.end()).await;
        let heard = heard.expect("what ends is watched to its end");
        let journal = self.dir.path().join("journal");
        // Stubborn ones speak on.
        drop(self.workers);
        let server = self.server.expect("it lives");
        server.signal(Signal::SIGTERM);
        let (status, log) = server.end().await;
        assert!(status.success(), "{status}: {log}");
        // Where it says so itself, a busy machine has kept it from sweeping, or from storing what came.
        let stood_still = log.contains("no lease is swept for one term");
        let kept = Kept::read(&self.dir.path().join("pacenote.db")).await;
        let lines = journal::read(&journal);
        let count = |word| lines.iter().filter(|line| line.word == word).count();
        let losses = kept.tales.values().map(|tale| tale.losses.len());
        eprintln!(
            "{name}: {} jobs, {} cancels, {} watches; {} SUCCEEDED, {} CANCELLED, {} FAILED; {} attempts begun, \
             {} lost, {} words accepted, {} refused as stale; the machine was {:?} late{}",
            kept.tales.len(),
            heard.cancels.len(),
            heard.watches.len(),
            kept.count(JobState::Succeeded),
            kept.count(JobState::Cancelled),
            kept.count(JobState::Failed),
            count(Word::Begun),
            losses.sum::<usize>(),
            count(Word::Told),
            count(Word::Stale),
            self.late.most(),
            if stood_still {
                ", the server stood still"
            } else {
                ""
            },
        );
        let pace = Pace {
            term: self.term,
            silences: self.silences,
            // It sleeps, it commits, and so does whoever it waits for.
            late: self.late.most() * 3,
            server_was_there: self.server_was_there && !stood_still,
        };
        let mut found = history::check(&heard, &lines, &kept);
        found.extend(evidence::check(&lines, &kept.tales));
        found.extend(evidence::check_pace(&lines, &kept.tales, &pace));
        let found: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!((found, heard.refusals), (vec![], vec![]), "{name}");
        all_over.expect("everything ends once no fault is left");
    }
}

impl Worker {
    fn signal(&self, signal: Signal) {
        self.process.as_ref().expect("it lives").signal(signal);
    }

    fn begin(&mut self, trouble: Trouble) {
        match trouble {
            Trouble::None => {}
            Trouble::Cut(cut) => self.proxy.cut(cut),
            // Dropped, it is killed.
            Trouble::Killed => drop(self.process.take()),
            Trouble::Stopped | Trouble::StoppedShortly => self.signal(Signal::SIGSTOP),
        }
    }

    fn end(&mut self, trouble: Trouble) {
        match trouble {
            Trouble::None | Trouble::StoppedShortly => {}
            Trouble::Cut(_) => self.proxy.heal(),
            Trouble::Killed => {
                // Another one, as a name is of one process.
                self.orders.name.push_str("-again");
                self.process = Some(worker::Process::start(&self.orders));
            }
            Trouble::Stopped => self.signal(Signal::SIGCONT),
        }
    }
}

fn wall() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    i64::try_from(now.expect("after 1970").as_micros()).expect("before the year 292,000")
}

fn is_long() -> bool {
    std::env::var("PACENOTE_TEST_PARTITION").is_ok_and(|which| which == "long")
}

async fn workers_in_trouble(term: Duration, for_: Duration) {
    let mut scene = Scene::new(TROUBLES.len(), term).await;
    scene.trouble(for_).await;
    // What stood still comes now, and the late are told that they are.
    sleep(Duration::from_secs(1)).await;
    let name = format!("workers in trouble for {for_:?} with leases of {term:?}");
    scene.check(&name).await;
}

async fn a_server_in_trouble(term: Duration, shortly: Duration, long: Duration) {
    let mut scene = Scene::new(3, term).await;
    scene.stop_server(shortly).await;
    sleep(Duration::from_millis(500)).await;
    scene.stop_server(long).await;
    sleep(Duration::from_millis(500)).await;
    scene.kill_server().await;
    let name = format!("a server that stands still for {long:?} with leases of {term:?}");
    scene.check(&name).await;
}

const SHORT: Duration = Duration::from_secs(5);
const LONG: Duration = Duration::from_secs(15);

/// Goal: FAULTS F32 and F27. Workers are cut off (both ways, or only what they send, or only what they are
/// sent), killed and stopped at once, under load: no two attempts of a job are at work at once, nothing that
/// comes late is accepted, a lost lease goes to another within the lease and two seconds, and all else that
/// holds of every history.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_that_are_cut_off_killed_or_stopped_harm_nobody() {
    if !is_long() {
        return workers_in_trouble(SHORT, Duration::from_secs(7)).await;
    }
    let mut drills = JoinSet::new();
    for secs in [5, 20, 60] {
        drills.spawn(workers_in_trouble(LONG, Duration::from_secs(secs)));
    }
    drills.join_all().await;
}

/// Goal: the same where the server is the one that stands still, for less and for more than a lease, and then
/// is killed: nobody loses a lease by that alone who is heard in time, and nobody is given one twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stands_still_or_is_killed_gives_no_lease_twice() {
    let seconds = Duration::from_secs;
    if is_long() {
        a_server_in_trouble(LONG, seconds(5), seconds(20)).await;
    } else {
        a_server_in_trouble(SHORT, seconds(2), seconds(6)).await;
    }
}

/// Goal: the wall clock is set forward and back while leases are held, and none is lost, none outlived.
/// Method: workers in this process, on a server whose wall clock is the test's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wall_clock_that_is_set_ends_no_lease() {
    const JOBS: usize = 6;
    let dir = folder();
    let clock = TestClock::new();
    let setup = Setup::on(dir.path()).clock(Arc::new(clock.clone()));
    let server = setup.start().await;
    let journal = dir.path().join("journal");
    let mut workers = JoinSet::new();
    for number in 0..3 {
        workers.spawn(worker::run(Orders {
            name: format!("worker-{number}"),
            address: server.address.clone(),
            term: SHORT,
            journal: journal.clone(),
        }));
    }
    crate::harness::eventually("workers wait", || server.queue.waiting_workers() == 3).await;
    let mut ids = Vec::new();
    for _ in 0..JOBS {
        let request = pb::SubmitRequest {
            input: Some(pb::Payload {
                content: Some(pb::payload::Content::Text("4000".to_owned())),
                ..pb::Payload::default()
            }),
            ..submit_request("work")
        };
        ids.push(server.submit(request).await.job_id);
    }
    for hours in [1, -2, 26, -26, 0, 3] {
        sleep(Duration::from_millis(700)).await;
        clock.set_wall(hours * 3_600);
    }
    for id in &ids {
        let job = server.end_of(id).await;
        assert_eq!((job.state(), job.attempt), (pb::job::State::Succeeded, 1));
    }
    workers.shutdown().await;
    server.stop().await.expect("a clean end");
    let kept = Kept::read(&dir.path().join("pacenote.db")).await;
    let found = evidence::check(&journal::read(&journal), &kept.tales);
    assert_eq!(found, []);
    assert_eq!(kept.count(JobState::Succeeded), JOBS);
}
