//! Removes what is over and whose time has come, jobs and the fronts of their logs, a little at a time.
//!
//! It takes half of the writer's time at most, so that a submit never waits for more than one short
//! transaction of its. A wall clock that jumps ahead makes it rest, so that nothing is lost to a clock that
//! somebody is about to mend.

use std::time::Duration;

use tokio::time::Instant;

use crate::job::time::Timestamp;
use crate::queue::{JobQueue, ROUND_EACH_MAX};

/// The longest sleep: the wall clock may have jumped meanwhile.
const CHECK_MAX: Duration = Duration::from_secs(10);
/// Pause after a failure. What failed is logged where it failed.
const FAILED_PAUSE: Duration = Duration::from_secs(1);
/// How far the wall clock may run ahead of the steady one between two looks. Chosen: no correction of a
/// clock that is kept in step comes near it.
const JUMP_MAX: Duration = Duration::from_secs(600);
/// How long nothing is removed after a jump. Chosen: time for somebody to see the warning.
const JUMP_REST: Duration = Duration::from_secs(3600);

/// Wakes when the next job or front may be removed, or when a job ended of which that is so sooner.
pub(super) async fn retire(queue: JobQueue) {
    let mut jumps = Jumps::new(queue.now(), queue.steady_now());
    loop {
        let rest = jumps.look(queue.now(), queue.steady_now());
        if !rest.is_zero() {
            tokio::time::sleep(rest.min(CHECK_MAX)).await;
            continue;
        }
        let began = Instant::now();
        let sleep = match queue.purge_due(ROUND_EACH_MAX).await {
            // As long as it took: the other half of the time is for others.
            Ok(done) if done.more => {
                tokio::time::sleep(began.elapsed()).await;
                continue;
            }
            Ok(done) => done.next.map_or(CHECK_MAX, |next| queue.until(next)),
            Err(_) => FAILED_PAUSE,
        };
        tokio::select! {
            // Either only ends the sleep; nothing is lost.
            () = tokio::time::sleep(sleep.min(CHECK_MAX)) => {}
            () = queue.purge_changed() => {}
        }
    }
}

/// Looks whether the wall clock jumps.
struct Jumps {
    wall: Timestamp,
    steady: Timestamp,
    rest_until: Timestamp,
}

impl Jumps {
    fn new(wall: Timestamp, steady: Timestamp) -> Self {
        Self {
            wall,
            steady,
            rest_until: steady,
        }
    }

    /// How long nothing is to be removed, by both clocks' times now. A clock that is set back ends a rest.
    fn look(&mut self, wall: Timestamp, steady: Timestamp) -> Duration {
        let expected = self.wall.after(steady.since(self.steady));
        (self.wall, self.steady) = (wall, steady);
        let ahead = wall.since(expected);
        if ahead > JUMP_MAX {
            tracing::warn!(
                ?ahead,
                rest = ?JUMP_REST,
                "the wall clock has jumped ahead: retention rests, lest it remove what is not due"
            );
            self.rest_until = steady.after(JUMP_REST);
        } else if expected.since(wall) > JUMP_MAX {
            self.rest_until = steady;
        }
        self.rest_until.since(steady)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INSTANT: Duration = Duration::from_micros(1);
    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn start() -> (Jumps, Timestamp, Timestamp) {
        let (wall, steady) = (Timestamp::from_micros(1 << 50), Timestamp::from_micros(77));
        (Jumps::new(wall, steady), wall, steady)
    }

    #[test]
    fn clocks_that_go_together_are_no_jump_however_long_they_go() {
        let (mut jumps, wall, steady) = start();
        for days in [1, 2, 40] {
            let rest = jumps.look(wall.after(DAY * days), steady.after(DAY * days));
            assert_eq!(rest, Duration::ZERO);
        }
    }

    #[test]
    fn only_a_jump_beyond_the_limit_brings_a_rest_and_the_rest_ends() {
        let (mut jumps, wall, steady) = start();
        let wall = wall.after(JUMP_MAX);
        assert_eq!(jumps.look(wall, steady), Duration::ZERO);
        let wall = wall.after(JUMP_MAX + INSTANT);
        assert_eq!(jumps.look(wall, steady), JUMP_REST);
        let on = |by| (wall.after(by), steady.after(by));
        let (later, steady_later) = on(JUMP_REST - INSTANT);
        assert_eq!(jumps.look(later, steady_later), INSTANT);
        let (later, steady_later) = on(JUMP_REST);
        assert_eq!(jumps.look(later, steady_later), Duration::ZERO);
    }

    #[test]
    fn a_clock_that_is_set_right_again_ends_the_rest() {
        let (mut jumps, wall, steady) = start();
        assert_eq!(jumps.look(wall.after(DAY), steady), JUMP_REST);
        assert_eq!(jumps.look(wall, steady), Duration::ZERO);
    }
}
