//! Prompt files of benchmarks, and where their scorers expect the pictures.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::failure::{Failure, Outcome};

/// One prompt and its pictures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Prompt {
    pub(crate) text: String,
    /// Where picture `i` goes, below the folder of results.
    pub(crate) pictures: Vec<PathBuf>,
    /// A file that goes with them.
    pub(crate) beside: Option<(PathBuf, String)>,
}

fn wrong(file: &Path, what: impl std::fmt::Display) -> Failure {
    Failure::mistake(format!("{}: {what}", file.display()))
}

pub(crate) fn read(file: &Path) -> Outcome<String> {
    std::fs::read_to_string(file).map_err(|e| wrong(file, format!("cannot be read: {e}")))
}

/// GenEval's `evaluation_metadata.jsonl`: one object a line, with its `prompt`. Its scorer wants `00000/metadata.jsonl` and
/// `00000/samples/0000.png` and so on.
pub(crate) fn geneval(file: &Path, count: usize) -> Outcome<Vec<Prompt>> {
    let text = read(file)?;
    let mut prompts = Vec::new();
    for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let object: Value = serde_json::from_str(line).map_err(|e| wrong(file, format!("line {}: {e}", i + 1)))?;
        let prompt =
            object["prompt"].as_str().ok_or_else(|| wrong(file, format!("line {}: there is no `prompt`", i + 1)))?;
        let folder = PathBuf::from(format!("{:05}", prompts.len()));
        prompts.push(Prompt {
            text: prompt.to_owned(),
            pictures: (0..count).map(|i| folder.join("samples").join(format!("{i:04}.png"))).collect(),
            beside: Some((folder.join("metadata.jsonl"), format!("{line}\n"))),
        });
    }
    nonempty(file, prompts)
}

/// Pictures for FID: COCO's captions (`annotations` with `image_id` and `caption`; the first one of each picture, under the
/// picture's own name), MJHQ's `meta_data.json` (an id for each `prompt` and `category`, a folder for each category), or a
/// prompt a line.
pub(crate) fn pictures(file: &Path, count: usize) -> Outcome<Vec<Prompt>> {
    let text = read(file)?;
    let parsed: Option<Value> = match text.trim_start().starts_with('{') {
        true => Some(serde_json::from_str(&text).map_err(|e| wrong(file, e))?),
        false => None,
    };
    let prompts = match parsed {
        None => {
            let lines = text.lines().filter(|line| !line.trim().is_empty());
            lines.enumerate().map(|(i, line)| named(line.trim(), &format!("{i:06}"), count)).collect()
        }
        Some(object) if object["annotations"].is_array() => coco(&object, count).map_err(|e| wrong(file, e))?,
        Some(object) => mjhq(&object, count).map_err(|e| wrong(file, e))?,
    };
    nonempty(file, prompts)
}

fn coco(object: &Value, count: usize) -> Result<Vec<Prompt>, String> {
    let names = object["images"].as_array().map(Vec::as_slice).unwrap_or_default().iter();
    let names =
        names.filter_map(|image| Some((image["id"].as_u64()?, Path::new(image["file_name"].as_str()?).file_stem()?)));
    let names: std::collections::HashMap<u64, &std::ffi::OsStr> = names.collect();
    let (mut seen, mut prompts) = (std::collections::HashSet::new(), Vec::new());
    for (i, note) in object["annotations"].as_array().into_iter().flatten().enumerate() {
        let (Some(image), Some(caption)) = (note["image_id"].as_u64(), note["caption"].as_str()) else {
            return Err(format!("annotations[{i}] has no `image_id` and `caption`"));
        };
        if seen.insert(image) {
            let name =
                names.get(&image).and_then(|name| name.to_str()).map_or_else(|| format!("{image:012}"), str::to_owned);
            prompts.push(named(caption.trim(), &name, count));
        }
    }
    Ok(prompts)
}

fn mjhq(object: &Value, count: usize) -> Result<Vec<Prompt>, String> {
    let entry = |(id, entry): (&String, &Value)| {
        let prompt = entry["prompt"].as_str().ok_or_else(|| format!("`{id}` has no `prompt`"))?;
        let name = match entry["category"].as_str() {
            Some(category) => format!("{category}/{id}"),
            None => id.clone(),
        };
        // It becomes a path.
        let plain = name.split('/').all(|part| !part.is_empty() && !part.starts_with('.') && !part.contains('\\'));
        if plain { Ok(named(prompt, &name, count)) } else { Err(format!("`{name}` is no name for a picture")) }
    };
    object.as_object().into_iter().flatten().map(entry).collect()
}

/// One picture has the name, several have numbers.
fn named(text: &str, name: &str, count: usize) -> Prompt {
    let picture = |i| if count == 1 { format!("{name}.png") } else { format!("{name}-{i}.png") };
    Prompt { text: text.to_owned(), pictures: (0..count).map(|i| picture(i).into()).collect(), beside: None }
}

fn nonempty(file: &Path, prompts: Vec<Prompt>) -> Outcome<Vec<Prompt>> {
    if prompts.is_empty() {
        return Err(wrong(file, "holds no prompts"));
    }
    Ok(prompts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, text).unwrap();
        file
    }

    fn first(prompts: &[Prompt]) -> Vec<(&str, &str)> {
        prompts.iter().map(|p| (p.text.as_str(), p.pictures[0].to_str().unwrap())).collect()
    }

    #[test]
    fn pictures_are_where_scorers_look() {
        let line =
            r#"{"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"}"#;
        let prompts = geneval(file(&format!("{line}\n\n{line}\n")).path(), 4).unwrap();
        assert_eq!(prompts[1].pictures[3], Path::new("00001/samples/0003.png"));
        assert_eq!(prompts[0].beside, Some(("00000/metadata.jsonl".into(), format!("{line}\n"))));

        let coco = r#"{"images":[{"id":9,"file_name":"COCO_val2014_000000000009.jpg"}],"annotations":[
            {"image_id":9,"id":1,"caption":"A dog. "},{"image_id":9,"id":2,"caption":"Again."},{"image_id":7,"id":3,"caption":"B"}]}"#;
        let prompts = pictures(file(coco).path(), 1).unwrap();
        assert_eq!(first(&prompts), [("A dog.", "COCO_val2014_000000000009.png"), ("B", "000000000007.png")]);

        let mjhq = r#"{"ab12":{"category":"people","prompt":"a man"},"cd":{"category":"food","prompt":"bread"}}"#;
        let prompts = pictures(file(mjhq).path(), 1).unwrap();
        assert_eq!(first(&prompts), [("a man", "people/ab12.png"), ("bread", "food/cd.png")]);
        assert_eq!(
            first(&pictures(file("one\n\ntwo\n").path(), 2).unwrap()),
            [("one", "000000-0.png"), ("two", "000001-0.png")]
        );
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said() {
        let said = |result: Outcome<Vec<Prompt>>| result.unwrap_err().to_string();
        assert!(said(geneval(file("{}\n").path(), 1)).contains("line 1: there is no `prompt`"));
        assert!(said(geneval(file("").path(), 1)).contains("holds no prompts"));
        assert!(said(pictures(file(r#"{"../x":{"prompt":"a"}}"#).path(), 1)).contains("is no name for a picture"));
        assert!(said(pictures(file(r#"{"annotations":[{}]}"#).path(), 1)).contains("annotations[0]"));
    }
}
