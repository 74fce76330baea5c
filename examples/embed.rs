//! A server inside a program, with a job type of its own: `cargo run --example embed`.

use std::{error::Error, time::Duration};

use pacenote::embed::{Client, Config, Context, HandlerError, Progress};
use pacenote::embed::{RunOptions, Server, request};
use pacenote::pb::job::State;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

#[derive(Serialize, Deserialize)]
struct Book {
    title: String,
    pages: i64,
}

async fn print(context: Context, book: Book) -> Result<Book, HandlerError> {
    for page in 1..=book.pages {
        tokio::select! {
            () = context.cancelled() => return Err(HandlerError::cancelled()),
            () = tokio::time::sleep(Duration::from_millis(100)) => {}
        }
        context.output("pages", format!("page {page}\n")).await?;
        let progress = Progress::units(page, Some(book.pages), "pages");
        context.progress(progress).await?;
    }
    Ok(book) // the result
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut config = Config::default();
    let folder = tempfile::tempdir()?;
    config.store = folder.path().join("jobs.db");
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let client = Client::connect(listener.local_addr()?.to_string());
    let stop = CancellationToken::new();
    let server = Server::new(config).handler("print", print);
    let serving = tokio::spawn(server.serve(listener, stop.clone().cancelled_owned()));

    let client = client.await?;
    let title = "Rally".to_owned();
    let job = request("print", &Book { title, pages: 10 })?;
    let mut watch = client.run(job.clone(), RunOptions::default());
    while let Some(update) = watch.next().await {
        println!("{:?}", update?);
    }
    let job_id = client.submit(job).await?.job.unwrap_or_default().job_id;
    client.cancel(&job_id, "one copy is enough").await?;
    let end = client.wait(&job_id, None).await?.job.unwrap_or_default();
    assert_eq!(end.state(), State::Cancelled);
    stop.cancel();
    Ok(serving.await??)
}
