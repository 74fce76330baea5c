//! Servers that do not start, because what they were told cannot be.

use std::path::PathBuf;

use pacenote::config::{CommandConfig, JobType, ProgressMode, ResultMode, TypeSettings};
use pacenote::job::name::Name;
use pacenote::server::ServeError;

use crate::harness::{Puppets, Setup, folder};

fn program() -> JobType {
    JobType {
        settings: TypeSettings::default(),
        command: Some(CommandConfig {
            command: vec!["true".to_owned()],
            dir: PathBuf::from("/"),
            env: [].into(),
            allow_dash: false,
            result: ResultMode::default(),
            progress: ProgressMode::default(),
        }),
    }
}

/// Neither may silently run in the other's place; and nothing is opened for a server that cannot be.
#[tokio::test]
async fn a_configured_type_with_the_name_of_an_embedded_or_built_in_one_is_refused_by_name() {
    for name in ["puppet", "v1/puppet", "sleep", "checksum"] {
        let dir = folder();
        let setup = Setup::on(dir.path())
            .config(|config| {
                config.job_types.insert(Name::of("other"), program());
                config.job_types.insert(Name::of(name), program());
            })
            .job_type("puppet", Puppets::default())
            .job_type("v1/puppet", Puppets::default());
        match setup.try_start().await.err() {
            Some(ServeError::Config(message)) => {
                assert!(message.contains(&format!("job_types.{name}")), "{message}");
            }
            other => panic!("{name}: {other:?}"),
        }
        assert!(!dir.path().join("pacenote.db").exists(), "{name}");
    }
}

#[tokio::test]
async fn an_embedded_type_may_take_the_place_of_a_built_in_one() {
    let dir = folder();
    let puppets = Puppets::default();
    let setup = Setup::on(dir.path()).job_type("sleep", puppets.clone());
    let server = setup.start().await;
    server.submit(crate::harness::submit_request("sleep")).await;
    puppets.next().await.succeed();
    server.stop().await.expect("a clean end");
}
