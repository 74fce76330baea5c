//! What the tests of this room share: an attempt with somebody who listens, and deadlines.

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::executor::{Attempt, Grace, reporter};
use crate::job::Report;
use crate::job::name::{JobId, JobKey, Name};
use crate::job::payload::Payload;

/// Long enough for a busy machine: no test waits this long unless something is wrong.
const DEADLINE: Duration = Duration::from_secs(15);

/// Waits, but not for ever.
pub(crate) async fn deadline<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(DEADLINE, future)
        .await
        .expect("within the deadline")
}

/// An attempt, and everything it tells.
pub(crate) struct Harness {
    attempt: Option<Attempt>,
    /// Tells the attempt to stop.
    pub(crate) stop: CancellationToken,
    heard: Arc<Mutex<Vec<Report>>>,
    count: watch::Receiver<usize>,
    listener: Option<JoinHandle<()>>,
}

impl Harness {
    pub(crate) fn new(input: Option<Payload>) -> Self {
        let (reporter, mut reports) = reporter::channel();
        let stop = CancellationToken::new();
        let attempt = Attempt {
            key: JobKey {
                tenant: Name::of("default"),
                id: JobId::new(uuid::Uuid::now_v7()),
            },
            job_type: Name::of("test"),
            number: 1,
            input,
            checkpoint: None,
            reporter,
            stop: stop.clone(),
            grace: Grace::new(Duration::from_secs(5)),
            quarters: tokio::runtime::Handle::current(),
        };
        let heard = Arc::new(Mutex::new(Vec::new()));
        let (told, count) = watch::channel(0);
        let listener = tokio::spawn({
            let heard = Arc::clone(&heard);
            async move {
                loop {
                    let batch = reports.take(256).await;
                    if batch.is_empty() {
                        return;
                    }
                    let mut heard = heard.lock().expect("not poisoned");
                    heard.extend(batch);
                    told.send_replace(heard.len());
                }
            }
        });
        Self {
            attempt: Some(attempt),
            stop,
            heard,
            count,
            listener: Some(listener),
        }
    }

    pub(crate) fn attempt_mut(&mut self) -> &mut Attempt {
        self.attempt.as_mut().expect("not taken yet")
    }

    pub(crate) fn take_attempt(&mut self) -> Attempt {
        self.attempt.take().expect("taken once")
    }

    /// Waits until what was heard so far satisfies the condition.
    pub(crate) async fn until(&mut self, mut condition: impl FnMut(&[Report]) -> bool) {
        let heard = Arc::clone(&self.heard);
        deadline(
            self.count
                .wait_for(move |_| condition(&heard.lock().expect("not poisoned"))),
        )
        .await
        .expect("the attempt still tells");
    }

    /// Everything that was told, once the attempt is over.
    pub(crate) async fn reports(&mut self) -> Vec<Report> {
        if let Some(listener) = self.listener.take() {
            deadline(listener).await.expect("does not panic");
        }
        std::mem::take(&mut self.heard.lock().expect("not poisoned"))
    }
}
