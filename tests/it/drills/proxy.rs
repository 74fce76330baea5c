//! A stretch of network between a worker and its server that a test can cut.
//!
//! What is sent into a cut stands still, as TCP sends it again until it comes: once the cut is healed it
//! arrives, late, also where its sender has long let go of the connection. Every other connection does not
//! outlive a cut, as behind a gateway that has forgotten it. None can be made meanwhile: that takes both ways.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Which way nothing passes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Cut {
    Requests,
    Answers,
    Both,
}

impl Cut {
    fn stops_requests(self) -> bool {
        matches!(self, Self::Requests | Self::Both)
    }

    fn stops_answers(self) -> bool {
        matches!(self, Self::Answers | Self::Both)
    }
}

type Is = watch::Receiver<Option<Cut>>;

/// Ends with its test.
pub(super) struct Proxy {
    pub(super) address: String,
    cut: watch::Sender<Option<Cut>>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    pub(super) async fn before(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address").to_string();
        let (cut, is) = watch::channel(None);
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, server.to_owned(), is));
        Self {
            address,
            cut,
            _tasks: tasks,
        }
    }

    pub(super) fn cut(&self, cut: Cut) {
        self.cut.send_replace(Some(cut));
    }

    pub(super) fn heal(&self) {
        self.cut.send_replace(None);
    }
}

async fn accept(listener: TcpListener, server: String, is: Is) {
    let mut connections = JoinSet::new();
    let mut outlives_a_cut = true;
    loop {
        let Ok((client, _)) = listener.accept().await else {
            // As a port that is out of descriptors: the client comes again.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        outlives_a_cut = !outlives_a_cut;
        let (server, mut is) = (server.clone(), is.clone());
        connections.spawn(async move {
            let passed = pass(client, server, is.clone());
            if outlives_a_cut {
                return passed.await;
            }
            tokio::select! {
                // Dropped, both ends are closed.
                () = passed => {}
                () = one_cut(&mut is) => {}
            }
        });
        // Those that have ended, or the set only grows.
        while connections.try_join_next().is_some() {}
    }
}

/// Until a cut has come and gone. Pending where the test is over.
async fn one_cut(is: &mut Is) {
    let came = is.wait_for(Option::is_some).await.is_ok();
    if !came || is.wait_for(Option::is_none).await.is_err() {
        std::future::pending().await
    }
}

async fn pass(client: TcpStream, server: String, mut is: Is) {
    if is.wait_for(Option::is_none).await.is_err() {
        return;
    }
    let Ok(server) = TcpStream::connect(server).await else {
        return;
    };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::join!(
        pump(from_client, to_server, is.clone(), Cut::stops_requests),
        pump(from_server, to_client, is, Cut::stops_answers),
    );
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut is: Is, stops: fn(Cut) -> bool) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        if is.wait_for(|cut| !cut.is_some_and(stops)).await.is_err() {
            return;
        }
        let read = tokio::select! {
            // read() is cancel safe: what has not been read is still there.
            read = from.read(&mut buffer) => read,
            changed = is.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
        };
        // It may have been cut while nothing came.
        if is.wait_for(|cut| !cut.is_some_and(stops)).await.is_err() {
            return;
        }
        let passed = match read {
            Ok(0) | Err(_) => return drop(to.shutdown().await),
            Ok(count) => to.write_all(&buffer[..count]).await,
        };
        if passed.is_err() {
            return;
        }
    }
}
