//! Does jobs of the type `greet` for a server elsewhere: `cargo run --example worker [HOST:PORT]`. It needs the
//! feature `client` alone.

use std::time::Duration;

use pacenote::client::Client;
use pacenote::client::worker::{Context, HandlerError, Progress, Worker};
use serde::{Deserialize, Serialize};

#[derive(Deserialize)]
struct Party {
    names: Vec<String>,
}

#[derive(Serialize)]
struct Greeted {
    greeted: usize,
}

/// Greets everybody; goes on where an earlier attempt left off.
async fn greet(context: Context, party: Party) -> Result<Greeted, HandlerError> {
    let (done, total) = (context.checkpoint()?.unwrap_or(0), party.names.len());
    for (number, name) in party.names.iter().enumerate().skip(done) {
        let text = format!("Hello, {name}!\n");
        context.output("stdout", text).await?;
        tokio::select! {
            () = context.cancelled() => return Err(HandlerError::cancelled()),
            () = tokio::time::sleep(Duration::from_millis(500)) => {} // The work.
        }
        let progress = Progress::units(number as i64 + 1, Some(total as i64), "names");
        context.progress(progress).await?;
        context.save_checkpoint(&(number + 1)).await?;
    }
    Ok(Greeted { greeted: total })
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1);
    let client = Client::connect(address.as_deref().unwrap_or("127.0.0.1:7430")).await?;
    let shutdown = async {
        // Where it cannot be heard, the worker goes on.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending().await
        }
    };
    let worker = Worker::new(&client).handler("greet", greet).concurrency(4);
    println!("waiting for jobs of the type greet");
    worker.run(shutdown).await?;
    Ok(())
}
