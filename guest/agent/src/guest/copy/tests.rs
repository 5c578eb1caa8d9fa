use std::fs;
use std::os::unix::fs::{symlink, MetadataExt, PermissionsExt};
use std::path::PathBuf;

use super::*;

/// A shared directory of its own, removed at the end.
struct Shared(PathBuf);

impl Shared {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("kata-agent-copy-{}-{name}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn request(&self, path: &str, mode: u32, data: &[u8]) -> CopyFileRequest {
        CopyFileRequest {
            path: self.0.join(path).to_str().unwrap().to_owned(),
            file_size: data.len() as i64,
            file_mode: mode,
            dir_mode: 0o755,
            uid: -1,
            gid: -1,
            data: data.to_vec(),
            ..Default::default()
        }
    }

    fn copy(&self, request: &CopyFileRequest) -> Result<()> {
        let root = open(&self.0, OFlag::O_PATH | OFlag::O_DIRECTORY, Mode::empty()).unwrap();
        copy_below(root, &self.0, request)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

#[test]
fn a_file_appears_when_it_is_complete() {
    let shared = Shared::new("chunks");
    let mut request = shared.request("c/etc/hosts", 0o100_640, b"first ");
    request.file_size = 12;
    shared.copy(&request).unwrap();
    let path = shared.0.join("c/etc/hosts");
    assert!(!path.exists());
    (request.offset, request.data) = (6, b"second".to_vec());
    shared.copy(&request).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"first second");
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o640);
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
}

#[test]
fn directories_and_links() {
    let shared = Shared::new("links");
    shared.copy(&shared.request("v/..2026", 0o040_700, b"")).unwrap();
    assert_eq!(fs::metadata(shared.0.join("v/..2026")).unwrap().permissions().mode() & 0o7777, 0o700);
    for target in ["old", "..2026"] {
        shared.copy(&shared.request("v/..data", 0o120_777, target.as_bytes())).unwrap();
    }
    assert_eq!(fs::read_link(shared.0.join("v/..data")).unwrap(), Path::new("..2026"));
}

#[test]
fn paths_do_not_leave_the_shared_directory() {
    let shared = Shared::new("escape");
    for path in ["../x", "a/../../x", "/etc/passwd", ""] {
        let request = shared.request(path, 0o100_644, b"x");
        assert_eq!(shared.copy(&request).unwrap_err().code, ttrpc::Code::INVALID_ARGUMENT, "{path}");
    }
}

#[test]
fn links_in_the_path_are_not_followed() {
    let shared = Shared::new("follow");
    let outside = Shared::new("outside");
    symlink(&outside.0, shared.0.join("trap")).unwrap();
    assert!(shared.copy(&shared.request("trap/x", 0o100_644, b"x")).is_err());
    symlink(outside.0.join("file"), shared.0.join("file.kata-copy")).unwrap();
    assert!(shared.copy(&shared.request("file", 0o100_644, b"x")).is_err());
    assert_eq!(fs::read_dir(&outside.0).unwrap().count(), 0);
}

#[test]
fn sizes_must_fit() {
    let shared = Shared::new("sizes");
    for (offset, size) in [(-1, 10), (5, 4), (i64::MAX, i64::MAX)] {
        let mut request = shared.request("f", 0o100_644, b"data");
        (request.offset, request.file_size) = (offset, size);
        assert_eq!(shared.copy(&request).unwrap_err().code, ttrpc::Code::INVALID_ARGUMENT);
    }
}
