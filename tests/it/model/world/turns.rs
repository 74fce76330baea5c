//! Places that become free, and time that passes.

use std::time::Duration;

use pacenote::job::name::JobKey;
use pacenote::job::time::Clock;
use pacenote::queue::Lease;

use super::{QUEUES, TENANTS, World};
use crate::harness::soon;
use crate::invariants::history::Observation;
use crate::model::steps::Type;

impl World {
    /// A free place for the type, until the next look at what was handed out.
    pub(super) async fn claim(&mut self, job_type: Type) {
        // What is over its time expires at the claim, too, as far as that looks at it.
        self.expire().await;
        self.process().places.give_back(&job_type.name());
        self.queue().wake().await;
        self.take_handed(job_type, None).await;
    }

    /// Takes what was claimed for a place that was given, or the place. A job that came with the place is
    /// claimed in its own commit or behind all that waited before it.
    pub(super) async fn take_handed(&mut self, job_type: Type, newcomer: Option<&JobKey>) {
        // What has to wait for others is set aside first, lane by lane, and the next group looks again.
        for _ in 0..2 * TENANTS.len() * QUEUES.len() {
            self.queue().settle().await;
        }
        let mut claims = 0;
        while let Ok(handed) = self.process().handed.try_recv() {
            claims += 1;
            let (key, attempt) = (handed.claimed.job.key.clone(), handed.claimed.job.attempt);
            if !self.reference.is_next(&key, newcomer) {
                let what = format!("job {} was claimed before its turn", key.id);
                self.mismatches.push(what);
            }
            self.see(Observation::Claimed(key.clone(), attempt));
            self.reference.claim(&key, self.clock.steady());
            self.leases.push(Lease { key, attempt });
        }
        if claims == 0 {
            self.process().places.take(&job_type.name());
        }
        let waits = self.reference.any_waits(job_type);
        if claims > 1 || (claims == 0 && waits) {
            let what = format!("{claims} claims for one place of {job_type:?}");
            self.mismatches.push(what);
        }
    }

    /// Lets time pass, and does what it brings.
    pub(super) async fn pass(&mut self, time: Duration) {
        self.clock.pass(time);
        if let Err(error) = soon(self.queue().make_due()).await {
            self.mismatches.push(format!("make_due: {error:?}"));
        }
        self.reference.become_due(self.clock.now());
        self.expire().await;
    }

    pub(super) async fn expire(&mut self) {
        if let Err(error) = soon(self.queue().expire_waiting()).await {
            self.mismatches.push(format!("expire_waiting: {error:?}"));
        }
        self.reference.expire(self.clock.now());
    }

    pub(super) async fn sweep(&mut self) {
        let now = self.clock.steady();
        if let Err(error) = soon(self.queue().sweep_leases(now)).await {
            self.mismatches.push(format!("sweep: {error:?}"));
        }
        self.reference.lose(now, self.clock.now());
    }
}
