//! What is asked of clusters, and what undisturbed stages in one process answer.

use janus_wire::v1::GenerateImageRequest;

use crate::caller::{Caller, Course};
use crate::client::{Answer, Ask, chat, client, paint};
use crate::served::Served;

/// Ids of a picture of `shapes`.
pub const IDS: u32 = 64;

pub fn guided(prompt: &str, n: u32, seed: u64) -> Ask {
    Ask::Paint(GenerateImageRequest { n, seed, ..paint(prompt) })
}

/// Without guidance there is one row instead of two.
pub fn unguided(prompt: &str, seed: u64) -> Ask {
    Ask::Paint(GenerateImageRequest { seed, cfg_weight: Some(1.0), ..paint(prompt) })
}

/// A question about a picture.
pub fn question() -> Ask {
    Ask::Chat(chat("What is in the picture?", &[red_circle()], 24))
}

/// All kinds; the first one is a picture that takes its full time.
pub fn mixed() -> Vec<Ask> {
    vec![
        guided("a red circle left of a blue square", 2, 0),
        guided("a green triangle", 1, 7),
        unguided("a yellow square above a red circle", 3),
        question(),
    ]
}

/// A PNG.
pub fn red_circle() -> Vec<u8> {
    let colour = |x: u32, y: u32| {
        let (x, y) = (x as i32 - 32, y as i32 - 32);
        if x * x + y * y < 300 { image::Rgb([220, 30, 30]) } else { image::Rgb([255, 255, 255]) }
    };
    let mut png = std::io::Cursor::new(Vec::new());
    image::RgbImage::from_fn(64, 64, colour).write_to(&mut png, image::ImageFormat::Png).unwrap();
    png.into_inner()
}

/// The same requests, one after the other, in one process that nobody disturbs.
pub async fn undisturbed(asks: &[Ask]) -> Vec<Answer> {
    undisturbed_with(&[], asks).await
}

/// The same with other flags.
pub async fn undisturbed_with(args: &[&str], asks: &[Ask]) -> Vec<Answer> {
    let served = Served::start(args);
    let mut client = client(served.channel().await);
    let mut answers = Vec::new();
    for ask in asks {
        answers.push(ask.again().answer(&mut client, || {}).await.unwrap());
    }
    answers
}

/// Begins all of them at once.
pub fn begin(endpoints: &str, asks: &[Ask]) -> Vec<Caller> {
    asks.iter().map(|ask| Caller::begin(endpoints, ask)).collect()
}

/// Their ends: every one is the undisturbed one, bit by bit.
pub async fn end(callers: Vec<Caller>, expected: &[Answer], what: &str) -> Vec<Course> {
    let mut courses = Vec::new();
    for (i, (caller, expected)) in callers.into_iter().zip(expected).enumerate() {
        let course = caller.end().await;
        assert_eq!(course.answer, *expected, "request {i}, {what}");
        courses.push(course);
    }
    courses
}
