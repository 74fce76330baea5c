//! A watch shown to its end: bars on a terminal, a line an event elsewhere, JSON where asked.

use std::io;
use std::io::IsTerminal;

use crate::cli::jobs::exit::{Exit, Stop};
use crate::cli::jobs::output::{Output, say};
use crate::cli::jobs::screen::Screen;
use crate::cli::jobs::{escape, text};
use crate::client::{Update, Watch};
use crate::pb;
use crate::pb::job::State;
use crate::pb::job_event::Event;
use crate::pb::payload::Content;

/// Said of a submit that made no job of its own.
pub(super) const WAS_THERE: &str = "an earlier submit with this key made the job: this is that one";

/// Shows a watch to its end and exits by the job's outcome. Ctrl-C leaves the job alone and says how to
/// go on.
pub(super) async fn follow(mut watch: Watch, name: &str, output: Output) -> Result<Exit, Stop> {
    let mut view = View::new(name, output);
    let mut answered = false;
    let interrupt = tokio::signal::ctrl_c();
    tokio::pin!(interrupt);
    loop {
        let update = tokio::select! {
            // next() is cancel safe, and this ends the watch anyhow.
            update = watch.next() => update,
            _ = &mut interrupt => {
                view.end()?;
                say_how_to_go_on(&watch, output);
                return Ok(Exit::Interrupted);
            }
        };
        match update {
            Some(Ok(Update::Finished(job))) => {
                view.finished(&job)?;
                return Ok(Exit::of(job.state()));
            }
            Some(Ok(Update::Snapshot(job))) => {
                // What a submit was answered with is its first snapshot; later ones are the job's.
                let deduplicated = watch.deduplicated().filter(|_| !answered);
                answered = true;
                view.snapshot(&job, deduplicated)?;
            }
            Some(Ok(update)) => view.update(&update)?,
            Some(Err(error)) => {
                view.end()?;
                say_how_to_go_on(&watch, output);
                return Err(error.into());
            }
            // Only after Finished or an error, and both have left the loop.
            None => return Ok(Exit::Success),
        }
    }
}

fn say_how_to_go_on(watch: &Watch, output: Output) {
    if let (Some(job_id), Some(after)) = (watch.job_id(), watch.delivered_sequence()) {
        let job_id = escape::escape(job_id);
        output.note(&format!(
            "go on with: pacenote watch {job_id} --after {after}"
        ));
    }
}

/// How a watch is shown.
struct View {
    output: Output,
    kind: Kind,
    /// The job wrote to its stdout: a text result would say the same again.
    has_written: bool,
}

enum Kind {
    Json,
    /// What the job wrote, nothing else.
    Raw,
    Lines,
    Screen(Box<Screen>),
}

impl View {
    fn new(name: &str, output: Output) -> Self {
        let kind = if output.json {
            Kind::Json
        } else if output.quiet {
            Kind::Raw
        } else if output.is_terminal && io::stderr().is_terminal() {
            Kind::Screen(Box::new(Screen::new(name)))
        } else {
            Kind::Lines
        };
        Self {
            output,
            kind,
            has_written: false,
        }
    }

    fn update(&mut self, update: &Update) -> io::Result<()> {
        match update {
            Update::Snapshot(job) => self.snapshot(job, None),
            Update::Event(event) => self.event(event),
            Update::Gap(gap) => self.gap(gap),
            Update::Reconnecting { error, delay, .. } => {
                let wait = humantime::format_duration(std::time::Duration::from_millis(
                    u64::try_from(delay.as_millis()).unwrap_or(u64::MAX),
                ));
                let error = error.to_string();
                self.note(&format!(
                    "reconnecting in {wait}: {}",
                    escape::escape(&error)
                ));
                Ok(())
            }
            Update::Heartbeat | Update::Finished(_) => Ok(()),
        }
    }

    /// `deduplicated`: of the snapshot that answers a submit, whether an earlier one had made the job.
    fn snapshot(&mut self, job: &pb::Job, deduplicated: Option<bool>) -> io::Result<()> {
        match &mut self.kind {
            Kind::Json => match deduplicated {
                Some(deduplicated) => self.output.submitted(job, deduplicated)?,
                None => self.output.message(job)?,
            },
            Kind::Raw => {}
            Kind::Lines => {
                let progress = job.progress.as_ref().map(text::progress);
                let progress = progress.map_or_else(String::new, |known| format!(" {known}"));
                let (id, state) = (escape::escape(&job.job_id), text::state(job.state()));
                self.output.line(&format!("job {id} {state}{progress}"))?;
            }
            Kind::Screen(screen) => {
                screen.above(&format!("job {}", escape::escape(&job.job_id)));
                screen.job(job);
            }
        }
        if deduplicated == Some(true) {
            self.note(WAS_THERE);
        }
        Ok(())
    }

    fn event(&mut self, event: &pb::JobEvent) -> io::Result<()> {
        let chunk = match &event.event {
            Some(Event::Output(chunk)) => Some(chunk),
            _ => None,
        };
        self.has_written |= chunk.is_some_and(|chunk| chunk.stream != "stderr");
        match &mut self.kind {
            Kind::Json => self.output.message(event),
            Kind::Raw => chunk.map_or(Ok(()), |chunk| self.output.chunk(chunk)),
            Kind::Lines => self.output.line(&text::event(event)),
            Kind::Screen(screen) => screen.event(event, self.output),
        }
    }

    fn gap(&mut self, gap: &pb::EventGap) -> io::Result<()> {
        match &mut self.kind {
            Kind::Json => self.output.message(gap),
            Kind::Lines => self.output.line(&text::gap(gap)),
            Kind::Screen(screen) => {
                screen.above(&text::gap(gap));
                Ok(())
            }
            // What the job wrote is not all here: the one thing that has to be said even so.
            Kind::Raw => {
                say(&text::gap(gap));
                Ok(())
            }
        }
    }

    fn note(&mut self, note: &str) {
        match &mut self.kind {
            Kind::Screen(screen) => screen.above(note),
            Kind::Json | Kind::Raw | Kind::Lines => self.output.note(note),
        }
    }

    fn end(&mut self) -> io::Result<()> {
        match &mut self.kind {
            Kind::Screen(screen) => screen.end(self.output),
            Kind::Json | Kind::Raw | Kind::Lines => Ok(()),
        }
    }

    fn finished(&mut self, job: &pb::Job) -> io::Result<()> {
        self.end()?;
        match &self.kind {
            Kind::Json => self.output.message(job),
            Kind::Raw => {
                if let Some(error) = &job.error
                    && job.state() == State::Failed
                {
                    say(&text::job_error(error));
                }
                self.result(job)
            }
            Kind::Lines => {
                self.output.line(&format!("end {}", text::ending(job)))?;
                if let Some(result) = &job.result {
                    let result = text::payload(result);
                    let result = escape::escape(result.trim_end());
                    self.output.line(&format!("result {result}"))?;
                }
                Ok(())
            }
            Kind::Screen(_) => {
                let mark = if job.state() == State::Succeeded {
                    "✔"
                } else {
                    "✘"
                };
                say(&format!("{mark} {}", text::ending(job)));
                self.result(job)
            }
        }
    }

    /// The result on stdout, unless it is the text that the job has just written there.
    fn result(&self, job: &pb::Job) -> io::Result<()> {
        let Some(result) = &job.result else {
            return Ok(());
        };
        let said =
            self.has_written && matches!(result.content, Some(Content::Text(_) | Content::Data(_)));
        if said {
            return Ok(());
        }
        self.output.chunk(&pb::OutputChunk {
            stream: "stdout".to_owned(),
            offset: 0,
            chunk: Some(result.clone()),
        })?;
        // A text may end without a line feed, and a shell's prompt should not follow it.
        match &result.content {
            Some(Content::Text(text)) if self.output.is_terminal && !text.ends_with('\n') => {
                self.output.line("")
            }
            _ => Ok(()),
        }
    }
}
