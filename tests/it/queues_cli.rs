//! `pacenote queues` against a real server.

use std::process::Output;

use crate::harness::{TestServer, binary, folder};
use crate::queues::submit_to;

async fn pacenote(server: &TestServer, arguments: &[&str]) -> Output {
    let mut command = tokio::process::Command::new(binary());
    command.arg("queues").args(arguments);
    let command = command.env("PACENOTE_SERVER", &server.address);
    command.output().await.expect("the program was run")
}

async fn said(server: &TestServer, arguments: &[&str]) -> String {
    let output = pacenote(server, arguments).await;
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(
        output.status.success(),
        "{arguments:?}: {:?}",
        output.stderr
    );
    text
}

#[tokio::test]
async fn queues_are_listed_bounded_paused_and_purged_on_the_line() {
    let dir = folder();
    let (server, _puppets) = TestServer::with_puppets(&dir).await;
    let limits = ["limits", "reports", "--concurrency", "2", "--rate", "10/1m"];
    let line = said(&server, &limits).await;
    assert!(
        line.contains("concurrency=2 (runtime) rate=10/1m (runtime)"),
        "{line}"
    );
    let line = said(&server, &["pause", "reports"]).await;
    assert!(line.contains("paused"), "{line}");
    for _ in 0..3 {
        submit_to(&server, "puppet", "reports").await;
    }
    let list = said(&server, &["list"]).await;
    let of_reports = list.lines().find(|line| line.starts_with("reports"));
    let columns: Vec<&str> = of_reports
        .expect("it is listed")
        .split_whitespace()
        .collect();
    assert_eq!(columns[1], "3", "{list}");
    let types = said(&server, &["pause", "--type", "puppet"]).await;
    assert!(
        types.starts_with("puppet") && types.contains("paused default"),
        "{types}"
    );
    let json = said(&server, &["types", "--json"]).await;
    let json: Vec<serde_json::Value> = json
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(json[1]["name"], "puppet");
    assert_eq!(json[1]["counts"]["queued"], "3");
    said(&server, &["resume", "--type", "puppet"]).await;
    let reset = [
        "limits",
        "reports",
        "--reset",
        "rate",
        "--concurrency",
        "none",
    ];
    let line = said(&server, &reset).await;
    assert!(
        line.contains("concurrency=none (runtime)") && !line.contains("rate"),
        "{line}"
    );
    assert_eq!(
        said(&server, &["purge", "reports", "--reason", "old"]).await,
        "3\n"
    );
    let line = said(&server, &["resume", "reports", "--json"]).await;
    let queue: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    assert_eq!(queue["counts"]["cancelled"], "3");
    assert_eq!(queue.get("paused"), None);

    for wrong in [
        &["limits", "reports"][..],
        &["pause"],
        &["limits", "reports", "--rate", "0/1s"],
        &["limits", "reports", "--concurrency", "0"],
    ] {
        assert_eq!(
            pacenote(&server, wrong).await.status.code(),
            Some(2),
            "{wrong:?}"
        );
    }
    for refused in [&["pause", "no name"][..], &["resume", "--type", "slep"]] {
        let output = pacenote(&server, refused).await;
        assert_eq!(output.status.code(), Some(5), "{refused:?}");
    }
    server.begin_stop();
}
