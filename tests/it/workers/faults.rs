//! Workers and a server that cannot hear them: damaged rows, a full disk, a process that stood still, callers that
//! went away. What is no worker's fault costs no worker its lease, and no job an attempt.

use super::*;
use crate::harness::job_key;
use crate::store::bench::connect;
use crate::store::meddled::{DAMAGED, meddle};

/// Goal: a lease of which the server can say nothing, because its job's row is damaged or cannot be written, is
/// neither renewed nor lost, and takes no other lease along. Method: one row damaged between two servers, so that
/// nobody remembers it, and one that fails every commit that changes it.
#[tokio::test]
async fn a_lease_that_nothing_is_known_of_takes_no_other_along() {
    const UNWRITABLE: &str = "
create trigger unwritable before update on jobs when old.priority = 7
begin select raise(abort, 'this test''s fault'); end";
    let dir = folder();
    let path = || dir.path().join("pacenote.db");
    let scene = Scene::on(&dir).await;
    let (damaged, unwritable, lost) = (1, 4, 6);
    let mut held = Vec::new();
    for index in 0..7 {
        let request = pb::SubmitRequest {
            priority: if index == unwritable { 7 } else { 0 },
            ..submit_request("work")
        };
        scene.server.submit(request).await;
        held.push(scene.lease_one().await);
    }
    scene.stop().await;
    meddle(path(), &job_key(&id_of(&held[damaged])), DAMAGED).await;
    let server = Setup::on(dir.path()).start().await;
    let worker = worker_of(&server).await;
    let scene = Scene { server, worker };
    let ended = scene.finish(&held[lost].lease_token, done("over")).await;
    ended.expect("its end");
    let mut beside = connect(path()).await;
    let made = sqlx::query(UNWRITABLE).execute(&mut beside).await;
    made.expect("a trigger");
    let tokens: Vec<&str> = held.iter().map(|one| one.lease_token.as_str()).collect();
    for _ in 0..2 {
        for (index, status) in scene.extend(&tokens).await.iter().enumerate() {
            let renewed = status.lease_expire_time.is_some();
            let holds = ![damaged, unwritable, lost].contains(&index);
            let expected = (holds, index == lost);
            assert_eq!((renewed, status.lost), expected, "{index}");
        }
    }
    scene.stop().await;
}
