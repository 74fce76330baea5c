//! Programs as executors: argv with placeholders and never a shell, live output, progress, cancel and a
//! result.
//!
//! An attempt ends with everything it started gone, whether it was stopped or failed; after a success
//! its process group is ended and a daemon that left it is left alone. What a crash of this process
//! leaves running is ended by [`end_survivors`] at the next start.

mod descriptors;
mod environment;
mod events;
mod exit;
mod folder;
mod leader;
mod percent;
mod pipe;
mod processes;
mod result;
mod running;
mod spawn;
mod streams;
mod survivors;
mod template;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::{BoxFuture, FutureExt};

pub use crate::executor::command::survivors::end_survivors;

use crate::config::CommandConfig;
use crate::config::template::Template;
use crate::executor::command::environment::Environment;
use crate::executor::command::running::Running;
use crate::executor::command::template::{Fields, Problem, fill};
use crate::executor::handler::invalid_input;
use crate::executor::{Attempt, Executor};
use crate::job::Outcome;
use crate::job::payload::Payload;

/// Runs a configured program for each attempt.
#[derive(Clone, Debug)]
pub struct CommandExecutor {
    command: Arc<Command>,
}

#[derive(Debug)]
struct Command {
    config: CommandConfig,
    argv: Vec<Template>,
    environment: Environment,
    attempts_dir: PathBuf,
}

impl CommandExecutor {
    /// From its configuration. `attempts_dir` is where attempts have their private folders; it is made
    /// when the first one needs it.
    ///
    /// # Errors
    /// A sentence that says what is wrong with the configuration: no program, a placeholder in its
    /// name, a malformed argument, or a variable that no environment can hold.
    pub fn new(config: CommandConfig, attempts_dir: PathBuf) -> Result<Self, String> {
        let argv: Vec<Template> = config
            .command
            .iter()
            .map(|argument| {
                Template::parse(argument)
                    .map_err(|problem| format!("command: {argument:?} {problem}"))
            })
            .collect::<Result<_, _>>()?;
        match (argv.first(), config.command.first()) {
            (None, _) | (_, None) => return Err("command names no program".to_owned()),
            (_, Some(program)) if program.is_empty() => {
                return Err("command begins with an empty program name".to_owned());
            }
            (Some(program), _) if !program.is_fixed() => {
                return Err(
                    "command begins with a placeholder: which program runs is not for a caller to say".to_owned(),
                );
            }
            _ => {}
        }
        environment::check(&config.env)?;
        let attempts_dir = std::path::absolute(attempts_dir)
            .map_err(|error| format!("the folder for attempts cannot be used: {error}"))?;
        Ok(Self {
            command: Arc::new(Command {
                environment: environment::of_type(&config.env),
                config,
                argv,
                attempts_dir,
            }),
        })
    }
}

impl Executor for CommandExecutor {
    fn check(&self, input: Option<&Payload>) -> Result<(), Vec<(String, String)>> {
        self.command.arguments(input).map(drop)
    }

    fn run(&self, mut attempt: Attempt) -> BoxFuture<'static, Outcome> {
        let command = Arc::clone(&self.command);
        async move {
            let argv = match command.arguments(attempt.input.as_ref()) {
                Ok(argv) => argv,
                Err(problems) => {
                    return Outcome::Failed(invalid_input(&problems).cut());
                }
            };
            if attempt.stop.is_cancelled() {
                return Outcome::Cancelled;
            }
            let (config, environment) = (&command.config, command.environment.clone());
            let attempts_dir = &command.attempts_dir;
            match Running::start(config, environment, attempts_dir, argv, &mut attempt).await {
                Ok(running) => running.finish(config, &attempt).await,
                Err(error) => Outcome::Failed(error.cut()),
            }
        }
        .boxed()
    }
}

impl Command {
    /// The arguments for an input, or every field that is wrong, once.
    fn arguments(&self, input: Option<&Payload>) -> Result<Vec<String>, Vec<Problem>> {
        if self.argv.iter().all(Template::is_fixed) {
            let fixed = |template| fill(template, &Fields::Absent, true);
            return self.argv.iter().map(fixed).collect();
        }
        let fields = Fields::of(input);
        let mut argv = Vec::with_capacity(self.argv.len());
        let mut problems = Vec::new();
        for template in &self.argv {
            match fill(template, &fields, self.config.allow_dash) {
                Ok(argument) => argv.push(argument),
                Err(wrong) => {
                    for problem in wrong {
                        if !problems.contains(&problem) {
                            problems.push(problem);
                        }
                    }
                }
            }
        }
        if problems.is_empty() {
            Ok(argv)
        } else {
            Err(problems)
        }
    }
}
