//! How the demo looks: a moving line on a terminal, a few plain lines in a log.

use std::io::{self, IsTerminal};

use crate::cli::jobs::{Output, Screen, escape, text};
use crate::pb;
use crate::pb::job_event::Event;

/// Longest result that is printed whole.
const RESULT_CHARS_MAX: usize = 200;

/// In a log, progress is worth a line at each of these steps.
const PLAIN_STEP: f64 = 0.25;

/// One job being shown.
pub(super) struct Show {
    screen: Option<Screen>,
    /// The job's output is worth reading.
    with_output: bool,
    /// The fraction that the next plain progress line waits for.
    next_step: f64,
}

/// How the demo speaks: all of it is what it was called for, so all of it is data.
pub(super) fn output() -> Output {
    Output {
        json: false,
        quiet: false,
        is_terminal: io::stdout().is_terminal(),
    }
}

impl Show {
    pub(super) fn new(name: &str, with_output: bool) -> Self {
        let has_screen = output().is_terminal && io::stderr().is_terminal();
        Self {
            screen: has_screen.then(|| Screen::new(name)),
            with_output,
            next_step: PLAIN_STEP,
        }
    }

    pub(super) fn event(&mut self, event: &pb::JobEvent) -> io::Result<()> {
        if let Some(Event::Output(_)) = &event.event
            && !self.with_output
        {
            return Ok(());
        }
        if let Some(screen) = &mut self.screen {
            return screen.event(event, output());
        }
        if let Some(Event::Progress(progress)) = &event.event {
            match progress.fraction {
                Some(fraction) if fraction >= self.next_step => {
                    self.next_step = (fraction / PLAIN_STEP)
                        .floor()
                        .mul_add(PLAIN_STEP, PLAIN_STEP);
                }
                _ => return Ok(()),
            }
        }
        output().line(&format!("  {}", text::event(event)))
    }

    /// A line that stays.
    pub(super) fn line(&self, line: &str) -> io::Result<()> {
        match &self.screen {
            Some(screen) => {
                screen.above(line);
                Ok(())
            }
            None => output().line(line),
        }
    }

    /// What the moving line says until the next event.
    pub(super) fn says(&self, message: &str) {
        if let Some(screen) = &self.screen {
            screen.says(message.to_owned());
        }
    }

    /// Ends the moving line and says how the job ended.
    pub(super) fn end(mut self, job: &pb::Job) -> io::Result<()> {
        if let Some(mut screen) = self.screen.take() {
            screen.end(output())?;
        }
        let mut line = format!("  {}", text::ending(job));
        if let Some(result) = &job.result {
            let result = text::payload(result);
            let mut cut: String = result.trim_end().chars().take(RESULT_CHARS_MAX).collect();
            if cut.len() < result.trim_end().len() {
                cut.push('…');
            }
            line.push_str(&format!(", result {}", escape(&cut)));
        }
        output().line(&line)
    }
}
