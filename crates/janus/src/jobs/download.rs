//! Results from a server: printed, or into a folder here.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Seek, Write};
use std::path::{Component, Path, PathBuf};

use janus_wire::v1::{Job, JobStatus, ResultsRequest};
use tonic::Status;

use super::client::Client;
use crate::credential::signed;
use crate::failure::{Failure, Outcome};
use crate::output;

/// Largest picture file of a result.
const MAX_PICTURE: usize = 256 << 20;

/// Prints the manifest's lines from `first` on, as far as there are any.
pub(crate) async fn print(client: &mut Client, job: &str, first: u64) -> Outcome {
    let mut at = first;
    loop {
        let whole = fetch(client, job, &mut at, false, |line, _| {
            output::print_line(line);
            Ok(())
        });
        if whole.await? {
            return Ok(());
        }
    }
}

/// Downloads pictures and manifest into `dir`. Each line is kept when its picture is there, so a download that was
/// stopped goes on; the manifest appears when everything is there, and only for a job that is complete.
pub(crate) async fn into(client: &mut Client, job: &Job, dir: &Path) -> Outcome {
    let part = dir.join(format!(".manifest-{}.part", job.id));
    let bad = |path: &Path, error: std::io::Error| Failure::mistake(format!("{}: {error}", path.display()));
    let (mut file, mut at) = open_part(&part).map_err(|error| bad(&part, error))?;
    loop {
        let whole = fetch(client, &job.id, &mut at, true, |line, data| {
            if let Some(path) = path_of(line)? {
                let path = dir.join(path);
                let folder = path.parent().unwrap_or(dir);
                std::fs::create_dir_all(folder).map_err(|error| bad(folder, error))?;
                output::write_whole(&path, data)?;
            }
            file.write_all(format!("{line}\n").as_bytes()).map_err(|error| bad(&part, error))
        });
        if whole.await? {
            break;
        }
    }
    if !matches!(job.status(), JobStatus::Succeeded | JobStatus::Cancelled) {
        return Ok(());
    }
    let manifest = dir.join(janus_coordinator::jobs::MANIFEST);
    file.sync_all().and_then(|()| std::fs::rename(&part, &manifest)).map_err(|error| bad(&manifest, error))
}

/// A manifest that grows: what is there of it, up to its last whole line, and how many lines these are.
fn open_part(part: &Path) -> std::io::Result<(File, u64)> {
    let mut file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(part)?;
    let (mut lines, mut end, mut line) = (0, 0, Vec::new());
    let mut reader = BufReader::new(&file);
    while reader.read_until(b'\n', &mut line)? > 0 && line.ends_with(b"\n") {
        lines += 1;
        end += line.len() as u64;
        line.clear();
    }
    file.set_len(end)?;
    file.seek(std::io::SeekFrom::Start(end))?;
    Ok((file, lines))
}

/// The file that a line names: below the folder, whatever the server says.
fn path_of(line: &str) -> Outcome<Option<PathBuf>> {
    let bad = |why: &str| Failure::Broken(format!("the server sent a result that {why}: {line}"));
    let line: serde_json::Value = serde_json::from_str(line).map_err(|_| bad("is no JSON"))?;
    let Some(path) = line.get("path").and_then(|path| path.as_str()) else { return Ok(None) };
    let path = Path::new(path);
    match path.components().all(|part| matches!(part, Component::Normal(_))) && path.file_name().is_some() {
        true => Ok(Some(path.to_owned())),
        false => Err(bad("names a place elsewhere")),
    }
}

/// Fetches results from line `at` on, which moves with them. False if the stream broke on the way, after some.
pub(crate) async fn fetch(
    client: &mut Client,
    job: &str,
    at: &mut u64,
    data: bool,
    mut take: impl FnMut(&str, &[u8]) -> Outcome,
) -> Outcome<bool> {
    let before = *at;
    client
        .call(async |mut jobs| {
            let request = ResultsRequest { job: job.to_owned(), first: *at, data };
            let mut results = jobs.results(signed(request)).await?.into_inner();
            let (mut line, mut bytes) = (String::new(), Vec::new());
            loop {
                let message = match results.message().await {
                    Ok(Some(message)) => message,
                    Ok(None) if line.is_empty() => return Ok(Ok(true)),
                    Ok(None) => return Err(Status::unavailable("the server ended the results in the middle of one")),
                    // After any result, patience begins anew.
                    Err(_) if *at > before => return Ok(Ok(false)),
                    Err(status) => return Err(status),
                };
                if !message.manifest_line.is_empty() {
                    line = message.manifest_line;
                }
                bytes.extend_from_slice(&message.data);
                if bytes.len() > MAX_PICTURE {
                    return Ok(Err(Failure::Broken(format!("a picture of more than {MAX_PICTURE} bytes"))));
                }
                if message.end {
                    if let Err(failure) = take(&line, &bytes) {
                        return Ok(Err(failure));
                    }
                    *at += 1;
                    line.clear();
                    bytes.clear();
                }
            }
        })
        .await?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_stays_below_its_folder() {
        let path = |path: &str| path_of(&format!("{{\"path\":{path:?}}}"));
        assert_eq!(path("pictures/a-0.png").unwrap(), Some(PathBuf::from("pictures/a-0.png")));
        for bad in ["../x.png", "/etc/x.png", "a/../../x", "", "."] {
            assert!(path(bad).is_err(), "{bad}");
        }
        assert_eq!(path_of("{\"path\":null}").unwrap(), None);
    }

    #[test]
    fn a_download_goes_on_after_its_last_whole_line() {
        let dir = tempfile::tempdir().unwrap();
        let part = dir.path().join("part");
        std::fs::write(&part, "one\ntwo\nthr").unwrap();
        let (mut file, lines) = open_part(&part).unwrap();
        assert_eq!(lines, 2);
        file.write_all(b"three\n").unwrap();
        assert_eq!(std::fs::read_to_string(&part).unwrap(), "one\ntwo\nthree\n");
    }
}
