//! A job on a terminal: one line that moves, and what the job writes above it.

use std::io;
use std::time::{Duration, SystemTime};

use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::jobs::escape::escape;
use crate::cli::jobs::output::{Output, say};
use crate::cli::jobs::text;
use crate::pb;
use crate::pb::job_event::Event;
use crate::pb::payload::Content;

/// Longest line that is held back until its end comes. Chosen: a screenful.
const HELD_BYTES_MAX: usize = 8 << 10;

/// The moving line. On stderr, so that stdout has the job's output alone.
pub(crate) struct Screen {
    bar: ProgressBar,
    has_fraction: bool,
    /// The beginning of a line whose end has not come: printed now, the bar would be drawn over it.
    held: pb::OutputChunk,
}

impl Screen {
    pub(crate) fn new(name: &str) -> Self {
        let bar = ProgressBar::new_spinner();
        bar.set_style(style(false));
        bar.set_prefix(escape(name).into_owned());
        bar.enable_steady_tick(Duration::from_millis(120));
        Self {
            bar,
            has_fraction: false,
            held: pb::OutputChunk::default(),
        }
    }

    /// Shows the job as it is.
    pub(crate) fn job(&mut self, job: &pb::Job) {
        self.bar.set_prefix(escape(&job.r#type).into_owned());
        match &job.progress {
            Some(progress) => self.progress(progress),
            None => self.bar.set_message(text::state(job.state())),
        }
    }

    pub(crate) fn event(&mut self, event: &pb::JobEvent, output: Output) -> io::Result<()> {
        match &event.event {
            Some(Event::Progress(progress)) => self.progress(progress),
            Some(Event::StateChange(change)) => {
                self.bar.set_message(text::state(change.to_state()));
            }
            Some(Event::Output(chunk)) => self.output(chunk, output)?,
            Some(Event::Log(line)) => self.above(&text::log(line)),
            Some(Event::AttemptEnd(_) | Event::CancelRequested(_) | Event::Stalled(_)) | None => {
                self.above(&text::event(event));
            }
        }
        Ok(())
    }

    /// A line above the moving one.
    pub(crate) fn above(&self, line: &str) {
        self.bar.suspend(|| say(line));
    }

    /// What the line says until the next event.
    pub(crate) fn says(&self, message: String) {
        self.bar.set_message(message);
    }

    /// Takes the line away and prints what was held back.
    pub(crate) fn end(&mut self, output: Output) -> io::Result<()> {
        self.bar.finish_and_clear();
        let mut held = std::mem::take(&mut self.held);
        if let Some(Content::Text(text)) = held.chunk.as_mut().and_then(|c| c.content.as_mut()) {
            text.push('\n');
        }
        output.chunk(&held)
    }

    fn progress(&mut self, progress: &pb::Progress) {
        if progress.fraction.is_some() != self.has_fraction {
            self.has_fraction = progress.fraction.is_some();
            self.bar.set_style(style(self.has_fraction));
        }
        if let Some(fraction) = progress.fraction {
            self.bar.set_length(1_000);
            // Thousandths are more than a bar has cells; clamped, so it fits.
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "clamped"
            )]
            self.bar
                .set_position((fraction.clamp(0.0, 1.0) * 1_000.0) as u64);
        }
        self.bar.set_message(beside_the_bar(progress));
    }

    /// Prints whole lines; what has no end yet waits for it.
    fn output(&mut self, chunk: &pb::OutputChunk, output: Output) -> io::Result<()> {
        let payload = chunk.chunk.as_ref();
        let Some(Content::Text(text)) = payload.and_then(|payload| payload.content.as_ref()) else {
            self.release(output)?;
            return self.bar.suspend(|| output.chunk(chunk));
        };
        if self.held.stream != chunk.stream {
            self.release(output)?;
        }
        let mut whole = held_text(&self.held).to_owned();
        whole.push_str(text);
        let end = match whole.rfind('\n') {
            Some(at) => at + 1,
            None if whole.len() > HELD_BYTES_MAX => whole.len(),
            None => 0,
        };
        let rest = whole.split_off(end);
        if !whole.is_empty() {
            self.bar
                .suspend(|| output.chunk(&text_chunk(&chunk.stream, whole)))?;
        }
        self.held = text_chunk(&chunk.stream, rest);
        Ok(())
    }

    /// Prints a held line as if its end had come: another stream speaks now.
    fn release(&mut self, output: Output) -> io::Result<()> {
        let held = std::mem::take(&mut self.held);
        if held_text(&held).is_empty() {
            return Ok(());
        }
        let line = format!("{}\n", held_text(&held));
        self.bar
            .suspend(|| output.chunk(&text_chunk(&held.stream, line)))
    }
}

fn held_text(chunk: &pb::OutputChunk) -> &str {
    match chunk
        .chunk
        .as_ref()
        .and_then(|payload| payload.content.as_ref())
    {
        Some(Content::Text(text)) => text,
        Some(Content::Json(_) | Content::Data(_)) | None => "",
    }
}

fn text_chunk(stream: &str, text: String) -> pb::OutputChunk {
    let chunk = (!text.is_empty()).then(|| pb::Payload {
        content: Some(Content::Text(text)),
        media_type: String::new(),
    });
    pb::OutputChunk {
        stream: stream.to_owned(),
        offset: 0,
        chunk,
    }
}

/// `4/10 pages 3.1/s eta 12s encode: message`: what the bar itself does not show.
fn beside_the_bar(progress: &pb::Progress) -> String {
    let mut parts = Vec::new();
    parts.extend(text::units(progress));
    if let Some(rate) = progress.units_per_second.filter(|rate| *rate > 0.0) {
        parts.push(match progress.unit.as_str() {
            "bytes" => format!("{}/s", indicatif::HumanBytes(rate_of(rate))),
            _ if rate < 10.0 => format!("{rate:.1}/s"),
            _ => format!("{rate:.0}/s"),
        });
    }
    let left = progress.estimated_end_time.and_then(|end| {
        let left = SystemTime::try_from(end)
            .ok()?
            .duration_since(SystemTime::now())
            .ok()?;
        Some(Duration::from_secs(left.as_secs()))
    });
    if let Some(left) = left.filter(|left| !left.is_zero()) {
        parts.push(format!("eta {}", humantime::format_duration(left)));
    }
    if !progress.phase.is_empty() {
        parts.push(format!("{}:", escape(&progress.phase)));
    }
    parts.push(escape(&progress.message).into_owned());
    parts.join(" ").trim_end().to_owned()
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a cast saturates"
)]
fn rate_of(rate: f64) -> u64 {
    rate as u64
}

/// Colours stay off where NO_COLOR is set: indicatif asks the environment itself.
fn style(has_fraction: bool) -> ProgressStyle {
    let template = if has_fraction {
        "{spinner:.cyan} {prefix:.bold} {bar:24.cyan/dim} {percent:>3}% {wide_msg}"
    } else {
        "{spinner:.cyan} {prefix:.bold} {wide_msg}"
    };
    ProgressStyle::with_template(template)
        .expect("a valid template in the source")
        .progress_chars("━╸─")
}
