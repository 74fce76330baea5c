//! A watch of many jobs shown: a line for each thing that happens, JSON where asked.

use std::io;

use crate::cli::jobs::args::WatchArgs;
use crate::cli::jobs::escape::escape;
use crate::cli::jobs::exit::{Exit, Stop};
use crate::cli::jobs::output::Output;
use crate::cli::jobs::text;
use crate::client::{Client, JobsUpdate, JobsWatch, JobsWatchOptions};
use crate::pb;

/// Which jobs are asked for; `None` where it is one by its id.
pub(super) fn options(args: &WatchArgs) -> Option<JobsWatchOptions> {
    if args.job_id.is_some() {
        return None;
    }
    Some(JobsWatchOptions {
        after_cursor: args.cursor.clone().unwrap_or_default(),
        labels: args.labels.iter().cloned().collect(),
        queues: args.queues.clone(),
        types: args.types.clone(),
        batch_id: args.batch.clone().unwrap_or_default(),
        job_ids: args.ids.clone(),
        roll_up: args.roll_up,
        ..JobsWatchOptions::default()
    })
}

/// Shows a watch until it ends, which only one of a batch or of ids does, and exits by the worst outcome.
/// Ctrl-C leaves the jobs alone and says how to go on.
pub(super) async fn follow(
    client: Client,
    options: JobsWatchOptions,
    output: Output,
) -> Result<Exit, Stop> {
    let mut watch = client.watch_jobs(options);
    let mut worst = Exit::Success;
    let interrupt = tokio::signal::ctrl_c();
    tokio::pin!(interrupt);
    loop {
        let update = tokio::select! {
            // next() is cancel safe, and this ends the watch anyhow.
            update = watch.next() => update,
            _ = &mut interrupt => {
                say_how_to_go_on(&watch, output);
                return Ok(Exit::Interrupted);
            }
        };
        match update {
            Some(Ok(update)) => {
                worst = worse(worst, &update);
                show(&update, output)?;
            }
            Some(Err(error)) => {
                say_how_to_go_on(&watch, output);
                return Err(error.into());
            }
            None => return Ok(worst),
        }
    }
}

fn say_how_to_go_on(watch: &JobsWatch, output: Output) {
    let cursor = watch.delivered_cursor();
    if !cursor.is_empty() {
        output.note(&format!(
            "go on with the same filter and: --cursor {}",
            escape(cursor)
        ));
    }
}

/// A failure is worse than a cancel.
fn worse(before: Exit, update: &JobsUpdate) -> Exit {
    let now = match update {
        JobsUpdate::Finished(job) => Exit::of(job.state()),
        // It counts all of them anew.
        JobsUpdate::RollUp(told) if told.failed > 0 => Exit::Failed,
        JobsUpdate::RollUp(told) if told.cancelled + told.expired > 0 => Exit::Stopped,
        _ => Exit::Success,
    };
    match (before, now) {
        (Exit::Failed, _) | (Exit::Stopped, Exit::Success) => before,
        _ => now,
    }
}

fn show(update: &JobsUpdate, output: Output) -> io::Result<()> {
    if output.json {
        return show_json(update, output);
    }
    match update {
        JobsUpdate::Anew => {
            output.note("cut before the first cursor: beginning anew");
            Ok(())
        }
        JobsUpdate::Snapshot(job) => {
            let progress = job.progress.as_ref().map(text::progress);
            let progress = progress.map_or_else(String::new, |known| format!(" {known}"));
            let (id, state) = (escape(&job.job_id), text::state(job.state()));
            output.line(&format!("{id} {state}{progress}"))
        }
        JobsUpdate::Event(event) => {
            let id = escape(&event.job_id);
            output.line(&format!("{id} {}", text::event(event)))
        }
        JobsUpdate::Finished(job) => {
            let id = escape(&job.job_id);
            output.line(&format!("{id} end {}", text::ending(job)))
        }
        JobsUpdate::RollUp(told) => output.line(&text::roll_up(told)),
        JobsUpdate::Gap(gap) => output.line(&gap_line(gap)),
        JobsUpdate::Reconnecting { error, delay, .. } => {
            let error = error.to_string();
            let millis = delay.as_millis();
            output.note(&format!("reconnecting in {millis} ms: {}", escape(&error)));
            Ok(())
        }
        JobsUpdate::Heartbeat => Ok(()),
    }
}

fn show_json(update: &JobsUpdate, output: Output) -> io::Result<()> {
    match update {
        JobsUpdate::Snapshot(job) | JobsUpdate::Finished(job) => output.message(&**job),
        JobsUpdate::Event(event) => output.message(&**event),
        JobsUpdate::RollUp(told) => output.message(told),
        JobsUpdate::Gap(gap) => output.message(gap),
        JobsUpdate::Anew | JobsUpdate::Heartbeat | JobsUpdate::Reconnecting { .. } => Ok(()),
    }
}

fn gap_line(gap: &pb::EventGap) -> String {
    match (gap.job_id.as_str(), gap.last_missing_sequence) {
        ("", _) => "gap events were purged, maybe of none of these jobs".to_owned(),
        (id, 0) => format!("{} gap the job is not there any more", escape(id)),
        (id, _) => format!("{} {}", escape(id), text::gap(gap)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::job::State;

    fn finished(state: State) -> JobsUpdate {
        JobsUpdate::Finished(Box::new(pb::Job {
            state: state.into(),
            ..pb::Job::default()
        }))
    }

    #[test]
    fn the_worst_outcome_is_the_exit() {
        let exit = |states: &[State]| {
            let updates = states.iter().map(|state| finished(*state));
            updates.fold(Exit::Success, |worst, update| worse(worst, &update))
        };
        let (good, bad, cancelled) = (State::Succeeded, State::Failed, State::Cancelled);
        assert_eq!(exit(&[good, good]), Exit::Success);
        assert_eq!(exit(&[good, cancelled, good]), Exit::Stopped);
        assert_eq!(exit(&[cancelled, bad, good, State::Expired]), Exit::Failed);
    }

    #[test]
    fn a_gap_says_whose_it_is_as_far_as_that_is_known() {
        let gap = |id: &str, last| pb::EventGap {
            job_id: id.to_owned(),
            first_missing_sequence: i64::from(last > 0),
            last_missing_sequence: last,
            ..pb::EventGap::default()
        };
        assert!(gap_line(&gap("", 0)).contains("maybe of none"));
        assert_eq!(
            gap_line(&gap("x", 0)),
            "x gap the job is not there any more"
        );
        assert_eq!(gap_line(&gap("x", 7)), "x gap 1-7 were purged");
    }
}
