//! Prompts against the reference's ids, in every form of the tiny checkpoint.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Checkpoint, read_json};
use janus_spec::{DEFAULT_SYSTEM_PROMPT, Error, Family, Message, Part, Role, Tokenizer};
use serde_json::{Value, json};

const FORMS: [&str; 3] = ["transformers", "original-safetensors", "original-bin"];

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| u32::try_from(id.as_u64().unwrap()).unwrap()).collect()
}

fn golden(name: &str) -> (String, Vec<u32>) {
    let prompts = read_json("golden/prompts.json");
    let prompt = &prompts["prompts"][name];
    (prompt["text"].as_str().unwrap().to_string(), ids(&prompt["ids"]))
}

fn user(parts: Vec<Part>) -> Message {
    Message { role: Role::User, parts }
}

fn says(text: &str) -> Part {
    Part::Text(text.into())
}

fn question(text: &str) -> Vec<Message> {
    vec![Message::text(Role::User, text)]
}

#[test]
fn every_reference_prompt_has_its_ids_in_every_form() {
    let golden = read_json("golden/prompts.json");
    let prompts = golden["prompts"].as_object().unwrap();
    assert_eq!(prompts.len(), 10);
    for form in FORMS {
        let tokenizer = Checkpoint::tiny(form).tokenizer();
        for (name, prompt) in prompts {
            let text = prompt["text"].as_str().unwrap();
            assert_eq!(tokenizer.encode(text).unwrap(), ids(&prompt["ids_before_image_expansion"]), "{form} {name}");
            let expanded = tokenizer.raw_prompt(text).unwrap();
            assert_eq!(expanded.ids, ids(&prompt["ids"]), "{form} {name}");
            assert_eq!(expanded.images.len(), text.matches("<image_placeholder>").count());
            for range in &expanded.images {
                assert_eq!(range.len(), 16);
                assert_eq!((expanded.ids[range.start - 1], expanded.ids[range.end]), (515, 525));
                assert!(expanded.ids[range.clone()].iter().all(|id| *id == 516));
            }
        }
    }
}

#[test]
fn the_chat_template_makes_the_reference_prompts() {
    let ask = |text: &str| vec![user(vec![Part::Image, says(text)])];
    let turns = vec![
        user(vec![Part::Image, says("What is in the picture?")]),
        Message::text(Role::Assistant, " A red boat."),
        Message::text(Role::User, "Describe the image in detail. "),
    ];
    let cases = [
        ("understand_pro_1", ask("What is in the picture?")),
        ("understand_pro_2", ask("Describe the image in detail. \n")),
        ("text_only_pro", question("hello, how many boats are there? 12 or 4?")),
        ("multi_turn_pro", turns),
    ];
    for form in FORMS {
        let tokenizer = Checkpoint::tiny(form).tokenizer();
        for (name, messages) in &cases {
            assert_eq!(tokenizer.chat_prompt(messages, None).unwrap().ids, golden(name).1, "{form} {name}");
        }
    }
}

#[test]
fn prompts_for_pictures_are_the_references() {
    for form in FORMS {
        let tokenizer = Checkpoint::tiny(form).tokenizer();
        for (name, text) in
            [("generate_pro_1", "A close-up photo of a small house beside a river"), ("generate_pro_2", " a red boat\n")]
        {
            let (raw, expected) = golden(name);
            let prompt = tokenizer.generation_prompt(text, false).unwrap();
            assert_eq!(prompt.cond, expected, "{form} {name}");
            assert_eq!(tokenizer.generation_prompt(&raw, true).unwrap(), prompt);
            let (first, last) = (prompt.uncond[0], *prompt.uncond.last().unwrap());
            assert_eq!((first, last, prompt.uncond.len()), (512, 515, prompt.cond.len()));
            assert!(prompt.uncond[1..prompt.uncond.len() - 1].iter().all(|id| *id == 514));
        }
    }
}

/// The tiny checkpoint with a tokeniser that has no role tokens, as Janus-1.3B's.
fn without_roles(form: &str) -> Tokenizer {
    let file = "tokenizer.json";
    Checkpoint::tiny(form).replace(file, "<|User|>", "<|U|>").replace(file, "<|Assistant|>", "<|A|>").tokenizer()
}

#[test]
fn a_tokeniser_without_role_tokens_gets_plain_roles() {
    for form in FORMS {
        let plain = without_roles(form);
        assert_eq!((plain.family(), plain.special().user), (Family::Janus, None));
        let ask = [user(vec![Part::Image, says("What is in the picture?")])];
        assert_eq!(plain.chat_prompt(&ask, None).unwrap().ids, golden("understand_1_3b").1);
        let paint = plain.generation_prompt("A close-up photo of a small house beside a river", false).unwrap();
        assert_eq!(paint.cond, golden("generate_1_3b").1);
        assert_eq!(Checkpoint::tiny(form).tokenizer().family(), Family::JanusPro);
    }
}

#[test]
fn the_system_prompt_can_be_replaced_left_out_and_switched_off() {
    let tokenizer = Checkpoint::tiny("transformers").tokenizer();
    let raw = |text: &str| tokenizer.raw_prompt(text).unwrap();
    let hi = question("hi");
    let tail = "<|User|>: hi\n\n<|Assistant|>:";
    assert_eq!(tokenizer.chat_prompt(&hi, None).unwrap(), raw(&format!("{DEFAULT_SYSTEM_PROMPT}\n\n{tail}")));
    assert_eq!(tokenizer.chat_prompt(&hi, Some("")).unwrap(), raw(tail));
    assert_eq!(tokenizer.chat_prompt(&hi, Some("Be short.")).unwrap(), raw(&format!("Be short.\n\n{tail}")));
    let first = [Message::text(Role::System, "Be short."), Message::text(Role::User, "hi")];
    assert_eq!(tokenizer.chat_prompt(&first, None).unwrap(), raw(&format!("Be short.\n\n{tail}")));
    let off =
        Checkpoint::tiny("transformers").set("processor_config.json", "use_default_system_prompt", json!(false)).tokenizer();
    assert_eq!(off.chat_prompt(&hi, None).unwrap(), raw(tail));
}

#[test]
fn pictures_keep_their_places() {
    let tokenizer = Checkpoint::tiny("original-bin").tokenizer();
    let two = [user(vec![Part::Image, Part::Image, says("Which?")])];
    let prompt = tokenizer.chat_prompt(&two, Some("")).unwrap();
    assert_eq!(
        prompt,
        tokenizer.raw_prompt("<|User|>: <image_placeholder>\n<image_placeholder>\nWhich?\n\n<|Assistant|>:").unwrap()
    );
    prompt.expect_images(2).unwrap();
    assert!(matches!(prompt.expect_images(3), Err(Error::ImageCount { placeholders: 2, images: 3 })));
    let between = [user(vec![says("before "), Part::Image, says("after")])];
    let prompt = tokenizer.chat_prompt(&between, Some("")).unwrap();
    assert_eq!(prompt, tokenizer.raw_prompt("<|User|>: before <image_placeholder>\nafter\n\n<|Assistant|>:").unwrap());
}

#[test]
fn plain_text_cannot_forge_special_tokens() {
    let tokenizer = Checkpoint::tiny("transformers").tokenizer();
    let forged =
        ["<image_placeholder>", "<|Assistant|>", "<begin_of_image>", "<｜end▁of▁sentence｜>", "<|ref|>", "<｜▁pad▁｜>"];
    for token in forged {
        let text = format!("what is {token} here");
        let named = |error: Error| assert!(matches!(&error, Error::SpecialInText { token: t } if t == token), "{error}");
        named(tokenizer.generation_prompt(&text, false).unwrap_err());
        named(tokenizer.chat_prompt(&question(&text), None).unwrap_err());
        named(tokenizer.chat_prompt(&question("hi"), Some(&text)).unwrap_err());
        let (left, right) = token.split_at(1);
        named(tokenizer.chat_prompt(&[user(vec![says(left), says(right)])], None).unwrap_err());
        let past =
            [Message::text(Role::User, "hi"), Message::text(Role::Assistant, text), Message::text(Role::User, "and?")];
        named(tokenizer.chat_prompt(&past, None).unwrap_err());
    }
    // Words that only look like roles are words.
    without_roles("transformers").chat_prompt(&question("what does <|User|> mean"), None).unwrap();
}

#[test]
fn empty_prompts_are_refused() {
    let tokenizer = Checkpoint::tiny("transformers").tokenizer();
    for empty in ["", "  \n\t", "\u{1f}\u{3000}"] {
        for raw in [false, true] {
            assert!(matches!(tokenizer.generation_prompt(empty, raw), Err(Error::EmptyPrompt)));
        }
        assert!(matches!(tokenizer.raw_prompt(empty), Err(Error::EmptyPrompt)));
        assert!(matches!(tokenizer.chat_prompt(&question(empty), None), Err(Error::EmptyPrompt)));
        // A picture says something by itself.
        let shown = tokenizer.raw_prompt("<|User|>: <image_placeholder>\n\n<|Assistant|>:").unwrap();
        assert_eq!(tokenizer.chat_prompt(&[user(vec![Part::Image, says(empty)])], Some("")).unwrap(), shown);
        assert_eq!(tokenizer.chat_prompt(&[user(vec![Part::Image])], Some("")).unwrap(), shown);
        let silent = [Message::text(Role::User, "a"), Message::text(Role::Assistant, "b"), Message::text(Role::User, empty)];
        assert!(matches!(tokenizer.chat_prompt(&silent, None), Err(Error::Conversation { index: 2, .. })));
    }
    assert!(matches!(tokenizer.chat_prompt(&[], None), Err(Error::EmptyPrompt)));
    assert!(matches!(tokenizer.chat_prompt(&[Message::text(Role::System, "x")], None), Err(Error::EmptyPrompt)));
}

#[test]
fn conversations_end_with_the_user() {
    let tokenizer = Checkpoint::tiny("transformers").tokenizer();
    let turn = |role| Message::text(role, "x");
    let bad = |messages: &[Message], at: usize| {
        let error = tokenizer.chat_prompt(messages, None).unwrap_err();
        assert!(matches!(error, Error::Conversation { index, .. } if index == at), "{error}");
    };
    bad(&[turn(Role::User), turn(Role::Assistant)], 1);
    bad(&[turn(Role::User), turn(Role::System), turn(Role::User)], 1);
    bad(&[Message { role: Role::System, parts: vec![Part::Image] }, turn(Role::User)], 0);
    bad(&[turn(Role::User), Message::text(Role::Assistant, " "), turn(Role::User)], 1);
}

#[test]
fn raw_prompts_for_pictures_end_with_image_start_and_hold_none() {
    let tokenizer = Checkpoint::tiny("transformers").tokenizer();
    assert!(
        matches!(tokenizer.generation_prompt("a red boat", true), Err(Error::NoImageStart { token }) if token == "<begin_of_image>")
    );
    let error = tokenizer.generation_prompt("<image_placeholder><begin_of_image>", true).unwrap_err();
    assert!(matches!(error, Error::ImageInGeneration { .. }));
    assert_eq!(tokenizer.generation_prompt("<begin_of_image>", true).unwrap().uncond, [512, 515]);
}

#[test]
fn prompts_beyond_the_context_are_refused_with_numbers() {
    // 1024 positions, 16 of them for a picture; every "x" is a token.
    let tokenizer = Checkpoint::tiny("transformers").tokenizer();
    let room = |n: usize| format!("{}<begin_of_image>", "1".repeat(n));
    assert_eq!(tokenizer.generation_prompt(&room(1006), true).unwrap().cond.len(), 1008);
    let error = tokenizer.generation_prompt(&room(1007), true).unwrap_err();
    assert!(matches!(error, Error::PromptTooLong { prompt: 1009, to_come: 16, limit: 1024 }));
    assert_eq!(error.to_string(), "the prompt has 1009 tokens and 16 image tokens follow, the model has room for 1024");
    assert_eq!(tokenizer.raw_prompt(&"1".repeat(1023)).unwrap().ids.len(), 1024);
    assert!(matches!(
        tokenizer.raw_prompt(&"1".repeat(1024)),
        Err(Error::PromptTooLong { prompt: 1025, to_come: 0, limit: 1024 })
    ));
    // Pictures count expanded: 56 take 1008 positions, 57 take 1026.
    tokenizer.raw_prompt(&"<image_placeholder>".repeat(56)).unwrap();
    assert!(matches!(
        tokenizer.raw_prompt(&"<image_placeholder>".repeat(57)),
        Err(Error::PromptTooLong { prompt: 1027, .. })
    ));
    // Refused before it is tokenised.
    let error = tokenizer.raw_prompt(&"x".repeat(50 << 20)).unwrap_err();
    assert!(matches!(error, Error::PromptTooLong { prompt, limit: 1024, .. } if prompt > 1024));
}
