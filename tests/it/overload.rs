//! As many calls as a connection has streams: what comes then waits in the client, and none is refused.

use bytes::Bytes;
use futures_util::future::{join_all, poll_immediate};
use tonic::{Code, Request};

use crate::errors_malformed::{Raw, call, path, raw};
use crate::harness::{TestServer, folder, reason_of, soon};

/// What the server allows a connection.
const STREAMS: usize = 4_096;

/// Goal: calls that their client gave up leave room at once for those that come after them, and those
/// beyond the streams wait. Method: all streams but one begin a request that never ends, and a call on the
/// last one tells that they have arrived; then they are dropped and more than there is room for begin,
/// whose first frames the server reads together with the resets.
#[tokio::test]
async fn no_call_is_refused_because_there_are_too_many() {
    let dir = folder();
    let (server, _puppets) = TestServer::with_puppets(&dir).await;
    let grpc = raw(&server).await;
    let held = (1..STREAMS).map(|_| {
        let mut grpc = grpc.clone();
        async move {
            grpc.ready().await.expect("the server is there");
            let endless = Request::new(tokio_stream::pending::<Bytes>());
            grpc.streaming(endless, path("Get"), Raw).await.map(drop)
        }
    });
    let mut held = Box::pin(join_all(held));
    assert!(poll_immediate(&mut held).await.is_none(), "they wait");
    // Cheap to answer: it asks for no job.
    let get = || {
        let mut grpc = grpc.clone();
        async move { call(&mut grpc, "Get", vec![Bytes::new()]).await }
    };
    let expected = (Code::InvalidArgument, "INVALID_FIELD".to_owned());
    tokio::select! {
        biased;
        answers = &mut held => panic!("{:?}", answers.first()),
        answer = soon(get()) => {
            assert_eq!(reason_of(&answer.expect_err("no id")), expected);
        }
    }
    drop(held);
    let gets = (0..STREAMS + 100).map(|_| get());
    for answer in soon(join_all(gets)).await {
        assert_eq!(reason_of(&answer.expect_err("no id")), expected);
    }
}
