//! Whether a watch that was cut and resumed saw the whole log: pure arithmetic over sequences.

/// What two watches of one job saw.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Proof {
    /// Sequences handed out before the cut.
    pub(super) before: Vec<i64>,
    /// And after it.
    pub(super) after: Vec<i64>,
}

impl Proof {
    /// Compares both, one after the other, with the log as `ListEvents` gives it.
    ///
    /// # Errors
    /// The first thing that is missing, doubled or out of order.
    pub(super) fn check(&self, log: &[i64]) -> Result<String, String> {
        let seen = self.before.iter().chain(&self.after);
        let mut expected = 1;
        for sequence in seen {
            if *sequence < expected {
                return Err(format!("event {sequence} was seen twice"));
            }
            if *sequence > expected {
                return Err(format!("event {expected} is missing"));
            }
            expected += 1;
        }
        let seen = expected - 1;
        let is_the_log = log.iter().copied().eq(1..=seen);
        if !is_the_log {
            return Err(format!("{seen} events were seen, and the log is {log:?}"));
        }
        let halves = [&self.before, &self.after].map(|half| span(half));
        Ok(format!(
            "{} + {} = 1-{seen}, the whole log: none missing, none double",
            halves[0], halves[1]
        ))
    }
}

fn span(sequences: &[i64]) -> String {
    match sequences {
        [] => "none".to_owned(),
        [one] => one.to_string(),
        [first, .., last] => format!("{first}-{last}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proof(before: &[i64], after: &[i64]) -> Proof {
        Proof {
            before: before.to_vec(),
            after: after.to_vec(),
        }
    }

    #[test]
    fn two_halves_that_make_the_log_hold() {
        let held = proof(&[1, 2], &[3, 4])
            .check(&[1, 2, 3, 4])
            .expect("it holds");
        assert_eq!(
            held,
            "1-2 + 3-4 = 1-4, the whole log: none missing, none double"
        );
    }

    #[test]
    fn a_hole_a_double_and_a_missing_end_are_told() {
        let log = [1, 2, 3, 4];
        let told = |before, after| {
            proof(before, after)
                .check(&log)
                .expect_err("it does not hold")
        };
        assert_eq!(told(&[1, 2], &[4]), "event 3 is missing");
        assert_eq!(told(&[1, 2], &[2, 3, 4]), "event 2 was seen twice");
        assert!(told(&[1, 2], &[3]).starts_with("3 events were seen"));
    }
}
