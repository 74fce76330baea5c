//! Bytes that are no request: refused as the caller's fault, never INTERNAL, and never the server's end.

use bytes::{Buf, BufMut, Bytes};
use pacenote::pb;
use prost::Message;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tonic::client::Grpc;
use tonic::codec::CompressionEncoding::Gzip;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::harness::{TestServer, folder, reason_of, soon, submit_request, watch_request};

/// Sends bytes as they are, and gives back bytes as they come.
#[derive(Default)]
pub(crate) struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

const METHODS: [&str; 8] = [
    "Submit",
    "Run",
    "Get",
    "List",
    "Wait",
    "Cancel",
    "WatchJob",
    "ListEvents",
];

pub(crate) async fn raw(server: &TestServer) -> Grpc<Channel> {
    let endpoint = Channel::from_shared(format!("http://{}", server.address));
    let connected = endpoint.expect("an address").connect().await;
    Grpc::new(connected.expect("the server accepts"))
}

pub(crate) fn path(method: &str) -> PathAndQuery {
    let path = format!("/pacenote.v1.JobService/{method}");
    path.parse().expect("a path")
}

/// Calls a method with messages as they are; the first answer, or the refusal.
pub(crate) async fn call(
    grpc: &mut Grpc<Channel>,
    method: &str,
    messages: Vec<Bytes>,
) -> Result<Option<Bytes>, Status> {
    grpc.ready().await.expect("the server is there");
    let messages = Request::new(tokio_stream::iter(messages));
    let answers = grpc.streaming(messages, path(method), Raw).await?;
    soon(answers.into_inner().message()).await
}

fn is_malformed(answer: &Result<Option<Bytes>, Status>) -> bool {
    let expected = (Code::InvalidArgument, "MALFORMED_REQUEST".to_owned());
    matches!(answer, Err(refused) if reason_of(refused) == expected)
}

#[tokio::test]
async fn what_is_no_protobuf_is_refused_as_malformed_by_every_method() {
    let dir = folder();
    let (server, _puppets) = TestServer::with_puppets(&dir).await;
    let mut grpc = raw(&server).await;
    for method in METHODS {
        for (what, bytes) in [
            ("a length beyond the end", vec![0x0a, 0x7f, b'x']),
            ("no wire type", vec![0x0f]),
            ("text that is not UTF-8", vec![0x0a, 1, 0xff]),
            ("a varint without end", vec![0x08; 11]),
        ] {
            let answer = call(&mut grpc, method, vec![bytes.clone().into()]).await;
            // Nothing is text in the first field of List, so that it may skip what others refuse.
            let skips = method == "List" || method == "Run";
            let refused = is_malformed(&answer);
            assert!(
                refused || (skips && answer_is_no_fault(&answer)),
                "{method}, {what}: {answer:?}"
            );
        }
        let nothing = call(&mut grpc, method, vec![]).await;
        assert!(
            is_malformed(&nothing),
            "{method} without a message: {nothing:?}"
        );
        let huge = Bytes::from(vec![0; 9 * 1024 * 1024]);
        let huge = call(&mut grpc, method, vec![huge]).await;
        assert!(is_malformed(&huge), "{method} with 9 MiB: {huge:?}");
    }
    server.submit(submit_request("sleep")).await;
    server.stop().await.expect("a clean end");
}

/// It would be refused again each time: told as RESOURCE_EXHAUSTED, clients would repeat it for ever.
#[tokio::test]
async fn what_unpacks_to_more_than_the_codec_takes_is_refused_as_malformed() {
    let dir = folder();
    let (server, _puppets) = TestServer::with_puppets(&dir).await;
    let mut client = server.client.clone().send_compressed(Gzip);
    let huge = pb::GetRequest {
        job_id: "x".repeat(9 * 1024 * 1024),
        view: 0,
    };
    let refused = client.get(huge).await.expect_err("beyond the codec");
    let expected = (Code::InvalidArgument, "MALFORMED_REQUEST".to_owned());
    assert_eq!(reason_of(&refused), expected);
    server.stop().await.expect("a clean end");
}

/// Whether an answer blames nobody but the caller.
fn answer_is_no_fault(answer: &Result<Option<Bytes>, Status>) -> bool {
    match answer {
        Ok(_) => true,
        Err(refused) => matches!(
            refused.code(),
            Code::InvalidArgument | Code::NotFound | Code::FailedPrecondition | Code::AlreadyExists
        ),
    }
}

/// Goal: no bytes make the server fail. Method: random bytes, and good requests with random damage, for
/// every method; a seed is printed with what failed.
#[tokio::test]
async fn random_bytes_are_refused_or_ignored_and_never_our_fault() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let job = server.submit(submit_request("puppet")).await;
    puppets.next().await.succeed();
    server.end_of(&job.job_id).await;
    let mut grpc = raw(&server).await;
    let submit = pb::SubmitRequest {
        idempotency_key: "k".to_owned(),
        labels: [("a".to_owned(), "b".to_owned())].into(),
        ..submit_request("no-such-type")
    };
    let good: [Vec<u8>; 3] = [
        submit.encode_to_vec(),
        watch_request(&job.job_id).encode_to_vec(),
        pb::ListRequest {
            page_size: 3,
            states: vec![1, 2],
            ..pb::ListRequest::default()
        }
        .encode_to_vec(),
    ];
    for seed in 0..120_u64 {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut bytes: Vec<u8> = if seed % 2 == 0 {
            let len = random.random_range(0..200);
            (0..len).map(|_| random.random()).collect()
        } else {
            good[random.random_range(0..good.len())].clone()
        };
        if !bytes.is_empty() {
            for _ in 0..random.random_range(0..4) {
                let at = random.random_range(0..bytes.len());
                bytes[at] = random.random();
            }
            bytes.truncate(random.random_range(1..=bytes.len()));
        }
        for method in METHODS {
            // A Wait may be told to take its time; what counts is that it was understood.
            let answer = tokio::time::timeout(
                std::time::Duration::from_secs(2),
                call(&mut grpc, method, vec![bytes.clone().into()]),
            );
            if let Ok(answer) = answer.await {
                assert!(
                    answer_is_no_fault(&answer),
                    "seed {seed}, {method}: {answer:?}"
                );
                if let Err(refused) = answer {
                    reason_of(&refused);
                }
            }
        }
    }
    assert_eq!(
        server.get(&job.job_id).await.job_id,
        job.job_id,
        "it is alive"
    );
    server.stop().await.expect("a clean end");
}
