//! Real processes over gRPC: the reference's ids with any number of stages, and the same bits whatever else goes on.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "harness/client.rs"]
mod client;
#[path = "pipeline/life.rs"]
mod life;
#[path = "harness/served.rs"]
mod served;
mod support;

use client::{Answer, Ask, Client, Numbers, chat, client, header, paint, picture};
use janus_wire::v1::{CancelRequest, ChatRequest};
use served::Served;
use sha2::{Digest, Sha256};
use support::{golden_f32, golden_ids, golden_json, ids, prompt, text, tiny};
use tokio::sync::mpsc;

fn serve(stages: usize, threads: usize) -> Served {
    let (stages, threads) = (stages.to_string(), threads.to_string());
    Served::start(&["--model", &text(&tiny("transformers")), "--stages", &stages, "--threads", &threads])
}

fn numbers(ids: Vec<u64>) -> Vec<u32> {
    ids.into_iter().map(|id| id as u32).collect()
}

/// The reference's inputs, which are already as large as the model wants them, as PNG files.
fn inputs() -> Vec<Vec<u8>> {
    let png = |chw: &[f32]| {
        let byte = |v: f32| ((v + 1.0) / 2.0 * 255.0).round() as u8;
        let hwc = (0..64 * 64).flat_map(|p| (0..3).map(move |c| byte(chw[c * 64 * 64 + p]))).collect();
        let mut file = std::io::Cursor::new(Vec::new());
        image::RgbImage::from_raw(64, 64, hwc).unwrap().write_to(&mut file, image::ImageFormat::Png).unwrap();
        file.into_inner()
    };
    golden_f32("vision", "pixel_values").chunks(3 * 64 * 64).map(png).collect()
}

async fn paints_the_references_pictures(client: &mut Client, what: &str) {
    for (name, prompt_of, weight) in [
        ("generate_pro_1_cfg1", "generate_pro_1", 1.0),
        ("generate_pro_1_cfg2", "generate_pro_1", 2.0),
        ("generate_pro_1_cfg5", "generate_pro_1", 5.0),
        ("generate_pro_2_cfg5", "generate_pro_2", 5.0),
        ("generate_1_3b_cfg5", "generate_1_3b", 5.0),
    ] {
        let mut request = paint(&prompt(prompt_of).0);
        (request.raw_prompt, request.temperature, request.cfg_weight) = (true, Some(0.0), Some(weight));
        let answer = Ask::Paint(request).answer(client, || {}).await.unwrap();
        let expected = numbers(golden_ids(name, "image_ids"));
        let bytes: Vec<u8> = expected.iter().flat_map(|id| (*id as u16).to_le_bytes()).collect();
        assert_eq!(answer.prompt, numbers(golden_ids(name, "cond_ids")), "{name} {what}");
        assert_eq!(answer.tokens, [expected], "{name} {what}");
        assert_eq!(answer.sha256, [Sha256::digest(bytes).to_vec()], "{name} {what}");
        let png = tiny("golden").join(format!("{name}.png"));
        if png.exists() {
            let reference = image::open(png).unwrap().into_rgb8().into_raw();
            assert!(reference.iter().zip(&answer.rgb[0]).all(|(a, b)| a.abs_diff(*b) <= 1), "{name} {what}");
        }
    }
}

async fn gives_the_references_answers(client: &mut Client, what: &str) {
    let greedy = golden_json("lm_text.json");
    let inputs = inputs();
    for (name, expected, pictures) in [
        ("understand_pro_1", &greedy["understand_pro_1"]["greedy_ids"], &inputs[..1]),
        ("understand_two_images", &greedy["understand_two_images"]["greedy_ids"], &inputs[..2]),
        ("text_only_pro", &greedy["text_only_pro"]["greedy_ids"], &[]),
        ("multi_turn_pro", &greedy["multi_turn_pro"]["greedy_ids"], &inputs[..1]),
        ("understand_pro_2", &greedy["batch_left_padded"]["greedy_ids"][1], &inputs[1..2]),
    ] {
        let (raw_prompt, prompt_ids) = prompt(name);
        let raw_images = pictures.iter().cloned().map(picture).collect();
        let request =
            ChatRequest { header: header(), raw_prompt, raw_images, max_tokens: Some(24), ..ChatRequest::default() };
        let answer = Ask::Chat(request).answer(client, || {}).await.unwrap();
        assert_eq!(answer.prompt, numbers(prompt_ids), "{name} {what}");
        assert_eq!(answer.tokens, [numbers(ids(expected))], "{name} {what}");
    }
}

#[tokio::test]
async fn any_number_of_stages_gives_the_references_ids() {
    for stages in 1..=4 {
        let served = serve(stages, 1 + stages % 2);
        let mut client = client(served.channel().await);
        let what = format!("over {stages} stages");
        paints_the_references_pictures(&mut client, &what).await;
        gives_the_references_answers(&mut client, &what).await;
    }
}

/// Guided, unguided, greedy, drawn, several at once, with pictures and without.
fn mixed() -> Vec<Ask> {
    let inputs = inputs();
    let painted = |text: &str, n, seed, temperature, weight| {
        let mut request = paint(text);
        (request.n, request.seed, request.temperature, request.cfg_weight) = (n, seed, Some(temperature), Some(weight));
        request
    };
    let asked = |question: &str, pictures: &[Vec<u8>], seed, temperature| {
        let mut request = chat(question, pictures, 24);
        (request.seed, request.temperature) = (seed, Some(temperature));
        request
    };
    let mut narrow = painted("a blue house by the sea", 2, 1, 0.8, 1.0);
    narrow.top_k = Some(20);
    let mut nucleus = painted("a red boat", 4, 42, 1.0, 3.0);
    nucleus.top_p = Some(0.9);
    let mut below = painted("a red boat", 2, 3, 1.0, 5.0);
    (below.init_image, below.keep_rows) = (Some(picture(inputs[0].clone())), 2);
    vec![
        Ask::Paint(painted("A close-up photo of a small house beside a river", 1, 0, 0.0, 5.0)),
        Ask::Paint(painted("a green hill", 3, 7, 1.0, 5.0)),
        Ask::Paint(narrow),
        Ask::Paint(nucleus),
        Ask::Paint(below),
        Ask::Chat(asked("What is a river? Say it in many words, please, and then once more.", &[], 0, 0.0)),
        Ask::Chat(asked("What is in the picture?", &inputs[..1], 3, 0.7)),
        Ask::Chat(asked("Which one is larger?", &inputs, 0, 0.0)),
    ]
}

async fn alone(client: &mut Client) -> Vec<Answer> {
    let mut answers = Vec::new();
    for ask in mixed() {
        answers.push(ask.answer(client, || {}).await.unwrap());
    }
    answers
}

/// Runs all requests at once, in an order and at moments that follow from `seed`, among others that are cancelled.
async fn together(client: &Client, seed: u64) -> Vec<Answer> {
    let mut random = Numbers(seed);
    let asks = mixed();
    let mut order: Vec<usize> = (0..asks.len()).collect();
    (1..order.len()).rev().for_each(|i| order.swap(i, random.below(i as u64 + 1) as usize));
    let mut tasks = Vec::new();
    for index in order {
        let quits = random.below(2) == 1;
        let decoy = asks[random.below(asks.len() as u64) as usize].again();
        let (wait, patience, by_call) = (random.below(5), random.below(8), random.below(2) == 1);
        if quits {
            let client = client.clone();
            tasks.push((None, tokio::spawn(async move { give_up(decoy, client, patience, by_call).await })));
        }
        let (mut client, ask) = (client.clone(), asks[index].again());
        // The next one joins after this one said something `wait` times, or everything.
        let (said, mut heard) = mpsc::unbounded_channel();
        let task = async move { Some(ask.answer(&mut client, || said.send(()).unwrap_or(())).await.unwrap()) };
        tasks.push((Some(index), tokio::spawn(task)));
        for _ in 0..wait {
            heard.recv().await;
        }
    }
    let mut answers = vec![Answer::default(); asks.len()];
    for (index, task) in tasks {
        let answer = task.await.unwrap();
        if let Some(index) = index {
            answers[index] = answer.unwrap();
        }
    }
    answers
}

/// Reads a few events of a request, then leaves, or cancels it and sees it end.
async fn give_up(ask: Ask, mut client: Client, patience: u64, by_call: bool) -> Option<Answer> {
    let request_id = ask.id();
    let mut events = ask.begin(&mut client).await.unwrap();
    let mut answer = Answer::default();
    for _ in 0..patience {
        if !client::soon(events.next(&mut answer)).await.unwrap() {
            return None;
        }
    }
    if by_call {
        client.cancel(CancelRequest { request_id }).await.unwrap();
        let end = async {
            while events.next(&mut answer).await? {}
            Ok::<_, tonic::Status>(())
        };
        // It may have been complete when the cancel came.
        if let Err(status) = client::soon(end).await {
            assert_eq!(status.code(), tonic::Code::Cancelled, "{status:?}");
        }
    }
    None
}

#[tokio::test]
async fn requests_that_come_and_go_together_equal_the_same_requests_alone() {
    let one = serve(1, 2);
    let expected = alone(&mut client(one.channel().await)).await;
    assert!(expected.iter().all(|answer| answer.tokens.iter().all(|ids| !ids.is_empty())));
    for (stages, served) in [(1, one), (3, serve(3, 2))] {
        let client = client(served.channel().await);
        for seed in 0..6 {
            let answers = together(&client, seed).await;
            for (i, (answer, alone)) in answers.iter().zip(&expected).enumerate() {
                assert_eq!(answer, alone, "request {i} over {stages} stages, seed {seed}");
            }
        }
    }
}

#[tokio::test]
async fn the_number_of_threads_changes_no_bit() {
    let (one, two) = (serve(2, 1), serve(2, 2));
    let (one, two) = (alone(&mut client(one.channel().await)).await, alone(&mut client(two.channel().await)).await);
    assert_eq!(one, two);
}

/// CPUs in a list like `0-3,8`.
fn count(list: &str) -> usize {
    let number = |text: &str| text.parse::<usize>().unwrap();
    let ends = list.split(',').map(|range| range.split_once('-').unwrap_or((range, range)));
    ends.map(|(first, last)| number(last) - number(first) + 1).sum()
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn threads_that_compute_have_a_cpu_each_where_they_have_all_of_them() {
    let cpus = janus_model::default_threads();
    let computes = |name: &str| ["stage", "encoder", "decoder"].contains(&name) || name.starts_with("janus-");
    for (threads, stages) in [(cpus, 2), (cpus + 1, 1)] {
        let served = serve(stages, threads);
        let threads_of_it = served.threads();
        let (computing, others): (Vec<_>, Vec<_>) = threads_of_it.iter().partition(|(name, _)| computes(name));
        // One a stage, an encoder, a decoder, and the pool's own.
        assert_eq!(computing.len(), stages + 2 + threads - 1, "{threads_of_it:?}");
        let all = &others.iter().find(|(name, _)| name.starts_with("tokio")).unwrap().1;
        // Fewer than there are where a quota says so.
        let pinned = count(all) == threads;
        for (name, allowed) in computing {
            let expected = if pinned { 1 } else { count(all) };
            assert_eq!(count(allowed), expected, "{name} of {threads} on {allowed}, others on {all}");
        }
        assert!(others.iter().all(|(_, allowed)| allowed == all), "{threads_of_it:?}");
    }
}
