//! The standard services beside ours, and gzip on all of them.

use pacenote::pb;
use pacenote::pb::job_service_client::JobServiceClient;
use tokio_stream::StreamExt;
use tonic::Code;
use tonic::codec::CompressionEncoding::Gzip;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::{v1, v1alpha};

use crate::harness::{TestServer, folder, soon, submit_request};

const OURS: [&str; 3] = [
    "pacenote.v1.JobService",
    "pacenote.v1.QueueService",
    "pacenote.v1.WorkerService",
];

async fn channel(server: &TestServer) -> Channel {
    let endpoint = Channel::from_shared(format!("http://{}", server.address));
    let connected = endpoint.expect("an address").connect().await;
    connected.expect("the server accepts")
}

fn health_of(service: &str) -> HealthCheckRequest {
    HealthCheckRequest {
        service: service.to_owned(),
    }
}

#[tokio::test]
async fn health_answers_for_the_server_and_the_service_with_and_without_gzip() {
    let dir = folder();
    let (server, _puppets) = TestServer::with_puppets(&dir).await;
    let plain = HealthClient::new(channel(&server).await);
    for mut health in [plain.clone(), plain.send_compressed(Gzip)] {
        for service in [""].into_iter().chain(OURS) {
            let checked = health.check(health_of(service)).await.expect("known");
            assert_eq!(checked.into_inner().status(), ServingStatus::Serving);
            let watched = health.watch(health_of(service)).await.expect("known");
            let first = soon(watched.into_inner().message()).await;
            let first = first.expect("no error").expect("a word");
            assert_eq!(first.status(), ServingStatus::Serving);
        }
        let unknown = health.check(health_of("pacenote.v9.Nothing")).await;
        assert_eq!(unknown.expect_err("unknown").code(), Code::NotFound);
    }
    server.stop().await.expect("a clean end");
}

#[tokio::test]
async fn our_own_service_takes_gzip() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let mut client = JobServiceClient::new(channel(&server).await).send_compressed(Gzip);
    let run = pb::RunRequest {
        submit: Some(submit_request("puppet")),
        ..pb::RunRequest::default()
    };
    let mut run = client.run(run).await.expect("good").into_inner();
    puppets.next().await.succeed();
    let mut messages = 0;
    while soon(run.message()).await.expect("no error").is_some() {
        messages += 1;
    }
    assert!(messages >= 2, "a snapshot at both ends");
    server.stop().await.expect("a clean end");
}

#[tokio::test]
async fn reflection_v1_lists_our_services_and_finds_their_messages() {
    use v1::server_reflection_client::ServerReflectionClient;
    use v1::server_reflection_request::MessageRequest;
    use v1::server_reflection_response::MessageResponse;
    let dir = folder();
    let (server, _puppets) = TestServer::with_puppets(&dir).await;
    let plain = ServerReflectionClient::new(channel(&server).await);
    for mut client in [plain.clone(), plain.send_compressed(Gzip)] {
        let asks = [
            MessageRequest::ListServices(String::new()),
            MessageRequest::FileContainingSymbol("pacenote.v1.Job".to_owned()),
        ];
        let asks = asks.map(|message| v1::ServerReflectionRequest {
            host: String::new(),
            message_request: Some(message),
        });
        let answers = client
            .server_reflection_info(tokio_stream::iter(asks))
            .await;
        let answers: Vec<_> = soon(answers.expect("it answers").into_inner().collect()).await;
        let answers: Vec<MessageResponse> = answers
            .into_iter()
            .map(|answer| {
                answer
                    .expect("no error")
                    .message_response
                    .expect("an answer")
            })
            .collect();
        let [MessageResponse::ListServicesResponse(services), found] = &answers[..] else {
            panic!("{answers:?}");
        };
        let names: Vec<&str> = services.service.iter().map(|s| s.name.as_str()).collect();
        assert!(OURS.iter().all(|ours| names.contains(ours)), "{names:?}");
        assert!(names.contains(&"grpc.health.v1.Health"), "{names:?}");
        assert!(
            matches!(found, MessageResponse::FileDescriptorResponse(_)),
            "{found:?}"
        );
    }
    server.stop().await.expect("a clean end");
}

#[tokio::test]
async fn reflection_v1alpha_lists_our_services() {
    use v1alpha::server_reflection_client::ServerReflectionClient;
    use v1alpha::server_reflection_request::MessageRequest;
    use v1alpha::server_reflection_response::MessageResponse;
    let dir = folder();
    let (server, _puppets) = TestServer::with_puppets(&dir).await;
    let plain = ServerReflectionClient::new(channel(&server).await);
    for mut client in [plain.clone(), plain.send_compressed(Gzip)] {
        let ask = v1alpha::ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let answers = client
            .server_reflection_info(tokio_stream::iter([ask]))
            .await;
        let mut answers = answers.expect("it answers").into_inner();
        let answer = soon(answers.message())
            .await
            .expect("no error")
            .expect("an answer");
        let Some(MessageResponse::ListServicesResponse(services)) = answer.message_response else {
            panic!("{answer:?}");
        };
        for ours in OURS {
            assert!(services.service.iter().any(|s| s.name == ours), "{ours}");
        }
    }
    server.stop().await.expect("a clean end");
}
