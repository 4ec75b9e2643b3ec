//! CRIU's image files as they arrive: plain names only, sizes bounded, every file checked against its digest.

use std::path::Path;

use tokio::io::{AsyncRead, AsyncWriteExt};

use super::super::MigrationError;
use super::warm::comes_early;
use crate::model::limits::{IMAGE_FILE_BYTES_MAX, IMAGE_FILES_MAX};
use crate::protocol::frame::{FrameError, read_message};
use crate::rpc::v1::{ImageData, ImageFile};

fn broke(what: String) -> MigrationError {
    MigrationError::Protocol { host: "the source".to_owned(), what }
}

/// A name that CRIU could have given: no path, nothing hidden, and not one of the page files that we write ourselves.
fn good_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let ours = name.starts_with("pages-") || name.starts_with("pagemap-");
    !name.is_empty() && name.len() <= 255 && !name.starts_with('.') && name.chars().all(plain) && !ours
}

/// Receives files until the stream ends; returns how many. What a restore that was started early would see too early goes to
/// `kept`.
pub(super) async fn receive<S: AsyncRead + Unpin>(
    stream: &mut S,
    folder: &Path,
    kept: &Path,
) -> Result<u32, MigrationError> {
    let mut files = 0;
    loop {
        let header: ImageFile = match read_message(stream).await {
            Ok(header) => header,
            Err(FrameError::Closed) => return Ok(files),
            Err(error) => return Err(error.into()),
        };
        files += 1;
        if files > IMAGE_FILES_MAX || header.size > IMAGE_FILE_BYTES_MAX {
            return Err(broke(format!("{} image files, {} bytes in one", files, header.size)));
        }
        if !good_name(&header.name) {
            return Err(broke(format!("{:?} is not the name of an image", header.name)));
        }
        let folder = if comes_early(&header.name) { kept } else { folder };
        receive_file(stream, &folder.join(&header.name), &header).await?;
    }
}

async fn receive_file<S: AsyncRead + Unpin>(
    stream: &mut S,
    path: &Path,
    header: &ImageFile,
) -> Result<(), MigrationError> {
    let mut options = tokio::fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let mut file = options.open(path).await.map_err(MigrationError::io("create", path))?;
    let mut hasher = blake3::Hasher::new();
    let mut left = header.size;
    while left > 0 {
        let data: ImageData = read_message(stream).await?;
        let length = data.data.len() as u64;
        if length == 0 || length > left {
            return Err(broke(format!("{length} bytes where at most {left} belong in {}", header.name)));
        }
        hasher.update(&data.data);
        file.write_all(&data.data).await.map_err(MigrationError::io("write", path))?;
        left -= length;
    }
    file.flush().await.map_err(MigrationError::io("write", path))?;
    if hasher.finalize().as_bytes()[..] != header.digest[..] {
        return Err(broke(format!("the image {} arrived damaged", header.name)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::frame::write_message;

    async fn send(name: &str, content: &[u8], digest_of: &[u8]) -> Result<u32, MigrationError> {
        let dir = tempfile::tempdir().unwrap();
        let (mut a, mut b) = tokio::io::duplex(1 << 16);
        let digest = blake3::hash(digest_of).as_bytes().to_vec().into();
        let header = ImageFile { name: name.to_owned(), size: content.len() as u64, digest };
        write_message(&mut a, &header).await.unwrap();
        write_message(&mut a, &ImageData { data: content.to_vec().into() }).await.unwrap();
        drop(a);
        let files = receive(&mut b, dir.path(), dir.path()).await?;
        assert_eq!(std::fs::read(dir.path().join(name)).unwrap(), content);
        Ok(files)
    }

    #[tokio::test]
    async fn good_files_arrive_and_others_do_not() {
        assert_eq!(send("core-1.img", b"abc", b"abc").await.unwrap(), 1);
        assert!(send("core-1.img", b"abc", b"abd").await.unwrap_err().to_string().contains("damaged"));
        for name in ["../x", "a/b", ".x", "", "pages-1.img", "pagemap-1.img", "x\0"] {
            assert!(
                send(name, b"abc", b"abc").await.unwrap_err().to_string().contains("name of an image"),
                "{name}"
            );
        }
    }
}
