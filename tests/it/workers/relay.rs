//! A WorkerService in front of a server, that loses what a test tells it to: requests on their way there, and
//! answers on their way back.

use std::sync::{Arc, Mutex};

use pacenote::pb;
use pacenote::pb::worker_service_client::WorkerServiceClient;
use pacenote::pb::worker_service_server::{WorkerService, WorkerServiceServer};
use prost::Message;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status};

/// A call that a worker makes.
pub(super) struct Call {
    /// `Lease`, `Report`, …
    pub(super) method: &'static str,
    /// How often the same request came before.
    pub(super) before: usize,
}

/// What becomes of a call.
#[derive(Clone)]
pub(super) enum Fate {
    Passes,
    /// The server never hears of it.
    RequestLost,
    /// The server does it, and nobody hears of that.
    AnswerLost,
    /// It stays on its way for ever.
    Silence,
    /// The server's answer waits until the sender of this has gone.
    Held(tokio::sync::watch::Receiver<()>),
    Refused(Status),
}

/// A method, and the request as it was sent.
type Seen = (&'static str, Vec<u8>);
type Decide = dyn Fn(&Call) -> Fate + Send + Sync;

#[derive(Clone)]
struct Service {
    to: Arc<Mutex<String>>,
    decide: Arc<Decide>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

/// A running relay. Dropping it ends it.
pub(super) struct Relay {
    pub(super) address: String,
    service: Service,
    serving: JoinHandle<()>,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Relay {
    pub(super) async fn to(
        address: &str,
        decide: impl Fn(&Call) -> Fate + Send + Sync + 'static,
    ) -> Self {
        let service = Service {
            to: Arc::new(Mutex::new(address.to_owned())),
            decide: Arc::new(decide),
            seen: Arc::default(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address").to_string();
        let server = Server::builder().add_service(WorkerServiceServer::new(service.clone()));
        let serving = tokio::spawn(async move {
            let serving = server.serve_with_incoming(TcpListenerStream::new(listener));
            serving.await.expect("the relay serves");
        });
        Self {
            address,
            service,
            serving,
        }
    }

    /// From here on it leads to another server.
    pub(super) fn lead_to(&self, address: &str) {
        *self.service.to.lock().expect("no panic") = address.to_owned();
    }

    /// How often a method was called.
    pub(super) fn calls(&self, method: &str) -> usize {
        let seen = self.service.seen.lock().expect("no panic");
        seen.iter().filter(|(called, _)| *called == method).count()
    }
}

impl Service {
    async fn relay<Q, R, Send, Answer>(
        &self,
        method: &'static str,
        request: Request<Q>,
        send: Send,
    ) -> Result<Response<R>, Status>
    where
        Q: Message,
        Send: FnOnce(WorkerServiceClient<Channel>, Q) -> Answer,
        Answer: Future<Output = Result<Response<R>, Status>>,
    {
        let request = request.into_inner();
        let seen = (method, request.encode_to_vec());
        let before = {
            let mut all = self.seen.lock().expect("no panic");
            let before = all.iter().filter(|earlier| **earlier == seen).count();
            all.push(seen);
            before
        };
        let fate = (self.decide)(&Call { method, before });
        let lost = || Status::unavailable("the connection broke");
        let passes = async {
            let to = self.to.lock().expect("no panic").clone();
            let endpoint = Channel::from_shared(format!("http://{to}")).expect("an address");
            let channel = endpoint.connect().await.map_err(|_| lost())?;
            send(WorkerServiceClient::new(channel), request).await
        };
        match fate {
            Fate::Passes => passes.await,
            Fate::RequestLost => Err(lost()),
            Fate::AnswerLost => {
                passes.await?;
                Err(lost())
            }
            Fate::Silence => std::future::pending().await,
            Fate::Held(mut until) => {
                let answer = passes.await;
                // The sender has gone.
                while until.changed().await.is_ok() {}
                answer
            }
            Fate::Refused(status) => Err(status),
        }
    }
}

#[tonic::async_trait]
impl WorkerService for Service {
    async fn lease(
        &self,
        request: Request<pb::LeaseRequest>,
    ) -> Result<Response<pb::LeaseResponse>, Status> {
        self.relay("Lease", request, |mut server, request| async move {
            server.lease(request).await
        })
        .await
    }

    async fn report(
        &self,
        request: Request<pb::ReportRequest>,
    ) -> Result<Response<pb::ReportResponse>, Status> {
        self.relay("Report", request, |mut server, request| async move {
            server.report(request).await
        })
        .await
    }

    async fn extend_leases(
        &self,
        request: Request<pb::ExtendLeasesRequest>,
    ) -> Result<Response<pb::ExtendLeasesResponse>, Status> {
        self.relay("ExtendLeases", request, |mut server, request| async move {
            server.extend_leases(request).await
        })
        .await
    }

    async fn finish(
        &self,
        request: Request<pb::FinishRequest>,
    ) -> Result<Response<pb::FinishResponse>, Status> {
        self.relay("Finish", request, |mut server, request| async move {
            server.finish(request).await
        })
        .await
    }
}
