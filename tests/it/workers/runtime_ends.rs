//! How attempts of the library's own worker end where something is wrong: with the network, the handler, or what it
//! tells.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures_util::future::BoxFuture;
use pacenote::client::worker::{Context, Executor, HandlerError, LogLevel};
use pacenote::executor::Attempt;
use pacenote::job::Outcome as Ended;

use super::relay::{Fate, Relay};
use super::runtime::{begin, worker_at};
use super::*;

/// A handler that looks at nothing, and whether it is there.
#[derive(Clone, Default)]
struct Deaf {
    runs: Arc<AtomicBool>,
    gone: Arc<AtomicBool>,
}

/// Says so when it goes.
struct Goes(Arc<AtomicBool>);

impl Drop for Goes {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl Deaf {
    fn handler(
        &self,
    ) -> impl Fn(Context, ()) -> BoxFuture<'static, Result<(), HandlerError>> + use<> {
        let Self { runs, gone } = self.clone();
        move |_, ()| {
            let (runs, goes) = (Arc::clone(&runs), Goes(Arc::clone(&gone)));
            Box::pin(async move {
                let _goes = goes;
                runs.store(true, Ordering::SeqCst);
                std::future::pending().await
            })
        }
    }

    async fn begun(&self) {
        eventually("it runs", || self.runs.load(Ordering::SeqCst)).await;
    }

    fn is_gone(&self) -> bool {
        self.gone.load(Ordering::SeqCst)
    }
}

/// A job whose cancel may take an hour.
fn patient() -> pb::SubmitRequest {
    pb::SubmitRequest {
        timeouts: Some(pb::Timeouts {
            cancel_grace: Some(seconds(3_600)),
            ..pb::Timeouts::default()
        }),
        ..submit_request("work")
    }
}

/// Goal: a handler with more to say at its end than goes into one call has said it all, and has succeeded.
#[tokio::test]
async fn all_that_waits_at_the_end_is_told() {
    const LINES: usize = 1_020;
    let dir = folder();
    let scene = Scene::on(&dir).await;
    let (hold, held) = tokio::sync::watch::channel(());
    let relay = Relay::to(&scene.server.address, move |call| match call.method {
        "Report" => Fate::Held(held.clone()),
        _ => Fate::Passes,
    });
    let relay = Arc::new(relay.await);
    let said_all = Arc::new(AtomicBool::new(false));
    let shared = (Arc::clone(&relay), Arc::clone(&said_all));
    let handler = move |context: Context, (): ()| {
        let (relay, said_all) = shared.clone();
        async move {
            context.log(LogLevel::Info, "first").await?;
            // It stays on its way, and the others wait behind it.
            eventually("it is told", || relay.calls("Report") > 0).await;
            for number in 0..LINES {
                context.log(LogLevel::Info, format!("{number}")).await?;
            }
            said_all.store(true, Ordering::SeqCst);
            Ok(())
        }
    };
    let working = begin(worker_at(&relay.address).await.handler("work", handler));
    let job_id = scene.submit().await;
    eventually("it has ended", || said_all.load(Ordering::SeqCst)).await;
    drop(hold);
    let job = scene.server.end_of(&job_id).await;
    assert_eq!(job.state(), State::Succeeded, "{:?}", job.error);
    let log = scene.server.log(&job_id).await;
    let lines = log
        .iter()
        .filter(|event| matches!(event.event, Some(Event::Log(_))));
    assert_eq!(lines.count(), 1 + LINES);
    working.stop().await;
    scene.stop().await;
}

/// Goal: a handler that looks at nothing is gone when another worker gets the job of a worker that was cut off, also
/// where a cancel of it might take an hour.
#[tokio::test]
async fn a_deaf_handler_that_is_cut_off_is_gone_before_the_next_begins() {
    let dir = folder();
    let scene = Scene::on(&dir).await;
    let is_cut = Arc::new(AtomicBool::new(false));
    let cut = Arc::clone(&is_cut);
    let relay = Relay::to(&scene.server.address, move |_| {
        match cut.load(Ordering::Relaxed) {
            true => Fate::Silence,
            false => Fate::Passes,
        }
    });
    let relay = relay.await;
    let deaf = Deaf::default();
    let working = begin(
        worker_at(&relay.address)
            .await
            .handler("work", deaf.handler()),
    );
    scene.server.submit(patient()).await;
    deaf.begun().await;
    is_cut.store(true, Ordering::Relaxed);
    let second = scene.lease_one().await;
    assert!(deaf.is_gone(), "two attempts at once");
    assert_eq!(second.job.expect("a job").attempt, 2);
    working.running.abort();
    scene.stop().await;
}

/// Goal: where the lease is lost, a handler that goes on talking is ended soon, whatever time a cancel may take, and
/// nothing that it says is sent.
#[tokio::test]
async fn a_handler_whose_lease_is_lost_ends_soon_whatever_its_grace() {
    let dir = folder();
    let scene = Scene::on(&dir).await;
    let is_lost = Arc::new(AtomicBool::new(false));
    let lost = Arc::clone(&is_lost);
    let relay = Relay::to(&scene.server.address, move |call| match call.method {
        "Report" if lost.load(Ordering::SeqCst) => {
            Fate::Refused(Status::failed_precondition("the lease is another's"))
        }
        _ => Fate::Passes,
    });
    let relay = relay.await;
    let (steps, gone) = (
        Arc::new(AtomicUsize::new(0)),
        Arc::new(AtomicBool::new(false)),
    );
    let shared = (Arc::clone(&steps), Arc::clone(&gone));
    let handler = move |context: Context, (): ()| {
        let (steps, goes) = (Arc::clone(&shared.0), Goes(Arc::clone(&shared.1)));
        async move {
            let _goes = goes;
            while steps.fetch_add(1, Ordering::SeqCst) < 1_000_000 {
                // Whatever it is told: it goes on.
                let _ = context.log(LogLevel::Info, "x").await;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Ok(())
        }
    };
    let working = begin(worker_at(&relay.address).await.handler("work", handler));
    scene.server.submit(patient()).await;
    eventually("it runs", || steps.load(Ordering::SeqCst) > 2).await;
    is_lost.store(true, Ordering::SeqCst);
    eventually("it is gone", || gone.load(Ordering::SeqCst)).await;
    // One was refused; there was none after that.
    let told = relay.calls("Report");
    working.stop().await;
    assert_eq!(relay.calls("Report"), told);
    assert_eq!(relay.calls("Finish"), 0);
    scene.stop().await;
}

/// Goal: an executor that breaks its promise and panics before there is anything to wait for ends its attempt.
#[tokio::test]
async fn an_executor_that_panics_at_once_ends_its_attempt() {
    struct Panics(AtomicBool);
    impl Executor for Panics {
        fn run(&self, _: Attempt) -> BoxFuture<'static, Ended> {
            assert!(self.0.swap(true, Ordering::SeqCst), "in run itself");
            Box::pin(async { Ended::Succeeded(None) })
        }
    }
    let dir = folder();
    let scene = Scene::on(&dir).await;
    let worker = worker_at(&scene.server.address).await;
    let working = begin(worker.executor(Name::of("work"), Panics(AtomicBool::new(false))));
    let job_id = scene.submit().await;
    let job = scene.server.end_of(&job_id).await;
    assert_eq!((job.state(), job.attempt), (State::Succeeded, 2));
    let log = scene.server.log(&job_id).await;
    let reasons = log.iter().filter_map(|event| match &event.event {
        Some(Event::AttemptEnd(end)) => Some(end.error.clone().expect("an error").reason),
        _ => None,
    });
    assert_eq!(reasons.collect::<Vec<_>>(), ["PANIC"]);
    working.stop().await;
    scene.stop().await;
}

/// Goal: an error that may be tried again stays one, though its reason is none.
#[tokio::test]
async fn a_retryable_error_with_an_odd_reason_is_tried_again() {
    let dir = folder();
    let scene = Scene::on(&dir).await;
    let handler = |context: Context, (): ()| async move {
        match context.attempt() {
            1 => {
                let limited = HandlerError::retryable("rate-limited", "come back");
                Err(limited.retry_after(Duration::from_millis(10)))
            }
            _ => Ok(()),
        }
    };
    let working = begin(
        worker_at(&scene.server.address)
            .await
            .handler("work", handler),
    );
    let job_id = scene.submit().await;
    let job = scene.server.end_of(&job_id).await;
    assert_eq!(
        (job.state(), job.attempt),
        (State::Succeeded, 2),
        "{:?}",
        job.error
    );
    working.stop().await;
    scene.stop().await;
}

/// Goal: an attempt whose report the server does not take ends soon, and says why.
#[tokio::test]
async fn an_attempt_whose_report_is_refused_ends_soon() {
    let dir = folder();
    let scene = Scene::on(&dir).await;
    let relay = Relay::to(&scene.server.address, |call| match call.method {
        "Report" => Fate::Refused(Status::invalid_argument("no such thing")),
        _ => Fate::Passes,
    });
    let relay = relay.await;
    let handler = |context: Context, (): ()| async move {
        loop {
            context.log(LogLevel::Info, "goes on").await?;
            tokio::task::yield_now().await;
        }
        #[expect(unreachable_code, reason = "says what the handler's type is")]
        Ok(())
    };
    let working = begin(worker_at(&relay.address).await.handler("work", handler));
    let job_id = scene.server.submit(patient()).await.job_id;
    let job = scene.server.end_of(&job_id).await;
    assert_eq!(job.state(), State::Failed);
    assert_eq!(job.error.expect("an error").reason, "REPORT_REFUSED");
    working.stop().await;
    scene.stop().await;
}

/// Goal: a drain does not wait for the hour that a cancel may take, and leaves no job behind that was asked to stop.
#[tokio::test]
async fn a_drain_ends_what_is_being_cancelled() {
    let dir = folder();
    let scene = Scene::on(&dir).await;
    let deaf = Deaf::default();
    let relay = Relay::to(&scene.server.address, |_| Fate::Passes).await;
    let worker = worker_at(&relay.address)
        .await
        .handler("work", deaf.handler());
    let working = begin(worker.drain_timeout(Duration::from_millis(100)));
    let job_id = scene.server.submit(patient()).await.job_id;
    deaf.begun().await;
    scene.server.cancel(&job_id).await;
    // It has heard of it with this one at the latest.
    let beats = relay.calls("ExtendLeases");
    eventually("it has heard", || relay.calls("ExtendLeases") >= beats + 2).await;
    assert!(!deaf.is_gone());
    working.stop().await;
    assert!(deaf.is_gone());
    assert_eq!(scene.server.get(&job_id).await.state(), State::Cancelled);
    scene.stop().await;
}
