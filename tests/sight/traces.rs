//! Traces: one request is followed through all processes, also over a loss, and costs few spans.

use std::collections::BTreeSet;
use std::time::Duration;

use janus_wire::v1::{GenerateImageRequest, generate_image_event::Event};
use tonic::Request;

use crate::client::{Client, paint, soon};
use crate::collector::{Collector, Told};
use crate::connect;
use crate::up::{Part, Up, signal, stages};

/// A picture in its caller's trace; `sampled` says whether the caller keeps it. `on_progress` hears of known ids.
async fn paint_in(client: &mut Client, trace: [u8; 16], sampled: bool, mut on_progress: impl FnMut(u32)) {
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let parent = format!("00-{}-{}-0{}", hex(&trace), hex(&[9; 8]), u8::from(sampled));
    let mut request: Request<GenerateImageRequest> = Request::new(paint("a red circle"));
    request.metadata_mut().insert("traceparent", parent.parse().unwrap());
    let mut events = soon(client.generate_image(request)).await.unwrap().into_inner();
    let mut done = false;
    while let Some(event) = soon(events.message()).await.unwrap() {
        match event.event {
            Some(Event::Progress(progress)) => on_progress(progress.known),
            Some(Event::Done(_)) => done = true,
            _ => {}
        }
    }
    assert!(done);
}

/// Spans of this name.
fn named<'a>(spans: &'a [Told], name: &str) -> Vec<&'a Told> {
    spans.iter().filter(|told| told.span.name == name).collect()
}

/// The span of this name, which must be the only one.
fn only<'a>(spans: &'a [Told], name: &str) -> &'a Told {
    match named(spans, name)[..] {
        [one] => one,
        ref many => panic!("{} spans are called {name}", many.len()),
    }
}

/// The trace, once its request, its pixels and so many steps of stages have been told.
async fn whole(collector: &Collector, trace: [u8; 16], stages: usize) -> Vec<Told> {
    let complete = |collector: &Collector| {
        let spans = collector.trace(trace);
        let count = |name: &str| named(&spans, name).len();
        (count("GenerateImage") == 1 && count("decoder") == 1 && count("stage") >= stages).then(|| spans.clone())
    };
    collector.until("a whole trace", complete).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_trace_follows_a_picture_through_every_process_and_over_a_loss() {
    let (collector, url) = Collector::start().await;
    let up = Up::slow(2, &["--spares", "1", "--otlp", &url]);
    let mut client = connect(&up.endpoints).await;

    let quiet = [1; 16];
    paint_in(&mut client, [3; 16], true, |_| ()).await;
    let spans = whole(&collector, [3; 16], 4).await;
    paint_in(&mut client, quiet, false, |_| ()).await;

    let request = only(&spans, "GenerateImage");
    assert_eq!((&request.service[..], &request.instance[..]), ("janus-coordinator", "coordinator-0"));
    assert_eq!(request.span.parent_span_id, [9; 8], "it is not its caller's");
    // SPAN_KIND_SERVER
    assert_eq!(request.span.kind, 2);
    let below = |told: &Told, parent: &Told| told.span.parent_span_id == parent.span.span_id;
    let steps = named(&spans, "step");
    assert!(below(only(&spans, "queued"), request) && steps.iter().all(|step| below(step, request)));
    // The step that fed the prompt, and the 64th.
    assert_eq!(steps.len(), 2, "{steps:?}");
    let computed = named(&spans, "stage");
    for step in &steps {
        let mut layers: Vec<_> = computed.iter().filter(|stage| below(stage, step)).collect();
        layers.sort_by_key(|stage| stage.number("janus.first_layer"));
        let names: Vec<_> = layers.iter().map(|stage| stage.instance.as_str()).collect();
        assert_eq!(names.len(), 2, "{names:?}");
        assert_eq!(layers[0].number("janus.end_layer"), layers[1].number("janus.first_layer"));
        assert!(layers.iter().all(|stage| stage.number("janus.rows") == step.number("janus.rows")));
        assert!(layers.iter().all(|stage| stage.service == "janus-worker"));
        let end = |told: &Told| told.span.end_time_unix_nano;
        assert!(end(layers[0]) <= layers[1].span.start_time_unix_nano && end(layers[1]) <= end(step));
    }
    let decode = only(&spans, "decode");
    assert!(below(decode, request) && below(only(&spans, "decoder"), decode));
    assert_eq!(only(&spans, "decoder").instance, "decoder-0");
    assert!(spans.len() <= 16, "a picture of 64 ids has {} spans", spans.len());

    // A stage is lost in the middle: the trace goes on, with the steps that rebuilt the picture.
    let placed = stages(&up.status().await);
    let victim = up.pid(&placed[0]).await;
    let mut killed = false;
    let lose = |known: u32| {
        if known >= 20 && !std::mem::replace(&mut killed, true) {
            signal(victim, "KILL");
        }
    };
    paint_in(&mut client, [4; 16], true, lose).await;
    assert!(killed);
    let spans = whole(&collector, [4; 16], 2).await;
    let rebuilt = named(&spans, "step").iter().map(|step| step.number("janus.rows.replay")).sum::<i64>();
    assert!(rebuilt >= 2 * 20, "{rebuilt} rows were rebuilt");
    let epochs: BTreeSet<i64> = named(&spans, "step").iter().map(|step| step.number("janus.pipeline.epoch")).collect();
    assert_eq!(epochs.len(), 2, "{epochs:?}");
    assert!(spans.len() <= 32, "{} spans", spans.len());

    assert!(collector.trace(quiet).is_empty(), "spans of a trace that its caller does not keep");
    for (instance, metric) in [(&placed[1][..], "janus.stage.rows"), ("coordinator-0", "gen_ai.server.request.duration")] {
        let pushed =
            |collector: &Collector| collector.metrics().contains(&(instance.to_owned(), metric.to_owned())).then_some(());
        collector.until(metric, pushed).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_is_away_costs_one_line_and_no_picture() {
    let dir = tempfile::tempdir().unwrap();
    // Nobody listens there: the port was free a moment ago.
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://{gone}");
    let mut served = Part::start(dir.path(), "serve", &["serve", "--listen", "127.0.0.1:0", "--otlp", &url]);
    let address = served.line().strip_prefix("ready ").unwrap().to_owned();
    let mut client = connect(&address).await;
    paint_in(&mut client, [5; 16], true, |_| ()).await;
    served.says("traces do not reach the collector").await;
    paint_in(&mut client, [6; 16], true, |_| ()).await;
    drop(client);
    served.signal("TERM");
    assert!(served.ends(Duration::from_secs(30)).await.success());
    assert_eq!(served.said().matches("traces do not reach").count(), 1, "{}", served.tail());
}
