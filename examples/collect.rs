//! Submits 1,000 jobs and collects them as they finish, over one stream:
//! `cargo run --example collect -- 127.0.0.1:7430`.

use std::error::Error;

use futures_util::{StreamExt, TryStreamExt, stream};
use pacenote::client::{JobsUpdate, JobsWatchOptions};
use pacenote::embed::{Client, request};
use pacenote::pb::{Job, JobView};

/// The jobs in about the order in which they finished, with their results.
pub(crate) async fn collect(client: Client) -> Result<Vec<Job>, Box<dyn Error>> {
    let sleep = request("sleep", &serde_json::json!({"seconds": 0}))?;
    let submits = (0..1_000).map(|_| client.submit(sleep.clone()));
    let submitted = stream::iter(submits).buffer_unordered(64);
    let answers: Vec<_> = submitted.try_collect().await?;
    let job_ids = answers
        .into_iter()
        .filter_map(|answer| Some(answer.job?.job_id));

    let mut watch = client.watch_jobs(JobsWatchOptions {
        job_ids: job_ids.collect(),
        finished_view: JobView::Full,
        ..JobsWatchOptions::default()
    });
    let mut finished = Vec::new();
    while let Some(update) = watch.next().await {
        if let JobsUpdate::Finished(job) = update? {
            finished.push(*job);
        }
    }
    Ok(finished)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let address = std::env::args().nth(1).ok_or("where is the server?")?;
    for job in collect(Client::connect(address).await?).await? {
        println!("{} {:?} {:?}", job.job_id, job.state(), job.result);
    }
    Ok(())
}
