//! Rules: every byte comes back.

use pacenote::job::event::{JobError, LogLevel, LogLine};
use pacenote::job::payload::{Content, Payload};
use pacenote::job::{Outcome, Report};
use pacenote::pb;
use pacenote::pb::job_event::Event;

use super::bench::{Bench, changed, demand, finish, output, report};

/// Texts that broke somebody's store.
pub(crate) const TEXTS: [&str; 8] = [
    "",
    "\0",
    "a\0b\0",
    "line\r\nline\u{2028}",
    "\u{1b}[31mred\u{7f}",
    "naïve 日本語 🦀 e\u{301} \u{202e}abc\u{feff}",
    "'; drop table jobs; -- \" \\ %s {0} $1 ?1",
    "\u{fffd}\u{10ffff}\u{fffe}",
];

fn payloads() -> Vec<Payload> {
    let json = [
        serde_json::json!(null),
        serde_json::json!({"a\u{0}b": ["\u{0}", 1.5, 9_007_199_254_740_991_i64], "": {}}),
    ];
    let bytes: [&[u8]; 5] = [b"", b"\0", b"\xff\xfe\0\xff", b"a\0b", &[0x80; 300]];
    let texts = TEXTS.into_iter().map(Payload::text);
    let json = json
        .iter()
        .map(|value| Payload::json(value).expect("shallow"));
    let data = bytes.into_iter().map(|bytes| Payload::data(bytes.to_vec()));
    let mut all: Vec<Payload> = texts.chain(json).chain(data).collect();
    let typed = Payload::text("x").with_media_type("text/html; charset=utf-8");
    all.push(typed.expect("visible"));
    all
}

/// Goal: input, checkpoint and result come back as they went in, alone in a group and beside others.
pub(crate) async fn payloads_come_back_byte_by_byte(bench: Bench) {
    let all = payloads();
    for group in all.chunks(1).chain([all.as_slice()]) {
        let news: Vec<_> = group
            .iter()
            .map(|input| bench.new_job().input(input.clone()))
            .collect();
        let entries = news.iter().cloned().map(|new| new.entry()).collect();
        bench.commit(entries, vec![]).await;
        let committed = bench.commit(vec![], vec![demand("work", 100)]).await;
        assert_eq!(committed.claimed.len(), group.len());
        let mut entries = Vec::new();
        for (claimed, payload) in committed.claimed.iter().zip(group) {
            assert_eq!(claimed.payloads.input.as_ref(), Some(payload));
            let saved = vec![Report::Checkpoint(payload.clone())];
            let key = &claimed.job.key;
            entries.push(changed(key, report(1, saved, bench.now())));
            let succeeded = Outcome::Succeeded(Some(payload.clone()));
            entries.push(changed(key, finish(1, succeeded)));
        }
        bench.commit(entries, vec![]).await;
        for (new, payload) in news.iter().zip(group) {
            let found = bench.get(&new.new.key).await.payloads;
            for role in [found.input, found.checkpoint, found.result] {
                assert_eq!(role.as_ref(), Some(payload));
            }
        }
    }
}

pub(crate) async fn a_mebibyte_goes_in_and_out(bench: Bench) {
    let bytes: Vec<u8> = (0..(1 << 20) - 8).map(|at: u32| (at % 251) as u8).collect();
    let payload = Payload::data(bytes);
    payload.check_size().expect("it is within the bound");
    let entries = (0..8).map(|_| bench.new_job().input(payload.clone()).hand_over());
    let committed = bench.commit(entries.collect(), vec![]).await;
    for claimed in &committed.claimed {
        let key = &claimed.job.key;
        assert_eq!(bench.get(key).await.payloads.input.as_ref(), Some(&payload));
    }
    let job = &committed.claimed[0].job;
    let reports = vec![output(payload.clone()), output(payload.clone())];
    bench.report(job, reports).await;
    let log = bench.log(&job.key).await;
    for event in &log[2..] {
        assert_eq!(chunk(event), payload);
    }
}

pub(crate) async fn labels_keys_and_errors_keep_every_character(bench: Bench) {
    for text in TEXTS {
        let new = bench.new_job().idempotent(&format!("k{text}"), text);
        let new = new.spec(|spec| {
            spec.labels.insert("label".to_owned(), text.to_owned());
        });
        let committed = bench.commit(vec![new.hand_over()], vec![]).await;
        let mut error = JobError::permanent("BROKEN", text);
        error.detail = text.to_owned();
        error.metadata.insert(text.to_owned(), text.to_owned());
        let failed = Outcome::Failed(error.clone());
        let job = bench.finish(&committed.claimed[0].job, failed).await;
        let found = bench.get(&job.key).await.job;
        assert_eq!(found.detail.error.as_ref(), Some(&error));
        assert_eq!(found.spec.labels["label"], text);
        assert_eq!(found.spec.idempotency_key, Some(format!("k{text}")));
    }
}

pub(crate) async fn output_and_log_lines_keep_every_character(bench: Bench) {
    let committed = bench
        .commit(vec![bench.new_job().hand_over()], vec![])
        .await;
    let job = &committed.claimed[0].job;
    let all = payloads();
    let mut reports: Vec<Report> = all.iter().cloned().map(output).collect();
    for text in TEXTS {
        let mut line = LogLine::new(LogLevel::Warn, text);
        line.fields.insert(text.to_owned(), text.into());
        reports.push(Report::Log(line));
    }
    bench.report(job, reports).await;
    let log = bench.log(&job.key).await;
    for (event, payload) in log[2..].iter().zip(&all) {
        assert_eq!(chunk(event), *payload);
    }
    for (event, text) in log[2 + all.len()..].iter().zip(TEXTS) {
        let Some(Event::Log(line)) = &event.event else {
            panic!("no log line: {event:?}");
        };
        let fields = &line.fields.as_ref().expect("fields").fields;
        assert_eq!((line.message.as_str(), fields.len()), (text, 1));
        assert!(fields.contains_key(text));
    }
}

pub(crate) async fn a_checkpoint_takes_the_place_of_the_one_before(bench: Bench) {
    let committed = bench
        .commit(vec![bench.new_job().hand_over()], vec![])
        .await;
    let job = &committed.claimed[0].job;
    let save = |text: &str| Report::Checkpoint(Payload::text(text));
    bench.report(job, vec![save("one"), save("two")]).await;
    let found = bench.get(&job.key).await.payloads.checkpoint;
    assert_eq!(found, Some(Payload::text("two")));
    let json = Payload::json(&serde_json::json!({"page": 3})).expect("shallow");
    bench
        .report(job, vec![Report::Checkpoint(json.clone())])
        .await;
    assert_eq!(bench.get(&job.key).await.payloads.checkpoint, Some(json));
}

fn chunk(event: &pb::JobEvent) -> Payload {
    let Some(Event::Output(output)) = &event.event else {
        panic!("no output: {event:?}");
    };
    let chunk = output.chunk.clone().expect("a chunk");
    use pb::payload::Content as Wire;
    let content = match chunk.content.expect("content") {
        Wire::Json(value) => {
            let text = pacenote_json(value);
            return Payload::json(&text).expect("shallow");
        }
        Wire::Text(text) => Content::Text(text),
        Wire::Data(data) => Content::Data(data),
    };
    let media_type = Some(chunk.media_type).filter(|given| !given.is_empty());
    Payload::from_parts(content, media_type)
}

fn pacenote_json(value: prost_types::Value) -> serde_json::Value {
    use prost_types::value::Kind;
    match value.kind {
        None | Some(Kind::NullValue(_)) => serde_json::Value::Null,
        Some(Kind::BoolValue(bool)) => bool.into(),
        Some(Kind::NumberValue(number)) => number.into(),
        Some(Kind::StringValue(text)) => text.into(),
        Some(Kind::ListValue(list)) => {
            let values = list.values.into_iter();
            serde_json::Value::Array(values.map(pacenote_json).collect())
        }
        Some(Kind::StructValue(fields)) => {
            let fields = fields.fields.into_iter();
            let fields = fields.map(|(name, value)| (name, pacenote_json(value)));
            serde_json::Value::Object(fields.collect())
        }
    }
}
