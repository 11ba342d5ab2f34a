//! Log lines: for programs too, and those about a request name it.

use serde_json::Value;

use crate::client::{Ask, header, paint};
use crate::connect;
use crate::up::Part;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_are_json_and_those_about_a_request_name_it() {
    let dir = tempfile::tempdir().unwrap();
    let served = Part::start(dir.path(), "serve", &["serve", "--listen", "127.0.0.1:0", "--log-format", "json"]);
    let address = served.line().strip_prefix("ready ").unwrap().to_owned();
    let mut client = connect(&address).await;
    let mut good = paint("a red circle");
    good.header = header();
    let mut bad = paint("a red circle");
    bad.temperature = Some(-1.0);
    let expected = [(Ask::Paint(good), "ok"), (Ask::Paint(bad), "invalid")];
    for (ask, outcome) in expected {
        let id = ask.id();
        let answer = ask.answer(&mut client, || ()).await;
        assert_eq!(answer.is_ok(), outcome == "ok", "{answer:?}");
        served.says(&id).await;
        let said = served.said();
        let lines: Vec<Value> =
            said.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect();
        let about = |line: &&Value| line["spans"].as_array().is_some_and(|spans| spans.iter().any(|s| s["request"] == id));
        let last = lines.iter().rfind(about).unwrap_or_else(|| panic!("no line names {id}:\n{said}"));
        assert_eq!((&last["message"], &last["outcome"]), (&"request ended".into(), &outcome.into()), "{last}");
        assert!(last["seconds"].as_f64() > Some(0.0) && last["level"] == "INFO" && last["timestamp"].is_string(), "{last}");
    }
}
