//! Where pictures go: names, an early check that the place can be written, and files that are whole or absent.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use janus_model::image::Rgb8;

use crate::failure::{Failure, Outcome};

/// Held while a file is written under a name that is not its own.
static WRITING: Mutex<()> = Mutex::new(());

/// Ends the process, but in the middle of no file.
pub(crate) fn leave(code: i32) -> ! {
    let _whole = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
    std::process::exit(code)
}

/// The paths of `count` pictures whose first seed is `seed`.
///
/// Without `-o`: `janus-<seed>.png` each. With `-o x.png`: that name for one picture, `x-0.png`, `x-1.png`... for
/// several. With `-o` an existing directory: the default names inside it.
pub(crate) fn picture_paths(output: Option<&Path>, count: usize, seed: u64) -> Outcome<Vec<PathBuf>> {
    let default_name = |i: usize| format!("janus-{}.png", seed.wrapping_add(i as u64));
    let paths: Vec<PathBuf> = match output {
        None => (0..count).map(|i| PathBuf::from(default_name(i))).collect(),
        Some(dir) if dir.is_dir() => (0..count).map(|i| dir.join(default_name(i))).collect(),
        Some(path) => {
            let extension = path.extension().and_then(|e| e.to_str()).unwrap_or("png");
            match (count, path.file_stem().and_then(|s| s.to_str())) {
                (1, _) => vec![path.to_owned()],
                (_, Some(stem)) => (0..count).map(|i| path.with_file_name(format!("{stem}-{i}.{extension}"))).collect(),
                (_, None) => return Err(Failure::mistake(format!("{}: is not a file name", path.display()))),
            }
        }
    };
    for path in &paths {
        check_writable(path)?;
    }
    Ok(paths)
}

/// Whether a PNG can be put there: fails now rather than after minutes of painting. Leaves nothing behind: the probe
/// file has no name.
pub(crate) fn check_writable(path: &Path) -> Outcome {
    let refuse = |reason: String| Failure::mistake(format!("{}: cannot be written: {reason}", path.display()));
    if path.is_dir() {
        return Err(refuse("it is a directory".to_owned()));
    }
    if path.extension().is_some_and(|extension| !extension.eq_ignore_ascii_case("png")) {
        return Err(Failure::mistake(format!("{}: pictures are written as PNG; name the file .png", path.display())));
    }
    if path.file_name().is_none() {
        return Err(refuse("it names no file".to_owned()));
    }
    // The rename would replace a device or a pipe with a file.
    if path.exists() && !path.is_file() {
        return Err(refuse("it is not a regular file".to_owned()));
    }
    tempfile::tempfile_in(directory_of(path)).map(drop).map_err(|e| refuse(e.to_string()))
}

/// Writes through a temporary file beside the target and a rename.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Outcome {
    let refuse = |reason: String| Failure::mistake(format!("{}: cannot be written: {reason}", path.display()));
    let _whole = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
    let mut file = tempfile::Builder::new()
        .prefix(".janus-")
        .permissions(world_readable())
        .tempfile_in(directory_of(path))
        .map_err(|e| refuse(e.to_string()))?;
    file.write_all(bytes).and_then(|()| file.as_file().sync_all()).map_err(|e| refuse(e.to_string()))?;
    file.persist(path).map(drop).map_err(|e| refuse(e.error.to_string()))
}

/// A moment as `2026-11-21T20:00:00Z`.
pub(crate) fn utc(unix_ms: u64) -> String {
    let (days, second) = ((unix_ms / 86_400_000) as i64, unix_ms / 1000 % 86_400);
    // Years begin in March here, so that a leap day is the last one: 400 years have 146,097 days, 4 have 1,461.
    let day = days + 719_468;
    let (era, day) = (day / 146_097, day % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    let year = 400 * era + year + i64::from(month <= 2);
    format!("{year}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

/// Encodes and writes a picture.
pub(crate) fn write_picture(path: &Path, picture: &Rgb8) -> Outcome {
    write_whole(path, &janus_model::image::encode_png(picture)?)
}

/// The bytes of a picture file, known to be a picture.
pub(crate) fn read_picture(path: &Path) -> Outcome<Vec<u8>> {
    janus_model::image::open(path, &janus_model::image::Limits::default())?;
    std::fs::read(path).map_err(|e| Failure::mistake(format!("{}: cannot be read: {e}", path.display())))
}

/// Prints one line of data on stdout; a reader that went away is not an error worth a message.
pub(crate) fn print_line(text: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

/// Prints a value as one line of JSON.
pub(crate) fn print_json(value: &impl serde::Serialize) -> Outcome {
    let text =
        serde_json::to_string(value).map_err(|e| Failure::Broken(format!("the answer cannot be written as JSON: {e}")))?;
    print_line(&text);
    Ok(())
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

fn world_readable() -> std::fs::Permissions {
    use std::os::unix::fs::PermissionsExt;
    std::fs::Permissions::from_mode(0o644)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_before_the_extension() {
        let dir = tempfile::tempdir().unwrap();
        let names = |count| picture_paths(Some(&dir.path().join("x.png")), count, 7).unwrap();
        assert_eq!(names(1), [dir.path().join("x.png")]);
        assert_eq!(names(3), ["x-0.png", "x-1.png", "x-2.png"].map(|n| dir.path().join(n)));
        assert_eq!(
            picture_paths(Some(dir.path()), 2, 7).unwrap(),
            ["janus-7.png", "janus-8.png"].map(|n| dir.path().join(n))
        );
    }

    #[test]
    fn places_that_cannot_be_written_are_refused_before_any_work() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("no/such/x.png");
        assert!(picture_paths(Some(&missing), 1, 0).unwrap_err().to_string().contains("no/such/x.png"));
        assert!(picture_paths(Some(&dir.path().join("x.jpg")), 1, 0).unwrap_err().to_string().contains("PNG"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_write_replaces_the_file_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.png");
        write_whole(&path, b"first, longer").unwrap();
        write_whole(&path, b"second").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"second");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn moments_are_named_as_calendars_do() {
        for (seconds, named) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_795_291_323, "2026-11-21T20:02:03Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(utc(1000 * seconds + 999), named);
        }
    }
}
