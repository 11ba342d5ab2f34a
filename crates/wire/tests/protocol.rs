//! The protocol keeps what it promised in the last release, and every part of it is explained.
//!
//! `proto/released.txt` lists what was released, a line for each thing that a program may rely on. Internal messages are held
//! to the same: while a cluster is upgraded, both versions talk to each other and read the same records.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::{BTreeMap, HashSet};

use janus_wire::DESCRIPTORS;
use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet};

const RELEASED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../proto/released.txt");
/// A range that is reserved is listed number by number, up to so many.
const RANGE: i32 = 1000;

fn now() -> FileDescriptorSet {
    FileDescriptorSet::decode(DESCRIPTORS).unwrap()
}

/// What programs rely on: names of things, and what must not change about them.
type Promises = BTreeMap<String, String>;

fn promises(set: &FileDescriptorSet) -> Promises {
    let mut said = Promises::new();
    for file in &set.file {
        let package = file.package();
        for message in &file.message_type {
            of_message(&mut said, package, message);
        }
        for choice in &file.enum_type {
            of_enum(&mut said, package, choice);
        }
        for service in &file.service {
            let name = format!("{package}.{}", service.name());
            said.insert(format!("service {name}"), String::new());
            for method in &service.method {
                let stream = |is: bool| if is { "stream " } else { "" };
                let (asks, answers) = (stream(method.client_streaming()), stream(method.server_streaming()));
                let (input, output) = (method.input_type(), method.output_type());
                said.insert(format!("{name}/{}", method.name()), format!("{asks}{input} -> {answers}{output}"));
            }
        }
    }
    said
}

fn of_message(said: &mut Promises, within: &str, message: &DescriptorProto) {
    let name = format!("{within}.{}", message.name());
    said.insert(format!("message {name}"), String::new());
    for field in &message.field {
        said.insert(format!("{name} {}", field.number()), of_field(message, field));
    }
    let ranges = message.reserved_range.iter().map(|range| (range.start(), range.end() - 1));
    reserved(said, &name, ranges, &message.reserved_name);
    message.nested_type.iter().for_each(|inner| of_message(said, &name, inner));
    message.enum_type.iter().for_each(|inner| of_enum(said, &name, inner));
}

fn of_field(message: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    let label = match (field.label(), field.proto3_optional()) {
        (Label::Repeated, _) => "repeated ",
        (Label::Required, _) => "required ",
        (Label::Optional, true) => "optional ",
        (Label::Optional, false) => "",
    };
    let kind = match field.r#type() {
        Type::Message | Type::Group | Type::Enum => field.type_name().to_owned(),
        plain => plain.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
    };
    let oneof = field.oneof_index.filter(|_| !field.proto3_optional());
    let oneof = oneof.map_or(String::new(), |at| format!(" of {}", message.oneof_decl[at as usize].name()));
    format!("{label}{kind} {}, {} in JSON{oneof}", field.name(), field.json_name())
}

fn of_enum(said: &mut Promises, within: &str, choice: &EnumDescriptorProto) {
    let name = format!("{within}.{}", choice.name());
    said.insert(format!("enum {name}"), String::new());
    for value in &choice.value {
        said.insert(format!("{name} {} {}", value.number(), value.name()), String::new());
    }
    let ranges = choice.reserved_range.iter().map(|range| (range.start(), range.end()));
    reserved(said, &name, ranges, &choice.reserved_name);
}

/// What may never be used again. Both ends belong to a range.
fn reserved(said: &mut Promises, name: &str, ranges: impl Iterator<Item = (i32, i32)>, names: &[String]) {
    for (from, to) in ranges {
        for number in from..=to.min(from.saturating_add(RANGE)) {
            said.insert(format!("{name} reserved {number}"), String::new());
        }
    }
    for word in names {
        said.insert(format!("{name} reserved \"{word}\""), String::new());
    }
}

/// Promises that are not kept. A field and an enum's value may go if its number and its name are reserved.
fn broken(released: &Promises, now: &Promises) -> Vec<String> {
    let gone = |of: &str, number: &str, name: &str| {
        now.contains_key(&format!("{of} reserved {number}")) && now.contains_key(&format!("{of} reserved \"{name}\""))
    };
    let mut broken = Vec::new();
    for (what, was) in released {
        let is = now.get(what);
        if is == Some(was) {
            continue;
        }
        let words: Vec<&str> = what.split(' ').collect();
        let name = was.split(", ").next().and_then(|field| field.split(' ').next_back());
        let may_go = match words[..] {
            [of, number, name] if number != "reserved" => gone(of, number, name),
            [of, number] if number.parse::<i32>().is_ok() => gone(of, number, name.unwrap_or_default()),
            _ => false,
        };
        match is {
            Some(is) => broken.push(format!("{what}: it was `{was}` and is `{is}`")),
            None if may_go => {}
            None => broken.push(
                format!("{what} {was}").trim_end().to_owned() + ": it is gone and its number and name are not reserved",
            ),
        }
    }
    broken
}

fn read(text: &str) -> Promises {
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| line.split_once(" = ").unwrap_or((line, ""))).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

fn written(promises: &Promises) -> String {
    let line = |(what, said): (&String, &String)| match said.is_empty() {
        true => format!("{what}\n"),
        false => format!("{what} = {said}\n"),
    };
    let head =
        "# What the protocol promised in the last release. Made anew when there is a next one: see CONTRIBUTING.md.\n";
    head.to_owned() + &promises.iter().map(line).collect::<String>()
}

#[test]
fn what_was_released_is_not_broken() {
    let now = promises(&now());
    if std::env::var_os("JANUS_RELEASE").is_some() {
        std::fs::write(RELEASED, written(&now)).unwrap();
    }
    let released = read(&std::fs::read_to_string(RELEASED).unwrap());
    assert!(released.len() > 300, "only {} lines", released.len());
    let broken = broken(&released, &now);
    assert!(broken.is_empty(), "programs of the last release would break:\n{}", broken.join("\n"));
}

#[test]
fn a_listing_is_read_as_it_was_written() {
    let now = promises(&now());
    assert_eq!(read(&written(&now)), now);
}

/// The complaints about a change of today's protocol.
fn complaints(change: impl FnOnce(&mut FileDescriptorSet)) -> Vec<String> {
    let mut changed = now();
    change(&mut changed);
    broken(&promises(&now()), &promises(&changed))
}

/// One complaint, that begins with `what` and has `words` in it.
fn complains(what: &str, words: &str, change: impl FnOnce(&mut FileDescriptorSet)) {
    let all = complaints(change);
    assert!(matches!(&all[..], [one] if one.starts_with(what) && one.contains(words)), "{what}, {words}: {all:?}");
}

fn message<'a>(set: &'a mut FileDescriptorSet, name: &str) -> &'a mut DescriptorProto {
    set.file.iter_mut().flat_map(|file| &mut file.message_type).find(|message| message.name() == name).unwrap()
}

fn field<'a>(set: &'a mut FileDescriptorSet, of: &str, name: &str) -> &'a mut FieldDescriptorProto {
    message(set, of).field.iter_mut().find(|field| field.name() == name).unwrap()
}

fn enumeration<'a>(set: &'a mut FileDescriptorSet, name: &str) -> &'a mut EnumDescriptorProto {
    set.file.iter_mut().flat_map(|file| &mut file.enum_type).find(|choice| choice.name() == name).unwrap()
}

fn method<'a>(set: &'a mut FileDescriptorSet, name: &str) -> &'a mut prost_types::MethodDescriptorProto {
    let services = set.file.iter_mut().flat_map(|file| &mut file.service);
    services.flat_map(|service| &mut service.method).find(|method| method.name() == name).unwrap()
}

#[test]
fn every_change_that_breaks_a_program_is_named() {
    let request = "janus.v1.GenerateImageRequest";
    let here = "GenerateImageRequest";
    complains(&format!("{request} 2"), "is gone", |all| message(all, here).field.retain(|field| field.number() != 2));
    complains(&format!("{request} 2"), "is `string text,", |all| field(all, here, "prompt").name = Some("text".to_owned()));
    complains(&format!("{request} 2"), "words in JSON", |all| {
        field(all, here, "prompt").json_name = Some("words".to_owned());
    });
    complains(&format!("{request} 2"), "is gone", |all| field(all, here, "prompt").number = Some(1000));
    complains(&format!("{request} 2"), "bytes prompt", |all| field(all, here, "prompt").set_type(Type::Bytes));
    complains(&format!("{request} 2"), "repeated", |all| field(all, here, "prompt").set_label(Label::Repeated));
    complains(&format!("{request} 1"), ".janus.v1.Image", |all| {
        field(all, here, "header").type_name = Some(".janus.v1.Image".to_owned());
    });
    // `optional` becomes plain: who asks whether it is there gets another answer.
    complains(&format!("{request} 6"), "optional", |all| {
        let field = field(all, here, "temperature");
        (field.proto3_optional, field.oneof_index) = (None, None);
    });
    complains("janus.v1.AdmittedRequest 2", "of request", |all| field(all, "AdmittedRequest", "image").oneof_index = None);
    complains("janus.v1.Priority 2 PRIORITY_BATCH", "is gone", |all| enumeration(all, "Priority").value.truncate(2));
    complains("janus.v1.Priority 2 PRIORITY_BATCH", "is gone", |all| enumeration(all, "Priority").value[2].number = Some(7));
    complains("janus.v1.Jobs/Watch", "-> .janus.v1.Job`", |all| method(all, "Watch").server_streaming = None);
    complains("janus.v1.Jobs/PutBlob", "is `.janus.v1.PutBlobRequest", |all| {
        method(all, "PutBlob").client_streaming = Some(false);
    });
    complains("janus.v1.Jobs/Watch", ".janus.v1.Image ->", |all| {
        method(all, "Watch").input_type = Some(".janus.v1.Image".to_owned());
    });
    complains("janus.v1.Jobs/Watch", "is gone", |all| method(all, "Watch").name = Some("Follow".to_owned()));
    let away = |all: &mut FileDescriptorSet, name: &str| {
        all.file.iter_mut().for_each(|file| file.message_type.retain(|message| message.name() != name));
    };
    let all = complaints(|all| away(all, "PipelineLogs"));
    assert!(all.iter().any(|one| one.starts_with("message janus.v1.PipelineLogs")), "{all:?}");
    let all =
        complaints(|all| all.file.iter_mut().for_each(|file| file.service.retain(|service| service.name() != "Blobs")));
    assert_eq!(all.len(), 3, "the service and its two methods: {all:?}");
}

#[test]
fn what_is_reserved_may_go_and_never_comes_back() {
    let range = |from, to| prost_types::descriptor_proto::ReservedRange { start: Some(from), end: Some(to) };
    let here = "GenerateImageRequest";
    let retire = |all: &mut FileDescriptorSet, numbers: bool, names: bool| {
        let message = message(all, here);
        message.field.retain(|field| field.number() != 2);
        message.reserved_range.extend(numbers.then(|| range(2, 3)));
        message.reserved_name.extend(names.then(|| "prompt".to_owned()));
    };
    assert_eq!(complaints(|all| retire(all, true, true)), Vec::<String>::new());
    assert_eq!(complaints(|all| retire(all, true, false)).len(), 1, "another field could have its name in JSON");
    assert_eq!(complaints(|all| retire(all, false, true)).len(), 1, "another field could have its number");
    let mut released = now();
    retire(&mut released, true, true);
    let all = broken(&promises(&released), &promises(&now()));
    assert_eq!(all.len(), 2, "the number and the name are used again: {all:?}");

    let value = |all: &mut FileDescriptorSet| {
        let priority = enumeration(all, "Priority");
        priority.value.truncate(2);
        priority.reserved_name.push("PRIORITY_BATCH".to_owned());
        let range = prost_types::enum_descriptor_proto::EnumReservedRange { start: Some(2), end: Some(2) };
        priority.reserved_range.push(range);
    };
    assert_eq!(complaints(value), Vec::<String>::new());
}

#[test]
fn what_is_new_breaks_nothing() {
    let all = complaints(|all| {
        let mut new = field(all, "GenerateImageRequest", "prompt").clone();
        (new.name, new.json_name, new.number) = (Some("new".to_owned()), Some("new".to_owned()), Some(1000));
        message(all, "GenerateImageRequest").field.push(new.clone());
        all.file[0].message_type.push(DescriptorProto {
            name: Some("New".to_owned()),
            field: vec![new],
            ..Default::default()
        });
    });
    assert_eq!(all, Vec::<String>::new());
}

/// Where messages, fields, values, services and methods stand in a file, by the numbers of descriptor.proto, and their names.
fn places(file: &prost_types::FileDescriptorProto) -> Vec<(Vec<i32>, String)> {
    fn enumeration(places: &mut Vec<(Vec<i32>, String)>, at: Vec<i32>, within: &str, choice: &EnumDescriptorProto) {
        let name = format!("{within}.{}", choice.name());
        for (i, value) in (0..).zip(&choice.value) {
            places.push(([&at[..], &[2, i]].concat(), format!("{name}.{}", value.name())));
        }
        places.push((at, name));
    }
    fn message(places: &mut Vec<(Vec<i32>, String)>, at: Vec<i32>, within: &str, message_: &DescriptorProto) {
        // The entries of a map are written by nobody.
        if message_.options.as_ref().is_some_and(|options| options.map_entry()) {
            return;
        }
        let name = format!("{within}.{}", message_.name());
        for (i, field) in (0..).zip(&message_.field) {
            places.push(([&at[..], &[2, i]].concat(), format!("{name}.{}", field.name())));
        }
        for (i, inner) in (0..).zip(&message_.nested_type) {
            message(places, [&at[..], &[3, i]].concat(), &name, inner);
        }
        for (i, inner) in (0..).zip(&message_.enum_type) {
            enumeration(places, [&at[..], &[4, i]].concat(), &name, inner);
        }
        places.push((at, name));
    }
    let (mut places, package) = (Vec::new(), file.package());
    for (i, inner) in (0..).zip(&file.message_type) {
        message(&mut places, vec![4, i], package, inner);
    }
    for (i, inner) in (0..).zip(&file.enum_type) {
        enumeration(&mut places, vec![5, i], package, inner);
    }
    for (i, service) in (0..).zip(&file.service) {
        let name = format!("{package}.{}", service.name());
        for (j, method) in (0..).zip(&service.method) {
            places.push((vec![6, i, 2, j], format!("{name}/{}", method.name())));
        }
        places.push((vec![6, i], name));
    }
    places
}

/// Files that only our own programs read: how they are explained is for their authors to say.
const INTERNAL: [&str; 3] = ["frame", "nodes", "records"];

/// What has no comment before it or behind it.
fn unexplained(set: &FileDescriptorSet) -> Vec<String> {
    let internal = |name: &str| INTERNAL.iter().any(|word| name.ends_with(&format!("/{word}.proto")));
    let mut missing = Vec::new();
    for file in set.file.iter().filter(|file| !internal(file.name())) {
        let explained = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.trim().is_empty());
        let places_of = file.source_code_info.iter().flat_map(|info| &info.location);
        let commented: HashSet<&[i32]> = places_of
            .filter(|place| explained(&place.leading_comments) || explained(&place.trailing_comments))
            .map(|place| &place.path[..])
            .collect();
        missing.extend(places(file).into_iter().filter(|(at, _)| !commented.contains(&at[..])).map(|(_, name)| name));
    }
    missing
}

#[test]
fn everything_is_explained() {
    let missing = unexplained(&now());
    assert!(missing.is_empty(), "without a comment: {}", missing.join(", "));
}

#[test]
fn a_comment_that_is_missing_is_missed() {
    let without = |path: &[i32]| {
        let mut set = now();
        let info = set.file.iter_mut().find(|file| file.name().ends_with("jobs.proto")).unwrap();
        info.source_code_info.as_mut().unwrap().location.retain(|place| place.path != path);
        unexplained(&set)
    };
    assert_eq!(without(&[6, 0]), ["janus.v1.Jobs"]);
    assert_eq!(without(&[6, 0, 2, 0]), ["janus.v1.Jobs/PutBlob"]);
    assert_eq!(without(&[4, 0]).len(), 1);
    assert_eq!(without(&[4, 0, 2, 0]).len(), 1);
    assert_eq!(without(&[5, 0, 2, 1]).len(), 1);
}
